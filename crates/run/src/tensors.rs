//! Named tensors in a safetensors file, streamed.
//!
//! The header is the `safetensors` crate's; the data is written and read tensor by tensor, so a
//! file of borrowed tensors needs no second copy of them in memory, and its hash is known when
//! the last byte is written.

use crate::error::{Result, RunError};
use half::bf16;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

/// The element types a checkpoint holds. Multi-byte elements are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DtypeTag {
    F64,
    F32,
    Bf16,
    F16,
    U64,
    I64,
    U32,
    I32,
    U16,
    I16,
    U8,
    I8,
    Bool,
}

impl DtypeTag {
    /// Every tag with its safetensors type.
    const ALL: &[(DtypeTag, Dtype)] = &[
        (DtypeTag::F64, Dtype::F64),
        (DtypeTag::F32, Dtype::F32),
        (DtypeTag::Bf16, Dtype::BF16),
        (DtypeTag::F16, Dtype::F16),
        (DtypeTag::U64, Dtype::U64),
        (DtypeTag::I64, Dtype::I64),
        (DtypeTag::U32, Dtype::U32),
        (DtypeTag::I32, Dtype::I32),
        (DtypeTag::U16, Dtype::U16),
        (DtypeTag::I16, Dtype::I16),
        (DtypeTag::U8, Dtype::U8),
        (DtypeTag::I8, Dtype::I8),
        (DtypeTag::Bool, Dtype::BOOL),
    ];

    /// Bytes per element.
    pub fn bytes(self) -> usize {
        self.to_safetensors().bitsize() / 8
    }

    fn to_safetensors(self) -> Dtype {
        let entry = Self::ALL.iter().find(|(tag, _)| *tag == self);
        entry.expect("every tag is in the table").1
    }

    fn from_safetensors(dtype: Dtype) -> Option<DtypeTag> {
        Self::ALL.iter().find(|(_, known)| *known == dtype).map(|(tag, _)| *tag)
    }
}

/// A tensor to be written: borrowed where the caller has its bytes, owned where it had to make them.
#[derive(Clone, Debug)]
pub struct TensorEntry<'a> {
    /// Unique within its file.
    pub name: String,
    /// Element type.
    pub dtype: DtypeTag,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TensorEntry<'a> {
    /// A tensor of raw little-endian bytes.
    pub fn new(
        name: impl Into<String>,
        dtype: DtypeTag,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        TensorEntry { name: name.into(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }

    /// An `f32` tensor, copied.
    pub fn f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> TensorEntry<'static> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorEntry::new(name, DtypeTag::F32, shape, bytes)
    }

    /// A `bf16` tensor, copied.
    pub fn bf16(name: impl Into<String>, shape: &[usize], values: &[bf16]) -> TensorEntry<'static> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorEntry::new(name, DtypeTag::Bf16, shape, bytes)
    }

    /// A `u64` tensor, copied.
    pub fn u64(name: impl Into<String>, shape: &[usize], values: &[u64]) -> TensorEntry<'static> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorEntry::new(name, DtypeTag::U64, shape, bytes)
    }
}

/// A tensor that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedTensor {
    /// Element type.
    pub dtype: DtypeTag,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

impl OwnedTensor {
    /// The values of an `f32` tensor; `name` is for the message.
    ///
    /// # Errors
    /// [`RunError::TensorMismatch`] for another type.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.expect(name, DtypeTag::F32)?;
        Ok(self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// The values of a `bf16` tensor; `name` is for the message.
    ///
    /// # Errors
    /// [`RunError::TensorMismatch`] for another type.
    pub fn to_bf16(&self, name: &str) -> Result<Vec<bf16>> {
        self.expect(name, DtypeTag::Bf16)?;
        Ok(self.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
    }

    /// The values of a `u64` tensor; `name` is for the message.
    ///
    /// # Errors
    /// [`RunError::TensorMismatch`] for another type.
    pub fn to_u64(&self, name: &str) -> Result<Vec<u64>> {
        self.expect(name, DtypeTag::U64)?;
        Ok(self.bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
    }

    /// Element `index` as people read it, with its bits where that says more.
    pub(crate) fn display(&self, index: usize) -> String {
        let n = self.dtype.bytes();
        let bytes = &self.bytes[index * n..(index + 1) * n];
        let bits: String = bytes.iter().rev().map(|b| format!("{b:02x}")).collect();
        let value = match (self.dtype, bytes) {
            (DtypeTag::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (DtypeTag::Bf16, &[a, b]) => f64::from(bf16::from_le_bytes([a, b])),
            (DtypeTag::F16, &[a, b]) => f64::from(half::f16::from_le_bytes([a, b])),
            _ => return format!("0x{bits}"),
        };
        format!("{value:e} (0x{bits})")
    }

    fn expect(&self, name: &str, dtype: DtypeTag) -> Result<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        Err(RunError::TensorMismatch {
            name: name.to_owned(),
            expected: format!("{dtype:?}"),
            found: format!("{:?}", self.dtype),
        })
    }
}

/// Writes `entries` to a new safetensors file, in order of type and name, and returns its length
/// and BLAKE3 in hexadecimal.
///
/// The file is not published atomically: write it inside a folder that is.
///
/// # Errors
/// [`RunError::DuplicateTensor`], [`RunError::TensorSize`], [`RunError::Io`].
pub fn write_tensors<'a>(
    path: &Path,
    entries: impl IntoIterator<Item = TensorEntry<'a>>,
) -> Result<(u64, String)> {
    let mut entries: Vec<TensorEntry<'a>> = entries.into_iter().collect();
    // Widest elements first keeps every tensor aligned, as the format's own writer does.
    entries.sort_by(|a, b| b.dtype.bytes().cmp(&a.dtype.bytes()).then_with(|| a.name.cmp(&b.name)));
    check_entries(path, &entries)?;
    let header = header_of(path, &entries)?;
    let file = File::create(path).map_err(RunError::io("create", path))?;
    let mut writer =
        Hashing { inner: BufWriter::with_capacity(1 << 20, file), hasher: blake3::Hasher::new() };
    let written = (|| {
        let mut n = 8 + header.len() as u64;
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for entry in &entries {
            writer.write_all(&entry.bytes)?;
            n += entry.bytes.len() as u64;
        }
        writer.flush()?;
        Ok(n)
    })()
    .map_err(RunError::io("write", path))?;
    Ok((written, writer.hasher.finalize().to_hex().to_string()))
}

/// Reads every tensor of a safetensors file, each into its own buffer.
///
/// # Errors
/// [`RunError::Io`]; [`RunError::Corrupt`] when the file is not what its header says.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, OwnedTensor>> {
    let file = File::open(path).map_err(RunError::io("open", path))?;
    let file_len = file.metadata().map_err(RunError::io("read", path))?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let metadata = read_header(path, &mut reader, file_len)?;
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("a listed name has its info");
        let dtype = DtypeTag::from_safetensors(info.dtype)
            .ok_or_else(|| corrupt(path, format!("tensor `{name}` has the unknown type {:?}", info.dtype)))?;
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        reader.read_exact(&mut bytes).map_err(RunError::io("read", path))?;
        tensors.insert(name, OwnedTensor { dtype, shape: info.shape.clone(), bytes });
    }
    Ok(tensors)
}

fn check_entries(path: &Path, entries: &[TensorEntry<'_>]) -> Result<()> {
    let mut names = std::collections::BTreeSet::new();
    for entry in entries {
        let expected = entry.shape.iter().product::<usize>() * entry.dtype.bytes();
        if expected != entry.bytes.len() {
            return Err(RunError::TensorSize {
                name: entry.name.clone(),
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                expected,
                found: entry.bytes.len(),
            });
        }
        if !names.insert(entry.name.as_str()) {
            return Err(RunError::DuplicateTensor { path: path.to_owned(), name: entry.name.clone() });
        }
    }
    Ok(())
}

/// The JSON header, padded to eight bytes.
fn header_of(path: &Path, entries: &[TensorEntry<'_>]) -> Result<Vec<u8>> {
    let mut offset = 0;
    let mut infos = Vec::with_capacity(entries.len());
    for entry in entries {
        let end = offset + entry.bytes.len();
        let dtype = entry.dtype.to_safetensors();
        infos.push((
            entry.name.clone(),
            TensorInfo { dtype, shape: entry.shape.clone(), data_offsets: (offset, end) },
        ));
        offset = end;
    }
    let encode = |error: String| RunError::io("encode the header of", path)(std::io::Error::other(error));
    let metadata = Metadata::new(None, infos).map_err(|e| encode(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| encode(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn read_header(path: &Path, reader: &mut impl Read, file_len: u64) -> Result<Metadata> {
    let io = |e| RunError::io("read", path)(e);
    if file_len < 8 {
        return Err(corrupt(path, format!("{file_len} bytes are too few for a safetensors file")));
    }
    let mut len = [0; 8];
    reader.read_exact(&mut len).map_err(io)?;
    let header_len = u64::from_le_bytes(len);
    if header_len > file_len - 8 {
        return Err(corrupt(
            path,
            format!("a header of {header_len} bytes does not fit a file of {file_len}"),
        ));
    }
    let mut header = vec![0; header_len as usize];
    reader.read_exact(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| corrupt(path, e.to_string()))?;
    let expected = 8 + header_len + metadata.data_len() as u64;
    if expected != file_len {
        return Err(corrupt(path, format!("the header describes {expected} bytes, the file has {file_len}")));
    }
    Ok(metadata)
}

fn corrupt(path: &Path, problem: String) -> RunError {
    RunError::Corrupt { path: path.to_owned(), problem }
}

/// Hashes what passes through.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<TensorEntry<'static>> {
        vec![
            TensorEntry::f32("b", &[2, 2], &[1.0, -0.0, f32::NAN, f32::MIN_POSITIVE]),
            TensorEntry::bf16("a", &[3], &[bf16::from_f32(0.1), bf16::INFINITY, bf16::ZERO]),
            TensorEntry::u64("n", &[], &[u64::MAX]),
            TensorEntry::new("codes", DtypeTag::U8, &[5], vec![0, 1, 2, 254, 255]),
            TensorEntry::new("empty", DtypeTag::F32, &[0, 7], vec![]),
        ]
    }

    #[test]
    fn tensors_come_back_bit_for_bit_and_the_hash_is_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let (n, hash) = write_tensors(&path, sample()).unwrap();
        assert_eq!(n, std::fs::metadata(&path).unwrap().len());
        assert_eq!(hash, pt_core::hash::of_file(&path).unwrap());
        let read = read_tensors(&path).unwrap();
        assert_eq!(read.len(), 5);
        for entry in sample() {
            let tensor = &read[&entry.name];
            assert_eq!((tensor.dtype, &tensor.shape), (entry.dtype, &entry.shape), "{}", entry.name);
            assert_eq!(tensor.bytes, *entry.bytes, "{}", entry.name);
        }
        assert_eq!(read["a"].to_bf16("a").unwrap()[1], bf16::INFINITY);
        assert_eq!(read["b"].to_f32("b").unwrap()[0], 1.0);
        assert!(read["b"].to_u64("b").unwrap_err().to_string().contains("expected U64, found F32"));
    }

    /// The file must open in every other reader of the format: here, the crate's own.
    #[test]
    fn the_file_is_one_the_safetensors_crate_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        write_tensors(&path, sample()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), 5);
        assert_eq!(theirs.tensor("codes").unwrap().data(), [0, 1, 2, 254, 255]);
        assert_eq!(theirs.tensor("a").unwrap().dtype(), Dtype::BF16);
    }

    #[test]
    fn wrong_sizes_and_repeated_names_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let wrong = TensorEntry::new("w", DtypeTag::F32, &[2], vec![0; 7]);
        let message = write_tensors(&path, [wrong]).unwrap_err().to_string();
        assert!(message.contains("`w`") && message.contains("needs 8 bytes, got 7"), "{message}");
        let twice = ["x", "x"].map(|name| TensorEntry::f32(name, &[1], &[0.0]));
        assert!(write_tensors(&path, twice).unwrap_err().to_string().contains("given twice"));
        assert!(!path.exists());
    }
}
