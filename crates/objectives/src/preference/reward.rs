//! Reward models: the chosen reply should score higher than the rejected one (Bradley-Terry).
//!
//! ```text
//! z = r(y_w) − r(y_l) − margin
//! loss = mean over pairs and outputs of −p log σ(z) − (1 − p) log σ(−z) + c · (r(y_w) + r(y_l))²
//! ```
//!
//! where p is the pair's label, 1 unless soft. Sources: Ouyang et al. 2022, InstructGPT (arXiv:2203.02155), equation 1; margins:
//! Touvron et al. 2023, Llama 2 (arXiv:2307.09288), equation 2; centring: Eisenstein et al. 2023 (arXiv:2312.09244), section 3. As
//! TRL's `RewardTrainer`, which has neither soft labels nor more than one output. With several outputs each learns the same
//! preferences from its own start, an ensemble on one body, and metrics are of their mean. With `by_objective` each pair is about one
//! output, whose index is the target of its rows ([`Scores::targets`]): helpfulness and harmlessness apart, for instance. The
//! vocabulary's head is not needed.

use std::ops::Range;

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::math::logistic;
use super::pairs::{self, Form};
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{
    Completion, Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, Scores, TokenBatch,
};

const NAME: &str = "reward";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "reward model on pairs (Bradley-Terry), with margins and centring",
    source: "Ouyang et al. 2022, arXiv:2203.02155, equation 1; margins: arXiv:2307.09288; centring: arXiv:2312.09244",
    equation: "-log sigmoid(score(chosen) - score(rejected) - margin) + c * (score(chosen) + score(rejected))^2",
    options: &[
        OptionInfo {
            name: "center_rewards_coefficient",
            kind: "number of at least 0",
            default: "0.0",
            doc: "c: pulls the mean of a pair's scores to 0; 0.01 is usual",
        },
        OptionInfo {
            name: "n_outputs",
            kind: "integer of at least 1",
            default: "1",
            doc: "outputs of the score head, an ensemble if more than 1",
        },
        OptionInfo {
            name: "by_objective",
            kind: "bool",
            default: "false",
            doc: "each pair trains the one output that its rows' targets name, not all",
        },
    ],
    build: |options| Ok(Box::new(Reward::new(parse(NAME, options)?)?)),
};

/// Options of [`Reward`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// c.
    pub center_rewards_coefficient: f64,
    /// Outputs of the score head.
    pub n_outputs: usize,
    /// Whether each pair is about one output.
    pub by_objective: bool,
}

impl Default for RewardConfig {
    fn default() -> RewardConfig {
        RewardConfig { center_rewards_coefficient: 0.0, n_outputs: 1, by_objective: false }
    }
}

/// The Bradley-Terry loss of a reward model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reward(RewardConfig);

/// A pair of scored rows.
struct ScoredPair<'a> {
    chosen: &'a Completion,
    /// The rows of chosen and rejected.
    rows: [usize; 2],
    /// The outputs it trains.
    outputs: Range<usize>,
}

impl Reward {
    /// The objective with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: RewardConfig) -> Result<Reward, ObjectiveError> {
        super::check_not_negative("center_rewards_coefficient", config.center_rewards_coefficient)
            .and_then(|()| match config.n_outputs {
                0 => Err("n_outputs is 0, expected at least 1".to_owned()),
                _ => Ok(()),
            })
            .map_err(|problem| bad_option(NAME, problem))?;
        Ok(Reward(config))
    }

    /// The outputs that a pair trains.
    fn outputs(
        &self,
        chosen: &Completion,
        rows: [usize; 2],
        scores: Scores<'_>,
    ) -> Result<Range<usize>, ObjectiveError> {
        if !self.0.by_objective {
            return Ok(0..self.0.n_outputs);
        }
        let targets = rows.map(|row| scores.targets[row]);
        let output = (0..self.0.n_outputs).find(|&output| targets == [output as f32; 2]);
        output.map(|output| output..output + 1).ok_or_else(|| ObjectiveError::Group {
            name: NAME,
            group: chosen.group,
            found: format!("about the outputs {targets:?} of {}", self.0.n_outputs),
            expected: "the index of one output, the same on both sides",
        })
    }

    fn pairs<'a>(
        &self,
        batch: &TokenBatch<'a>,
        scores: Scores<'_>,
    ) -> Result<Vec<ScoredPair<'a>>, ObjectiveError> {
        let n_rows = scores.targets.len();
        let row = |completion: &Completion| {
            let rows = completion.scores.clone();
            if rows.len() == 1 && rows.end <= n_rows {
                return Ok(rows.start);
            }
            let kind = pairs::kind_name(completion.kind);
            let found = format!("a group whose {kind} reply has scored rows {rows:?} of {n_rows}");
            let expected = "one scored row for each reply: its last token";
            Err(ObjectiveError::Group { name: NAME, group: completion.group, found, expected })
        };
        let pair = |group| {
            let [_, chosen, rejected] = pairs::replies(group, Form::plain(NAME))?;
            if !chosen.margin.is_finite() || chosen.margin != rejected.margin {
                let found = format!("of margins {:?}", [chosen.margin, rejected.margin]);
                let expected = "a finite margin, the same on both sides";
                return Err(ObjectiveError::Group { name: NAME, group: chosen.group, found, expected });
            }
            let rows = [row(chosen)?, row(rejected)?];
            Ok(ScoredPair { chosen, rows, outputs: self.outputs(chosen, rows, scores)? })
        };
        pairs::groups(batch.completions).map(pair).collect()
    }
}

/// The mean of some of a row's outputs.
fn mean_output(scores: Scores<'_>, row: usize, outputs: Range<usize>) -> f64 {
    let outputs = &scores.values[row * scores.n_outputs..(row + 1) * scores.n_outputs][outputs];
    outputs.iter().map(|&v| f64::from(v)).sum::<f64>() / outputs.len() as f64
}

/// TRL's metrics of reward models.
fn metrics(scores: Scores<'_>, pairs: &[ScoredPair<'_>]) -> Vec<Metric> {
    let rewards = |pair: &ScoredPair<'_>| pair.rows.map(|row| mean_output(scores, row, pair.outputs.clone()));
    let mean = |name, value: fn([f64; 2]) -> f64| {
        let weight = |pair: &ScoredPair<'_>| f64::from(pair.chosen.weight);
        let sum = pairs.iter().map(|pair| weight(pair) * value(rewards(pair))).sum();
        Metric::mean(name, sum, pairs.iter().map(weight).sum())
    };
    vec![
        Metric::min("min_reward", pairs.iter().flat_map(rewards)),
        mean("mean_reward", |[w, l]| 0.5 * (w + l)),
        Metric::max("max_reward", pairs.iter().flat_map(rewards)),
        mean("accuracy", |[w, l]| f64::from(u8::from(w > l))),
        mean("margin", |[w, l]| w - l),
    ]
}

impl Objective for Reward {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { score_outputs: self.0.n_outputs, no_logp: true, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        pairs::weight(batch)
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let scores = super::scores(NAME, batch, self.0.n_outputs)?;
        let pairs = self.pairs(batch, scores)?;
        let (n, centre) = (self.0.n_outputs, self.0.center_rewards_coefficient);
        let mut d_scores = vec![0.0; scores.values.len()];
        let mut loss = 0.0;
        for pair in &pairs {
            let share = f64::from(pair.chosen.weight) / (step.total_weight() * pair.outputs.len() as f64);
            let smoothing = 1.0 - f64::from(pair.chosen.label);
            for output in pair.outputs.clone() {
                let [i, j] = pair.rows.map(|row| row * n + output);
                let (w, l) = (f64::from(scores.values[i]), f64::from(scores.values[j]));
                let (pair_loss, d) = logistic(w - l - f64::from(pair.chosen.margin), smoothing);
                loss += share * (pair_loss + centre * (w + l).powi(2));
                let d_centre = 2.0 * centre * (w + l);
                d_scores[i] += (share * (d + d_centre)) as f32;
                d_scores[j] += (share * (d_centre - d)) as f32;
            }
        }
        Ok(ObjectiveOutput {
            loss,
            d_logp: vec![0.0; batch.logp.len()],
            d_scores: Some(d_scores),
            metrics: metrics(scores, &pairs),
            ..ObjectiveOutput::default()
        })
    }
}
