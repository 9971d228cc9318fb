//! A run folder as far as it can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::ReportError;
use crate::series::Series;

/// Everything a report needs of a run.
#[derive(Clone, Debug, Default)]
pub struct RunData {
    /// The folder.
    pub dir: PathBuf,
    /// `plan.json`; `Null` if it could not be read.
    pub plan: Value,
    /// The lines of `events.jsonl`.
    pub events: Vec<Value>,
    /// The stages, in order: those planned, and those that left something though no plan names them.
    pub stages: Vec<StageData>,
    /// What is missing or damaged, a sentence each.
    pub problems: Vec<String>,
}

/// A stage as planned and as it was.
#[derive(Clone, Debug, Default)]
pub struct StageData {
    /// Folder name, as in `01-sft`.
    pub label: String,
    /// Its part of the plan; `Null` without one.
    pub plan: Value,
    /// Metrics by key.
    pub metrics: BTreeMap<String, Series>,
    /// Wall-clock figures by key.
    pub timing: BTreeMap<String, Series>,
    /// `outcome.json`; `None` while the stage is not complete.
    pub outcome: Option<Outcome>,
    /// Tasks before the stage.
    pub before: Vec<TaskResult>,
    /// Tasks after it.
    pub after: Vec<TaskResult>,
    /// Samples of the first, the middle and the last round that left some.
    pub rollouts: Vec<RolloutStep>,
}

/// `outcome.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Steps taken.
    pub steps: u64,
    /// Held-out loss at the end.
    pub eval_loss: Option<f64>,
    /// The step whose weights were written, where it is not the last.
    pub best_step: Option<u64>,
    /// Gains on tasks.
    pub gains: Vec<TaskGain>,
    /// What it made, relative to the run.
    pub output: PathBuf,
    /// What a stage that trained nothing says of itself.
    pub lines: Vec<String>,
    /// What a feedback stage found: a name and a text each.
    pub facts: Vec<(String, String)>,
    /// The same by principle.
    pub tables: Vec<StageTable>,
    /// What an eval stage measured.
    pub measures: Vec<Measure>,
    /// How every two of its models differ.
    pub contrasts: Vec<Contrast>,
}

/// Figures side by side.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StageTable {
    /// What it shows.
    pub title: String,
    /// The columns.
    pub heads: Vec<String>,
    /// A text for each column.
    pub rows: Vec<Vec<String>>,
}

/// A model on a benchmark, by its first metric.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Measure {
    /// The model: a stage's name, or `base`.
    pub model: String,
    /// The benchmark.
    pub benchmark: String,
    /// The metric.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Its 95 % interval.
    pub interval95: Option<(f64, f64)>,
    /// Questions.
    pub n: usize,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// Two models on a benchmark.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Contrast {
    /// The benchmark.
    pub benchmark: String,
    /// The model that is compared with.
    pub base: String,
    /// The model that is compared.
    pub model: String,
    /// What was gained.
    pub gain: f64,
    /// Its 95 % interval.
    pub gain95: (f64, f64),
    /// The exact McNemar test, where there is one.
    pub mcnemar_p: Option<f64>,
}

/// A task before and after a stage.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TaskGain {
    /// The task.
    pub task: String,
    /// Problems.
    pub n: usize,
    /// Share solved before.
    pub before: f64,
    /// Share solved after.
    pub after: f64,
    /// After minus before.
    pub difference: f64,
    /// Its 95 % interval.
    pub interval95: (f64, f64),
    /// Of the hypothesis that nothing changed.
    pub p_value: f64,
}

/// One entry of `eval/*-before.json` or `eval/*-after.json`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TaskResult {
    /// The task.
    pub task: String,
    /// Share solved.
    pub accuracy: f64,
    /// Its 95 % interval.
    pub interval95: (f64, f64),
    /// Every answer.
    pub samples: Vec<Sample>,
}

impl TaskResult {
    /// Which problems were solved, in order.
    pub fn passed(&self) -> Vec<bool> {
        self.samples.iter().map(|sample| sample.passed).collect()
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// What kind of problem it is.
    pub family: String,
    /// The question.
    pub prompt: String,
    /// What is right.
    pub answer: String,
    /// What the model said.
    pub reply: String,
    /// Whether it was right.
    pub passed: bool,
    /// Why.
    pub reason: String,
}

/// The samples of one round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RolloutStep {
    /// The first step that trained on them.
    pub step: u64,
    /// The last; later where there are several mini-batches or passes.
    pub last_step: u64,
    /// Its samples, groups in order.
    pub samples: Vec<RolloutSample>,
}

/// A line of `rollouts/*.jsonl.zst`, without its tokens.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RolloutSample {
    /// Its group: samples of one prompt.
    pub group: u64,
    /// The prompt as text, where it was kept.
    pub prompt_text: Option<String>,
    /// The sample.
    pub text: String,
    /// What it earned.
    pub reward: Option<f64>,
    /// The advantage it trained with.
    pub advantage: f64,
    /// Why it ended.
    pub finish_reason: String,
}

/// Most samples kept of a step's rollouts.
const MAX_ROLLOUTS: usize = 512;

impl RunData {
    /// Reads a run folder. Only a folder that is no run at all is an error.
    ///
    /// # Errors
    /// [`ReportError::NotARun`].
    pub fn read(dir: &Path) -> Result<RunData, ReportError> {
        if !["plan.json", "metrics.jsonl", "stages"].iter().any(|name| dir.join(name).exists()) {
            return Err(ReportError::NotARun { path: dir.to_owned() });
        }
        let mut run = RunData { dir: dir.to_owned(), ..RunData::default() };
        run.plan = read_json(&dir.join("plan.json"), "plan.json", &mut run.problems).unwrap_or_default();
        run.join_stages();
        read_lines(&dir.join("events.jsonl"), "events.jsonl", &mut run.problems, |line| {
            run.events.push(line.into())
        });
        run.stages = run.planned_stages();
        run.read_series("metrics.jsonl", |stage| &mut stage.metrics);
        run.read_series("timing.jsonl", |stage| &mut stage.timing);
        run.add_unplanned_folders();
        run.stages.sort_by(|a, b| a.label.cmp(&b.label));
        let mut problems = std::mem::take(&mut run.problems);
        run.stages.iter_mut().for_each(|stage| stage.read_folder(dir, &mut problems));
        run.problems = problems;
        Ok(run)
    }

    /// What the run is called.
    pub fn name(&self) -> String {
        let folder = || self.dir.file_name().map(|name| name.to_string_lossy().into_owned());
        self.plan["name"].as_str().map(str::to_owned).or_else(folder).unwrap_or_else(|| "run".to_owned())
    }

    /// The hash of the plan that the run began with.
    pub fn plan_hash(&self) -> Option<&str> {
        self.events.iter().find_map(|event| event["plan_hash"].as_str())
    }

    /// The version of the program that began it.
    pub fn version(&self) -> Option<&str> {
        self.events.iter().find_map(|event| event["version"].as_str())
    }

    /// Puts all stages of the plan into one list, in order. A stage that was planned when its turn came has its plan in its folder.
    fn join_stages(&mut self) {
        let problems = pt_run::join_late_stages(&mut self.plan, &self.dir);
        self.problems.extend(problems.iter().map(ToString::to_string));
        let Some(plan) = self.plan.as_object_mut() else { return };
        let others = plan.remove("others").and_then(|others| others.as_array().cloned()).unwrap_or_default();
        let Some(stages) = plan.get_mut("stages").and_then(Value::as_array_mut) else { return };
        let is_joined: BTreeSet<Option<u64>> = stages.iter().map(|stage| stage["number"].as_u64()).collect();
        stages.extend(others.into_iter().filter(|other| !is_joined.contains(&other["number"].as_u64())));
        stages.sort_by_key(|stage| stage["number"].as_u64());
    }

    fn planned_stages(&self) -> Vec<StageData> {
        let label = |(i, plan): (usize, &Value)| {
            let number = plan["number"].as_u64().unwrap_or(i as u64 + 1);
            let label = format!("{number:02}-{}", plan["name"].as_str().unwrap_or("stage"));
            StageData { label, plan: plan.clone(), ..StageData::default() }
        };
        self.plan["stages"].as_array().into_iter().flatten().enumerate().map(label).collect()
    }

    fn stage_mut(&mut self, label: &str) -> &mut StageData {
        let at = self.stages.iter().position(|stage| stage.label == label).unwrap_or_else(|| {
            self.stages.push(StageData { label: label.to_owned(), ..StageData::default() });
            self.stages.len() - 1
        });
        &mut self.stages[at]
    }

    fn read_series(&mut self, name: &str, of: fn(&mut StageData) -> &mut BTreeMap<String, Series>) {
        let (path, mut problems) = (self.dir.join(name), std::mem::take(&mut self.problems));
        let mut n_homeless = 0;
        read_lines(&path, name, &mut problems, |line| {
            match (line.get("stage").and_then(Value::as_str), line.get("step").and_then(Value::as_u64)) {
                (Some(label), Some(step)) => add_line(of(self.stage_mut(label)), step, &line),
                _ => n_homeless += 1,
            }
        });
        if n_homeless > 0 {
            problems.push(format!("{name}: {n_homeless} lines name no stage or no step and were left out"));
        }
        self.problems = problems;
    }

    fn add_unplanned_folders(&mut self) {
        for entry in fs::read_dir(self.dir.join("stages")).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                self.stage_mut(&entry.file_name().to_string_lossy());
            }
        }
    }
}

impl StageData {
    /// Its name without the number.
    pub fn name(&self) -> &str {
        self.label.split_once('-').map_or(self.label.as_str(), |(_, name)| name)
    }

    /// Its type, as in `dpo`; empty without a plan.
    pub fn kind(&self) -> &str {
        self.plan["type"].as_str().unwrap_or_default()
    }

    /// What it is in words; its type where no plan says.
    pub fn title(&self) -> &str {
        match (self.plan["title"].as_str(), self.kind()) {
            (Some(title), _) if !title.is_empty() => title,
            (_, "") => "type unknown",
            (_, kind) => kind,
        }
    }

    /// The last finite value of a metric.
    pub fn last(&self, key: &str) -> Option<f64> {
        self.metrics.get(key)?.ends().map(|(_, last)| last.1)
    }

    fn read_folder(&mut self, run: &Path, problems: &mut Vec<String>) {
        let dir = run.join("stages").join(&self.label);
        let place = |name: &str| format!("stages/{}/{name}", self.label);
        if !dir.is_dir() {
            problems.push(format!("{} is not there: the stage has not begun", place("")));
            return;
        }
        match dir.join("outcome.json").exists() {
            true => self.outcome = read_json(&dir.join("outcome.json"), &place("outcome.json"), problems),
            false => {
                problems.push(format!("{} is not there: the stage is not complete", place("outcome.json")))
            }
        }
        for path in files(&dir.join("eval")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let list = match name.strip_suffix(".json") {
                Some(stem) if stem.ends_with("-before") => &mut self.before,
                Some(stem) if stem.ends_with("-after") => &mut self.after,
                _ => continue,
            };
            list.extend(
                read_json::<Vec<TaskResult>>(&path, &place(&format!("eval/{name}")), problems)
                    .unwrap_or_default(),
            );
        }
        self.read_rollouts(&dir.join("rollouts"), problems);
    }

    fn read_rollouts(&mut self, dir: &Path, problems: &mut Vec<String>) {
        // Files are numbered by round, from 0.
        let per_round = |key: &str| self.plan["rollout"][key].as_u64().unwrap_or(1).max(1);
        let per_round = per_round("passes").saturating_mul(per_round("mini_batches"));
        let round = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix("step-")?;
            name.strip_suffix(".jsonl.zst").or_else(|| name.strip_suffix(".jsonl"))?.parse::<u64>().ok()
        };
        let rounds: Vec<(u64, PathBuf)> =
            files(dir).into_iter().filter_map(|path| Some((round(&path)?, path))).collect();
        let Some(last) = rounds.len().checked_sub(1) else { return };
        let mut chosen = vec![0, last / 2, last];
        chosen.dedup();
        for (round, path) in chosen.into_iter().map(|i| &rounds[i]) {
            let before = round.saturating_mul(per_round);
            let (step, last_step) = (before.saturating_add(1), before.saturating_add(per_round));
            match read_rollouts(path) {
                Ok(samples) => self.rollouts.push(RolloutStep { step, last_step, samples }),
                Err(problem) => problems.push(format!(
                    "stages/{}/rollouts/{}: {problem}",
                    self.label,
                    path.file_name().unwrap_or_default().to_string_lossy()
                )),
            }
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths
}

fn read_rollouts(path: &Path) -> Result<Vec<RolloutSample>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let reader: Box<dyn BufRead> = match path.extension().is_some_and(|end| end == "zst") {
        true => Box::new(BufReader::new(zstd::Decoder::new(file).map_err(|e| e.to_string())?)),
        false => Box::new(BufReader::new(file)),
    };
    let mut samples = Vec::new();
    for (i, line) in reader.lines().take(MAX_ROLLOUTS).enumerate() {
        let line = line.map_err(|e| format!("line {}: {e}", i + 1))?;
        samples.push(serde_json::from_str(&line).map_err(|e| format!("line {}: {e}", i + 1))?);
    }
    Ok(samples)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path, name: &str, problems: &mut Vec<String>) -> Option<T> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            problems.push(format!("{name} cannot be read: {error}"));
            return None;
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| problems.push(format!("{name} is damaged: {error}"))).ok()
}

/// Gives every whole line to `each`. Lines that are no JSON objects are counted.
fn read_lines(path: &Path, name: &str, problems: &mut Vec<String>, mut each: impl FnMut(Map<String, Value>)) {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return problems.push(format!("{name} cannot be read: {error}")),
    };
    let mut damaged: Vec<usize> = Vec::new();
    for (i, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = match line {
            Ok(line) => line,
            Err(error) => return problems.push(format!("{name} ends at line {}: {error}", i + 1)),
        };
        match serde_json::from_slice(&line) {
            Ok(object) => each(object),
            Err(_) if line.iter().all(u8::is_ascii_whitespace) => {}
            Err(_) => damaged.push(i + 1),
        }
    }
    if let Some(first) = damaged.first() {
        problems.push(format!(
            "{name}: {} lines are damaged and were left out, the first is line {first}",
            damaged.len()
        ));
    }
}

fn add_line(series: &mut BTreeMap<String, Series>, step: u64, line: &Map<String, Value>) {
    for (key, value) in line.iter().filter(|(key, _)| !matches!(key.as_str(), "stage" | "step")) {
        let value = match value {
            Value::Number(number) => number.as_f64(),
            // pt-run writes what JSON cannot hold as a string.
            Value::String(text) => match text.as_str() {
                "NaN" => Some(f64::NAN),
                "inf" => Some(f64::INFINITY),
                "-inf" => Some(f64::NEG_INFINITY),
                _ => None,
            },
            _ => None,
        };
        if let Some(value) = value {
            series.entry(key.clone()).or_default().values.push((step, value));
        }
    }
}
