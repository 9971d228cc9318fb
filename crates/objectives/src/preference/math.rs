//! Logistic functions that neither overflow nor lose small values.

/// The largest exponent that is computed: e^80 and its products with ordinary numbers fit in f32.
pub(crate) const MAX_EXPONENT: f64 = 80.0;

/// σ(x) = 1 / (1 + e^−x).
pub(crate) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        return 1.0 / (1.0 + (-x).exp());
    }
    let e = x.exp();
    e / (1.0 + e)
}

/// log(1 + e^x) = −log σ(−x).
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// log(1 − e^x) for x < 0.
pub(crate) fn log1mexp(x: f64) -> f64 {
    if x < -std::f64::consts::LN_2 { (-x.exp()).ln_1p() } else { (-x.exp_m1()).ln() }
}

/// e^x and its derivative, with x held at [`MAX_EXPONENT`].
pub(crate) fn clamped_exp(x: f64) -> (f64, f64) {
    let e = x.min(MAX_EXPONENT).exp();
    (e, if x < MAX_EXPONENT { e } else { 0.0 })
}

/// The logistic loss of a margin `z` whose sign is wrong with probability `smoothing`, and its derivative.
///
/// `−(1 − ε) log σ(z) − ε log σ(−z)`
pub(crate) fn logistic(z: f64, smoothing: f64) -> (f64, f64) {
    let loss = (1.0 - smoothing) * softplus(-z) + smoothing * softplus(z);
    (loss, smoothing * sigmoid(z) - (1.0 - smoothing) * sigmoid(-z))
}

/// The hinge loss `max(0, 1 − z)` and its derivative.
pub(crate) fn hinge(z: f64) -> (f64, f64) {
    if z < 1.0 { (1.0 - z, -1.0) } else { (0.0, 0.0) }
}

/// The square `z²` and its derivative.
pub(crate) fn square(z: f64) -> (f64, f64) {
    (z * z, 2.0 * z)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_exact() {
        for (found, expected) in [
            (sigmoid(-1000.0), 0.0),
            (sigmoid(1000.0), 1.0),
            (sigmoid(-40.0), 4.248354255291589e-18),
            (softplus(1000.0), 1000.0),
            (softplus(-1000.0), 0.0),
            (softplus(-40.0), 4.248354255291589e-18),
            (softplus(0.0), std::f64::consts::LN_2),
            (log1mexp(-1e-10), -23.025850929990457),
            (log1mexp(-50.0), -1.9287498479639178e-22),
            (logistic(1e6, 0.0).0, 0.0),
            (logistic(-1e6, 0.0).0, 1e6),
            (clamped_exp(1e6).0, 80f64.exp()),
        ] {
            assert!((found - expected).abs() <= 1e-14 * expected.abs(), "{found} against {expected}");
        }
    }
}
