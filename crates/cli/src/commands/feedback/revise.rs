//! `posttrain feedback revise`: replies criticised and revised by principles.

use std::path::PathBuf;

use anyhow::bail;
use pt_data::Columns;
use pt_feedback::ReviseOptions;

use super::sampling::Sampling;
use super::target::Target;
use super::who::Who;
use super::{Calls, constitution};
use crate::Context;
use crate::commands::score::parse_positive;
use crate::rows::ReadArgs;
use crate::ui;

const REVISE_HELP: &str = "\
For each prompt: a reply (the row's own, where it has one, or the model's), then --rounds times a principle drawn by \
--seed, a critique of the reply by that principle, and a revision by that critique. Rows have `messages`, the last \
revision as reply, and beside it `initial`, `chain` (principle, critique and revision of each round) and `failure`.

A call that fails, an empty answer, and a revision cut at --max-new-tokens end the row's chain: it keeps its last whole \
revision, or is written to OUT.excluded.jsonl with its reason. Answers are kept in OUT.calls: a run that was stopped goes \
on where it was, and ends in the same bytes.

Examples:
  posttrain feedback revise --model models/chat --data prompts.jsonl --rounds 2 --out revised.jsonl
  posttrain feedback revise --constitution mine.toml --server http://127.0.0.1:8000/v1 --data prompts.jsonl --out revised.jsonl";

/// Options of `feedback revise`.
#[derive(clap::Args)]
#[command(after_long_help = REVISE_HELP)]
pub(super) struct Revise {
    /// Rows with a prompt, with or without a reply
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Principles [default: the built-in ones, see `posttrain feedback constitution`]
    #[arg(long, value_name = "FILE")]
    constitution: Option<PathBuf>,
    /// Critiques and revisions of each reply
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = parse_positive)]
    rounds: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Also write preferences for the revision over the first reply
    #[arg(long, value_name = "FILE")]
    pairs: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    read: ReadArgs,
}

impl Revise {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        self.target.check()?;
        self.pairs.as_deref().map(ui::check_target).transpose()?;
        let constitution = constitution(self.constitution.as_deref())?;
        let rows = self.read.read(&self.data, &context.environment)?;
        let chat = self.who.chat(&self.target.out, context)?;
        let options = ReviseOptions {
            rounds: self.rounds,
            seed: self.sampling.seed,
            max_tokens: self.sampling.max_new_tokens,
            temperature: self.sampling.temperature,
            keep_truncated: self.sampling.keep_truncated,
        };
        let mut calls = Calls::new(rows.records.len() * (2 * self.rounds + 1));
        let revised = pt_feedback::revise(&rows.records, &constitution, &*chat, &options, &mut |tally| {
            calls.see(tally)
        });
        calls.progress.clear();
        let revised = revised?;
        let of = |row: fn(&pt_feedback::Chain) -> Option<Columns>| -> Vec<Columns> {
            revised.chains.iter().filter_map(row).collect()
        };
        let kept = of(pt_feedback::Chain::sft_row);
        self.target.write_rows(&kept, &of(pt_feedback::Chain::excluded_row))?;
        if let Some(path) = &self.pairs {
            let pairs = of(pt_feedback::Chain::preference_row);
            ui::write_json_lines(path, |out| pairs.iter().try_for_each(|row| out.write(row)))?;
        }
        self.target.write_report(&revised.report, &revised.report.page())?;
        if kept.is_empty() {
            bail!("no row was kept; {} says why", self.target.beside("excluded.jsonl").display());
        }
        Ok(())
    }
}
