//! `posttrain verify-invariance`: the proof that layout changes nothing.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use pt_pipeline::load_recipe;

use crate::Context;
use crate::hub::ensure_recipe;
use crate::ui::note;

/// Takes the first step of a recipe's first stage and computes its loss and gradient laid out in every way: as the
/// recipe packs it, on one thread and on three, in one micro-batch, one row at a time, with and without recomputing
/// blocks, in another order. In f32 all but the last must be equal bit for bit.
///
/// Example:
///   posttrain verify-invariance my.toml --set stage.0.train.rows_per_step=16 --set 'model.dtype="f32"'
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The recipe
    recipe: PathBuf,
    /// Change a key (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let recipe = load_recipe(&args.recipe, &args.sets)?;
    ensure_recipe(&recipe, &context.environment)?;
    note("computing one step in eight layouts ...");
    let results = pt_pipeline::verify_invariance(&recipe, &context.environment.surroundings())?;
    let mut out = std::io::stdout().lock();
    for result in &results {
        let verdict = match (result.passed(), result.is_bitwise_equal) {
            (true, true) => context.style.good("equal bit for bit"),
            (true, false) => context.style.warning(&format!(
                "within {:.0e} (largest relative difference {:.1e})",
                result.tolerance, result.worst_relative
            )),
            (false, _) => context.style.error(&format!(
                "DIFFERS by {:.1e}, the loss by {:.1e}",
                result.worst_relative, result.loss_relative
            )),
        };
        writeln!(out, "{:28} loss {:.9}  gradient {verdict}", result.layout, result.loss)?;
    }
    let n_failed = results.iter().filter(|result| !result.passed()).count();
    if n_failed > 0 {
        bail!("{n_failed} layouts give another gradient than they must");
    }
    Ok(())
}
