//! How sure a score is, and whether two differ.

use pt_core::rng::Stream;
use pt_tasks::stats::{Z_95, paired_gain, wilson_interval};
use serde::{Deserialize, Serialize};

/// `z(0.975) + z(0.8)`: what a difference must be, in standard errors, to be found four times out of five at the 5 % level.
const DETECTABLE: f64 = 1.959_963_984_540_054 + 0.841_621_233_572_914;
/// Resamples of the bootstrap; its intervals' ends are then known to about a hundredth of the interval.
const N_RESAMPLES: u64 = 2000;

/// The probability that at least one of `k` samples is right, from `n` samples of which `n_right` are:
/// `1 - C(n - n_right, k) / C(n, k)`, which is unbiased (Chen et al. 2021, arXiv:2107.03374, equation 1).
///
/// # Panics
/// If `k > n` or `n_right > n`.
pub fn pass_at_k(n: usize, n_right: usize, k: usize) -> f64 {
    assert!(k <= n && n_right <= n, "pass@{k} from {n_right} of {n}");
    if n - n_right < k {
        return 1.0;
    }
    if k == 1 {
        // The same number without rounding.
        return n_right as f64 / n as f64;
    }
    1.0 - (n - n_right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// The place of the answer that most of them give, the earliest of equals; answers that are none have no vote.
pub fn majority(answers: &[Option<String>]) -> Option<usize> {
    let votes = |answer: &Option<String>| answers.iter().filter(|other| *other == answer).count();
    let mut best: Option<(usize, usize)> = None;
    for (place, answer) in answers.iter().enumerate().filter(|(_, answer)| answer.is_some()) {
        let n = votes(answer);
        if best.is_none_or(|(_, most)| n > most) {
            best = Some((place, n));
        }
    }
    best.map(|(place, _)| place)
}

/// A mean of weighted values, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Values.
    pub n: usize,
    /// `Σ w x / Σ w`.
    pub mean: f64,
    /// `sqrt(n / (n - 1) Σ w² (x - mean)²) / Σ w`: with equal weights the sample's standard deviation over `sqrt(n)`.
    pub stderr: f64,
    /// 95 %: Wilson's for values that are 0 or 1 and count the same, otherwise mean ± 1.96 standard errors.
    pub interval95: (f64, f64),
}

/// The estimate from values with weights. Nothing gives a mean of 0 and an interval without bounds.
pub fn estimate(values: &[(f64, f64)]) -> Estimate {
    let n = values.len();
    let total: f64 = values.iter().map(|(_, w)| w).sum();
    if n == 0 || total == 0.0 {
        return Estimate {
            n,
            mean: 0.0,
            stderr: f64::INFINITY,
            interval95: (f64::NEG_INFINITY, f64::INFINITY),
        };
    }
    let mean = values.iter().map(|(x, w)| w * x).sum::<f64>() / total;
    let squares: f64 = values.iter().map(|(x, w)| (w * (x - mean)).powi(2)).sum();
    let stderr = if n > 1 { (n as f64 / (n as f64 - 1.0) * squares).sqrt() / total } else { f64::INFINITY };
    let interval95 = match is_binary(values) {
        true => wilson_interval(values.iter().filter(|(x, _)| *x == 1.0).count(), n, Z_95),
        false => (mean - Z_95 * stderr, mean + Z_95 * stderr),
    };
    Estimate { n, mean, stderr, interval95 }
}

fn is_binary(values: &[(f64, f64)]) -> bool {
    values.iter().all(|(x, w)| (*x == 0.0 || *x == 1.0) && *w == 1.0)
}

/// The smallest true difference that another model's score on as many *other* questions would reveal four times out of
/// five: `(z(0.975) + z(0.8)) sqrt(2) σ / sqrt(n)`. A comparison on the same questions finds smaller ones (see
/// [`Comparison::detectable`]). Where all values agree, `σ` is that of one right and one wrong answer more.
pub fn detectable(values: &[(f64, f64)]) -> f64 {
    let found = estimate(values);
    let stderr = if found.stderr > 0.0 || !is_binary(values) {
        found.stderr
    } else {
        let n = found.n as f64;
        let p = (found.mean * n + 1.0) / (n + 2.0);
        (p * (1.0 - p) / n).sqrt()
    };
    DETECTABLE * std::f64::consts::SQRT_2 * stderr
}

/// How two models differ on the same questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Questions both answered.
    pub n: usize,
    /// The first model's mean.
    pub before: f64,
    /// The second's.
    pub after: f64,
    /// `after - before`.
    pub difference: f64,
    /// 95 % interval of the difference: Newcombe's for paired proportions where values are 0 or 1 (see
    /// `pt_tasks::stats`), otherwise that of the bootstrap.
    pub interval95: (f64, f64),
    /// 95 % interval of the paired percentile bootstrap (Efron and Tibshirani 1993, section 13.3), 2000 resamples.
    pub bootstrap95: (f64, f64),
    /// Two-sided exact McNemar test, where values are 0 or 1.
    pub mcnemar_p: Option<f64>,
    /// The smallest true difference that as many questions reveal four times out of five, from the spread of the
    /// differences: `(z(0.975) + z(0.8)) σ(difference) / sqrt(n)`.
    pub detectable: f64,
}

impl Comparison {
    /// Whether 0 lies outside the interval.
    pub fn is_significant(&self) -> bool {
        self.interval95.0 > 0.0 || self.interval95.1 < 0.0
    }
}

/// Compares values of the same questions: `(before, after, weight)`. The bootstrap's draws are keyed by `seed`.
pub fn compare(pairs: &[(f64, f64, f64)], seed: u64) -> Comparison {
    let side = |pick: fn(&(f64, f64, f64)) -> f64| -> Vec<(f64, f64)> {
        pairs.iter().map(|pair| (pick(pair), pair.2)).collect()
    };
    let (before, after) = (side(|p| p.0), side(|p| p.1));
    let differences = estimate(&side(|p| p.1 - p.0));
    let bootstrap95 = bootstrap(pairs, seed);
    let is_binary = is_binary(&before) && is_binary(&after);
    let bits = |values: &[(f64, f64)]| values.iter().map(|(x, _)| *x == 1.0).collect::<Vec<bool>>();
    let gain = is_binary.then(|| paired_gain(&bits(&before), &bits(&after)));
    Comparison {
        n: pairs.len(),
        before: estimate(&before).mean,
        after: estimate(&after).mean,
        difference: differences.mean,
        interval95: gain.as_ref().map_or(bootstrap95, |gain| gain.interval95),
        bootstrap95,
        mcnemar_p: gain.map(|gain| gain.p_value),
        detectable: DETECTABLE * differences.stderr,
    }
}

fn bootstrap(pairs: &[(f64, f64, f64)], seed: u64) -> (f64, f64) {
    if pairs.is_empty() {
        return (f64::NEG_INFINITY, f64::INFINITY);
    }
    let stream = Stream::new(seed, "eval/bootstrap");
    let resample = |index: u64| {
        let mut draws = stream.at(index);
        let (mut sum, mut total) = (0.0, 0.0);
        for _ in 0..pairs.len() {
            let (before, after, weight) = pairs[draws.below(pairs.len())];
            sum += weight * (after - before);
            total += weight;
        }
        if total > 0.0 { sum / total } else { 0.0 }
    };
    let mut means: Vec<f64> = (0..N_RESAMPLES).map(resample).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * (means.len() - 1) as f64).round() as usize];
    (at(0.025), at(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64, tolerance: f64) {
        assert!((got - expected).abs() <= tolerance, "{got}, expected {expected}");
    }

    #[test]
    fn pass_at_k_counts_the_subsets() {
        // By counting: C(n - c, k) of C(n, k) subsets have none that is right.
        for (n, c, k, expected) in [
            (5, 0, 3, 0.0),
            (5, 5, 1, 1.0),
            (6, 3, 1, 0.5),
            (6, 3, 2, 1.0 - 3.0 / 15.0),
            (10, 2, 4, 1.0 - 70.0 / 210.0),
            (4, 1, 4, 1.0),
        ] {
            close(pass_at_k(n, c, k), expected, 1e-12);
        }
    }

    #[test]
    fn the_majority_is_the_earliest_of_equals() {
        for (answers, expected) in [
            (&["1", "2", "2"][..], Some(1)),
            (&["1", "2", "2", "1"], Some(0)),
            (&["", "", "7"], Some(2)),
            (&["", ""], None),
        ] {
            let answers: Vec<_> = answers.iter().map(|a| (!a.is_empty()).then(|| (*a).to_owned())).collect();
            assert_eq!(majority(&answers), expected, "{answers:?}");
        }
    }

    #[test]
    fn estimates_are_the_textbooks() {
        let found = estimate(&[(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0)]);
        // Standard deviation 0.5 over sqrt(4), as lm-evaluation-harness' `mean_stderr` gives.
        close(found.stderr, 0.25, 1e-12);
        close(found.interval95.0, wilson_interval(3, 4, Z_95).0, 1e-12);
        let weighted = estimate(&[(0.5, 2.0), (1.0, 1.0)]);
        close(weighted.mean, 2.0 / 3.0, 1e-12);
        close(weighted.interval95.1 - weighted.mean, Z_95 * weighted.stderr, 1e-12);
        assert_eq!(estimate(&[]).n, 0);
        assert!(detectable(&[(1.0, 1.0); 100]) > 0.0, "all right is no certainty");
    }

    #[test]
    fn comparisons_pair_the_questions() {
        let pairs: Vec<_> = (0..60).map(|i| (f64::from(i % 2), f64::from((i % 6 != 0) as u8), 1.0)).collect();
        let found = compare(&pairs, 1);
        close(found.difference, found.after - found.before, 1e-12);
        assert!(found.is_significant() && found.mcnemar_p.unwrap() < 0.001, "{found:?}");
        assert_eq!(found, compare(&pairs, 1), "the bootstrap is deterministic");
        // The two intervals of the same difference nearly agree.
        close(found.interval95.0, found.bootstrap95.0, 0.06);
        close(found.interval95.1, found.bootstrap95.1, 0.06);
        let same = compare(&[(0.3, 0.3, 2.0), (0.9, 0.9, 1.0)], 1);
        assert!(!same.is_significant() && same.mcnemar_p.is_none(), "{same:?}");
    }
}
