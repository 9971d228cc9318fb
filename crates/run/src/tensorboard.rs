//! TensorBoard event files, scalars only.
//!
//! A file is a sequence of TFRecords (`u64` length, masked CRC-32C of it, data, masked CRC-32C of
//! the data), each an `Event` message of `tensorflow/core/util/event.proto`, encoded here by hand:
//! `wall_time = 1 (double)`, `step = 2 (int64)`, `file_version = 3`, `summary = 5`,
//! `session_log = 7`; `Summary.value = 1` with `tag = 1` and `simple_value = 2 (float)`.

use crate::clock::unix_seconds;
use crate::error::{Result, RunError};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Appends scalars to one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates a new event file in `dir`. With `first_step`, viewers drop what earlier files of the
    /// folder say from that step on: the run was resumed there.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn create(dir: &Path, first_step: Option<u64>) -> Result<EventWriter> {
        fs::create_dir_all(dir).map_err(RunError::io("create", dir))?;
        let (path, file) = new_file(dir)?;
        let mut writer = EventWriter { path, file };
        writer.event(0, &bytes_field(3, b"brain.Event:2"))?;
        if let Some(step) = first_step {
            const SESSION_START: u64 = 1;
            writer.event(step, &bytes_field(7, &varint_field(1, SESSION_START)))?;
        }
        Ok(writer)
    }

    /// Writes the value of each tag at `step`.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = bytes_field(1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.event(step, &bytes_field(5, &summary))
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn event(&mut self, step: u64, what: &[u8]) -> Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(unix_seconds().to_le_bytes());
        event.extend(varint_field(2, step));
        event.extend(what);
        self.file.write_all(&record(&event)).map_err(RunError::io("append to", &self.path))
    }
}

/// A file of a name no other writer of the folder has, in the order viewers read them.
fn new_file(dir: &Path) -> Result<(PathBuf, File)> {
    let seconds = unix_seconds() as u64;
    for n in 0.. {
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.{}.{n}", std::process::id()));
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(RunError::io("create", &path)(e)),
        }
    }
    unreachable!("some number is free")
}

/// One TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(len);
    out.extend(masked(crc32c(&len)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

/// The mask of `tensorflow/core/lib/hash/crc32c.h`.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78).
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    !data.iter().fold(!0, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    [vec![number << 3], varint(value)].concat()
}

fn bytes_field(number: u8, value: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(value.len() as u64), value.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the usual check value.
    #[test]
    fn crc32c_matches_the_published_vectors() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        let cases: [(&[u8], u32); 6] = [
            (b"123456789", 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (b"", 0),
        ];
        for (data, expected) in cases {
            assert_eq!(crc32c(data), expected, "{data:?}");
        }
    }

    /// Splits a file into records, checking both checksums of each.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), masked(crc32c(&bytes[..8])));
            assert_eq!(crc(12 + len), masked(crc32c(&bytes[12..12 + len])));
            out.push(bytes[12..12 + len].to_vec());
            bytes = &bytes[16 + len..];
        }
        out
    }

    #[derive(Debug, PartialEq)]
    enum Value {
        Int(u64),
        Bytes(Vec<u8>),
        Fixed64(u64),
        Fixed32(u32),
    }

    /// The fields of a protobuf message.
    fn fields(mut bytes: &[u8]) -> Vec<(u8, Value)> {
        fn take_varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
            let (head, tail) = bytes.split_at(n);
            *bytes = tail;
            head
        }
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes) as u8;
            let value = match key & 7 {
                0 => Value::Int(take_varint(&mut bytes)),
                1 => Value::Fixed64(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let n = take_varint(&mut bytes) as usize;
                    Value::Bytes(take(&mut bytes, n).to_vec())
                }
                5 => Value::Fixed32(u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
                wire => panic!("wire type {wire}"),
            };
            out.push((key >> 3, value));
        }
        out
    }

    fn message(fields: &[(u8, Value)], number: u8) -> &[u8] {
        match fields.iter().find(|(n, _)| *n == number) {
            Some((_, Value::Bytes(bytes))) => bytes,
            other => panic!("field {number}: {other:?}"),
        }
    }

    #[test]
    fn a_decoder_reads_back_version_resume_and_scalars() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), Some(301)).unwrap();
        writer.scalars(1_000_000, [("01-sft/loss", 0.25), ("01-sft/grad_norm", f64::NAN)]).unwrap();
        let bytes = fs::read(writer.path()).unwrap();
        let events: Vec<_> = records(&bytes).iter().map(|r| fields(r)).collect();
        assert_eq!(events.len(), 3);
        for event in &events {
            let Value::Fixed64(bits) = event[0].1 else { panic!("{event:?}") };
            assert!(f64::from_bits(bits) > 1.6e9);
        }
        assert_eq!(message(&events[0], 3), b"brain.Event:2");
        assert_eq!(events[1][1], (2, Value::Int(301)));
        assert_eq!(fields(message(&events[1], 7)), [(1, Value::Int(1))]);
        assert_eq!(events[2][1], (2, Value::Int(1_000_000)));
        let values = fields(message(&events[2], 5));
        let Value::Bytes(first) = &values[0].1 else { panic!() };
        assert_eq!(message(&fields(first), 1), b"01-sft/loss");
        assert_eq!(fields(first)[1], (2, Value::Fixed32(0.25f32.to_bits())));
        assert_eq!(values.len(), 2);
    }

    #[test]
    fn two_writers_of_one_second_get_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let a = EventWriter::create(dir.path(), None).unwrap();
        let b = EventWriter::create(dir.path(), None).unwrap();
        assert_ne!(a.path(), b.path());
        assert_eq!(records(&fs::read(a.path()).unwrap()).len(), 1);
    }
}
