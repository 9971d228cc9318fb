//! `curate`: rows through the steps of a curation. `rows.jsonl` is what later stages read as `stage:NAME`; `dropped.jsonl` says what
//! was left out and why, `card.md` and `card.json` what came of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pt_curate::{Curation, FindModels, Form, Given, Input, Report, StepConfig, Unreadable};
use pt_data::read::ReadOptions;
use pt_recipe::{CurateSection, FileFormat, PlannedFile, RowForm, Source, StageSection, UnreadableRows};
use serde_json::json;

use super::{Around, Done, Planning, StageKind, Work};
use crate::difficulty::{CurationModels, model_of};
use crate::error::{PipelineError, Result};
use crate::graph::{self, ROWS};
use crate::source::{Surroundings, format_of, generated_name, planned_file};

/// The kind.
pub(super) struct Curate;

impl StageKind for Curate {
    fn name(&self) -> &'static str {
        "curate"
    }

    fn plan(&self, section: &StageSection, around: &Around<'_>) -> Result<Planning> {
        let section = &section.curate;
        let curation = curation(section, around.recipe.seed, Path::new(""))?;
        pt_curate::check(&curation, &given(around.surroundings))?;
        let files = around.source_files(section.sources.as_deref().unwrap_or_default())?;
        let mut planning = Planning { files, ..Planning::default() };
        for path in section.file.iter().map(PathBuf::from).chain(files_of_steps(&curation)) {
            planning.files.push(planned_file(&path)?);
        }
        for name in curation.steps.iter().filter_map(|step| model_of(&step.options)) {
            planning.files.extend(around.model_files(name)?);
        }
        if section.sources.is_none() {
            planning.files.extend(files_of_inputs(&curation, around)?);
        }
        // What a curation file says is in its hash.
        planning.settings = json!({
            "sources": section.sources, "steps": section.steps, "rows": section.rows,
            "unreadable": section.unreadable,
        });
        for input in &curation.inputs {
            planning.line("reads", input.source.as_str());
        }
        let steps: Vec<&str> = curation.steps.iter().map(|step| step.name.as_str()).collect();
        planning.line("steps", if steps.is_empty() { "none".to_owned() } else { steps.join(", ") });
        Ok(planning)
    }

    fn run(&self, section: &StageSection, work: &mut Work<'_>) -> Result<Option<Done>> {
        let root = work.folder.root().to_owned();
        let mut curation = curation(&section.curate, work.recipe.seed, &root)?;
        for input in curation.inputs.iter_mut().filter(|input| pt_recipe::stage_of(&input.source).is_some()) {
            input.source = graph::path_of(work.run, work.plan, &input.source)?.display().to_string();
        }
        let tokenizer = work.tokenizer.clone();
        let count = move |text: &str| tokenizer.encode(text, false).map_or(0, |encoded| encoded.ids.len());
        let given = Given { count_tokens: Some(Arc::new(count)), ..given(work.surroundings) };
        let name = &work.planned.name;
        let watch = &mut *work.watch;
        let mut show = |progress: pt_curate::Progress| {
            let n_rows = progress.n_rows as usize;
            watch.work_progress(name, "", n_rows, n_rows);
        };
        let report = pt_curate::run(&curation, &given, &mut show).map_err(|error| work.problem(error))?;
        if report.n_kept == 0 {
            return Err(work.problem(PipelineError::Unsupported {
                what: format!("none of its {} rows is left", report.n_read),
                advice: format!("{} says why; change curate.steps", root.join("dropped.jsonl").display()),
            }));
        }
        Ok(Some(Done::new(curation.out, lines_of(&report))))
    }
}

fn given(surroundings: &Surroundings) -> Given {
    let read = ReadOptions { hf_home: surroundings.hf_home.clone(), ..ReadOptions::default() };
    let models = Some(Arc::new(CurationModels::new(surroundings)) as Arc<dyn FindModels>);
    Given { read, models, ..Given::default() }
}

/// The curation, with everything that it writes in `folder`.
fn curation(section: &CurateSection, seed: u64, folder: &Path) -> Result<Curation> {
    let mut curation = match &section.file {
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(PipelineError::io("read", file))?;
            Curation::parse(&text, file)?
        }
        None => Curation {
            out: PathBuf::new(),
            dropped: None,
            card: None,
            seed,
            unreadable: Unreadable::Error,
            rows: Form::AsRead,
            annotate: false,
            examples: 3,
            inputs: Vec::new(),
            steps: Vec::new(),
            blueprint: None,
        },
    };
    if curation.blueprint.is_some() {
        return Err(PipelineError::Unsupported {
            what:
                "the curation file has a blueprint, which makes a file for each domain and a mixture of them"
                    .to_owned(),
            advice: format!(
                "run `posttrain data curate {}` first, and paste the sources of the NAME.mixture.toml that it writes beside `out` \
                 below the [[stage]] that trains",
                section.file.as_deref().unwrap_or_default()
            ),
        });
    }
    if let Some(sources) = &section.sources {
        curation.inputs = sources.iter().map(input).collect::<Result<_>>()?;
    }
    if let Some(steps) = &section.steps {
        curation.steps =
            steps.iter().map(|step| StepConfig::parse(step)).collect::<std::result::Result<_, _>>()?;
    }
    curation.rows = match section.rows {
        None => curation.rows,
        Some(RowForm::AsRead) => Form::AsRead,
        Some(RowForm::Canonical) => Form::Canonical,
        Some(RowForm::Messages) => Form::Messages,
    };
    curation.unreadable = match section.unreadable {
        None => curation.unreadable,
        Some(UnreadableRows::Error) => Unreadable::Error,
        Some(UnreadableRows::Drop) => Unreadable::Drop,
    };
    curation.out = folder.join(ROWS);
    curation.dropped = Some(folder.join("dropped.jsonl"));
    curation.card = Some(folder.join("card"));
    Ok(curation)
}

/// A source as curations have it.
fn input(source: &Source) -> Result<Input> {
    if source.weight.is_some() || source.repeats.is_some() {
        return Err(PipelineError::Unsupported {
            what: format!("curate.sources: `{}` has a weight or repeats", source.source),
            advice: "every row is read once; give them where the curated rows are mixed, in data.train"
                .to_owned(),
        });
    }
    Ok(Input {
        source: generated_or_own(source),
        layout: source.layout.clone(),
        columns: source.columns.clone().unwrap_or_default(),
        split: Some(source.split.clone()),
        subset: source.subset.clone(),
        format: source.format.map(|format: FileFormat| format_of(format)),
        text_unit: Some(source.text_unit.clone()),
        limit: source.limit.map(|n| n as usize),
        licence: None,
        domain: None,
    })
}

/// A generated source with its split in its name, as curations read it; any other as it is.
fn generated_or_own(source: &Source) -> String {
    match pt_tasks::GeneratedSource::is_generated(&source.source) {
        true => generated_name(source),
        false => source.source.clone(),
    }
}

/// Files that steps read, such as evaluation sets: texts of their options that are files.
fn files_of_steps(curation: &Curation) -> Vec<PathBuf> {
    fn collect(value: &toml::Value, found: &mut Vec<PathBuf>) {
        match value {
            toml::Value::String(text) => {
                found.extend(Some(PathBuf::from(text)).filter(|path| path.is_file()))
            }
            toml::Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            toml::Value::Table(table) => table.values().for_each(|item| collect(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    curation.steps.iter().flat_map(|step| step.options.values()).for_each(|value| collect(value, &mut found));
    found
}

/// The files of a curation file's own inputs.
fn files_of_inputs(curation: &Curation, around: &Around<'_>) -> Result<Vec<PlannedFile>> {
    let mut files = Vec::new();
    for input in &curation.inputs {
        if pt_tasks::GeneratedSource::is_generated(&input.source)
            || pt_recipe::stage_of(&input.source).is_some()
        {
            continue;
        }
        let options = ReadOptions {
            hf_home: around.surroundings.hf_home.clone(),
            split: input.split.clone().unwrap_or(ReadOptions::default().split),
            subset: input.subset.clone(),
            format: input.format,
            ..ReadOptions::default()
        };
        for path in pt_data::read::locate(&input.source, &options)? {
            files.push(planned_file(&path)?);
        }
    }
    Ok(files)
}

/// How many rows are left, and what each step did.
fn lines_of(report: &Report) -> Vec<String> {
    let mut lines = vec![format!("{} of {} rows kept", report.n_kept, report.n_read)];
    for step in &report.steps {
        let what = [("dropped", &step.dropped), ("changed", &step.changed), ("flagged", &step.flagged)];
        let counts = what
            .iter()
            .flat_map(|(what, counts)| counts.iter().map(move |(reason, n)| format!("{n} {what}: {reason}")));
        let counts: Vec<String> = counts.collect();
        if !counts.is_empty() {
            lines.push(format!("{}: {}", step.name, counts.join("; ")));
        }
        lines.extend(step.summary.warnings.iter().map(|warning| format!("look at: {warning}")));
    }
    lines
}
