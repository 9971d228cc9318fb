//! What every crate shares: counter-based randomness, content hashes, atomic files, catalogues, name
//! suggestions, and where test data lives.

pub mod atomic_file;
pub mod catalogue;
pub mod hash;
pub mod rng;
pub mod suggest;
pub mod testdata;
