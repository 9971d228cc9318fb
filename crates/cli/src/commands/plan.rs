//! `posttrain plan`: what a recipe would do, before it does it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use pt_pipeline::{Prepared, check_fits, load_recipe, prepare_again};
use pt_recipe::Plan;

use super::plan_model;
use crate::Context;
use crate::environment::available_memory_bytes;
use crate::hub::ensure_recipe;
use crate::ui::note;

/// Reads, tokenises and audits all data, finds the model, takes two steps of every stage as a measurement, and shows
/// what the run would be: data, tokens, steps, memory by part, time on this machine. Nothing is written.
///
/// With --model in place of a recipe nothing is read or trained: memory, time and cost come from formulae, for any known
/// model, method and hardware, and the best layouts where there are many devices.
///
/// Examples:
///   posttrain plan recipes/quickstart.toml --set stage.sft.train.epochs=1
///   posttrain plan --model Qwen2.5-7B --hardware RTX-4090,H100 --tokens 20M
///   posttrain plan --model Llama-3.1-405B --method full --hardware H100x512 --tokens 1B
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The recipe
    #[arg(required_unless_present = "model")]
    recipe: Option<PathBuf>,
    /// Change a key: `stage.sft.optimizer.learning_rate=1e-4` (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: plan_model::PlanModelArgs,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    if let Some(model) = &args.model.model {
        return plan_model::run(model, &args.model, args.json, context);
    }
    let recipe = args.recipe.as_ref().expect("the command line asks for a recipe or a model");
    let prepared = prepared(recipe, &args.sets, None, context)?;
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
