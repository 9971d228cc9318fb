//! Pairs to be judged: two replies to one prompt, or why a row is none.

use pt_core::rng::Stream;
use pt_data::{Body, Columns, Record};

use crate::chat::{Ask, AskOptions, Chat, Counted, Tally, Turn};
use crate::error::{FeedbackError, Result};
use crate::revise::{Keys, call_seed, prompt_turns, reply_text, wrong};

/// Two replies to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// What is replied to.
    pub prompt: Vec<Turn>,
    /// The replies, in an order drawn by content, so that places say nothing.
    pub replies: [String; 2],
    /// Which of them the data call better, where they do.
    pub label: Option<usize>,
    /// Other columns of the row.
    pub extra: Columns,
    /// Identity by content.
    pub key: u64,
}

/// A pair, or a row that cannot be judged.
#[derive(Clone, Debug, PartialEq)]
pub enum Candidate {
    /// To be judged.
    Pair(Pair),
    /// Not to be judged, and why: `equal_replies`, `empty_reply`, `no_common_prompt`, `not_plain_text`,
    /// `no_reply` (a model's call failed).
    Excluded {
        /// Counted in the report.
        reason: &'static str,
        /// What the row was.
        row: Columns,
    },
}

impl Pair {
    /// Characters of each reply.
    pub(crate) fn lengths(&self) -> [usize; 2] {
        [0, 1].map(|i| self.replies[i].chars().count())
    }
}

/// Puts the replies in a drawn order; `label` is about the order given.
fn candidate(
    keys: &mut Keys,
    seed: u64,
    prompt: Vec<Turn>,
    replies: [String; 2],
    label: Option<usize>,
    extra: Columns,
    row: impl FnOnce() -> Columns,
) -> Candidate {
    let [a, b] = &replies;
    if a.trim().is_empty() || b.trim().is_empty() {
        return Candidate::Excluded { reason: "empty_reply", row: row() };
    }
    if a.trim() == b.trim() {
        return Candidate::Excluded { reason: "equal_replies", row: row() };
    }
    // The key is that of the pair in either order.
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let texts = prompt.iter().flat_map(|turn| [turn.role.as_str(), turn.content.as_str()]);
    let key = keys.next(texts.chain([low.as_str(), high.as_str()]));
    let first = Stream::new(seed, "pair-order").at(key).below(2);
    let [low, high] = [low.clone(), high.clone()];
    let label = label
        .map(|label| usize::from(replies[label] != if first == 0 { low.as_str() } else { high.as_str() }));
    let replies = if first == 0 { [low, high] } else { [high, low] };
    Candidate::Pair(Pair { prompt, replies, label, extra, key })
}

/// The pairs of preference rows. `chosen` is the label where `is_labelled`, and says nothing otherwise.
///
/// # Errors
/// A row that is no preference.
pub fn pairs_of(records: &[Record], is_labelled: bool, seed: u64) -> Result<Vec<Candidate>> {
    let mut keys = Keys::new();
    let mut one = |record: &Record| -> Result<Candidate> {
        if !matches!(record.body, Body::Preference { .. }) {
            return Err(wrong(record, "a preference (`chosen` and `rejected`)", record.body.kind()));
        }
        let row = || record.to_row();
        if let Body::Preference { chosen, rejected, .. } = &record.body
            && chosen == rejected
        {
            return Ok(Candidate::Excluded { reason: "equal_replies", row: row() });
        }
        let Ok(with_prompt) = record.clone().extract_prompt() else {
            return Ok(Candidate::Excluded { reason: "no_common_prompt", row: row() });
        };
        let Body::Preference { prompt: Some(prompt), chosen, rejected, .. } = &with_prompt.body else {
            return Ok(Candidate::Excluded { reason: "no_common_prompt", row: row() });
        };
        let (Some(prompt), Some(chosen), Some(rejected)) =
            (prompt_turns(prompt), reply_text(chosen), reply_text(rejected))
        else {
            return Ok(Candidate::Excluded { reason: "not_plain_text", row: row() });
        };
        let label = is_labelled.then_some(0);
        Ok(candidate(&mut keys, seed, prompt, [chosen, rejected], label, record.extra.clone(), row))
    };
    records.iter().map(&mut one).collect()
}

/// Two replies to each prompt: from one model with two seeds, or from two models.
///
/// # Errors
/// A row that is no prompt; those of the models.
pub fn sample_pairs(
    records: &[Record],
    models: [&dyn Chat; 2],
    options: &AskOptions,
    seed: u64,
    watch: &mut dyn FnMut(&Tally),
) -> Result<(Vec<Candidate>, [Tally; 2])> {
    let mut keys = Keys::new();
    let mut prompts = Vec::with_capacity(records.len());
    for record in records {
        let prompt = match &record.body {
            Body::PromptOnly { prompt } | Body::PromptCompletion { prompt, .. } => prompt_turns(prompt),
            other => return Err(wrong(record, "a prompt", other.kind())),
        };
        let prompt = prompt
            .filter(|prompt| !prompt.is_empty())
            .ok_or_else(|| wrong(record, "a prompt of plain text", "something else"))?;
        let key = keys.next(prompt.iter().flat_map(|turn| [turn.role.as_str(), turn.content.as_str()]));
        prompts.push((prompt, key));
    }
    let mut replies = Vec::new();
    let mut tallies = [Tally::default(); 2];
    for (side, model) in models.into_iter().enumerate() {
        let ask = |(prompt, key): &(Vec<Turn>, u64)| Ask {
            messages: prompt.clone(),
            seed: call_seed(seed, *key, side as u64),
        };
        let asks: Vec<Ask> = prompts.iter().map(ask).collect();
        let mut calls = Counted::new(model, watch);
        replies.push(calls.ask_all(&asks, options)?);
        tallies[side] = calls.tally();
    }
    let [second, first] = [replies.pop(), replies.pop()].map(|replies| replies.expect("both sides answered"));
    let mut keys = Keys::new();
    let one =
        |((record, (prompt, _)), (first, second)): ((&Record, (Vec<Turn>, u64)), _)| match (first, second) {
            (Ok(first), Ok(second)) => {
                let (first, second): (crate::Answer, crate::Answer) = (first, second);
                let replies = [first.text.trim().to_owned(), second.text.trim().to_owned()];
                candidate(&mut keys, seed, prompt, replies, None, record.extra.clone(), || record.to_row())
            }
            (Err(_), _) | (_, Err(_)) => Candidate::Excluded { reason: "no_reply", row: record.to_row() },
        };
    let rows = records.iter().zip(prompts).zip(first.into_iter().zip(second));
    Ok((rows.map(one).collect(), tallies))
}

/// Refuses a share that is none.
pub(crate) fn check_share(name: &'static str, value: f64, most: f64) -> Result<()> {
    if value.is_finite() && (0.0..=most).contains(&value) {
        return Ok(());
    }
    let expected = if most < 1.0 { "a number from 0 to 0.5" } else { "a number from 0 to 1" };
    Err(FeedbackError::Option { name, found: value.to_string(), expected })
}
