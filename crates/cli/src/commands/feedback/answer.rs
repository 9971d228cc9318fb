//! `posttrain feedback answer`: rows for SFT, from a teacher that can only be asked.

use anyhow::bail;
use pt_feedback::AnswerOptions;

use super::Calls;
use super::sampling::Sampling;
use super::target::Target;
use super::who::Who;
use crate::Context;
use crate::commands::score::parse_positive;
use crate::rows::ReadArgs;

const ANSWER_HELP: &str = "\
For each prompt (of rows with a reply, too) --n answers of a model of this machine or of a server: distillation from a teacher \
by its text. Rows have `messages`, the answer as reply, and the row's other columns; train on them in an `sft` stage.

Left out, counted, and written to OUT.excluded.jsonl with a reason: calls that failed, empty answers, answers cut at \
--max-new-tokens, and answers to a prompt that are equal to one before. Answers are kept in OUT.calls: a run that was \
stopped goes on where it was, and ends in the same bytes.

Examples:
  posttrain feedback answer --server http://127.0.0.1:8000/v1 --data prompts.jsonl --out answers.jsonl
  posttrain feedback answer --model models/teacher --data prompts.jsonl --n 4 --temperature 1 --out answers.jsonl";

/// Options of `feedback answer`.
#[derive(clap::Args)]
#[command(after_long_help = ANSWER_HELP)]
pub(super) struct AnswerArgs {
    /// Rows with a prompt, with or without a reply
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Answers to each prompt; above 1, use a --temperature above 0
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    n: usize,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    read: ReadArgs,
}

impl AnswerArgs {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        self.target.check()?;
        let rows = self.read.read(&self.data, &context.environment)?;
        let chat = self.who.chat(&self.target.out, context)?;
        let options = AnswerOptions {
            n: self.n,
            seed: self.sampling.seed,
            max_tokens: self.sampling.max_new_tokens,
            temperature: self.sampling.temperature,
            keep_truncated: self.sampling.keep_truncated,
        };
        let mut calls = Calls::new(rows.records.len() * self.n);
        let answered = pt_feedback::answer(&rows.records, &*chat, &options, &mut |tally| calls.see(tally));
        calls.progress.clear();
        let answered = answered?;
        self.target.write_rows(&answered.rows, &answered.excluded)?;
        self.target.write_report(&answered.report, &answered.report.page())?;
        if answered.rows.is_empty() {
            bail!("no answer was kept; {} says why", self.target.beside("excluded.jsonl").display());
        }
        Ok(())
    }
}
