//! Finding JSON in what a model wrote, and comparing it.

use serde_json::Value;

use crate::text::{after_thinking, fenced};

/// The JSON object or array of a reply: the last fenced block that is one, else the whole reply, else the last one that
/// stands in the text. What stands before `</think>` does not count.
///
/// Time is linear in the reply: only so many values may run to its end, or too deep, in vain.
pub(crate) fn find_json(reply: &str) -> Option<Value> {
    let answer = after_thinking(reply);
    let whole = |text: &str| serde_json::from_str(text.trim()).ok().filter(is_container);
    fenced(answer)
        .into_iter()
        .rev()
        .find_map(whole)
        .or_else(|| whole(answer))
        .or_else(|| embedded(answer).pop())
}

/// The JSON objects and arrays that stand in a text, one after the other, none inside another.
pub(crate) fn embedded(text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let (mut at, mut n_unended) = (0, 0);
    while let Some(offset) = text[at..].find(['{', '[']).filter(|_| n_unended < MAX_UNENDED) {
        at += offset;
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                at += values.byte_offset();
                found.push(value);
            }
            other => {
                let is_costly =
                    |e: &serde_json::Error| e.is_eof() || e.to_string().starts_with("recursion limit");
                n_unended += usize::from(matches!(other, Some(Err(error)) if is_costly(&error)));
                at += 1;
            }
        }
    }
    found
}

fn is_container(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

/// How often a value that never ends, or is nested too deep, is begun before the rest of a text is given up.
const MAX_UNENDED: usize = 32;

/// How values are compared.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Equality {
    /// Whether upper and lower case are the same in texts.
    pub(crate) ignore_case: bool,
    /// Whether the order of arrays matters not.
    pub(crate) ignore_order: bool,
    /// How far apart numbers may be; 0 with `ignore_order`, since arrays are matched greedily.
    pub(crate) tolerance: f64,
}

impl Equality {
    /// Whether two values are the same; numbers by their size, so 1 is 1.0.
    pub(crate) fn holds(&self, a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Number(x), Value::Number(y)) => {
                x == y
                    || matches!((x.as_f64(), y.as_f64()), (Some(x), Some(y)) if (x - y).abs() <= self.tolerance)
            }
            (Value::String(x), Value::String(y)) if self.ignore_case => x.to_lowercase() == y.to_lowercase(),
            (Value::Array(xs), Value::Array(ys)) if xs.len() != ys.len() => false,
            (Value::Array(xs), Value::Array(ys)) if self.ignore_order => {
                let mut left: Vec<&Value> = ys.iter().collect();
                xs.iter().all(|x| {
                    left.iter().position(|y| self.holds(x, y)).map(|place| left.swap_remove(place)).is_some()
                })
            }
            (Value::Array(xs), Value::Array(ys)) => xs.iter().zip(ys).all(|(x, y)| self.holds(x, y)),
            (Value::Object(xs), Value::Object(ys)) => {
                xs.len() == ys.len()
                    && xs.iter().all(|(key, x)| ys.get(key).is_some_and(|y| self.holds(x, y)))
            }
            _ => a == b,
        }
    }
}

/// A gold answer that may be JSON or a text that holds JSON.
pub(crate) fn gold_json(gold: Option<&Value>) -> Result<Value, String> {
    match gold {
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|e| format!("the gold answer is a text that is not JSON: {e}"))
        }
        Some(value) if !value.is_null() => Ok(value.clone()),
        _ => Err("the row has no gold answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_found_where_models_put_it() {
        let one = json!({"a": 1});
        for text in [
            "{\"a\": 1}",
            " {\"a\":1}\n",
            "```json\n{\"a\": 1}\n```",
            "Here:\n```\n{\"a\": 1}\n```\nDone {x}.",
            "```json\n{\"a\": 1}",
            "so {b} gives {\"a\": 1}.",
            "first {\"a\": 2}, then {\"a\": 1}",
            "<think>{\"a\": 3}</think>{\"a\": 1}",
            "```{\"a\": 1}```",
        ] {
            assert_eq!(find_json(text), Some(one.clone()), "{text}");
        }
        for text in ["", "1", "\"a\"", "{a: 1}", "{\"a\": 1", "no", "```json\n```"] {
            assert_eq!(find_json(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_takes_long() {
        for unit in ["[", "{", "[1,", "[\"", "{\"a\":", "[[],", "```", "[ ", "{\"a\":1}"] {
            let text = unit.repeat(200_000 / unit.len());
            let _ = find_json(&text);
        }
    }
}
