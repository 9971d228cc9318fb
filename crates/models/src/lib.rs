//! Language-model architectures, configuration and weights of Hugging Face directories, adapters.
//!
//! [`load()`] reads a directory into a [`Model`]: parameters, and an architecture ([`CausalLm`]) that holds ids and
//! sizes and writes only its forward pass. [`save()`] writes one back. [`NewModel`] makes one from nothing,
//! [`llama2c::import`] reads another format. [`Model::attach_lora`] and [`Model::attach_peft`] add adapters,
//! [`Model::merge_adapter`] folds them in.
//!
//! Everything fails closed: an option of config.json that may change results and is not understood, a tensor too
//! many or too few, a NaN among the weights are errors that name themselves.
//!
//! What it leaves out: encoders, vision towers, mixtures of experts, and tokenizers (another crate's).

pub mod adapter;
pub mod arch;
mod builder;
mod config;
mod decoder;
mod error;
mod file;
mod init;
pub mod llama2c;
mod load;
mod model;
mod options;
mod rope;
mod save;
mod score_head;
mod shards;

pub use adapter::{Adapter, AllLinear, LoraConfig, LoraInit, PeftConfig, Targets};
pub use arch::{ARCHITECTURES, Architecture};
pub use builder::{Builder, ParamSpec, Role, WeightSource};
pub use config::{ModelConfig, StoredQuantisation};
pub use error::{ModelError, Result};
pub use init::NewModel;
pub use load::{LoadOptions, Quantise, load, load_any_config, load_config, quantised};
pub use model::{CausalLm, Model};
pub use options::Options;
pub use rope::Rope;
pub use save::{SaveOptions, save, save_into};
pub use score_head::{ScoreHead, ScoreHeadKind, ScoreValues};
