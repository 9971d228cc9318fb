//! A recipe's source: its rows, recognised and brought to normal form.

use std::path::PathBuf;

use pt_data::layout;
use pt_data::read::{self, Format, ReadOptions, TextUnit};
use pt_data::{Origin, Record, Row, parallel};
use pt_recipe::{FileFormat, PlannedFile, Source};
use pt_tasks::GeneratedSource;

use crate::error::{PipelineError, Result};

/// What this program reads from its surroundings, given from above.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// What `$HF_HOME` is: hub models and datasets are looked up in `hub/` under it.
    pub hf_home: Option<PathBuf>,
    /// Where tokenised data is kept between runs; `None` keeps none.
    pub cache_dir: Option<PathBuf>,
    /// Memory that a run may take, in bytes; `None` where it is not known.
    pub memory_bytes: Option<u64>,
}

/// A source's rows in normal form.
#[derive(Debug)]
pub struct SourceRows {
    /// The records, in the order of the source.
    pub records: Vec<Record>,
    /// The layout they were recognised as.
    pub layout: &'static str,
    /// The files they came from, hashed; none for a generated source.
    pub files: Vec<PlannedFile>,
    /// What identifies the content: file hashes, or the generated source in full.
    pub identity: String,
}

/// The name a generated source is read under: the recipe's `split` counts where the name itself gives none.
pub(crate) fn generated_name(source: &Source) -> String {
    let name = &source.source;
    if source.split == "train" || name.contains("split=") || name.starts_with("generated:raw") {
        return name.clone();
    }
    let separator = if name.contains('?') { '&' } else { '?' };
    format!("{name}{separator}split={}", source.split)
}

/// Reads all rows of a source.
///
/// # Errors
/// The first row that cannot be read or understood, with its place.
pub fn read_source(source: &Source, surroundings: &Surroundings) -> Result<SourceRows> {
    let (mut rows, files, content) = if GeneratedSource::is_generated(&source.source) {
        let name = generated_name(source);
        let generated = GeneratedSource::parse(&name)?;
        let limit = source.limit.map_or(usize::MAX, |n| n as usize);
        let rows: Vec<Row> = generated
            .rows()?
            .take(limit)
            .enumerate()
            .map(|(i, value)| Row { origin: Origin::new(&name, i + 1), value })
            .collect();
        (rows, Vec::new(), generated.canonical())
    } else {
        read_files(source, surroundings)?
    };
    if let Some(columns) = &source.columns {
        let map = columns.iter().map(|(role, column)| (role.clone(), column.clone())).collect();
        for row in &mut rows {
            layout::rename(row, &map)?;
        }
    }
    let layout = match &source.layout {
        Some(name) => layout::by_name(name)?,
        None => layout::recognise_all(&rows)?,
    };
    let records = parallel::try_map_ordered(rows, |row| layout.convert(row))?.into_iter().flatten().collect();
    let columns = serde_json::to_string(&source.columns).expect("a map of strings is JSON");
    let identity = format!("{content}|{}|{columns}|{:?}", layout.name, source.limit);
    Ok(SourceRows { records, layout: layout.name, files, identity })
}

/// How the files of a source are found and read.
pub(crate) fn read_options(source: &Source, surroundings: &Surroundings) -> ReadOptions {
    ReadOptions {
        format: source.format.map(format_of),
        split: source.split.clone(),
        subset: source.subset.clone(),
        hf_home: surroundings.hf_home.clone(),
        text_unit: match source.text_unit.as_str() {
            "line" => TextUnit::Line,
            "file" => TextUnit::File,
            separator => TextUnit::Separator(separator.to_owned()),
        },
        rows_key: source.rows_key.clone(),
        ..ReadOptions::default()
    }
}

pub(crate) fn format_of(format: FileFormat) -> Format {
    match format {
        FileFormat::Jsonl => Format::Jsonl,
        FileFormat::Json => Format::Json,
        FileFormat::Parquet => Format::Parquet,
        FileFormat::Csv => Format::Csv,
        FileFormat::Tsv => Format::Tsv,
        FileFormat::Text => Format::Text,
    }
}

fn read_files(source: &Source, surroundings: &Surroundings) -> Result<(Vec<Row>, Vec<PlannedFile>, String)> {
    let options = read_options(source, surroundings);
    let files = read::locate(&source.source, &options)?;
    let planned = files.iter().map(planned_file).collect::<Result<Vec<_>>>()?;
    let hashes = planned.iter().map(|file| file.blake3.as_str()).collect::<Vec<_>>().join(",");
    let content = format!("{hashes}|{:?}|{:?}|{:?}", options.format, options.text_unit, options.rows_key);
    let limit = source.limit.map_or(usize::MAX, |n| n as usize);
    let rows =
        read::open(&source.source, &options)?.take(limit).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok((rows, planned, content))
}

/// The files of a source, hashed; none for a generated one.
///
/// # Errors
/// If they are not there.
pub(crate) fn source_files(source: &Source, surroundings: &Surroundings) -> Result<Vec<PlannedFile>> {
    if GeneratedSource::is_generated(&source.source) {
        return Ok(Vec::new());
    }
    let files = read::locate(&source.source, &read_options(source, surroundings))?;
    files.iter().map(planned_file).collect()
}

/// A file with its size and hash, as plans list it.
pub(crate) fn planned_file(path: &PathBuf) -> Result<PlannedFile> {
    let bytes = std::fs::metadata(path).map_err(PipelineError::io("read", path))?.len();
    let blake3 = pt_core::hash::of_file(path).map_err(PipelineError::io("read", path))?;
    Ok(PlannedFile { path: path.display().to_string(), bytes, blake3 })
}
