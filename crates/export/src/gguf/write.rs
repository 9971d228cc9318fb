//! Writing: header, metadata, the table of tensors, then their bytes, one tensor in memory at a time.

use std::io::{self, Write};
use std::path::Path;

use pt_core::atomic_file;

use super::{ALIGNMENT, MAGIC, Metadata, VERSION, Value};
use crate::error::{ExportError, Result};
use crate::quant::TensorType;

/// A tensor to be written.
pub struct TensorSource<'a> {
    /// Its name in the file.
    pub name: String,
    /// `[rows, columns]` or `[n]`, as everywhere here; the file has them the other way round.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub kind: TensorType,
    /// Its values, asked for when its turn comes.
    pub values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

/// Writes a file that appears whole or not at all.
///
/// # Errors
/// [`ExportError::Io`].
///
/// # Panics
/// If a tensor's values do not fit its shape, or its row cuts a block.
pub fn write(path: &Path, metadata: &Metadata, tensors: &[TensorSource<'_>]) -> Result<()> {
    let header = header(metadata, tensors);
    atomic_file::write_with(path, |out| {
        out.write_all(&header)?;
        pad(out, header.len() as u64)?;
        for tensor in tensors {
            let values = (tensor.values)();
            let n: usize = tensor.shape.iter().product();
            assert_eq!(values.len(), n, "values of {} for its shape {:?}", tensor.name, tensor.shape);
            let bytes = tensor.kind.quantise(&values);
            out.write_all(&bytes)?;
            pad(out, bytes.len() as u64)?;
        }
        Ok(())
    })
    .map_err(ExportError::io(path, "writing"))
}

fn header(metadata: &Metadata, tensors: &[TensorSource<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.iter().len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_text(&mut out, key);
        out.extend(value.type_id().to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let row = tensor.shape.last().copied().unwrap_or(1);
        assert!(row.is_multiple_of(tensor.kind.block_len()), "a row of {} cuts a block", tensor.name);
        let bytes = tensor.kind.bytes_of(tensor.shape.iter().product()) as u64;
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    out
}

fn pad(out: &mut impl Write, n_written: u64) -> io::Result<()> {
    let n = n_written.next_multiple_of(ALIGNMENT) - n_written;
    out.write_all(&[0; ALIGNMENT as usize][..n as usize])
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.push(*n),
        Value::I8(n) => out.extend(n.to_le_bytes()),
        Value::U16(n) => out.extend(n.to_le_bytes()),
        Value::I16(n) => out.extend(n.to_le_bytes()),
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(flag) => out.push(u8::from(*flag)),
        Value::Text(text) => put_text(out, text),
        Value::U64(n) => out.extend(n.to_le_bytes()),
        Value::I64(n) => out.extend(n.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
        Value::List(list) => {
            let kind = list.first().map_or(Value::U32(0).type_id(), Value::type_id);
            assert!(list.iter().all(|v| v.type_id() == kind), "a list has values of one type");
            out.extend(kind.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|value| put_value(out, value));
        }
    }
}
