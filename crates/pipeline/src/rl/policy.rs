//! Who continues prompts: the model in training, by its own engine, or another program.

use std::sync::Arc;

use pt_rollout::{Engine, EngineOptions, Event, Request, Sample, SamplingParams};

use crate::error::Result;

/// Continues prompts, many at once, in any order; what each comes to depends on the request alone.
pub(super) trait Policy {
    /// Takes a request. `ticket` comes back with each of its samples.
    ///
    /// # Errors
    /// A request that cannot be sampled.
    fn submit(&mut self, ticket: usize, request: Request, params: Arc<SamplingParams>) -> Result<()>;

    /// Works on what was submitted and gives what ended; waits for nothing unless `waits`, and then for at least one sample, if any
    /// is under way.
    ///
    /// # Errors
    /// Those of sampling.
    fn advance(&mut self, waits: bool) -> Result<Vec<Ended>>;

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool;
}

/// A sample that ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Of which request.
    pub(super) ticket: usize,
    /// Which of its samples.
    pub(super) index: usize,
    /// The sample; none if it was lost.
    pub(super) sample: Option<Sample>,
}

/// The model in training. What several requests have in common at their beginning is computed once: a conversation's turns so far,
/// too, when it comes back for its next turn.
pub(super) struct Own<'m> {
    engine: Engine<'m>,
    tickets: Vec<usize>,
}

impl<'m> Own<'m> {
    /// `keeps_prefixes` where requests come back with more behind them.
    pub(super) fn new(model: &'m pt_models::Model, dtype: pt_engine::Dtype, keeps_prefixes: bool) -> Own<'m> {
        let options = EngineOptions { keeps_prefixes, ..EngineOptions::new(dtype) };
        Own { engine: Engine::new(model, options), tickets: Vec::new() }
    }
}

impl Policy for Own<'_> {
    fn submit(&mut self, ticket: usize, request: Request, params: Arc<SamplingParams>) -> Result<()> {
        let id = self.engine.submit(request, params)?;
        assert_eq!(id.0 as usize, self.tickets.len(), "requests are numbered in order");
        self.tickets.push(ticket);
        Ok(())
    }

    fn advance(&mut self, waits: bool) -> Result<Vec<Ended>> {
        let mut ended = Vec::new();
        while !self.engine.is_idle() {
            for event in self.engine.step() {
                match event {
                    Event::Token { .. } => {}
                    Event::Finished { request, index, sample } => {
                        let ticket = self.tickets[request.0 as usize];
                        ended.push(Ended { ticket, index, sample: Some(sample) });
                    }
                    Event::Failed { error, .. } => return Err(error.into()),
                }
            }
            if !waits || !ended.is_empty() {
                break;
            }
        }
        Ok(ended)
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }
}
