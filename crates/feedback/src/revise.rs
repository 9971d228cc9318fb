//! Stage 1 of Constitutional AI: critique and revision, over several rounds, to rows for supervised fine-tuning.
//!
//! For each prompt: a reply (the row's own, or the model's), then `rounds` times a principle, a critique of the reply by
//! that principle, and a revision of the reply by that critique (Bai et al. 2022, section 3.1). A row whose chain breaks
//! keeps its last whole revision; a row without one is excluded. Both are counted, with their reasons.

use std::collections::{BTreeMap, HashMap};

use pt_core::rng::Stream;
use pt_data::{Body, Columns, Content, Message, Record};
use serde::Serialize;
use serde_json::{Value, json};

use crate::chat::{Ask, AskOptions, Chat, Counted, Tally, Turn, key_of};
use crate::constitution::Constitution;
use crate::error::{FeedbackError, Result};
use crate::wording;

/// How replies are revised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReviseOptions {
    /// Critiques and revisions of each reply.
    pub rounds: usize,
    /// Draws principles and keys the model's draws.
    pub seed: u64,
    /// Most tokens of a reply, critique or revision.
    pub max_tokens: u32,
    /// Divides the logits.
    pub temperature: f64,
    /// Whether a revision that was cut at the token limit is used.
    pub keep_truncated: bool,
}

/// One critique with its revision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// The principle's id.
    pub principle: String,
    /// What was wrong with the reply.
    pub critique: String,
    /// The reply without it.
    pub revision: String,
}

/// Where and why a chain broke.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// `initial`, `critique` or `revision`.
    pub part: &'static str,
    /// From 1; 0 for the initial reply.
    pub round: usize,
    /// `failed`, `empty` or `truncated`.
    pub kind: &'static str,
    /// In words.
    pub reason: String,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// What is replied to.
    pub prompt: Vec<Turn>,
    /// The first reply; empty if there is none.
    pub initial: String,
    /// The rounds that were completed.
    pub steps: Vec<Step>,
    /// Why there are not more.
    pub failure: Option<Failure>,
    /// Other columns of the row.
    extra: Columns,
}

/// How a principle did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RevisedBy {
    /// Its id.
    pub id: String,
    /// Its category.
    pub category: String,
    /// Its weight.
    pub weight: f64,
    /// Rounds it was drawn for, those that were never reached left out.
    pub n_drawn: usize,
    /// Revisions that differ from what they revise.
    pub n_revised: usize,
    /// Revisions that changed nothing.
    pub n_unchanged: usize,
    /// Rounds that broke.
    pub n_failed: usize,
    /// Mean of characters after over characters before.
    pub mean_length_ratio: Option<f64>,
}

/// Figures of a run of revisions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReviseReport {
    /// Always `revise`.
    pub stage: &'static str,
    /// The constitution's name.
    pub constitution: String,
    /// Its content.
    pub constitution_hash: String,
    /// The model that replied, criticised and revised.
    pub model: String,
    /// As asked.
    pub options: ReviseOptions,
    /// Rows read.
    pub n_rows: usize,
    /// Rows with a revision.
    pub n_kept: usize,
    /// Of these, with fewer rounds than asked for.
    pub n_cut_short: usize,
    /// Rows without, by reason.
    pub excluded: BTreeMap<String, usize>,
    /// Calls and tokens.
    pub calls: Tally,
    /// By the price given; 0 without one.
    pub cost: f64,
    /// By principle, in the constitution's order.
    pub principles: Vec<RevisedBy>,
}

/// All rows with their figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Revised {
    /// In the order of the rows.
    pub chains: Vec<Chain>,
    /// The figures.
    pub report: ReviseReport,
}

impl Chain {
    /// The last whole revision.
    pub fn final_reply(&self) -> Option<&str> {
        self.steps.last().map(|step| step.revision.as_str())
    }

    fn reply(&self) -> &str {
        self.final_reply().unwrap_or(&self.initial)
    }

    /// Why the row is in no output, if it is not.
    pub fn exclusion(&self) -> Option<String> {
        if self.final_reply().is_some() {
            return None;
        }
        Some(
            self.failure.as_ref().map_or_else(
                || "no_rounds".to_owned(),
                |failure| format!("{}_{}", failure.part, failure.kind),
            ),
        )
    }

    /// A row for supervised fine-tuning, with the whole chain beside it.
    pub fn sft_row(&self) -> Option<Columns> {
        let reply = Turn::assistant(self.final_reply()?);
        let messages: Vec<&Turn> = self.prompt.iter().chain([&reply]).collect();
        Some(self.with_chain(vec![("messages", json!(messages))]))
    }

    /// A preference for the last revision over the first reply; none if they are equal.
    pub fn preference_row(&self) -> Option<Columns> {
        let revised = self.final_reply().filter(|reply| *reply != self.initial.trim())?;
        let columns = vec![
            ("prompt", json!(self.prompt)),
            ("chosen", json!([Turn::assistant(revised)])),
            ("rejected", json!([Turn::assistant(self.initial.as_str())])),
        ];
        Some(self.with_chain(columns))
    }

    /// A row that says why there is none.
    pub fn excluded_row(&self) -> Option<Columns> {
        let reason = self.exclusion()?;
        Some(self.with_chain(vec![("prompt", json!(self.prompt)), ("excluded", json!(reason))]))
    }

    fn with_chain(&self, columns: Vec<(&str, Value)>) -> Columns {
        let mut row: Columns = columns.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        row.insert("initial".to_owned(), json!(self.initial));
        row.insert("chain".to_owned(), json!(self.steps));
        row.insert("failure".to_owned(), json!(self.failure));
        for (key, value) in &self.extra {
            row.entry(key.as_str()).or_insert_with(|| value.clone());
        }
        row
    }
}

/// Plain turns of messages; `None` where one is not plain text.
pub(crate) fn turns(messages: &[Message]) -> Option<Vec<Turn>> {
    let turn = |message: &Message| {
        let content = message.content.clone()?;
        (!message.fields.contains_key("tool_calls")).then(|| Turn { role: message.role.clone(), content })
    };
    messages.iter().map(turn).collect()
}

/// A prompt as turns.
pub(crate) fn prompt_turns(content: &Content) -> Option<Vec<Turn>> {
    match content {
        Content::Text(text) => Some(vec![Turn::user(text.as_str())]),
        Content::Messages(messages) => turns(messages),
        Content::Segments(_) => None,
    }
}

/// A reply as one text.
pub(crate) fn reply_text(content: &Content) -> Option<String> {
    match content {
        Content::Text(text) => Some(text.clone()),
        Content::Messages(messages) => match messages.as_slice() {
            [message] if message.role == "assistant" => Some(turns(messages)?.remove(0).content),
            _ => None,
        },
        Content::Segments(_) => None,
    }
}

/// What a row asks, and what it answers already.
pub(crate) fn prompt_of(record: &Record) -> Result<(Vec<Turn>, Option<String>)> {
    let (prompt, reply) = match &record.body {
        Body::PromptOnly { prompt } => (prompt_turns(prompt), None),
        Body::PromptCompletion { prompt, completion } => (prompt_turns(prompt), Some(reply_text(completion))),
        Body::LanguageModel(Content::Messages(messages)) => match messages.split_last() {
            Some((last, prompt)) if last.role == "assistant" => (
                turns(prompt),
                Some(turns(std::slice::from_ref(last)).map(|mut turns| turns.remove(0).content)),
            ),
            _ => (turns(messages), None),
        },
        other => {
            return Err(wrong(record, "a prompt, a prompt with its completion, or messages", other.kind()));
        }
    };
    let unclear = || wrong(record, "plain text in every message, and one message as reply", "something else");
    let prompt = prompt.filter(|prompt| !prompt.is_empty()).ok_or_else(unclear)?;
    match reply {
        Some(reply) => Ok((prompt, Some(reply.ok_or_else(unclear)?))),
        None => Ok((prompt, None)),
    }
}

pub(crate) fn wrong(record: &Record, expected: &'static str, found: &str) -> FeedbackError {
    FeedbackError::Row { origin: record.origin.to_string(), expected, found: found.to_owned() }
}

/// The seed of one call: by content and by how often it came before, so that a row's place in the file does not matter.
pub(crate) fn call_seed(seed: u64, key: u64, call: u64) -> u64 {
    let words = Stream::new(seed, "feedback-calls").words(key, call);
    u64::from(words[0]) | u64::from(words[1]) << 32
}

/// Keys by content, the second of equal ones another.
pub(crate) struct Keys(HashMap<u64, u64>);

impl Keys {
    pub(crate) fn new() -> Keys {
        Keys(HashMap::new())
    }

    pub(crate) fn next<'a>(&mut self, parts: impl IntoIterator<Item = &'a str>) -> u64 {
        let key = key_of(parts);
        let n_earlier = self.0.entry(key).or_default();
        *n_earlier += 1;
        key.wrapping_add(*n_earlier - 1)
    }
}

/// A run in progress.
struct Run<'a, 'c> {
    constitution: &'a Constitution,
    options: &'a ReviseOptions,
    calls: Counted<'c>,
    chains: Vec<Chain>,
    keys: Vec<u64>,
    /// Principles of each row's rounds.
    drawn: Vec<Vec<usize>>,
}

/// Replies to the rows' prompts, criticises and revises the replies. `watch` is told of the calls as they are done.
///
/// # Errors
/// A row that is no prompt; [`FeedbackError::AllFailed`]; a cache that cannot be used.
pub fn revise(
    records: &[Record],
    constitution: &Constitution,
    chat: &dyn Chat,
    options: &ReviseOptions,
    watch: &mut dyn FnMut(&Tally),
) -> Result<Revised> {
    if options.rounds == 0 {
        return Err(FeedbackError::Option { name: "rounds", found: "0".to_owned(), expected: "at least 1" });
    }
    let mut keys = Keys::new();
    let mut run = Run {
        constitution,
        options,
        calls: Counted::new(chat, watch),
        chains: Vec::with_capacity(records.len()),
        keys: Vec::with_capacity(records.len()),
        drawn: Vec::with_capacity(records.len()),
    };
    let mut has_reply = Vec::with_capacity(records.len());
    for record in records {
        let (prompt, reply) = prompt_of(record)?;
        let key = keys.next(prompt.iter().flat_map(|turn| [turn.role.as_str(), turn.content.as_str()]));
        run.keys.push(key);
        run.drawn.push(constitution.draw(options.seed, key, options.rounds));
        has_reply.push(reply.is_some());
        let mut extra = record.extra.clone();
        // The canonical names are those of the output.
        extra.retain(|name, _| {
            !["messages", "prompt", "completion", "chosen", "rejected"].contains(&name.as_str())
        });
        run.chains.push(Chain {
            prompt,
            initial: reply.unwrap_or_default(),
            steps: Vec::new(),
            failure: None,
            extra,
        });
    }
    run.initial_replies(&has_reply)?;
    for round in 1..=options.rounds {
        run.round(round)?;
    }
    let report = run.report(chat);
    Ok(Revised { chains: run.chains, report })
}

impl Run<'_, '_> {
    /// Asks for each row that is whole; the answer goes to `take`, unless the call failed or is no text.
    fn ask(
        &mut self,
        part: &'static str,
        round: usize,
        wants: &dyn Fn(usize) -> bool,
        messages: &dyn Fn(&Chain, usize) -> Vec<Turn>,
        take: &mut dyn FnMut(&mut Chain, usize, String),
    ) -> Result<()> {
        let rows: Vec<usize> =
            (0..self.chains.len()).filter(|&i| self.chains[i].failure.is_none() && wants(i)).collect();
        let call = 2 * round as u64 + u64::from(part == "revision");
        let asks: Vec<Ask> = rows
            .iter()
            .map(|&i| Ask {
                messages: messages(&self.chains[i], i),
                seed: call_seed(self.options.seed, self.keys[i], call),
            })
            .collect();
        let ReviseOptions { max_tokens, temperature, .. } = *self.options;
        let answers = self.calls.ask_all(&asks, &AskOptions { max_tokens, temperature, top_logprobs: 0 })?;
        for (&i, answer) in rows.iter().zip(answers) {
            let chain = &mut self.chains[i];
            let fail = |kind, reason| Some(Failure { part, round, kind, reason });
            match answer {
                Err(reason) => chain.failure = fail("failed", reason),
                Ok(answer) if answer.text.trim().is_empty() => {
                    chain.failure = fail("empty", "the answer has no text".to_owned());
                }
                Ok(answer) if part == "revision" && answer.is_truncated && !self.options.keep_truncated => {
                    chain.failure = fail("truncated", format!("the revision was cut at {max_tokens} tokens"));
                }
                Ok(answer) => take(chain, i, answer.text.trim().to_owned()),
            }
        }
        Ok(())
    }

    fn initial_replies(&mut self, has_reply: &[bool]) -> Result<()> {
        for (chain, _) in self.chains.iter_mut().zip(has_reply).filter(|(_, has_reply)| **has_reply) {
            if chain.initial.trim().is_empty() {
                let reason = "the row's own reply is empty".to_owned();
                chain.failure = Some(Failure { part: "initial", round: 0, kind: "empty", reason });
            }
        }
        let messages = |chain: &Chain, _: usize| chain.prompt.clone();
        self.ask("initial", 0, &|i| !has_reply[i], &messages, &mut |chain, _, text| chain.initial = text)
    }

    fn round(&mut self, round: usize) -> Result<()> {
        let constitution = self.constitution;
        let drawn = self.drawn.clone();
        let principle = |i: usize| &constitution.principles[drawn[i][round - 1]];
        let mut critiques: HashMap<usize, String> = HashMap::new();
        let ask_critique = |chain: &Chain, i: usize| {
            vec![Turn::user(wording::critique(principle(i), &chain.prompt, chain.reply()))]
        };
        self.ask("critique", round, &|_| true, &ask_critique, &mut |_, i, text| {
            critiques.insert(i, text);
        })?;
        let ask_revision = |chain: &Chain, i: usize| {
            vec![Turn::user(wording::revision(principle(i), &chain.prompt, chain.reply(), &critiques[&i]))]
        };
        self.ask("revision", round, &|_| true, &ask_revision, &mut |chain, i, revision| {
            let principle = principle(i).id.clone();
            chain.steps.push(Step { principle, critique: critiques[&i].clone(), revision });
        })
    }

    fn report(&self, chat: &dyn Chat) -> ReviseReport {
        let mut excluded = BTreeMap::new();
        for reason in self.chains.iter().filter_map(Chain::exclusion) {
            *excluded.entry(reason).or_default() += 1;
        }
        let kept = || self.chains.iter().filter(|chain| chain.final_reply().is_some());
        ReviseReport {
            stage: "revise",
            constitution: self.constitution.name.clone(),
            constitution_hash: self.constitution.hash(),
            model: chat.name().to_owned(),
            options: *self.options,
            n_rows: self.chains.len(),
            n_kept: kept().count(),
            n_cut_short: kept().filter(|chain| chain.steps.len() < self.options.rounds).count(),
            excluded,
            calls: self.calls.tally(),
            cost: chat.cost(&self.calls.tally()),
            principles: self.by_principle(),
        }
    }

    fn by_principle(&self) -> Vec<RevisedBy> {
        let mut ratios: Vec<Vec<f64>> = vec![Vec::new(); self.constitution.principles.len()];
        let mut rows: Vec<RevisedBy> = Vec::new();
        for principle in &self.constitution.principles {
            let (id, category, weight) = (principle.id.clone(), principle.category.clone(), principle.weight);
            rows.push(RevisedBy { id, category, weight, ..RevisedBy::default() });
        }
        for (chain, drawn) in self.chains.iter().zip(&self.drawn) {
            let mut before = chain.initial.trim();
            for (step, &at) in chain.steps.iter().zip(drawn) {
                rows[at].n_drawn += 1;
                let changed = step.revision != before;
                *(if changed { &mut rows[at].n_revised } else { &mut rows[at].n_unchanged }) += 1;
                ratios[at].push(step.revision.chars().count() as f64 / before.chars().count().max(1) as f64);
                before = &step.revision;
            }
            if let Some(failure) = chain.failure.as_ref().filter(|failure| failure.round > 0) {
                let at = drawn[failure.round - 1];
                rows[at].n_drawn += 1;
                rows[at].n_failed += 1;
            }
        }
        for (row, ratios) in rows.iter_mut().zip(&ratios) {
            let n = ratios.len() as f64;
            row.mean_length_ratio = (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / n);
        }
        rows
    }
}
