//! Tokenizers, chat templates, loss masks from token provenance, and their audit.

pub mod error;
pub mod template;
pub mod tokenizer;

pub use error::{Origin, TextError};
pub use template::{ChatTemplate, Message, Moment, Rendering, TemplateInputs};
pub use tokenizer::{DecodeStream, Encoding, Tokenizer, TokenizerConfig, train_byte_bpe};
