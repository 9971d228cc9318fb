//! A reference that follows the policy: TR-DPO's soft and hard updates.
//!
//! ```text
//! θ_ref ← α θ + (1 − α) θ_ref          after every n-th step; α = 1 is a hard update
//! ```
//!
//! Source: Gorbatovski et al. 2024, "Learn your reference model for real good alignment" (arXiv:2404.09656), equations 4 and 5; TRL's
//! `SyncRefModelCallback`. θ is what trains: all weights, or the matrices of an adapter beside a frozen base that both models share.
//! (TRL refuses adapters here.) Sums are taken in `f64` and rounded once, to the type the reference is stored in.

use std::collections::BTreeMap;

use pt_engine::{Param, Storage, Weight};
use pt_models::Model;
use pt_run::{OwnedTensor, TensorEntry};
use rayon::prelude::*;

use crate::error::{Result, TrainError};
use crate::state::{restore_weight, weight_entry};

/// When and how far a reference follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceSync {
    /// Steps between updates.
    pub steps: u64,
    /// α: the policy's share in the mixture.
    pub mixup_alpha: f64,
}

impl ReferenceSync {
    /// Whether one of `n` steps, the last of which was step `steps_done` (from 1), was the time of an update.
    pub fn is_due(&self, steps_done: u64, n: u64) -> bool {
        steps_done / self.steps > steps_done.saturating_sub(n) / self.steps
    }

    /// Moves the reference towards the policy, in every parameter that trains in the policy.
    ///
    /// # Errors
    /// [`TrainError::Reference`] if the reference has not the policy's parameters; it is unchanged then.
    pub fn update(&self, reference: &mut Model, policy: &Model) -> Result<()> {
        let pairs = pairs(reference, policy)?;
        let mut targets: Vec<Option<&mut Param>> =
            reference.params.iter_mut().map(|(_, param)| Some(param)).collect();
        let sources: Vec<&Param> = policy.params.iter().map(|(_, param)| param).collect();
        for (to, from) in pairs {
            let target = targets[to].take().expect("each parameter once");
            self.mix(target, sources[from]);
        }
        Ok(())
    }

    fn mix(&self, target: &mut Param, source: &Param) {
        let alpha = self.mixup_alpha;
        let [mut values, source] = [&*target, source].map(|param| param.weight.to_f32());
        let mixed = |to: f32, from: f32| (alpha * f64::from(from) + (1.0 - alpha) * f64::from(to)) as f32;
        values.par_iter_mut().zip(&source).for_each(|(to, from)| *to = mixed(*to, *from));
        target.set_weight(match target.weight.storage() {
            Storage::Bf16 => Weight::bf16_from_f32(&values),
            _ => Weight::from_f32(&values),
        });
    }
}

/// Places in the reference and in the policy of every parameter that trains.
fn pairs(reference: &Model, policy: &Model) -> Result<Vec<(usize, usize)>> {
    let found: Vec<&Param> = reference.params.iter().map(|(_, param)| param).collect();
    let trained = policy.params.iter().enumerate().filter(|(_, (_, param))| param.trainable);
    let pair = |(from, (_, param)): (usize, (_, &Param))| {
        let to = found.iter().position(|other| other.name == param.name);
        let problem = match to.map(|to| found[to]) {
            None => "no such weight".to_owned(),
            Some(other) if other.shape != param.shape => format!("{:?}", other.shape),
            Some(other) if other.weight.is_quantised() => "quantised values".to_owned(),
            Some(_) => return Ok((to.expect("just found"), from)),
        };
        let (name, expected) = (param.name.clone(), format!("{:?}, not quantised", param.shape));
        Err(TrainError::Reference { name, found: problem, expected })
    };
    trained.map(pair).collect()
}

/// A reference that follows the policy, with what a checkpoint keeps of it.
#[derive(Debug)]
pub struct FollowingReference {
    /// The reference as it is now.
    pub model: Model,
    sync: ReferenceSync,
    /// What moves: the parameters that train in the policy.
    moving: Vec<String>,
}

impl FollowingReference {
    /// A reference that begins as `model`.
    ///
    /// # Errors
    /// [`TrainError::Reference`] if it has not the policy's parameters.
    pub fn new(mut model: Model, policy: &Model, sync: ReferenceSync) -> Result<FollowingReference> {
        pairs(&model, policy)?;
        model.freeze();
        let trained = policy.params.iter().filter(|(_, param)| param.trainable);
        let moving = trained.map(|(_, param)| param.name.clone()).collect();
        Ok(FollowingReference { model, sync, moving })
    }

    /// Follows the policy if one of its last `n` steps was the time to; `steps_done` are its steps so far.
    ///
    /// # Errors
    /// As [`ReferenceSync::update`].
    pub fn follow(&mut self, policy: &Model, steps_done: u64, n: u64) -> Result<()> {
        match self.sync.is_due(steps_done, n) {
            true => self.sync.update(&mut self.model, policy),
            false => Ok(()),
        }
    }

    /// What moves, for a checkpoint.
    pub fn tensors(&self) -> Vec<TensorEntry<'static>> {
        let moving = self.model.params.iter().filter(|(_, param)| self.moving.contains(&param.name));
        moving.map(|(_, param)| weight_entry(format!("{REFERENCE}{}", param.name), param)).collect()
    }

    /// Puts back what [`FollowingReference::tensors`] gave.
    ///
    /// # Errors
    /// [`TrainError::Mismatch`] for a tensor that is missing or of another shape.
    pub fn restore(&mut self, tensors: &BTreeMap<String, OwnedTensor>) -> Result<()> {
        for (_, param) in self.model.params.iter_mut().filter(|(_, param)| self.moving.contains(&param.name))
        {
            let name = format!("{REFERENCE}{}", param.name);
            let missing = || TrainError::Mismatch {
                name: name.clone(),
                found: "no such tensor".to_owned(),
                expected: format!("{:?}", param.shape),
            };
            restore_weight(param, tensors.get(&name).ok_or_else(missing)?)?;
        }
        Ok(())
    }
}

/// What the names of the reference's tensors begin with.
const REFERENCE: &str = "reference.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_fall_on_multiples() {
        let sync = ReferenceSync { steps: 4, mixup_alpha: 0.6 };
        let due: Vec<u64> = (0..13).filter(|step| sync.is_due(*step, 1)).collect();
        assert_eq!(due, [4, 8, 12]);
        // Three steps at a time: an update where a multiple was passed on the way.
        let due: Vec<u64> = (0..13).step_by(3).filter(|step| sync.is_due(*step, 3)).collect();
        assert_eq!(due, [6, 9, 12]);
        // And six at a time, one update for the two that were passed.
        assert!(sync.is_due(12, 6) && sync.is_due(6, 6));
    }
}
