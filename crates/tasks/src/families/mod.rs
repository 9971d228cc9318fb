//! The families of problems, one file each; the list of them is [`crate::catalogue::FAMILIES`].

pub mod arithmetic;
pub mod chat;
pub mod digits;
pub mod instruction;
pub mod letters;
pub mod program;
pub mod sum;
pub(crate) mod words;
