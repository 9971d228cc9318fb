//! The order of rows and their cut into optimiser steps, epoch after epoch.
//!
//! Step `n` is a pure function of the sources, the options and the seed, so a resumed run asks for the step it
//! stopped before and sees what it would have seen.

use std::sync::Arc;

use pt_data::batches::{BatchOptions, Batches, StepSize};
use pt_data::mix::{Blend, Mixture, RowAt};
use pt_models::Model;
use pt_recipe::Packing;
use pt_train::{Alarm, Example, MicroBatch, SourceResult, StepData, StepSource, StepStats};

use crate::displacement::DisplacementWatch;
use crate::error::{PipelineError, Result};
use crate::tokenise::TokenisedSource;

/// How rows become steps.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// How the sources are mixed.
    pub blend: Blend,
    /// Whether rows are segments, or joined and cut.
    pub packing: Packing,
    /// Length of the pieces when rows are joined.
    pub max_length: usize,
    /// Size of an optimiser step.
    pub step_size: StepSize,
    /// Most tokens of a micro-batch.
    pub tokens_per_micro_batch: usize,
    /// Whether rows come in a new order in every epoch.
    pub shuffle: bool,
    /// Keys the order.
    pub seed: u64,
}

/// The steps of a stage.
pub struct Steps {
    sources: Vec<TokenisedSource>,
    mixture: Mixture,
    options: StepOptions,
    /// First step of each epoch seen so far, and of the one after.
    starts: Vec<u64>,
    epoch: Epoch,
    displacement: Option<DisplacementWatch>,
}

/// One epoch, laid out.
struct Epoch {
    index: u64,
    order: Vec<RowAt>,
    /// For joined rows, the first token of each row in the epoch's stream, and the stream's length.
    offsets: Vec<usize>,
    batches: Batches,
    n_tokens: u64,
}

impl Steps {
    /// Lays out the first epoch.
    ///
    /// # Errors
    /// If there is no row, or a row does not fit a micro-batch.
    pub fn new(sources: Vec<TokenisedSource>, options: StepOptions) -> Result<Steps> {
        let n_rows: Vec<usize> = sources.iter().map(TokenisedSource::n_rows).collect();
        let mixture = Mixture::new(&n_rows, &options.blend, options.seed)?;
        let epoch = Epoch::lay_out(0, &sources, &mixture, &options)?;
        let starts = vec![0, epoch.batches.n_steps() as u64];
        Ok(Steps { sources, mixture, options, starts, epoch, displacement: None })
    }

    /// Warns when chosen replies grow less likely while the margin grows, for a stage on pairs.
    pub(crate) fn watch_displacement(&mut self) {
        self.displacement = Some(DisplacementWatch::default());
    }

    /// Steps of the first epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.starts[1]
    }

    /// Tokens of the first epoch.
    pub fn tokens_per_epoch(&self) -> u64 {
        self.epoch.n_tokens
    }

    /// Refuses steps of the first epoch in which nothing trains, as pieces of joined rows can be. (A row that is a segment
    /// of its own was checked alone.)
    ///
    /// # Errors
    /// [`PipelineError::EmptyStep`].
    pub fn check_targets(&mut self, n_steps: u64) -> Result<()> {
        // Where every token but each row's first trains, no piece of two tokens is without a target.
        let untrained = |source: &TokenisedSource| {
            source.counts.trained_tokens + (source.n_rows() as u64) < source.counts.tokens
        };
        if self.options.packing != Packing::Wrapped || !self.sources.iter().any(untrained) {
            return Ok(());
        }
        for step in 0..n_steps.min(self.steps_per_epoch()) {
            let batches = self.micro_batches(step)?;
            if batches.iter().all(|batch| batch.predictions().weights.iter().all(|weight| *weight == 0.0)) {
                let first = batches.first().and_then(|batch| batch.examples().first());
                let origin = first.map_or_else(String::new, |example| example.origin.to_string());
                return Err(PipelineError::EmptyStep { step: step + 1, origin });
            }
        }
        Ok(())
    }

    /// The sources, in the recipe's order.
    pub fn sources(&self) -> &[TokenisedSource] {
        &self.sources
    }

    /// The same, to add what is known of their replies' tokens.
    pub(crate) fn sources_mut(&mut self) -> &mut [TokenisedSource] {
        &mut self.sources
    }

    /// The rows of a step, in order.
    ///
    /// # Errors
    /// If an epoch cannot be laid out.
    ///
    /// # Panics
    /// If rows are joined and cut.
    pub fn rows(&mut self, step_idx: u64) -> Result<Vec<RowAt>> {
        assert!(self.options.packing != Packing::Wrapped, "pieces of joined rows are no rows");
        let in_epoch = self.seek(step_idx)?;
        let step = self.epoch.batches.step(in_epoch);
        let mut items: Vec<usize> = step.micro_batches.iter().flatten().copied().collect();
        items.sort_unstable();
        Ok(items.into_iter().map(|item| self.epoch.order[item]).collect())
    }

    /// Makes `epoch` hold the step; returns its index there.
    fn seek(&mut self, step_idx: u64) -> Result<usize> {
        while *self.starts.last().expect("starts begin with 0") <= step_idx {
            let index = self.starts.len() as u64 - 1;
            self.epoch = Epoch::lay_out(index, &self.sources, &self.mixture, &self.options)?;
            let end = self.starts[index as usize] + self.epoch.batches.n_steps() as u64;
            self.starts.push(end);
        }
        let index = self.starts.partition_point(|&start| start <= step_idx) as u64 - 1;
        if self.epoch.index != index {
            self.epoch = Epoch::lay_out(index, &self.sources, &self.mixture, &self.options)?;
        }
        Ok((step_idx - self.starts[index as usize]) as usize)
    }

    /// The micro-batches of a step.
    ///
    /// # Errors
    /// If a cache file can no longer be read.
    pub fn micro_batches(&mut self, step_idx: u64) -> Result<Vec<MicroBatch>> {
        let in_epoch = self.seek(step_idx)?;
        let step = self.epoch.batches.step(in_epoch);
        step.micro_batches
            .iter()
            .map(|items| {
                let examples = items.iter().map(|&item| self.example(item)).collect::<Result<Vec<_>>>()?;
                Ok(MicroBatch::new(examples))
            })
            .collect()
    }

    /// Item `item` of the current epoch: a row, or a piece of the joined rows.
    fn example(&self, item: usize) -> Result<Example> {
        let key = self.epoch.index * self.epoch.order.len() as u64 + item as u64;
        if self.options.packing != Packing::Wrapped {
            let at = self.epoch.order[item];
            return self.sources[at.source_idx].example(at.row_idx, key);
        }
        let first = item * self.options.max_length;
        let end = (first + self.options.max_length).min(self.epoch.n_tokens as usize);
        let mut position = self.epoch.offsets.partition_point(|&offset| offset <= first) - 1;
        let (mut token_ids, mut weights, mut origin) = (Vec::new(), Vec::new(), None);
        while token_ids.len() < end - first {
            let at = self.epoch.order[position];
            let row = self.sources[at.source_idx].row(at.row_idx)?;
            let from = (first + token_ids.len()) - self.epoch.offsets[position];
            let take = (row.token_ids.len() - from).min(end - first - token_ids.len());
            token_ids.extend_from_slice(&row.token_ids[from..from + take]);
            weights.extend_from_slice(&row.train_weights[from..from + take]);
            origin.get_or_insert_with(|| Arc::from(row.origin.to_string()));
            position += 1;
        }
        Ok(Example::sequence(token_ids, weights, key, origin.unwrap_or_else(|| Arc::from(""))))
    }
}

impl Epoch {
    fn lay_out(
        index: u64,
        sources: &[TokenisedSource],
        mixture: &Mixture,
        options: &StepOptions,
    ) -> Result<Epoch> {
        let mut order = mixture.order(index);
        if !options.shuffle {
            in_file_order(&mut order, index, sources, mixture, &options.blend);
        }
        let lengths: Vec<usize> =
            order.iter().map(|at| sources[at.source_idx].lengths()[at.row_idx]).collect();
        let n_tokens: usize = lengths.iter().sum();
        let mut offsets = Vec::new();
        let items = match options.packing {
            Packing::Bfd | Packing::Sequential => lengths,
            Packing::Wrapped => {
                let mut offset = 0;
                for len in &lengths {
                    offsets.push(offset);
                    offset += len;
                }
                let mut pieces = vec![options.max_length; n_tokens / options.max_length];
                // A last piece of one token predicts nothing.
                pieces.extend(Some(n_tokens % options.max_length).filter(|&rest| rest > 1));
                pieces
            }
        };
        let batch_options = BatchOptions {
            tokens_per_micro_batch: options.tokens_per_micro_batch,
            step: options.step_size,
            packing: match options.packing {
                Packing::Bfd => pt_data::batches::Packing::Bfd,
                Packing::Sequential | Packing::Wrapped => pt_data::batches::Packing::Sequential,
            },
        };
        let batches = Batches::new(items, batch_options)?;
        Ok(Epoch { index, order, offsets, batches, n_tokens: n_tokens as u64 })
    }
}

/// As many rows of each source, in the order of its file, from where the epoch before ended. Sources by shares stay
/// interleaved as they were; sources that are repeated follow one another.
fn in_file_order(
    order: &mut [RowAt],
    epoch: u64,
    sources: &[TokenisedSource],
    mixture: &Mixture,
    blend: &Blend,
) {
    if matches!(blend, Blend::Repeats(_)) {
        order.sort_by_key(|at| at.source_idx);
    }
    let n_per_epoch = mixture.rows_per_epoch();
    let mut next: Vec<u128> = n_per_epoch.iter().map(|&n| u128::from(epoch) * n as u128).collect();
    for slot in order {
        let source = slot.source_idx;
        slot.row_idx = (next[source] % sources[source].n_rows() as u128) as usize;
        next[source] += 1;
    }
}

impl StepSource for Steps {
    fn step(&mut self, step_idx: u64, _: &Model) -> SourceResult<StepData> {
        Ok(self.micro_batches(step_idx)?.into())
    }

    fn epoch(&mut self, steps_done: u64) -> f64 {
        let Ok(in_epoch) = self.seek(steps_done) else { return f64::NAN };
        let index = self.epoch.index as usize;
        let len = (self.starts[index + 1] - self.starts[index]) as f64;
        index as f64 + in_epoch as f64 / len
    }

    fn state(&self) -> serde_json::Value {
        self.displacement.as_ref().map_or(serde_json::Value::Null, DisplacementWatch::state)
    }

    fn restore(&mut self, state: &serde_json::Value) -> SourceResult<()> {
        if let Some(watch) = &mut self.displacement {
            watch.restore(state);
        }
        Ok(())
    }

    fn after_step(&mut self, step_idx: u64, stats: &StepStats) -> SourceResult<Vec<Alarm>> {
        Ok(self.displacement.as_mut().and_then(|watch| watch.observe(step_idx, stats)).into_iter().collect())
    }
}

/// Held-out rows as micro-batches, in the order of the sources.
///
/// # Errors
/// If a row does not fit a micro-batch.
pub fn eval_micro_batches(
    sources: &[TokenisedSource],
    tokens_per_micro_batch: usize,
) -> Result<Vec<MicroBatch>> {
    let mut examples = Vec::new();
    for source in sources {
        for row in 0..source.n_rows() {
            examples.push(source.example(row, examples.len() as u64)?);
        }
    }
    let lengths: Vec<usize> = examples.iter().map(Example::n_tokens).collect();
    let packs = pt_data::pack::sequential(&lengths, tokens_per_micro_batch)?;
    let mut examples = examples.into_iter();
    Ok(packs.into_iter().map(|pack| MicroBatch::new(examples.by_ref().take(pack.len()).collect())).collect())
}
