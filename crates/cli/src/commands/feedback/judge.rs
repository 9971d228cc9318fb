//! `posttrain feedback judge`: pairs of replies judged by principles.

use std::path::PathBuf;

use anyhow::bail;
use pt_feedback::{AskOptions, Candidate, Chat, Constitution, JudgeOptions, Tally};

use super::target::Target;
use super::who::Who;
use super::{Calls, constitution};
use crate::Context;
use crate::commands::score::parse_positive;
use crate::rows::ReadArgs;
use crate::ui;

/// How pairs are compared.
#[derive(clap::Args)]
#[command(next_help_heading = "Judging")]
pub(super) struct JudgingArgs {
    /// Principles [default: the built-in ones, see `posttrain feedback constitution`]
    #[arg(long, value_name = "FILE")]
    pub(super) constitution: Option<PathBuf>,
    /// Principles of each pair, drawn by weight; 0 is all
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) principles: usize,
    /// Votes for each pair, principle and order; above 1, use a --temperature above 0
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub(super) votes: usize,
    /// Show each pair in both orders (--swap false: in one)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(super) swap: bool,
    /// A probability this near to one half is a tie
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(super) tie_margin: f64,
    /// Alternatives whose probabilities are asked for, for soft labels; 0 counts letters only
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(super) top_logprobs: u32,
    /// Draws principles and orders, and keys the judge's draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Divides the judge's logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(super) temperature: f64,
    /// Most tokens of the judge's answer [default: 16, and 512 for grades by a --rubric]
    #[arg(long, value_name = "N")]
    pub(super) max_new_tokens: Option<u32>,
}

/// Most tokens of a choice between two replies, unless told otherwise.
const CHOICE_TOKENS: u32 = 16;

impl JudgingArgs {
    fn options(&self) -> JudgeOptions {
        JudgeOptions {
            votes: self.votes,
            swap: self.swap,
            principles_per_pair: self.principles,
            tie_margin: self.tie_margin,
            seed: self.seed,
            max_tokens: self.max_new_tokens.unwrap_or(CHOICE_TOKENS),
            temperature: self.temperature,
            top_logprobs: self.top_logprobs,
        }
    }

    pub(super) fn judge(
        &self,
        candidates: Vec<Candidate>,
        constitution: &Constitution,
        chat: &dyn Chat,
    ) -> anyhow::Result<pt_feedback::Judgements> {
        let n_principles = match self.principles {
            0 => constitution.principles.len(),
            n => n,
        };
        let mut calls =
            Calls::new(candidates.len() * n_principles * self.votes * if self.swap { 2 } else { 1 });
        let options = self.options();
        let judged =
            pt_feedback::judge(candidates, constitution, chat, &options, &mut |tally| calls.see(tally));
        calls.progress.clear();
        Ok(judged?)
    }
}

const JUDGE_HELP: &str = "\
Reads pairs (--data: rows with `chosen` and `rejected`, in an order that is drawn anew) or makes them (--prompts with one \
or two --respond models: two replies of one, or one of each). The judge sees each pair in both orders and answers A, B or C \
(equal) by each principle. Rows have `prompt`, `chosen`, `rejected`, `soft_label` (the probability that `chosen` is better) \
and `judgements` with every vote.

Left out, counted, and written to OUT.excluded.jsonl with a reason: equal and empty replies, ties, pairs whose winner \
changes with the order (inconsistent), answers without a choice (no_verdict), calls that failed. With --labels, `chosen` of \
--data is taken as right, and the report has accuracy, calibration error and kappa. It always has consistency, position bias \
and length bias, for all pairs and by principle.

Answers are kept in OUT.calls: a run that was stopped goes on where it was, and ends in the same bytes.

Examples:
  posttrain feedback judge --server http://127.0.0.1:8000/v1 --data pairs.jsonl --out judged.jsonl
  posttrain feedback judge --model models/judge --prompts prompts.jsonl --respond runs/sft/model --out judged.jsonl
  posttrain feedback judge --model models/judge --data labelled.jsonl --labels --votes 3 --temperature 1 --out judged.jsonl";

/// Options of `feedback judge`.
#[derive(clap::Args)]
#[command(after_long_help = JUDGE_HELP)]
pub(super) struct Judge {
    /// Pairs: rows with `chosen` and `rejected`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "respond"], required_unless_present = "prompts")]
    data: Option<String>,
    /// Take `chosen` as right, to measure the judge
    #[arg(long, requires = "data")]
    labels: bool,
    /// Prompts, for pairs made on the spot
    #[arg(long, value_name = "FILE", requires = "respond")]
    prompts: Option<String>,
    /// A model whose replies are judged, once or twice: a folder, or URL#NAME for a server's
    #[arg(long, value_name = "MODEL", requires = "prompts")]
    respond: Vec<String>,
    /// Divides the logits of --respond models
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    respond_temperature: f64,
    /// Most tokens of a reply of --respond models
    #[arg(long, value_name = "N", default_value_t = 256)]
    respond_max_new_tokens: u32,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    read: ReadArgs,
}

impl Judge {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        self.target.check()?;
        let constitution = constitution(self.judging.constitution.as_deref())?;
        let candidates = self.candidates(context)?;
        let chat = self.who.chat(&self.target.out, context)?;
        let judged = self.judging.judge(candidates, &constitution, &*chat)?;
        let (excluded, kept): (Vec<_>, Vec<_>) =
            judged.rows.iter().partition(|row| row.exclusion().is_some());
        let columns = |rows: &[&pt_feedback::Row]| rows.iter().map(|row| row.to_row()).collect::<Vec<_>>();
        self.target.write_rows(&columns(&kept), &columns(&excluded))?;
        self.target.write_report(&judged.report, &judged.report.page())?;
        if kept.is_empty() {
            bail!("no preference was made; {} says why", self.target.beside("excluded.jsonl").display());
        }
        Ok(())
    }

    fn candidates(&self, context: &Context) -> anyhow::Result<Vec<Candidate>> {
        if let Some(data) = &self.data {
            let rows = self.read.read(data, &context.environment)?;
            return Ok(pt_feedback::pairs_of(&rows.records, self.labels, self.judging.seed)?);
        }
        let prompts = self.prompts.as_deref().expect("clap asks for one of the two");
        let rows = self.read.read(prompts, &context.environment)?;
        let first = self.who.other(&self.respond[0], &self.target.out, context)?;
        let second = match self.respond.as_slice() {
            [_] => None,
            [_, second] => Some(self.who.other(second, &self.target.out, context)?),
            more => bail!("--respond is given {} times, expected one or two models", more.len()),
        };
        let options = AskOptions {
            max_tokens: self.respond_max_new_tokens,
            temperature: self.respond_temperature,
            top_logprobs: 0,
        };
        let mut calls = Calls::new(2 * rows.records.len());
        let models = [&*first, second.as_deref().unwrap_or(&*first)];
        let pairs =
            pt_feedback::sample_pairs(&rows.records, models, &options, self.judging.seed, &mut |tally| {
                calls.see(tally);
            });
        calls.progress.clear();
        let (candidates, tallies) = pairs?;
        let sum = |of: fn(&Tally) -> u64| {
            usize::try_from(tallies.iter().map(of).sum::<u64>()).unwrap_or(usize::MAX)
        };
        ui::note(&format!(
            "{} drawn, {} failed, {}",
            ui::counted(sum(|tally| tally.n_calls), "response"),
            ui::count(sum(|tally| tally.n_failed)),
            ui::counted(sum(|tally| tally.completion_tokens), "token")
        ));
        Ok(candidates)
    }
}
