//! Did it get better? Intervals for a success rate and for a paired change of one.
//!
//! Left out: unpaired comparisons and comparisons of scores that are not right/wrong.

use std::cmp::Ordering;

use serde::Serialize;

/// The standard normal quantile of a two-sided 95 % interval.
pub const Z_95: f64 = 1.959_963_984_540_054;

/// The Wilson score interval for a proportion.
///
/// `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)` with `p = successes / n`
/// (Wilson 1927, "Probable inference, the law of succession, and statistical inference").
/// `n = 0` knows nothing and gives `(0, 1)`.
///
/// # Panics
/// If `successes > n`.
pub fn wilson_interval(successes: usize, n: usize, z: f64) -> (f64, f64) {
    assert!(successes <= n, "{successes} successes of only {n}");
    if n == 0 {
        return (0.0, 1.0);
    }
    let n_f = n as f64;
    let p = successes as f64 / n_f;
    let z2 = z * z;
    let centre = p + z2 / (2.0 * n_f);
    let half = z * (p * (1.0 - p) / n_f + z2 / (4.0 * n_f * n_f)).sqrt();
    let scale = 1.0 + z2 / n_f;
    // The exact ends at 0 and n successes; rounding would leave them a hair outside.
    let low = if successes == 0 { 0.0 } else { (centre - half) / scale };
    let high = if successes == n { 1.0 } else { (centre + half) / scale };
    (low, high)
}

/// What changed between two runs over the same problems.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// Number of problems.
    pub n: usize,
    /// Success rate before.
    pub before_mean: f64,
    /// Success rate after.
    pub after_mean: f64,
    /// `after_mean - before_mean`.
    pub difference: f64,
    /// 95 % interval of the difference: Newcombe's method 10 for paired proportions.
    pub interval95: (f64, f64),
    /// Problems right after and wrong before.
    pub n_gained: usize,
    /// Problems right before and wrong after.
    pub n_lost: usize,
    /// Two-sided exact McNemar test of "gains and losses are equally likely".
    pub p_value: f64,
}

/// Compares two runs problem by problem.
///
/// The interval is method 10 of Newcombe 1998, "Improved confidence intervals for the difference
/// between binomial proportions based on paired data" (Statistics in Medicine 17:2635-2650): the
/// Wilson intervals of the two rates, squared and added with the correlation `phi` between them,
/// which is shrunk towards zero by a continuity correction. The test is the exact one of McNemar
/// 1947: of the discordant pairs, gains are Binomial(gained + lost, 1/2); `p` is twice the smaller
/// tail, at most 1. No problems at all give means of 0, the interval (-1, 1) and `p = 1`.
///
/// # Panics
/// If the two slices differ in length: the pairs would not be pairs.
pub fn paired_gain(before: &[bool], after: &[bool]) -> Gain {
    assert_eq!(before.len(), after.len(), "a paired comparison needs the same problems on both sides");
    let count = |b: bool, a: bool| before.iter().zip(after).filter(|&(&x, &y)| x == b && y == a).count();
    gain_of_counts(count(true, true), count(false, true), count(true, false), count(false, false))
}

/// [`paired_gain`] from the four counts.
fn gain_of_counts(both: usize, gained: usize, lost: usize, neither: usize) -> Gain {
    let n = both + gained + lost + neither;
    let rate = |k: usize| if n == 0 { 0.0 } else { k as f64 / n as f64 };
    let (after_mean, before_mean) = (rate(both + gained), rate(both + lost));
    Gain {
        n,
        before_mean,
        after_mean,
        difference: rate(gained) - rate(lost),
        interval95: if n == 0 { (-1.0, 1.0) } else { newcombe_paired(both, gained, lost, neither) },
        n_gained: gained,
        n_lost: lost,
        p_value: mcnemar_exact(gained, lost),
    }
}

/// Newcombe's method 10 for `after - before`, at 95 %.
fn newcombe_paired(both: usize, gained: usize, lost: usize, neither: usize) -> (f64, f64) {
    let n = both + gained + lost + neither;
    let n_f = n as f64;
    let (after, before) = (both + gained, both + lost);
    let (p_after, p_before) = (after as f64 / n_f, before as f64 / n_f);
    let (low_after, high_after) = wilson_interval(after, n, Z_95);
    let (low_before, high_before) = wilson_interval(before, n, Z_95);
    let phi = phi_corrected(both as f64, gained as f64, lost as f64, neither as f64);
    let join = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
    let difference = (gained as f64 - lost as f64) / n_f;
    let low = difference - join(p_after - low_after, high_before - p_before);
    let high = difference + join(high_after - p_after, p_before - low_before);
    (low.max(-1.0), high.min(1.0))
}

/// The correlation of the two sides with Newcombe's continuity correction (0 if a margin is empty).
fn phi_corrected(both: f64, gained: f64, lost: f64, neither: f64) -> f64 {
    let n = both + gained + lost + neither;
    let margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither);
    if margins == 0.0 {
        return 0.0;
    }
    let determinant = both * neither - gained * lost;
    let corrected = if determinant > 0.0 { (determinant - n / 2.0).max(0.0) } else { determinant };
    corrected / margins.sqrt()
}

/// How often one of two answers is better than the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WinRate {
    /// Comparisons won.
    pub n_wins: usize,
    /// Comparisons in which neither is better.
    pub n_ties: usize,
    /// Comparisons lost.
    pub n_losses: usize,
    /// Wins and half of the ties, of all comparisons.
    pub rate: f64,
    /// Its 95 % interval (Agresti and Min 2005).
    pub interval95: (f64, f64),
}

/// The win rate of the second of each pair: `pairs` say how the second compares with the first.
///
/// `rate = 1/2 + (wins - losses) / 2n`. The interval is that of Agresti and Min 2005, "Simple improved confidence intervals for
/// comparing matched proportions" (Statistics in Medicine 24:729-740), for `(wins - losses) / n`: Wald's, after one half is added to
/// each cell of the two by two table, whose concordant cells are the ties. No comparisons give a rate of 1/2 and the interval (0, 1).
pub fn win_rate(pairs: impl IntoIterator<Item = Ordering>) -> WinRate {
    let (mut n_wins, mut n_ties, mut n_losses) = (0, 0, 0);
    for ordering in pairs {
        match ordering {
            Ordering::Greater => n_wins += 1,
            Ordering::Equal => n_ties += 1,
            Ordering::Less => n_losses += 1,
        }
    }
    let (wins, losses, n) = (n_wins as f64, n_losses as f64, (n_wins + n_ties + n_losses) as f64);
    if n == 0.0 {
        return WinRate { n_wins, n_ties, n_losses, rate: 0.5, interval95: (0.0, 1.0) };
    }
    // Half an observation in each of four cells: the discordant two get one together, all four two.
    let (discordant, all) = (wins + losses + 1.0, n + 2.0);
    let difference = (wins - losses) / all;
    let half = Z_95 * ((discordant - (wins - losses).powi(2) / all).max(0.0)).sqrt() / all;
    let share = |difference: f64| (0.5 + difference / 2.0).clamp(0.0, 1.0);
    WinRate {
        n_wins,
        n_ties,
        n_losses,
        rate: share((wins - losses) / n),
        interval95: (share(difference - half), share(difference + half)),
    }
}

/// `min(1, 2 P[Binomial(gained + lost, 1/2) <= min(gained, lost)])`.
fn mcnemar_exact(gained: usize, lost: usize) -> f64 {
    let n = gained + lost;
    // The terms are summed as logarithms so that thousands of discordant pairs do not underflow.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = ln_term.exp();
    for k in 1..=gained.min(lost) {
        ln_term += ((n - k + 1) as f64 / k as f64).ln();
        tail += ln_term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published values are printed with four decimals (Fagerland's with three).
    const PRINTED: f64 = 0.000_06;
    const PRINTED_3: f64 = 0.000_6;

    fn close(got: f64, expected: f64, tolerance: f64, what: &str) {
        assert!((got - expected).abs() <= tolerance, "{what}: got {got}, expected {expected}");
    }

    #[test]
    fn wilson_gives_the_published_intervals() {
        // Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        for (k, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let (got_low, got_high) = wilson_interval(k, n, Z_95);
            close(got_low, low, PRINTED, "low");
            close(got_high, high, PRINTED, "high");
        }
        assert_eq!(wilson_interval(0, 0, Z_95), (0.0, 1.0));
        assert_eq!(wilson_interval(7, 7, Z_95).1, 1.0);
    }

    #[test]
    fn newcombe_gives_the_published_intervals() {
        // (both, gained, lost, neither). The first two: Newcombe 1998, table II, method 10. The last:
        // Bentur et al. 2009 as computed by Fagerland, Lydersen and Laake 2014, table V.
        for (counts, low, high, tolerance) in [
            ((36, 12, 2, 0), 0.0569, 0.3404, PRINTED),
            ((20, 12, 2, 16), 0.0562, 0.3292, PRINTED),
            ((1, 1, 7, 12), -0.507, -0.026, PRINTED_3),
        ] {
            let gain = gain_of_counts(counts.0, counts.1, counts.2, counts.3);
            close(gain.interval95.0, low, tolerance, "low");
            close(gain.interval95.1, high, tolerance, "high");
        }
    }

    #[test]
    fn mcnemar_is_the_binomial_tail() {
        // By hand: 2 (1 + 8) / 2^8; 2 / 2^5; the centre is capped; no evidence is p = 1.
        close(mcnemar_exact(1, 7), 18.0 / 256.0, 1e-12, "1 against 7");
        close(mcnemar_exact(5, 0), 2.0 / 32.0, 1e-12, "5 against 0");
        close(mcnemar_exact(6, 16), 0.052_478_790_283, 1e-10, "6 against 16");
        close(mcnemar_exact(33, 59), 0.008_780_930_807, 1e-10, "33 against 59");
        assert_eq!(mcnemar_exact(5, 5), 1.0);
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        assert!(mcnemar_exact(3000, 2000) > 0.0 && mcnemar_exact(3000, 2000) < 1e-40);
    }

    #[test]
    fn gain_counts_the_pairs_and_turns_round() {
        let before = [true, false, false, true, false, false];
        let after = [true, true, true, false, true, false];
        let gain = paired_gain(&before, &after);
        assert_eq!((gain.n, gain.n_gained, gain.n_lost), (6, 3, 1));
        close(gain.difference, gain.after_mean - gain.before_mean, 1e-12, "difference");
        let back = paired_gain(&after, &before);
        close(back.interval95.0, -gain.interval95.1, 1e-12, "mirrored interval");
        assert_eq!(back.p_value, gain.p_value);
        assert_eq!(paired_gain(&[], &[]).interval95, (-1.0, 1.0));
    }

    #[test]
    fn win_rates_count_ties_as_half() {
        use Ordering::{Equal, Greater, Less};
        let of = |n_wins: usize, n_ties: usize, n_losses: usize| {
            let repeat = |ordering, n| std::iter::repeat_n(ordering, n);
            win_rate(repeat(Greater, n_wins).chain(repeat(Equal, n_ties)).chain(repeat(Less, n_losses)))
        };
        // By hand: 16 wins, 49 losses and 276 ties have d = -33 / 343 and half = z sqrt(66 - 33^2 / 343) / 343.
        let half = Z_95 * (66.0_f64 - 33.0 * 33.0 / 343.0).sqrt() / 343.0;
        let found = of(16, 276, 49);
        close(found.rate, 0.5 - 33.0 / 682.0, 1e-12, "rate");
        close(found.interval95.0, 0.5 + (-33.0 / 343.0 - half) / 2.0, 1e-12, "low");
        close(found.interval95.1, 0.5 + (-33.0 / 343.0 + half) / 2.0, 1e-12, "high");
        let turned = of(49, 276, 16);
        close(turned.rate, 1.0 - found.rate, 1e-12, "turned round");
        close(turned.interval95.0, 1.0 - found.interval95.1, 1e-12, "turned round, low");
        assert_eq!(of(0, 0, 0).interval95, (0.0, 1.0));
        let certain = of(40, 0, 0);
        assert!(
            certain.rate == 1.0 && certain.interval95.0 > 0.85 && certain.interval95.1 == 1.0,
            "{certain:?}"
        );
        let none = of(0, 40, 0);
        assert!(none.interval95.0 < 0.5 && none.interval95.1 > 0.5 && none.rate == 0.5, "{none:?}");
    }

    #[test]
    fn a_certain_gain_is_significant_and_no_change_is_not() {
        let gain = paired_gain(&[false; 40], &[true; 40]);
        assert!(gain.interval95.0 > 0.8 && gain.p_value < 1e-9, "{gain:?}");
        let same = paired_gain(&[true, false], &[true, false]);
        assert!(same.interval95.0 < 0.0 && same.interval95.1 > 0.0 && same.p_value == 1.0, "{same:?}");
    }
}
