//! Accuracy on generated tasks, measured by sampling.

use std::sync::Arc;

use pt_engine::Dtype;
use pt_models::Model;
use pt_rollout::{Request, SamplingParams};
use pt_tasks::stats::{WinRate, Z_95, wilson_interval, win_rate};
use pt_tasks::{GeneratedSource, Problem};
use pt_text::{ChatTemplate, Conversation, MaskPolicy, Masker, Origin, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{PipelineError, Result};
use crate::rl::environment::Stage as Environment;
use crate::rl::measured::replies_in;
use crate::stop::stop_token_ids;

/// How tasks are measured.
pub struct TaskOptions<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template; without one, prompts are plain text.
    pub template: Option<&'a ChatTemplate>,
    /// Problems of each task.
    pub n: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Keys the draws.
    pub seed: u64,
    /// Storage of activations.
    pub dtype: Dtype,
    /// What answers the model between its turns; `None` for answers of one turn.
    pub(crate) environment: Option<Arc<Environment>>,
}

/// One problem and what the model made of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSample {
    /// The problem's family.
    pub family: String,
    /// What was asked.
    pub prompt: String,
    /// What is right.
    pub answer: String,
    /// What the model answered.
    pub reply: String,
    /// Whether the check passed.
    pub passed: bool,
    /// Why, or why not.
    pub reason: String,
    /// Whether it shows how the answer was found, where there is something to show.
    #[serde(default)]
    pub shows_working: bool,
}

impl TaskSample {
    /// What decides between two replies to one problem: a right one is better, and of two as right, one that shows its working.
    fn quality(&self) -> (bool, bool) {
        (self.passed, self.shows_working)
    }
}

/// A task's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The task, every parameter written out.
    pub task: String,
    /// Share of problems solved.
    pub accuracy: f64,
    /// 95 % interval (Wilson).
    pub interval95: (f64, f64),
    /// One entry per problem, in order.
    pub samples: Vec<TaskSample>,
}

impl TaskScore {
    /// Which problems were solved, in order.
    pub fn passed(&self) -> Vec<bool> {
        self.samples.iter().map(|sample| sample.passed).collect()
    }

    /// How often these replies are better than another model's to the same problems.
    pub fn win_rate_over(&self, other: &TaskScore) -> WinRate {
        let pairs = self.samples.iter().zip(&other.samples);
        win_rate(pairs.map(|(ours, theirs)| ours.quality().cmp(&theirs.quality())))
    }
}

/// The held-out form of a task's name, with exactly `n` different problems.
fn held_out(task: &str, n: usize) -> Result<(String, Vec<Problem>)> {
    let GeneratedSource::Problems(mut source) = GeneratedSource::parse(task)? else {
        return Err(PipelineError::Unsupported {
            what: format!("`{task}` is raw text and has no answers to check"),
            advice: "name a task family under [stage.eval] tasks, such as generated:sum?level=3".to_owned(),
        });
    };
    source.n = n;
    source.split = pt_tasks::Split::HeldOut;
    source.form = pt_tasks::Form::PromptOnly;
    source.replies = pt_tasks::Replies::default();
    source.unique = true;
    let source = GeneratedSource::Problems(source);
    let name = source.canonical();
    let GeneratedSource::Problems(source) = source else { unreachable!("made just above") };
    let problems = source.problems()?.collect();
    Ok((name, problems))
}

/// Whether a source name is a task that is measured where a recipe names none: problems, but no games played to their end, which
/// one turn cannot answer.
pub fn is_task(name: &str) -> bool {
    match GeneratedSource::parse(name) {
        Ok(GeneratedSource::Problems(source)) => source.form != pt_tasks::Form::Transcript,
        _ => false,
    }
}

/// Refuses a task that [`measure`] could not measure.
///
/// # Errors
/// If the name is not understood or is no task, or there are too few different problems.
pub fn check_task(task: &str, n: usize) -> Result<()> {
    held_out(task, n).map(|_| ())
}

/// Samples an answer to every problem of a task's held-out split and checks it.
///
/// # Errors
/// If the task's name is not understood, has too few different problems, or cannot be rendered or sampled.
pub fn measure(task: &str, model: &Model, options: &TaskOptions<'_>) -> Result<TaskScore> {
    let (task, problems) = held_out(task, options.n)?;
    let params = SamplingParams {
        max_new_tokens: options.max_new_tokens,
        temperature: options.temperature as f32,
        stop_token_ids: stop_token_ids(options.tokenizer, options.template),
        seed: options.seed,
        ..SamplingParams::default()
    };
    let replies = match &options.environment {
        None => replies(&task, &problems, model, &params, options)?,
        Some(stage) => replies_in(stage, model, &problems, &task, params, options)?,
    };
    let mut scored = Vec::with_capacity(problems.len());
    for (problem, reply) in problems.iter().zip(replies) {
        let verdict = problem.check(&reply);
        scored.push(TaskSample {
            family: problem.family.to_owned(),
            prompt: problem.prompt.clone(),
            answer: problem.answer.clone(),
            shows_working: problem.shows_working(&reply),
            reply,
            passed: verdict.passed(),
            reason: verdict.reason,
        });
    }
    let n_passed = scored.iter().filter(|sample| sample.passed).count();
    Ok(TaskScore {
        task,
        accuracy: n_passed as f64 / scored.len() as f64,
        interval95: wilson_interval(n_passed, scored.len(), Z_95),
        samples: scored,
    })
}

/// One turn on each problem.
fn replies(
    task: &str,
    problems: &[Problem],
    model: &Model,
    params: &SamplingParams,
    options: &TaskOptions<'_>,
) -> Result<Vec<String>> {
    let masker = Masker::new(options.tokenizer, options.template, MaskPolicy::default());
    let mut requests = Vec::with_capacity(problems.len());
    for (key, problem) in problems.iter().enumerate() {
        let origin = Origin::new(task, key as u64 + 1);
        let prompt = match options.template {
            Some(_) => {
                let fields = [("role", "user"), ("content", problem.prompt.as_str())];
                let message: Map<String, Value> =
                    fields.map(|(name, text)| (name.to_owned(), text.into())).into_iter().collect();
                masker.prompt(&origin, &Conversation { messages: &[message], ..Conversation::default() })?
            }
            None => masker.prompt_text(&origin, &problem.prompt)?,
        };
        requests.push(Request { prompt_ids: prompt.token_ids, key: key as u64 });
    }
    let samples = pt_rollout::generate(model, options.dtype, &requests, params, &mut |_, _, _| {})?;
    let reply = |samples: &Vec<pt_rollout::Sample>| {
        let ids = samples[0].token_ids.iter().copied().filter(|id| !params.stop_token_ids.contains(id));
        Ok(options.tokenizer.decode(&ids.collect::<Vec<u32>>(), true)?)
    };
    samples.iter().map(reply).collect()
}
