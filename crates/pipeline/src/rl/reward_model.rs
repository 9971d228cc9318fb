//! A reward model as a verifier: its score of a reply is the reward.
//!
//! It reads the prompt's last user turn and the reply, as a chat template's two turns if the reward model's tokenizer has one, and
//! ends the reply as training did. Scores have no fixed range; what a stage makes of them (a group's baseline and spread, or
//! whitening) does. Replies to one prompt are scored as one tree.

use std::path::Path;

use pt_core::catalogue::{CatalogueError, OptionInfo, check_options, parse};
use pt_train::Example;
use pt_verify::{Question, Verdict, Verifier};
use serde::Deserialize;

use super::judge::LocalVerifier;
use crate::scorer::Scorer;

/// Its name in recipes.
pub(crate) const NAME: &str = "reward_model";

/// The catalogue's entry.
pub(crate) const INFO: LocalVerifier = LocalVerifier {
    name: NAME,
    summary: "the score of a reward model",
    reads: "the last user turn and the reply",
    options: &[
        OptionInfo {
            name: "model",
            kind: "folder",
            default: "",
            doc: "what a `reward` stage wrote (model or adapter), or a ...ForSequenceClassification",
        },
        OptionInfo {
            name: "output",
            kind: "integer of at least 0",
            default: "",
            doc: "which output of the head; by default the mean of all (an ensemble)",
        },
    ],
    build,
};

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    model: String,
    output: Option<usize>,
}

/// A loaded reward model.
#[derive(Debug)]
struct RewardModel {
    scorer: Scorer,
    output: Option<usize>,
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
    let scorer = Scorer::open(Path::new(&config.model), None).map_err(|error| bad(error.to_string()))?;
    let n_outputs = scorer.n_outputs();
    if let Some(output) = config.output.filter(|output| *output >= n_outputs) {
        return Err(bad(format!(
            "output is {output}, but {} has outputs 0 to {}",
            config.model,
            n_outputs - 1
        )));
    }
    Ok(Box::new(RewardModel { scorer, output: config.output }))
}

impl RewardModel {
    fn verdict(&self, outputs: &[f32]) -> Verdict {
        let score = match self.output {
            Some(output) => f64::from(outputs[output]),
            None => outputs.iter().map(|&score| f64::from(score)).sum::<f64>() / outputs.len() as f64,
        };
        match score.is_finite() {
            true => Verdict::scored(score, format!("the reward model gives {score:.4}")),
            false => Verdict::skip(format!("the reward model gives {score}: its weights are damaged")),
        }
    }
}

impl Verifier for RewardModel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        self.verify_all(std::slice::from_ref(question)).remove(0)
    }

    fn verify_all(&self, questions: &[Question<'_>]) -> Vec<Verdict> {
        let rendered: Vec<Result<Example, String>> = questions
            .iter()
            .map(|question| {
                self.scorer.texts(question.prompt, question.reply).map_err(|error| error.to_string())
            })
            .collect();
        let examples: Vec<Example> = rendered.iter().flatten().cloned().collect();
        let scores = self.scorer.scores(examples);
        let mut scores = scores.chunks_exact(self.scorer.n_outputs());
        let verdict = |rendered: Result<Example, String>| match rendered {
            Ok(_) => self.verdict(scores.next().expect("scores of every example")),
            Err(problem) => Verdict::skip(format!("the reward model cannot read it: {problem}")),
        };
        rendered.into_iter().map(verdict).collect()
    }
}
