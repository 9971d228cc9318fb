//! Rewards of a stage: the verifiers it names, each with the column that holds the right answer.

use pt_core::catalogue::{CatalogueError, OptionInfo};
use pt_data::Record;
use pt_recipe::{PlannedReward, TASK_REWARD};
use pt_rl::{Bound, Constraint, Constraints};
use pt_verify::{Question, RewardSpec, Rewards, Scored, Verdict, Verifier};
use serde_json::{Map, Value};

use super::environment::{EPISODE, row_with_episode};
use super::play::Played;
use super::{process_reward, reward_model};
use crate::error::Result;

/// A verifier that lives here because it needs what no lower crate knows.
pub struct LocalVerifier {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What of a row it reads.
    pub reads: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Makes it from them.
    pub build: fn(&toml::Table) -> std::result::Result<Box<dyn Verifier>, CatalogueError>,
}

/// Verifiers beside those of `pt_verify`.
pub const LOCAL_VERIFIERS: &[LocalVerifier] = &[
    LocalVerifier {
        name: TASK_REWARD,
        summary: "the check that a generated problem brings along",
        reads: "the `check` column of generated rows",
        options: &[],
        build: build_task,
    },
    LocalVerifier {
        name: ENVIRONMENT,
        summary: "what the stage's environment says of the whole episode",
        reads: "the verdict with which the environment ended it",
        options: &[],
        build: build_of_environment,
    },
    reward_model::INFO,
    process_reward::INFO,
    LocalVerifier {
        name: pt_feedback::LLM_JUDGE,
        summary: pt_feedback::LLM_JUDGE_SUMMARY,
        reads: pt_feedback::LLM_JUDGE_READS,
        options: pt_feedback::LLM_JUDGE_OPTIONS,
        build: pt_feedback::build_llm_judge,
    },
];

/// A generated problem's own check.
#[derive(Debug)]
struct Task;

impl Verifier for Task {
    fn name(&self) -> &'static str {
        TASK_REWARD
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        match pt_tasks::check_row(question.row, question.reply) {
            Ok(verdict) if verdict.passed() => Verdict::pass(verdict.reason),
            Ok(verdict) => Verdict::fail(verdict.reason),
            Err(problem) => Verdict::skip(problem.to_string()),
        }
    }
}

/// What the environment said of an episode.
#[derive(Debug)]
struct OfEnvironment;

/// Its name.
const ENVIRONMENT: &str = "environment";

impl Verifier for OfEnvironment {
    fn name(&self) -> &'static str {
        ENVIRONMENT
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let Some(episode) = question.row.get(EPISODE) else {
            return Verdict::skip("the stage has no environment");
        };
        match serde_json::from_value::<Option<Verdict>>(episode["verdict"].clone()) {
            Ok(Some(verdict)) => verdict,
            _ => Verdict::skip("the environment gave no verdict"),
        }
    }
}

fn build_of_environment(options: &toml::Table) -> std::result::Result<Box<dyn Verifier>, CatalogueError> {
    pt_core::catalogue::check_options("verifier", ENVIRONMENT, &[], options)?;
    Ok(Box::new(OfEnvironment))
}

/// The columns that are looked at for the right answer, in this order.
const GOLD_COLUMNS: &[&str] = &["answer", "solution", "ground_truth", "gold", "target"];

/// A verifier whose right answers are in a column of its own choice.
#[derive(Debug)]
struct WithGold {
    inner: Box<dyn Verifier>,
    column: Option<String>,
}

impl WithGold {
    fn asked<'q>(&self, question: &Question<'q>) -> Question<'q> {
        let gold = match &self.column {
            Some(column) => question.row.get(column),
            None => GOLD_COLUMNS.iter().find_map(|column| question.row.get(*column)),
        };
        Question { gold, ..*question }
    }
}

impl Verifier for WithGold {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        self.inner.verify(&self.asked(question))
    }

    fn verify_all(&self, questions: &[Question<'_>]) -> Vec<Verdict> {
        let asked: Vec<Question<'_>> = questions.iter().map(|question| self.asked(question)).collect();
        self.inner.verify_all(&asked)
    }
}

/// What a stage's replies are judged by.
#[derive(Debug)]
pub struct StageRewards {
    rewards: Rewards,
    /// Rewards that are only watched.
    hidden: Vec<bool>,
    /// Rewards that have a bound.
    constraints: Vec<Constraint>,
}

/// The option that carries a reward's column with the right answer to where its verifier is built.
const GOLD: &str = "gold";

/// Builds the verifiers a plan names.
///
/// # Errors
/// [`PipelineError::Reward`] if one is not understood.
pub fn build_rewards(planned: &[PlannedReward]) -> Result<StageRewards> {
    let spec = |reward: &PlannedReward| -> RewardSpec {
        let mut options = toml::Table::try_from(&reward.params).expect("parameters read from TOML are TOML");
        if let Some(column) = &reward.gold {
            options.insert(GOLD.to_owned(), column.clone().into());
        }
        RewardSpec {
            r#type: reward.r#type.clone(),
            name: Some(reward.name.clone()),
            weight: Some(reward.weight),
            gate: reward.gate,
            clip: None,
            options,
        }
    };
    let specs: Vec<RewardSpec> = planned.iter().map(spec).collect();
    let rewards = Rewards::with(&specs, build_with_gold)?;
    let hidden = planned.iter().map(|reward| reward.hidden).collect();
    Ok(StageRewards { rewards, hidden, constraints: constraints(planned) })
}

/// The rewards that have a bound.
fn constraints(planned: &[PlannedReward]) -> Vec<Constraint> {
    let one = |(score, reward): (usize, &PlannedReward)| {
        let planned = reward.constraint.as_ref()?;
        Some(Constraint {
            name: reward.name.clone(),
            score,
            bound: match planned.bound {
                pt_recipe::PlannedBound::AtLeast(bound) => Bound::AtLeast(bound),
                pt_recipe::PlannedBound::AtMost(bound) => Bound::AtMost(bound),
            },
            init: planned.multiplier_init,
            lr: planned.multiplier_lr,
            max: planned.multiplier_max,
        })
    };
    planned.iter().enumerate().filter_map(one).collect()
}

/// A verifier of either catalogue: that of `pt_verify`, or [`LOCAL_VERIFIERS`].
///
/// # Errors
/// An unknown name, or an option that it does not have or take.
pub fn build_verifier(
    kind: &str,
    options: &toml::Table,
) -> std::result::Result<Box<dyn Verifier>, CatalogueError> {
    match LOCAL_VERIFIERS.iter().find(|verifier| verifier.name == kind) {
        Some(local) => (local.build)(options),
        None => pt_verify::build(kind, options),
    }
}

fn build_task(options: &toml::Table) -> std::result::Result<Box<dyn Verifier>, CatalogueError> {
    pt_core::catalogue::check_options("verifier", TASK_REWARD, &[], options)?;
    Ok(Box::new(Task))
}

/// The same, with the column of its right answers.
fn build_with_gold(
    kind: &str,
    options: &toml::Table,
) -> std::result::Result<Box<dyn Verifier>, CatalogueError> {
    let mut options = options.clone();
    let column = options.remove(GOLD).and_then(|column| column.as_str().map(str::to_owned));
    build_verifier_of_rows(kind, &options, column)
}

/// A verifier that finds the right answer in the row: in this column, or in the first there is of those a stage looks at.
///
/// # Errors
/// As [`build_verifier`].
pub fn build_verifier_of_rows(
    kind: &str,
    options: &toml::Table,
    column: Option<String>,
) -> std::result::Result<Box<dyn Verifier>, CatalogueError> {
    Ok(Box::new(WithGold { inner: build_verifier(kind, options)?, column }))
}

/// A reply to be judged.
pub struct Judged<'a> {
    /// The row that asked.
    pub record: &'a Record,
    /// The reply, special tokens removed.
    pub text: &'a str,
    /// Whether it was cut at the token limit.
    pub is_truncated: bool,
    /// What happened in the environment, if there is one.
    pub(crate) episode: Option<&'a Played>,
}

impl StageRewards {
    /// The rewards' names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.rewards.names()
    }

    /// The rewards' weights, in order.
    pub fn weights(&self) -> Vec<f64> {
        self.rewards.weights()
    }

    /// The rewards that have a bound, with their multipliers as they are at first.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn constraints(&self) -> Result<Constraints> {
        Ok(Constraints::new(self.constraints.clone())?)
    }

    /// The mean score of the rewards that are only watched.
    pub fn hidden_score<'s>(&self, scored: impl Iterator<Item = &'s Scored>) -> Option<f64> {
        let verdicts = scored.flat_map(|scored| scored.verdicts.iter().zip(&self.hidden));
        let scores: Vec<f64> =
            verdicts.filter(|(_, hidden)| **hidden).filter_map(|(verdict, _)| verdict.score).collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// Judges all replies, in order.
    pub fn judge(&self, replies: &[Judged<'_>]) -> Vec<Scored> {
        let prompts: Vec<String> = replies.iter().map(|reply| prompt_text(reply.record)).collect();
        let rows: Vec<Option<Map<String, Value>>> = replies
            .iter()
            .map(|reply| reply.episode.map(|played| row_with_episode(reply.record, played)))
            .collect();
        let questions: Vec<Question<'_>> = replies
            .iter()
            .zip(&prompts)
            .zip(&rows)
            .map(|((reply, prompt), row)| Question {
                prompt,
                reply: reply.text,
                gold: None,
                row: row.as_ref().unwrap_or(&reply.record.extra),
                is_truncated: reply.is_truncated,
            })
            .collect();
        let mut scored = self.rewards.score(&questions);
        for (scored, reply) in scored.iter_mut().zip(replies) {
            // Where the environment broke, nothing is known of the reply.
            if let Some(failure) = reply.episode.and_then(|played| played.failure.as_ref()) {
                scored.total = None;
                let skip = Verdict::skip(format!("the environment broke: {failure}"));
                scored.verdicts.fill(skip);
            }
        }
        scored
    }
}

/// The last user turn of the prompt, or the whole of it; empty where the row has none.
pub fn prompt_text(record: &Record) -> String {
    use pt_data::{Body, Content};
    let prompt = match &record.body {
        Body::PromptOnly { prompt }
        | Body::PromptCompletion { prompt, .. }
        | Body::Unpaired { prompt, .. } => prompt,
        Body::Preference { prompt: Some(prompt), .. } => prompt,
        Body::Stepwise { prompt, .. } => return prompt.clone(),
        _ => return String::new(),
    };
    match prompt {
        Content::Text(text) => text.clone(),
        Content::Messages(messages) => {
            let last = messages.iter().rev().find(|message| message.role == "user").or(messages.last());
            last.and_then(|message| message.content.clone()).unwrap_or_default()
        }
        Content::Segments(segments) => segments.iter().map(|segment| segment.text.as_str()).collect(),
    }
}
