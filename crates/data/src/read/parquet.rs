//! Parquet through the record reader: lists, structs and maps become JSON.
//!
//! Differences from JSON sources: a float NaN becomes null (pandas writes missing numbers so), dates,
//! times and decimals become strings, and a string-keyed map becomes an object. A null field of a nested
//! struct is dropped: Parquet gives every struct of a column the same fields, so null there means absent.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter as ParquetRows;
use parquet::record::{Field, MapAccessor};
use serde_json::{Map, Number, Value};

use super::RowIter;
use crate::error::DataError;
use crate::row::{Origin, Row};

/// The four bytes a Parquet file starts and ends with.
pub(crate) const MAGIC: [u8; 4] = *b"PAR1";

/// Opens a Parquet file (never compressed as a whole).
pub(crate) fn open(path: &Path) -> Result<RowIter, DataError> {
    let file = File::open(path).map_err(DataError::io(path, "open"))?;
    let whole = Origin::new(path, 0);
    let mut rows = guarded(&whole, || {
        let reader = SerializedFileReader::new(file)?;
        Ok(ParquetRows::from_file_into(Box::new(reader)))
    })?;
    let mut row_idx = 0;
    let mut ended = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        row_idx += 1;
        let origin = Origin { file: Arc::clone(&whole.file), line: row_idx };
        let next = guarded(&origin, || rows.next().transpose());
        ended = !matches!(next, Ok(Some(_)));
        match next {
            Ok(row) => Some(convert_row(row?, origin)),
            Err(error) => Some(Err(error)),
        }
    })))
}

/// Runs a step of the reader; its panics on damaged files become errors like the rest.
fn guarded<T>(origin: &Origin, step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, DataError> {
    let failed = |message: String| DataError::Parquet { origin: origin.clone(), message };
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the file is damaged beyond what the reader can describe".to_owned())),
    }
}

fn convert_row(row: parquet::record::Row, origin: Origin) -> Result<Row, DataError> {
    match convert_group(row, false) {
        Ok(value) => Ok(Row { origin, value }),
        Err(message) => Err(DataError::Parquet { origin, message }),
    }
}

fn convert_group(row: parquet::record::Row, is_nested: bool) -> Result<Map<String, Value>, String> {
    row.into_columns()
        .into_iter()
        .filter(|(_, field)| !(is_nested && matches!(field, Field::Null)))
        .map(|(name, field)| match convert(field) {
            Ok(value) => Ok((name, value)),
            Err(message) => Err(format!("column `{name}`: {message}")),
        })
        .collect()
}

fn convert(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(v) => v.into(),
        Field::Byte(v) => v.into(),
        Field::Short(v) => v.into(),
        Field::Int(v) => v.into(),
        Field::Long(v) => v.into(),
        Field::UByte(v) => v.into(),
        Field::UShort(v) => v.into(),
        Field::UInt(v) => v.into(),
        Field::ULong(v) => v.into(),
        Field::Float16(v) => number(f64::from(v.to_f32()))?,
        // The shortest decimal that reads back as this f32, not the f64 with its long tail.
        Field::Float(v) => number(v.to_string().parse().unwrap_or_else(|_| f64::from(v)))?,
        Field::Double(v) => number(v)?,
        Field::Str(v) => v.into(),
        Field::Bytes(v) => match std::str::from_utf8(v.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err(format!("{} bytes of binary data, where text was expected", v.len())),
        },
        Field::Group(row) => Value::Object(convert_group(row, true)?),
        Field::ListInternal(list) => {
            list.elements().iter().cloned().map(convert).collect::<Result<Vec<_>, _>>()?.into()
        }
        Field::MapInternal(map) => convert_map(&map)?,
        other @ (Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => other.to_string().into(),
    })
}

fn number(value: f64) -> Result<Value, String> {
    if value.is_nan() {
        return Ok(Value::Null);
    }
    Number::from_f64(value).map(Value::Number).ok_or_else(|| format!("{value} has no JSON form"))
}

fn convert_map(map: &parquet::record::Map) -> Result<Value, String> {
    let keys = map.get_keys();
    let mut object = Map::new();
    for idx in 0..map.len() {
        let key = keys.get_string(idx).map_err(|_| "a map whose keys are not strings".to_owned())?;
        let value = map.entries()[idx].1.clone();
        object.insert(key.clone(), convert(value)?);
    }
    Ok(Value::Object(object))
}
