//! Stage 2 of Constitutional AI: pairs judged by principle, to preference data.
//!
//! ```text
//! p_order(k)  = mean over votes of P(first reply is better)         by principle k, for each order of showing
//! p(k)        = (p_forward(k) + p_backward(k)) / 2                  needs a vote in each order, if both are asked for
//! p           = sum_k w_k p(k) / sum_k w_k                          over the pair's principles that have a p
//! ```
//!
//! A vote's probability comes from the probabilities of the letters (Bai et al. 2022, section 4.1), where the model gives
//! them, and is 1, 0 or 1/2 by the letter otherwise. Showing each pair in both orders is Zheng et al. 2023,
//! arXiv:2306.05685, section 3.4; averaging over them takes a constant bias of place out of `p`. A pair whose winner
//! changes with the order is inconsistent and excluded, also where the average leans to one side.

use std::collections::BTreeMap;

use pt_data::Columns;
use serde::Serialize;
use serde_json::{Value, json};

use crate::chat::{Answer, Ask, AskOptions, Chat, Counted, Tally, Turn};
use crate::constitution::Constitution;
use crate::error::{FeedbackError, Result};
use crate::figures::{Figures, Observation};
use crate::pairs::{Candidate, Pair, check_share};
use crate::revise::call_seed;
use crate::verdict::{self, Letter};
use crate::wording;

/// Characters of a nonsense answer that are kept.
const EXCERPT_CHARS: usize = 200;

/// How pairs are judged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct JudgeOptions {
    /// Votes for each pair, principle and order.
    pub votes: usize,
    /// Whether each vote is taken in both orders.
    pub swap: bool,
    /// Principles of each pair, drawn by weight; 0 is all.
    pub principles_per_pair: usize,
    /// A probability this near to one half is a tie.
    pub tie_margin: f64,
    /// Draws principles and orders, and keys the model's draws.
    pub seed: u64,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Divides the logits.
    pub temperature: f64,
    /// Alternatives whose probabilities are asked for; 0 counts letters only.
    pub top_logprobs: u32,
}

/// Which reply was shown in place A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The pair's first.
    Forward,
    /// The pair's second.
    Backward,
}

/// What a vote says of the pair, places taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The pair's first reply.
    First,
    /// The pair's second reply.
    Second,
    /// Neither.
    Tie,
    /// It was answered, and no choice was in the answer.
    Abstained,
    /// It was not answered.
    Failed,
}

/// One vote.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vote {
    /// How the pair was shown.
    pub order: Order,
    /// What it says.
    pub choice: Choice,
    /// Probability that the first reply is better; none without a choice.
    pub p_first: Option<f64>,
    /// Whether the probability comes from those of the letters.
    pub is_soft: bool,
    /// The nonsense, or why the call failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A pair by one principle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// The principle's id.
    pub principle: String,
    /// Probability that the first reply is better.
    pub p_first: Option<f64>,
    /// Whether both orders agree on the winner; unknown where one has none.
    pub is_consistent: Option<bool>,
    /// All votes.
    pub votes: Vec<Vote>,
}

/// What became of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The first reply is better.
    First,
    /// The second reply is better.
    Second,
    /// Neither, within the margin.
    Tie,
    /// The winner changes with the order of showing.
    Inconsistent,
    /// The judge said nothing that counts.
    NoVerdict,
    /// No call was answered.
    Failed,
}

/// A pair with all that was said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The pair.
    pub pair: Pair,
    /// By principle.
    pub judgements: Vec<Judgement>,
    /// Probability that the first reply is better.
    pub p_first: Option<f64>,
    /// Whether both orders agree on the winner.
    pub is_consistent: Option<bool>,
    /// What became of it.
    pub outcome: Outcome,
}

/// A row after judging.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// Judged.
    Judged(Judged),
    /// Never asked about.
    Excluded {
        /// Why.
        reason: &'static str,
        /// What it was.
        row: Columns,
    },
}

/// How a principle did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgedBy {
    /// Its id.
    pub id: String,
    /// Its category.
    pub category: String,
    /// Its weight.
    pub weight: f64,
    /// Its figures, over the pairs that were judged by it.
    pub figures: Figures,
}

/// Figures of a run of judgements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgeReport {
    /// Always `judge`.
    pub stage: &'static str,
    /// The constitution's name.
    pub constitution: String,
    /// Its content.
    pub constitution_hash: String,
    /// The judge.
    pub model: String,
    /// As asked.
    pub options: JudgeOptions,
    /// Rows read.
    pub n_rows: usize,
    /// Preferences made.
    pub n_kept: usize,
    /// Rows that gave none, by reason.
    pub excluded: BTreeMap<String, usize>,
    /// Calls and tokens of the judge.
    pub calls: Tally,
    /// By the price given; 0 without one.
    pub cost: f64,
    /// Over all pairs.
    pub overall: Figures,
    /// By principle, in the constitution's order; those that judged nothing left out.
    pub principles: Vec<JudgedBy>,
}

/// All rows with their figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgements {
    /// In order.
    pub rows: Vec<Row>,
    /// The figures.
    pub report: JudgeReport,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::First => "first",
            Outcome::Second => "second",
            Outcome::Tie => "tie",
            Outcome::Inconsistent => "inconsistent",
            Outcome::NoVerdict => "no_verdict",
            Outcome::Failed => "failed",
        }
    }
}

impl Row {
    /// Why the row gives no preference, if it gives none.
    pub fn exclusion(&self) -> Option<&'static str> {
        match self {
            Row::Judged(Judged { outcome: Outcome::First | Outcome::Second, .. }) => None,
            Row::Judged(judged) => Some(judged.outcome.name()),
            Row::Excluded { reason, .. } => Some(reason),
        }
    }

    /// The row of the output: a preference with `soft_label` (probability that `chosen` is better) and all judgements
    /// beside it, `first` in them being `chosen` where `chosen_is_first`; or what was excluded, with `excluded`.
    pub fn to_row(&self) -> Columns {
        let judged = match self {
            Row::Excluded { reason, row } => {
                let mut row = row.clone();
                row.insert("excluded".to_owned(), json!(reason));
                return row;
            }
            Row::Judged(judged) => judged,
        };
        let [first, second] = [0, 1].map(|i| json!([Turn::assistant(judged.pair.replies[i].as_str())]));
        let p = judged.p_first;
        let mut row = Columns::new();
        let mut put = |key: &str, value: Value| {
            row.insert(key.to_owned(), value);
        };
        put("prompt", json!(judged.pair.prompt));
        match judged.outcome {
            Outcome::First | Outcome::Second => {
                let is_first = judged.outcome == Outcome::First;
                let (chosen, rejected) = if is_first { (first, second) } else { (second, first) };
                put("chosen", chosen);
                put("rejected", rejected);
                put("soft_label", json!(p.map(|p| if is_first { p } else { 1.0 - p })));
                put("chosen_is_first", json!(is_first));
            }
            outcome => {
                put("replies", json!([first, second]));
                put("p_first", json!(p));
                put("excluded", json!(outcome.name()));
            }
        }
        put("judgements", json!(judged.judgements));
        for (key, value) in &judged.pair.extra {
            row.entry(key.as_str()).or_insert_with(|| value.clone());
        }
        row
    }
}

impl JudgeOptions {
    /// Refuses options that mean nothing, or of which one would have no effect.
    ///
    /// # Errors
    /// [`FeedbackError::Option`].
    pub fn check(&self) -> Result<()> {
        let refuse =
            |expected| Err(FeedbackError::Option { name: "votes", found: self.votes.to_string(), expected });
        if self.votes == 0 {
            return refuse("at least 1");
        }
        if self.votes > 1 && self.temperature <= 0.0 {
            return refuse(
                "1 at temperature 0, where every vote is the first again; or give a temperature above 0",
            );
        }
        // At one half, everything would be a tie.
        check_share("tie_margin", self.tie_margin, 0.5 - f64::EPSILON)
    }

    fn orders(&self) -> &'static [Order] {
        if self.swap { &[Order::Forward, Order::Backward] } else { &[Order::Forward] }
    }
}

/// Judges the candidates by the constitution. `watch` is told of the calls as they are done.
///
/// # Errors
/// [`FeedbackError::Option`]; [`FeedbackError::AllFailed`]; a cache that cannot be used.
pub fn judge(
    candidates: Vec<Candidate>,
    constitution: &Constitution,
    chat: &dyn Chat,
    options: &JudgeOptions,
    watch: &mut dyn FnMut(&Tally),
) -> Result<Judgements> {
    options.check()?;
    let n_principles = match options.principles_per_pair {
        0 => constitution.n_drawable(),
        n => n.min(constitution.n_drawable()),
    };
    let drawn: Vec<Vec<usize>> = candidates
        .iter()
        .map(|candidate| match candidate {
            Candidate::Pair(pair) => {
                let mut drawn = constitution.draw(options.seed, pair.key, n_principles);
                drawn.sort_unstable();
                drawn
            }
            Candidate::Excluded { .. } => Vec::new(),
        })
        .collect();
    let mut asks = Vec::new();
    for (candidate, drawn) in candidates.iter().zip(&drawn) {
        if let Candidate::Pair(pair) = candidate {
            asks.extend(drawn.iter().flat_map(|&at| asks_of(pair, at, constitution, options)));
        }
    }
    let mut calls = Counted::new(chat, watch);
    let answer_options = AskOptions {
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        top_logprobs: options.top_logprobs,
    };
    let mut answers = calls.ask_all(&asks, &answer_options)?.into_iter();
    let mut rows = Vec::with_capacity(candidates.len());
    for (candidate, drawn) in candidates.into_iter().zip(&drawn) {
        rows.push(match candidate {
            Candidate::Excluded { reason, row } => Row::Excluded { reason, row },
            Candidate::Pair(pair) => {
                let mut judgements = Vec::with_capacity(drawn.len());
                for &at in drawn {
                    let principle = constitution.principles[at].id.clone();
                    judgements.push(judgement(principle, options, &mut answers));
                }
                Row::Judged(judged(pair, judgements, constitution, drawn, options))
            }
        });
    }
    let report = report(&rows, constitution, chat, options, calls.tally());
    Ok(Judgements { rows, report })
}

/// In the order in which [`judgement`] takes the answers.
fn asks_of<'a>(
    pair: &'a Pair,
    at: usize,
    constitution: &'a Constitution,
    options: &'a JudgeOptions,
) -> impl Iterator<Item = Ask> + 'a {
    let principle = &constitution.principles[at];
    let key = pair.key ^ crate::chat::key_of([principle.id.as_str()]);
    options.orders().iter().enumerate().flat_map(move |(n_order, order)| {
        let [first, second] = &pair.replies;
        let (a, b) = if *order == Order::Forward { (first, second) } else { (second, first) };
        let messages = vec![Turn::user(wording::comparison(principle, &pair.prompt, a, b))];
        (0..options.votes).map(move |vote| Ask {
            messages: messages.clone(),
            seed: call_seed(options.seed, key, (2 * vote + n_order) as u64),
        })
    })
}

fn vote(order: Order, answer: std::result::Result<Answer, String>) -> Vote {
    let none = |choice, reason| Vote { order, choice, p_first: None, is_soft: false, reason: Some(reason) };
    let answer = match answer {
        Ok(answer) => answer,
        Err(reason) => return none(Choice::Failed, reason),
    };
    let Some(letter) = verdict::letter(&answer.text) else {
        return none(Choice::Abstained, answer.text.chars().take(EXCERPT_CHARS).collect());
    };
    let soft = verdict::soft(&answer.tokens, letter);
    let p_a = soft.unwrap_or(match letter {
        Letter::A => 1.0,
        Letter::B => 0.0,
        Letter::C => 0.5,
    });
    let choice = match (letter, order) {
        (Letter::C, _) => Choice::Tie,
        (Letter::A, Order::Forward) | (Letter::B, Order::Backward) => Choice::First,
        (Letter::A, Order::Backward) | (Letter::B, Order::Forward) => Choice::Second,
    };
    let p_first = if order == Order::Forward { p_a } else { 1.0 - p_a };
    Vote { order, choice, p_first: Some(p_first), is_soft: soft.is_some(), reason: None }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The mean in each order that was asked for; none where an order has no vote that counts.
fn by_order(votes: &[Vote], options: &JudgeOptions) -> Option<Vec<f64>> {
    let of = |order| mean(votes.iter().filter(|vote| vote.order == order).filter_map(|vote| vote.p_first));
    options.orders().iter().map(|order| of(*order)).collect()
}

/// Whether both orders have the same winner. An order without one contradicts nothing.
fn agrees(by_order: &[f64]) -> Option<bool> {
    match by_order {
        [forward, backward] => Some((forward - 0.5) * (backward - 0.5) >= 0.0),
        _ => None,
    }
}

fn judgement(
    principle: String,
    options: &JudgeOptions,
    answers: &mut dyn Iterator<Item = std::result::Result<Answer, String>>,
) -> Judgement {
    let mut votes = Vec::new();
    for order in options.orders() {
        for _ in 0..options.votes {
            votes.push(vote(*order, answers.next().expect("there is an answer to each ask")));
        }
    }
    let orders = by_order(&votes, options);
    Judgement {
        principle,
        p_first: orders.as_ref().and_then(|orders| mean(orders.iter().copied())),
        is_consistent: orders.as_ref().and_then(|orders| agrees(orders)),
        votes,
    }
}

fn judged(
    pair: Pair,
    judgements: Vec<Judgement>,
    constitution: &Constitution,
    drawn: &[usize],
    options: &JudgeOptions,
) -> Judged {
    let (mut weights, mut sums) = (0.0, vec![0.0; options.orders().len()]);
    for (judgement, &at) in judgements.iter().zip(drawn) {
        let Some(orders) = by_order(&judgement.votes, options) else { continue };
        let weight = constitution.principles[at].weight;
        weights += weight;
        for (sum, p) in sums.iter_mut().zip(orders) {
            *sum += weight * p;
        }
    }
    let orders: Option<Vec<f64>> = (weights > 0.0).then(|| sums.iter().map(|sum| sum / weights).collect());
    let p_first = orders.as_ref().and_then(|orders| mean(orders.iter().copied()));
    let is_consistent = orders.as_ref().and_then(|orders| agrees(orders));
    let all_failed =
        judgements.iter().flat_map(|judgement| &judgement.votes).all(|vote| vote.choice == Choice::Failed);
    let outcome = match p_first {
        None if all_failed => Outcome::Failed,
        None => Outcome::NoVerdict,
        Some(_) if is_consistent == Some(false) => Outcome::Inconsistent,
        Some(p) if (p - 0.5).abs() <= options.tie_margin => Outcome::Tie,
        Some(p) if p > 0.5 => Outcome::First,
        Some(_) => Outcome::Second,
    };
    Judged { pair, judgements, p_first, is_consistent, outcome }
}

fn report(
    rows: &[Row],
    constitution: &Constitution,
    chat: &dyn Chat,
    options: &JudgeOptions,
    calls: Tally,
) -> JudgeReport {
    let mut excluded = BTreeMap::new();
    for reason in rows.iter().filter_map(Row::exclusion) {
        *excluded.entry(reason.to_owned()).or_default() += 1;
    }
    let pairs: Vec<&Judged> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Judged(judged) => Some(judged),
            Row::Excluded { .. } => None,
        })
        .collect();
    let of_pair = |judged: &&Judged| Observation {
        p_first: judged.p_first,
        is_consistent: judged.is_consistent,
        votes: judged.judgements.iter().flat_map(|judgement| &judgement.votes).cloned().collect(),
        lengths: judged.pair.lengths(),
        label: judged.pair.label,
    };
    let mut principles = Vec::new();
    for principle in &constitution.principles {
        let of_principle = |judged: &&Judged| {
            let judgement = judged.judgements.iter().find(|judgement| judgement.principle == principle.id)?;
            Some(Observation {
                p_first: judgement.p_first,
                is_consistent: judgement.is_consistent,
                votes: judgement.votes.clone(),
                lengths: judged.pair.lengths(),
                label: judged.pair.label,
            })
        };
        let observations: Vec<Observation> = pairs.iter().filter_map(of_principle).collect();
        if !observations.is_empty() {
            principles.push(JudgedBy {
                id: principle.id.clone(),
                category: principle.category.clone(),
                weight: principle.weight,
                figures: Figures::of(&observations),
            });
        }
    }
    JudgeReport {
        stage: "judge",
        constitution: constitution.name.clone(),
        constitution_hash: constitution.hash(),
        model: chat.name().to_owned(),
        options: *options,
        n_rows: rows.len(),
        n_kept: rows.iter().filter(|row| row.exclusion().is_none()).count(),
        excluded,
        calls,
        cost: chat.cost(&calls),
        overall: Figures::of(&pairs.iter().map(of_pair).collect::<Vec<_>>()),
        principles,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_without_a_meaning_or_an_effect_are_refused() {
        let usual = JudgeOptions {
            votes: 1,
            swap: true,
            principles_per_pair: 1,
            tie_margin: 0.0,
            seed: 0,
            max_tokens: 16,
            temperature: 0.0,
            top_logprobs: 5,
        };
        for (options, expected) in [
            (usual, None),
            (JudgeOptions { votes: 0, ..usual }, Some("expected at least 1")),
            (JudgeOptions { votes: 2, ..usual }, Some("every vote is the first again")),
            (JudgeOptions { votes: 2, temperature: 0.7, ..usual }, None),
            (JudgeOptions { tie_margin: 0.5, ..usual }, Some("tie_margin")),
        ] {
            match (options.check(), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) if error.to_string().contains(part) => {}
                (found, _) => panic!("{options:?}: {found:?}, expected {expected:?}"),
            }
        }
    }
}
