//! Optimiser state as checkpoints store it.

use crate::OptimError;
use half::bf16;
use pt_engine::{Array, Host, Storage};
use pt_kernels::buffer::{Buffer, Plain};

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
    /// A host copy of an array.
    pub(crate) fn of(name: String, array: &Array) -> StateTensor {
        match array.to_host().as_ref() {
            Host::F32(values) => StateTensor::new(name, values),
            Host::Bf16(values) => StateTensor::new(name, values),
            Host::U8(values) => StateTensor::new(name, values),
            Host::Nf4(_) | Host::Int8(_) => unreachable!("optimisers keep no quantised weights"),
        }
    }

    fn new<T: Bytes>(name: String, values: &[T]) -> StateTensor {
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
    pub(crate) fn check_names(&self, known: &[String]) -> Result<(), OptimError> {
        match self.tensors.iter().find(|t| !known.contains(&t.name)) {
            None => Ok(()),
            Some(t) => Err(self.error(format!("it holds `{}`, expected only {known:?}", t.name))),
        }
    }

    /// Copies tensor `name` over `into`.
    pub(crate) fn read(&self, name: &str, into: &mut Array) -> Result<(), OptimError> {
        let values = match into.storage() {
            Storage::F32 => Host::F32(self.values(name, into.len())?),
            Storage::Bf16 => Host::Bf16(self.values(name, into.len())?),
            Storage::U8 => Host::U8(self.values(name, into.len())?),
            Storage::Nf4 | Storage::Int8 => unreachable!("optimisers keep no quantised weights"),
        };
        into.write(values);
        Ok(())
    }

    /// The `len` values of tensor `name`.
    fn values<T: Bytes + Plain>(&self, name: &str, len: usize) -> Result<Buffer<T>, OptimError> {
        let found = self.tensors.iter().find(|t| t.name == name);
        let tensor = found.ok_or_else(|| self.error(format!("`{name}` is missing")))?;
        if (tensor.dtype, tensor.len, tensor.bytes.len()) != (T::DTYPE, len, len * T::SIZE) {
            let (dtype, n) = (tensor.dtype, tensor.len);
            let expected = format!("{len} of {:?}", T::DTYPE);
            return Err(self.error(format!("`{name}` holds {n} of {dtype:?}, expected {expected}")));
        }
        let mut out = Buffer::dirty(len);
        for (value, bytes) in out.iter_mut().zip(tensor.bytes.chunks_exact(T::SIZE)) {
            *value = T::read(bytes);
        }
        Ok(out)
    }
}
