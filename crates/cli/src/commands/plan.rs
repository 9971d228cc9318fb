//! `posttrain plan`: what a recipe would do, before it does it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use pt_pipeline::{Prepared, check_fits, load_recipe, prepare_again};
use pt_recipe::Plan;

use crate::Context;
use crate::environment::available_memory_bytes;
use crate::hub::ensure_recipe;
use crate::ui::note;

/// Reads, tokenises and audits all data, finds the model, takes two steps of every stage as a measurement, and shows
/// what the run would be: data, tokens, steps, memory by part, time on this machine. Nothing is written.
///
/// Example:
///   posttrain plan recipes/quickstart.toml --set stage.sft.train.epochs=1
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The recipe
    recipe: PathBuf,
    /// Change a key: `stage.sft.optimizer.learning_rate=1e-4` (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let prepared = prepared(&args.recipe, &args.sets, None, context)?;
    let text = if args.json {
        serde_json::to_string_pretty(&prepared.plan)? + "\n"
    } else {
        prepared.plan.to_table()
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    check_memory(&prepared)
}

/// A recipe resolved on its data and model; a plan made before saves measuring again.
pub(super) fn prepared(
    recipe: &std::path::Path,
    sets: &[String],
    known: Option<&Plan>,
    context: &Context,
) -> anyhow::Result<Prepared> {
    let recipe = load_recipe(recipe, sets)?;
    ensure_recipe(&recipe, &context.environment)?;
    note("reading data and measuring a step of each stage ...");
    prepare_again(recipe, &context.environment.surroundings(), known)
        .context("the recipe cannot run as it is")
}

/// Refuses a plan that does not fit this machine.
pub(super) fn check_memory(prepared: &Prepared) -> anyhow::Result<()> {
    match available_memory_bytes() {
        Some(available) => Ok(check_fits(&prepared.plan, available)?),
        None => Ok(()),
    }
}
