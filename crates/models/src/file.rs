//! One safetensors file, read tensor by tensor.
//!
//! Tensors are read by position with ordinary reads, a piece at a time, and converted on the way. That costs one copy
//! through the page cache compared with a memory map, and in exchange a file that shrinks while it is read is an
//! error, not a crash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use pt_engine::{Dtype, Host};
use pt_kernels::buffer::Buffer;
use pt_kernels::elem::Elem;
use pt_kernels::quant::{RawDtype, RawTensor};
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{ModelError, Result};

/// Longest header believed, as in the format's specification.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;

/// An open safetensors file.
#[derive(Debug)]
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    file: File,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl WeightFile {
    /// Opens a file and checks its header against its length.
    pub(crate) fn open(path: &Path) -> Result<WeightFile> {
        let mut file = File::open(path).map_err(ModelError::io(path, "opening"))?;
        let found_bytes = file.metadata().map_err(ModelError::io(path, "opening"))?.len();
        let bad = |problem: String| ModelError::BadFile { file: path.to_owned(), problem };
        let mut length = [0; 8];
        if found_bytes < 8 {
            return Err(ModelError::Truncated { file: path.to_owned(), found_bytes, expected_bytes: 8 });
        }
        file.read_exact(&mut length).map_err(ModelError::io(path, "reading"))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(bad(format!(
                "its first eight bytes give a header of {header_bytes} bytes: this is not a safetensors file (a Git LFS \
                 pointer or a web page, perhaps); download it again"
            )));
        }
        let data_start = 8 + header_bytes;
        if found_bytes < data_start {
            return Err(ModelError::Truncated {
                file: path.to_owned(),
                found_bytes,
                expected_bytes: data_start,
            });
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(ModelError::io(path, "reading"))?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| bad(format!("its header is damaged ({error}); download or copy it again")))?;
        let expected_bytes = data_start + metadata.data_len() as u64;
        if found_bytes != expected_bytes {
            return Err(ModelError::Truncated { file: path.to_owned(), found_bytes, expected_bytes });
        }
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(WeightFile { path: path.to_owned(), file, data_start, tensors })
    }

    /// The names of all tensors, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type and shape of a tensor of this file.
    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Checks a tensor's shape.
    pub(crate) fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        let found = &self.known(name).shape;
        if found == expected {
            return Ok(());
        }
        Err(ModelError::WrongShape {
            file: self.path.clone(),
            tensor: name.to_owned(),
            found: found.clone(),
            expected: expected.to_owned(),
        })
    }

    /// A floating-point tensor in the type asked for, or in its own (`f16` as `f32`, which holds it exactly).
    pub(crate) fn weight(&mut self, name: &str, dtype: Option<Dtype>) -> Result<Host> {
        let own = if self.known(name).dtype == StoredDtype::BF16 { Dtype::Bf16 } else { Dtype::F32 };
        Ok(match dtype.unwrap_or(own) {
            Dtype::F32 => Host::F32(self.values(name)?),
            Dtype::Bf16 => Host::Bf16(self.values(name)?),
        })
    }

    /// The values of a floating-point tensor, all finite.
    pub(crate) fn values<E: Elem + pt_kernels::buffer::Plain>(&mut self, name: &str) -> Result<Buffer<E>> {
        let info = self.known(name).clone();
        let mut out = Buffer::<E>::dirty(info.shape.iter().product());
        match info.dtype {
            StoredDtype::F32 => self.convert(&info, &mut out, f32::from_le_bytes)?,
            StoredDtype::BF16 => self.convert(&info, &mut out, |b| Elem::get(bf16::from_le_bytes(b)))?,
            StoredDtype::F16 => self.convert(&info, &mut out, |b| f16::from_le_bytes(b).to_f32())?,
            StoredDtype::F64 => self.convert(&info, &mut out, |b| f64::from_le_bytes(b) as f32)?,
            _ => return Err(self.wrong_dtype(name, "F64, F32, F16 or BF16")),
        }
        match out.iter().position(|value| !value.get().is_finite()) {
            None => Ok(out),
            Some(index) => Err(ModelError::NonFinite {
                file: self.path.clone(),
                tensor: name.to_owned(),
                index,
                value: out[index].get(),
            }),
        }
    }

    /// A tensor as it is stored.
    pub(crate) fn raw(&mut self, name: &str) -> Result<RawTensor> {
        let info = self.known(name).clone();
        let dtype = match info.dtype {
            StoredDtype::U8 => RawDtype::U8,
            StoredDtype::I8 => RawDtype::I8,
            StoredDtype::F32 => RawDtype::F32,
            StoredDtype::BF16 => RawDtype::Bf16,
            StoredDtype::F16 => RawDtype::F16,
            _ => return Err(self.wrong_dtype(name, "U8, I8, F32, F16 or BF16")),
        };
        let mut bytes = Vec::with_capacity(info.data_offsets.1 - info.data_offsets.0);
        self.pieces(&info, |piece| bytes.extend_from_slice(piece))?;
        Ok(RawTensor { dtype, shape: info.shape, bytes })
    }

    pub(crate) fn wrong_dtype(&self, name: &str, expected: &str) -> ModelError {
        ModelError::WrongDtype {
            file: self.path.clone(),
            tensor: name.to_owned(),
            found: format!("{:?}", self.known(name).dtype),
            expected: expected.to_owned(),
        }
    }

    fn known(&self, name: &str) -> &TensorInfo {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("{name} is asked of {} and not in it", self.path.display()))
    }

    /// Elements of `N` bytes, as they arrive.
    fn convert<E: Elem, const N: usize>(
        &mut self,
        info: &TensorInfo,
        out: &mut [E],
        decode: impl Fn([u8; N]) -> f32,
    ) -> Result<()> {
        let mut rest = out;
        self.pieces(info, |bytes| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(bytes.len() / N);
            for (out, bytes) in now.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *out = E::put(decode(*bytes));
            }
            rest = later;
        })
    }

    fn pieces(&mut self, info: &TensorInfo, mut take: impl FnMut(&[u8])) -> Result<()> {
        let (start, end) = info.data_offsets;
        let seek = SeekFrom::Start(self.data_start + start as u64);
        self.file.seek(seek).map_err(ModelError::io(&self.path, "seeking"))?;
        let mut piece = vec![0; PIECE_BYTES.min(end - start)];
        let mut left = end - start;
        while left > 0 {
            let n = left.min(piece.len());
            self.file.read_exact(&mut piece[..n]).map_err(ModelError::io(&self.path, "reading"))?;
            take(&piece[..n]);
            left -= n;
        }
        Ok(())
    }
}
