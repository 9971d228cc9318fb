//! What is to be known of a reward model before it may serve as a reward: how often it is right on held-out pairs, whether its
//! certainty is what it should be, whether it likes length, and where it disagrees.
//!
//! The probability that the chosen reply is the better one is `σ(score(chosen) − score(rejected))`. Calibration is of the side
//! the model prefers: its confidence `max(p, 1 − p)` against how often that side is the chosen one, in ten bins of equal width
//! (expected calibration error, Guo et al. 2017, arXiv:1706.04599, equation 3). A score that goes with the number of tokens shows in
//! the correlation of both over all replies, in the accuracy where the chosen reply is the longer or the shorter one, and in
//! the accuracy among pairs of equal length, which length cannot explain (Singhal et al. 2023, arXiv:2310.03716).

use std::collections::BTreeMap;
use std::path::Path;

use pt_core::atomic_file;
use pt_engine::Dtype;
use pt_models::Model;
use pt_train::{Example, MicroBatch};
use serde::{Deserialize, Serialize};

use crate::error::{PipelineError, Result};
use crate::scorer::scores;

/// Two lengths are equal if they differ by at most this share of the longer one.
const EQUAL_LENGTH: f64 = 0.1;
/// Bins of confidence from 0.5 to 1.
const BINS: usize = 10;

/// A pair with its scores.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedPair {
    /// Where it came from.
    pub source: String,
    /// Scores of the chosen and the rejected reply; the mean of several outputs.
    pub scores: [f64; 2],
    /// Tokens of the chosen and the rejected reply.
    pub lengths: [usize; 2],
}

/// A share with its 95 % interval (Wilson 1927).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Pairs it is a share of.
    pub n: usize,
    /// The share; `None` of none.
    pub value: Option<f64>,
    /// Its interval.
    pub interval95: Option<(f64, f64)>,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardReport {
    /// Pairs in which the chosen reply scores higher.
    pub accuracy: Share,
    /// Pairs whose two scores are the same; they count as wrong.
    pub ties: usize,
    /// Mean of the difference of scores.
    pub mean_margin: f64,
    /// Mean of all scores.
    pub mean_reward: f64,
    /// Standard deviation of all scores.
    pub reward_deviation: f64,
    /// Mean of `−log p`.
    pub log_loss: f64,
    /// Expected calibration error.
    pub calibration_error: f64,
    /// What the error is made of.
    pub calibration: Vec<CalibrationBin>,
    /// Whether scores go with length.
    pub length: LengthBias,
    /// Accuracy on each source.
    pub by_source: BTreeMap<String, Share>,
}

/// Pairs of similar confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Least confidence.
    pub from: f64,
    /// Pairs.
    pub n: usize,
    /// Mean confidence.
    pub confidence: f64,
    /// How often the preferred side is the chosen one.
    pub accuracy: f64,
}

/// Whether scores go with length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LengthBias {
    /// Pearson's correlation of score and tokens over all replies; `None` where one of them never varies.
    pub correlation: Option<f64>,
    /// How often the longer reply is preferred, among pairs of unequal length.
    pub longer_preferred: Share,
    /// How often the longer reply is the chosen one, which is what an unbiased model would follow.
    pub longer_chosen: Share,
    /// Accuracy where the chosen reply is the longer one.
    pub accuracy_chosen_longer: Share,
    /// Accuracy where it is the shorter one.
    pub accuracy_chosen_shorter: Share,
    /// Accuracy where both are about equally long (within a tenth).
    pub accuracy_equal_length: Share,
}

/// Scores the held-out pairs of a stage, writes the report as `rewards.json` into `dir`, and returns what a person should read.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn report_rewards(
    model: &Model,
    eval: &[MicroBatch],
    dtype: Dtype,
    dir: &Path,
) -> Result<Vec<String>> {
    let examples: Vec<Example> = eval.iter().flat_map(MicroBatch::examples).cloned().collect();
    let Some(report) = RewardReport::of(&ranked_pairs(&examples, &scores(model, dtype, &examples))) else {
        return Ok(vec![
            "no held-out pairs, so nothing is known of the reward model's accuracy; set data.eval_fraction or data.eval".to_owned(),
        ]);
    };
    std::fs::create_dir_all(dir).map_err(PipelineError::io("create", dir))?;
    let path = dir.join(REPORT_FILE);
    let text = serde_json::to_vec_pretty(&report).expect("a report is JSON");
    atomic_file::write(&path, &text).map_err(PipelineError::io("write", &path))?;
    Ok(report.lines())
}

/// The report's name in a stage's `eval/` folder.
const REPORT_FILE: &str = "rewards.json";

/// Pairs with their scores, of which each reply has as many as the head has outputs.
fn ranked_pairs(examples: &[Example], scores: &[f32]) -> Vec<RankedPair> {
    let n_replies: usize = examples.iter().map(|example| example.replies.len()).sum();
    let n_outputs = scores.len() / n_replies.max(1);
    let mut means = scores
        .chunks_exact(n_outputs.max(1))
        .map(|outputs| outputs.iter().map(|&x| f64::from(x)).sum::<f64>() / outputs.len() as f64);
    let mut pairs = Vec::new();
    for example in examples {
        let [chosen, rejected] = &*example.replies else { unreachable!("pairs have two replies") };
        let mut score = || means.next().expect("a score for every reply");
        // `file:line`, of which the file is the source.
        let source = example.origin.rsplit_once(':').map_or(&*example.origin, |(file, _)| file);
        pairs.push(RankedPair {
            source: source.to_owned(),
            scores: [score(), score()],
            lengths: [chosen.token_ids.len(), rejected.token_ids.len()],
        });
    }
    pairs
}

impl Share {
    /// How many of these are true.
    fn of(hits: impl Iterator<Item = bool>) -> Share {
        let (mut n, mut k) = (0, 0);
        for hit in hits {
            n += 1;
            k += usize::from(hit);
        }
        let value = (n > 0).then(|| k as f64 / n as f64);
        Share { n, value, interval95: value.map(|p| wilson(p, n as f64)) }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.value, self.interval95) {
            (Some(p), Some((low, high))) => {
                write!(f, "{:.1} % ({:.1} to {:.1}, n = {})", 100.0 * p, 100.0 * low, 100.0 * high, self.n)
            }
            _ => write!(f, "none"),
        }
    }
}

/// Wilson's score interval at 95 %.
fn wilson(p: f64, n: f64) -> (f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    let denominator = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / denominator;
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() / denominator;
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

impl RankedPair {
    fn margin(&self) -> f64 {
        self.scores[0] - self.scores[1]
    }

    fn is_right(&self) -> bool {
        self.margin() > 0.0
    }

    fn is_equally_long(&self) -> bool {
        let [a, b] = self.lengths.map(|n| n as f64);
        (a - b).abs() <= EQUAL_LENGTH * a.max(b)
    }

    fn is_chosen_longer(&self) -> bool {
        self.lengths[0] > self.lengths[1]
    }
}

impl RewardReport {
    /// The report on these pairs; `None` without any.
    pub fn of(pairs: &[RankedPair]) -> Option<RewardReport> {
        if pairs.is_empty() {
            return None;
        }
        let n = pairs.len() as f64;
        let mean = |value: fn(&RankedPair) -> f64| pairs.iter().map(value).sum::<f64>() / n;
        let mean_reward = mean(|pair| 0.5 * (pair.scores[0] + pair.scores[1]));
        let rewards = pairs.iter().flat_map(|pair| pair.scores);
        let variance = rewards.map(|reward| (reward - mean_reward).powi(2)).sum::<f64>() / (2.0 * n);
        let calibration = calibration(pairs);
        let gap = |bin: &CalibrationBin| bin.n as f64 / n * (bin.accuracy - bin.confidence).abs();
        let mut sources: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
        for pair in pairs {
            sources.entry(&pair.source).or_default().push(pair.is_right());
        }
        Some(RewardReport {
            accuracy: Share::of(pairs.iter().map(RankedPair::is_right)),
            ties: pairs.iter().filter(|pair| pair.margin() == 0.0).count(),
            mean_margin: mean(RankedPair::margin),
            mean_reward,
            reward_deviation: variance.sqrt(),
            log_loss: mean(|pair| softplus(-pair.margin())),
            calibration_error: calibration.iter().map(gap).sum(),
            calibration,
            length: length_bias(pairs),
            by_source: sources
                .into_iter()
                .map(|(source, hits)| (source.to_owned(), Share::of(hits.into_iter())))
                .collect(),
        })
    }

    /// What a person should read.
    pub fn lines(&self) -> Vec<String> {
        let correlation = self.length.correlation.map_or("none".to_owned(), |r| format!("{r:+.2}"));
        let mut lines = vec![
            format!(
                "reward model: accuracy {}, mean margin {:.3}, calibration error {:.3}, log loss {:.3}",
                self.accuracy, self.mean_margin, self.calibration_error, self.log_loss
            ),
            format!(
                "length: correlation with the score {correlation}; accuracy at equal length {}; the longer reply is preferred in {} \
                 and chosen in {}",
                self.length.accuracy_equal_length, self.length.longer_preferred, self.length.longer_chosen
            ),
        ];
        if self.ties > 0 {
            lines.push(format!("{} pairs have two equal scores; they count as wrong", self.ties));
        }
        if self.by_source.len() > 1 {
            lines.extend(
                self.by_source.iter().map(|(source, share)| format!("accuracy on {source}: {share}")),
            );
        }
        lines
    }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn calibration(pairs: &[RankedPair]) -> Vec<CalibrationBin> {
    let mut bins = [(0usize, 0.0, 0usize); BINS];
    for pair in pairs {
        let confidence = 1.0 / (1.0 + (-pair.margin().abs()).exp());
        let at = (((confidence - 0.5) * 2.0 * BINS as f64) as usize).min(BINS - 1);
        bins[at].0 += 1;
        bins[at].1 += confidence;
        bins[at].2 += usize::from(pair.is_right());
    }
    let bin = |(at, (n, confidence, right)): (usize, (usize, f64, usize))| {
        let of = n as f64;
        let from = 0.5 + at as f64 / (2 * BINS) as f64;
        (n > 0).then(|| CalibrationBin { from, n, confidence: confidence / of, accuracy: right as f64 / of })
    };
    bins.into_iter().enumerate().filter_map(bin).collect()
}

fn length_bias(pairs: &[RankedPair]) -> LengthBias {
    let replies = pairs.iter().flat_map(|pair| (0..2).map(|i| (pair.scores[i], pair.lengths[i] as f64)));
    let unequal = || pairs.iter().filter(|pair| !pair.is_equally_long());
    let right = |longer: bool| {
        Share::of(unequal().filter(|pair| pair.is_chosen_longer() == longer).map(RankedPair::is_right))
    };
    LengthBias {
        correlation: correlation(&replies.collect::<Vec<_>>()),
        longer_preferred: Share::of(unequal().map(|pair| pair.is_right() == pair.is_chosen_longer())),
        longer_chosen: Share::of(unequal().map(RankedPair::is_chosen_longer)),
        accuracy_chosen_longer: right(true),
        accuracy_chosen_shorter: right(false),
        accuracy_equal_length: Share::of(
            pairs.iter().filter(|pair| pair.is_equally_long()).map(RankedPair::is_right),
        ),
    }
}

/// Pearson's correlation.
fn correlation(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |value: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>();
    let (xx, yy) = (sum(&|p| (p.0 - x).powi(2)), sum(&|p| (p.1 - y).powi(2)));
    let xy = sum(&|p| (p.0 - x) * (p.1 - y));
    (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(source: &str, scores: [f64; 2], lengths: [usize; 2]) -> RankedPair {
        RankedPair { source: source.to_owned(), scores, lengths }
    }

    #[test]
    fn accuracy_ties_and_sources_are_counted() {
        let pairs = [
            pair("a", [1.0, 0.0], [10, 10]),
            pair("a", [0.0, 1.0], [10, 20]),
            pair("b", [2.0, 2.0], [20, 10]),
            pair("b", [3.0, 1.0], [20, 10]),
        ];
        let report = RewardReport::of(&pairs).unwrap();
        assert_eq!((report.accuracy.value, report.accuracy.n, report.ties), (Some(0.5), 4, 1));
        assert_eq!(report.by_source["a"].value, Some(0.5));
        assert_eq!(report.mean_margin, 0.5);
        assert_eq!(report.mean_reward, 1.25);
        let length = report.length;
        assert_eq!(length.accuracy_equal_length.value, Some(1.0));
        assert_eq!((length.accuracy_chosen_longer.n, length.accuracy_chosen_longer.value), (2, Some(0.5)));
        assert_eq!(length.accuracy_chosen_shorter.value, Some(0.0));
        assert_eq!(length.longer_chosen.value, Some(2.0 / 3.0));
        assert!(RewardReport::of(&[]).is_none());
        assert!(report.lines().iter().any(|line| line.contains("accuracy on b")));
        let (low, high) = report.accuracy.interval95.unwrap();
        // R: prop.test has no Wilson without correction for n = 4; binom::binom.wilson(2, 4).
        assert!((low - 0.150_039).abs() < 1e-5 && (high - 0.849_961).abs() < 1e-5, "{low} {high}");
    }

    #[test]
    fn a_model_as_certain_as_it_is_right_has_no_calibration_error() {
        // Three of four right at a confidence of 3/4.
        let margin = 3.0f64.ln();
        let right = pair("a", [margin, 0.0], [3, 3]);
        let wrong = pair("a", [0.0, margin], [3, 3]);
        let check = |n_right: usize, n_wrong: usize, expected: f64| {
            let pairs = [vec![right.clone(); n_right], vec![wrong.clone(); n_wrong]].concat();
            let error = RewardReport::of(&pairs).unwrap().calibration_error;
            assert!((error - expected).abs() < 1e-12, "{n_right} {n_wrong}: {error}");
        };
        check(3, 1, 0.0);
        check(4, 0, 0.25);
        check(1, 3, 0.5);
    }

    #[test]
    fn a_model_that_scores_by_length_is_found_out() {
        let by_length =
            |chosen: usize, rejected: usize| pair("a", [chosen as f64, rejected as f64], [chosen, rejected]);
        let pairs = [by_length(10, 30), by_length(40, 20), by_length(15, 25), by_length(12, 50)];
        let length = RewardReport::of(&pairs).unwrap().length;
        assert!((length.correlation.unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(length.longer_preferred.value, Some(1.0));
        assert_eq!(length.longer_chosen.value, Some(0.25));
        assert_eq!(RewardReport::of(&[pair("a", [1.0, 1.0], [2, 3])]).unwrap().length.correlation, None);
    }
}
