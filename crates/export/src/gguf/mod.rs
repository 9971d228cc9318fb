//! GGUF files, version 3: typed metadata, and tensors at aligned positions.
//!
//! Source: the ggml project's specification of the format. Little-endian. What a model's metadata and tensors are called
//! is in [`crate::layout`]; this module knows containers only.

mod read;
mod write;

pub use read::GgufFile;
pub use write::{TensorSource, write};

/// The first four bytes.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// The only version written, and with 2 those read.
pub(crate) const VERSION: u32 = 3;
/// Where tensors begin, and each of them: at multiples of this.
pub(crate) const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// 8 bits, unsigned.
    U8(u8),
    /// 8 bits, signed.
    I8(i8),
    /// 16 bits, unsigned.
    U16(u16),
    /// 16 bits, signed.
    I16(i16),
    /// 32 bits, unsigned.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// A 32-bit float.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type. An empty list is written as one of 32-bit numbers.
    List(Vec<Value>),
    /// 64 bits, unsigned.
    U64(u64),
    /// 64 bits, signed.
    I64(i64),
    /// A 64-bit float.
    F64(f64),
}

impl Value {
    /// The number of its type in files.
    pub(crate) fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::Text(_) => 8,
            Value::List(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A text.
    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(flag) = self { Some(*flag) } else { None }
    }

    /// A list.
    pub fn as_list(&self) -> Option<&[Value]> {
        if let Value::List(list) = self { Some(list) } else { None }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Value {
        Value::U32(n)
    }
}

impl From<f32> for Value {
    fn from(x: f32) -> Value {
        Value::F32(x)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Bool(flag)
    }
}

/// Metadata in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(Vec<(String, Value)>);

impl Metadata {
    /// Adds an entry; one of that name is replaced.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(name, _)| *name == key) {
            Some(entry) => entry.1 = value,
            None => self.0.push((key, value)),
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// All entries.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::quant::TensorType;

    fn sample(path: &Path) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", "llama");
        metadata.set("flag", true);
        metadata.set("list", Value::List(vec!["a".into(), "\u{2581}b".into()]));
        metadata.set("numbers", Value::List(vec![Value::I32(-1), Value::I32(7)]));
        metadata.set("x", 0.5f32);
        metadata.set("none", Value::List(Vec::new()));
        let values: Vec<f32> = (0..64).map(|i| i as f32 / 8.0).collect();
        let tensor = |name: &str, kind| TensorSource {
            name: name.to_owned(),
            shape: vec![2, 32],
            kind,
            values: Box::new(|| values.clone()),
        };
        write(path, &metadata, &[tensor("a.weight", TensorType::Q8_0), tensor("b.weight", TensorType::F32)])
            .unwrap();
        metadata
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let metadata = sample(&path);
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        let names: Vec<&str> = file.tensors().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a.weight", "b.weight"]);
        assert_eq!(file.tensor("a.weight").unwrap().shape, [2, 32]);
        let exact = file.values("b.weight").unwrap();
        assert_eq!(exact[63], 63.0 / 8.0);
        let near = file.values("a.weight").unwrap();
        assert!(exact.iter().zip(&near).all(|(a, b)| (a - b).abs() < 0.04));
        assert!(file.values("c.weight").unwrap_err().to_string().contains("c.weight"));
    }

    #[test]
    fn damaged_bytes_are_errors_and_never_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        sample(&path);
        let whole = std::fs::read(&path).unwrap();
        let broken = folder.path().join("broken.gguf");
        for len in 0..whole.len() {
            std::fs::write(&broken, &whole[..len]).unwrap();
            let read = GgufFile::open(&broken).and_then(|file| file.values("b.weight"));
            assert!(read.is_err(), "cut at {len} of {}", whole.len());
        }
        for at in 0..whole.len().min(400) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            std::fs::write(&broken, &bytes).unwrap();
            if let Ok(file) = GgufFile::open(&broken) {
                let names: Vec<String> = file.tensors().map(|t| t.name.clone()).collect();
                names.iter().for_each(|name| drop(file.values(name)));
            }
        }
    }
}
