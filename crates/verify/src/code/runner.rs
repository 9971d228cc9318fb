//! Programs of a model run for what they write, rather than judged: Python in the verifier's own sandbox and workers.

use std::sync::{Arc, OnceLock};

use super::python::{Python, Trouble};
use super::{Code, Language, Machine, Options, stopped};
use crate::text::shortened;

/// The longest end of an error that is given back, in characters.
const ERROR_CHARS: usize = 500;

/// Runs Python programs in the sandbox. Nothing is started before the first.
pub struct PythonRunner {
    options: Options,
    machine: OnceLock<Result<Arc<Machine>, String>>,
}

/// What a program came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    /// What it wrote, exit code 0.
    Wrote(String),
    /// What it did wrong.
    Failed(String),
}

impl std::fmt::Debug for PythonRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PythonRunner").field("options", &self.options).finish_non_exhaustive()
    }
}

impl PythonRunner {
    /// A runner with this interpreter and limits.
    ///
    /// # Errors
    /// A limit out of range.
    pub fn new(
        python: &str,
        timeout_s: f64,
        memory_mb: u64,
        allow_unisolated: bool,
    ) -> Result<PythonRunner, String> {
        let python = python.to_owned();
        let options = Options { python, timeout_s, memory_mb, allow_unisolated, ..Options::default() };
        // The same bounds as those of the verifier.
        Code::new(options.clone()).map_err(|error| error.to_string())?;
        Ok(PythonRunner { options, machine: OnceLock::new() })
    }

    /// Runs a program with nothing to read.
    ///
    /// # Errors
    /// What is wrong with this machine, through no fault of the program: it cannot isolate, or has no such interpreter.
    pub fn run(&self, code: &str) -> Result<Ran, String> {
        let machine = self.machine.get_or_init(|| Machine::shared(&self.options));
        let machine = machine.as_deref().map_err(Clone::clone)?;
        let Language::Python(python) = &machine.language else { unreachable!("no command was given") };
        self.run_in(machine, python, code)
    }

    fn run_in(&self, machine: &Machine, python: &Python, code: &str) -> Result<Ran, String> {
        let (head, stdout) = match python.program(&machine.sandbox, code, "", self.options.timeout_s) {
            Ok(run) => run,
            Err(Trouble::Answer(problem)) => return Ok(Ran::Failed(problem.to_owned())),
            Err(Trouble::Machine(problem)) => return Err(problem),
        };
        let failed = |problem: String| Ok(Ran::Failed(problem));
        match (stopped(&head), head.code) {
            (Some(problem), _) => failed(problem.to_owned()),
            (None, Some(0)) => Ok(Ran::Wrote(String::from_utf8_lossy(&stdout).into_owned())),
            (None, code) => {
                let last = head.stderr.trim().lines().last().unwrap_or_default();
                let code = code.unwrap_or(-1);
                failed(if last.is_empty() {
                    format!("exited with {code}")
                } else {
                    shortened(last, ERROR_CHARS)
                })
            }
        }
    }
}
