//! The errors of this crate, and where a row came from.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a row came from, so that every complaint about it can be followed to its line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The file, as the user named it; empty when the row was built in memory.
    pub file: String,
    /// The line (or row) number in that file, from 1; 0 when unknown.
    pub line: u64,
}

impl Origin {
    /// An origin in `file` at `line` (from 1).
    pub fn new(file: impl Into<String>, line: u64) -> Self {
        Self { file: file.into(), line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.file.is_empty(), self.line) {
            (true, 0) => write!(f, "<unknown row>"),
            (true, line) => write!(f, "row {line}"),
            (false, 0) => write!(f, "{}", self.file),
            (false, line) => write!(f, "{}:{line}", self.file),
        }
    }
}

/// What can go wrong with text, before it is audited.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be read or written.
    #[error("cannot access {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// A file was read but is not what it should be.
    #[error("{path}: found {found}, expected {expected}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A model directory without any tokenizer this crate reads.
    #[error(
        "{dir} holds no tokenizer: expected tokenizer.json, or vocab.json with merges.txt, or a llama2.c \
         tok*.bin; copy the tokenizer files of the base model there",
        dir = dir.display()
    )]
    NoTokenizer {
        /// The directory.
        dir: PathBuf,
    },
    /// The tokenizer library refused.
    #[error("the tokenizer failed to {action}: {message}")]
    Tokenizer {
        /// What was being done.
        action: &'static str,
        /// What the library said.
        message: String,
    },
    /// A token that the configuration names is not in the vocabulary.
    #[error(
        "{role} is `{token}`, which is not in the vocabulary of {n_tokens} tokens; fix tokenizer_config.json"
    )]
    UnknownToken {
        /// Which special token (`eos_token`, `bos_token`, ...).
        role: &'static str,
        /// Its text.
        token: String,
        /// The size of the vocabulary.
        n_tokens: usize,
    },
    /// A special token is needed and the tokenizer has none.
    #[error(
        "{origin}: {needed_for} needs the tokenizer's {role}, and it has none; set it in tokenizer_config.json"
    )]
    MissingToken {
        /// The row.
        origin: Origin,
        /// Which special token.
        role: &'static str,
        /// What needs it.
        needed_for: &'static str,
    },
    /// A token id outside the vocabulary.
    #[error("{origin}: token id {id} at position {position} is outside the vocabulary of {n_tokens} tokens")]
    BadTokenId {
        /// The row.
        origin: Origin,
        /// The id.
        id: u32,
        /// Where in the row.
        position: usize,
        /// The size of the vocabulary.
        n_tokens: usize,
    },
    /// The source of a chat template does not parse.
    #[error("the chat template does not parse: {message} (line {line})")]
    TemplateSyntax {
        /// What the parser said.
        message: String,
        /// The line in the template, from 1; 0 when unknown.
        line: usize,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// The template's own message, unchanged.
        message: String,
    },
    /// The template failed while rendering (an undefined value, a wrong type, ...).
    #[error("the chat template fails on this conversation: {message} (template line {line})")]
    TemplateFailed {
        /// What the engine said.
        message: String,
        /// The line in the template, from 1; 0 when unknown.
        line: usize,
    },
    /// A chat template is needed and the model directory has none (by that name).
    #[error(
        "no chat template named `{name}`: {hint}; put one beside the tokenizer as chat_template.jinja, or name a file with `data.chat_template` in the recipe or `--template` on the command line"
    )]
    NoChatTemplate {
        /// The name that was asked for.
        name: String,
        /// What there is.
        hint: String,
    },
    /// A row's shape is wrong.
    #[error("{origin}: {field}: found {found}, expected {expected}")]
    BadRow {
        /// The row.
        origin: Origin,
        /// The field in the row.
        field: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// Something failed for this row; the source says what.
    #[error("{origin}: {source}")]
    InRow {
        /// The row.
        origin: Origin,
        /// What failed.
        #[source]
        source: Box<TextError>,
    },
    /// Where a message lies in the rendering cannot be found without guessing.
    #[error(
        "{origin}: cannot tell which part of the rendered text message {message} ({role}) wrote: {reason}. \
         Mark it with {{% generation %}} in the chat template, or train on every token (`mask = \"all\"`).\n{shown}"
    )]
    CannotLocate {
        /// The row.
        origin: Origin,
        /// Index of the message in the row.
        message: usize,
        /// Its role.
        role: String,
        /// Why.
        reason: String,
        /// The rendered text.
        shown: String,
    },
    /// A sampled conversation that cannot go on in the same tokens.
    #[error(
        "{origin}: nothing can follow this reply in the tokens it was sampled in: {reason}. Use a chat template that ends replies \
         with the model's own end of turn (`data.chat_template`).\n{shown}"
    )]
    NoContinuation {
        /// The row.
        origin: Origin,
        /// Why.
        reason: String,
        /// The rendered text.
        shown: String,
    },
    /// The row is wrong in a way that would train the wrong thing.
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
}

impl TextError {
    pub(crate) fn in_row(self, origin: &Origin) -> Self {
        match self {
            Self::TemplateRaised { .. }
            | Self::TemplateFailed { .. }
            | Self::TemplateSyntax { .. }
            | Self::NoChatTemplate { .. }
            | Self::Tokenizer { .. } => Self::InRow { origin: origin.clone(), source: Box::new(self) },
            other => other,
        }
    }
}
