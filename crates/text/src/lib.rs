//! Tokenizers, chat templates, loss masks from token provenance, and their audit.

pub mod audit;
pub mod error;
pub mod mask;
pub mod show;
pub mod template;
pub mod tokenizer;

pub use audit::{AuditError, AuditPolicy, AuditReport, Doubt, audit_dataset, audit_example};
pub use error::{Origin, TextError};
pub use mask::{
    Conversation, Example, MaskPolicy, Masker, Part, Piece, Prompt, Targets, TrainOn, TruncationMode, Turn,
};
pub use template::{ChatTemplate, Message, Moment, Rendering, TemplateInputs};
pub use tokenizer::{DecodeStream, Encoding, Tokenizer, TokenizerConfig, train_byte_bpe};
