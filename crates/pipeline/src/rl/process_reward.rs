//! A process reward model as a verifier: the scores of a reply's steps are the reward.
//!
//! It reads the prompt's last user turn and the reply's steps as the `prm` stage trains them: plain text, each step followed by a line
//! break. A reply without a step, which is blank, is a fail: it has nothing that could be right.

use std::path::Path;

use pt_core::catalogue::{CatalogueError, OptionInfo, check_options, parse};
use pt_search::{Aggregate, Splitter};
use pt_verify::{Question, Verdict, Verifier};
use serde::Deserialize;

use super::judge::LocalVerifier;
use crate::process_scorer::ProcessScorer;

/// Its name in recipes.
pub(crate) const NAME: &str = "process_reward_model";

/// The catalogue's entry.
pub(crate) const INFO: LocalVerifier = LocalVerifier {
    name: NAME,
    summary: "how likely a process reward model finds the steps of a reply right",
    reads: "the last user turn, and the reply in steps",
    options: &[
        OptionInfo {
            name: "model",
            kind: "folder",
            default: "",
            doc: "what a `prm` stage wrote (model or adapter), or a ...ForTokenClassification",
        },
        OptionInfo {
            name: "aggregate",
            kind: "\"min\", \"product\", \"last\" or \"mean\"",
            default: "\"min\"",
            doc: "how the probabilities of the steps become one score",
        },
        OptionInfo {
            name: "separator",
            kind: "text",
            default: "\"\\n\"",
            doc: "what stands between two steps of a reply",
        },
    ],
    build,
};

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    model: String,
    #[serde(default)]
    aggregate: Aggregate,
    separator: Option<String>,
}

/// A loaded process reward model.
#[derive(Debug)]
struct ProcessReward {
    scorer: ProcessScorer,
    aggregate: Aggregate,
    splitter: Splitter,
}

/// Reads the model that the options name.
///
/// # Errors
/// [`CatalogueError`] that says what is wrong with the options or the model.
fn build(options: &toml::Table) -> Result<Box<dyn Verifier>, CatalogueError> {
    const KIND: &str = "verifier";
    check_options(KIND, NAME, INFO.options, options)?;
    let config: Config = parse(KIND, NAME, options)?;
    let bad = |problem: String| CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem };
    let splitter = match config.separator {
        None => Splitter::default(),
        Some(separator) => Splitter::new(separator)
            .ok_or_else(|| bad("separator is empty, expected what stands between two steps".to_owned()))?,
    };
    let scorer =
        ProcessScorer::open(Path::new(&config.model), None).map_err(|error| bad(error.to_string()))?;
    Ok(Box::new(ProcessReward { scorer, aggregate: config.aggregate, splitter }))
}

impl ProcessReward {
    fn verdict(&self, probabilities: &[f64]) -> Verdict {
        let Some(score) = self.aggregate.of(probabilities) else {
            return Verdict::fail("the reply has no steps");
        };
        if !score.is_finite() {
            return Verdict::skip(format!("the process reward model gives {score}: its weights are damaged"));
        }
        let least = (0..probabilities.len()).min_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
        let least = least.expect("there is a step");
        Verdict::scored(
            score,
            format!(
                "of {} steps, step {} is the least likely: {:.4}",
                probabilities.len(),
                least + 1,
                probabilities[least]
            ),
        )
    }
}

impl Verifier for ProcessReward {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        self.verify_all(std::slice::from_ref(question)).remove(0)
    }

    fn verify_all(&self, questions: &[Question<'_>]) -> Vec<Verdict> {
        let steps: Vec<Vec<String>> =
            questions.iter().map(|question| self.splitter.split(question.reply)).collect();
        let solutions: Vec<(&str, &[String])> = questions
            .iter()
            .zip(&steps)
            .map(|(question, steps)| (question.prompt, steps.as_slice()))
            .collect();
        match self.scorer.probabilities(&solutions) {
            Ok(all) => all.iter().map(|probabilities| self.verdict(probabilities)).collect(),
            // One that cannot be read must not take the others with it.
            Err(_) => solutions.iter().map(|solution| self.alone(*solution)).collect(),
        }
    }
}

impl ProcessReward {
    fn alone(&self, solution: (&str, &[String])) -> Verdict {
        match self.scorer.probabilities(&[solution]) {
            Ok(probabilities) => self.verdict(&probabilities[0]),
            Err(error) => Verdict::skip(format!("the process reward model cannot read it: {error}")),
        }
    }
}
