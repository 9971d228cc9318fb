//! A trainer's state as checkpoint tensors: what trains, and what the optimiser remembers of it.
//!
//! Frozen weights are not part of it: they are loaded from the base model, whose hash the plan holds.

use pt_engine::{Host, Param, Storage};
use pt_kernels::buffer::Buffer;
use pt_optim::{StateDtype, StateTensor};
use pt_run::{Checkpoint, DtypeTag, OwnedTensor, TensorEntry};

use crate::error::{Result, TrainError};
use crate::trainer::Trainer;

const PARAM: &str = "param.";
const STATE: &str = "state.";

impl Trainer {
    /// Every trainable parameter and its optimiser state.
    pub fn export(&self) -> impl Iterator<Item = TensorEntry<'static>> + '_ {
        self.trained().flat_map(|(param, state)| {
            let states = state.export().into_iter().map(|tensor| {
                let name = format!("{STATE}{}.{}", param.name, tensor.name);
                TensorEntry::new(name, dtype_tag(tensor.dtype), &[tensor.len], tensor.bytes)
            });
            std::iter::once(weight_entry(format!("{PARAM}{}", param.name), param)).chain(states)
        })
    }

    /// Continues from a checkpoint, with the same bytes as if it had never stopped.
    ///
    /// # Errors
    /// [`TrainError::Mismatch`] if the checkpoint belongs to another model, and those of the run folder and the
    /// optimiser's state for a tensor that is missing or of another type. The trainer is of no use then.
    pub fn import(&mut self, checkpoint: &mut Checkpoint) -> Result<()> {
        let steps_done = checkpoint.state.step;
        self.import_at(steps_done, &mut |name| Ok(checkpoint.take(name)?))?;
        match checkpoint.tensors.pop_first() {
            None => Ok(()),
            Some((name, tensor)) => {
                let found = format!("{:?}", tensor.shape);
                Err(TrainError::Mismatch { name, found, expected: "no such tensor".to_owned() })
            }
        }
    }

    /// Continues after `steps_done` steps from what [`Trainer::export`] gave then; `take` finds a tensor by its name.
    ///
    /// # Errors
    /// As [`Trainer::import`].
    pub fn import_at(
        &mut self,
        steps_done: u64,
        take: &mut dyn FnMut(&str) -> Result<OwnedTensor>,
    ) -> Result<()> {
        self.restore(steps_done, |param, state| {
            restore_weight(param, &take(&format!("{PARAM}{}", param.name))?)?;
            let prefix = format!("{STATE}{}.", param.name);
            let mut tensors = Vec::new();
            for name in state.tensor_names() {
                let tensor = take(&format!("{prefix}{name}"))?;
                let (dtype, len) = (state_dtype(tensor.dtype, &name)?, tensor.shape.iter().product());
                tensors.push(StateTensor { name, dtype, len, bytes: tensor.bytes });
            }
            Ok(state.import(&tensors)?)
        })
    }

    /// Puts the checkpoint's parameters in place, leaving optimiser state and step as they are: for writing out the best
    /// model at the end.
    ///
    /// # Errors
    /// [`TrainError::Mismatch`].
    pub fn import_params(&mut self, checkpoint: &mut Checkpoint) -> Result<()> {
        self.restore(self.steps_done(), |param, _| {
            restore_weight(param, &checkpoint.take(&format!("{PARAM}{}", param.name))?)
        })
    }
}

/// A parameter's values as a tensor of a checkpoint.
pub(crate) fn weight_entry(name: String, param: &Param) -> TensorEntry<'static> {
    match &*param.weight.to_host() {
        Host::F32(values) => TensorEntry::f32(name, &param.shape, values),
        Host::Bf16(values) => TensorEntry::bf16(name, &param.shape, values),
        other => unreachable!("{} parameters do not train", other.storage().name()),
    }
}

/// Puts a checkpoint's tensor in a parameter's place.
pub(crate) fn restore_weight(param: &mut Param, tensor: &OwnedTensor) -> Result<()> {
    let name = param.name.clone();
    if tensor.shape != param.shape {
        let (found, expected) = (format!("{:?}", tensor.shape), format!("{:?}", param.shape));
        return Err(TrainError::Mismatch { name, found, expected });
    }
    let values = match param.weight.storage() {
        Storage::F32 => Host::F32(Buffer::copy_of(&tensor.to_f32(&name)?)),
        Storage::Bf16 => Host::Bf16(Buffer::copy_of(&tensor.to_bf16(&name)?)),
        other => unreachable!("{} parameters do not train", other.name()),
    };
    param.weight.write(values);
    Ok(())
}

fn dtype_tag(dtype: StateDtype) -> DtypeTag {
    match dtype {
        StateDtype::F32 => DtypeTag::F32,
        StateDtype::Bf16 => DtypeTag::Bf16,
        StateDtype::U8 => DtypeTag::U8,
    }
}

fn state_dtype(tag: DtypeTag, name: &str) -> Result<StateDtype> {
    match tag {
        DtypeTag::F32 => Ok(StateDtype::F32),
        DtypeTag::Bf16 => Ok(StateDtype::Bf16),
        DtypeTag::U8 => Ok(StateDtype::U8),
        other => Err(TrainError::Mismatch {
            name: name.to_owned(),
            found: format!("{other:?}"),
            expected: "F32, Bf16 or U8".to_owned(),
        }),
    }
}
