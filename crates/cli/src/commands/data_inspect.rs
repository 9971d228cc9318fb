//! `posttrain data inspect`: rows as a model sees them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::bail;
use pt_data::{Record, parallel};
use pt_pipeline::model::locate_model;
use pt_pipeline::tokenise::{TokeniseOptions, example, masker};
use pt_recipe::{Mask, Truncation};
use pt_text::audit::doubts;
use pt_text::show::{ShowStyle, show, table};
use pt_text::{ChatTemplate, Doubt, Example, Tokenizer};

use crate::Context;
use crate::commands::score::{MaskName, parse_positive};
use crate::loading::TextArgs;
use crate::rows::{ReadArgs, Rows};
use crate::ui::{self, Style, Table};

const HELP: &str = "\
Without a tokenizer: the layout that was recognised, and the rows under their standard names. With one (--model or \
--tokenizer): every token of the rows shown, those that train in green (without colours: in [brackets]), special \
tokens inverted, and counts over the whole source. A row that would train the wrong thing is an error that shows it.

Examples:
  posttrain data inspect data.jsonl
  posttrain data inspect data.jsonl --model models/chat --rows 1-3
  posttrain data inspect data.jsonl --model models/chat --row 17 --mask assistant_only --tokens
  posttrain data inspect 'generated:arithmetic?n=5' --tokenizer models/base --template chat.jinja";

/// Options of `data inspect`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// A file, folder, pattern, hub dataset or `generated:...`; `-` reads JSON lines from standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// A model whose tokenizer and chat template are used
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The rows to show, counted from 1, as in 2-5
    #[arg(long, value_name = "A-B", value_parser = parse_rows, conflicts_with = "row")]
    rows: Option<(usize, usize)>,
    /// The row to show, counted from 1 [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    row: Option<usize>,
    /// Which tokens train [default: as in recipes, by the layout]
    #[arg(long, value_enum, value_name = "WHICH")]
    mask: Option<MaskName>,
    /// Cut longer rows to so many tokens, as training would
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    max_length: Option<usize>,
    /// Show one token per line, with its id, its weight and where it comes from
    #[arg(long)]
    tokens: bool,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    read: ReadArgs,
}

fn parse_rows(text: &str) -> Result<(usize, usize), String> {
    let range =
        text.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match range {
        Some((first, last)) if 1 <= first && first <= last => Ok((first, last)),
        _ => Err("expected the first and the last row, counted from 1, as in 2-5".to_owned()),
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let rows = args.read.read(&args.source, &context.environment)?;
    let (first, last) = args.rows.unwrap_or_else(|| (args.row.unwrap_or(1), args.row.unwrap_or(1)));
    if first > rows.records.len() {
        bail!(
            "{} has {}, and row {first} was asked for",
            args.source,
            ui::counted(rows.records.len(), "row")
        );
    }
    let shown = first - 1..last.min(rows.records.len());
    let mut out = io::stdout().lock();
    write!(out, "{}", head(args, &rows, context))?;
    if args.model.is_none() && args.text.tokenizer.is_none() {
        for i in shown {
            let row = serde_json::to_string_pretty(&rows.records[i].to_row())?;
            writeln!(out, "\n{}\n{row}", title(i, &rows.records[i], context.style))?;
        }
        return Ok(());
    }
    let model: Option<PathBuf> = match &args.model {
        Some(name) => Some(locate_model(name, "main", &context.environment.surroundings())?),
        None => None,
    };
    let (tokenizer, template) = args.text.load(model.as_deref(), &context.environment)?;
    let view = View { args, tokenizer: &tokenizer, template: template.as_ref(), style: context.style };
    for i in shown {
        writeln!(out, "\n{}", title(i, &rows.records[i], context.style))?;
        // A row that is refused is told with the counts, once.
        if let Ok(example) = view.example(&rows.records[i]) {
            view.write(&example, &mut out)?;
        }
    }
    writeln!(out)?;
    let mut counts = Counts::default();
    for example in parallel::map_ordered(&rows.records, |record| view.example(record)) {
        counts.add(example, &tokenizer);
    }
    write!(out, "{}", counts.to_text(context.style))?;
    out.flush()?;
    let refused = ui::counted(counts.n_refused, "row");
    counts
        .first_error
        .map_or(Ok(()), |error| Err(error.context(format!("{refused} would be refused; the first"))))
}

fn head(args: &Args, rows: &Rows, context: &Context) -> String {
    let mut table = Table::new(0);
    table.row("source", &args.source);
    table.row("layout", rows.layout);
    let records = match rows.records.len() {
        n if n == rows.n_rows => String::new(),
        n => format!(", which give {}", ui::counted(n, "record")),
    };
    table.row("rows", format!("{}{records}", ui::count(rows.n_rows)));
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    rows.records.iter().for_each(|record| *kinds.entry(record.body.kind()).or_default() += 1);
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{kind} ({})", ui::count(*n))).collect();
    let form =
        if crate::rows::is_conversational(&rows.records[0].body) { "conversations" } else { "plain text" };
    table.row("kind", format!("{}, {form}", kinds.join(", ")));
    let extra: Vec<&str> = rows.records[0].extra.keys().map(String::as_str).collect();
    if !extra.is_empty() {
        table.row("also", extra.join(", "));
    }
    table.render(ui::screen_width(&context.environment), context.style)
}

fn title(i: usize, record: &Record, style: Style) -> String {
    style.bold(&format!("row {} ({})", i + 1, record.origin))
}

/// How rows are seen.
struct View<'a> {
    args: &'a Args,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    style: Style,
}

impl View<'_> {
    fn example(&self, record: &Record) -> anyhow::Result<Example> {
        let mask = match self.args.mask.unwrap_or_else(|| MaskName::default_for(&record.body)) {
            MaskName::All => Mask::All,
            MaskName::CompletionOnly => Mask::CompletionOnly,
            MaskName::AssistantOnly => Mask::AssistantOnly,
        };
        let options = TokeniseOptions {
            tokenizer: self.tokenizer,
            template: self.template,
            mask,
            train_end_of_turn: true,
            max_length: self.args.max_length,
            truncation: Truncation::KeepStart,
            stage: "sft",
        };
        Ok(example(&masker(&options), record, &options)?)
    }

    fn write(&self, example: &Example, out: &mut impl Write) -> anyhow::Result<()> {
        let style = if self.style.has_colours() { ShowStyle::Colour } else { ShowStyle::Plain };
        let shown = if self.args.tokens {
            table(example, self.tokenizer)
        } else {
            show(example, self.tokenizer, style)
        };
        writeln!(out, "{}", shown.trim_end_matches('\n'))?;
        let mut facts =
            format!("{}, {} train", ui::counted(example.len(), "token"), ui::count(example.n_trained()));
        if example.n_truncated > 0 {
            facts += &format!(", {} cut off", ui::count(example.n_truncated));
        }
        writeln!(out, "{}", self.style.dim(&facts))?;
        Ok(())
    }
}

/// What was found over all rows.
#[derive(Default)]
struct Counts {
    lens: Vec<usize>,
    n_trained: usize,
    n_cut: usize,
    /// How often each doubt was seen, and where first.
    doubts: BTreeMap<Doubt, (usize, String)>,
    n_refused: usize,
    first_error: Option<anyhow::Error>,
}

impl Counts {
    fn add(&mut self, example: anyhow::Result<Example>, tokenizer: &Tokenizer) {
        match example {
            Ok(example) => {
                self.lens.push(example.len());
                self.n_trained += example.n_trained();
                self.n_cut += usize::from(example.n_truncated > 0);
                for (doubt, _) in doubts(&example, tokenizer) {
                    self.doubts.entry(doubt).or_insert_with(|| (0, example.origin.to_string())).0 += 1;
                }
            }
            Err(error) => {
                self.n_refused += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn to_text(&self, style: Style) -> String {
        let mut table = Table::new(0);
        let n_rows = self.lens.len() + self.n_refused;
        table.row("rows", format!("{}, {} refused", ui::count(n_rows), ui::count(self.n_refused)));
        let mut lens = self.lens.clone();
        lens.sort_unstable();
        if let (Some(least), Some(most)) = (lens.first(), lens.last()) {
            let (total, median) = (lens.iter().sum::<usize>(), lens[lens.len() / 2]);
            let share = 100.0 * self.n_trained as f64 / total.max(1) as f64;
            let trained = ui::count(self.n_trained);
            table.row("tokens", format!("{}, of which {trained} train ({share:.1} %)", ui::count(total)));
            table.row("tokens per row", format!("{least} to {most}, median {median}"));
        }
        if self.n_cut > 0 {
            table.row("cut", ui::counted(self.n_cut, "row"));
        }
        for (doubt, (n, origin)) in &self.doubts {
            let name = serde_json::to_value(doubt).ok().and_then(|name| name.as_str().map(str::to_owned));
            let name = name.unwrap_or_else(|| format!("{doubt:?}")).replace('_', " ");
            table.row(
                format!("look at: {name}"),
                format!("{}, the first at {origin}", ui::counted(*n, "row")),
            );
        }
        table.render(usize::MAX / 2, style)
    }
}
