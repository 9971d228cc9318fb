//! Whether Python's `json.loads` takes a text: JSON with `NaN`, `Infinity`, lone surrogates, and at any depth.

/// Digits of an integer that Python refuses to convert.
const MAX_INTEGER_DIGITS: usize = 4300;

/// Whether `text` is one JSON value.
pub(super) fn is_json(text: &str) -> bool {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    reader.document().is_some() && reader.at == text.len()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// One value with its containers on a stack of our own, so that depth is no danger.
    fn document(&mut self) -> Option<()> {
        let mut open = Vec::new();
        loop {
            self.space();
            match self.peek()? {
                bracket @ (b'{' | b'[') => {
                    self.at += 1;
                    self.space();
                    let closing = if bracket == b'{' { b'}' } else { b']' };
                    if self.peek()? != closing {
                        open.push(bracket);
                        if bracket == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                    self.at += 1;
                }
                b'"' => self.string()?,
                _ => self.scalar()?,
            }
            // A value has ended: close what it closes, or go on to the next.
            loop {
                self.space();
                match (open.last(), self.peek()) {
                    (None, _) => return Some(()),
                    (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']')) => {
                        open.pop();
                        self.at += 1;
                    }
                    (Some(bracket), Some(b',')) => {
                        self.at += 1;
                        if *bracket == b'{' {
                            self.key()?;
                        }
                        break;
                    }
                    _ => return None,
                }
            }
        }
    }

    fn key(&mut self) -> Option<()> {
        self.space();
        self.string()?;
        self.space();
        self.take(b":")
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, word: &[u8]) -> Option<()> {
        self.bytes[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn string(&mut self) -> Option<()> {
        self.take(b"\"")?;
        loop {
            match self.peek()? {
                b'"' => return self.take(b"\""),
                b'\\' => {
                    self.at += 1;
                    match self.peek()? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
                        b'u' => {
                            let digits = self.bytes.get(self.at + 1..self.at + 5)?;
                            digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                            self.at += 5;
                        }
                        _ => return None,
                    }
                }
                0..0x20 => return None,
                _ => self.at += 1,
            }
        }
    }

    fn scalar(&mut self) -> Option<()> {
        let words: [&[u8]; 6] = [b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity"];
        if words.iter().any(|word| self.take(word).is_some()) {
            return Some(());
        }
        let _ = self.take(b"-");
        let n_digits = match self.peek()? {
            b'0' => {
                self.at += 1;
                1
            }
            b'1'..=b'9' => self.digits(),
            _ => return None,
        };
        let whole_end = self.at;
        if self.take(b".").is_some() && self.digits() == 0 {
            // `1.` is the number 1 and a stray full stop.
            self.at = whole_end;
            return Some(());
        }
        let mantissa_end = self.at;
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                self.at = mantissa_end;
            }
        }
        (self.at > whole_end || n_digits <= MAX_INTEGER_DIGITS).then_some(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn what_serde_reads_is_read_and_depth_does_not_matter() {
        for text in ["{}", "[ ]", r#"{"a":[1,{"b":null}],"c":"\u00e9\n"}"#, "-0", "1e5", "\"\"", "[1 , 2]"] {
            assert!(is_json(text) && serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
        for text in
            ["", "{", "[1,]", "{,}", "{1:2}", "+1", ".5", "1 2", "'a'", "\"a", "\"\\x\"", "[1}", "tru"]
        {
            assert!(!is_json(text) && serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(is_json(&deep) && !is_json(&deep[1..]) && is_json("NaN"));
    }
}
