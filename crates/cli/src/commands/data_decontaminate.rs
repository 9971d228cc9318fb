//! `posttrain data decontaminate`: rows without text of evaluation sets.

use std::path::PathBuf;

use pt_curate::{Curation, Form, Input, StepConfig, Unreadable};

use crate::Context;
use crate::commands::data_curate::{carry_out, given, summary};

const HELP: &str = "\
A row is contaminated where it has a run of --n words in common with an evaluation text; case and punctuation do not count. \
The longest common run is shown, with the place of the evaluation text and the share of that text which the row has, \
because finds by n-grams alone are often false: look at them, and raise --min-run or --min-coverage where they are.

Examples:
  posttrain data decontaminate train.jsonl --against gsm8k/test.jsonl --against mmlu/test.csv --out clean.jsonl
  posttrain data decontaminate train.jsonl --against gsm8k/test.jsonl --n 8 --min-coverage 0.5 --flag \\
      --out /dev/null --card contamination";

/// Options of `data decontaminate`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Files, folders, patterns, hub datasets or `generated:...`
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<String>,
    /// An evaluation set; may be repeated
    #[arg(long, value_name = "SOURCE", required = true)]
    against: Vec<String>,
    /// Words of a run that begins a match: 13, or 8 to be stricter
    #[arg(long, value_name = "N", default_value_t = 13, value_parser = clap::value_parser!(i64).range(3..=100))]
    n: i64,
    /// The least longest common run, in words [default: N]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=100_000))]
    min_run: Option<i64>,
    /// The least share of the evaluation text that is in common
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    min_coverage: f64,
    /// Only prompts of the evaluation sets count, not their answers
    #[arg(long)]
    questions_only: bool,
    /// Keep the rows, and only count and show them
    #[arg(long)]
    flag: bool,
    /// Where clean rows go, as JSON lines (`.gz`, `.zst`: compressed)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where contaminated rows go, with the text in common
    #[arg(long, value_name = "FILE")]
    dropped: Option<PathBuf>,
    /// Where a data card goes: NAME.md and NAME.json
    #[arg(long, value_name = "NAME")]
    card: Option<PathBuf>,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut options = toml::Table::new();
    let mut put = |key: &str, value: toml::Value| options.insert(key.to_owned(), value);
    put("against", args.against.clone().into());
    put("n", args.n.into());
    put("min_run", args.min_run.unwrap_or(0).into());
    put("min_coverage", args.min_coverage.into());
    put("questions_only", args.questions_only.into());
    put("action", if args.flag { "flag" } else { "drop" }.into());
    let input = |source: &String| Input { source: source.clone(), ..Input::default() };
    let curation = Curation {
        out: args.out.clone(),
        dropped: args.dropped.clone(),
        card: args.card.clone(),
        seed: 0,
        unreadable: Unreadable::Error,
        rows: Form::AsRead,
        annotate: false,
        examples: 10,
        inputs: args.sources.iter().map(input).collect(),
        steps: vec![StepConfig { name: "contamination".to_owned(), options }],
        blueprint: None,
    };
    let report = carry_out(&curation, &given(&context.environment))?;
    crate::ui::note(&summary(&report, &curation));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_from_0_to_1() {
        for (text, expected) in [
            ("0", Some(0.0)),
            ("0.5", Some(0.5)),
            ("1", Some(1.0)),
            ("50", None),
            ("-0.1", None),
            ("nan", None),
        ] {
            assert_eq!(parse_share(text).ok(), expected, "{text}");
        }
    }
}
