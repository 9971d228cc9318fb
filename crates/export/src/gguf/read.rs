//! Reading, with every length checked against the file before it is believed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{ALIGNMENT, MAGIC, Metadata, VERSION, Value};
use crate::error::{ExportError, Result};
use crate::quant::TensorType;

/// Lists inside lists believed; none is known to be used.
const MAX_DEPTH: usize = 4;
/// Dimensions of a tensor that ggml has.
const MAX_DIMENSIONS: u32 = 4;

/// Where a tensor is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// `[rows, columns]` or `[n]`.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub kind: TensorType,
    offset: u64,
}

impl TensorInfo {
    fn n_bytes(&self) -> usize {
        self.kind.bytes_of(self.shape.iter().product())
    }
}

/// An opened file: its metadata and where its tensors are.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    data_at: u64,
}

impl GgufFile {
    /// Reads everything but the tensors' values.
    ///
    /// # Errors
    /// [`ExportError::Io`], [`ExportError::BadFile`].
    pub fn open(path: &Path) -> Result<GgufFile> {
        let file = File::open(path).map_err(ExportError::io(path, "opening"))?;
        let len = file.metadata().map_err(ExportError::io(path, "reading"))?.len();
        let mut source = Source { reader: BufReader::new(file), at: 0, len };
        let opened = read_all(path, &mut source);
        opened.map_err(|problem| ExportError::BadFile {
            file: path.to_owned(),
            problem: format!("{problem} (byte {} of {len})", source.at),
        })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|i| &self.tensors[*i])
    }

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// [`ExportError::BadFile`] if there is none of that name; [`ExportError::Io`].
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.tensor(name).ok_or_else(|| self.bad(format!("it has no tensor `{name}`")))?;
        let mut bytes = vec![0; info.n_bytes()];
        let mut read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.data_at + info.offset))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(ExportError::io(&self.path, "reading"))?;
        Ok(bytes)
    }

    /// A tensor's values.
    ///
    /// # Errors
    /// As [`GgufFile::bytes`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.bytes(name)?;
        Ok(self.tensor(name).expect("its bytes were read").kind.dequantise(&bytes))
    }

    pub(crate) fn bad(&self, problem: String) -> ExportError {
        ExportError::BadFile { file: self.path.clone(), problem }
    }
}

struct Source {
    reader: BufReader<File>,
    at: u64,
    len: u64,
}

type Read1<T> = std::result::Result<T, String>;

impl Source {
    fn bytes<const N: usize>(&mut self) -> Read1<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| format!("{N} bytes were expected: {error}"))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Read1<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Read1<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A count of things that take at least `each` bytes, which must be there.
    fn count(&mut self, each: u64, what: &str) -> Read1<usize> {
        let n = self.u64()?;
        if n.checked_mul(each).is_none_or(|bytes| bytes > self.len - self.at.min(self.len)) {
            return Err(format!("{n} {what} do not fit the file"));
        }
        Ok(n as usize)
    }

    fn text(&mut self) -> Read1<String> {
        let n = self.count(1, "bytes of text")?;
        let mut bytes = vec![0; n];
        self.reader.read_exact(&mut bytes).map_err(|error| format!("a text of {n} bytes: {error}"))?;
        self.at += n as u64;
        String::from_utf8(bytes).map_err(|error| format!("a text that is not UTF-8: {error}"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Read1<Value> {
        Ok(match kind {
            0 => Value::U8(self.bytes::<1>()?[0]),
            1 => Value::I8(self.bytes::<1>()?[0] as i8),
            2 => Value::U16(u16::from_le_bytes(self.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(self.u32()? as i32),
            6 => Value::F32(f32::from_le_bytes(self.bytes()?)),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let n = self.count(1, "values of a list")?;
                let list: Read1<Vec<Value>> = (0..n).map(|_| self.value(kind, depth + 1)).collect();
                Value::List(list?)
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(self.u64()? as i64),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(format!("a value of type {kind} at depth {depth}")),
        })
    }

    fn tensor(&mut self) -> Read1<TensorInfo> {
        let name = self.text()?;
        let n_dimensions = self.u32()?;
        if n_dimensions > MAX_DIMENSIONS {
            return Err(format!("tensor `{name}` has {n_dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dimensions {
            shape.push(self.u64()? as usize);
        }
        shape.reverse();
        let id = self.u32()?;
        let kind =
            TensorType::from_id(id).ok_or_else(|| format!("tensor `{name}` has type {id}, unknown here"))?;
        let offset = self.u64()?;
        let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let row = shape.last().copied().unwrap_or(1);
        // No packed type has more than 64 values a byte, so this also keeps sizes from overflowing.
        let fits = n.is_some_and(|n| (n as u64) < self.len.saturating_mul(64))
            && row.is_multiple_of(kind.block_len());
        if !fits {
            return Err(format!("tensor `{name}` of shape {shape:?} and type {} does not fit", kind.name()));
        }
        Ok(TensorInfo { name, shape, kind, offset })
    }
}

fn read_all(path: &Path, source: &mut Source) -> Read1<GgufFile> {
    if source.bytes::<4>()? != *MAGIC {
        return Err("it does not begin with GGUF".to_owned());
    }
    let version = source.u32()?;
    if version != VERSION && version != 2 {
        return Err(format!("version {version}; expected {VERSION}"));
    }
    // The least an entry takes: a name's length, dimensions, type, offset; or a name's length and a type.
    let n_tensors = source.count(24, "tensors")?;
    let n_entries = source.count(12, "metadata entries")?;
    let mut metadata = Metadata::default();
    for _ in 0..n_entries {
        let key = source.text()?;
        let kind = source.u32()?;
        let value = source.value(kind, 0).map_err(|problem| format!("`{key}`: {problem}"))?;
        metadata.0.push((key, value));
    }
    let alignment = metadata.get("general.alignment").and_then(Value::as_u64).unwrap_or(ALIGNMENT);
    if alignment == 0 || alignment > 1 << 20 {
        return Err(format!("an alignment of {alignment}"));
    }
    let (mut tensors, mut by_name) = (Vec::new(), HashMap::new());
    for i in 0..n_tensors {
        let tensor = source.tensor()?;
        if by_name.insert(tensor.name.clone(), i).is_some() {
            return Err(format!("tensor `{}` is there twice", tensor.name));
        }
        tensors.push(tensor);
    }
    let data_at = source.at.next_multiple_of(alignment);
    for tensor in &tensors {
        let end = data_at.checked_add(tensor.offset).and_then(|at| at.checked_add(tensor.n_bytes() as u64));
        if end.is_none_or(|end| end > source.len) {
            return Err(format!("tensor `{}` ends behind the file", tensor.name));
        }
    }
    Ok(GgufFile { path: path.to_owned(), metadata, tensors, by_name, data_at })
}
