//! `posttrain report`: what a run was worth, as a page or as a model card.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pt_report::{CARD_MARK, Gain, RunData};

use crate::Context;
use crate::ui::note;

/// Writes one HTML page about a run, or about several side by side: results with intervals, learning curves, answers
/// before and after, data, time and memory planned against actual, warnings, the plan and its hashes. The page is one
/// file that loads nothing. A run that is not finished, or is damaged, gets one too, which says what is missing.
///
/// With --card: a model card in Hugging Face's form beside the model, with what only you can say marked.
///
/// Example:
///   posttrain report runs/quickstart
///   posttrain report runs/first runs/second --out comparison.html
///   posttrain report runs/quickstart --card
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Run folders
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The file to write [default: RUN/report.html of one run, report.html of several; with --card README.md beside
    /// the model]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write a model card instead
    #[arg(long)]
    card: bool,
    /// The stage whose result the card describes [default: the last complete one]
    #[arg(long, value_name = "NAME", requires = "card")]
    stage: Option<String>,
}

pub(crate) fn run(args: &Args, _context: &Context) -> anyhow::Result<()> {
    if args.card {
        return write_card(args);
    }
    let out = match (&args.out, args.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join(REPORT_FILE),
        _ => PathBuf::from(REPORT_FILE),
    };
    let runs = args.runs.iter().map(|run| RunData::read(run)).collect::<Result<Vec<_>, _>>()?;
    for problem in runs.iter().flat_map(|run| run.problems.iter().map(move |problem| (run, problem))) {
        note(&format!("{}: {}", problem.0.dir.display(), problem.1));
    }
    write(&out, &pt_report::page(&runs, paired))?;
    note(&format!("wrote {}", out.display()));
    Ok(())
}

/// The page of a run, in its folder.
const REPORT_FILE: &str = "report.html";

/// Writes the page of a finished run into its folder, and says so. What goes wrong here is no failure of the run.
pub(crate) fn after_run(run: &Path) {
    let path = run.join(REPORT_FILE);
    let written = RunData::read(run).map_err(anyhow::Error::from);
    let written = written.and_then(|data| write(&path, &pt_report::page(&[data], paired)));
    match written {
        Ok(()) => note(&format!("its report in {}", path.display())),
        Err(error) => {
            note(&format!("no report could be written: {error:#}; try posttrain report {}", run.display()))
        }
    }
}

/// The test that stages use for their own gains.
pub(super) fn paired(before: &[bool], after: &[bool]) -> Gain {
    let gain = pt_tasks::paired_gain(before, after);
    Gain { difference: gain.difference, interval95: gain.interval95, p_value: gain.p_value }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    pt_core::atomic_file::write(path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

fn write_card(args: &Args) -> anyhow::Result<()> {
    let [run] = args.runs.as_slice() else {
        bail!("a model card is about one run; {} were given", args.runs.len())
    };
    let (card, output) = pt_report::card(&RunData::read(run)?, args.stage.as_deref(), paired)?;
    let path = args.out.clone().unwrap_or_else(|| run.join(output).join("README.md"));
    match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(old) if String::from_utf8_lossy(&old).contains(CARD_MARK) => {}
        Ok(_) => bail!(
            "{} was not written by this command and is left as it is; choose another file with --out",
            path.display()
        ),
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "{} is there and cannot be read, so it is left as it is; choose another file with --out",
                    path.display()
                )
            });
        }
    }
    write(&path, &card)?;
    note(&format!("wrote {}; fill in what is marked TO BE WRITTEN", path.display()));
    Ok(())
}
