//! What the tests share: recipes of tiny models in a temporary folder, and a watcher that remembers and can stop.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pt_engine::Profile;
use pt_models::Model;
use pt_pipeline::{
    Prepared, Result, RunOptions, RunOutcome, StageReport, Surroundings, Watch, catalogue, prepare, run,
};
use pt_recipe::{PlannedStage, Recipe};
use pt_rl::{RolloutRecord, RolloutsFolder};
use pt_train::{EvalStats, StepStats, Watcher};
use tempfile::TempDir;

/// A model from nothing, small enough for hundreds of steps in a second.
pub const NEW_MODEL: &str = "\
seed = 3
[model]
tokenizer = \"bpe:300\"
[model.new]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 256
";

/// Raw text.
pub const PRETRAIN: &str = "
[[stage]]
type = \"pretrain\"
data.train = [\"generated:raw?chars=12000&seed=1\"]
data.max_length = 64
train.steps = 12
optimizer.learning_rate = 5e-3
";

/// Conversations, with held-out ones.
pub const SFT: &str = "
[[stage]]
type = \"sft\"
data.train = [\"generated:letters?level=1&n=120&seed=2\"]
data.eval = [\"generated:letters?level=1&n=20&seed=2&split=heldout\"]
train.steps = 12
train.eval_every = 6
optimizer.learning_rate = 5e-3
eval.tasks = [\"generated:letters?level=1\"]
eval.n = 6
eval.max_new_tokens = 8
";

/// Half of all short replies or so pass.
pub const A_OR_E: &str = "[[stage.reward]]\ntype = \"contains\"\nrequired = [\"a\", \"e\"]\npartial = true\n";

/// A short stage of grpo on the prompts of a generated task, without its rewards.
pub fn grpo_on(task: &str, steps: u64) -> String {
    format!(
        "
[[stage]]
type = \"grpo\"
data.train = [\"generated:{task}?level=1&n=40&seed=5&form=prompt_only\"]
train.rows_per_step = 3
train.steps = {steps}
train.log_every = 1
optimizer.learning_rate = 5e-3
schedule.type = \"constant\"
rollout.n = 4
rollout.max_new_tokens = 12
rollout.alarms = \"off\"
"
    )
}

/// A folder that goes away; in memory where there is such a file system, so that no test waits for a disk.
pub fn tempdir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// No hub cache and no data cache.
pub fn nothing_around() -> Surroundings {
    Surroundings { hf_home: None, cache_dir: None, memory_bytes: None }
}

/// A recipe from text, changed by `--set` arguments.
pub fn recipe(text: &str, sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::parse(text, Path::new("test.toml"), &sets, &catalogue()).unwrap_or_else(|error| panic!("{error}"))
}

/// A prepared recipe.
pub fn prepared(text: &str, sets: &[&str]) -> Prepared {
    prepare(recipe(text, sets), &nothing_around()).unwrap_or_else(|error| panic!("{error}"))
}

/// Why a recipe cannot be prepared.
pub fn refusal(text: &str, sets: &[&str]) -> String {
    match prepare(recipe(text, sets), &nothing_around()) {
        Ok(_) => panic!("the recipe should have been refused:\n{text}"),
        Err(error) => error.to_string(),
    }
}

/// Runs a recipe into `out`; resumes it if it is there.
pub fn go(text: &str, sets: &[&str], out: &Path, seen: &mut Seen) -> Result<RunOutcome> {
    go_reusing(text, sets, out, &[], seen)
}

/// The same, with runs whose stages may be taken over.
pub fn go_reusing(
    text: &str,
    sets: &[&str],
    out: &Path,
    reuse: &[PathBuf],
    seen: &mut Seen,
) -> Result<RunOutcome> {
    let prepared = prepare(recipe(text, sets), &nothing_around())?;
    let options =
        RunOptions { out: out.to_owned(), resume: out.join("plan.json").exists(), reuse: reuse.to_vec() };
    let stop = AtomicBool::new(false);
    seen.asked = None;
    // The flag is shared with the watcher, as it is with the handler of Ctrl-C.
    let mut watching = Watching { seen, stop: &stop };
    run(prepared, &options, &nothing_around(), &mut watching, &stop)
}

/// Runs a recipe to its end.
pub fn finish(text: &str, sets: &[&str], out: &Path) -> (Vec<StageReport>, Seen) {
    let mut seen = Seen::default();
    match go(text, sets, out, &mut seen).unwrap_or_else(|error| panic!("{error}")) {
        RunOutcome::Finished(reports) => (reports, seen),
        other => panic!("not finished: {other:?}"),
    }
}

/// When to ask a run to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopAt {
    /// Once so many steps of a stage are done.
    Step(&'static str, u64),
    /// While a stage's tasks are measured, before or after training.
    Measuring(&'static str, &'static str),
    /// When a stage has ended.
    Ended(&'static str),
}

/// What a watcher saw.
#[derive(Default)]
pub struct Seen {
    pub stop_at: Option<StopAt>,
    pub losses: Vec<(String, u64, f64)>,
    pub evals: Vec<(String, u64, f64)>,
    pub saved: Vec<(String, u64)>,
    pub notes: Vec<String>,
    pub peaks: Vec<(String, usize)>,
    stage: String,
    asked: Option<StopAt>,
    crash: bool,
}

impl Seen {
    /// Crashes instead of asking the run to stop.
    pub fn crashing(stop_at: StopAt) -> Seen {
        Seen { stop_at: Some(stop_at), crash: true, ..Seen::default() }
    }

    pub fn stopping(stop_at: StopAt) -> Seen {
        Seen { stop_at: Some(stop_at), ..Seen::default() }
    }

    /// Mean loss of the first and of the last three steps of a stage.
    pub fn fall(&self, stage: &str) -> (f64, f64) {
        let losses: Vec<f64> = self.losses.iter().filter(|l| l.0 == stage).map(|l| l.2).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        (mean(&losses[..3]), mean(&losses[losses.len() - 3..]))
    }
}

struct Watching<'a> {
    seen: &'a mut Seen,
    stop: &'a AtomicBool,
}

impl Watching<'_> {
    fn reached(&mut self, place: &StopAt) {
        if self.seen.stop_at.as_ref() == Some(place) && self.seen.asked.is_none() {
            self.seen.asked = Some(*place);
            if self.seen.crash {
                // Unwinds without a message, as nobody made a mistake.
                std::panic::resume_unwind(Box::new("crash"));
            }
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Names of the stages as the recipes here have them.
fn known(name: &str) -> &'static str {
    ["pretrain", "sft", "sft-2", "sft-3", "grpo"].into_iter().find(|known| *known == name).unwrap_or("other")
}

impl Watcher for Watching<'_> {
    fn step(&mut self, steps_done: u64, stats: &StepStats, _: &Profile, _: f64) {
        let stage = self.seen.stage.clone();
        self.reached(&StopAt::Step(known(&stage), steps_done));
        self.seen.losses.push((stage, steps_done, stats.loss));
    }

    fn eval(&mut self, steps_done: u64, stats: &EvalStats) {
        self.seen.evals.push((self.seen.stage.clone(), steps_done, stats.loss));
    }

    fn saved(&mut self, steps_done: u64) {
        self.seen.saved.push((self.seen.stage.clone(), steps_done));
    }
}

impl Watch for Watching<'_> {
    fn stage_begun(&mut self, stage: &PlannedStage, _: u64, _: f64) {
        self.seen.stage = stage.name.clone();
        pt_kernels::buffer::reset_peak();
    }

    fn measuring(&mut self, stage: &PlannedStage, when: &'static str) {
        if when == "after" {
            self.seen.peaks.push((stage.name.clone(), pt_kernels::buffer::peak_bytes()));
        }
        self.reached(&StopAt::Measuring(known(&stage.name), when));
    }

    fn stage_ended(&mut self, stage: &PlannedStage, _: &StageReport) {
        self.reached(&StopAt::Ended(known(&stage.name)));
    }

    fn note(&mut self, message: &str) {
        self.seen.notes.push(message.to_owned());
    }
}

/// A trained base model with its tokenizer and chat template, made once for each test program.
pub fn base_model() -> &'static Path {
    static BASE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BASE.get_or_init(|| {
        let dir = tempdir();
        let recipe = format!("{NEW_MODEL}{PRETRAIN}{}", without_tasks(SFT));
        let (reports, _) = finish(&recipe, &["stage.sft.train.steps=30"], &dir.path().join("base"));
        let path = dir.path().join("base").join(&reports[1].output);
        (dir, path)
    });
    path
}

/// The head of a recipe that starts from [`base_model`].
pub fn on_base() -> String {
    format!("seed = 3\n[model]\nbase = {:?}\n", base_model())
}

/// A stage without the measurement of tasks.
pub fn without_tasks(stage: &str) -> String {
    let mut text: String =
        stage.lines().filter(|line| !line.starts_with("eval.")).map(|line| format!("{line}\n")).collect();
    // The generated sources would be measured otherwise.
    text += "eval.n = 1\neval.max_new_tokens = 1\n";
    text
}

/// The numbers under `key` of a stage in metrics.jsonl, with their steps.
pub fn metric(run: &Path, stage: &str, key: &str) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line["stage"] == stage)
        .filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?)))
        .collect()
}

/// The samples of a stage, round by round.
pub fn rollouts_of(run: &Path, stage: &str) -> Vec<Vec<RolloutRecord>> {
    let folder = RolloutsFolder::open(run.join("stages").join(stage).join("rollouts"), true).unwrap();
    folder.steps().unwrap().into_iter().map(|step| folder.read(step).unwrap().unwrap()).collect()
}

/// The held-out loss of a model as the stage measures it.
pub fn eval_loss(mut model: Model, prepared: &Prepared, stage: usize) -> f64 {
    let (recipe, planned) = (&prepared.recipe, &prepared.plan.stages[stage]);
    if model.adapter().is_none() {
        model.train_all().unwrap();
    }
    model.params.iter_mut().filter(|(_, p)| p.name.contains("lora_")).for_each(|(_, p)| p.trainable = true);
    let schedule = pt_pipeline::stage::planned_schedule(&planned.schedule, planned.steps).unwrap();
    let trainer = pt_pipeline::stage::stage_trainer(model, recipe, &recipe.stage[stage], schedule).unwrap();
    trainer.evaluate(&prepared.stages[stage].eval).unwrap().loss
}

/// Every regular file under `dir`, relative, with its bytes.
pub fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push((path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Sees nothing.
pub struct Quiet;

impl Watcher for Quiet {
    fn step(&mut self, _: u64, _: &StepStats, _: &Profile, _: f64) {}
    fn eval(&mut self, _: u64, _: &EvalStats) {}
    fn saved(&mut self, _: u64) {}
}

impl Watch for Quiet {
    fn stage_begun(&mut self, _: &PlannedStage, _: u64, _: f64) {}
    fn measuring(&mut self, _: &PlannedStage, _: &'static str) {}
    fn stage_ended(&mut self, _: &PlannedStage, _: &StageReport) {}
    fn note(&mut self, _: &str) {}
}
