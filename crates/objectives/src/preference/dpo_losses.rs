//! The losses of direct preference optimisation, as functions of a pair's log-ratios.
//!
//! With `a = log π(y_w) − log π_ref(y_w)` and `b` the same of the rejected reply, a divergence turns them into scores
//! `s(a)`, `s(b)` ([`Divergence`]); most losses are functions of `z = β (s(a) − s(b))`.

use serde::{Deserialize, Serialize};

use super::math::{clamped_exp, hinge, logistic, sigmoid, softplus, square};

/// Which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// `−log σ(z)`. Rafailov et al. 2023, arXiv:2305.18290, equation 7.
    Sigmoid,
    /// `−(1 − ε) log σ(z) − ε log σ(−z)`, ε = `label_smoothing`: conservative DPO. Mitchell 2023, "A note on DPO with noisy
    /// preferences". Not in TRL, whose `sigmoid` does not read ε.
    Cdpo,
    /// `max(0, 1 − z)`. Zhao et al. 2023, SLiC-HF, arXiv:2305.10425; Liu et al. 2023, RSO, arXiv:2309.06657.
    Hinge,
    /// `(s(a)/|y_w| − s(b)/|y_l| − 1/(2β))²`. Azar et al. 2023, arXiv:2310.12036, equation 17; per token as its authors do.
    Ipo,
    /// `KL(q ‖ [1 − ε, ε])`, q = σ(z). Ji et al. 2024, arXiv:2402.00856, equation 16.
    ExoPair,
    /// `−log σ(βa) − ½ log σ(−βa) − ½ log σ(−βb)`. Chen et al. 2024, arXiv:2402.05369.
    NcaPair,
    /// `[−(1 − ε) log σ(z) + ε log σ(−z)] / (1 − 2ε)`. Chowdhury et al. 2024, arXiv:2403.00409, equation 6.
    Robust,
    /// `−log σ(βa) − log σ(−βb)`. Jung et al. 2024, arXiv:2404.04656, without the shift of the objective `bco`.
    BcoPair,
    /// `(a − 1/(2β))² + (b + 1/(2β))²`. Wu et al. 2024, arXiv:2405.00675, equation 4.7 with hard probabilities.
    SppoHard,
    /// Logistic loss of `β (x₍ₖ₎ − r₍ₖ₎)`: the sorted `log π(y_w) − log π(y_l)` of the step against those of the
    /// reference. Melnyk et al. 2024, arXiv:2406.05882, paired.
    Aot,
    /// Logistic loss of `β (a₍ₖ₎ − b₍ₖ₎)`, each sorted over the step. The same, unpaired.
    AotUnpaired,
    /// `1 − σ(βa) + σ(βb)`. D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7.
    ApoZero,
    /// `σ(βa) + 1 − σ(β (a − b))`. The same, equation 8.
    ApoDown,
    /// `(1 − m)(−log σ(z)) + m e^−z`, m = σ(z/τ). Lu et al. 2024, arXiv:2406.08414, equation 5.
    Discopop,
    /// Mean negative log-likelihood of the chosen replies' tokens.
    Sft,
    /// `−log σ(β (s(a)/|y_w| − s(b)/|y_l|))`. Meng et al. 2024, arXiv:2405.14734, section 4.4 ("length-normalised DPO").
    SigmoidNorm,
}

impl DpoLoss {
    /// Whether its value depends on the whole step.
    pub(crate) fn is_sorted(self) -> bool {
        matches!(self, DpoLoss::Aot | DpoLoss::AotUnpaired)
    }

    /// Whether it looks at ε.
    pub(crate) fn reads_smoothing(self) -> bool {
        use DpoLoss::*;
        matches!(self, Cdpo | ExoPair | Robust | Aot | AotUnpaired)
    }

    /// Whether it has a meaning for scores other than log-ratios, as TRL has it.
    pub(crate) fn takes_divergence(self) -> bool {
        use DpoLoss::*;
        matches!(self, Sigmoid | Cdpo | SigmoidNorm | Hinge | Ipo | ExoPair | Robust | Discopop | Sft)
    }

    fn is_per_token(self) -> bool {
        matches!(self, DpoLoss::Ipo | DpoLoss::SigmoidNorm)
    }
}

/// The divergence that keeps the policy near its reference: `s = f′` of the ratio `t = e^a`. Wang et al. 2023, "Beyond reverse
/// KL", arXiv:2309.16240.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// `s = a`.
    #[default]
    ReverseKl,
    /// `s = 1 − e^−a`.
    ForwardKl,
    /// `s = log 2 + log σ(a)`.
    JsDivergence,
    /// `s = (e^((α−1) a) − 1) / (α − 1)`; `a` at α = 1.
    AlphaDivergence,
}

impl Divergence {
    /// The score of a log-ratio, and its derivative.
    pub(crate) fn score(self, log_ratio: f64, alpha: f64) -> (f64, f64) {
        match self {
            Divergence::AlphaDivergence if (alpha - 1.0).abs() >= 1e-6 => {
                let (e, d) = clamped_exp((alpha - 1.0) * log_ratio);
                ((e - 1.0) / (alpha - 1.0), d)
            }
            Divergence::ReverseKl | Divergence::AlphaDivergence => (log_ratio, 1.0),
            Divergence::ForwardKl => {
                let (e, d) = clamped_exp(-log_ratio);
                (1.0 - e, d)
            }
            Divergence::JsDivergence => (std::f64::consts::LN_2 - softplus(-log_ratio), sigmoid(-log_ratio)),
        }
    }
}

/// When log-ratios are taken per token of their reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthNormalization {
    /// Where the loss is defined so: `ipo` and `sigmoid_norm`.
    #[default]
    Loss,
    /// In every loss.
    Always,
    /// In none, as online IPO.
    Never,
}

/// What the losses read beside the log-ratios.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) beta: f64,
    pub(crate) smoothing: f64,
    pub(crate) tau: f64,
    pub(crate) divergence: Divergence,
    pub(crate) alpha: f64,
    pub(crate) length_normalization: LengthNormalization,
}

/// A reply: its log-ratio and length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) log_ratio: f64,
    pub(crate) length: f64,
}

impl DpoLoss {
    /// The loss, and its derivatives with respect to both log-ratios. Sorted losses and `sft` are not of a pair: 0.
    pub(crate) fn evaluate(self, chosen: Reply, rejected: Reply, p: Parameters) -> (f64, f64, f64) {
        let is_per_token = match p.length_normalization {
            LengthNormalization::Loss => self.is_per_token(),
            LengthNormalization::Always => true,
            LengthNormalization::Never => false,
        };
        let side = |reply: Reply| {
            let per = if is_per_token { 1.0 / reply.length } else { 1.0 };
            let (s, ds) = p.divergence.score(reply.log_ratio, p.alpha);
            (reply.log_ratio * per, s * per, per, ds * per)
        };
        let (a, score_a, da, dscore_a) = side(chosen);
        let (b, score_b, db, dscore_b) = side(rejected);
        let difference = score_a - score_b;
        // A loss of the difference of the scores, from its derivative by that difference.
        let of_difference = |(loss, d): (f64, f64), by: f64| (loss, by * d * dscore_a, -by * d * dscore_b);
        let (beta, z) = (p.beta, p.beta * difference);
        let (c, r) = (beta * a, beta * b);
        // A loss of both log-ratios, from its derivatives by β times each.
        let of_ratios = |loss: f64, d_c: f64, d_r: f64| (loss, beta * d_c * da, beta * d_r * db);
        match self {
            DpoLoss::Sigmoid | DpoLoss::SigmoidNorm => of_difference(logistic(z, 0.0), beta),
            DpoLoss::Cdpo => of_difference(logistic(z, p.smoothing), beta),
            DpoLoss::Hinge => of_difference(hinge(z), beta),
            DpoLoss::Ipo => of_difference(square(difference - 0.5 / beta), 1.0),
            DpoLoss::ExoPair => of_difference(exo(z, p.smoothing), beta),
            DpoLoss::Robust => of_difference(robust(z, p.smoothing), beta),
            DpoLoss::Discopop => of_difference(discopop(z, p.tau), beta),
            DpoLoss::NcaPair => of_ratios(
                softplus(-c) + 0.5 * softplus(c) + 0.5 * softplus(r),
                0.5 * sigmoid(c) - sigmoid(-c),
                0.5 * sigmoid(r),
            ),
            DpoLoss::BcoPair => of_ratios(softplus(-c) + softplus(r), -sigmoid(-c), sigmoid(r)),
            DpoLoss::ApoZero => of_ratios(sigmoid(-c) + sigmoid(r), -slope(c), slope(r)),
            DpoLoss::ApoDown => of_ratios(sigmoid(c) + sigmoid(r - c), slope(c) - slope(c - r), slope(c - r)),
            DpoLoss::SppoHard => {
                let (win, d_win) = square(a - 0.5 / beta);
                let (lose, d_lose) = square(b + 0.5 / beta);
                (win + lose, d_win * da, d_lose * db)
            }
            DpoLoss::Aot | DpoLoss::AotUnpaired | DpoLoss::Sft => (0.0, 0.0, 0.0),
        }
    }
}

/// σ′(x).
fn slope(x: f64) -> f64 {
    sigmoid(x) * sigmoid(-x)
}

fn exo(z: f64, smoothing: f64) -> (f64, f64) {
    let (q, rest) = (sigmoid(z), sigmoid(-z));
    let (log_p, log_rest) = ((-smoothing).ln_1p(), smoothing.ln());
    let loss = q * (-softplus(-z) - log_p) + rest * (-softplus(z) - log_rest);
    (loss, q * rest * (z - log_p + log_rest))
}

fn robust(z: f64, smoothing: f64) -> (f64, f64) {
    let scale = 1.0 / (1.0 - 2.0 * smoothing);
    let loss = (1.0 - smoothing) * softplus(-z) - smoothing * softplus(z);
    (scale * loss, -scale * ((1.0 - smoothing) * sigmoid(-z) + smoothing * sigmoid(z)))
}

fn discopop(z: f64, tau: f64) -> (f64, f64) {
    let (m, rest) = (sigmoid(z / tau), sigmoid(-z / tau));
    // m e^−z in one exponent: each alone overflows where their product is nearly 0.
    let (exponential, d) = clamped_exp(-z - softplus(-z / tau));
    let loss = softplus(-z) * rest + exponential;
    let d_logistic = -sigmoid(-z) * rest - softplus(-z) * m * rest / tau;
    (loss, d_logistic + d * (rest / tau - 1.0))
}
