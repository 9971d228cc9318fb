//! Cuts a top-level JSON array into its elements, in bounded memory.
//!
//! Only brackets, strings and commas are looked at here; what an element holds is for the parser.

use std::path::PathBuf;
use std::sync::Arc;

use super::decompress::Content;
use super::json_value::Start;
use crate::error::DataError;
use crate::row::Origin;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    BeforeArray,
    BeforeFirst,
    AfterElement,
    Ended,
}

/// The elements of a top-level array, one text at a time.
pub(crate) struct Elements {
    content: Content,
    file: Arc<PathBuf>,
    limit: usize,
    state: State,
    at: Start,
    n_elements: usize,
}

/// One element.
pub(crate) struct Element {
    /// Its JSON text, complete if the file is sound.
    pub(crate) text: String,
    /// Where it starts in the file.
    pub(crate) start: Start,
    /// Its number, from 1.
    pub(crate) origin: Origin,
}

impl Iterator for Elements {
    type Item = Result<Element, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_element();
        if next.is_err() {
            self.state = State::Ended; // Where the next element starts is not known any more.
        }
        next.transpose()
    }
}

impl Elements {
    pub(crate) fn new(content: Content, limit: usize) -> Self {
        let file = Arc::new(content.path.clone());
        Elements {
            content,
            file,
            limit,
            state: State::BeforeArray,
            at: Start { line: 1, column: 1 },
            n_elements: 0,
        }
    }

    fn origin(&self) -> Origin {
        Origin { file: Arc::clone(&self.file), line: self.n_elements }
    }

    fn next_element(&mut self) -> Result<Option<Element>, DataError> {
        if self.state == State::BeforeArray {
            self.enter()?;
        }
        match (self.state, self.skip_space_unless_ended()?) {
            (State::Ended, _) => return Ok(None),
            (_, None) => return Err(self.error("the array is cut off: the file ends before `]`")),
            (_, Some(b']')) => return self.finish(),
            (State::AfterElement, Some(b',')) => {
                let comma = self.at;
                self.advance();
                if self.skip_space()? == Some(b']') {
                    self.at = comma;
                    return Err(self.error("trailing comma; remove the comma before the closing bracket"));
                }
            }
            (State::AfterElement, Some(_)) => return Err(self.error("expected `,` or `]` after an element")),
            _ => {}
        }
        self.state = State::AfterElement;
        self.n_elements += 1;
        let start = self.at;
        let from = self.content.offset();
        let bytes = self.take_value()?;
        let origin = self.origin();
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            DataError::NotUtf8 { origin: origin.clone(), byte: from + at as u64, value: error.as_bytes()[at] }
        })?;
        Ok(Some(Element { text, start, origin }))
    }

    /// Reads the opening bracket; an empty file has ended.
    fn enter(&mut self) -> Result<(), DataError> {
        self.state = match self.skip_space()? {
            None => State::Ended,
            Some(b'[') => {
                self.advance();
                State::BeforeFirst
            }
            Some(_) => return Err(self.error("expected `[` or `{` at the start of a JSON file")),
        };
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Element>, DataError> {
        self.advance();
        self.state = State::Ended;
        match self.skip_space()? {
            None => Ok(None),
            Some(_) => Err(self.error("something follows the closing `]`")),
        }
    }

    fn skip_space_unless_ended(&mut self) -> Result<Option<u8>, DataError> {
        if self.state == State::Ended { Ok(None) } else { self.skip_space() }
    }

    fn skip_space(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            match self.content.peek()?.first().copied() {
                Some(byte) if byte.is_ascii_whitespace() => self.advance(),
                other => return Ok(other),
            }
        }
    }

    fn advance(&mut self) {
        if self.content.peek().is_ok_and(|buffered| buffered.first() == Some(&b'\n')) {
            self.at = Start { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        self.content.consume(1);
    }

    /// Bytes up to the end of the value that starts here: brackets are balanced outside strings.
    fn take_value(&mut self) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let buffered = self.content.peek()?;
            if buffered.is_empty() {
                return Ok(bytes); // The parser reports the missing end, with its place.
            }
            let mut taken = 0;
            let mut complete = false;
            for &byte in buffered {
                let ends_scalar = depth == 0 && !in_string && (byte == b',' || byte == b']' || byte == b'}');
                if ends_scalar {
                    complete = true;
                    break;
                }
                taken += 1;
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    b'{' | b'[' if !in_string => depth += 1,
                    b'}' | b']' if !in_string => {
                        depth -= 1;
                        complete = depth == 0;
                    }
                    b'\n' => self.at = Start { line: self.at.line + 1, column: 0 },
                    _ => {}
                }
                self.at.column += 1;
                if complete {
                    break;
                }
            }
            bytes.extend_from_slice(&buffered[..taken]);
            self.content.consume(taken);
            if bytes.len() > self.limit {
                return Err(DataError::TooLong { origin: self.origin(), limit: self.limit });
            }
            if complete {
                return Ok(bytes);
            }
        }
    }

    fn error(&self, message: &str) -> DataError {
        DataError::Json {
            file: self.file.to_path_buf(),
            line: self.at.line,
            column: self.at.column,
            message: format!("invalid JSON: {message}"),
        }
    }
}
