//! `posttrain score`: log-probabilities of every token of given texts; with a reward model, rewards.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use pt_data::{Body, Columns, Content, Record, parallel};
use pt_text::audit::AuditPolicy;
use pt_text::{Conversation, Example, MaskPolicy, Masker, Targets, TrainOn};
use pt_train::{MicroBatch, Predictions};
use serde::Serialize;

use crate::Context;
use crate::loading::{Loaded, ModelArgs, TextArgs};
use crate::rows::{ReadArgs, template_messages, text_origin, tools_of};
use crate::ui::{self, Progress};

const HELP: &str = "\
Each row of the output has
  token_ids   the tokens of the text, with what the tokenizer puts before it (BOS)
  logprobs    natural logarithm of each token's probability given those before it; null for the first
  mask        1 where a token counts: all of a `text`, the `completion` after a `prompt`, what the assistant says \
in `messages` (change it with --mask); never the first token
  sum         the sum of `logprobs` where `mask` is 1
and the row's other columns. Rows keep their order, and the numbers do not depend on what else is in the file. Nothing \
is appended to plain text: to score the end-of-text token too, as training does, add --append-eos.

With a reward model (--model or --adapter is what a `reward` stage wrote, or a ...ForSequenceClassification) each row has
  reward      the model's score of the row: of the reply after its prompt, or of the whole text
  rewards     every output of the model, where it has several; `reward` is their mean
or, for rows with `chosen` and `rejected`, `reward_chosen` and `reward_rejected`.

Examples:
  posttrain score --model models/base --data texts.jsonl --out scores.jsonl
  posttrain score --model models/base --adapter runs/sft/stages/01-sft/adapter --data pairs.jsonl --out - | head -1
  posttrain score --model stories260K.bin --tokenizer tok512.bin --data texts.jsonl --out scores.jsonl.gz
  posttrain score --model runs/x/stages/02-reward/model --data pairs.jsonl --out rewards.jsonl";

/// Options of `score`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Rows with `text`, with `prompt` and `completion`, or with `messages`; `-` reads JSON lines from standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) data: String,
    /// Where the scores go, as JSON lines (`.gz`: compressed); `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: String,
    /// Which tokens count [default: by the layout, see below]
    #[arg(long, value_enum, value_name = "WHICH")]
    mask: Option<MaskName>,
    /// End plain text with the end-of-text token, as in training
    #[arg(long)]
    append_eos: bool,
    /// Most tokens computed at once; a longer row is computed alone
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = parse_positive)]
    tokens_per_batch: usize,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    pub(crate) read: ReadArgs,
}

/// Which tokens count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum MaskName {
    /// Every token but the first.
    All,
    /// The completion, not the prompt; of a conversation, the last assistant message.
    CompletionOnly,
    /// What the assistant says, in every turn.
    AssistantOnly,
}

impl MaskName {
    /// What recipes do with rows of this kind when they are not told otherwise.
    pub(crate) fn default_for(body: &Body) -> MaskName {
        match body {
            Body::LanguageModel(Content::Messages(_)) => MaskName::AssistantOnly,
            Body::PromptCompletion { .. } => MaskName::CompletionOnly,
            _ => MaskName::All,
        }
    }

    /// The same for the masker.
    pub(crate) fn train_on(self) -> TrainOn {
        match self {
            MaskName::All => TrainOn::All,
            MaskName::CompletionOnly => TrainOn::Completion,
            MaskName::AssistantOnly => TrainOn::Assistant,
        }
    }
}

/// A whole number above 0.
pub(crate) fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number above 0".to_owned()),
        Ok(n) => Ok(n),
    }
}

/// A row, tokenised.
struct Scorable {
    example: pt_train::Example,
    mask: Vec<bool>,
    extra: Columns,
}

/// The columns of the output; columns of the input that have these names are left out.
const COLUMNS: [&str; 4] = ["token_ids", "logprobs", "sum", "mask"];

/// A row of the output.
#[derive(Serialize)]
struct Scored<'a> {
    token_ids: &'a [u32],
    logprobs: Vec<Option<f32>>,
    sum: f64,
    mask: Vec<u8>,
    #[serde(flatten)]
    extra: &'a Columns,
}

/// What was scored, all rows together.
#[derive(Default)]
struct Totals {
    n_counted: usize,
    sum: f64,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    ui::check_target(&args.out)?;
    if let Some(scorer) = args.model.load_scorer(&args.text, &context.environment)? {
        return super::score_rewards::run(args, &scorer, context);
    }
    let rows = args.read.read(&args.data, &context.environment)?;
    let loaded = args.model.load(&args.text, &context.environment)?;
    let scorables = parallel::try_map_ordered(rows.records, |record| scorable(record, &loaded, args))?;
    warn_of_long_rows(&scorables, &loaded);
    let mut progress = Progress::rows(scorables.len());
    let mut totals = Totals::default();
    ui::write_json_lines(&args.out, |out| {
        for batch in batches(&scorables, args.tokens_per_batch) {
            for (row, logprobs) in batch.iter().zip(score_batch(batch, &loaded)?) {
                out.write(&scored(row, logprobs, &mut totals))?;
            }
            progress.advance(batch.len(), batch.iter().map(|row| row.mask.len()).sum());
        }
        Ok(())
    })?;
    progress.clear();
    ui::note(&summary(&totals, scorables.len(), &progress));
    Ok(())
}

fn summary(totals: &Totals, n_rows: usize, progress: &Progress) -> String {
    let (rows, tokens) = (ui::counted(n_rows, "row"), ui::counted(progress.n_tokens(), "token"));
    let mut text = format!("scored {rows}, {tokens} in {:.1} s", progress.seconds());
    if totals.n_counted > 0 {
        let mean = totals.sum / totals.n_counted as f64;
        text += &format!(
            "; over the {} that count, {mean:.4} nats per token (perplexity {:.3})",
            ui::count(totals.n_counted),
            (-mean).exp()
        );
    }
    text
}

/// The record's tokens and which of them count.
fn scorable(record: Record, loaded: &Loaded, args: &Args) -> anyhow::Result<Scorable> {
    let mask = args.mask.unwrap_or_else(|| MaskName::default_for(&record.body));
    let policy = MaskPolicy { train_on: mask.train_on(), ..MaskPolicy::default() };
    let mut masker = Masker::new(&loaded.tokenizer, loaded.template.as_ref(), policy);
    // What would be wrong to train on can be scored; only text the template swallowed cannot.
    masker.audit = AuditPolicy {
        dropped_content: true,
        prompt_prefix: true,
        nothing_to_train: false,
        end_of_turn: false,
        doubled_bos: false,
        masked_eos: false,
        special_in_content: false,
    };
    let (token_ids, mask) = tokens(&masker, &record, mask, args.append_eos)?;
    let vocabulary = loaded.vocabulary();
    if let Some(id) = token_ids.iter().find(|&&id| id as usize >= vocabulary) {
        bail!(
            "{}: token id {id} is outside the model's vocabulary of {vocabulary}; is it the model's tokenizer?",
            record.origin
        );
    }
    let (weights, origin) = (vec![1.0; token_ids.len()], Arc::from(record.origin.to_string()));
    let example = pt_train::Example::sequence(token_ids, weights, 0, origin);
    let mut extra = record.extra;
    extra.retain(|column, _| !COLUMNS.contains(&column.as_str()));
    Ok(Scorable { example, mask, extra })
}

fn tokens(
    masker: &Masker<'_>,
    record: &Record,
    which: MaskName,
    eos: bool,
) -> anyhow::Result<(Vec<u32>, Vec<bool>)> {
    let origin = text_origin(record);
    let tools = tools_of(record);
    let kwargs = record.chat_template_kwargs.as_ref();
    let conversation = |messages| Conversation { messages, tools: tools.as_ref(), documents: None, kwargs };
    let of_example = |example: Example| (example.train_mask(), example.token_ids);
    let (mask, token_ids) = match &record.body {
        Body::LanguageModel(Content::Text(text)) => {
            let mut ids = masker.prompt_text(&origin, text)?.token_ids;
            append(masker, &mut ids, eos)?;
            (vec![true; ids.len()], ids)
        }
        Body::PromptCompletion { prompt: Content::Text(prompt), completion: Content::Text(completion) } => {
            let n_prompt = masker.prompt_text(&origin, prompt)?.token_ids.len();
            let mut ids = masker.prompt_text(&origin, &format!("{prompt}{completion}"))?.token_ids;
            check_prefix(masker, record, prompt, &ids)?;
            append(masker, &mut ids, eos)?;
            let all = which == MaskName::All;
            ((0..ids.len()).map(|i| all || i >= n_prompt).collect(), ids)
        }
        Body::PromptCompletion { .. } => {
            let record = record.clone().into_conversational();
            let Body::PromptCompletion {
                prompt: Content::Messages(prompt),
                completion: Content::Messages(completion),
            } = &record.body
            else {
                bail!("{}: give the prompt and the completion in one form, text or messages", record.origin);
            };
            let prompt = template_messages(prompt);
            of_example(masker.prompt_completion(
                &origin,
                &conversation(&prompt),
                &template_messages(completion),
            )?)
        }
        Body::LanguageModel(Content::Messages(messages)) => {
            of_example(masker.conversation(&origin, &conversation(&template_messages(messages)))?)
        }
        Body::Tokenised { input_ids, train } => {
            let targets = train.as_deref().map_or(Targets::All, Targets::Mask);
            of_example(masker.pretokenised(&origin, input_ids, targets)?)
        }
        other => bail!(
            "{}: `score` reads `text`, `prompt` with `completion`, `messages` and `input_ids`, and this row is {}; \
             `posttrain data convert` makes one from the other, and `--column` renames columns",
            record.origin,
            other.kind()
        ),
    };
    // The first token has no context, so it never counts.
    Ok((token_ids, mask.into_iter().enumerate().map(|(i, counts)| counts && i > 0).collect()))
}

fn append(masker: &Masker<'_>, ids: &mut Vec<u32>, eos: bool) -> anyhow::Result<()> {
    if eos {
        ids.push(masker.tokenizer.eos_id().context("--append-eos: the tokenizer has no end-of-text token")?);
    }
    Ok(())
}

/// The tokens of the prompt alone must begin those of the whole, or there is no "completion after the prompt".
fn check_prefix(masker: &Masker<'_>, record: &Record, prompt: &str, ids: &[u32]) -> anyhow::Result<()> {
    let alone = masker.prompt_text(&text_origin(record), prompt)?.token_ids;
    match alone.iter().zip(ids).position(|(a, b)| a != b) {
        None if alone.len() <= ids.len() => Ok(()),
        at => {
            let at = at.unwrap_or(ids.len());
            let shown =
                |id: Option<&u32>| id.and_then(|&id| masker.tokenizer.id_to_token(id)).unwrap_or_default();
            bail!(
                "{}: prompt and completion grow together at token {at}: the prompt alone has {:?} there, the whole text \
                 {:?}; move white space from the end of the prompt to the start of the completion",
                record.origin,
                shown(alone.get(at)),
                shown(ids.get(at))
            )
        }
    }
}

fn warn_of_long_rows(rows: &[Scorable], loaded: &Loaded) {
    let context = loaded.model.config.max_positions;
    let long: Vec<&Scorable> = rows.iter().filter(|row| row.mask.len() > context).collect();
    if let Some(first) = long.first() {
        ui::note(&format!(
            "note: {} longer than the {context} tokens the model was made for, the first at {}; expect poor scores there",
            ui::counted(long.len(), "row"),
            first.example.origin
        ));
    }
}

/// Neighbours that together have at most `budget` tokens, or one longer row.
fn batches(rows: &[Scorable], budget: usize) -> Vec<&[Scorable]> {
    let (mut batches, mut start, mut n_tokens) = (Vec::new(), 0, 0);
    for (i, row) in rows.iter().enumerate() {
        if i > start && n_tokens + row.mask.len() > budget {
            batches.push(&rows[start..i]);
            (start, n_tokens) = (i, 0);
        }
        n_tokens += row.mask.len();
    }
    if start < rows.len() {
        batches.push(&rows[start..]);
    }
    batches
}

/// Log-probabilities of each row's tokens after the first.
fn score_batch(rows: &[Scorable], loaded: &Loaded) -> anyhow::Result<Vec<Vec<f32>>> {
    let with_tokens = rows.iter().filter(|row| !row.mask.is_empty());
    let batch = MicroBatch::new(with_tokens.map(|row| row.example.clone()).collect());
    let predictions = batch.predictions();
    let mut logps = Vec::new();
    if !predictions.rows.is_empty() {
        let engine_batch = batch.batch().expect("rows without tokens were left out");
        logps = pt_train::score(&loaded.model, &engine_batch, loaded.dtype, &predictions).logp;
        check_finite(&logps, &batch, &predictions)?;
    }
    let mut logps = logps.into_iter();
    Ok(rows.iter().map(|row| logps.by_ref().take(row.mask.len().saturating_sub(1)).collect()).collect())
}

fn check_finite(logps: &[f32], batch: &MicroBatch, predictions: &Predictions) -> anyhow::Result<()> {
    match logps.iter().position(|logp| logp.is_nan()) {
        None => Ok(()),
        Some(i) => bail!(
            "{}: the model gives no probability for token id {} (not a number): its weights are damaged",
            batch.example_of(predictions.rows[i]).origin,
            predictions.targets[i]
        ),
    }
}

fn scored<'a>(row: &'a Scorable, logprobs: Vec<f32>, totals: &mut Totals) -> Scored<'a> {
    let logprobs: Vec<Option<f32>> =
        (!row.mask.is_empty()).then_some(None).into_iter().chain(logprobs.into_iter().map(Some)).collect();
    let counted = logprobs.iter().zip(&row.mask).filter(|(_, counts)| **counts);
    let sum = counted.filter_map(|(logprob, _)| *logprob).map(f64::from).sum();
    totals.n_counted += row.mask.iter().filter(|counts| **counts).count();
    totals.sum += sum;
    let mask = row.mask.iter().map(|counts| u8::from(*counts)).collect();
    Scored { token_ids: &row.example.token_ids, logprobs, sum, mask, extra: &row.extra }
}
