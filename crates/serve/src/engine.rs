//! The backend on [`pt_rollout::Engine`], with the model's own scores for text that is echoed.

use std::collections::BTreeMap;

use pt_engine::{Batch, Dtype, Logprobs, SegmentTable, Tape};
use pt_models::Model;
use pt_rollout::{
    Engine, EngineOptions, FinishReason, Request, RequestId, SamplingParams, content_key, top_logprobs,
};

use crate::backend::{Backend, BackendError, Event, Job, Sampled, Scored};

/// Rows of logits that are in memory at once.
const SCORED_ROWS: usize = 64;

/// Samples and scores with a model.
pub struct EngineBackend<'m> {
    model: &'m Model,
    dtype: Dtype,
    engine: Engine<'m>,
    /// The engine's names of jobs, both ways.
    names: BTreeMap<RequestId, u64>,
    requests: BTreeMap<u64, RequestId>,
    /// Samples of a job that are not over.
    n_left: BTreeMap<u64, usize>,
}

impl<'m> EngineBackend<'m> {
    /// A backend without jobs. Stop strings need `options.detokenise`.
    pub fn new(model: &'m Model, options: EngineOptions<'m>) -> EngineBackend<'m> {
        EngineBackend {
            model,
            dtype: options.dtype,
            engine: Engine::new(model, options),
            names: BTreeMap::new(),
            requests: BTreeMap::new(),
            n_left: BTreeMap::new(),
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(request) = self.requests.remove(&id) {
            self.names.remove(&request);
        }
        self.n_left.remove(&id);
    }
}

/// What a job asks, in the engine's words.
fn params(job: &Job) -> SamplingParams {
    let sampling = &job.sampling;
    SamplingParams {
        n: sampling.n,
        max_new_tokens: job.max_new_tokens,
        min_new_tokens: sampling.min_tokens,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: sampling.logit_bias.clone(),
        stop_token_ids: job.stop_token_ids.clone(),
        // The job lists what ends it.
        ignore_eos: false,
        stop: sampling.stop.clone(),
        top_logprobs: job.top_logprobs,
        seed: job.seed,
    }
}

impl Backend for EngineBackend<'_> {
    fn submit(&mut self, id: u64, job: &Job) -> Result<(), BackendError> {
        // The same prompt and seed give the same samples, here and in `posttrain generate`.
        let request = Request { key: content_key(&job.prompt_ids), prompt_ids: job.prompt_ids.clone() };
        let submitted = self.engine.submit(request, params(job));
        let request = submitted.map_err(|error| BackendError::Job(error.to_string()))?;
        self.names.insert(request, id);
        self.requests.insert(id, request);
        self.n_left.insert(id, job.sampling.n);
        Ok(())
    }

    fn step(&mut self, emit: &mut dyn FnMut(u64, Event)) {
        for event in self.engine.step() {
            let (request, event) = match event {
                pt_rollout::Event::Token { request, sample, token, logprob, top, .. } => {
                    (request, Event::Token { sample, sampled: Sampled { token, logprob, top } })
                }
                pt_rollout::Event::Finished { request, index, sample } => {
                    let stopped = sample.finish_reason == FinishReason::Stop;
                    (request, Event::Finished { sample: index, stopped })
                }
                pt_rollout::Event::Failed { request, error, .. } => {
                    (request, Event::Failed(BackendError::Engine(error.to_string())))
                }
            };
            // What came after a failure of another sample of the same job is nobody's.
            let Some(&id) = self.names.get(&request) else { continue };
            let is_over = match &event {
                Event::Token { .. } => false,
                Event::Failed(_) | Event::Cut => {
                    self.engine.cancel(request);
                    true
                }
                Event::Finished { .. } => {
                    let n_left = self.n_left.get_mut(&id).expect("a named job has samples left");
                    *n_left -= 1;
                    *n_left == 0
                }
            };
            if is_over {
                self.forget(id);
            }
            emit(id, event);
        }
    }

    fn cancel(&mut self, id: u64) {
        if let Some(&request) = self.requests.get(&id) {
            self.engine.cancel(request);
            self.forget(id);
        }
    }

    fn score(&mut self, ids: &[u32], top: usize) -> Result<Vec<Scored>, BackendError> {
        // As the trainer and `posttrain score` compute it, and so to the same bits.
        let table =
            SegmentTable::sequences(&[ids.len()]).map_err(|error| BackendError::Job(error.to_string()))?;
        let batch = Batch::new(ids.to_vec(), table);
        let mut tape = Tape::inference(&self.model.params, &batch, self.dtype);
        let hidden = self.model.arch.hidden(&mut tape, false);
        let options = self.model.arch.logprob_options();
        let predicting: Vec<u32> = (0..ids.len() as u32 - 1).collect();
        let mut scores = Vec::with_capacity(predicting.len());
        for rows in predicting.chunks(SCORED_ROWS) {
            let logits = tape.logits(&hidden, self.model.arch.head(), rows, &options);
            for (at, &row) in rows.iter().enumerate() {
                let score = scored(&logits.row_to_f32(at), ids[row as usize + 1], top);
                scores.push(score.ok_or_else(|| {
                    let n = row + 1;
                    let message = format!(
                        "the model's logits are not finite after {n} tokens: its weights are damaged"
                    );
                    BackendError::Engine(message)
                })?);
            }
        }
        Ok(scores)
    }
}

/// Log-probability of `target`, and of the `top` most probable tokens (ties by id). `None` if they are not finite.
fn scored(logits: &[f32], target: u32, top: usize) -> Option<Scored> {
    let logprob = Logprobs::of_logits(logits, target).logp;
    if !logprob.is_finite() {
        return None;
    }
    Some(Scored { logprob, top: top_logprobs(logits, top) })
}
