//! Benchmarks: what a model can do, how sure that is, and what it has forgotten.
//!
//! A [`catalogue`] entry makes questions ([`Item`]) from files and judges answers; [`prepare`] reads one by name,
//! [`Prepared::measure`] asks a [`Subject`]: probabilities come from the trainer's scorer, replies from the rollout engine.
//! [`suite`] asks several models and compares them; [`results`] are a summary and a file with every question; [`gate()`] compares two of them, question by question.
//!
//! Prompts and judgements are lm-evaluation-harness' wherever both have the benchmark; each file under `benchmarks` says
//! which version and where it differs, and `golden/eval` holds what the harness computes. A benchmark's version is raised
//! whenever its questions, prompt or judgement change, and results of different versions are never compared.
//!
//! **Adding a benchmark**: one file under `benchmarks`, one line in [`BENCHMARKS`].
//!
//! Left out: multiple correct answers by probability normalised per byte, multi-turn tool use, and any download: data are
//! files or lie in the hub cache.

mod benchmarks;
pub mod catalogue;
mod error;
pub mod gate;
pub mod item;
pub mod judge;
mod python_random;
pub mod results;
mod run;
pub mod source;
pub mod stats;
pub mod subject;
pub mod suite;

pub use catalogue::{BENCHMARKS, Benchmark, BenchmarkInfo};
pub use error::{EvalError, Result};
pub use gate::{FailOn, Gate, GateOptions, gate};
pub use item::Item;
pub use judge::{Company, Judge, ServedJudge};
pub use results::{BenchmarkResult, Results, Sample};
pub use run::{Prepared, prepare};
pub use source::Settings;
pub use subject::Subject;
