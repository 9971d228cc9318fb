//! Optimisers, learning-rate schedules and the global gradient norm, on arrays of any device.
//!
//! An optimiser knows no model and no tape: the trainer asks it for a [`ParamState`] per parameter
//! and hands each step the parameter, its gradient in `f32`, the learning rate and the factor that
//! clips the gradient. State lies where the parameter is, and each update is a kernel
//! ([`pt_engine::Kernel`]) in its optimiser's file; the host sees state when it is exported. Elementwise work runs in parallel over pieces of fixed size, so results do not
//! depend on the number of threads; random rounding is keyed by (seed, parameter name, step, element).
//!
//! | what | where |
//! | --- | --- |
//! | AdamW with `f32` or `bf16` state | [`adamw`] |
//! | AdamW with 8-bit state | [`adamw8bit`] |
//! | Muon for matrices, AdamW for the rest | [`muon`] |
//! | learning rate over steps | [`schedule`] |
//! | clipping, and the check for NaN gradients | [`global_norm`] |
//! | which parameters decay, LoRA+ | [`groups`] |
//!
//! Adding an optimiser: one file with its configuration, its [`Optimiser`] and its tests, and one
//! line in [`OPTIMISERS`].

pub mod adamw;
pub mod adamw8bit;
pub mod catalogue;
mod error;
pub mod global_norm;
pub mod groups;
pub mod muon;
mod newton_schulz;
pub mod schedule;
mod state;
mod storage;
#[cfg(test)]
mod testing;

pub use catalogue::{OPTIMISERS, OptimiserInfo};
pub use error::OptimError;
pub use global_norm::{clip_factor, global_norm};
pub use groups::{Groups, ParamSpec, Role};
pub use schedule::{SCHEDULES, Schedule, ScheduleConfig};
pub use state::{StateDtype, StateTensor};

use pt_engine::Array;

/// What one optimiser step has in common for all parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of this step, from 1.
    pub t: u64,
    /// Learning rate from the schedule; a parameter's own factor ([`ParamSpec::lr_scale`]) comes on top.
    pub lr: f64,
    /// Multiplies every gradient: the clipping factor.
    pub grad_scale: f32,
}

/// An optimiser: its settings, and a maker of per-parameter state.
pub trait Optimiser: Send + Sync + std::fmt::Debug {
    /// Its name in the catalogue.
    fn name(&self) -> &'static str;

    /// Fresh state for a parameter that holds `values` now, on their device.
    ///
    /// # Panics
    /// If the values are quantised or not as many as the parameter's shape says.
    fn state(&self, spec: &ParamSpec, values: &Array) -> Box<dyn ParamState>;

    /// Bytes [`Optimiser::state`] would hold for this parameter, without allocating it; `bf16` says
    /// that the parameter is stored so.
    fn state_bytes(&self, spec: &ParamSpec, bf16: bool) -> usize;
}

/// The optimiser's state for one parameter.
pub trait ParamState: Send {
    /// Updates `param` by its gradient, `f32` and on the same device. The gradient must be finite ([`global_norm`] checks
    /// that).
    ///
    /// # Panics
    /// If the lengths or the storage type are not those the state was made for, or `t` is 0.
    fn step(&mut self, step: Step, param: &mut Array, grad: &Array);

    /// The names of the tensors that [`ParamState::export`] gives.
    fn tensor_names(&self) -> Vec<String>;

    /// A host copy of everything a later [`ParamState::import`] needs to continue with the same bytes.
    fn export(&self) -> Vec<StateTensor>;

    /// Replaces the state by what [`ParamState::export`] gave.
    ///
    /// # Errors
    /// [`OptimError::State`] if a tensor is missing, unknown, or of another type or length.
    fn import(&mut self, tensors: &[StateTensor]) -> Result<(), OptimError>;

    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// The optimiser called `name` with the given options; missing ones take their defaults. `seed` is
/// the run's: it keys random rounding.
///
/// # Errors
/// [`OptimError::UnknownName`] or [`OptimError::UnknownOption`] with the nearest name,
/// [`OptimError::Option`] for a value of the wrong type or out of range.
pub fn build(name: &str, options: &toml::Table, seed: u64) -> Result<Box<dyn Optimiser>, OptimError> {
    let info = catalogue::find(name)?;
    catalogue::check_keys(name, info.options, options)?;
    (info.build)(options, seed)
}
