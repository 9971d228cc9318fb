//! Tokenizers, chat templates, loss masks from token provenance, and their audit.
//!
//! What a data loader needs, in order:
//!
//! 1. [`Tokenizer::from_dir`] loads the tokenizer of a Hugging Face model directory;
//!    [`Tokenizer::chat_template`] compiles its chat template (or [`ChatTemplate::new`] another one).
//! 2. [`Masker::new`] takes both and a [`MaskPolicy`]; its methods turn rows into [`Example`]s:
//!    [`Masker::conversation`] (`messages`), [`Masker::prompt_completion`] (messages),
//!    [`Masker::prompt_completion_text`], [`Masker::text`] and [`Masker::pretokenised`]. Each takes the
//!    row's [`Origin`], and each refuses a row that would train the wrong thing ([`AuditError`]).
//!    [`Masker::prompt`] and [`Masker::prompt_text`] give the prompts that sampling continues, by the
//!    same code, so that training and sampling cannot disagree.
//! 3. [`audit_dataset`] sums up all examples; [`show::show`] and [`show::table`] show one.
//!
//! ```
//! use pt_text::{ChatTemplate, Conversation, MaskPolicy, Masker, Message, Origin, train_byte_bpe};
//!
//! let tokenizer = train_byte_bpe(["some text to learn from"], 300, &["<|end|>", "<|user|>", "<|bot|>"])?;
//! let template = ChatTemplate::new(
//!     "{% for m in messages %}{{ '<|bot|>' if m.role == 'assistant' else '<|user|>' }}{{ m.content }}<|end|>{% endfor %}\
//!      {% if add_generation_prompt %}<|bot|>{% endif %}",
//! )?;
//! let messages: Vec<Message> = serde_json::from_str(
//!     r#"[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]"#,
//! )?;
//! let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
//! let row = Conversation { messages: &messages, ..Conversation::default() };
//! let example = masker.conversation(&Origin::new("chat.jsonl", 1), &row)?;
//! assert_eq!(example.trained_text(), "Hello<|end|>");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Messages are JSON objects and reach the template with every field they have, except
//! [`mask::CONTROL_FIELDS`], by which a message directs its own training.

pub mod audit;
pub mod error;
pub mod mask;
pub mod show;
pub mod template;
pub mod tokenizer;
pub mod tools;

pub use audit::{AuditError, AuditPolicy, AuditReport, Doubt, audit_dataset, audit_example};
pub use error::{Origin, TextError};
pub use mask::{
    Continuation, Conversation, Example, MaskPolicy, Masker, Part, Piece, Prompt, Targets, TrainOn,
    TruncationMode, Turn,
};
pub use template::{ChatTemplate, Message, Moment, Rendering, TemplateInputs};
pub use tokenizer::{DecodeStream, Encoding, Tokenizer, TokenizerConfig, train_byte_bpe};
