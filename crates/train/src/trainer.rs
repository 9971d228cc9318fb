//! One optimiser step: forward, objective, backward, clip, update.
//!
//! The trainer knows no algorithm. An objective turns per-token arrays into their gradients; everything else here is
//! the same for all of them. Losses are normalised by the total target weight of the **whole** step, so cutting a step
//! into other micro-batches changes nothing (see [`pt_kernels::gemm`] on why not even the last bit in f32).

use std::borrow::Cow;
use std::sync::Arc;

use pt_engine::{
    Array, DivergenceOptions, Dtype, Grads, LogprobGrad, LogprobOptions, Logprobs, Param, ParamId, Profile,
    Seed, Storage, Tape, Teacher, Tensor, Var,
};
use pt_models::{Model, ScoreHead};
use pt_objectives::{
    CompletionKind, Divergence, Metric, Needs, Normaliser, Objective, ObjectiveOutput, PrePass, TokenBatch,
};
use pt_optim::{Groups, Optimiser, ParamSpec, ParamState, Role, Schedule, Step, clip_factor, global_norm};
use rayon::prelude::*;

use crate::error::{Result, TrainError};
use crate::example::{MicroBatch, Predictions};

/// How steps are taken.
#[derive(Clone, Debug)]
pub struct TrainerOptions {
    /// Storage of activations.
    pub dtype: Dtype,
    /// The schedule's peak.
    pub learning_rate: f64,
    /// Keep only each block's input and compute the block again in backward.
    pub recompute: bool,
    /// Gradients are scaled down to this global norm; `None` leaves them.
    pub max_grad_norm: Option<f64>,
    /// Keys dropout.
    pub seed: u64,
    /// Weight decay and learning-rate groups.
    pub groups: Groups,
    /// Divides the logits, as it did when the tokens were sampled; 1 for data that was not.
    pub temperature: f32,
}

/// A model being trained.
pub struct Trainer {
    /// The model; its trainable parameters change from step to step.
    pub model: Model,
    /// What an objective on divergences measures them from; nothing of it trains.
    teacher: Option<Arc<Model>>,
    objective: Box<dyn Objective>,
    schedule: Schedule,
    options: TrainerOptions,
    states: Vec<Trained>,
    grads: Grads,
    steps_done: u64,
    /// Metrics of the step that was accumulated last.
    totals: Vec<Metric>,
}

/// Arrays of several micro-batches, one after the other.
#[derive(Default)]
struct Arrays {
    logprobs: Logprobs,
    predictions: Predictions,
    scores: Vec<f32>,
    divergences: Vec<f32>,
}

impl Arrays {
    fn append(&mut self, computed: Computed, mut predictions: Predictions) {
        let (tokens, rows) = (self.predictions.rows.len(), self.predictions.score_rows.len());
        for completion in &mut predictions.completions {
            completion.tokens = completion.tokens.start + tokens..completion.tokens.end + tokens;
            completion.scores = completion.scores.start + rows..completion.scores.end + rows;
        }
        self.logprobs.append(computed.logprobs);
        self.predictions.append(predictions);
        self.scores.extend(computed.scores);
        self.divergences.extend(computed.divergences);
    }
}

/// Numbers groups and completions through a step.
#[derive(Default)]
struct Numbering {
    n_groups: usize,
    n_completions: usize,
}

impl Numbering {
    fn number(&mut self, mut predictions: Predictions) -> Predictions {
        predictions.continue_numbering(self.n_groups, self.n_completions);
        if let Some(last) = predictions.completions.last() {
            (self.n_groups, self.n_completions) = (last.group + 1, last.index + 1);
        }
        predictions
    }
}

struct Trained {
    id: ParamId,
    spec: ParamSpec,
    state: Box<dyn ParamState>,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepStats {
    /// Normalised loss of the step.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub learning_rate: f64,
    /// All tokens, context included.
    pub n_tokens: u64,
    /// Tokens that were targets.
    pub n_targets: u64,
    /// The objective's own metrics, and `entropy` and `mean_token_accuracy`.
    pub metrics: Vec<(String, f64)>,
}

/// What an evaluation found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalStats {
    /// Mean loss over target weights; NaN if the model gave something that is not a number.
    pub loss: f64,
    /// Tokens that were targets.
    pub n_targets: u64,
    /// As in [`StepStats`]; none if the loss is NaN.
    pub metrics: Vec<(String, f64)>,
    /// Where the model first gave something that is not a number.
    pub not_finite: Option<String>,
}

/// The means of summed metrics.
fn means(totals: &[Metric]) -> Vec<(String, f64)> {
    totals.iter().filter_map(|metric| Some((metric.name.to_owned(), metric.value()?))).collect()
}

/// What kind of parameter this is, for the optimiser's groups.
pub fn role_of(param: &Param) -> Role {
    let name = &param.name;
    if name.contains("lora_A") {
        Role::LoraA
    } else if name.contains("lora_B") {
        Role::LoraB
    } else if param.shape.len() < 2 {
        Role::Vector
    } else if name.contains("embed_tokens") {
        Role::Embedding
    } else if name.contains("lm_head") || name == ScoreHead::NAME {
        Role::Head
    } else {
        Role::Hidden
    }
}

impl Trainer {
    /// A trainer at step 0.
    ///
    /// # Errors
    /// [`TrainError::NoParameters`] if nothing trains.
    pub fn new(
        model: Model,
        objective: Box<dyn Objective>,
        optimiser: &dyn Optimiser,
        schedule: Schedule,
        options: TrainerOptions,
    ) -> Result<Trainer> {
        let states: Vec<Trained> = model
            .params
            .iter()
            .filter(|(_, param)| param.trainable)
            .map(|(id, param)| {
                let spec = options.groups.spec(&param.name, &param.shape, role_of(param));
                let state = optimiser.state(&spec, &param.weight);
                Trained { id, spec, state }
            })
            .collect();
        if states.is_empty() {
            return Err(TrainError::NoParameters);
        }
        Ok(Trainer {
            model,
            teacher: None,
            objective,
            schedule,
            options,
            states,
            grads: Grads::new(),
            steps_done: 0,
            totals: Vec::new(),
        })
    }

    /// The same with a teacher, from which an objective on divergences learns.
    ///
    /// # Errors
    /// [`TrainError::TeacherVocabulary`] unless it has the model's vocabulary.
    pub fn with_teacher(mut self, teacher: Arc<Model>) -> Result<Trainer> {
        let [found, expected] =
            [&*teacher, &self.model].map(|model| model.params.get(model.arch.head()).shape[0]);
        if found != expected {
            return Err(TrainError::TeacherVocabulary { found, expected });
        }
        self.teacher = Some(teacher);
        Ok(self)
    }

    /// The teacher, if there is one.
    pub fn teacher(&self) -> Option<&Arc<Model>> {
        self.teacher.as_ref()
    }

    /// Steps taken so far.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// How steps are taken.
    pub fn options(&self) -> &TrainerOptions {
        &self.options
    }

    /// Switches recomputation of blocks on or off; it changes memory and speed alone.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.options.recompute = recompute;
    }

    /// Accumulated gradients of the last [`Trainer::accumulate`].
    pub fn grads(&self) -> &Grads {
        &self.grads
    }

    /// Bytes of optimiser state.
    pub fn state_bytes(&self) -> usize {
        self.states.iter().map(|trained| trained.state.bytes()).sum()
    }

    /// Takes one step over these micro-batches.
    ///
    /// # Errors
    /// [`TrainError`]; the parameters are unchanged then.
    pub fn step(&mut self, micro_batches: &[MicroBatch]) -> Result<(StepStats, Profile)> {
        let (mut stats, mut profile) = self.accumulate(micro_batches)?;
        let start = std::time::Instant::now();
        self.update(&mut stats)?;
        profile.record("optimiser", "update", start);
        Ok((stats, profile))
    }

    /// Counts a step in which there is nothing to learn: weights and optimiser stay as they are, the schedule goes on.
    pub fn skip_step(&mut self) -> StepStats {
        self.steps_done += 1;
        let learning_rate = self.schedule.lr(self.options.learning_rate, self.steps_done);
        StepStats { learning_rate, ..StepStats::default() }
    }

    /// Forward, objective and backward over a whole step; leaves the gradients in place of older ones.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn accumulate(&mut self, micro_batches: &[MicroBatch]) -> Result<(StepStats, Profile)> {
        let step = self.steps_done + 1;
        let (normaliser, predictions) = self.normaliser(micro_batches)?;
        self.grads.clear();
        let mut totals = Vec::new();
        let mut stats = StepStats {
            learning_rate: self.schedule.lr(self.options.learning_rate, step),
            ..StepStats::default()
        };
        let mut profile = Profile::default();
        for (micro_batch, predictions) in micro_batches.iter().zip(predictions) {
            let micro_batch = self.training_part(micro_batch);
            self.micro_step(
                step,
                &micro_batch,
                predictions,
                &normaliser,
                &mut stats,
                &mut totals,
                &mut profile,
            )?;
        }
        self.grads.settle(&self.model.params);
        self.totals = totals;
        stats.metrics = means(&self.totals);
        Ok((stats, profile))
    }

    fn micro_step(
        &mut self,
        step: u64,
        micro_batch: &MicroBatch,
        predictions: Predictions,
        normaliser: &Normaliser,
        stats: &mut StepStats,
        totals: &mut Vec<Metric>,
        profile: &mut Profile,
    ) -> Result<()> {
        stats.n_tokens += micro_batch.n_tokens() as u64;
        stats.n_targets += predictions.rows.len() as u64;
        let needs = self.objective.needs();
        if predictions.rows.is_empty() && predictions.score_rows.is_empty() {
            return Ok(());
        }
        check_vocabulary(micro_batch, &self.model)?;
        let batch = micro_batch.batch().expect("examples have tokens: the data loader checked");
        let teacher = needs.divergence.map(|divergence| {
            let teacher = teacher_of(&self.teacher);
            (divergence, teacher_at(teacher, &batch, &predictions.rows, self.options.dtype))
        });
        let dropout_seed = Some(self.options.seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut tape = Tape::training(&self.model.params, &batch, self.options.dtype, dropout_seed);
        let hidden = self.model.arch.hidden(&mut tape, self.options.recompute);
        let (head, options) =
            (self.model.arch.head(), logprob_options(&self.model, self.options.temperature));
        let score = (needs.score_outputs > 0).then(|| {
            let head =
                self.model.score_head().expect("an objective on scores is given a model with a score head");
            tape.score_head(&hidden, head, &predictions.score_rows)
        });
        let Predictions { rows, targets, .. } = &predictions;
        let divergence = teacher.map(|(divergence, teacher)| {
            tape.linear_divergence(&hidden, head, rows, &options, teacher, divergence_options(divergence))
        });
        let weights = &predictions.weights;
        // Where the head trains, a gradient that is known beforehand saves a third of the head's work.
        let expected = match self.model.params.get(head).trainable {
            true if !needs.no_logp => self.objective.expected_d_logp(weights, normaliser),
            _ => None,
        };
        let (logprobs, scored) = match &expected {
            _ if needs.no_logp => (Logprobs::default(), Scored::Differentiated(None)),
            Some(d_logp) => {
                let grads = &mut self.grads;
                let (logprobs, seed) =
                    tape.linear_logprob_step(&hidden, head, rows, targets, &options, d_logp, grads);
                (logprobs, Scored::Differentiated(seed))
            }
            None => {
                let scored = tape.linear_logprob(&hidden, head, rows, targets, &options);
                (Logprobs::of(&scored), Scored::Recorded(scored))
            }
        };
        drop(hidden);
        check_finite(step, micro_batch, &predictions, &logprobs)?;
        let scores = score.as_ref().map_or_else(Vec::new, |score| score.value().to_f32());
        let divergences = divergence.as_ref().map_or_else(Vec::new, |divergence| divergence.value().to_f32());
        let batch = token_batch(&logprobs, &predictions, &scores, &divergences, needs);
        let output = self.objective.evaluate(&batch, normaliser)?;
        stats.loss += output.loss;
        Metric::accumulate(totals, &output.metrics);
        let mut seeds: Vec<Seed> = Vec::new();
        // An objective on divergences alone says so by a gradient of zeros, which need not be carried back.
        let is_read = needs.divergence.is_none() || output.d_logp.iter().any(|d| *d != 0.0);
        if !needs.no_logp && is_read {
            seeds.extend(scored.seed(&output, expected.as_deref()));
        }
        if let (Some(var), Some(d_divergence)) = (divergence, &output.d_divergence) {
            let grad = Tensor::from_f32(d_divergence, d_divergence.len(), 1, Dtype::F32);
            let grad = grad.to_device(var.value().device());
            seeds.push(Seed { var, grad });
        }
        if let (Some(var), Some(d_scores)) = (score, &output.d_scores) {
            let scores = var.value();
            let grad = Tensor::from_f32(d_scores, scores.rows(), scores.cols(), Dtype::F32);
            let grad = grad.to_device(scores.device());
            seeds.push(Seed { var, grad });
        }
        profile.merge(&tape.backward(seeds, &mut self.grads));
        Ok(())
    }

    /// Clips and applies the accumulated gradients.
    fn update(&mut self, stats: &mut StepStats) -> Result<()> {
        let grad_of = |trained: &Trained| self.grads.get(trained.id);
        let named: Vec<(&str, &Array)> =
            self.states.iter().filter_map(|t| Some((t.spec.name.as_str(), grad_of(t)?))).collect();
        stats.grad_norm = global_norm(&named)?;
        let grad_scale = self.options.max_grad_norm.map_or(1.0, |max| clip_factor(stats.grad_norm, max));
        let step = Step { t: self.steps_done + 1, lr: stats.learning_rate, grad_scale };
        let grads = &self.grads;
        let params = self.model.params.iter_mut().filter(|(_, param)| param.trainable);
        let work: Vec<(&mut Trained, &mut Param)> =
            self.states.iter_mut().zip(params.map(|(_, param)| param)).collect();
        // Side by side, for the sake of the small ones; what each computes does not depend on the others.
        work.into_par_iter().with_max_len(1).for_each(|(trained, param)| {
            debug_assert_eq!(
                trained.spec.name, param.name,
                "what trains is decided when the trainer is made"
            );
            // Zeros where no backward pass has come by, as for one that it comes by in other steps only: a resumed run
            // could not tell the two apart.
            let zeros = || Cow::Owned(param.weight.device().zeros(Storage::F32, param.len()));
            let grad = grads.get(trained.id).map_or_else(zeros, Cow::Borrowed);
            trained.state.step(step, &mut param.weight, &grad);
        });
        self.steps_done += 1;
        self.objective.end_step(&self.totals);
        Ok(())
    }

    /// Loss and metrics on held-out micro-batches, with dropout off; changes nothing.
    ///
    /// A prediction that is not a number makes the loss NaN and is described in [`EvalStats::not_finite`]; it is no
    /// error, since training may go on without it.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn evaluate(&self, micro_batches: &[MicroBatch]) -> Result<EvalStats> {
        let (normaliser, predictions) = self.normaliser(micro_batches)?;
        let mut totals = Vec::new();
        let mut stats = EvalStats::default();
        for (micro_batch, predictions) in micro_batches.iter().zip(predictions) {
            let micro_batch = self.training_part(micro_batch);
            match self.eval_micro_batch(&micro_batch, &predictions, &normaliser, &mut stats, &mut totals) {
                Err(problem @ TrainError::NotFinite { .. }) => {
                    let not_finite = Some(problem.to_string());
                    return Ok(EvalStats { loss: f64::NAN, not_finite, ..EvalStats::default() });
                }
                result => result?,
            }
        }
        stats.metrics = means(&totals);
        Ok(stats)
    }

    fn eval_micro_batch(
        &self,
        micro_batch: &MicroBatch,
        predictions: &Predictions,
        normaliser: &Normaliser,
        stats: &mut EvalStats,
        totals: &mut Vec<Metric>,
    ) -> Result<()> {
        if predictions.rows.is_empty() && predictions.score_rows.is_empty() {
            return Ok(());
        }
        let Computed { logprobs, scores, divergences } = self.arrays(micro_batch, predictions)?;
        let batch = token_batch(&logprobs, predictions, &scores, &divergences, self.objective.needs());
        let output = self.objective.evaluate(&batch, normaliser)?;
        stats.loss += output.loss;
        stats.n_targets += predictions.rows.len() as u64;
        Metric::accumulate(totals, &output.metrics);
        Ok(())
    }

    /// What the step is divided by and what its micro-batches must know of each other, and what each predicts, numbered
    /// through the step.
    fn normaliser(&self, micro_batches: &[MicroBatch]) -> Result<(Normaliser, Vec<Predictions>)> {
        let n_outputs = self.objective.needs().score_outputs;
        let mut numbering = Numbering::default();
        let all: Vec<Predictions> = micro_batches
            .iter()
            .map(|micro_batch| numbering.number(self.training_part(micro_batch).predictions()))
            .collect();
        let batches = all.iter().map(|predictions| predictions.known_batch(&[], n_outputs));
        let normaliser = Normaliser::of_step(&*self.objective, batches)?;
        let whole = match self.objective.pre_pass() {
            PrePass::None => return Ok((normaliser, all)),
            PrePass::Mismatched => self.pre_pass(micro_batches.iter().map(|micro_batch| {
                Cow::Owned(micro_batch.with_replies(|reply| reply.kind == CompletionKind::Mismatched))
            }))?,
            PrePass::All => self.pre_pass(micro_batches.iter().map(Cow::Borrowed))?,
        };
        let Arrays { logprobs, predictions, scores, divergences } = &whole;
        let needs = self.objective.needs();
        let shared =
            self.objective.prepare(&token_batch(logprobs, predictions, scores, divergences, needs))?;
        Ok((normaliser.with_shared(shared), all))
    }

    /// The arrays of several micro-batches, computed without gradients, one after the other.
    fn pre_pass<'b>(&self, micro_batches: impl Iterator<Item = Cow<'b, MicroBatch>>) -> Result<Arrays> {
        let mut whole = Arrays::default();
        let mut numbering = Numbering::default();
        for micro_batch in micro_batches {
            let predictions = numbering.number(micro_batch.predictions());
            if predictions.rows.is_empty() && predictions.score_rows.is_empty() {
                continue;
            }
            let computed = self.arrays(&micro_batch, &predictions)?;
            whole.append(computed, predictions);
        }
        whole.predictions.drop_partly_known();
        Ok(whole)
    }

    /// Log-probabilities of a micro-batch's targets under the model as it is, dropout off.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn logprobs(&self, micro_batch: &MicroBatch) -> Result<Logprobs> {
        Ok(self.arrays(micro_batch, &micro_batch.predictions())?.logprobs)
    }

    /// What the model says, without recording, dropout off.
    fn arrays(&self, micro_batch: &MicroBatch, predictions: &Predictions) -> Result<Computed> {
        check_vocabulary(micro_batch, &self.model)?;
        let batch = micro_batch.batch().expect("examples have tokens: the data loader checked");
        let mut tape = Tape::inference(&self.model.params, &batch, self.options.dtype);
        let hidden = self.model.arch.hidden(&mut tape, false);
        let needs = self.objective.needs();
        let scores = match self.model.score_head().filter(|_| needs.score_outputs > 0) {
            Some(head) => tape.score_head(&hidden, head, &predictions.score_rows).value().to_f32(),
            None => Vec::new(),
        };
        if needs.no_logp {
            return Ok(Computed { scores, ..Computed::default() });
        }
        let (head, options) =
            (self.model.arch.head(), logprob_options(&self.model, self.options.temperature));
        let (rows, targets) = (&predictions.rows, &predictions.targets);
        let var = tape.linear_logprob(&hidden, head, rows, targets, &options);
        let logprobs = Logprobs::of(&var);
        check_finite(self.steps_done, micro_batch, predictions, &logprobs)?;
        let divergences = match needs.divergence {
            Some(divergence) => {
                let teacher = teacher_at(teacher_of(&self.teacher), &batch, rows, self.options.dtype);
                let options = (options, divergence_options(divergence));
                tape.linear_divergence(&hidden, head, rows, &options.0, teacher, options.1).value().to_f32()
            }
            None => Vec::new(),
        };
        Ok(Computed { logprobs, scores, divergences })
    }

    /// What of a micro-batch trains: replies that only serve the pre-pass are left out.
    fn training_part<'b>(&self, micro_batch: &'b MicroBatch) -> Cow<'b, MicroBatch> {
        match self.objective.pre_pass() {
            PrePass::Mismatched => {
                Cow::Owned(micro_batch.with_replies(|reply| reply.kind != CompletionKind::Mismatched))
            }
            PrePass::None | PrePass::All => Cow::Borrowed(micro_batch),
        }
    }

    /// What is minimised.
    pub fn objective(&self) -> &dyn Objective {
        &*self.objective
    }

    /// Puts back what [`Objective::state`] gave.
    pub(crate) fn set_objective_state(&mut self, state: &[f64]) {
        self.objective.set_state(state);
    }

    pub(crate) fn trained(&self) -> impl Iterator<Item = (&Param, &dyn ParamState)> {
        self.states.iter().map(|trained| (self.model.params.get(trained.id), trained.state.as_ref()))
    }

    /// Calls `restore(parameter, state)` for everything that trains, then continues at `steps_done`.
    pub(crate) fn restore(
        &mut self,
        steps_done: u64,
        mut restore: impl FnMut(&mut Param, &mut dyn ParamState) -> Result<()>,
    ) -> Result<()> {
        for trained in &mut self.states {
            restore(self.model.params.get_mut(trained.id), trained.state.as_mut())?;
        }
        self.steps_done = steps_done;
        Ok(())
    }
}

/// What a model says of a micro-batch.
#[derive(Default)]
struct Computed {
    logprobs: Logprobs,
    scores: Vec<f32>,
    /// From the teacher; none without one.
    divergences: Vec<f32>,
}

fn teacher_of(teacher: &Option<Arc<Model>>) -> &Model {
    teacher.as_ref().expect("an objective on divergences is given a teacher")
}

/// What the teacher says at these rows of a batch.
fn teacher_at<'m>(teacher: &'m Model, batch: &pt_engine::Batch, rows: &[u32], dtype: Dtype) -> Teacher<'m> {
    let mut tape = Tape::inference(&teacher.params, batch, dtype);
    let hidden = teacher.arch.hidden(&mut tape, false);
    Teacher::at(&hidden, rows, teacher.params.get(teacher.arch.head()), teacher.arch.logprob_options())
}

fn divergence_options(divergence: Divergence) -> DivergenceOptions {
    DivergenceOptions { beta: divergence.beta, temperature: divergence.temperature }
}

/// The head's part of a step.
enum Scored {
    /// To be differentiated with whatever gradient the objective gives.
    Recorded(Var),
    /// Differentiated already.
    Differentiated(Option<Seed>),
}

impl Scored {
    /// What the backward pass starts from.
    fn seed(self, output: &ObjectiveOutput, expected: Option<&[f32]>) -> Option<Seed> {
        match self {
            Scored::Recorded(var) => {
                let grad = LogprobGrad {
                    d_logp: &output.d_logp,
                    d_entropy: output.d_entropy.as_deref(),
                    d_mean_logp: output.d_mean_logp.as_deref(),
                };
                Some(Logprobs::seed(&var, &grad))
            }
            Scored::Differentiated(seed) => {
                let others = output.d_entropy.is_some() || output.d_mean_logp.is_some();
                assert!(
                    expected == Some(&output.d_logp) && !others,
                    "the objective gave another gradient than the one it had announced"
                );
                seed
            }
        }
    }
}

/// Scores predictions without recording, at temperature 1.
pub fn score(model: &Model, batch: &pt_engine::Batch, dtype: Dtype, predictions: &Predictions) -> Logprobs {
    score_with(Tape::inference(&model.params, batch, dtype), model, 1.0, predictions)
}

/// Scores predictions on an inference tape; one without adapters gives the base model's log-probabilities.
pub fn score_with<'m>(
    mut tape: Tape<'m>,
    model: &'m Model,
    temperature: f32,
    predictions: &Predictions,
) -> Logprobs {
    let hidden = model.arch.hidden(&mut tape, false);
    let (head, options) = (model.arch.head(), logprob_options(model, temperature));
    Logprobs::of(&tape.linear_logprob(&hidden, head, &predictions.rows, &predictions.targets, &options))
}

fn logprob_options(model: &Model, temperature: f32) -> LogprobOptions {
    let options = model.arch.logprob_options();
    LogprobOptions { temperature: options.temperature * temperature, ..options }
}

fn token_batch<'a>(
    logprobs: &'a Logprobs,
    predictions: &'a Predictions,
    scores: &'a [f32],
    divergences: &'a [f32],
    needs: Needs,
) -> TokenBatch<'a> {
    let known = predictions.known_batch(scores, needs.score_outputs);
    if needs.no_logp {
        return known.without_tokens();
    }
    TokenBatch {
        logp: &logprobs.logp,
        entropy: Some(&logprobs.entropy),
        mean_logp: Some(&logprobs.mean_logp),
        correct: Some(&logprobs.correct),
        log_collision: Some(&logprobs.log_collision),
        divergence: needs.divergence.map(|_| divergences),
        ..known
    }
}

fn check_vocabulary(micro_batch: &MicroBatch, model: &Model) -> Result<()> {
    let vocabulary = model.params.get(model.arch.head()).shape[0];
    for example in micro_batch.examples() {
        if let Some(token) = example.all_token_ids().find(|&id| id as usize >= vocabulary) {
            return Err(TrainError::Vocabulary { token, origin: example.origin.to_string(), vocabulary });
        }
    }
    Ok(())
}

fn check_finite(
    step: u64,
    micro_batch: &MicroBatch,
    predictions: &Predictions,
    logprobs: &Logprobs,
) -> Result<()> {
    for (quantity, values) in [
        ("log-probability", &logprobs.logp),
        ("entropy", &logprobs.entropy),
        ("mean log-probability", &logprobs.mean_logp),
    ] {
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            return Err(TrainError::NotFinite {
                step,
                quantity,
                token: predictions.targets[i],
                value: values[i],
                origin: micro_batch.example_of(predictions.rows[i]).origin.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pt_engine::Weight;

    use super::*;

    #[test]
    fn every_head_is_one_to_the_optimiser() {
        for (name, shape, expected) in [
            (ScoreHead::NAME, vec![1, 8], Role::Head),
            ("lm_head.weight", vec![4, 8], Role::Head),
            ("model.embed_tokens.weight", vec![4, 8], Role::Embedding),
            ("model.layers.0.self_attn.q_proj.weight", vec![8, 8], Role::Hidden),
            ("model.layers.0.self_attn.q_proj.lora_A.weight", vec![2, 8], Role::LoraA),
            ("model.layers.0.self_attn.q_proj.lora_B.weight", vec![8, 2], Role::LoraB),
            ("model.norm.weight", vec![8], Role::Vector),
        ] {
            let weight = Weight::from_f32(&vec![0.0; shape.iter().product()]);
            let param = Param { name: name.to_owned(), shape, weight, trainable: true };
            assert_eq!(role_of(&param), expected, "{name}");
        }
    }
}
