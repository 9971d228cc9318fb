//! Optimiser state as checkpoints store it.

use crate::OptimError;
use half::bf16;

/// The element type of a [`StateTensor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// Codes.
    U8,
}

/// One tensor of a parameter's state: `name` is relative to the parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// Its name, for example `exp_avg`.
    pub name: String,
    /// Element type.
    pub dtype: StateDtype,
    /// Number of elements.
    pub len: usize,
    /// Little-endian content.
    pub bytes: Vec<u8>,
}

/// An element with exact little-endian bytes.
pub(crate) trait Bytes: Copy {
    const DTYPE: StateDtype;
    const SIZE: usize;
    fn write(self, out: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Self;
}

impl Bytes for f32 {
    const DTYPE: StateDtype = StateDtype::F32;
    const SIZE: usize = 4;
    fn write(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn read(bytes: &[u8]) -> Self {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Bytes for bf16 {
    const DTYPE: StateDtype = StateDtype::Bf16;
    const SIZE: usize = 2;
    fn write(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn read(bytes: &[u8]) -> Self {
        bf16::from_le_bytes([bytes[0], bytes[1]])
    }
}

impl Bytes for u8 {
    const DTYPE: StateDtype = StateDtype::U8;
    const SIZE: usize = 1;
    fn write(self, out: &mut Vec<u8>) {
        out.push(self);
    }
    fn read(bytes: &[u8]) -> Self {
        bytes[0]
    }
}

impl StateTensor {
    pub(crate) fn new<T: Bytes>(name: String, values: &[T]) -> StateTensor {
        let mut bytes = Vec::with_capacity(values.len() * T::SIZE);
        values.iter().for_each(|v| v.write(&mut bytes));
        StateTensor { name, dtype: T::DTYPE, len: values.len(), bytes }
    }
}

/// Saved tensors being read back for one parameter.
pub(crate) struct Saved<'a> {
    pub(crate) param: &'a str,
    pub(crate) tensors: &'a [StateTensor],
}

impl Saved<'_> {
    pub(crate) fn error(&self, problem: String) -> OptimError {
        OptimError::State { param: self.param.to_owned(), problem }
    }

    /// Refuses tensors that this state does not have.
    pub(crate) fn check_names(&self, known: &[StateTensor]) -> Result<(), OptimError> {
        match self.tensors.iter().find(|t| known.iter().all(|k| k.name != t.name)) {
            None => Ok(()),
            Some(t) => {
                let known: Vec<&str> = known.iter().map(|k| k.name.as_str()).collect();
                Err(self.error(format!("it holds `{}`, expected only {known:?}", t.name)))
            }
        }
    }

    /// Copies tensor `name` over `into`.
    pub(crate) fn read<T: Bytes>(&self, name: &str, into: &mut [T]) -> Result<(), OptimError> {
        let found = self.tensors.iter().find(|t| t.name == name);
        let tensor = found.ok_or_else(|| self.error(format!("`{name}` is missing")))?;
        if (tensor.dtype, tensor.len, tensor.bytes.len()) != (T::DTYPE, into.len(), into.len() * T::SIZE) {
            let (dtype, n) = (tensor.dtype, tensor.len);
            let expected = format!("{} of {:?}", into.len(), T::DTYPE);
            return Err(self.error(format!("`{name}` holds {n} of {dtype:?}, expected {expected}")));
        }
        for (value, bytes) in into.iter_mut().zip(tensor.bytes.chunks_exact(T::SIZE)) {
            *value = T::read(bytes);
        }
        Ok(())
    }
}
