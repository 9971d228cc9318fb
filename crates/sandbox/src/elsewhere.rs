//! Systems other than Linux: nothing is run.

use std::time::Duration;

use crate::{Capabilities, Exchange, Job, Limits, Outcome, SandboxError};

/// Nothing on this system.
#[derive(Debug)]
pub struct Sandbox(std::convert::Infallible);

/// Nothing on this system.
#[derive(Debug)]
pub struct Session(std::convert::Infallible);

impl Sandbox {
    /// Always an error here.
    ///
    /// # Errors
    /// [`SandboxError::Unsupported`].
    pub fn new(_limits: Limits) -> Result<Sandbox, SandboxError> {
        Err(SandboxError::Unsupported { missing: "this system is not Linux".to_owned() })
    }

    /// Nothing.
    pub fn examine() -> Capabilities {
        Capabilities { missing: vec!["this system is not Linux".to_owned()], ..Capabilities::default() }
    }

    /// What is in force.
    pub fn capabilities(&self) -> &Capabilities {
        match self.0 {}
    }

    /// Runs a job.
    ///
    /// # Errors
    /// Never: there is no sandbox.
    pub fn run(&self, _job: &Job) -> Result<Outcome, SandboxError> {
        match self.0 {}
    }

    /// Starts a session.
    ///
    /// # Errors
    /// Never: there is no sandbox.
    pub fn spawn(&self, _job: &Job) -> Result<Session, SandboxError> {
        match self.0 {}
    }
}

impl Session {
    /// Asks.
    pub fn exchange(&mut self, _request: &[u8], _timeout: Duration) -> Exchange {
        match self.0 {}
    }
}
