//! Quantised storage formats, byte-compatible with bitsandbytes.
//!
//! Each format is one file: [`nf4`] (4-bit weights of QLoRA) with its checkpoint form in
//! [`nf4_state`], [`int8`] (row-wise 8-bit weights), and [`dynamic`] (the 8-bit codebook used for
//! double quantisation and for 8-bit optimiser states). Decoding is a pure function of one element's
//! block, so it does not matter in which pieces a matrix is decoded.

pub mod dynamic;
pub mod int8;
pub mod nf4;
pub mod nf4_state;

#[cfg(test)]
mod golden;

use std::collections::BTreeMap;

/// What can be wrong with values to quantise or with a stored quantised tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// A NaN or an infinity has no code.
    #[error(
        "element {index} is {value}: only finite values can be quantised; check where this weight comes from"
    )]
    NonFinite {
        /// Position in the flattened tensor.
        index: usize,
        /// What was found there.
        value: f32,
    },
    /// A buffer of the wrong length.
    #[error("{what} has {found} elements, expected {expected}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What the shape asks for.
        expected: usize,
    },
    /// A block size outside the format.
    #[error("block size {found} is not supported, expected one of {expected:?}")]
    Block {
        /// The block size asked for.
        found: usize,
        /// The ones the format has.
        expected: &'static [usize],
    },
    /// A state-dict entry that should be there and is not.
    #[error("tensor `{name}` is missing beside the quantised weight; found {found:?}")]
    Missing {
        /// The missing key.
        name: String,
        /// The keys that are there.
        found: Vec<String>,
    },
    /// A state-dict entry of the wrong type.
    #[error("tensor `{name}` has type {found:?}, expected {expected:?}")]
    Dtype {
        /// Its key.
        name: String,
        /// Its type.
        found: RawDtype,
        /// What the format stores.
        expected: RawDtype,
    },
    /// The `quant_state` JSON says something that is not understood.
    #[error("`{name}`: {problem}")]
    State {
        /// The key of the JSON tensor.
        name: String,
        /// What is wrong and what was expected.
        problem: String,
    },
}

/// The element type of a [`RawTensor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawDtype {
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit IEEE floats.
    F16,
}

impl RawDtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            RawDtype::U8 | RawDtype::I8 => 1,
            RawDtype::Bf16 | RawDtype::F16 => 2,
            RawDtype::F32 => 4,
        }
    }
}

/// A tensor as a checkpoint stores it: type, shape and little-endian bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTensor {
    /// Element type.
    pub dtype: RawDtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian content.
    pub bytes: Vec<u8>,
}

/// Tensors by name, without the module's prefix.
pub type StateDict = BTreeMap<String, RawTensor>;

impl RawTensor {
    /// A one-dimensional tensor of bytes.
    pub fn from_u8(bytes: Vec<u8>) -> RawTensor {
        RawTensor { dtype: RawDtype::U8, shape: vec![bytes.len()], bytes }
    }

    /// A one-dimensional tensor of floats.
    pub fn from_f32(values: &[f32]) -> RawTensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        RawTensor { dtype: RawDtype::F32, shape: vec![values.len()], bytes }
    }

    /// The content as floats.
    ///
    /// # Errors
    /// [`QuantError::Dtype`] if it is not `F32`, [`QuantError::Length`] if bytes are missing.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, QuantError> {
        self.expect(name, RawDtype::F32)?;
        Ok(self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Checks the element type and that the bytes fill the shape.
    pub(crate) fn expect(&self, name: &str, dtype: RawDtype) -> Result<(), QuantError> {
        if self.dtype != dtype {
            return Err(QuantError::Dtype { name: name.to_owned(), found: self.dtype, expected: dtype });
        }
        let expected = self.shape.iter().product::<usize>() * dtype.size();
        check_length("the bytes of a stored tensor", self.bytes.len(), expected)
    }
}

/// The entry `name`, or an error that lists what is there.
pub(crate) fn entry<'a>(dict: &'a StateDict, name: &str) -> Result<&'a RawTensor, QuantError> {
    dict.get(name)
        .ok_or_else(|| QuantError::Missing { name: name.to_owned(), found: dict.keys().cloned().collect() })
}

pub(crate) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), QuantError> {
    if found == expected { Ok(()) } else { Err(QuantError::Length { what, found, expected }) }
}

/// The first element that is not finite, as an error.
pub(crate) fn check_finite(values: &[f32]) -> Result<(), QuantError> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(QuantError::NonFinite { index, value: values[index] }),
    }
}

/// Largest magnitude of `values` (finite), 0 for none.
#[inline(always)]
pub(crate) fn absmax(values: &[f32]) -> f32 {
    // Magnitudes of floats order as their bits do, and integer maxima vectorise.
    f32::from_bits(values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff)))
}
