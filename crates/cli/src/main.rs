//! The `posttrain` command line.
//!
//! Each command is one file under `commands`: its options, its help and what it does. This crate alone prints, exits
//! and reads the environment; everything below it returns values and errors.
//!
//! **Exit status**: 0 for success (also when whoever read the output has stopped reading), 1 when the command failed,
//! 2 when it was called wrongly. Results go to standard output or to the file named; progress, notes and errors go
//! to standard error. An error is printed once, here, with all its causes.

mod commands;
mod environment;
mod hub;
mod loading;
mod policy;
mod rows;
mod ui;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, ValueEnum};
use pt_kernels::isa::{self, Isa};

use crate::commands::Command;
use crate::environment::Environment;
use crate::ui::Style;

/// A command failed.
const FAILURE: u8 = 1;

const ABOUT: &str = "\
Post-train language models: fine-tune, score, sample and inspect, on this machine alone.

Models are Hugging Face folders (config.json, *.safetensors, tokenizer.json), names of models on the hub (downloaded \
once), or llama2.c files. Data are JSONL, JSON, Parquet, CSV or text files, hub datasets, or problems \
made on the spot (`generated:arithmetic?n=100`).";

const AFTER: &str = "\
First steps:
  posttrain doctor                                    what this machine offers
  posttrain list tasks                                problems that can be generated
  posttrain data inspect data.jsonl --model MODEL     see which tokens would train
  posttrain score --model MODEL --data data.jsonl --out scores.jsonl
  posttrain generate --model MODEL --data prompts.jsonl --out samples.jsonl
  posttrain eval --model MODEL --benchmarks gsm8k,mmlu --data-dir DIR
  posttrain chat --model MODEL
  posttrain serve --model MODEL

`posttrain COMMAND --help` explains a command, with examples.

Exit status: 0 success, 1 failure, 2 wrong usage.
Environment: HF_HOME (hub cache), HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN, HTTPS_PROXY, XDG_CACHE_HOME, NO_COLOR, COLUMNS.";

/// What is written on the command line.
#[derive(Parser)]
#[command(name = "posttrain", version, about = ABOUT, after_help = AFTER, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(clap::Args)]
#[command(next_help_heading = "Everywhere")]
struct GlobalOptions {
    /// Threads to compute with; results do not depend on it [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Use no better instruction set than this, to compare or to reproduce another machine [default: the best]
    #[arg(long, global = true, value_name = "NAME", value_parser = Isa::ALL.map(Isa::name).to_vec())]
    isa: Option<String>,
    /// Download nothing: models and datasets of the hub come from the local cache
    #[arg(long, global = true)]
    offline: bool,
    /// Colours: `auto` uses them on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    color: When,
}

/// When to use colours.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Also into files and pipes.
    Always,
    /// Not at all.
    Never,
}

/// What every command is given.
pub(crate) struct Context {
    /// What was read from the environment.
    pub(crate) environment: Environment,
    /// Of standard output.
    pub(crate) style: Style,
    /// Of standard error.
    pub(crate) errors: Style,
}

fn main() -> ExitCode {
    let mut environment = Environment::read();
    let cli = match parse(environment.no_color) {
        Ok(cli) => cli,
        // Help and version come this way too, with status 0. Nothing can be done if they cannot be printed.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILURE));
        }
    };
    environment.offline |= cli.global.offline;
    let style = |is_terminal: bool| {
        Style::new(match cli.global.color {
            When::Always => true,
            When::Never => false,
            When::Auto => is_terminal && !environment.no_color,
        })
    };
    let errors = style(io::stderr().is_terminal());
    let context = Context { style: style(io::stdout().is_terminal()), errors, environment };
    let outcome = cli.global.apply().and_then(|()| cli.command.run(&context));
    match outcome.and_then(|()| Ok(io::stdout().flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            ui::note(&ui::describe(&error, errors));
            ExitCode::from(FAILURE)
        }
    }
}

/// Parses the command line. Colours of help and of usage errors follow `--color` wherever it stands.
fn parse(no_color: bool) -> Result<Cli, clap::Error> {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .take_while(|arg| arg != "--")
        .collect();
    let follows = |pair: &[String]| (pair[0] == "--color").then(|| pair[1].clone());
    let apart = args.windows(2).find_map(follows);
    let joined = args.iter().find_map(|arg| arg.strip_prefix("--color=").map(str::to_owned));
    let choice = match apart.or(joined).as_deref() {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ if no_color => ColorChoice::Never,
        _ => ColorChoice::Auto,
    };
    let matches = Cli::command().color(choice).try_get_matches()?;
    Cli::from_arg_matches(&matches)
}

impl GlobalOptions {
    fn apply(&self) -> anyhow::Result<()> {
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads));
            pool.build_global().with_context(|| format!("cannot start {threads} threads"))?;
        }
        let wanted = self.isa.as_deref().and_then(|name| Isa::ALL.into_iter().find(|isa| isa.name() == name));
        if let Some(wanted) = wanted {
            if wanted > isa::best() {
                let best = isa::best().name();
                bail!("--isa {}: this machine has no better instruction set than {best}", wanted.name());
            }
            isa::limit(Some(wanted));
        }
        Ok(())
    }
}

/// Whether the reader of our output has gone, as `head` does: no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_in_its_long_help() {
        fn check(command: &mut clap::Command, path: &str) {
            let help = command.render_long_help().to_string();
            if command.has_subcommands() {
                for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
                    let path = format!("{path} {}", sub.get_name());
                    check(sub, &path);
                }
            } else {
                assert!(help.contains(path), "no example of `{path}` in its help:\n{help}");
            }
        }
        let mut command = Cli::command();
        command.build();
        check(&mut command, "posttrain");
    }
}
