//! Several verifiers as one reward: weights, clipping, gates.
//!
//! ```text
//! total = sum_i weight_i clip_i(score_i)      over the verifiers that did not skip
//! total = gate_j                              where verifier j has a gate and its score is below 1 (the first such j)
//! total = none                                where every verifier with a weight other than 0 skipped, or the sum is too
//!                                             large for a number
//! ```
//!
//! The sum is not divided by the weights, and a part that skipped is left out of it, as in TRL's `GRPOTrainer`
//! (`nansum` over `reward_funcs` with `reward_weights`); it stands among the verdicts, so that it can be counted.
//! Normalisation over a group belongs to the objective, which sees the group.

use pt_core::catalogue::CatalogueError;
use serde::{Deserialize, Serialize};

use crate::{Question, Verdict, Verifier, build};

/// One verifier of a reward, as a recipe names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSpec {
    /// The verifier's name in the catalogue.
    pub r#type: String,
    /// What it is called in metrics; the type if absent. Names are unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What its score is multiplied by; 1 if absent, or 0 if there is a `gate`. Negative is a penalty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The total where this verifier does not pass, whatever the others say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<f64>,
    /// The least and the largest score that counts, before the weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<[f64; 2]>,
    /// The verifier's options.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub options: toml::Table,
}

impl RewardSpec {
    /// A verifier with its defaults and weight 1.
    pub fn new(kind: impl Into<String>) -> RewardSpec {
        let options = toml::Table::new();
        RewardSpec { r#type: kind.into(), name: None, weight: None, gate: None, clip: None, options }
    }
}

/// What is wrong with a list of rewards.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RewardError {
    /// The list is empty.
    #[error("there is no reward; name at least one verifier")]
    Empty,
    /// Two rewards of one name.
    #[error("two rewards are called `{name}`; give one of them another `name`")]
    RepeatedName {
        /// The name.
        name: String,
    },
    /// A number that is not finite, or a clip that is upside down.
    #[error("reward `{name}`: `{key}` is {found}; expected {expected}")]
    BadNumber {
        /// The reward.
        name: String,
        /// Which of its numbers.
        key: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// All weights are 0.
    #[error("all rewards have weight 0, so every total would be the same; give one a `weight`")]
    NoWeight,
    /// The verifier itself.
    #[error("reward `{name}`")]
    Verifier {
        /// The reward.
        name: String,
        /// What is wrong with its verifier or its options.
        source: CatalogueError,
    },
}

/// One verifier with what its score is worth.
#[derive(Debug)]
struct Reward {
    name: String,
    weight: f64,
    gate: Option<f64>,
    clip: Option<[f64; 2]>,
    verifier: Box<dyn Verifier>,
}

/// What all verifiers together say of a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The reward, which is finite; `None` if nothing could judge the reply.
    pub total: Option<f64>,
    /// Each verifier's verdict, in the order of the rewards.
    pub verdicts: Vec<Verdict>,
    /// Which reward's gate decided the total, by its place in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gated_by: Option<usize>,
}

impl Scored {
    /// Each verifier's score, in the order of the rewards.
    pub fn scores(&self) -> Vec<Option<f64>> {
        self.verdicts.iter().map(|verdict| verdict.score).collect()
    }
}

/// Verifiers with weights.
#[derive(Debug)]
pub struct Rewards {
    rewards: Vec<Reward>,
}

impl Rewards {
    /// Builds every verifier of the list from the catalogue.
    ///
    /// # Errors
    /// [`RewardError`] for the first thing that is wrong.
    pub fn new(specs: &[RewardSpec]) -> Result<Rewards, RewardError> {
        Rewards::with(specs, build)
    }

    /// The same with another way from (type, options) to a verifier, for verifiers that are in no catalogue of this
    /// crate because they need a model or a sandbox.
    ///
    /// # Errors
    /// [`RewardError`] for the first thing that is wrong.
    pub fn with(
        specs: &[RewardSpec],
        build: impl Fn(&str, &toml::Table) -> Result<Box<dyn Verifier>, CatalogueError>,
    ) -> Result<Rewards, RewardError> {
        let mut rewards: Vec<Reward> = Vec::with_capacity(specs.len());
        for spec in specs {
            let name = spec.name.clone().unwrap_or_else(|| spec.r#type.clone());
            if rewards.iter().any(|reward| reward.name == name) {
                return Err(RewardError::RepeatedName { name });
            }
            let weight = spec.weight.unwrap_or(if spec.gate.is_some() { 0.0 } else { 1.0 });
            check_numbers(&name, weight, spec)?;
            let verifier = build(&spec.r#type, &spec.options)
                .map_err(|source| RewardError::Verifier { name: name.clone(), source })?;
            rewards.push(Reward { name, weight, gate: spec.gate, clip: spec.clip, verifier });
        }
        match rewards.as_slice() {
            [] => Err(RewardError::Empty),
            some if some.iter().all(|reward| reward.weight == 0.0) => Err(RewardError::NoWeight),
            _ => Ok(Rewards { rewards }),
        }
    }

    /// The rewards' names, in order: the keys of metrics and columns.
    pub fn names(&self) -> Vec<&str> {
        self.rewards.iter().map(|reward| reward.name.as_str()).collect()
    }

    /// The rewards' weights, in order.
    pub fn weights(&self) -> Vec<f64> {
        self.rewards.iter().map(|reward| reward.weight).collect()
    }

    /// Judges all replies by all verifiers; one [`Scored`] for each, in order.
    pub fn score(&self, questions: &[Question<'_>]) -> Vec<Scored> {
        let mut rows: Vec<Vec<Verdict>> =
            questions.iter().map(|_| Vec::with_capacity(self.rewards.len())).collect();
        for reward in &self.rewards {
            let verdicts = reward.verifier.verify_all(questions);
            assert_eq!(verdicts.len(), rows.len(), "verifier `{}` answers every question", reward.name);
            for (row, verdict) in rows.iter_mut().zip(verdicts) {
                row.push(finite(verdict));
            }
        }
        rows.into_iter().map(|verdicts| self.total(verdicts)).collect()
    }

    fn total(&self, verdicts: Vec<Verdict>) -> Scored {
        let each = || self.rewards.iter().zip(&verdicts);
        // A gate that could not judge does not close.
        let is_closed = |(reward, verdict): (&Reward, &Verdict)| {
            reward.gate.is_some() && verdict.score.is_some() && !verdict.is_pass()
        };
        if let Some(place) = each().position(is_closed) {
            return Scored { total: self.rewards[place].gate, verdicts, gated_by: Some(place) };
        }
        let worth = |(reward, verdict): (&Reward, &Verdict)| {
            let score = verdict.score.filter(|_| reward.weight != 0.0)?;
            let [low, high] = reward.clip.unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
            Some(reward.weight * score.clamp(low, high))
        };
        let total: Option<f64> =
            each().filter_map(worth).fold(None, |sum, part| Some(sum.unwrap_or(0.0) + part));
        Scored { total: total.filter(|total| total.is_finite()), verdicts, gated_by: None }
    }
}

fn check_numbers(name: &str, weight: f64, spec: &RewardSpec) -> Result<(), RewardError> {
    let bad = |key, found: String, expected| {
        Err(RewardError::BadNumber { name: name.to_owned(), key, found, expected })
    };
    if !weight.is_finite() {
        return bad("weight", weight.to_string(), "a finite number");
    }
    if let Some(gate) = spec.gate.filter(|gate| !gate.is_finite()) {
        return bad("gate", gate.to_string(), "a finite number");
    }
    match spec.clip {
        // Written so that NaN is refused too.
        Some([low, high]) if !(low <= high && low < f64::INFINITY && high > f64::NEG_INFINITY) => {
            let expected = "two numbers, the smaller first, with finite scores between them";
            bad("clip", format!("[{low}, {high}]"), expected)
        }
        _ => Ok(()),
    }
}

/// A score that is no finite number would poison a whole group; it is a skip.
fn finite(verdict: Verdict) -> Verdict {
    match verdict.score {
        Some(score) if !score.is_finite() => {
            Verdict::skip(format!("the score is {score}, expected a finite number; {}", verdict.reason))
        }
        _ => verdict,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    /// Gives the row's column of its name, which may be absent or infinite.
    #[derive(Debug)]
    struct Column(String);

    impl Verifier for Column {
        fn name(&self) -> &'static str {
            "column"
        }

        fn verify(&self, question: &Question<'_>) -> Verdict {
            match question.row.get(&self.0) {
                Some(Value::String(_)) => Verdict::scored(f64::NAN, "broken"),
                Some(value) => Verdict::scored(value.as_f64().unwrap(), "as the row says"),
                None => Verdict::skip("absent"),
            }
        }
    }

    fn rewards(toml: &str) -> Result<Rewards, RewardError> {
        #[derive(Deserialize)]
        struct List {
            reward: Vec<RewardSpec>,
        }
        let list: List = toml::from_str(toml).unwrap();
        Rewards::with(&list.reward, |name, _| Ok(Box::new(Column(name.to_owned()))))
    }

    #[test]
    fn totals_are_weighted_sums_of_what_was_judged() {
        let plain = "[[reward]]\ntype = 'a'\n[[reward]]\ntype = 'b'\nweight = -0.5\nclip = [0, 2]";
        let gated = "[[reward]]\ntype = 'a'\n[[reward]]\ntype = 'b'\ngate = -1";
        let weighty = "[[reward]]\ntype = 'a'\nweight = 2\n[[reward]]\ntype = 'b'\ngate = 0\nweight = 1";
        let heavy = "[[reward]]\ntype = 'a'\nweight = 1e300\n[[reward]]\ntype = 'b'\nclip = [-inf, inf]";
        for (list, row, total, gated_by) in [
            (heavy, r#"{"a": 1e300, "b": 1}"#, None, None),
            (heavy, r#"{"a": 0, "b": 7}"#, Some(7.0), None),
            (plain, r#"{"a": 1, "b": 1}"#, Some(0.5), None),
            (plain, r#"{"a": 1, "b": 9}"#, Some(0.0), None),
            (plain, r#"{"a": 1, "b": -9}"#, Some(1.0), None),
            (plain, r#"{"a": 1}"#, Some(1.0), None),
            (plain, r#"{"b": 1}"#, Some(-0.5), None),
            (plain, r#"{"a": "nan", "b": 1}"#, Some(-0.5), None),
            (plain, "{}", None, None),
            (gated, r#"{"a": 1, "b": 1}"#, Some(1.0), None),
            (gated, r#"{"a": 1, "b": 0.9}"#, Some(-1.0), Some(1)),
            (gated, r#"{"a": 1}"#, Some(1.0), None),
            (gated, r#"{"b": 1}"#, None, None),
            (gated, r#"{"b": 0}"#, Some(-1.0), Some(1)),
            (weighty, r#"{"a": 1, "b": 1}"#, Some(3.0), None),
            (weighty, r#"{"a": 1, "b": 0}"#, Some(0.0), Some(1)),
        ] {
            let row: Map<String, Value> = serde_json::from_str(row).unwrap();
            let question = Question { prompt: "", reply: "", gold: None, row: &row, is_truncated: false };
            let scored = rewards(list).unwrap().score(&[question, question]);
            assert_eq!((scored[0].total, scored[0].gated_by), (total, gated_by), "{list}\n{row:?}");
            assert_eq!(scored[0], scored[1]);
            assert_eq!(scored[0].verdicts.len(), 2);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (list, message) in [
            ("reward = []", "there is no reward"),
            ("[[reward]]\ntype = 'a'\n[[reward]]\ntype = 'a'", "two rewards are called `a`"),
            ("[[reward]]\ntype = 'a'\n[[reward]]\ntype = 'b'\nname = 'a'", "two rewards are called `a`"),
            ("[[reward]]\ntype = 'a'\nweight = nan", "`weight` is NaN"),
            ("[[reward]]\ntype = 'a'\ngate = inf", "`gate` is inf"),
            ("[[reward]]\ntype = 'a'\nclip = [1, 0]", "`clip` is [1, 0]"),
            ("[[reward]]\ntype = 'a'\nclip = [nan, 0]", "`clip` is [NaN, 0]"),
            ("[[reward]]\ntype = 'a'\nclip = [inf, inf]", "`clip` is [inf, inf]"),
            ("[[reward]]\ntype = 'a'\nclip = [-inf, -inf]", "`clip` is [-inf, -inf]"),
            ("[[reward]]\ntype = 'a'\ngate = 0", "all rewards have weight 0"),
        ] {
            let error = rewards(list).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let error = Rewards::new(&[RewardSpec::new("exat")]).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string() == "reward `exat`" && cause.contains("`exact`"), "{error}: {cause}");
    }

    #[test]
    fn names_are_types_unless_given() {
        let list = "[[reward]]\ntype = 'a'\n[[reward]]\ntype = 'a'\nname = 'again'\nweight = 0.5";
        let rewards = rewards(list).unwrap();
        assert_eq!(rewards.names(), ["a", "again"]);
        assert_eq!(rewards.weights(), [1.0, 0.5]);
    }
}
