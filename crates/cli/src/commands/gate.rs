//! `posttrain gate`: fails when a model lost more than is allowed.

use std::path::PathBuf;

use anyhow::bail;
use clap::ValueEnum;
use pt_eval::gate::Change;
use pt_eval::{FailOn, GateOptions};

use crate::Context;
use crate::commands::eval::{number, print, range};
use crate::ui;

const HELP: &str = "\
Both are folders that `posttrain eval --out` left, of the same benchmarks asked in the same way; otherwise the gate says what \
differs and fails. It also fails where the second lacks a benchmark of the first, or every score of one. Losses are measured question by question on each benchmark's first metric. A loss of a share is in its \
points (0.02: two questions in a hundred), one of a perplexity is relative.

--fail-on says what fails:
  point        the measured loss is above --max-loss
  significant  the same, and the loss's 95 % interval excludes 0: few questions let much pass
  possible     the 95 % interval reaches beyond --max-loss: few questions let nothing pass

With --per-category every category is held to it as well. Twenty categories without any change fail `point` sooner than one \
benchmark does; `significant` is meant for them, or a larger --max-loss.

Examples:
  posttrain gate results/base results/sft --max-loss 0.02
  posttrain gate results/base results/sft --max-loss 0.05 --per-category --fail-on significant";

/// Options of `gate`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Results before
    base: PathBuf,
    /// Results after
    new: PathBuf,
    /// Most that may be lost
    #[arg(long, value_name = "LOSS", default_value_t = 0.02, value_parser = parse_loss)]
    max_loss: f64,
    /// Hold every category to it
    #[arg(long)]
    per_category: bool,
    /// What fails
    #[arg(long, value_enum, value_name = "RULE", default_value = "point")]
    fail_on: Rule,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// When a loss fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rule {
    /// The measured loss is above the bound.
    Point,
    /// And it is significant.
    Significant,
    /// The interval reaches beyond the bound.
    Possible,
}

fn parse_loss(text: &str) -> Result<f64, String> {
    let loss = text.parse().ok().filter(|loss: &f64| loss.is_finite() && *loss >= 0.0);
    loss.ok_or_else(|| "expected a number, 0 or more".to_owned())
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let fail_on = match args.fail_on {
        Rule::Point => FailOn::Point,
        Rule::Significant => FailOn::Significant,
        Rule::Possible => FailOn::Possible,
    };
    let options = GateOptions { max_loss: args.max_loss, fail_on, per_category: args.per_category };
    let gate = pt_eval::gate(&args.base, &args.new, &options)?;
    if args.json {
        print(&(serde_json::to_string_pretty(&gate)? + "\n"))?;
    } else {
        print(&gate.changes.iter().map(|change| line(change, context)).collect::<String>())?;
    }
    for name in &gate.unpaired {
        ui::note(&format!("note: only {} has `{name}`; it is not compared", args.new.display()));
    }
    if gate.passes() {
        ui::note(&format!("the gate passes: nothing lost more than {}", args.max_loss));
        return Ok(());
    }
    bail!("the gate fails: {}", gate.reasons(args.max_loss, &args.new.display().to_string()))
}

fn line(change: &Change, context: &Context) -> String {
    let style = context.style;
    let label = match &change.category {
        Some(category) => format!("  {category}"),
        None => change.benchmark.clone(),
    };
    let forgotten =
        change.forgotten_gained.map(|(lost, gained)| format!(", {lost} forgotten, {gained} gained"));
    let p = change.mcnemar_p.map(|p| format!(", McNemar p {p:.3}"));
    let lost =
        (change.n_lost > 0).then(|| format!(", {} no longer judged", ui::counted(change.n_lost, "question")));
    let verdict = match (change.fails, change.interval95) {
        (true, _) => style.error("FAILS"),
        (false, (_, high)) if high < 0.0 => style.good("better"),
        (false, (low, _)) if low > 0.0 => style.warning("worse, within the bound"),
        (false, _) => String::new(),
    };
    format!(
        "{label:<40} {} -> {}   lost {:+.3} (95 % {}){}{}{}   {verdict}\n",
        number(change.before),
        number(change.after),
        change.loss,
        range(Some(change.interval95)),
        forgotten.unwrap_or_default(),
        p.unwrap_or_default(),
        lost.unwrap_or_default(),
    )
}
