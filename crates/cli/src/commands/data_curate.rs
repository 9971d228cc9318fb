//! `posttrain data curate`: filters and analyses over data, and a card that says what they did.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use pt_curate::{CURATORS, Curation, Form, Given, Input, Report, StepConfig, Unreadable};
use pt_data::read::ReadOptions;
use pt_pipeline::CurationModels;

use crate::Context;
use crate::environment::Environment;
use crate::loading::TextArgs;
use crate::rows::layout_names;
use crate::ui;

const HELP: &str = "\
Rows stream through the steps in the order they are given; what a step drops goes to --dropped with the reason, the \
evidence and where the row is from. --card writes NAME.md and NAME.json: counts, examples before and after, composition, \
lengths. Rows leave with the columns they came with. All files appear when everything is done.

A curation file holds the same and more (licences, domains, a composition blueprint); see docs/guide/curation.md.

Examples:
  posttrain data curate curation.toml
  posttrain data curate 'raw/*.jsonl' --step encoding --step exact_duplicates --step 'near_duplicates:threshold=0.8' \\
      --step 'personal_data:action=\"redact\"' --out clean.jsonl.zst --dropped dropped.jsonl --card card
  posttrain data curate sft.jsonl --step domains --step instruction_profile --step 'clusters:k=8' --out /dev/null --card profile

Steps (`--step NAME` or `--step NAME:key=value,key=value`, values as in TOML):
";

/// The help with every step of the catalogue.
fn help() -> String {
    let mut text = HELP.to_owned();
    for info in CURATORS {
        let _ = writeln!(text, "  {} ({}): {}", info.name, info.group, info.summary);
        for option in info.options {
            let default =
                if option.default.is_empty() { String::new() } else { format!(" [{}]", option.default) };
            let _ = writeln!(text, "      {} ({}): {}{default}", option.name, option.kind, option.doc);
        }
    }
    text
}

/// Options of `data curate`.
#[derive(clap::Args)]
#[command(after_long_help = help())]
pub(crate) struct Args {
    /// A curation file (`.toml`), or files, folders, patterns, hub datasets or `generated:...`
    #[arg(value_name = "CURATION.toml|SOURCE", required = true)]
    sources: Vec<String>,
    /// A step with its options; may be repeated
    #[arg(long = "step", value_name = "NAME[:key=value,...]")]
    steps: Vec<String>,
    /// Where kept rows go, as JSON lines (`.gz`, `.zst`: compressed)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where dropped rows go, with step, reason, evidence and place
    #[arg(long, value_name = "FILE")]
    dropped: Option<PathBuf>,
    /// Where the data card goes: NAME.md and NAME.json
    #[arg(long, value_name = "NAME")]
    card: Option<PathBuf>,
    /// Keys every random choice
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The layout of all sources, where it cannot be told; `columns` takes all texts of a row as one
    #[arg(long, value_name = "NAME", value_parser = layouts())]
    layout: Option<String>,
    /// Read only so many rows of each source
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The columns rows are written in
    #[arg(long, value_enum, value_name = "FORM")]
    rows: Option<FormName>,
    /// Drop rows that cannot be read, instead of stopping at the first
    #[arg(long)]
    drop_unreadable: bool,
    /// Write scores and clusters into a column `curation`
    #[arg(long)]
    annotate: bool,
    #[command(flatten)]
    text: TextArgs,
}

/// The columns rows are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum FormName {
    /// Those they came with.
    AsRead,
    /// The standard ones of their kind.
    Canonical,
    /// Conversations.
    Messages,
}

fn layouts() -> Vec<&'static str> {
    layout_names().into_iter().chain(["columns"]).collect()
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let curation = curation(args)?;
    let mut given = given(&context.environment);
    if args.text.tokenizer.is_some() {
        let (tokenizer, _) = args.text.load(None, &context.environment)?;
        // A text that cannot be tokenised has no length of its own; it still has words, but they are another unit.
        given.count_tokens =
            Some(Arc::new(move |text| tokenizer.encode(text, false).map_or(0, |e| e.ids.len())));
    }
    let report = carry_out(&curation, &given)?;
    ui::note(&summary(&report, &curation));
    Ok(())
}

/// What a curation is given by this program.
pub(crate) fn given(environment: &Environment) -> Given {
    let read = ReadOptions { hf_home: environment.hf_home.clone(), ..ReadOptions::default() };
    let models = CurationModels::new(&environment.surroundings());
    Given { read, models: Some(Arc::new(models)), ..Given::default() }
}

/// Carries out a curation, with progress, and says how fast it was.
pub(crate) fn carry_out(curation: &Curation, given: &Given) -> anyhow::Result<Report> {
    for path in [Some(&curation.out), curation.dropped.as_ref(), curation.card.as_ref()].into_iter().flatten()
    {
        ui::check_target(&path.display().to_string())?;
    }
    let bar = indicatif::ProgressBar::new_spinner();
    let start = Instant::now();
    let mut show = |progress: pt_curate::Progress| {
        let rate = progress.n_rows as f64 / start.elapsed().as_secs_f64().max(1e-9);
        bar.set_message(format!(
            "pass {} of {}: {} rows{}",
            progress.pass,
            progress.n_passes,
            ui::count(usize::try_from(progress.n_rows).unwrap_or(usize::MAX)),
            if progress.pass == 1 { format!(", {rate:.0} rows/s") } else { String::new() }
        ));
        bar.tick();
    };
    let report = pt_curate::run(curation, given, &mut show);
    bar.finish_and_clear();
    let report = report?;
    let seconds = start.elapsed().as_secs_f64();
    ui::note(&format!("{seconds:.1} s, {:.0} rows/s", report.n_read as f64 / seconds.max(1e-9)));
    Ok(report)
}

/// The curation that is asked for: a file's, with what the command line says beside it.
fn curation(args: &Args) -> anyhow::Result<Curation> {
    let mut curation = match args.sources.as_slice() {
        [file] if Path::new(file).extension().is_some_and(|extension| extension == "toml") => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            if args.layout.is_some() || args.limit.is_some() {
                bail!(
                    "--layout and --limit go with sources on the command line; in {file} write them to an [[input]]"
                );
            }
            Curation::parse(&text, file)?
        }
        sources => {
            let Some(out) = args.out.clone() else {
                bail!("--out FILE is required; /dev/null keeps nothing")
            };
            Curation {
                out,
                dropped: None,
                card: None,
                seed: 0,
                unreadable: Unreadable::Error,
                rows: Form::AsRead,
                annotate: false,
                examples: 3,
                inputs: sources.iter().map(|source| input(source, args)).collect(),
                steps: Vec::new(),
                blueprint: None,
            }
        }
    };
    curation
        .steps
        .extend(args.steps.iter().map(|step| StepConfig::parse(step)).collect::<Result<Vec<_>, _>>()?);
    curation.out = args.out.clone().unwrap_or(curation.out);
    curation.dropped = args.dropped.clone().or(curation.dropped);
    curation.card = args.card.clone().or(curation.card);
    curation.seed = args.seed.unwrap_or(curation.seed);
    curation.annotate |= args.annotate;
    if args.drop_unreadable {
        curation.unreadable = Unreadable::Drop;
    }
    curation.rows = match args.rows {
        None => curation.rows,
        Some(FormName::AsRead) => Form::AsRead,
        Some(FormName::Canonical) => Form::Canonical,
        Some(FormName::Messages) => Form::Messages,
    };
    Ok(curation)
}

fn input(source: &str, args: &Args) -> Input {
    let (source, format) = match source {
        "-" => ("/dev/stdin", Some(pt_data::read::Format::Jsonl)),
        source => (source, None),
    };
    Input {
        source: source.to_owned(),
        layout: args.layout.clone(),
        limit: args.limit,
        format,
        ..Input::default()
    }
}

/// What was done, in a few lines.
pub(crate) fn summary(report: &Report, curation: &Curation) -> String {
    let number = |n: u64| ui::count(usize::try_from(n).unwrap_or(usize::MAX));
    let mut text = format!("{} of {} rows kept", number(report.n_kept), number(report.n_read));
    for (i, step) in report.steps.iter().enumerate() {
        let _ = write!(text, "\n  {}. {}", i + 1, step.name);
        for (what, counts) in
            [("dropped", &step.dropped), ("changed", &step.changed), ("flagged", &step.flagged)]
        {
            for (reason, n) in counts {
                let _ = write!(text, "; {} {what}: {reason}", number(*n));
            }
        }
        for line in step.summary.lines.iter().take(8) {
            let _ = write!(text, "\n       {line}");
        }
        for example in step.examples.iter().take(2) {
            let _ = write!(text, "\n       {}: {}", example.origin, example.detail.replace('\n', " "));
        }
    }
    for input in report.inputs.iter().filter(|input| input.n_unreadable > 0) {
        let _ = write!(
            text,
            "\n{}: {} unreadable",
            input.source,
            ui::counted(input.n_unreadable as usize, "row")
        );
    }
    let warnings = report.steps.iter().flat_map(|step| &step.summary.warnings);
    let missing = report
        .mixture
        .iter()
        .flat_map(|mixture| mixture.shortfalls.iter().map(|shortfall| &shortfall.problem));
    for warning in warnings.chain(missing) {
        let _ = write!(text, "\nlook at: {warning}");
    }
    if let Some(mixture) = &report.mixture {
        let _ = write!(text, "\n{}", mixture.to_toml().trim_end());
    }
    if let Some(card) = &curation.card {
        let _ = write!(text, "\ncard: {}", card.with_extension("md").display());
    }
    text
}
