//! Holding rows out for evaluation, by content.
//!
//! Whether a row is held out depends on the seed and the row's content alone: not on its place, its file
//! or the other rows. Equal rows fall on the same side, so no duplicate leaks from training into
//! evaluation, and adding rows moves none of the old ones.

use pt_core::hash;
use serde_json::Value;

use crate::error::DataError;
use crate::record::Record;
use crate::row::{Columns, Row};

/// What has content to be held out by.
pub trait Hashed {
    /// The hash of the content: the same for equal content, wherever it came from.
    fn content_hash(&self) -> String;
}

impl Hashed for Row {
    fn content_hash(&self) -> String {
        of_columns(&self.value)
    }
}

impl Hashed for Record {
    /// The hash of the canonical row, so that one example in two layouts counts as equal.
    fn content_hash(&self) -> String {
        of_columns(&self.to_row())
    }
}

/// The content hash of columns, whatever their order.
pub fn of_columns(columns: &Columns) -> String {
    let mut canonical = String::new();
    write_object(columns, &mut canonical);
    hash::of_bytes(canonical.as_bytes())
}

/// Whether the item is held out, for about `fraction` of all items.
pub fn is_held_out(item: &impl Hashed, fraction: f64, seed: u64) -> bool {
    let keyed = hash::of_parts([seed.to_le_bytes().as_slice(), item.content_hash().as_bytes()]);
    // The first 52 bits as a number in [0, 1): exact in f64.
    const BITS: i32 = 52;
    let draw = u64::from_str_radix(&keyed[..13], 16).expect("a hash is hexadecimal");
    (draw as f64) < fraction * 2f64.powi(BITS)
}

/// Rows (or records) to train on and those held out, each in the order given.
///
/// # Errors
/// When `fraction` is not within 0 and 1, or one side would be empty though it should not be.
pub fn hold_out<T: Hashed>(items: Vec<T>, fraction: f64, seed: u64) -> Result<(Vec<T>, Vec<T>), DataError> {
    if !(0.0..1.0).contains(&fraction) {
        let message = format!("held-out fraction {fraction}; it must be at least 0 and below 1");
        return Err(DataError::Mixture(message));
    }
    let n = items.len();
    let (held, train): (Vec<T>, Vec<T>) =
        items.into_iter().partition(|item| is_held_out(item, fraction, seed));
    if n > 0 && (train.is_empty() || (held.is_empty() && fraction > 0.0)) {
        return Err(DataError::Mixture(format!(
            "holding out {fraction} of {n} rows leaves {} to train on and {} held out; choose another fraction or seed",
            train.len(),
            held.len()
        )));
    }
    Ok((train, held))
}

/// JSON with keys sorted at every depth.
fn write_object(object: &Columns, into: &mut String) {
    let mut entries: Vec<_> = object.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    into.push('{');
    for (key, value) in entries {
        into.push_str(&Value::from(key.as_str()).to_string());
        into.push(':');
        write_value(value, into);
        into.push(',');
    }
    into.push('}');
}

fn write_value(value: &Value, into: &mut String) {
    match value {
        Value::Object(object) => write_object(object, into),
        Value::Array(items) => {
            into.push('[');
            for item in items {
                write_value(item, into);
                into.push(',');
            }
            into.push(']');
        }
        scalar => into.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Origin;
    use serde_json::json;

    fn rows(n: usize) -> Vec<Row> {
        let columns = |i: usize| json!({"text": format!("row {}", i % 900)}).as_object().unwrap().clone();
        (0..n).map(|i| Row { origin: Origin::new("f", i + 1), value: columns(i) }).collect()
    }

    #[test]
    fn about_the_fraction_is_held_out_and_duplicates_stay_together() {
        let (train, held) = hold_out(rows(1000), 0.2, 1).unwrap();
        assert_eq!(train.len() + held.len(), 1000);
        // Five standard deviations of a binomial with 900 distinct rows.
        assert!((140..=260).contains(&held.len()), "{}", held.len());
        assert!(held.iter().all(|h| train.iter().all(|t| t.value != h.value)));
        let (_, other) = hold_out(rows(1000), 0.2, 2).unwrap();
        assert_ne!(held, other);
    }

    #[test]
    fn order_of_columns_does_not_matter() {
        let hash = |text: &str| of_columns(&serde_json::from_str(text).unwrap());
        assert_eq!(
            hash(r#"{"a": {"x": 1, "y": [2]}, "b": "c"}"#),
            hash(r#"{"b": "c", "a": {"y": [2], "x": 1}}"#)
        );
        assert_ne!(hash(r#"{"a": [1, 2]}"#), hash(r#"{"a": [2, 1]}"#));
        assert_ne!(hash(r#"{"a": "1"}"#), hash(r#"{"a": 1}"#));
    }

    #[test]
    fn records_are_held_out_by_their_canonical_content() {
        let record = |layout: &str, row: Value| {
            let value = row.as_object().unwrap().clone();
            let row = Row { origin: Origin::new("f", 1), value };
            crate::layout::by_name(layout).unwrap().convert(row).unwrap().remove(0)
        };
        let openai = record("messages", json!({"messages": [{"role": "user", "content": "Hi"}]}));
        let sharegpt = record("sharegpt", json!({"conversations": [{"from": "human", "value": "Hi"}]}));
        assert_eq!(openai.content_hash(), sharegpt.content_hash());
        let alpaca = record("alpaca", json!({"instruction": "Hi", "output": "Hello"}));
        assert_ne!(openai.content_hash(), alpaca.content_hash());
    }

    #[test]
    fn an_empty_side_is_an_error() {
        assert!(hold_out(rows(1), 0.5, 0).is_err());
        assert!(hold_out(rows(10), 1.0, 0).is_err());
        assert_eq!(hold_out(rows(10), 0.0, 0).unwrap().0.len(), 10);
    }
}
