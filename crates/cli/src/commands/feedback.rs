//! `posttrain feedback`: answers, critique and revision, judged pairs, audits of judges. One file each under `feedback`.

mod answer;
mod audit;
mod judge;
mod revise;
mod sampling;
mod target;
mod who;

use std::path::Path;

use pt_feedback::{Constitution, Tally};

use crate::Context;
use crate::ui::Progress;

/// Options of `feedback`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Answer prompts: rows for SFT, from a teacher that can only be asked
    Answer(answer::AnswerArgs),
    /// Criticise and revise replies by principles: rows for SFT
    Revise(revise::Revise),
    /// Judge pairs of replies by principles: rows for DPO and reward models
    Judge(judge::Judge),
    /// Measure a judge on labelled pairs, and say whether it may serve as a reward
    Audit(audit::AuditArgs),
    /// Print the built-in constitution, to be changed to yours
    Constitution(ConstitutionArgs),
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    match &args.command {
        Command::Answer(args) => args.run(context),
        Command::Revise(args) => args.run(context),
        Command::Judge(args) => args.run(context),
        Command::Audit(args) => args.run(context),
        Command::Constitution(_) => print(pt_feedback::BUILT_IN),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn constitution(path: Option<&Path>) -> anyhow::Result<Constitution> {
    Ok(path.map(Constitution::load).transpose()?.unwrap_or_default())
}

/// Calls as they are done.
struct Calls {
    progress: Progress,
    seen: Tally,
}

impl Calls {
    fn new(n_most: usize) -> Calls {
        Calls { progress: Progress::rows(n_most), seen: Tally::default() }
    }

    fn see(&mut self, tally: &Tally) {
        // The sums of one model grow with every look; another model's begin at nothing.
        if tally.n_calls <= self.seen.n_calls {
            self.seen = Tally::default();
        }
        let more = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        self.progress.advance(
            more(tally.n_calls, self.seen.n_calls),
            more(tally.completion_tokens, self.seen.completion_tokens),
        );
        self.seen = *tally;
    }
}

/// Options of `feedback constitution`.
#[derive(clap::Args)]
#[command(after_long_help = "Example:\n  posttrain feedback constitution > mine.toml")]
struct ConstitutionArgs {}
