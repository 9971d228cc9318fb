//! `posttrain data`: looking at data, converting, curating and mixing them.

use crate::Context;
use crate::commands::{
    data_convert, data_curate, data_decontaminate, data_inspect, data_mix, data_step_labels,
};

const HELP: &str = "\
Examples:
  posttrain data inspect data.jsonl --model models/chat
  posttrain data convert alpaca.json --to messages --out sft.jsonl
  posttrain data curate raw.jsonl --step exact_duplicates --step encoding --out clean.jsonl --card card
  posttrain data decontaminate train.jsonl --against test.jsonl --out clean.jsonl
  posttrain data mix chat.jsonl:0.7 maths.jsonl:0.3 --n 10000 --out mix.jsonl
  posttrain data step-labels --model models/sft --data problems.jsonl --verifier math --solutions 4 --out steps.jsonl";

/// Options of `data`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(clap::Subcommand)]
enum DataCommand {
    /// Show rows as a model sees them: tokens, and which of them train
    Inspect(data_inspect::Args),
    /// Turn rows of any layout into rows of another
    Convert(data_convert::Args),
    /// Filter and measure data, and say what was dropped and why
    Curate(data_curate::Args),
    /// Take out rows that contain text of evaluation sets
    Decontaminate(data_decontaminate::Args),
    /// Draw one data set from several, in given shares
    Mix(data_mix::Args),
    /// Label the steps of solutions by where completions of them lead
    StepLabels(Box<data_step_labels::Args>),
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    match &args.command {
        DataCommand::Inspect(args) => data_inspect::run(args, context),
        DataCommand::Convert(args) => data_convert::run(args, context),
        DataCommand::Curate(args) => data_curate::run(args, context),
        DataCommand::Decontaminate(args) => data_decontaminate::run(args, context),
        DataCommand::Mix(args) => data_mix::run(args, context),
        DataCommand::StepLabels(args) => data_step_labels::run(args, context),
    }
}
