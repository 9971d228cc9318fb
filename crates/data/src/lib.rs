//! Readers, dataset layouts, conversion, mixtures, packing and the tokenised cache.
//!
//! ```text
//! files --read--> Row --layout--> Record --(tokenise: given from above)--> TokenisedRow --cache-->
//!       lengths --mix--> order of rows --batches--> steps of micro-batches of row indices
//! ```
//!
//! This crate knows no tokenizer, template, model or recipe: what depends on them is passed in as a
//! closure. It reads no environment and downloads nothing.

pub mod batches;
pub mod cache;
mod error;
pub mod layout;
mod message;
pub mod mix;
pub mod pack;
pub mod parallel;
pub mod read;
mod record;
mod row;
pub mod source;
pub mod split;

pub use error::DataError;
pub use message::{Message, Train, TrainSpan};
pub use record::{Body, Content, Record, Segment};
pub use row::{Columns, Origin, Row};
