//! Rows that compare or label replies, as prompts with replies: pairs, labelled replies, solutions in steps.
//!
//! A prompt is tokenised with each of its replies, audited as supervised rows are, and then shared: what both have in common is
//! one segment of the tree. Replies that cannot teach anything are left out and counted with their reason.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use pt_core::rng::Stream;
use pt_data::{Body, Content, Record, parallel};
use pt_objectives::CompletionKind;
use pt_objectives::preference::kto::KtoConfig;
use pt_recipe::{Mask, RowKind, StageSection, Truncation};
use pt_text::{Masker, Tokenizer};
use pt_train::{Example, Reply, ScoredToken};

use crate::error::{PipelineError, Result};
use crate::example::{self, masker, text_origin, wrong_kind};
use crate::source::SourceRows;
use crate::tokenise::{Counts, TokeniseOptions, TokenisedSource};

/// What a row became.
enum Converted {
    Examples(Vec<Example>),
    /// The same, of a row whose prompt lost its beginning.
    OfCutPrompt(Vec<Example>),
    /// Left out, and why.
    Excluded(&'static str),
}

impl Converted {
    /// The same with each example made into others.
    fn each(self, change: impl FnMut(Example) -> Vec<Example>) -> Converted {
        match self {
            Converted::Examples(examples) => {
                Converted::Examples(examples.into_iter().flat_map(change).collect())
            }
            Converted::OfCutPrompt(examples) => {
                Converted::OfCutPrompt(examples.into_iter().flat_map(change).collect())
            }
            excluded @ Converted::Excluded(_) => excluded,
        }
    }
}

/// Tokenises rows of a kind that has replies.
///
/// # Errors
/// The first row, by order, that is of another kind, or would train the wrong thing.
pub(crate) fn tokenise_replies(
    source: &SourceRows,
    kind: RowKind,
    options: &TokeniseOptions<'_>,
    seed: u64,
) -> Result<(TokenisedSource, Vec<String>)> {
    // Lengths are cut here, so that both sides of a pair keep one prompt.
    let whole = TokeniseOptions { mask: Mask::CompletionOnly, max_length: None, ..*options };
    let masker = masker(&whole);
    let convert = |record: &Record| -> Result<Converted> {
        match kind {
            RowKind::Pairs => pair(&masker, record, &whole, options),
            RowKind::ScoredPairs => Ok(score_ends(pair(&masker, record, &whole, options)?)),
            RowKind::Labelled => labelled(&masker, record, &whole, options),
            RowKind::Steps => steps(&masker, record, options),
            RowKind::Prompts => prompt(&masker, record, options),
            RowKind::Text => unreachable!("rows without replies are tokenised as sequences"),
        }
    };
    let converted = parallel::try_map_ordered(&source.records, convert)?;
    let (mut examples, mut excluded) = (Vec::new(), BTreeMap::<&str, u64>::new());
    let mut n_cut_prompts = 0;
    for (row, converted) in converted.into_iter().enumerate() {
        n_cut_prompts += u64::from(matches!(converted, Converted::OfCutPrompt(_)));
        match converted {
            Converted::Examples(more) | Converted::OfCutPrompt(more) => {
                examples.extend(more.into_iter().map(|example| (row, example)));
            }
            Converted::Excluded(reason) => *excluded.entry(reason).or_default() += 1,
        }
    }
    let rows: Vec<usize> = examples.iter().map(|(row, _)| *row).collect();
    let mut examples: Vec<Example> = examples.into_iter().map(|(_, example)| example).collect();
    let contradictions = n_contradictions(&examples);
    if kind == RowKind::Labelled {
        add_mismatched(&mut examples, seed);
    }
    let mut counts = counts_of(&examples, excluded.values().sum());
    counts.rows_truncated += n_cut_prompts;
    let mut notes: Vec<String> =
        excluded.iter().map(|(reason, n)| format!("{n} rows were left out: {reason}")).collect();
    if contradictions > 0 {
        notes.push(format!(
            "{contradictions} rows contradict an earlier one: the same prompt and replies, judged the other way round"
        ));
    }
    Ok((TokenisedSource::of_examples(examples, rows, counts), notes))
}

fn counts_of(examples: &[Example], rows_dropped: u64) -> Counts {
    let mut counts = Counts { rows_dropped, ..Counts::default() };
    for example in examples {
        counts.tokens += example.n_tokens() as u64;
        counts.largest_id = example.all_token_ids().fold(counts.largest_id, u32::max);
        let trained = example.replies.iter().filter(|reply| reply.kind != CompletionKind::Mismatched);
        let trained =
            trained.map(|reply| reply.weights.iter().filter(|w| **w > 0.0).count() + reply.scored.len());
        counts.trained_tokens += trained.sum::<usize>() as u64;
        counts.rows_truncated += u64::from(example.replies.iter().any(|reply| reply.is_truncated));
    }
    counts
}

const TOO_LONG: &str = "longer than `max_length`";
const SAME: &str = "chosen and rejected are the same";
const EMPTY: &str = "a reply is empty";

/// Whether a reply says nothing.
fn is_blank(reply: &Content) -> bool {
    match reply {
        Content::Text(text) => text.trim().is_empty(),
        Content::Messages(messages) => messages.iter().all(|message| {
            message.content.as_deref().is_none_or(|text| text.trim().is_empty())
                && !message.fields.contains_key("tool_calls")
        }),
        Content::Segments(segments) => segments.iter().all(|segment| segment.text.trim().is_empty()),
    }
}

/// A prompt, one or two replies, and which way round they are judged.
type Compared<'e> = (&'e [u32], &'e [u32], Option<&'e [u32]>, bool);

/// How many examples contradict an earlier one: its two replies the other way round, or its reply with the other label.
fn n_contradictions(examples: &[Example]) -> usize {
    let mut seen: HashSet<Compared<'_>> = HashSet::new();
    let mut n = 0;
    for example in examples {
        let kind = |of: CompletionKind| example.replies.iter().find(|reply| reply.kind == of);
        let ids = |of| kind(of).map(|reply| &*reply.token_ids);
        let entry = match (ids(CompletionKind::Chosen), ids(CompletionKind::Rejected)) {
            (Some(chosen), Some(rejected)) => {
                let (first, second, in_order) =
                    if chosen <= rejected { (chosen, rejected, true) } else { (rejected, chosen, false) };
                (&*example.token_ids, first, Some(second), in_order)
            }
            _ => match (ids(CompletionKind::Desirable), ids(CompletionKind::Undesirable)) {
                (Some(good), _) => (&*example.token_ids, good, None, true),
                (_, Some(bad)) => (&*example.token_ids, bad, None, false),
                _ => continue,
            },
        };
        n += usize::from(seen.contains(&(entry.0, entry.1, entry.2, !entry.3)));
        seen.insert(entry);
    }
    n
}

/// What a person should know of the weights of good and bad replies (KTO), if they are out of balance.
pub(crate) fn label_balance(stage: &StageSection, train: &[TokenisedSource]) -> Option<String> {
    if stage.objective_type() != "kto" {
        return None;
    }
    let config: KtoConfig = stage.objective.params.to_toml().try_into().ok()?;
    let count = |kind| {
        let replies = train.iter().flat_map(TokenisedSource::examples).flat_map(|example| &example.replies);
        replies.filter(|reply| reply.kind == kind).count() as u64
    };
    let (good, bad) = (count(CompletionKind::Desirable), count(CompletionKind::Undesirable));
    let range = config.better_desirable_weight(good, bad)?;
    Some(format!(
        "{good} good and {bad} bad replies weigh unequally; set objective.desirable_weight between {:.2} and {:.2} (it is {})",
        range.start(),
        range.end(),
        config.desirable_weight
    ))
}

/// A better and a worse reply.
fn pair(
    masker: &Masker<'_>,
    record: &Record,
    whole: &TokeniseOptions<'_>,
    options: &TokeniseOptions<'_>,
) -> Result<Converted> {
    let record = match &record.body {
        Body::Preference { chosen, rejected, .. } if chosen == rejected => {
            return Ok(Converted::Excluded(SAME));
        }
        Body::Preference { .. } => record.clone().extract_prompt()?,
        _ => return Err(wrong_kind(record, options, "give `chosen` and `rejected` replies to a `prompt`")),
    };
    let Body::Preference { prompt: Some(prompt), chosen, rejected, margin, soft_label } = &record.body else {
        return Err(wrong_kind(&record, options, "give the prompt beside `chosen` and `rejected`"));
    };
    if is_blank(chosen) || is_blank(rejected) {
        return Ok(Converted::Excluded(EMPTY));
    }
    let completion = |content: &pt_data::Content| Record {
        body: Body::PromptCompletion { prompt: prompt.clone(), completion: content.clone() },
        ..record.clone()
    };
    let sides = [
        (CompletionKind::Chosen, example::example(masker, &completion(chosen), whole)?),
        (CompletionKind::Rejected, example::example(masker, &completion(rejected), whole)?),
    ];
    if sides[0].1.token_ids == sides[1].1.token_ids {
        return Ok(Converted::Excluded("chosen and rejected are the same tokens"));
    }
    let compared = Compare { margin: margin.unwrap_or(0.0) as f32, label: soft_label.unwrap_or(1.0) as f32 };
    tree(&record, &sides, compared, options)
}

/// How a pair's replies compare.
#[derive(Clone, Copy)]
struct Compare {
    /// By how much the chosen one should win.
    margin: f32,
    /// How likely it is the better one.
    label: f32,
}

/// A prompt and the replies to it, cut to the length that is allowed.
fn tree(
    record: &Record,
    sides: &[(CompletionKind, pt_text::Example)],
    compared: Compare,
    options: &TokeniseOptions<'_>,
) -> Result<Converted> {
    let n_prompt = sides[0].1.n_prompt;
    let prompt = &sides[0].1.token_ids[..n_prompt];
    let origin: Arc<str> = Arc::from(record.origin.to_string());
    if n_prompt == 0 || sides.iter().any(|(_, side)| side.token_ids.get(..side.n_prompt) != Some(prompt)) {
        return Err(PipelineError::PromptsDiffer { origin: origin.to_string() });
    }
    let longest = sides.iter().map(|(_, side)| side.len()).max().unwrap_or(0);
    let max_length = options.max_length.unwrap_or(usize::MAX);
    let excess = longest.saturating_sub(max_length);
    let (mut cut_front, mut limit) = (0, usize::MAX);
    if excess > 0 {
        match options.truncation {
            Truncation::Drop => return Ok(Converted::Excluded(TOO_LONG)),
            Truncation::Error => {
                return Err(PipelineError::TooLong {
                    origin: origin.to_string(),
                    tokens: longest,
                    max_length,
                });
            }
            Truncation::KeepStart => limit = max_length.saturating_sub(n_prompt),
            Truncation::KeepEnd => cut_front = excess,
        }
    }
    if limit == 0 || cut_front >= n_prompt {
        return Err(PipelineError::NothingLeft { origin: origin.to_string(), tokens: longest, max_length });
    }
    let replies = sides.iter().map(|(kind, side)| {
        let end = side.len().min(n_prompt.saturating_add(limit));
        Reply {
            token_ids: side.token_ids[n_prompt..end].to_vec(),
            weights: side.weights[n_prompt..end].to_vec(),
            kind: *kind,
            margin: compared.margin,
            label: compared.label,
            is_truncated: end < side.len(),
            ..Reply::default()
        }
    });
    let replies: Vec<Reply> = replies.collect();
    if replies.iter().any(|reply| reply.weights.iter().all(|w| *w == 0.0)) {
        return Err(PipelineError::NothingLeft { origin: origin.to_string(), tokens: longest, max_length });
    }
    if replies.len() == 2 && replies[0].token_ids == replies[1].token_ids {
        return Ok(Converted::Excluded("chosen and rejected are the same once cut to `max_length`"));
    }
    let examples = vec![Example::prompt(prompt[cut_front..].to_vec(), replies, 0, origin)];
    Ok(match cut_front {
        0 => Converted::Examples(examples),
        _ => Converted::OfCutPrompt(examples),
    })
}

/// The same replies with a score to be read at the end of each, in place of tokens that train.
fn score_ends(converted: Converted) -> Converted {
    let scored = |mut example: Example| {
        for reply in &mut example.replies {
            reply.weights.fill(0.0);
            let position = Some(reply.token_ids.len() - 1);
            reply.scored = vec![ScoredToken { position, target: 0.0, weight: 1.0, old_value: None }];
        }
        vec![example]
    };
    converted.each(scored)
}

/// A reply that is good or bad; a pair is one of each.
fn labelled(
    masker: &Masker<'_>,
    record: &Record,
    whole: &TokeniseOptions<'_>,
    options: &TokeniseOptions<'_>,
) -> Result<Converted> {
    match &record.body {
        Body::Unpaired { prompt, completion, label } => {
            let body = Body::PromptCompletion { prompt: prompt.clone(), completion: completion.clone() };
            let side = example::example(masker, &Record { body, ..record.clone() }, whole)?;
            let kind = if *label { CompletionKind::Desirable } else { CompletionKind::Undesirable };
            tree(record, &[(kind, side)], Compare { margin: 0.0, label: 1.0 }, options)
        }
        Body::Preference { .. } => {
            let single = |pair: Example| {
                let kinds = [CompletionKind::Desirable, CompletionKind::Undesirable];
                let replies = pair.replies.clone().into_iter().zip(kinds);
                let one = move |(reply, kind): (Reply, CompletionKind)| Example {
                    replies: vec![Reply { kind, ..reply }],
                    ..pair.clone()
                };
                replies.map(one).collect::<Vec<_>>()
            };
            Ok(pair(masker, record, whole, options)?.each(single))
        }
        _ => Err(wrong_kind(record, options, "give a `prompt`, a `completion` and a `label`")),
    }
}

/// Gives every example the reply of another one, drawn by the seed and the same in every run and batch: what the reference
/// point of KTO is estimated on (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1).
fn add_mismatched(examples: &mut [Example], seed: u64) {
    let n = examples.len();
    if n < 2 {
        return;
    }
    let shift = 1 + Stream::new(seed, "mismatched replies").at(0).below(n - 1);
    let replies: Vec<(Arc<str>, Reply)> =
        examples.iter().map(|example| (example.origin.clone(), example.replies[0].clone())).collect();
    for i in 0..n {
        // The two sides of a pair have one prompt: the reply must be to another.
        let other = (0..n).map(|step| (i + shift + step) % n).find(|&j| {
            j != i && (examples[j].token_ids != examples[i].token_ids || replies[j].0 != replies[i].0)
        });
        let Some(other) = other else { continue };
        let reply = replies[other].1.clone();
        let mismatched = Reply { kind: CompletionKind::Mismatched, ..reply };
        examples[i].replies.push(mismatched);
    }
}

/// A solution in steps, each labelled at its last token. The prompt and the steps are plain text, each step tokenised alone and
/// followed by a line break, as TRL's PRM trainer does.
fn steps(masker: &Masker<'_>, record: &Record, options: &TokeniseOptions<'_>) -> Result<Converted> {
    let Body::Stepwise { prompt, completions, labels } = &record.body else {
        return Err(wrong_kind(
            record,
            options,
            "give a `prompt`, `completions` (the steps) and their `labels`",
        ));
    };
    let origin: Arc<str> = Arc::from(record.origin.to_string());
    let prompt = masker.prompt_text(&text_origin(record), prompt)?.token_ids;
    let mut reply = Reply::default();
    let max_length = options.max_length.unwrap_or(usize::MAX);
    let limit = max_length.saturating_sub(prompt.len());
    let steps = step_token_ids(masker.tokenizer, completions)?;
    let n_tokens = prompt.len() + steps.iter().map(Vec::len).sum::<usize>();
    for (ids, label) in steps.into_iter().zip(labels) {
        if reply.token_ids.len() + ids.len() > limit {
            match options.truncation {
                Truncation::Drop => return Ok(Converted::Excluded(TOO_LONG)),
                Truncation::Error | Truncation::KeepEnd => {
                    return Err(too_long(&origin, "solution", n_tokens, max_length, "keep_start or drop"));
                }
                Truncation::KeepStart => {
                    reply.is_truncated = true;
                    break;
                }
            }
        }
        reply.token_ids.extend(ids);
        let position = Some(reply.token_ids.len() - 1);
        let target = *label as f32;
        reply.scored.push(ScoredToken { position, target, weight: 1.0, old_value: None });
    }
    if reply.scored.is_empty() {
        return Ok(Converted::Excluded("it has no step within `max_length`"));
    }
    reply.weights = vec![0.0; reply.token_ids.len()];
    Ok(Converted::Examples(vec![Example::prompt(prompt, vec![reply], 0, origin)]))
}

/// What ends a step.
pub(crate) const STEP_SEPARATOR: &str = "\n";

/// The tokens of each step: alone, followed by what ends it. A step is judged at its last one.
pub(crate) fn step_token_ids(tokenizer: &Tokenizer, steps: &[String]) -> Result<Vec<Vec<u32>>> {
    let separator = tokenizer.encode(STEP_SEPARATOR, false)?.ids;
    steps
        .iter()
        .map(|step| {
            let mut ids = tokenizer.encode(step, false)?.ids;
            ids.extend_from_slice(&separator);
            Ok(ids)
        })
        .collect()
}

/// A prompt to sample replies to. Rows with replies give their prompt.
fn prompt(masker: &Masker<'_>, record: &Record, options: &TokeniseOptions<'_>) -> Result<Converted> {
    let origin: Arc<str> = Arc::from(record.origin.to_string());
    let mut prompt = example::prompt(masker, record, options)?;
    let max_length = options.max_length.unwrap_or(usize::MAX);
    let is_too_long = prompt.len() > max_length;
    if is_too_long {
        match options.truncation {
            Truncation::Drop => return Ok(Converted::Excluded("the prompt is longer than `max_length`")),
            Truncation::KeepEnd => drop(prompt.drain(..prompt.len() - max_length)),
            // Without its end a prompt asks nothing, and no reply begins after it.
            Truncation::KeepStart | Truncation::Error => {
                return Err(too_long(&origin, "prompt", prompt.len(), max_length, "keep_end or drop"));
            }
        }
    }
    let examples = vec![Example::prompt(prompt, Vec::new(), 0, origin)];
    Ok(if is_too_long { Converted::OfCutPrompt(examples) } else { Converted::Examples(examples) })
}

/// What cannot be cut as the recipe says, and how it can be.
fn too_long(
    origin: &str,
    part: &str,
    n_tokens: usize,
    max_length: usize,
    truncations: &str,
) -> PipelineError {
    PipelineError::Unsupported {
        what: format!("{origin}: the {part} has {n_tokens} tokens, more than max_length = {max_length}"),
        advice: format!("raise it, or set truncation to {truncations}"),
    }
}
