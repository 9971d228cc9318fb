//! Calls written in Python: `[weather(city="Oslo", days=2), now()]`, arguments by name, values that are literals.

use serde_json::{Map, Number, Value};

use super::Call;

/// How deep lists may be nested.
const MAX_DEPTH: usize = 64;

/// The calls of a text that is nothing else: one, several with commas, or a list of them.
pub(super) fn calls(text: &str) -> Option<Vec<Call>> {
    let mut reader = Reader { chars: text.chars().collect(), at: 0 };
    let is_list = reader.take('[');
    let mut calls = vec![reader.call()?];
    while reader.take(',') {
        calls.push(reader.call()?);
    }
    if is_list && !reader.take(']') {
        return None;
    }
    reader.space();
    (reader.at == reader.chars.len()).then_some(calls)
}

struct Reader {
    chars: Vec<char>,
    at: usize,
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        self.space();
        let is_there = self.peek() == Some(wanted);
        self.at += usize::from(is_there);
        is_there
    }

    fn word(&mut self, more: &str) -> Option<String> {
        self.space();
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_' || more.contains(c)) {
            self.at += 1;
        }
        (self.at > start).then(|| self.chars[start..self.at].iter().collect())
    }

    fn call(&mut self) -> Option<Call> {
        let name = self.word(".").filter(|name| !name.starts_with(|c: char| c.is_numeric() || c == '.'))?;
        if !self.take('(') {
            return None;
        }
        let mut arguments = Map::new();
        while !self.take(')') {
            if !arguments.is_empty() && !self.take(',') {
                return None;
            }
            if !arguments.is_empty() && self.take(')') {
                break;
            }
            let key = self.word("")?;
            if !self.take('=') {
                return None;
            }
            let value = self.value(0)?;
            arguments.insert(key, value);
        }
        Some(Call { name, arguments })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.space();
        match self.peek().filter(|_| depth < MAX_DEPTH)? {
            '"' | '\'' => self.string().map(Value::String),
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.dictionary(depth),
            _ => match self.word("+-.")?.as_str() {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                number => match number.parse::<i64>() {
                    Ok(whole) => Some(whole.into()),
                    Err(_) => number.parse().ok().and_then(Number::from_f64).map(Value::Number),
                },
            },
        }
    }

    fn list(&mut self, closing: char, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut values = Vec::new();
        while !self.take(closing) {
            if !values.is_empty() && !self.take(',') {
                return None;
            }
            if !values.is_empty() && self.take(closing) {
                break;
            }
            values.push(self.value(depth + 1)?);
        }
        Some(Value::Array(values))
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut fields = Map::new();
        while !self.take('}') {
            if !fields.is_empty() && !self.take(',') {
                return None;
            }
            if !fields.is_empty() && self.take('}') {
                break;
            }
            let Value::String(key) = self.value(depth + 1)? else { return None };
            if !self.take(':') {
                return None;
            }
            let value = self.value(depth + 1)?;
            fields.insert(key, value);
        }
        Some(Value::Object(fields))
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.peek()?;
        self.at += 1;
        let mut text = String::new();
        loop {
            let c = self.peek()?;
            self.at += 1;
            match c {
                c if c == quote => return Some(text),
                '\\' => {
                    let escaped = self.peek()?;
                    self.at += 1;
                    match escaped {
                        'n' => text.push('\n'),
                        't' => text.push('\t'),
                        'r' => text.push('\r'),
                        '\\' | '\'' | '"' => text.push(escaped),
                        other => text.extend(['\\', other]),
                    }
                }
                c => text.push(c),
            }
        }
    }
}
