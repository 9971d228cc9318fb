//! From the engine's events to pieces of text: decoding, stop strings, log-probabilities.

use std::collections::VecDeque;

use pt_text::DecodeStream;

use crate::backend::{BackendError, Event, Job, JobEvents, Sampled};
use crate::error::ApiError;
use crate::text::TextSide;

/// Tokens of the prompt from which decoding starts, so that a reply continues it (white space, characters in several
/// tokens).
const DECODE_CONTEXT: usize = 16;

/// What is to be told of each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detail {
    /// Log-probabilities, with this many alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Ids of all tokens, and log-probabilities of all that have an id.
    pub(crate) token_ids: bool,
    /// Tokens are written as `token_id:N`.
    pub(crate) as_ids: bool,
}

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenOut {
    /// As text.
    pub(crate) text: String,
    /// Nats; the first token of a text has none.
    pub(crate) logprob: Option<f32>,
    /// Alternatives, the most probable first.
    pub(crate) top: Vec<(String, f32)>,
    /// Where it begins, in characters of the reply.
    pub(crate) offset: usize,
}

/// What is new of a sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    /// Which sample.
    pub(crate) sample: usize,
    /// Its text.
    pub(crate) text: String,
    /// Its tokens, if asked for.
    pub(crate) tokens: Vec<TokenOut>,
    /// Its ids.
    pub(crate) token_ids: Vec<u32>,
    /// Why it ended, if it did: `stop` or `length`.
    pub(crate) finish: Option<&'static str>,
}

/// The samples of one job, as they grow.
pub(crate) struct Generation<'a> {
    events: JobEvents,
    samples: Vec<Assembler<'a>>,
    /// Tokens sampled, all samples together.
    pub(crate) n_tokens: usize,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(
        side: &'a TextSide,
        job: &Job,
        events: JobEvents,
        detail: Detail,
        skip_special: bool,
    ) -> Result<Generation<'a>, ApiError> {
        let samples = (0..job.sampling.n).map(|_| Assembler::new(side, job, detail, skip_special));
        Ok(Generation { events, samples: samples.collect::<Result<_, _>>()?, n_tokens: 0 })
    }

    /// What is new; `None` when all samples have ended. A piece may be empty.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        while self.samples.iter().any(|sample| !sample.ended) {
            let event = self.events.next().await.ok_or_else(ApiError::engine_gone)?;
            let (sample, piece) = match event {
                Event::Failed(BackendError::Job(message)) => return Err(ApiError::invalid(message)),
                Event::Failed(BackendError::Engine(message)) => return Err(ApiError::internal(message)),
                Event::Cut => return Err(ApiError::shutting_down()),
                Event::Token { sample, .. } | Event::Finished { sample, .. }
                    if self.samples[sample].ended =>
                {
                    continue;
                }
                Event::Token { sample, sampled } => {
                    self.n_tokens += 1;
                    (sample, self.samples[sample].push(sampled)?)
                }
                Event::Finished { sample, stopped } => (sample, self.samples[sample].finish(stopped)?),
            };
            return Ok(Some(Piece { sample, ..piece }));
        }
        Ok(None)
    }
}

/// One sample.
struct Assembler<'a> {
    side: &'a TextSide,
    decode: DecodeStream<'a>,
    detail: Detail,
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
    min_tokens: usize,
    /// Ids before the next token: the end of the prompt, and the sample.
    ids: Vec<u32>,
    n_tokens: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// Characters of text given out.
    n_given: usize,
    /// Tokens whose text was not given out.
    tokens: VecDeque<TokenOut>,
    ended: bool,
}

impl<'a> Assembler<'a> {
    fn new(
        side: &'a TextSide,
        job: &Job,
        detail: Detail,
        skip_special: bool,
    ) -> Result<Assembler<'a>, ApiError> {
        let ids = job.prompt_ids[job.prompt_ids.len().saturating_sub(DECODE_CONTEXT)..].to_vec();
        let mut decode = side.tokenizer.decode_stream(skip_special);
        for &id in &ids {
            decode.push(id).map_err(|error| ApiError::internal(error.to_string()))?;
        }
        Ok(Assembler {
            side,
            decode,
            detail,
            stop: job.sampling.stop.clone(),
            stop_token_ids: job.stop_token_ids.clone(),
            min_tokens: job.sampling.min_tokens,
            ids,
            n_tokens: 0,
            held: String::new(),
            n_given: 0,
            tokens: VecDeque::new(),
            ended: false,
        })
    }

    fn push(&mut self, sampled: Sampled) -> Result<Piece, ApiError> {
        self.n_tokens += 1;
        let id = sampled.token;
        if self.detail.logprobs.is_some() {
            let token = self.token_out(&sampled)?;
            self.tokens.push_back(token);
        }
        self.ids.push(id);
        // The token that ends a reply is no text, be it marked as special or not.
        if !self.stop_token_ids.contains(&id) {
            self.held += &self.decode.push(id).map_err(|error| ApiError::internal(error.to_string()))?;
        }
        let mut piece = match self.stop_at().filter(|_| self.n_tokens >= self.min_tokens) {
            Some(at) => self.cut(at),
            None => {
                let keep = self.held.len() - self.undecided();
                self.give(keep, false)
            }
        };
        if self.detail.token_ids {
            piece.token_ids = vec![id];
        }
        Ok(piece)
    }

    /// The sample has ended by itself.
    fn finish(&mut self, stopped: bool) -> Result<Piece, ApiError> {
        self.held += &self.decode.finish().map_err(|error| ApiError::internal(error.to_string()))?;
        if let Some(at) = self.stop_at() {
            return Ok(self.cut(at));
        }
        self.ended = true;
        let piece = self.give(self.held.len(), true);
        Ok(Piece { finish: Some(if stopped { "stop" } else { "length" }), ..piece })
    }

    /// Ends before a stop string.
    fn cut(&mut self, at: usize) -> Piece {
        self.ended = true;
        Piece { finish: Some("stop"), ..self.give(at, self.detail.token_ids) }
    }

    /// Gives out text, with the tokens that begin in it, or with all.
    fn give(&mut self, n_bytes: usize, all: bool) -> Piece {
        let text: String = self.held.drain(..n_bytes).collect();
        self.n_given += text.chars().count();
        let n_given = self.n_given;
        let n_tokens =
            if all { self.tokens.len() } else { self.tokens.partition_point(|t| t.offset < n_given) };
        Piece { text, tokens: self.tokens.drain(..n_tokens).collect(), ..Piece::default() }
    }

    /// Where the first stop string begins.
    fn stop_at(&self) -> Option<usize> {
        self.stop.iter().filter_map(|stop| self.held.find(stop)).min()
    }

    /// Bytes at the end that may be the beginning of a stop string.
    fn undecided(&self) -> usize {
        let beginning = |stop: &String| {
            let starts = stop.char_indices().map(|(at, _)| at).skip(1);
            starts.filter(|&n| self.held.ends_with(&stop[..n])).max().unwrap_or(0)
        };
        self.stop.iter().map(beginning).max().unwrap_or(0)
    }

    fn token_out(&self, sampled: &Sampled) -> Result<TokenOut, ApiError> {
        let top = sampled.top.iter().take(self.detail.logprobs.unwrap_or(0));
        Ok(TokenOut {
            text: token_name(self.side, self.detail, &self.ids, sampled.token)?,
            logprob: Some(sampled.logprob),
            top: top
                .map(|&(id, logprob)| Ok((token_name(self.side, self.detail, &self.ids, id)?, logprob)))
                .collect::<Result<_, ApiError>>()?,
            offset: self.n_given + self.held.chars().count(),
        })
    }
}

/// How a token is written.
pub(crate) fn token_name(
    side: &TextSide,
    detail: Detail,
    before: &[u32],
    id: u32,
) -> Result<String, ApiError> {
    if detail.as_ids { Ok(format!("token_id:{id}")) } else { side.token_text(before, id) }
}
