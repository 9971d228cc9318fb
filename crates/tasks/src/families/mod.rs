//! The families of problems, one file each; the list of them is [`crate::catalogue::FAMILIES`].

pub mod arithmetic;
pub mod base;
pub mod chat;
pub mod colouring;
pub mod countdown;
pub mod digits;
pub mod guess;
pub mod instruction;
pub mod jugs;
pub mod knights;
pub mod letters;
pub mod magic;
pub mod maze;
pub mod order;
pub mod program;
pub mod queens;
pub mod rewrite;
pub mod subset;
pub mod sudoku;
pub mod sum;
pub(crate) mod words;
