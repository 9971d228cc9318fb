//! The self-test of a recipe's arithmetic: one step, laid out in every way, must give one loss and one gradient.
//!
//! Losses are normalised over the whole step and every sum has a fixed order, so cutting a step into other micro-batches,
//! recomputing blocks, or using another number of threads changes nothing: not a bit in f32. In bf16 two neighbouring
//! tokens are multiplied at once, so a cut at an odd token pairs them otherwise, and sums over tokens (gradients of
//! weights) differ in their last bits. Another order of the rows is another order of those sums, in either type.

use pt_models::Model;
use pt_recipe::Recipe;
use pt_train::{MicroBatch, Trainer};

use crate::error::{PipelineError, Result};
use crate::model::{load_base, load_tokenizer};
use crate::prepare::first_texts;
use crate::reference::fill_with_zeros;
use crate::source::Surroundings;
use crate::stage::{prepare_model, stage_data, stage_trainer};

/// One layout of the step, compared with the first.
#[derive(Clone, Debug, PartialEq)]
pub struct LayoutResult {
    /// How the step was laid out.
    pub layout: &'static str,
    /// Its loss.
    pub loss: f64,
    /// Whether every gradient is equal bit for bit.
    pub is_bitwise_equal: bool,
    /// Largest difference of a gradient's element, over the largest element of its tensor; infinite where a gradient is
    /// missing or is no number.
    pub worst_relative: f64,
    /// Difference of the losses, over the loss; infinite where one is no number.
    pub loss_relative: f64,
    /// The largest difference of a gradient that is no error: 0 where equality must be bitwise.
    pub tolerance: f64,
}

impl LayoutResult {
    /// Whether the layout agrees as well as it must.
    pub fn passed(&self) -> bool {
        let gradients =
            self.is_bitwise_equal || (self.tolerance > 0.0 && self.worst_relative <= self.tolerance);
        gradients && self.loss_relative <= LOSS_REGROUPING
    }
}

/// Sums of a step's tokens in another order: f32 rounding of a few thousand terms.
const OTHER_ORDER_F32: f64 = 1e-4;
/// In bf16 a cut at an odd token pairs the tokens otherwise: f32 rounding of sums again, as above.
const OTHER_ORDER_BF16: f64 = 1e-4;
/// Losses are summed in f64 per micro-batch, then over them: the same numbers in other groups.
const LOSS_REGROUPING: f64 = 1e-12;

/// Lays out the first step of a recipe's first stage in several ways and compares losses and gradients. Steps are made
/// small by `--set stage.0.train.rows_per_step`.
///
/// # Errors
/// Those of data, model and training; [`PipelineError::Unsupported`] for a stage that samples.
pub fn verify_invariance(recipe: &Recipe, surroundings: &Surroundings) -> Result<Vec<LayoutResult>> {
    let stage = &recipe.stage[0];
    if stage.planned_rollout().is_some() {
        return Err(PipelineError::Unsupported {
            what: format!(
                "a `{}` stage samples what it trains on, which has no one layout to compare",
                stage.r#type
            ),
            advice: "begin the recipe with a stage that trains on rows, as sft or dpo".to_owned(),
        });
    }
    let tokenizer = load_tokenizer(recipe, surroundings, || first_texts(recipe, surroundings))?;
    let mut data = stage_data(recipe, stage, &tokenizer, surroundings)?;
    let mut model: Model = load_base(recipe, &tokenizer, surroundings)?;
    prepare_model(&mut model, recipe, stage)?;
    let schedule = pt_optim::ScheduleConfig::default().resolve(1)?;
    let mut trainer = stage_trainer(model, recipe, stage, schedule)?;
    if trainer.objective().needs().reference_logp {
        // Any reference will do: it is the same in every layout.
        fill_with_zeros(&mut data);
    }
    let planned = data.steps.micro_batches(0)?;
    let recompute = trainer.options().recompute;
    let is_f32 = recipe.model.dtype == pt_recipe::Dtype::F32;
    let (same_order, other_order) =
        if is_f32 { (0.0, OTHER_ORDER_F32) } else { (OTHER_ORDER_BF16, OTHER_ORDER_BF16) };

    let reference = measure(&mut trainer, &planned)?;
    let mut results = vec![compare("as the recipe packs it", &reference, &reference, 0.0)];
    let mut check = |layout, trainer: &mut Trainer, batches: &[MicroBatch], tolerance| -> Result<()> {
        results.push(compare(layout, &reference, &measure(trainer, batches)?, tolerance));
        Ok(())
    };
    check("again", &mut trainer, &planned, 0.0)?;
    for (layout, threads) in [("on one thread", 1), ("on three threads", 3)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| PipelineError::Unsupported {
            what: format!("cannot start {threads} threads: {error}"),
            advice: "raise the limit on threads".to_owned(),
        })?;
        pool.install(|| check(layout, &mut trainer, &planned, 0.0))?;
    }
    check("in one micro-batch", &mut trainer, &[joined(&planned)], same_order)?;
    check("one row at a time", &mut trainer, &one_by_one(&planned), same_order)?;
    trainer.set_recompute(!recompute);
    let layout = if recompute { "without recomputing blocks" } else { "recomputing blocks" };
    check(layout, &mut trainer, &planned, 0.0)?;
    trainer.set_recompute(recompute);
    let mut reversed = one_by_one(&planned);
    reversed.reverse();
    check("rows in reverse order", &mut trainer, &reversed, other_order)?;
    Ok(results)
}

/// Loss and gradients of a step.
struct Measured {
    loss: f64,
    grads: Vec<Vec<f32>>,
}

fn measure(trainer: &mut Trainer, batches: &[MicroBatch]) -> Result<Measured> {
    let (stats, _) = trainer.accumulate(batches)?;
    let trained = trainer.model.params.iter().filter(|(_, param)| param.trainable);
    let grads = trained.filter_map(|(id, _)| trainer.grads().get(id).map(pt_engine::Array::to_f32)).collect();
    Ok(Measured { loss: stats.loss, grads })
}

fn compare(layout: &'static str, reference: &Measured, other: &Measured, tolerance: f64) -> LayoutResult {
    let same_count = reference.grads.len() == other.grads.len();
    let pairs = || reference.grads.iter().zip(&other.grads);
    let worst_relative = match same_count {
        true => pairs().map(|(a, b)| relative_difference(a, b)).fold(0.0, f64::max),
        false => f64::INFINITY,
    };
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    let is_bitwise_equal = same_count && worst_relative == 0.0 && pairs().all(|(a, b)| bits(a) == bits(b));
    let loss_relative = (reference.loss - other.loss).abs() / reference.loss.abs().max(1.0);
    let loss_relative = if loss_relative.is_finite() { loss_relative } else { f64::INFINITY };
    LayoutResult { layout, loss: other.loss, is_bitwise_equal, worst_relative, loss_relative, tolerance }
}

/// Largest difference over the largest element; infinite unless both are numbers throughout and of one length.
fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() || a.iter().chain(b).any(|value| !value.is_finite()) {
        return f64::INFINITY;
    }
    let scale = a.iter().fold(0.0f64, |scale, v| scale.max(f64::from(v.abs())));
    let difference = a.iter().zip(b).fold(0.0f64, |d, (a, b)| d.max((f64::from(*a) - f64::from(*b)).abs()));
    if difference == 0.0 { 0.0 } else { difference / scale.max(f64::MIN_POSITIVE) }
}

fn joined(batches: &[MicroBatch]) -> MicroBatch {
    MicroBatch::new(batches.iter().flat_map(|batch| batch.examples().iter().cloned()).collect())
}

fn one_by_one(batches: &[MicroBatch]) -> Vec<MicroBatch> {
    let examples = batches.iter().flat_map(|batch| batch.examples().iter().cloned());
    examples.map(|example| MicroBatch::new(vec![example])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(loss: f64, grads: &[&[f32]]) -> Measured {
        Measured { loss, grads: grads.iter().map(|grad| grad.to_vec()).collect() }
    }

    #[test]
    fn every_planted_fault_is_found() {
        let reference = measured(2.0, &[&[1.0, -2.0], &[0.5]]);
        let nudged = f32::from_bits(0.5f32.to_bits() + 1);
        let cases: [(&str, Measured, f64, bool); 8] = [
            ("the same", measured(2.0, &[&[1.0, -2.0], &[0.5]]), 0.0, true),
            ("one bit", measured(2.0, &[&[1.0, -2.0], &[nudged]]), 0.0, false),
            ("one bit, allowed", measured(2.0, &[&[1.0, -2.0], &[nudged]]), 1e-4, true),
            ("too much", measured(2.0, &[&[1.0, -2.1], &[0.5]]), 1e-4, false),
            ("not a number", measured(2.0, &[&[1.0, f32::NAN], &[0.5]]), 1e-4, false),
            ("a gradient missing", measured(2.0, &[&[1.0, -2.0]]), 1e-4, false),
            ("another loss", measured(2.0 + 1e-9, &[&[1.0, -2.0], &[0.5]]), 0.0, false),
            ("no loss", measured(f64::NAN, &[&[1.0, -2.0], &[0.5]]), 0.0, false),
        ];
        for (what, other, tolerance, passes) in cases {
            assert_eq!(compare("test", &reference, &other, tolerance).passed(), passes, "{what}");
        }
        let broken = measured(2.0, &[&[f32::NAN]]);
        assert!(!compare("test", &broken, &broken, 0.0).passed(), "NaN equals nothing");
    }
}
