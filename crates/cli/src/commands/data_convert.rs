//! `posttrain data convert`: rows of any layout as rows of another.

use anyhow::bail;
use clap::ValueEnum;
use pt_data::{Body, Content, Record, parallel};

use crate::Context;
use crate::rows::ReadArgs;
use crate::ui;

const HELP: &str = "\
The layout of the input is recognised from its columns (33 layouts, `posttrain list layouts`); the output has TRL's \
columns, which every tool reads. Columns that mean nothing to the layout are kept.

  canonical          what the rows are already, under the standard names
  messages           conversations; of a preference the better answer, of unpaired rows the good ones
  prompt_completion  the last assistant message is the completion; of a preference the better answer
  prompt_only        the prompt alone, for sampling
  preference         `prompt`, `chosen`, `rejected`; an implicit prompt is found and taken out
  unpaired           `prompt`, `completion`, `label`; a preference becomes two rows
  text               plain text; a prompt and its completion are joined

Examples:
  posttrain data convert alpaca.json --to messages --out sft.jsonl
  posttrain data convert hh-rlhf.jsonl.gz --to preference --out preference.jsonl.gz
  posttrain data convert questions.csv --column prompt=question --column completion=answer --to messages --out -";

/// Options of `data convert`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// A file, folder, pattern, hub dataset or `generated:...`; `-` reads JSON lines from standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// What the rows become
    #[arg(long, value_enum, value_name = "KIND")]
    to: Target,
    /// Where the rows go, as JSON lines (`.gz`: compressed); `-` is standard output
    #[arg(long, value_name = "FILE")]
    out: String,
    #[command(flatten)]
    read: ReadArgs,
}

/// What rows become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Target {
    /// The same under the standard names.
    Canonical,
    /// Conversations.
    Messages,
    /// A prompt and its completion.
    PromptCompletion,
    /// A prompt.
    PromptOnly,
    /// A better and a worse answer.
    Preference,
    /// An answer that is good or bad.
    Unpaired,
    /// Plain text.
    Text,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    ui::check_target(&args.out)?;
    let rows = args.read.read(&args.source, &context.environment)?;
    let n_records = rows.records.len();
    let converted = parallel::try_map_ordered(rows.records, |record| convert(record, args.to))?;
    let n_left_out = converted.iter().filter(|records| records.is_empty()).count();
    let mut n_written = 0;
    ui::write_json_lines(&args.out, |out| {
        for record in converted.iter().flatten() {
            out.write(&record.to_row())?;
            n_written += 1;
        }
        Ok(())
    })?;
    let left_out = match n_left_out {
        0 => String::new(),
        n => format!("; {} left out, because their answer is a bad one", ui::counted(n, "row")),
    };
    ui::note(&format!(
        "{} of layout `{}`, {} written{left_out}",
        ui::counted(n_records, "row"),
        rows.layout,
        ui::counted(n_written, "row")
    ));
    Ok(())
}

/// The record as `target`: one, two, or none where its only answer is bad.
fn convert(record: Record, target: Target) -> anyhow::Result<Vec<Record>> {
    if target == Target::Canonical {
        return Ok(vec![record]);
    }
    let mut record = record.extract_prompt()?;
    if target == Target::Unpaired && matches!(record.body, Body::Preference { .. }) {
        return Ok(record.unpair()?.into());
    }
    if target == Target::Messages {
        record = record.into_conversational();
    }
    let kind = record.body.kind();
    let placeholder = Body::LanguageModel(Content::Text(String::new()));
    match body_as(std::mem::replace(&mut record.body, placeholder), target) {
        Ok(Some(body)) => Ok(vec![Record { body, ..record }]),
        Ok(None) => Ok(Vec::new()),
        Err(problem) => {
            let name =
                target.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            bail!("{}: a {kind} row cannot become `{name}`: {problem}", record.origin)
        }
    }
}

/// The body as `target`; `None` where its only answer is bad.
fn body_as(body: Body, target: Target) -> Result<Option<Body>, &'static str> {
    match target {
        Target::Canonical => Ok(Some(body)),
        Target::Preference => match body {
            Body::Preference { .. } => Ok(Some(body)),
            _ => Err("it has no better and worse answer"),
        },
        Target::Unpaired => match body {
            Body::Unpaired { .. } => Ok(Some(body)),
            _ => Err("it does not say whether its answer is good"),
        },
        Target::PromptOnly => prompt_of(body).map(|prompt| Some(Body::PromptOnly { prompt })),
        Target::Messages => match body {
            Body::LanguageModel(Content::Messages(_)) => Ok(Some(body)),
            _ => with_answer(body, |prompt, answer| match (prompt, answer) {
                (Content::Messages(prompt), Content::Messages(answer)) => {
                    Ok(Body::LanguageModel(Content::Messages([prompt, answer].concat())))
                }
                _ => Err("its prompt and its answer are not both messages"),
            }),
        },
        Target::PromptCompletion => {
            with_answer(body, |prompt, completion| Ok(Body::PromptCompletion { prompt, completion }))
        }
        Target::Text => match body {
            Body::LanguageModel(Content::Text(_)) => Ok(Some(body)),
            Body::LanguageModel(Content::Segments(segments)) => {
                let text = segments.into_iter().map(|segment| segment.text).collect();
                Ok(Some(Body::LanguageModel(Content::Text(text))))
            }
            _ => with_answer(body, |prompt, answer| match (prompt, answer) {
                (Content::Text(prompt), Content::Text(answer)) => {
                    Ok(Body::LanguageModel(Content::Text(prompt + &answer)))
                }
                _ => Err("messages become text through a chat template, which depends on the model"),
            }),
        },
    }
}

/// Calls `make` with the prompt and its good answer; `None` where the only answer is bad.
fn with_answer(
    body: Body,
    make: impl FnOnce(Content, Content) -> Result<Body, &'static str>,
) -> Result<Option<Body>, &'static str> {
    match body {
        Body::PromptCompletion { prompt, completion } => make(prompt, completion).map(Some),
        Body::Preference { prompt: Some(prompt), chosen, .. } => make(prompt, chosen).map(Some),
        Body::Unpaired { prompt, completion, label: true } => make(prompt, completion).map(Some),
        Body::Unpaired { label: false, .. } => Ok(None),
        Body::Stepwise { prompt, completions, labels } if labels.iter().all(|label| *label > 0.5) => {
            make(Content::Text(prompt), Content::Text(completions.join("\n"))).map(Some)
        }
        Body::Stepwise { .. } => Ok(None),
        Body::LanguageModel(Content::Messages(mut messages)) => match messages.pop() {
            Some(last) if last.role == "assistant" && !messages.is_empty() => {
                make(Content::Messages(messages), Content::Messages(vec![last])).map(Some)
            }
            _ => Err("its last message is not the assistant's answer to something"),
        },
        _ => Err("it has no prompt with an answer"),
    }
}

fn prompt_of(body: Body) -> Result<Content, &'static str> {
    match body {
        Body::PromptOnly { prompt }
        | Body::PromptCompletion { prompt, .. }
        | Body::Unpaired { prompt, .. } => Ok(prompt),
        Body::Preference { prompt: Some(prompt), .. } => Ok(prompt),
        Body::Stepwise { prompt, .. } => Ok(Content::Text(prompt)),
        Body::LanguageModel(Content::Messages(mut messages)) => {
            while messages.last().is_some_and(|last| last.role == "assistant") {
                messages.pop();
            }
            if messages.is_empty() {
                Err("only the assistant speaks in it")
            } else {
                Ok(Content::Messages(messages))
            }
        }
        _ => Err("it has no prompt"),
    }
}
