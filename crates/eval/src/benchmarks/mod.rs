//! One file for each benchmark: where its questions come from, how they are asked, how answers are judged.

pub(crate) mod bbh;
pub(crate) mod generated;
pub(crate) mod gsm8k;
pub(crate) mod humaneval;
pub(crate) mod ifeval;
pub(crate) mod math500;
pub(crate) mod mbpp;
pub(crate) mod mmlu;
pub(crate) mod mt_bench;
pub(crate) mod perplexity;
mod program;
pub(crate) mod truthfulqa;
pub(crate) mod win_rate;
pub(crate) mod xstest;

use serde_json::Value;

use crate::item::{Answer, Item};

/// The reply and whether it was cut.
///
/// # Panics
/// If the answer is none: the question asked for one.
fn reply<'a>(answer: &Answer<'a>) -> (&'a str, bool) {
    match answer {
        Answer::Reply { text, is_truncated } => (text, *is_truncated),
        other => panic!("a question asked for a reply was answered with {other:?}"),
    }
}

/// What a verifier of `pt_verify` is asked.
fn question<'a>(item: &'a Item, answer: &Answer<'a>, gold: Option<&'a Value>) -> pt_verify::Question<'a> {
    let (reply, is_truncated) = reply(answer);
    pt_verify::Question { prompt: &item.prompt.question, reply, gold, row: &item.row, is_truncated }
}
