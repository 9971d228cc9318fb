//! `posttrain generate`: sampled continuations of many prompts.

use anyhow::bail;
use pt_data::{Body, Columns, Content, Record, parallel};
pub(crate) use pt_rollout::content_key;
use pt_rollout::{FinishReason, Request, Sample, SamplingParams, Stop};
use pt_text::{Conversation, MaskPolicy, Masker, Tokenizer};
use serde::Serialize;

use crate::Context;
use crate::commands::score::parse_positive;
use crate::loading::{Loaded, ModelArgs, TextArgs};
use crate::rows::{ReadArgs, template_messages, text_origin, tools_of};
use crate::ui::{self, Progress};

/// Samples whose results are kept in memory before they are written.
const SAMPLES_PER_CHUNK: usize = 1024;
/// Tokens of the prompt from which decoding starts, so that a sample's text continues it (white space, characters
/// in several tokens).
const DECODE_CONTEXT: usize = 16;

const HELP: &str = "\
A `prompt` that is text is continued as it is; one that is messages goes through the chat template, which adds the \
start of the reply (--chat treats text as a user's message, too). A reply ends with the tokenizer's or the \
generation config's end token, with the token that ends a turn in the chat template, or after --max-new-tokens.

Each row of the output has the columns of the input, and
  prompt_token_ids   what was continued
  samples            a list of --n samples, each with
    text             without special tokens
    token_ids        with the token that ended it
    logprobs         natural logarithm of each token's probability at the sampling temperature, before top-k, top-p and \
min-p (at --temperature 0: at temperature 1); equal, bit for bit, to what training computes
    finish_reason    `stop` or `length`

A row's samples depend on its prompt, the seed and the options alone, not on other rows. A prompt that comes again in \
the file gets new draws.

Examples:
  posttrain generate --model models/base --data prompts.jsonl --out samples.jsonl
  posttrain generate --model models/chat --data questions.csv --column prompt=question --chat --temperature 0 --out -
  posttrain generate --model models/chat --data 'generated:sum?n=20&form=prompt_only' --n 8 --seed 1 --out samples.jsonl";

/// Options of `generate`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Rows with `prompt`, a text or a list of messages; `-` reads JSON lines from standard input
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Where the samples go, as JSON lines (`.gz`: compressed); `-` is standard output
    #[arg(long, value_name = "FILE")]
    out: String,
    /// Treat a prompt that is text as a user's message
    #[arg(long)]
    chat: bool,
    /// Samples of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    n: usize,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// How tokens are chosen.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Most tokens of a sample
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = parse_positive)]
    max_new_tokens: usize,
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = parse_temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Only the K most probable tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Only the most probable tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = parse_top_p)]
    top_p: f32,
    /// Only tokens at least this share as probable as the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_share)]
    min_p: f32,
    /// Keys all draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn parse_number(text: &str, expected: &str, accepts: impl Fn(f32) -> bool) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite() && accepts(*number));
    number.ok_or_else(|| format!("expected {expected}"))
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    parse_number(text, "a number, 0 or more", |t| t >= 0.0)
}

fn parse_top_p(text: &str) -> Result<f32, String> {
    parse_number(text, "a number above 0, at most 1", |p| p > 0.0 && p <= 1.0)
}

fn parse_share(text: &str) -> Result<f32, String> {
    parse_number(text, "a number between 0 and 1", |p| (0.0..=1.0).contains(&p))
}

impl SamplingArgs {
    /// Whether every draw is the most probable token.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Most tokens of a sample.
    pub(crate) fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    /// The parameters for `n` samples of a prompt.
    pub(crate) fn params(&self, n: usize, stop_token_ids: Vec<u32>) -> SamplingParams {
        SamplingParams {
            n,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            stop_token_ids,
            seed: self.seed,
            ..SamplingParams::default()
        }
    }
}

/// The tokens that end a reply: the tokenizer's, the template's, and those of the generation config.
pub(crate) fn stop_tokens(loaded: &Loaded) -> Vec<u32> {
    pt_pipeline::stop_tokens(&loaded.model, &loaded.tokenizer, loaded.template.as_ref())
}

/// A row of the output.
#[derive(Serialize)]
struct Generated<'a> {
    #[serde(flatten)]
    columns: &'a Columns,
    prompt_token_ids: &'a [u32],
    samples: Vec<SampleRow<'a>>,
}

/// The columns that are added; columns of the input that have these names are left out.
const COLUMNS: [&str; 2] = ["prompt_token_ids", "samples"];

#[derive(Serialize)]
struct SampleRow<'a> {
    text: String,
    token_ids: &'a [u32],
    logprobs: &'a [f32],
    finish_reason: FinishReason,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    ui::check_target(&args.out)?;
    let rows = args.read.read(&args.data, &context.environment)?;
    let loaded = args.model.load(&args.text, &context.environment)?;
    let params = args.sampling.params(args.n, stop_tokens(&loaded));
    let prompts = parallel::try_map_ordered(&rows.records, |record| prompt_ids(record, &loaded, args.chat))?;
    warn_of_long_prompts(&prompts, &rows.records, &loaded, params.max_new_tokens);
    let keys = crate::policy::keys(&prompts);
    let requests = prompts.into_iter().zip(keys).map(|(prompt_ids, key)| Request { prompt_ids, key });
    let requests: Vec<Request> = requests.collect();
    let mut progress = Progress::rows(requests.len());
    let mut n_stopped = 0;
    let chunk = (SAMPLES_PER_CHUNK / args.n).max(1);
    ui::write_json_lines(&args.out, |out| {
        for (records, requests) in rows.records.chunks(chunk).zip(requests.chunks(chunk)) {
            let mut watch = |_, _, _| progress.advance(0, 1);
            let samples = pt_rollout::generate(&loaded.model, loaded.dtype, requests, &params, &mut watch)?;
            for ((record, request), samples) in records.iter().zip(requests).zip(&samples) {
                n_stopped +=
                    samples.iter().filter(|sample| sample.finish_reason == FinishReason::Stop).count();
                write_row(out, record, request, samples, &loaded.tokenizer)?;
                progress.advance(1, 0);
            }
            out.flush()?;
        }
        Ok(())
    })?;
    progress.clear();
    ui::note(&format!(
        "drew {} for {}, {} in {:.1} s; {} ended by themselves",
        ui::counted(requests.len() * args.n, "sample"),
        ui::counted(requests.len(), "prompt"),
        ui::counted(progress.n_tokens(), "token"),
        progress.seconds(),
        ui::count(n_stopped)
    ));
    Ok(())
}

fn write_row(
    out: &mut ui::JsonLines<'_>,
    record: &Record,
    request: &Request,
    samples: &[Sample],
    tokenizer: &Tokenizer,
) -> anyhow::Result<()> {
    let mut columns = record.to_row();
    columns.retain(|column, _| !COLUMNS.contains(&column.as_str()));
    let samples = samples.iter().map(|sample| {
        let (token_ids, logprobs) = (&*sample.token_ids, &*sample.logprobs);
        let text = continuation(tokenizer, &request.prompt_ids, sample)?;
        Ok(SampleRow { text, token_ids, logprobs, finish_reason: sample.finish_reason })
    });
    let samples = samples.collect::<anyhow::Result<_>>()?;
    out.write(&Generated { columns: &columns, prompt_token_ids: &request.prompt_ids, samples })
}

/// The text of a sample, as it continues its prompt, up to what stopped it.
pub(crate) fn continuation(
    tokenizer: &Tokenizer,
    prompt_ids: &[u32],
    sample: &Sample,
) -> anyhow::Result<String> {
    let mut stream = tokenizer.decode_stream(true);
    for &id in &prompt_ids[prompt_ids.len().saturating_sub(DECODE_CONTEXT)..] {
        stream.push(id)?;
    }
    // The token that ended it is no text, be it marked as special or not.
    let n_text = sample.token_ids.len() - usize::from(matches!(sample.stop, Some(Stop::Token(_))));
    let mut text = String::new();
    for &id in &sample.token_ids[..n_text] {
        text += &stream.push(id)?;
    }
    Ok(text + &stream.finish()?)
}

/// The tokens that the record's samples continue.
pub(crate) fn prompt_ids(record: &Record, loaded: &Loaded, chat: bool) -> anyhow::Result<Vec<u32>> {
    let origin = text_origin(record);
    let masker = Masker::new(&loaded.tokenizer, loaded.template.as_ref(), MaskPolicy::default());
    let conversational = chat.then(|| record.clone().into_conversational());
    let record = conversational.as_ref().unwrap_or(record);
    let ids = match &record.body {
        Body::PromptOnly { prompt }
        | Body::PromptCompletion { prompt, .. }
        | Body::Unpaired { prompt, .. } => match prompt {
            Content::Text(text) => masker.prompt_text(&origin, text)?.token_ids,
            Content::Messages(messages) => {
                let (messages, tools) = (template_messages(messages), tools_of(record));
                let kwargs = record.chat_template_kwargs.as_ref();
                let row =
                    Conversation { messages: &messages, tools: tools.as_ref(), documents: None, kwargs };
                masker.prompt(&origin, &row)?.token_ids
            }
            Content::Segments(_) => bail!("{}: a prompt in segments cannot be continued", record.origin),
        },
        other => bail!(
            "{}: `generate` reads rows with a `prompt`, and this row is {}; `posttrain data convert --to prompt_only` \
             takes the prompts out of conversations, and `--column prompt=NAME` renames a column",
            record.origin,
            other.kind()
        ),
    };
    check_ids(&ids, record, loaded)?;
    Ok(ids)
}

fn warn_of_long_prompts(prompts: &[Vec<u32>], records: &[Record], loaded: &Loaded, max_new_tokens: usize) {
    let context = loaded.model.config.max_positions;
    let is_long = |prompt: &&Vec<u32>| prompt.len() + max_new_tokens > context;
    if let Some(first) = prompts.iter().position(|prompt| is_long(&prompt)) {
        ui::note(&format!(
            "note: {} with --max-new-tokens {max_new_tokens} may pass the {context} tokens the model was made for, the \
             first at {}; expect poor text there",
            ui::counted(prompts.iter().filter(is_long).count(), "prompt"),
            records[first].origin
        ));
    }
}

fn check_ids(ids: &[u32], record: &Record, loaded: &Loaded) -> anyhow::Result<()> {
    let vocabulary = loaded.vocabulary();
    if ids.is_empty() {
        bail!("{}: the prompt is empty, and the tokenizer puts nothing before it", record.origin);
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        bail!(
            "{}: token id {id} is outside the model's vocabulary of {vocabulary}; is it the model's tokenizer?",
            record.origin
        );
    }
    Ok(())
}
