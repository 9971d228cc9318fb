//! Reading JSON options so that none that matters goes unread.
//!
//! Every getter marks its key as read; [`Options::finish`] then refuses any key nobody read, unless its value is
//! "off" (null, false, 0, empty) or it is known not to change results. A configuration thus fails closed: a new
//! option of a new release of transformers is an error that names it, never a silent difference.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// A JSON object being read.
pub struct Options<'a> {
    file: &'a str,
    prefix: String,
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Options<'a> {
    /// Options of a whole file.
    pub fn new(file: &'a str, map: &'a Map<String, Value>) -> Options<'a> {
        Options { file, prefix: String::new(), map, read: RefCell::default() }
    }

    /// The file's name, for errors.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// The value of `key`, if it is there and not null.
    pub fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is written at all, be it as null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A whole number in `range`.
    pub fn size(&self, key: &'static str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>> {
        self.read_as(key, &format!("a whole number from {} to {}", range.start(), range.end()), |value| {
            value.as_u64().map(|n| n as usize).filter(|n| range.contains(n))
        })
    }

    /// A whole number in `range` that must be there.
    pub fn required_size(&self, key: &'static str, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.size(key, range)?.ok_or_else(|| self.missing(key, &expected))
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &'static str) -> Result<Option<f64>> {
        self.read_as(key, "a number above 0", |value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0))
    }

    /// A finite number above zero that must be there.
    pub fn required_positive(&self, key: &'static str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.missing(key, "a number above 0"))
    }

    /// True or false.
    pub fn flag(&self, key: &'static str) -> Result<Option<bool>> {
        self.read_as(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub fn text(&self, key: &'static str) -> Result<Option<&'a str>> {
        self.read_as(key, "a string", Value::as_str)
    }

    /// A list of finite numbers above zero, of which there must be `len`.
    pub fn required_list(&self, key: &'static str, len: usize) -> Result<Vec<f64>> {
        let expected = format!("a list of {len} numbers above 0");
        let read = |value: &Value| {
            let list: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            list.filter(|list| list.len() == len && list.iter().all(|x| x.is_finite() && *x > 0.0))
        };
        self.read_as(key, &expected, read)?.ok_or_else(|| self.missing(key, &expected))
    }

    /// A list of strings.
    pub fn texts(&self, key: &'static str) -> Result<Option<Vec<&'a str>>> {
        self.read_as(key, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// An object, to be read and finished in its turn.
    pub fn object(&self, key: &'static str) -> Result<Option<Options<'a>>> {
        let map = self.read_as(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Options {
            file: self.file,
            prefix: format!("{}{key}.", self.prefix),
            map,
            read: RefCell::default(),
        }))
    }

    /// Reads `key` and refuses any value but null and those `allowed` accepts.
    pub fn only(&self, key: &'static str, supported: &str, allowed: impl Fn(&Value) -> bool) -> Result<()> {
        match self.value(key) {
            Some(value) if !allowed(value) => Err(self.unsupported(key, supported)),
            _ => Ok(()),
        }
    }

    /// Refuses what is left: see the module's documentation. `ignorable` says which keys never matter.
    pub fn finish(&self, what: &str, ignorable: impl Fn(&str) -> bool) -> Result<()> {
        let read = self.read.borrow();
        for (key, value) in self.map {
            if read.contains(key.as_str()) || is_off(value) || ignorable(key) {
                continue;
            }
            let near = pt_core::suggest::nearest(key, read.iter().copied());
            return Err(ModelError::UnknownOption {
                file: self.file.to_owned(),
                key: format!("{}{key}", self.prefix),
                found: brief(value),
                what: what.to_owned(),
                hint: near.map_or("no known option is near it".to_owned(), |near| {
                    format!("the nearest is `{near}`")
                }),
            });
        }
        Ok(())
    }

    /// An error that says `key` is missing.
    pub fn missing(&self, key: &str, expected: &str) -> ModelError {
        ModelError::MissingOption {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            expected: expected.to_owned(),
        }
    }

    /// An error that says the value of `key` makes no sense.
    pub fn bad(&self, key: &str, expected: &str) -> ModelError {
        ModelError::BadOption {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: self.map.get(key).map_or("absent".to_owned(), brief),
            expected: expected.to_owned(),
        }
    }

    /// An error that says the value of `key` is not supported.
    pub fn unsupported(&self, key: &str, supported: &str) -> ModelError {
        ModelError::UnsupportedOption {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: self.map.get(key).map_or("absent".to_owned(), brief),
            supported: supported.to_owned(),
        }
    }

    fn read_as<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.value(key).map(|value| read(value).ok_or_else(|| self.bad(key, expected))).transpose()
    }
}

/// Whether a value switches nothing on.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

/// A value as text, cut where it gets long.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

/// Parses a JSON object.
///
/// # Errors
/// [`ModelError::Json`].
pub(crate) fn parse_object(file: &str, text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text)
        .map_err(|error| ModelError::Json { file: file.to_owned(), problem: error.to_string() })
}
