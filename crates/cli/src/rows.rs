//! Rows named on the command line: files, hub datasets and generated problems, brought to normal form.

use anyhow::bail;
use pt_data::layout::{self, ColumnMap, LAYOUTS};
use pt_data::read::{FORMATS, ReadOptions};
use pt_data::source::{LayoutOptions, load};
use pt_data::{Body, Content, Message, Origin, Record, Row};
use pt_tasks::GeneratedSource;
use pt_text::template::Message as TemplateMessage;
use serde_json::Value;

use crate::environment::Environment;
use crate::hub::ensure_dataset;

/// How the rows of a source are found and understood.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Reading data")]
pub(crate) struct ReadArgs {
    /// The layout of the rows, where it cannot be told from the columns (see `posttrain list layouts`)
    #[arg(long, value_name = "NAME", value_parser = layout_names())]
    layout: Option<String>,
    /// Which column plays which part, as in `--column prompt=question`; may be repeated
    #[arg(long = "column", value_name = "PART=COLUMN", value_parser = parse_column)]
    columns: Vec<(String, String)>,
    /// The split of a folder, of a hub dataset or of generated problems
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// The configuration of a hub dataset that has several
    #[arg(long, value_name = "NAME")]
    subset: Option<String>,
    /// The format of the files, where their names do not tell
    #[arg(long, value_name = "NAME", value_parser = FORMATS.iter().map(|(name, _, _)| *name).collect::<Vec<_>>())]
    format: Option<String>,
    /// Read only so many rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// The rows of a source.
pub(crate) struct Rows {
    /// The records, in the order of the source.
    pub(crate) records: Vec<Record>,
    /// The layout they were recognised as.
    pub(crate) layout: &'static str,
    /// Rows read; some layouts give several records per row.
    pub(crate) n_rows: usize,
}

/// The names of all layouts, for the parser of the command line.
pub(crate) fn layout_names() -> Vec<&'static str> {
    LAYOUTS.iter().map(|layout| layout.name).collect()
}

fn parse_column(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((part, column)) if !part.is_empty() && !column.is_empty() => {
            Ok((part.to_owned(), column.to_owned()))
        }
        _ => Err("expected PART=COLUMN, as in prompt=question".to_owned()),
    }
}

impl ReadArgs {
    /// Reads the rows of `source`: a location, `generated:...`, or `-` for JSON lines from standard input.
    ///
    /// # Errors
    /// The first row that cannot be read or understood, with its place.
    pub(crate) fn read(&self, source: &str, environment: &Environment) -> anyhow::Result<Rows> {
        let columns: ColumnMap = self.columns.iter().cloned().collect();
        let mut rows = if GeneratedSource::is_generated(source) {
            self.generate(source, &columns)?
        } else {
            ensure_dataset(source, environment)?;
            let options = LayoutOptions { layout: self.layout.clone(), columns };
            let (location, options_of_reader) = self.reader(source, environment);
            let loaded = load(location, &options_of_reader, &options)?;
            Rows { records: loaded.records, layout: loaded.layout.name, n_rows: loaded.n_rows }
        };
        if let Some(limit) = self.limit {
            rows.records.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            rows.n_rows = rows.n_rows.min(rows.records.len());
        }
        if rows.records.is_empty() {
            bail!("{source}: there are no rows");
        }
        Ok(rows)
    }

    fn reader<'a>(&self, source: &'a str, environment: &Environment) -> (&'a str, ReadOptions) {
        let named =
            |name: &String| FORMATS.iter().find(|(known, _, _)| known == name).map(|(_, format, _)| *format);
        let mut options = ReadOptions {
            format: self.format.as_ref().and_then(named),
            split: self.split.clone(),
            subset: self.subset.clone(),
            hf_home: environment.hf_home.clone(),
            ..ReadOptions::default()
        };
        if source == "-" {
            options.format.get_or_insert(pt_data::read::Format::Jsonl);
            return ("/dev/stdin", options);
        }
        (source, options)
    }

    fn generate(&self, source: &str, columns: &ColumnMap) -> anyhow::Result<Rows> {
        let plain = self.split == "train" || source.contains("split=") || source.starts_with("generated:raw");
        let separator = if source.contains('?') { '&' } else { '?' };
        let name = if plain { source.to_owned() } else { format!("{source}{separator}split={}", self.split) };
        let generated = GeneratedSource::parse(&name)?;
        let mut rows = Vec::new();
        for (i, value) in generated.rows()?.enumerate() {
            let mut row = Row { origin: Origin::new(&name, i + 1), value };
            layout::rename(&mut row, columns)?;
            rows.push(row);
        }
        let n_rows = rows.len();
        let layout = match &self.layout {
            Some(name) => layout::by_name(name)?,
            None => layout::recognise_all(&rows)?,
        };
        let mut records = Vec::with_capacity(n_rows);
        for row in rows {
            records.extend(layout.convert(row)?);
        }
        Ok(Rows { records, layout: layout.name, n_rows })
    }
}

/// A record's origin as the text crate has it.
pub(crate) fn text_origin(record: &Record) -> pt_text::Origin {
    pt_text::Origin::new(record.origin.file.display().to_string(), record.origin.line as u64)
}

/// Messages as a chat template takes them.
pub(crate) fn template_messages(messages: &[Message]) -> Vec<TemplateMessage> {
    pt_pipeline::tokenise::template_messages(messages)
}

/// Tool schemas as a chat template takes them.
pub(crate) fn tools_of(record: &Record) -> Option<Value> {
    record.tools.as_ref().map(|tools| Value::Array(tools.clone()))
}

/// Whether a record's text is messages.
pub(crate) fn is_conversational(body: &Body) -> bool {
    let content = match body {
        Body::LanguageModel(content)
        | Body::PromptOnly { prompt: content }
        | Body::PromptCompletion { prompt: content, .. }
        | Body::Preference { chosen: content, .. }
        | Body::Unpaired { prompt: content, .. } => content,
        Body::Stepwise { .. } | Body::Tokenised { .. } => return false,
    };
    matches!(content, Content::Messages(_))
}
