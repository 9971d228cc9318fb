//! `feedback`: replies revised, or pairs judged, by the principles of a constitution. `rows.jsonl` is what later stages read as
//! `stage:NAME`; `excluded.jsonl` says what was left out and why, `report.md` and `report.json` what came of it.
//!
//! Answers are kept in `calls/`: a run that was stopped asks only for the others, and ends in the same bytes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use pt_client::{Client, ClientOptions, Price};
use pt_core::atomic_file;
use pt_data::{Columns, Origin, Record, Row, layout};
use pt_feedback::{
    Answers, Ask, AskOptions, Candidate, Chain, Chat, Constitution, FeedbackError, JudgeOptions, LocalChat,
    Page, ReviseOptions, ServerChat, Tally,
};
use pt_recipe::{FeedbackSection, FeedbackTask, Source, StageSection, stage_of};
use pt_text::Tokenizer;
use serde_json::Value;

use super::{Around, Done, Planning, StageKind, Work};
use crate::error::{PipelineError, Result};
use crate::graph::{self, ROWS, shown_name};
use crate::loaded::Loaded;
use crate::report::{StageReport, StageTable};
use crate::source::{planned_file, read_source};

/// As `posttrain feedback revise` has it.
const REVISE_TEMPERATURE: f64 = 0.7;
/// Most tokens of a reply, critique or revision.
const REVISE_TOKENS: u64 = 512;
/// Most tokens of a choice between two replies.
const CHOICE_TOKENS: u64 = 16;
/// Alternatives whose probabilities a judge is asked for, for soft labels.
const TOP_LOGPROBS: u32 = 5;

/// The kind.
pub(super) struct Feedback;

impl StageKind for Feedback {
    fn name(&self) -> &'static str {
        "feedback"
    }

    fn plan(&self, section: &StageSection, around: &Around<'_>) -> Result<Planning> {
        let feedback = &section.feedback;
        if feedback.task != FeedbackTask::Revise {
            judge_options(feedback, around.recipe.seed).check()?;
        }
        let constitution = constitution(feedback)?;
        let mut planning = Planning { files: around.source_files(sources(feedback))?, ..Planning::default() };
        for written in feedback.model.iter().chain(feedback.respond.iter().flatten()) {
            planning.files.extend(around.model_files(written)?);
        }
        if let Some(path) = &feedback.constitution {
            planning.files.push(planned_file(&Path::new(path).to_owned())?);
        }
        let mut settings = serde_json::to_value(feedback).expect("a section is plain JSON");
        settings["principles_hash"] = constitution.hash().into();
        planning.settings = settings;
        let who =
            feedback.model.as_deref().map(shown_name).or(feedback.server.as_deref()).unwrap_or_default();
        planning.line("task", feedback.task.as_str());
        planning.line("by", who);
        sources(feedback).iter().for_each(|source| planning.line("reads", source.source.as_str()));
        Ok(planning)
    }

    fn run(&self, section: &StageSection, work: &mut Work<'_>) -> Result<Option<Done>> {
        let feedback = &section.feedback;
        let records = records(feedback, work)?;
        let stop = work.stop;
        let chat = Stoppable { chat: who(feedback, work)?, stop };
        let constitution = constitution(feedback)?;
        let found = match feedback.task {
            FeedbackTask::Revise => revise(feedback, &records, &constitution, &chat, work),
            FeedbackTask::Judge => candidates(feedback, &records, work)
                .and_then(|pairs| judge(feedback, pairs, &constitution, &chat, work)),
            FeedbackTask::Both => revised_pairs(feedback, &records, &constitution, &chat, work)
                .and_then(|pairs| judge(feedback, pairs, &constitution, &chat, work)),
        };
        match found {
            Err(PipelineError::Feedback(error)) if matches!(*error, FeedbackError::Stopped) => Ok(None),
            Err(error) => Err(work.problem(error)),
            Ok(report) => Ok(Some(Done { output: work.folder.root().join(ROWS), report })),
        }
    }
}

fn sources(feedback: &FeedbackSection) -> &[Source] {
    feedback.sources.as_deref().unwrap_or_default()
}

fn constitution(feedback: &FeedbackSection) -> Result<Constitution> {
    let path = feedback.constitution.as_deref().map(Path::new);
    Ok(path.map(Constitution::load).transpose()?.unwrap_or_default())
}

fn records(feedback: &FeedbackSection, work: &Work<'_>) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for source in sources(feedback) {
        let mut source = source.clone();
        if stage_of(&source.source).is_some() {
            source.source = graph::path_of(work.run, work.plan, &source.source)?.display().to_string();
        }
        records.extend(read_source(&source, work.surroundings)?.records);
    }
    Ok(records)
}

/// Who answers: a model that an earlier stage made or that lies on disk, or a server.
fn who(feedback: &FeedbackSection, work: &Work<'_>) -> Result<Box<dyn Chat>> {
    let calls = work.folder.root().join("calls");
    match (&feedback.model, &feedback.server) {
        (Some(written), _) => Ok(Box::new(local(written, work)?)),
        (None, server) => {
            let server = server.as_deref().expect("one of the two is written: it was checked");
            let mut options = ClientOptions::new(server);
            options.api_key = feedback
                .api_key_file
                .as_deref()
                .map(|path| pt_feedback::read_key(Path::new(path)))
                .transpose()?;
            options.cache_dir = Some(calls);
            let parallel = feedback.parallel as usize;
            let free = Price { prompt_per_million: 0.0, completion_per_million: 0.0 };
            Ok(Box::new(ServerChat::new(
                Client::new(options)?,
                feedback.server_model.as_deref(),
                parallel,
                free,
            )?))
        }
    }
}

fn local(written: &str, work: &Work<'_>) -> Result<LocalChat> {
    let Loaded { model, dtype, template, stop_token_ids, folder, .. } = work.load(written)?;
    let refuse = |what: String| PipelineError::Unsupported {
        what,
        advice: "name a model that was trained on conversations".to_owned(),
    };
    let folder = folder.ok_or_else(|| refuse("a model made from nothing has no answers".to_owned()))?;
    let template = template.ok_or_else(|| refuse(format!("`{written}` has no chat template")))?;
    Ok(LocalChat {
        name: shown_name(written).to_owned(),
        identity: pt_feedback::identity_of(&[&folder])?,
        model,
        dtype,
        tokenizer: Tokenizer::from_dir(&folder)?,
        template,
        stop_token_ids,
        cache_dir: Some(work.folder.root().join("calls")),
    })
}

/// Stops between calls when the run is asked to.
struct Stoppable<'a> {
    chat: Box<dyn Chat>,
    stop: &'a AtomicBool,
}

impl Chat for Stoppable<'_> {
    fn name(&self) -> &str {
        self.chat.name()
    }

    fn ask_all(&self, asks: &[Ask], options: &AskOptions) -> pt_feedback::Result<Answers> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(FeedbackError::Stopped),
            false => self.chat.ask_all(asks, options),
        }
    }

    fn cost(&self, tokens: &Tally) -> f64 {
        self.chat.cost(tokens)
    }
}

fn revise_options(feedback: &FeedbackSection, seed: u64) -> ReviseOptions {
    ReviseOptions {
        rounds: feedback.rounds as usize,
        seed,
        max_tokens: feedback.max_new_tokens.unwrap_or(REVISE_TOKENS) as u32,
        temperature: feedback.temperature.unwrap_or(REVISE_TEMPERATURE),
        keep_truncated: feedback.keep_truncated,
    }
}

fn chains(
    feedback: &FeedbackSection,
    records: &[Record],
    constitution: &Constitution,
    chat: &dyn Chat,
    work: &mut Work<'_>,
) -> Result<pt_feedback::Revised> {
    let options = revise_options(feedback, work.recipe.seed);
    let n = records.len() * (2 * options.rounds + 1);
    let (name, watch) = (&work.planned.name, &mut *work.watch);
    watch.work_progress(name, "critiques and revisions", 0, n);
    let mut see = |tally: &Tally| watch.work_progress(name, "", tally.n_calls as usize, n);
    Ok(pt_feedback::revise(records, constitution, chat, &options, &mut see)?)
}

fn revise(
    feedback: &FeedbackSection,
    records: &[Record],
    constitution: &Constitution,
    chat: &dyn Chat,
    work: &mut Work<'_>,
) -> Result<StageReport> {
    let revised = chains(feedback, records, constitution, chat, work)?;
    let of = |row: fn(&Chain) -> Option<Columns>| -> Vec<Columns> {
        revised.chains.iter().filter_map(row).collect()
    };
    let (kept, excluded) = (of(Chain::sft_row), of(Chain::excluded_row));
    let folder = work.folder.root();
    // What later stages name as `stage:NAME/pairs`: the revision against the first reply, without a judge.
    write_rows(&folder.join("pairs.jsonl"), &of(Chain::preference_row))?;
    write(folder, &kept, &excluded, &revised.report, &revised.report.page())
}

/// Each revision against the first reply, as pairs without a label.
fn revised_pairs(
    feedback: &FeedbackSection,
    records: &[Record],
    constitution: &Constitution,
    chat: &dyn Chat,
    work: &mut Work<'_>,
) -> Result<Vec<Candidate>> {
    let revised = chains(feedback, records, constitution, chat, work)?;
    let rows = revised.chains.iter().filter_map(Chain::preference_row);
    let origin = format!("revisions of {}", work.planned.name);
    let rows: Vec<Row> =
        rows.enumerate().map(|(i, value)| Row { origin: Origin::new(&origin, i + 1), value }).collect();
    if rows.is_empty() {
        return Err(PipelineError::Unsupported {
            what: "no reply was revised, so there is no pair to judge".to_owned(),
            advice: "look at the calls in the stage's folder; raise feedback.max_new_tokens".to_owned(),
        });
    }
    let layout = layout::recognise_all(&rows)?;
    let records =
        rows.into_iter().map(|row| layout.convert(row)).collect::<std::result::Result<Vec<_>, _>>()?;
    let records: Vec<Record> = records.into_iter().flatten().collect();
    Ok(pt_feedback::pairs_of(&records, false, work.recipe.seed)?)
}

/// The pairs to judge: those of the rows, or two replies to each of their prompts.
fn candidates(feedback: &FeedbackSection, records: &[Record], work: &mut Work<'_>) -> Result<Vec<Candidate>> {
    let seed = work.recipe.seed;
    let Some(respond) = &feedback.respond else { return Ok(pt_feedback::pairs_of(records, false, seed)?) };
    let stop = work.stop;
    let models: Vec<Stoppable<'_>> = respond
        .iter()
        .map(|written| Ok(Stoppable { chat: Box::new(local(written, work)?), stop }))
        .collect::<Result<_>>()?;
    let options = AskOptions {
        max_tokens: feedback.respond_max_new_tokens as u32,
        temperature: feedback.respond_temperature,
        top_logprobs: 0,
    };
    let both: [&dyn Chat; 2] = [&models[0], models.get(1).unwrap_or(&models[0])];
    let n = 2 * records.len();
    let (name, watch) = (&work.planned.name, &mut *work.watch);
    watch.work_progress(name, "replies", 0, n);
    let mut see = |tally: &Tally| watch.work_progress(name, "", tally.n_calls as usize, n);
    Ok(pt_feedback::sample_pairs(records, both, &options, seed, &mut see)?.0)
}

/// How pairs are judged; the limit and the temperature of `both` are those of its revisions.
fn judge_options(feedback: &FeedbackSection, seed: u64) -> JudgeOptions {
    let own = feedback.task == FeedbackTask::Judge;
    JudgeOptions {
        votes: feedback.votes as usize,
        swap: feedback.swap,
        principles_per_pair: feedback.principles as usize,
        tie_margin: feedback.tie_margin,
        seed,
        max_tokens: feedback.max_new_tokens.filter(|_| own).unwrap_or(CHOICE_TOKENS) as u32,
        temperature: feedback.temperature.filter(|_| own).unwrap_or(0.0),
        top_logprobs: TOP_LOGPROBS,
    }
}

fn judge(
    feedback: &FeedbackSection,
    candidates: Vec<Candidate>,
    constitution: &Constitution,
    chat: &dyn Chat,
    work: &mut Work<'_>,
) -> Result<StageReport> {
    let options = judge_options(feedback, work.recipe.seed);
    let n_principles = if options.principles_per_pair == 0 {
        constitution.principles.len()
    } else {
        options.principles_per_pair
    };
    let n = candidates.len() * n_principles * options.votes * if options.swap { 2 } else { 1 };
    let (name, watch) = (&work.planned.name, &mut *work.watch);
    watch.work_progress(name, "judgements", 0, n);
    let mut see = |tally: &Tally| watch.work_progress(name, "", tally.n_calls as usize, n);
    let judged = pt_feedback::judge(candidates, constitution, chat, &options, &mut see)?;
    let (excluded, kept): (Vec<_>, Vec<_>) = judged.rows.iter().partition(|row| row.exclusion().is_some());
    let columns = |rows: &[&pt_feedback::Row]| rows.iter().map(|row| row.to_row()).collect::<Vec<_>>();
    write(work.folder.root(), &columns(&kept), &columns(&excluded), &judged.report, &judged.report.page())
}

/// Writes everything, the rows last, and says what was kept and what came of it.
///
/// # Errors
/// Where nothing was kept, once it is written why.
fn write(
    folder: &Path,
    kept: &[Columns],
    excluded: &[Columns],
    report: &impl serde::Serialize,
    page: &Page,
) -> Result<StageReport> {
    let excluded_path = folder.join("excluded.jsonl");
    write_rows(&excluded_path, excluded)?;
    let json = serde_json::to_string_pretty(report).expect("a report is JSON");
    for (name, text) in [("report.json", json), ("report.md", page.markdown())] {
        let path = folder.join(name);
        atomic_file::write(&path, text.as_bytes()).map_err(PipelineError::io("write", &path))?;
    }
    if kept.is_empty() {
        return Err(PipelineError::Unsupported {
            what: format!("no row was made of {}", excluded.len()),
            advice: format!("{} says why", excluded_path.display()),
        });
    }
    write_rows(&folder.join(ROWS), kept)?;
    let lines = vec![format!("{} rows made, {} left out", kept.len(), excluded.len())];
    let tables = page.tables().map(|(title, heads, rows)| StageTable {
        title: title.to_owned(),
        heads: heads.iter().map(ToString::to_string).collect(),
        rows: rows.to_vec(),
    });
    Ok(StageReport { lines, facts: page.facts(), tables: tables.collect(), ..StageReport::default() })
}

fn write_rows(path: &Path, rows: &[Columns]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text += &Value::Object(row.clone()).to_string();
        text.push('\n');
    }
    atomic_file::write(path, text.as_bytes()).map_err(PipelineError::io("write", path))
}
