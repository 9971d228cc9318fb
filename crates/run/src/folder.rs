//! The run folder and its stages.

use crate::checkpoint::{CheckpointStore, Retention};
use crate::error::{Result, RunError};
use crate::events::{Event, TimedEvent};
use crate::jsonl::{JsonlFile, StepKey};
use crate::lock::{LOCK_FILE, RunLock};
use crate::recover::recover_partials;
use crate::tensorboard::EventWriter;
use serde::Serialize;
use serde_json::{Map, Number, Value};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const PLAN_FILE: &str = "plan.json";
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";
const TIMING_FILE: &str = "timing.jsonl";
const EVENTS_FILE: &str = "events.jsonl";
const TENSORBOARD_DIR: &str = "tensorboard";
pub(crate) const STAGES_DIR: &str = "stages";
pub(crate) const CHECKPOINTS_DIR: &str = "checkpoints";
const OUTCOME_FILE: &str = "outcome.json";

/// A stage's label, which is its folder's name, too.
pub(crate) fn label_of(number: u64, name: &str) -> String {
    format!("{number:02}-{name}")
}

/// A run folder opened for writing; only one process at a time can.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    metrics: JsonlFile,
    timing: JsonlFile,
    events: JsonlFile,
    /// The stage being written and its event file, made when the first value comes.
    tensorboard: Option<(String, EventWriter)>,
    // Last, so that everything above is closed before the folder is free for others.
    _lock: RunLock,
}

impl RunFolder {
    /// Begins a new run in `root`, which must be absent or empty, and stores its plan.
    ///
    /// # Errors
    /// [`RunError::NotEmpty`], [`RunError::Locked`], [`RunError::Io`].
    pub fn create(root: &Path, plan: &impl Serialize) -> Result<RunFolder> {
        fs::create_dir_all(root).map_err(RunError::io("create", root))?;
        let lock = RunLock::acquire(root)?;
        recover_partials(root)?;
        if let Some(found) = first_entry(root)? {
            return Err(RunError::NotEmpty { path: root.to_owned(), found });
        }
        write_json(&root.join(PLAN_FILE), plan)?;
        Self::with_lock(root, lock)
    }

    /// Opens an existing run to continue it, and clears away what a dead writer left unfinished.
    ///
    /// # Errors
    /// [`RunError::NotARun`], [`RunError::Locked`], [`RunError::BadLine`], [`RunError::Io`].
    pub fn open(root: &Path) -> Result<RunFolder> {
        if !root.join(PLAN_FILE).is_file() {
            return Err(RunError::NotARun { path: root.to_owned() });
        }
        let lock = RunLock::acquire(root)?;
        recover_partials(root)?;
        Self::with_lock(root, lock)
    }

    fn with_lock(root: &Path, lock: RunLock) -> Result<RunFolder> {
        Ok(RunFolder {
            root: root.to_owned(),
            metrics: JsonlFile::open(&root.join(METRICS_FILE))?,
            timing: JsonlFile::open(&root.join(TIMING_FILE))?,
            events: JsonlFile::open(&root.join(EVENTS_FILE))?,
            tensorboard: None,
            _lock: lock,
        })
    }

    /// The plan of the run in `root`, which need not be opened for writing.
    ///
    /// # Errors
    /// [`RunError::NotARun`], [`RunError::Io`], [`RunError::BadJson`].
    pub fn read_plan(root: &Path) -> Result<Value> {
        let path = root.join(PLAN_FILE);
        if !path.is_file() {
            return Err(RunError::NotARun { path: root.to_owned() });
        }
        read_json(&path)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Stage number `number` (from 1) called `name`: `stages/01-name`, created if absent.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn stage(&self, number: u32, name: &str) -> Result<StageFolder> {
        let label = label_of(number.into(), name);
        let root = self.root.join(STAGES_DIR).join(&label);
        fs::create_dir_all(&root).map_err(RunError::io("create", &root))?;
        recover_partials(&root)?;
        Ok(StageFolder { root, label, number })
    }

    /// Cuts metrics and timing back to `step` of `stage`, so that the steps after it are written
    /// anew, tells TensorBoard the same, and records the event. Step 0 begins the stage afresh.
    ///
    /// # Errors
    /// [`RunError::BadLine`], [`RunError::Io`].
    pub fn resume_at(&mut self, stage: &StageFolder, step: u64) -> Result<()> {
        let last = StepKey { stage: stage.number, step };
        self.metrics.truncate_after(last)?;
        self.timing.truncate_after(last)?;
        self.tensorboard = Some((stage.label.clone(), self.event_writer(stage, Some(step + 1))?));
        self.event(&Event::Resumed { stage: stage.label.clone(), step })
    }

    /// Appends one line to `metrics.jsonl`, and the same scalars to TensorBoard.
    ///
    /// Only what the same recipe and seed reproduce belongs here; speeds and times go to
    /// [`RunFolder::log_timing`]. Whole numbers are written without a point; a value that is not
    /// finite is written as `"NaN"`, `"inf"` or `"-inf"`.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn log_metrics<'a>(
        &mut self,
        stage: &StageFolder,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let values: Vec<_> = values.into_iter().collect();
        self.metrics.append(&step_line(stage, step, &values))?;
        self.plot(stage, step, &values)
    }

    /// Appends one line to `timing.jsonl`: seconds, tokens per second, peak memory.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn log_timing<'a>(
        &mut self,
        stage: &StageFolder,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let values: Vec<_> = values.into_iter().collect();
        self.timing.append(&step_line(stage, step, &values))?;
        self.plot(stage, step, &values)
    }

    /// Appends one line to `events.jsonl`, with the time.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn event(&mut self, event: &Event) -> Result<()> {
        self.events.append(&TimedEvent { time: crate::utc_now(), event })
    }

    /// Waits until the disk holds every line. Call it before a checkpoint is saved: a checkpoint
    /// of step k promises that the lines up to step k are there.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()?;
        self.timing.sync()?;
        self.events.sync()
    }

    /// Every stage is a TensorBoard run of its own: a resume makes viewers drop the later steps of
    /// a run, and the steps of an earlier stage must not be among them.
    fn event_writer(&self, stage: &StageFolder, first_step: Option<u64>) -> Result<EventWriter> {
        EventWriter::create(&self.root.join(TENSORBOARD_DIR).join(&stage.label), first_step)
    }

    fn plot(&mut self, stage: &StageFolder, step: u64, values: &[(&str, f64)]) -> Result<()> {
        if self.tensorboard.as_ref().is_none_or(|(label, _)| *label != stage.label) {
            self.tensorboard = Some((stage.label.clone(), self.event_writer(stage, None)?));
        }
        let (_, writer) = self.tensorboard.as_mut().expect("made just above");
        writer.scalars(step, values.iter().copied())
    }
}

/// One stage's folder. Its parts are paths; publish into them with `pt_core::atomic_file`.
#[derive(Clone, Debug)]
pub struct StageFolder {
    root: PathBuf,
    label: String,
    number: u32,
}

impl StageFolder {
    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its name, as in `01-sft`: the `stage` of metrics and events.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its checkpoints.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn checkpoints(&self, retention: Retention) -> Result<CheckpointStore> {
        CheckpointStore::open(&self.root.join(CHECKPOINTS_DIR), retention)
    }

    /// Where a full model is published.
    pub fn model_dir(&self) -> PathBuf {
        self.root.join("model")
    }

    /// Where an adapter is published.
    pub fn adapter_dir(&self) -> PathBuf {
        self.root.join("adapter")
    }

    /// Where sampled completions go.
    pub fn rollouts_dir(&self) -> PathBuf {
        self.root.join("rollouts")
    }

    /// Where evaluation results go.
    pub fn eval_dir(&self) -> PathBuf {
        self.root.join("eval")
    }

    /// Records that the stage is complete, with its result. Call it last.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn finish(&self, outcome: &impl Serialize) -> Result<()> {
        write_json(&self.root.join(OUTCOME_FILE), outcome)
    }

    /// The result of a complete stage; `None` while it is not complete.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::BadJson`].
    pub fn outcome(&self) -> Result<Option<Value>> {
        let path = self.root.join(OUTCOME_FILE);
        if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
    }
}

fn step_line(stage: &StageFolder, step: u64, values: &[(&str, f64)]) -> Value {
    let mut line = Map::new();
    line.insert("stage".to_owned(), stage.label.clone().into());
    line.insert("step".to_owned(), step.into());
    for (key, value) in values {
        line.insert((*key).to_owned(), number(*value));
    }
    Value::Object(line)
}

/// JSON has no NaN and no infinity; hiding them as `null` would hide the one thing worth seeing.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: whole numbers up to here are exact
    let negative_zero = value == 0.0 && value.is_sign_negative();
    if value.fract() == 0.0 && value.abs() <= EXACT && !negative_zero {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or_else(|| Value::from(value.to_string()), Value::Number)
}

fn first_entry(root: &Path) -> Result<Option<String>> {
    let io = |e| RunError::io("read", root)(e);
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != LOCK_FILE);
    names.sort();
    Ok(names.into_iter().next())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| RunError::io("encode", path)(e.into()))?;
    text.push(b'\n');
    pt_core::atomic_file::write(path, &text).map_err(RunError::io("write", path))
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(RunError::io("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| RunError::BadJson { path: path.to_owned(), problem: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::CheckpointState;
    use crate::tensors::TensorEntry;

    fn plan() -> Value {
        serde_json::json!({"name": "test", "steps": 10})
    }

    #[test]
    fn a_new_run_needs_an_empty_folder_and_a_resume_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/run");
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("not a run folder"));
        let run = RunFolder::create(&root, &plan()).unwrap();
        assert!(matches!(RunFolder::open(&root), Err(RunError::Locked { .. })));
        drop(run);
        let message = RunFolder::create(&root, &plan()).unwrap_err().to_string();
        assert!(message.contains("events.jsonl") && message.contains("--resume"), "{message}");
        RunFolder::open(&root).unwrap();
        assert_eq!(RunFolder::read_plan(&root).unwrap(), plan());
    }

    #[test]
    fn a_kill_before_the_plan_was_written_leaves_a_folder_one_can_start_in() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK_FILE), "4294967294").unwrap();
        fs::write(dir.path().join(".plan.json.partial"), "{").unwrap();
        RunFolder::create(dir.path(), &plan()).unwrap();
    }

    #[test]
    fn numbers_are_written_as_people_expect_them() {
        for (value, expected) in [
            (3.0, "3"),
            (0.0, "0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e300, "1e+300"),
            (f64::NAN, "\"NaN\""),
            (f64::NEG_INFINITY, "\"-inf\""),
            (f64::from(0.1f32), "0.10000000149011612"),
        ] {
            assert_eq!(number(value).to_string(), expected);
        }
    }

    #[test]
    fn events_read_back_with_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunFolder::create(dir.path(), &plan()).unwrap();
        let events = [
            Event::Started { version: "0.1.0".into(), plan_hash: "h".into() },
            Event::CheckpointSaved { stage: "01-sft".into(), step: 4 },
            Event::Warning { message: "disk nearly full".into() },
            Event::Finished,
        ];
        for event in &events {
            run.event(event).unwrap();
        }
        let text = fs::read_to_string(dir.path().join(EVENTS_FILE)).unwrap();
        let read: Vec<Event> = text
            .lines()
            .map(|line| {
                let mut value: Value = serde_json::from_str(line).unwrap();
                let time = value.as_object_mut().unwrap().remove("time").unwrap();
                assert!(time.as_str().unwrap().ends_with('Z'));
                serde_json::from_value(value).unwrap()
            })
            .collect();
        assert_eq!(read, events);
    }

    #[test]
    fn a_stage_is_complete_only_when_its_outcome_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path(), &plan()).unwrap();
        let stage = run.stage(1, "sft").unwrap();
        assert_eq!(stage.label(), "01-sft");
        assert!(stage.outcome().unwrap().is_none());
        stage.finish(&serde_json::json!({"steps": 5})).unwrap();
        assert_eq!(run.stage(1, "sft").unwrap().outcome().unwrap().unwrap()["steps"], 5);
    }

    /// A trainer of one number: its loss depends on its state, so a wrong resume shows.
    fn train(run: &mut RunFolder, stop_after: u64) {
        let stage = run.stage(1, "sft").unwrap();
        let store = stage.checkpoints(Retention { keep_last: 2, best: None }).unwrap();
        let (mut step, mut weight) = match store.latest_valid().unwrap().checkpoint {
            Some(c) => (c.state.step, c.tensors["w"].to_f32("w").unwrap()[0]),
            None => (0, 1.0),
        };
        store.discard_after(step).unwrap();
        run.resume_at(&stage, step).unwrap();
        while step < 10 {
            step += 1;
            weight *= 0.9;
            run.log_metrics(&stage, step, [("loss", f64::from(weight)), ("num_tokens", step as f64)])
                .unwrap();
            run.log_timing(&stage, step, [("seconds", 0.1)]).unwrap();
            if step == stop_after {
                return;
            }
            if step % 3 == 0 {
                run.sync().unwrap();
                let state = CheckpointState { step, ..Default::default() };
                store.save(&state, [TensorEntry::f32("w", &[1], &[weight])]).unwrap();
            }
        }
    }

    #[test]
    fn a_run_stopped_anywhere_and_resumed_ends_with_the_same_bytes() {
        let uninterrupted = tempfile::tempdir().unwrap();
        train(&mut RunFolder::create(uninterrupted.path(), &plan()).unwrap(), 99);
        for stop_after in 1..=10 {
            let dir = tempfile::tempdir().unwrap();
            train(&mut RunFolder::create(dir.path(), &plan()).unwrap(), stop_after);
            let torn = b"{\"stage\":\"01-sft\",\"st";
            let metrics = dir.path().join(METRICS_FILE);
            fs::write(&metrics, [&fs::read(&metrics).unwrap()[..], torn].concat()).unwrap();
            train(&mut RunFolder::open(dir.path()).unwrap(), 99);
            for file in [METRICS_FILE, TIMING_FILE] {
                let [a, b] = [&uninterrupted, &dir].map(|d| fs::read(d.path().join(file)).unwrap());
                assert!(a == b, "{file} differs after a stop at {stop_after}");
            }
            assert_eq!(crate::compare_runs(uninterrupted.path(), dir.path()).unwrap(), []);
        }
    }
}
