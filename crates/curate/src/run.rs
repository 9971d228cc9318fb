//! Carrying out a curation: passes over the rows, in memory that does not grow with their number but for what steps keep.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pt_data::{Body, Columns, Content, DataError, Origin, Record, Row, layout};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::blueprint::Blueprint;
use crate::card::{card_json, card_markdown};
use crate::catalogue;
use crate::config::{Curation, Form, Input, Unreadable};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::{DroppedRow, Histogram, InputReport, Report, StepReport};
use crate::source::{self, COLUMNS};
use crate::step::{AnyStep, Given};
use crate::steps::domains::{self, DOMAINS};
use crate::words::count_words;
use crate::writer::{RowWriter, is_special};

/// Rows that are in memory at once.
pub const CHUNK_ROWS: usize = 2048;

/// How far a curation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The pass, from 1; one more for each step that needs a survey.
    pub pass: usize,
    /// How many there will be.
    pub n_passes: usize,
    /// Rows that went through this pass.
    pub n_rows: u64,
}

/// Carries out a curation and writes its files: rows, dropped rows, card, mixture. They appear together, when all is done.
///
/// # Errors
/// Wrong options before anything is read; rows that cannot be read, unless they are to be dropped; outputs that cannot
/// be written or would overwrite an input.
pub fn run(
    curation: &Curation,
    given: &Given,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, CurateError> {
    let given = Given { seed: curation.seed, scratch: scratch_of(&curation.out), ..given.clone() };
    let steps = build_steps(curation, &given)?;
    if let Some(blueprint) = &curation.blueprint {
        blueprint.check()?;
    }
    check_outputs(curation)?;
    check_inputs(curation, &given)?;
    let n_passes = 1 + steps.iter().filter(|step| step.needs_survey()).count();
    let mut runner = Runner::new(curation, &given, steps)?;
    let mut items: Items = Box::new(runner.read());
    let mut at = 0;
    for pass in 1..=n_passes {
        // The step that was surveyed last begins this pass, and needs no other survey.
        let from = if pass == 1 { 0 } else { at + 1 };
        let stop = (from..runner.steps.len()).find(|i| runner.steps[*i].needs_survey());
        let end = stop.unwrap_or(runner.steps.len());
        let mut spill = stop.map(|_| Spill::create(&curation.out, pass)).transpose()?;
        let mut n_rows = 0;
        while let Some(mut chunk) = next_chunk(&mut items, &mut runner)? {
            n_rows += chunk.len() as u64;
            if pass == 1 {
                runner.count_read(&mut chunk);
            }
            let chunk = runner.through(at..end, chunk)?;
            match (&mut spill, stop) {
                (Some(spill), Some(stop)) => {
                    runner.steps[stop].survey_chunk(&chunk)?;
                    spill.write(&chunk)?;
                }
                _ => runner.write(chunk)?,
            }
            progress(Progress { pass, n_passes, n_rows });
        }
        if let (Some(spill), Some(stop)) = (spill, stop) {
            runner.steps[stop].finish_survey();
            items = Box::new(spill.read()?);
            at = stop;
        }
    }
    runner.finish()
}

/// The folder for temporary files: that of the output; beside a device there is no place for files.
fn scratch_of(out: &Path) -> PathBuf {
    let folder = if is_special(out) { None } else { out.parent() };
    folder.map(Path::to_owned).unwrap_or_default()
}

/// Refuses steps and a blueprint that cannot be right, before anything is read.
///
/// # Errors
/// [`CurateError::Step`], [`CurateError::Config`].
pub fn check(curation: &Curation, given: &Given) -> Result<(), CurateError> {
    build_steps(curation, given)?;
    curation.blueprint.as_ref().map_or(Ok(()), Blueprint::check)
}

type Items = Box<dyn Iterator<Item = Result<Item, Refused>>>;

/// A row, or an input, that could not be read: where it is from, and why.
struct Refused {
    input_idx: usize,
    error: CurateError,
    /// Whether this is about one row, and those after it can still be read.
    is_row: bool,
}

/// Whether an error is about one row. What concerns a file, a layout or an option takes more rows with it than one.
fn concerns_a_row(error: &DataError) -> bool {
    matches!(
        error,
        DataError::NotUtf8 { .. }
            | DataError::TooLong { .. }
            | DataError::Json { .. }
            | DataError::NotAnObject { .. }
            | DataError::Csv { .. }
            | DataError::BadColumn { .. }
            | DataError::Rename { .. }
            | DataError::Unconvertible { .. }
            | DataError::BadTokens { .. }
            | DataError::Row { .. }
    )
}

fn build_steps(curation: &Curation, given: &Given) -> Result<Vec<Box<dyn AnyStep>>, CurateError> {
    let built = curation.steps.iter().enumerate().map(|(i, step)| {
        catalogue::build(&step.name, &step.options, given).map_err(|source| CurateError::Step {
            position: i + 1,
            name: step.name.clone(),
            source: Box::new(source),
        })
    });
    built.collect()
}

/// Refuses inputs that are not there, domains there are not, and outputs that are inputs.
fn check_inputs(curation: &Curation, given: &Given) -> Result<(), CurateError> {
    let outputs = outputs_of(curation);
    for input in &curation.inputs {
        if let Some(domain) = input.domain.as_deref().filter(|domain| !DOMAINS.contains(domain)) {
            let problem =
                format!("there is no domain `{domain}`; {}", pt_core::suggest::hint(domain, DOMAINS));
            return Err(CurateError::Config { place: input.source.clone(), problem });
        }
        if input.layout.as_deref().is_some_and(|layout| layout != COLUMNS) {
            layout::by_name(input.layout.as_deref().unwrap_or_default())?;
        }
        if pt_tasks::GeneratedSource::is_generated(&input.source) {
            continue;
        }
        let mut options = given.read.clone();
        options.split = input.split.clone().unwrap_or(options.split);
        options.subset = input.subset.clone().or(options.subset);
        let files = pt_data::read::locate(&input.source, &options)?;
        for output in &outputs {
            if files.iter().any(|file| place_of(file) == place_of(output)) {
                return Err(CurateError::OverwritesInput { path: output.clone() });
            }
        }
    }
    Ok(())
}

/// Every file that is written.
fn outputs_of(curation: &Curation) -> Vec<PathBuf> {
    let mut outputs = match &curation.blueprint {
        None => vec![curation.out.clone()],
        Some(_) => {
            let files = DOMAINS.iter().map(|domain| path_for(&curation.out, domain));
            let mixture = curation.out.with_file_name(mixture_name(&curation.out));
            files.chain([mixture]).collect()
        }
    };
    outputs.extend(curation.dropped.clone());
    let card = curation.card.iter().flat_map(|card| ["md", "json"].map(|kind| card.with_extension(kind)));
    outputs.extend(card);
    outputs
}

/// A path by which files that need not be there yet can be compared.
fn place_of(path: &Path) -> PathBuf {
    let folder =
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let there = || Some(folder?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(there).unwrap_or_else(|| path.to_owned())
}

/// Refuses two outputs of one name, and a file for each domain beside what is no file.
fn check_outputs(curation: &Curation) -> Result<(), CurateError> {
    let refuse = |path: &Path, problem: &str| {
        Err(CurateError::Config { place: path.display().to_string(), problem: problem.to_owned() })
    };
    if curation.blueprint.is_some() && is_special(&curation.out) {
        return refuse(
            &curation.out,
            "with a blueprint each domain gets a file beside `out`, and this is no file; name one, as `out = \"sft.jsonl\"`",
        );
    }
    let outputs = outputs_of(curation);
    for (i, output) in outputs.iter().enumerate().filter(|(_, output)| !is_special(output)) {
        if outputs[..i].iter().any(|other| place_of(other) == place_of(output)) {
            return refuse(output, "two outputs would be written to this file; give each a name of its own");
        }
    }
    Ok(())
}

/// The next rows; what could not be read is dropped or ends the curation.
fn next_chunk(items: &mut Items, runner: &mut Runner<'_>) -> Result<Option<Vec<Item>>, CurateError> {
    let mut chunk = Vec::with_capacity(CHUNK_ROWS);
    let mut any = false;
    for item in items.by_ref().take(CHUNK_ROWS) {
        any = true;
        match item {
            Ok(item) => chunk.push(item),
            Err(refused) => runner.refuse(refused)?,
        }
    }
    Ok(any.then_some(chunk))
}

struct Runner<'a> {
    curation: &'a Curation,
    given: &'a Given,
    steps: Vec<Box<dyn AnyStep>>,
    report: Report,
    layouts: Arc<std::sync::Mutex<Vec<&'static str>>>,
    dropped: Option<RowWriter>,
    outputs: BTreeMap<String, Output>,
    n_inputs_seen: u64,
}

/// A file of kept rows, and the layout of its first row with its place.
struct Output {
    writer: RowWriter,
    first: Option<(&'static str, Origin)>,
}

impl<'a> Runner<'a> {
    fn new(
        curation: &'a Curation,
        given: &'a Given,
        steps: Vec<Box<dyn AnyStep>>,
    ) -> Result<Self, CurateError> {
        let inputs = curation.inputs.iter().map(|input| InputReport {
            source: input.source.clone(),
            licence: input.licence.clone(),
            ..InputReport::default()
        });
        let step_reports = curation.steps.iter().map(|step| StepReport {
            name: step.name.clone(),
            options: step.options.clone(),
            ..StepReport::default()
        });
        let unit = if given.count_tokens.is_some() { "tokens" } else { "words" };
        let report = Report {
            inputs: inputs.collect(),
            steps: step_reports.collect(),
            seed: curation.seed,
            lengths: Histogram { unit, ..Histogram::default() },
            ..Report::default()
        };
        let dropped = curation.dropped.as_deref().map(RowWriter::create).transpose()?;
        let layouts = Arc::new(std::sync::Mutex::new(vec![""; curation.inputs.len()]));
        let mut runner = Runner {
            curation,
            given,
            steps,
            report,
            layouts,
            dropped,
            outputs: BTreeMap::new(),
            n_inputs_seen: 0,
        };
        if curation.blueprint.is_none() {
            // The file is there even if no row is kept.
            runner.output("")?;
        }
        Ok(runner)
    }

    /// All rows of all inputs, one after the other.
    fn read(&self) -> impl Iterator<Item = Result<Item, Refused>> + use<> {
        let base = self.given.read.clone();
        let layouts = self.layouts.clone();
        let inputs: Vec<Input> = self.curation.inputs.clone();
        inputs.into_iter().enumerate().flat_map(move |(input_idx, input)| {
            let fail = |error: CurateError| -> Items {
                Box::new(std::iter::once(Err(Refused { input_idx, error, is_row: false })))
            };
            match InputReader::open(&input, input_idx, &base) {
                Ok(reader) => {
                    layouts.lock().expect("no holder panics")[input_idx] = reader.layout;
                    Box::new(reader) as Items
                }
                Err(error) => fail(error),
            }
        })
    }

    fn refuse(&mut self, refused: Refused) -> Result<(), CurateError> {
        if self.curation.unreadable == Unreadable::Error || !refused.is_row {
            return Err(refused.error);
        }
        self.report.inputs[refused.input_idx].n_unreadable += 1;
        let detail = refused.error.to_string();
        let origin = self.curation.inputs[refused.input_idx].source.clone();
        self.write_dropped(&DroppedRow {
            step: "read",
            position: 0,
            reason: "unreadable",
            detail: &detail,
            origin,
            row: None,
        })
    }

    fn write_dropped(&mut self, row: &DroppedRow<'_>) -> Result<(), CurateError> {
        self.dropped.as_mut().map_or(Ok(()), |writer| writer.write(row))
    }

    /// A chunk through some of the steps.
    fn through(
        &mut self,
        steps: std::ops::Range<usize>,
        mut items: Vec<Item>,
    ) -> Result<Vec<Item>, CurateError> {
        for i in steps {
            let decisions = self.steps[i].decide_chunk(&items)?;
            let mut kept = Vec::with_capacity(items.len());
            for (item, decision) in items.into_iter().zip(decisions) {
                self.report.steps[i].count(&item, &decision, self.curation.examples);
                if let Decision::Drop { reason, detail } = &decision {
                    let (step, origin) = (&self.curation.steps[i].name, item.row.origin.to_string());
                    let row = Some(&item.row.value);
                    self.write_dropped(&DroppedRow { step, position: i + 1, reason, detail, origin, row })?;
                }
                apply(item, decision, &mut kept);
            }
            items = kept;
        }
        Ok(items)
    }

    /// Numbers rows that were just read, and counts them by domain and input.
    fn count_read(&mut self, items: &mut [Item]) {
        for item in items.iter_mut() {
            item.row_idx = self.n_inputs_seen;
            self.n_inputs_seen += 1;
        }
        let found: Vec<(&'static str, usize)> = items.par_iter().map(|item| self.measure(item)).collect();
        for (item, (domain, n_words)) in items.iter().zip(found) {
            let input = &mut self.report.inputs[item.input_idx];
            input.n_read += 1;
            self.report.n_read += 1;
            self.report.before.add(domain, &input.source, n_words);
        }
    }

    /// A row's domain and words.
    fn measure(&self, item: &Item) -> (&'static str, usize) {
        let given = self.curation.inputs[item.input_idx].domain.as_deref();
        let domain = given.and_then(|name| DOMAINS.iter().find(|domain| **domain == name).copied());
        let view = &item.view;
        let n_words = [&view.prompt, &view.reply, &view.rejected].map(|text| count_words(text)).iter().sum();
        (domain.unwrap_or_else(|| domains::domain_of(item)), n_words)
    }

    fn write(&mut self, items: Vec<Item>) -> Result<(), CurateError> {
        let measured: Vec<(&'static str, usize, usize)> = items
            .par_iter()
            .map(|item| {
                let (domain, n_words) = self.measure(item);
                let n_tokens = self.given.count_tokens.as_ref().map(|count| {
                    [&item.view.prompt, &item.view.reply, &item.view.rejected]
                        .iter()
                        .map(|text| count(text))
                        .sum()
                });
                (domain, n_words, n_tokens.unwrap_or(n_words))
            })
            .collect();
        for (item, (domain, n_words, length)) in items.into_iter().zip(measured) {
            let input = &mut self.report.inputs[item.input_idx];
            input.n_kept += 1;
            self.report.n_kept += 1;
            self.report.after.add(domain, &input.source, n_words);
            self.report.lengths.add(length);
            let file = if self.curation.blueprint.is_some() { domain } else { "" };
            self.write_row(file, item)?;
        }
        Ok(())
    }

    fn write_row(&mut self, file: &str, item: Item) -> Result<(), CurateError> {
        let (form, annotate) = (self.curation.rows, self.curation.annotate);
        let output = self.output(file)?;
        match &output.first {
            None => output.first = Some((item.layout, item.row.origin.clone())),
            Some((layout, origin)) if form == Form::AsRead && *layout != item.layout => {
                return Err(CurateError::Config {
                    place: item.row.origin.to_string(),
                    problem: format!(
                        "this row has the layout `{}`, and {origin} has `{layout}`; a file with both cannot be read again, \
                         so set `rows = \"canonical\"` or `rows = \"messages\"`",
                        item.layout
                    ),
                });
            }
            Some(_) => {}
        }
        let Item { row, layout, mut notes, .. } = item;
        for value in in_form(row, layout, form)? {
            let mut value = value;
            if annotate && !notes.is_empty() {
                value.insert("curation".to_owned(), std::mem::take(&mut notes).into());
            }
            output.writer.write(&value)?;
        }
        Ok(())
    }

    fn output(&mut self, domain: &str) -> Result<&mut Output, CurateError> {
        if !self.outputs.contains_key(domain) {
            let writer = RowWriter::create(&path_for(&self.curation.out, domain))?;
            self.outputs.insert(domain.to_owned(), Output { writer, first: None });
        }
        Ok(self.outputs.get_mut(domain).expect("it was put there"))
    }

    fn finish(mut self) -> Result<Report, CurateError> {
        for (report, step) in self.report.steps.iter_mut().zip(&self.steps) {
            report.summary = step.summary();
        }
        for (report, layout) in
            self.report.inputs.iter_mut().zip(self.layouts.lock().expect("no holder panics").iter())
        {
            report.layout = layout;
        }
        for example in self.report.steps.iter_mut().flat_map(|step| &mut step.examples) {
            let hide = |text: &str| self.steps.iter().fold(text.to_owned(), |text, step| step.conceal(&text));
            example.before = hide(&example.before);
            example.after = example.after.as_deref().map(hide);
            example.detail = hide(&example.detail);
        }
        for output in self.outputs.values_mut() {
            output.writer.finish()?;
        }
        if let Some(dropped) = &mut self.dropped {
            dropped.finish()?;
        }
        let out = |domain: &str| path_for(&self.curation.out, domain).display().to_string();
        self.report.outputs =
            self.outputs.iter().map(|(domain, output)| (out(domain), output.writer.n_rows)).collect();
        self.report.mixture = self.curation.blueprint.as_ref().map(|b| b.mix(&self.report.after, out));
        for (_, output) in std::mem::take(&mut self.outputs) {
            output.writer.publish()?;
        }
        if let Some(dropped) = self.dropped.take() {
            dropped.publish()?;
        }
        self.write_card()?;
        Ok(self.report)
    }

    fn write_card(&self) -> Result<(), CurateError> {
        let put = |path: PathBuf, text: &str| {
            pt_core::atomic_file::write(&path, text.as_bytes()).map_err(CurateError::io(&path, "write"))
        };
        if let Some(mixture) = &self.report.mixture {
            put(self.curation.out.with_file_name(mixture_name(&self.curation.out)), &mixture.to_toml())?;
        }
        let Some(card) = &self.curation.card else { return Ok(()) };
        put(card.with_extension("md"), &card_markdown(&self.report))?;
        put(card.with_extension("json"), &card_json(&self.report))
    }
}

/// `data/x.jsonl.zst` with the domain `maths` is `data/x.maths.jsonl.zst`.
fn path_for(out: &Path, domain: &str) -> PathBuf {
    let name = out.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    if domain.is_empty() {
        return out.to_owned();
    }
    match name.split_once('.') {
        Some((stem, extension)) => out.with_file_name(format!("{stem}.{domain}.{extension}")),
        None => out.with_file_name(format!("{name}.{domain}")),
    }
}

/// `x.jsonl.zst` has the mixture `x.mixture.toml`.
fn mixture_name(out: &Path) -> String {
    let name = out.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    format!("{}.mixture.toml", name.split('.').next().unwrap_or_default())
}

fn apply(mut item: Item, decision: Decision, kept: &mut Vec<Item>) {
    match decision {
        Decision::Drop { .. } => {}
        Decision::Keep | Decision::Flag { .. } => kept.push(item),
        Decision::Note(notes) => {
            item.notes.extend(notes);
            kept.push(item);
        }
        Decision::Change { value, .. } => {
            item.row.value = value;
            match source::view(&item.row, item.layout) {
                Ok(view) => item.view = view,
                Err(_) => (item.layout, item.view) = source::view_of_new(&item.row),
            }
            kept.push(item);
        }
        Decision::Replace { values, .. } => {
            for value in values {
                let mut item = item.clone();
                item.row.value = value;
                (item.layout, item.view) = source::view_of_new(&item.row);
                kept.push(item);
            }
        }
    }
}

/// A row in the columns it is to be written in.
fn in_form(row: Row, layout: &'static str, form: Form) -> Result<Vec<Columns>, CurateError> {
    if form == Form::AsRead {
        return Ok(vec![row.value]);
    }
    let origin = row.origin.clone();
    let problem = |problem: String| CurateError::Config { place: origin.to_string(), problem };
    if layout == COLUMNS {
        return Err(problem("rows of the layout `columns` have no other form; leave `rows` out".to_owned()));
    }
    let records = layout::by_name(layout)?.convert(row)?.into_iter();
    let convert = |record: Record| match form {
        Form::Canonical | Form::AsRead => Ok(record.to_row()),
        Form::Messages => {
            let record = record.into_conversational();
            let kind = record.body.kind();
            let body = match record.body {
                Body::LanguageModel(Content::Messages(_)) => record.body,
                Body::PromptCompletion {
                    prompt: Content::Messages(prompt),
                    completion: Content::Messages(completion),
                } => Body::LanguageModel(Content::Messages([prompt, completion].concat())),
                _ => {
                    return Err(problem(format!(
                        "a {kind} row is no conversation; set `rows = \"canonical\"`"
                    )));
                }
            };
            Ok(Record { body, ..record }.to_row())
        }
    };
    records.map(convert).collect()
}

/// The items of one input.
struct InputReader {
    rows: source::Rows,
    /// Rows that were read to recognise the layout, or to be converted on all cores; last first.
    ready: Vec<Result<Item, DataError>>,
    layout: &'static str,
    input_idx: usize,
}

impl InputReader {
    fn open(input: &Input, input_idx: usize, base: &pt_data::read::ReadOptions) -> Result<Self, CurateError> {
        let mut rows = source::open(input, base)?;
        let first: Vec<Result<Row, DataError>> = rows.by_ref().take(CHUNK_ROWS).collect();
        let good: Vec<Row> = first.iter().filter_map(|row| row.as_ref().ok()).take(256).cloned().collect();
        let layout = match (good.is_empty(), first.iter().position(Result::is_err)) {
            // The error of the only rows there are says more than that no layout was found.
            (true, Some(at)) => {
                let error = first.into_iter().nth(at).and_then(Result::err);
                return Err(error.expect("it is an error").into());
            }
            _ => source::layout_of(input, &good)?,
        };
        let mut reader = InputReader { rows, ready: Vec::new(), layout, input_idx };
        reader.convert(first);
        Ok(reader)
    }

    fn convert(&mut self, rows: Vec<Result<Row, DataError>>) {
        let (layout, input_idx) = (self.layout, self.input_idx);
        let item = |row: Result<Row, DataError>| {
            let row = row?;
            let view = source::view(&row, layout)?;
            Ok(Item { row, view, layout, input_idx, row_idx: 0, notes: Columns::new() })
        };
        self.ready = rows.into_par_iter().map(item).collect();
        self.ready.reverse();
    }
}

impl Iterator for InputReader {
    type Item = Result<Item, Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() {
            let rows = self.rows.by_ref().take(CHUNK_ROWS).collect();
            self.convert(rows);
        }
        let input_idx = self.input_idx;
        let refuse = |error: DataError| {
            let is_row = concerns_a_row(&error);
            Refused { input_idx, error: error.into(), is_row }
        };
        self.ready.pop().map(|item| item.map_err(refuse))
    }
}

/// Rows between two passes, in a temporary file that goes away with it.
struct Spill {
    writer: RowWriter,
    files: Vec<Arc<PathBuf>>,
}

/// A row in a spill.
#[derive(Serialize, Deserialize)]
struct Spilled {
    file: usize,
    line: usize,
    input: usize,
    row: u64,
    layout: String,
    notes: Columns,
    value: Columns,
}

impl Spill {
    fn create(out: &Path, pass: usize) -> Result<Spill, CurateError> {
        // Beside a device there is no place for files.
        let name = Path::new("curated.jsonl");
        let out = if is_special(out) { name } else { out };
        Ok(Spill {
            writer: RowWriter::create(&path_for(out, &format!("pass{pass}")).with_extension("zst"))?,
            files: Vec::new(),
        })
    }

    fn write(&mut self, items: &[Item]) -> Result<(), CurateError> {
        for item in items {
            let origin = &item.row.origin;
            let file = self.files.iter().rposition(|file| *file == origin.file).unwrap_or_else(|| {
                self.files.push(origin.file.clone());
                self.files.len() - 1
            });
            self.writer.write(&Spilled {
                file,
                line: origin.line,
                input: item.input_idx,
                row: item.row_idx,
                layout: item.layout.to_owned(),
                notes: item.notes.clone(),
                value: item.row.value.clone(),
            })?;
        }
        Ok(())
    }

    fn read(mut self) -> Result<impl Iterator<Item = Result<Item, Refused>>, CurateError> {
        self.writer.finish()?;
        let path = self.writer.temporary().to_owned();
        let file = File::open(&path).map_err(CurateError::io(&path, "read back"))?;
        let decoder = zstd::Decoder::new(file).map_err(CurateError::io(&path, "read back"))?;
        let mut lines = std::io::BufRead::lines(BufReader::with_capacity(1 << 16, decoder));
        let mut ready: Vec<Result<Item, Refused>> = Vec::new();
        Ok(std::iter::from_fn(move || {
            if ready.is_empty() {
                let chunk: Vec<std::io::Result<String>> = lines.by_ref().take(CHUNK_ROWS).collect();
                let files = &self.files;
                let read = |line: std::io::Result<String>| {
                    let line = line.map_err(CurateError::io(&path, "read back"));
                    line.map(|line| unspill(&line, files)).map_err(|error| Refused {
                        input_idx: 0,
                        error,
                        is_row: false,
                    })
                };
                ready = chunk.into_par_iter().map(read).collect();
                ready.reverse();
            }
            ready.pop()
        }))
    }
}

fn unspill(line: &str, files: &[Arc<PathBuf>]) -> Item {
    let spilled: Spilled = serde_json::from_str(line).expect("a spill is what we wrote");
    let row = Row {
        origin: Origin { file: files[spilled.file].clone(), line: spilled.line },
        value: spilled.value,
    };
    let layout =
        layout::LAYOUTS.iter().find(|layout| layout.name == spilled.layout).map_or(COLUMNS, |l| l.name);
    let view = source::view(&row, layout).expect("the row had this view before");
    Item { row, view, layout, input_idx: spilled.input, row_idx: spilled.row, notes: spilled.notes }
}
