//! The self-test of a recipe's arithmetic: one step, laid out in every way, must give one loss and one gradient.
//!
//! Losses are normalised over the whole step and every sum has a fixed order, so cutting a step into other micro-batches,
//! recomputing blocks, or using another number of threads changes nothing: not a bit in f32. In bf16 two neighbouring
//! tokens are multiplied at once, so a cut at an odd token pairs them otherwise, and sums over tokens (gradients of
//! weights) differ in their last bits. Another order of the rows is another order of those sums, in either type.

use pt_models::Model;
use pt_recipe::Recipe;
use pt_train::{MicroBatch, Trainer};

use crate::error::Result;
use crate::model::{load_base, load_tokenizer};
use crate::prepare::first_texts;
use crate::source::Surroundings;
use crate::stage::{prepare_model, stage_data, stage_trainer};

/// One layout of the step, compared with the first.
#[derive(Clone, Debug, PartialEq)]
pub struct LayoutResult {
    /// How the step was laid out.
    pub layout: &'static str,
    /// Its loss.
    pub loss: f64,
    /// Whether loss and every gradient are equal bit for bit.
    pub is_bitwise_equal: bool,
    /// Largest difference of a gradient's element, over the largest element of its tensor.
    pub worst_relative: f64,
    /// The largest difference that is no error: 0 where equality must be bitwise.
    pub tolerance: f64,
}

impl LayoutResult {
    /// Whether the layout agrees as well as it must.
    pub fn passed(&self) -> bool {
        self.is_bitwise_equal || self.worst_relative <= self.tolerance
    }
}

/// Sums of a step's tokens in another order: f32 rounding of a few thousand terms.
const OTHER_ORDER_F32: f64 = 1e-4;
/// In bf16, gradients of activations are stored in 8 bits on the way.
const OTHER_ORDER_BF16: f64 = 2e-2;

/// Lays out the first step of a recipe's first stage in several ways and compares losses and gradients. Steps are made
/// small by `--set stage.0.train.rows_per_step`.
///
/// # Errors
/// Those of data, model and training.
pub fn verify_invariance(recipe: &Recipe, surroundings: &Surroundings) -> Result<Vec<LayoutResult>> {
    let stage = &recipe.stage[0];
    let tokenizer = load_tokenizer(recipe, surroundings, || first_texts(recipe, surroundings))?;
    let mut data = stage_data(recipe, stage, &tokenizer, surroundings)?;
    let planned = data.steps.micro_batches(0)?;
    let mut model: Model = load_base(recipe, &tokenizer, surroundings)?;
    prepare_model(&mut model, recipe, stage)?;
    let schedule = pt_optim::ScheduleConfig::default().resolve(1)?;
    let mut trainer = stage_trainer(model, recipe, stage, schedule)?;
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
    let grads = trained.filter_map(|(id, _)| trainer.grads().get(id).map(<[f32]>::to_vec)).collect();
    Ok(Measured { loss: stats.loss, grads })
}

fn compare(layout: &'static str, reference: &Measured, other: &Measured, tolerance: f64) -> LayoutResult {
    let worst = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let scale = a.iter().fold(0.0f64, |scale, v| scale.max(f64::from(v.abs())));
        let difference =
            a.iter().zip(b).fold(0.0f64, |d, (a, b)| d.max((f64::from(*a) - f64::from(*b)).abs()));
        if difference == 0.0 { 0.0 } else { difference / scale.max(f64::MIN_POSITIVE) }
    };
    let worst_relative = reference.grads.iter().zip(&other.grads).map(worst).fold(0.0, f64::max);
    let bits = |values: &Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    // Losses are summed in f64 over the same numbers: their last bits depend on where the step was cut.
    let is_bitwise_equal = reference.grads.len() == other.grads.len()
        && reference.grads.iter().zip(&other.grads).all(|(a, b)| bits(a) == bits(b));
    LayoutResult { layout, loss: other.loss, is_bitwise_equal, worst_relative, tolerance }
}

fn joined(batches: &[MicroBatch]) -> MicroBatch {
    MicroBatch::new(batches.iter().flat_map(|batch| batch.examples().iter().cloned()).collect())
}

fn one_by_one(batches: &[MicroBatch]) -> Vec<MicroBatch> {
    let examples = batches.iter().flat_map(|batch| batch.examples().iter().cloned());
    examples.map(|example| MicroBatch::new(vec![example])).collect()
}
