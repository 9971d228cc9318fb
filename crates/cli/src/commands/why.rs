//! `posttrain why`: what differs between two runs, and where they part.

use std::io::Write;
use std::path::PathBuf;

use pt_report::RunData;

use super::report::paired;
use crate::Context;
use crate::ui::note;

/// Explains why two runs differ: the keys of their plans that do (grouped by what they affect), data and model hashes
/// among them; then results with intervals, and the first step at which each metric is not the same. Where nothing in
/// the plans can have an effect, files are compared byte by byte too.
///
/// Example:
///   posttrain why runs/first runs/second
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The first run, A
    #[arg(value_name = "RUN")]
    a: PathBuf,
    /// The second run, B
    #[arg(value_name = "RUN")]
    b: PathBuf,
    /// Compare files byte by byte even where the plans differ
    #[arg(long)]
    files: bool,
}

pub(crate) fn run(args: &Args, _context: &Context) -> anyhow::Result<()> {
    let (a, b) = (RunData::read(&args.a)?, RunData::read(&args.b)?);
    for (run, problem) in
        [&a, &b].into_iter().flat_map(|run| run.problems.iter().map(move |problem| (run, problem)))
    {
        note(&format!("{}: {problem}", run.dir.display()));
    }
    let why = pt_report::why(&a, &b, paired, args.files)?;
    write!(std::io::stdout().lock(), "{}", why.to_text())?;
    Ok(())
}
