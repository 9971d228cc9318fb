//! How far one model's predictions are from another's.

use pt_engine::{Batch, Dtype, SegmentTable, Tape};
use pt_models::Model;

/// Rows whose logits are in memory at once.
const ROWS: usize = 32;

/// What was found over some tokens; all of it is about the next-token distribution at each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Tokens compared.
    pub n_tokens: usize,
    /// Mean of `KL(source || export)`, in nats.
    pub mean_kl: f64,
    /// The largest.
    pub max_kl: f64,
    /// Share of tokens after which both expect the same token most.
    pub same_top: f64,
    /// Largest difference of two logits.
    pub max_logit_difference: f64,
    /// Largest logit of the source.
    pub largest_logit: f64,
}

/// Compares two models on sequences of tokens, activations in `f32`.
///
/// # Panics
/// If a sequence is empty, or the models have different vocabularies.
pub fn divergence(source: &Model, export: &Model, sequences: &[Vec<u32>]) -> Divergence {
    let mut total = Divergence::default();
    for tokens in sequences {
        let batch = Batch::new(
            tokens.clone(),
            SegmentTable::sequences(&[tokens.len()]).expect("a sequence has tokens"),
        );
        let mut tapes = [source, export].map(|model| {
            let mut tape = Tape::inference(&model.params, &batch, Dtype::F32);
            let hidden = model.arch.hidden(&mut tape, false);
            (tape, hidden, model)
        });
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        for rows in rows.chunks(ROWS) {
            let [a, b] = &mut tapes;
            let of = |(tape, hidden, model): &mut (Tape<'_>, pt_engine::Var, &Model)| {
                tape.logits(hidden, model.arch.head(), rows, &model.arch.logprob_options()).to_f32()
            };
            let (a, b) = (of(a), of(b));
            assert_eq!(a.len(), b.len(), "both models have one vocabulary");
            let width = a.len() / rows.len();
            a.chunks_exact(width).zip(b.chunks_exact(width)).for_each(|(a, b)| total.add(a, b));
        }
    }
    total.mean_kl /= total.n_tokens.max(1) as f64;
    total.same_top /= total.n_tokens.max(1) as f64;
    total
}

impl Divergence {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        let (log_a, log_b) = (log_softmax(a), log_softmax(b));
        let kl: f64 = log_a.iter().zip(&log_b).map(|(p, q)| p.exp() * (p - q)).sum();
        self.n_tokens += 1;
        self.mean_kl += kl;
        self.max_kl = worst(self.max_kl, kl);
        self.same_top += f64::from(top(a) == top(b));
        for (x, y) in a.iter().zip(b) {
            self.max_logit_difference = worst(self.max_logit_difference, f64::from((x - y).abs()));
            self.largest_logit = worst(self.largest_logit, f64::from(x.abs()));
        }
    }

    /// Whether the mean is a number and not above `limit`.
    pub fn is_within(&self, limit: f64) -> bool {
        self.mean_kl <= limit && self.max_kl.is_finite()
    }
}

/// The larger; NaN, which `max` would forget, stays.
fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |a, x| a.max(f64::from(*x)));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    logits.iter().map(|x| f64::from(*x) - largest - sum.ln()).collect()
}

fn top(logits: &[f32]) -> usize {
    let larger = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions_have_known_divergence() {
        let mut found = Divergence::default();
        let (a, b) = ([0.75f32.ln(), 0.25f32.ln()], [0.5f32.ln(), 0.5f32.ln()]);
        found.add(&a, &b);
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((found.max_kl - expected).abs() < 1e-7, "{found:?}");
        found.add(&a, &a);
        assert!((found.mean_kl - expected).abs() < 1e-7 && found.n_tokens == 2);
        assert!(found.is_within(1.0) && !found.is_within(0.01));
        found.add(&a, &[f32::NAN, 0.0]);
        assert!(!found.is_within(1.0), "a NaN never passes");
    }
}
