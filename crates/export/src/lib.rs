//! Trained models for other programs, and several models made into one.
//!
//! [`write_gguf`] writes a model with its tokenizer as the file llama.cpp and Ollama read; [`prove_gguf`] reads it again,
//! with nothing but the file, and compares predictions, tokens, rendered conversations and stop tokens with the source.
//! [`modelfile()`] writes what Ollama wants beside it. [`fuse()`] merges models. Hugging Face folders are written by
//! `pt_models`; [`prove_folder`] compares them. [`publish`] does all of it for a format.
//!
//! The block formats are in [`quant`], the container in [`mod@gguf`], names and conventions in [`layout`], tokenizers in [`vocab`].
//!
//! Left out: importance matrices, splitting into several GGUF files, adapters as GGUF, Unigram tokenizers.

mod divergence;
mod error;
mod export;
pub mod fuse;
pub mod gguf;
pub mod layout;
mod mixture;
mod modelfile;
mod publish;
pub mod quant;
pub mod vocab;

pub use divergence::{Divergence, divergence};
pub use error::{ExportError, Result};
pub use export::{GgufOptions, Proof, prove_gguf, prove_model, sequences, write_gguf};
pub use fuse::{FuseMethod, FuseOptions, fuse};
pub use mixture::{Quant, TensorRole};
pub use modelfile::{Modelfile, modelfile};
pub use publish::{EXACT, Format, PROOF_TEXT, PublishOptions, Published, prove_folder, publish};
