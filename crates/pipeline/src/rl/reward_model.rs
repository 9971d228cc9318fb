//! A reward model as a verifier, or several: their score of a reply is the reward.
//!
//! It reads the prompt's last user turn and the reply, as a chat template's two turns if the reward model's tokenizer has one, and
//! ends the reply as training did. Scores have no fixed range; what a stage makes of them (a group's baseline and spread, or
//! whitening) does. Replies to one prompt are scored as one tree.
//!
//! **Ensembles** (Coste et al. 2023, "Reward model ensembles help mitigate overoptimization", arXiv:2310.02743): every output of every
//! model is a member r_i, and the reward is
//!
//! ```text
//! mean             Σ r_i / n
//! min              the least r_i: what all agree on (the paper's worst case)
//! mean_minus_std   mean − std_coef · √(Σ (r_i − mean)² / n): doubt costs (the paper takes the variance; the deviation keeps the unit)
//! ```
//!
//! Members should be of one scale, such as one recipe with several seeds, or several outputs of one model.

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
            kind: "folder or list of folders",
            default: "",
            doc: "what a `reward` stage wrote (model or adapter), or a ...ForSequenceClassification; a list of them is an ensemble",
        },
        OptionInfo {
            name: "output",
            kind: "integer of at least 0",
            default: "",
            doc: "which output of each head; by default all of them (an ensemble)",
        },
        OptionInfo {
            name: "aggregate",
            kind: "mean, min or mean_minus_std",
            default: "\"mean\"",
            doc: "what several outputs or models together are worth",
        },
        OptionInfo {
            name: "std_coef",
            kind: "number of at least 0",
            default: "",
            doc: "what a deviation of the members costs, with aggregate = \"mean_minus_std\"; by default 1",
        },
    ],
    build,
};

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    model: Models,
    output: Option<usize>,
    #[serde(default)]
    aggregate: Aggregate,
    std_coef: Option<f64>,
}

/// A folder, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a folder, or a list of folders")]
enum Models {
    One(String),
    Several(Vec<String>),
}

/// What the members of an ensemble together are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Aggregate {
    #[default]
    Mean,
    Min,
    MeanMinusStd,
}

impl Aggregate {
    fn of(self, members: &[f64], std_coef: f64) -> f64 {
        let n = members.len() as f64;
        let mean = members.iter().sum::<f64>() / n;
        match self {
            Aggregate::Mean => mean,
            Aggregate::Min => members.iter().copied().fold(f64::INFINITY, f64::min),
            Aggregate::MeanMinusStd => {
                let variance = members.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / n;
                mean - std_coef * variance.sqrt()
            }
        }
    }
}

/// Loaded reward models.
#[derive(Debug)]
struct RewardModel {
    scorers: Vec<Scorer>,
    output: Option<usize>,
    aggregate: Aggregate,
    std_coef: f64,
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
    let names = match config.model {
        Models::One(name) => vec![name],
        Models::Several(names) if names.is_empty() => return Err(bad("model is an empty list".to_owned())),
        Models::Several(names) => names,
    };
    let std_coef = match (config.aggregate, config.std_coef) {
        (Aggregate::MeanMinusStd, coef) => coef.unwrap_or(1.0),
        (_, None) => 0.0,
        (_, Some(_)) => {
            return Err(bad("std_coef has no effect without aggregate = \"mean_minus_std\"".to_owned()));
        }
    };
    if !(std_coef >= 0.0 && std_coef.is_finite()) {
        return Err(bad(format!("std_coef is {std_coef}, expected a number of at least 0")));
    }
    let mut scorers = Vec::with_capacity(names.len());
    for name in &names {
        let scorer = Scorer::open(Path::new(name), None).map_err(|error| bad(error.to_string()))?;
        let n_outputs = scorer.n_outputs();
        if let Some(output) = config.output.filter(|output| *output >= n_outputs) {
            return Err(bad(format!("output is {output}, but {name} has outputs 0 to {}", n_outputs - 1)));
        }
        scorers.push(scorer);
    }
    Ok(Box::new(RewardModel { scorers, output: config.output, aggregate: config.aggregate, std_coef }))
}

impl RewardModel {
    /// What the members say, and what that is worth.
    fn verdict(&self, members: &[f64]) -> Verdict {
        if let Some(score) = members.iter().find(|score| !score.is_finite()) {
            return Verdict::skip(format!("the reward model gives {score}: its weights are damaged"));
        }
        let score = self.aggregate.of(members, self.std_coef);
        let shown: Vec<String> = members.iter().map(|member| format!("{member:.4}")).collect();
        match shown.as_slice() {
            [one] => Verdict::scored(score, format!("the reward model gives {one}")),
            _ => Verdict::scored(score, format!("the reward models give {}: {score:.4}", shown.join(", "))),
        }
    }

    /// What one model says of each question, `None` for those it cannot read, with why.
    fn outputs(&self, scorer: &Scorer, questions: &[Question<'_>]) -> Vec<Result<Vec<f64>, String>> {
        let render = |question: &Question<'_>| {
            scorer.texts(question.prompt, question.reply).map_err(|error| error.to_string())
        };
        let rendered: Vec<Result<Example, String>> = questions.iter().map(render).collect();
        let scores = scorer.scores(rendered.iter().flatten().cloned().collect());
        let mut scores = scores.chunks_exact(scorer.n_outputs());
        let members = |outputs: &[f32]| match self.output {
            Some(output) => vec![f64::from(outputs[output])],
            None => outputs.iter().map(|&score| f64::from(score)).collect(),
        };
        let one = |rendered: Result<Example, String>| {
            rendered.map(|_| members(scores.next().expect("scores of every example")))
        };
        rendered.into_iter().map(one).collect()
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
        let mut members: Vec<Result<Vec<f64>, String>> = vec![Ok(Vec::new()); questions.len()];
        for scorer in &self.scorers {
            for (all, own) in members.iter_mut().zip(self.outputs(scorer, questions)) {
                match (all.as_mut(), own) {
                    (Ok(all), Ok(own)) => all.extend(own),
                    (Ok(_), Err(problem)) => *all = Err(problem),
                    (Err(_), _) => {}
                }
            }
        }
        let verdict = |members: Result<Vec<f64>, String>| match members {
            Ok(members) => self.verdict(&members),
            Err(problem) => Verdict::skip(format!("the reward model cannot read it: {problem}")),
        };
        members.into_iter().map(verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ensembles_are_worth_their_mean_their_least_or_less_for_doubt() {
        let members = [1.0, 3.0, -1.0];
        let check = |aggregate: Aggregate, coef: f64, expected: f64| {
            let found = aggregate.of(&members, coef);
            assert!((found - expected).abs() < 1e-12, "{aggregate:?}: {found}, expected {expected}");
        };
        check(Aggregate::Mean, 0.0, 1.0);
        check(Aggregate::Min, 0.0, -1.0);
        // The population's deviation is √(8/3).
        check(Aggregate::MeanMinusStd, 0.5, 1.0 - 0.5 * (8.0f64 / 3.0).sqrt());
        check(Aggregate::MeanMinusStd, 0.0, 1.0);
        assert_eq!(Aggregate::MeanMinusStd.of(&[2.5], 1.0), 2.5);
    }
}
