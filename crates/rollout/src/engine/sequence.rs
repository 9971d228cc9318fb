//! A sample while it grows, and how it ends.

use crate::blocks::BLOCK_TOKENS;
use crate::sampling::History;
use crate::stop::{Found, Text};
use crate::{FinishReason, Sample, SamplingParams, Stop};

/// A sample that has begun.
pub(super) struct Sequence {
    /// Prompt and sample.
    pub(super) tokens: Vec<u32>,
    pub(super) n_prompt: usize,
    /// Blocks of its positions, in order; none while it waits.
    pub(super) blocks: Vec<u32>,
    /// Positions whose keys and values are in the blocks.
    pub(super) n_computed: usize,
    /// Blocks that others can find.
    pub(super) n_published: usize,
    /// Whether it has not drawn a token since its blocks were last empty.
    pub(super) prefills: bool,
    pub(super) logprobs: Vec<f32>,
    pub(super) filtered_logprobs: Vec<f32>,
    pub(super) top_logprobs: Vec<Vec<(u32, f32)>>,
    pub(super) history: History,
    pub(super) text: Option<Text>,
}

/// Why a sample ends.
pub(super) struct End {
    finish_reason: FinishReason,
    stop: Option<Stop>,
    found: Option<Found>,
}

pub(super) fn end_of(
    params: &SamplingParams,
    token: u32,
    n_tokens: usize,
    found: Option<Found>,
) -> Option<End> {
    let by = |stop, found| Some(End { finish_reason: FinishReason::Stop, stop: Some(stop), found });
    if n_tokens >= params.min_new_tokens {
        if !params.ignore_eos && params.stop_token_ids.contains(&token) {
            return by(Stop::Token(token), None);
        }
        if let Some(found) = found {
            return by(Stop::Text { which: found.which, n_bytes: found.n_bytes }, Some(found));
        }
    }
    let is_long = n_tokens >= params.max_new_tokens;
    is_long.then_some(End { finish_reason: FinishReason::Length, stop: None, found: None })
}

pub(super) fn finish(sequence: Sequence, end: End, params: &SamplingParams) -> Sample {
    let mut token_ids = sequence.tokens;
    token_ids.drain(..sequence.n_prompt);
    Sample {
        token_ids,
        logprobs: sequence.logprobs,
        filtered_logprobs: params.changes_distribution().then_some(sequence.filtered_logprobs),
        top_logprobs: sequence.top_logprobs,
        finish_reason: end.finish_reason,
        stop: end.stop,
        text: sequence.text.map(|text| text.finish(end.found)),
    }
}

/// Cache rows of the first `n` positions.
pub(super) fn cache_rows(blocks: &[u32], n: usize) -> Vec<u32> {
    let mut rows = Vec::with_capacity(n);
    for (i, &block) in blocks.iter().take(n.div_ceil(BLOCK_TOKENS)).enumerate() {
        let first = block * BLOCK_TOKENS as u32;
        rows.extend(first..first + (n - i * BLOCK_TOKENS).min(BLOCK_TOKENS) as u32);
    }
    rows
}
