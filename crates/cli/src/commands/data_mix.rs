//! `posttrain data mix`: one data set from several.

use std::path::Path;

use anyhow::bail;
use pt_data::mix::{Blend, Mixture, Stop};
use pt_data::{Body, Content, Record};
use pt_tasks::GeneratedSource;

use crate::Context;
use crate::commands::score::parse_positive;
use crate::rows::ReadArgs;
use crate::ui;

const HELP: &str = "\
Each source is a file, folder, pattern, hub dataset or `generated:...`, with its share after a colon: `a.jsonl:3 \
b.jsonl:1` gives three rows of a for each row of b. Without shares every row comes once. Rows come in a random order \
in which every stretch has about the same shares; a source's rows come once before any comes twice.

With shares and without --n, the mixture ends with the first source used up, so no row comes twice.

Examples:
  posttrain data mix chat.jsonl:0.7 maths.jsonl:0.3 --n 10000 --seed 1 --out sft.jsonl
  posttrain data mix 'generated:sum?n=500' 'generated:chat?n=500' --out tasks.jsonl";

/// Options of `data mix`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The sources, each with its share after a colon, for all or for none
    #[arg(value_name = "SOURCE[:SHARE]", required = true)]
    sources: Vec<String>,
    /// How many rows are drawn [default: see below]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    n: Option<usize>,
    /// Keys the order
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the rows go, as JSON lines (`.gz`: compressed); `-` is standard output
    #[arg(long, value_name = "FILE")]
    out: String,
    #[command(flatten)]
    read: ReadArgs,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    ui::check_target(&args.out)?;
    let named: Vec<(&str, Option<f64>)> =
        args.sources.iter().map(|text| split_share(text)).collect::<anyhow::Result<_>>()?;
    let (names, shares): (Vec<&str>, Vec<Option<f64>>) = named.into_iter().unzip();
    check_shares(&shares)?;
    let read = |name: &&str| Ok(args.read.read(name, &context.environment)?.records);
    let sources: Vec<Vec<Record>> = names.iter().map(read).collect::<anyhow::Result<_>>()?;
    check_kinds(&names, &sources)?;
    let n_rows: Vec<usize> = sources.iter().map(Vec::len).collect();
    let mixture = Mixture::new(&n_rows, &blend(&shares, &n_rows, args.n), args.seed)?;
    ui::write_json_lines(&args.out, |out| {
        for at in mixture.order(0) {
            out.write(&sources[at.source_idx][at.row_idx].to_row())?;
        }
        Ok(())
    })?;
    ui::note(&format!("{} written:", ui::counted(mixture.epoch_len(), "row")));
    for ((name, n), drawn) in names.iter().zip(&n_rows).zip(mixture.rows_per_epoch()) {
        ui::note(&format!("  {} of {} in {name}", ui::count(*drawn), ui::count(*n)));
    }
    Ok(())
}

/// `a.jsonl:0.5` as a name and a share. What is a source as a whole is not taken apart.
fn split_share(text: &str) -> anyhow::Result<(&str, Option<f64>)> {
    let whole = if GeneratedSource::is_generated(text) {
        GeneratedSource::parse(text).is_ok()
    } else {
        Path::new(text).exists()
    };
    let parts = text.rsplit_once(':').filter(|_| !whole);
    match parts.and_then(|(name, share)| Some((name, share.parse::<f64>().ok()?))) {
        None => Ok((text, None)),
        Some((name, share)) if share > 0.0 && share.is_finite() => Ok((name, Some(share))),
        Some((name, share)) => bail!("{name}: a share of {share}; a share is a number above 0"),
    }
}

fn check_shares(shares: &[Option<f64>]) -> anyhow::Result<()> {
    match shares.iter().flatten().count() {
        n if n == 0 || n == shares.len() => Ok(()),
        n => bail!("{n} of {} sources have a share; give one to all or to none", shares.len()),
    }
}

fn blend(shares: &[Option<f64>], n_rows: &[usize], n: Option<usize>) -> Blend {
    let stop = n.map_or(Stop::FirstExhausted, Stop::Rows);
    match shares.iter().copied().collect::<Option<Vec<f64>>>() {
        Some(shares) => Blend::Shares(shares, stop),
        None if n.is_some() => Blend::Shares(n_rows.iter().map(|n| *n as f64).collect(), stop),
        None => Blend::Repeats(vec![1.0; shares.len()]),
    }
}

/// A file with rows of several kinds could not be read again.
fn check_kinds(names: &[&str], sources: &[Vec<Record>]) -> anyhow::Result<()> {
    let mut first: Option<(String, &'static str)> = None;
    for (name, records) in names.iter().zip(sources) {
        for record in records {
            let kind = columns_of(&record.body);
            match &first {
                None => first = Some((format!("{name} ({})", record.origin), kind)),
                Some((_, known)) if *known == kind => {}
                Some((origin, known)) => bail!(
                    "{origin} has {known}, and {name} ({}) has {kind}; one file has rows of one kind, so convert one of \
                     them first (`posttrain data convert --to ...`)",
                    record.origin
                ),
            }
        }
    }
    Ok(())
}

/// The columns a body is written in.
fn columns_of(body: &Body) -> &'static str {
    match body {
        Body::LanguageModel(Content::Text(_)) => "`text`",
        Body::LanguageModel(Content::Messages(_)) => "`messages`",
        Body::LanguageModel(Content::Segments(_)) => "`segments`",
        Body::PromptOnly { .. } => "`prompt`",
        Body::PromptCompletion { .. } => "`prompt` and `completion`",
        Body::Preference { prompt: Some(_), .. } => "`prompt`, `chosen` and `rejected`",
        Body::Preference { prompt: None, .. } => "`chosen` and `rejected`",
        Body::Unpaired { .. } => "`prompt`, `completion` and `label`",
        Body::Stepwise { .. } => "`prompt`, `completions` and `labels`",
        Body::Tokenised { .. } => "`input_ids`",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_told_from_names() {
        let cases = [
            ("a.jsonl", Some(("a.jsonl", None))),
            ("a.jsonl:2", Some(("a.jsonl", Some(2.0)))),
            ("a.jsonl:0", None),
            ("a.jsonl:-1", None),
            ("generated:sum", Some(("generated:sum", None))),
            ("generated:sum:0.5", Some(("generated:sum", Some(0.5)))),
            ("generated:mix?families=sum:3", Some(("generated:mix?families=sum:3", None))),
            ("generated:mix?families=sum:3:2", Some(("generated:mix?families=sum:3", Some(2.0)))),
        ];
        for (text, expected) in cases {
            assert_eq!(split_share(text).ok(), expected, "{text}");
        }
    }
}
