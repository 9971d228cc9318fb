//! `posttrain verify-resume`: the proof that stopping and resuming changes nothing.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use pt_pipeline::load_recipe;

use crate::Context;
use crate::environment::default_run_folder;
use crate::hub::ensure_recipe;
use crate::ui::note;

/// Runs a recipe once without a stop, and once stopped in the middle of its first stage and resumed, then compares
/// metrics, checkpoints and models of the two byte by byte. Use --set to make a long recipe short.
///
/// Example:
///   posttrain verify-resume my.toml --set stage.sft.train.steps=20 --stop-after 7
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The recipe
    recipe: PathBuf,
    /// Stop after this step of the first stage [default: half of them]
    #[arg(long, value_name = "STEP", default_value_t = 0, hide_default_value = true)]
    stop_after: u64,
    /// Where the two runs go [default: runs/verify-resume, with a number if that is taken]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a key (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let recipe = load_recipe(&args.recipe, &args.sets)?;
    ensure_recipe(&recipe, &context.environment)?;
    let dir = args.out.clone().unwrap_or_else(|| default_run_folder("verify-resume"));
    let surroundings = context.environment.surroundings();
    let mut progress = |what: &str| note(&format!("{what} ..."));
    let verdict = pt_pipeline::verify_resume(&recipe, args.stop_after, &dir, &surroundings, &mut progress)?;
    let mut out = std::io::stdout().lock();
    if verdict.differences.is_empty() {
        writeln!(
            out,
            "the same: stopped after step {} of {} and resumed, every byte of metrics, checkpoints and models is that of \
             the run that never stopped\n{}",
            verdict.stopped_at,
            verdict.steps,
            dir.display()
        )?;
        return Ok(());
    }
    for difference in &verdict.differences {
        writeln!(out, "{difference}")?;
    }
    bail!("{} files differ between the two runs in {}", verdict.differences.len(), dir.display())
}
