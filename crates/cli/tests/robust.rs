//! The program as people and machines treat it: killed, interrupted, out of disk, given damaged files and typos.
//!
//! These tests wait for moments of a running process, which is what they are about; what they assert does not depend on
//! which moment it was.

#[path = "common/runs.rs"]
mod runs;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pt_core::rng::{Draws, Stream};
use runs::{assert_same, n_lines, partial_files};
use tempfile::TempDir;

const RECIPE: &str = "\
seed = 3
[model]
tokenizer = \"bpe:300\"
[model.new]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 256
[[stage]]
type = \"pretrain\"
data.train = [\"generated:raw?chars=12000&seed=1\"]
data.max_length = 64
train.steps = 40
train.save_every = 3
[[stage]]
type = \"sft\"
data.train = [\"generated:letters?level=1&n=120&seed=2\"]
data.eval = [\"generated:letters?level=1&n=20&seed=2&split=heldout\"]
train.method = \"lora\"
train.steps = 40
train.save_every = 3
train.eval_every = 10
eval.n = 4
eval.max_new_tokens = 8
";

/// A folder with a recipe and nothing of this machine's around it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        std::fs::write(dir.path().join("recipe.toml"), RECIPE).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `posttrain` with these arguments, run in the folder.
    fn posttrain(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_posttrain"));
        command.args(args);
        self.around(&mut command);
        command
    }

    fn around(&self, command: &mut Command) {
        command
            .current_dir(self.dir.path())
            .env("HF_HOME", self.path("hf"))
            .env("XDG_CACHE_HOME", self.path("cache"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// Runs the recipe into `out` to its end, resuming what is there.
    fn finish(&self, out: &str, sets: &[&str]) -> Output {
        let mut args = vec!["run", "recipe.toml", "--out", out];
        if self.path(out).join("plan.json").exists() {
            args.push("--resume");
        }
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let output = self.posttrain(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    }

    /// Resumes, or begins, a run into `out` where no file can be larger than so many units of 512 or 1024 bytes.
    fn full_disk(&self, out: &str, units: &str) -> Output {
        let mut command = Command::new("sh");
        // The shell ignores the signal of a file that grows too large, and so does what it becomes: writing fails.
        let script = "trap '' XFSZ; ulimit -f \"$1\"; exec \"$2\" run recipe.toml --out \"$3\" --resume";
        command.args(["-c", script, "sh", units, env!("CARGO_BIN_EXE_posttrain"), out]);
        self.around(&mut command);
        command.output().unwrap()
    }

    /// Starts a run into `out` and waits until `lines` steps are in its metrics.
    fn start(&self, out: &str, lines: usize) -> Child {
        let child = self.posttrain(&["run", "recipe.toml", "--out", out]).spawn().unwrap();
        let begun = Instant::now();
        while n_lines(&self.path(out)) < lines {
            assert!(begun.elapsed() < Duration::from_secs(60), "no step in a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn newest_checkpoint(run: &Path, stage: &str) -> PathBuf {
    let dir = run.join("stages").join(stage).join("checkpoints");
    let steps = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    steps.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("step-")).max().unwrap()
}

/// Waits for a random moment in the life of a run: while it starts, or once it has written some more metrics.
fn wait_for_moment(child: &mut Child, run: &Path, draws: &mut Draws) {
    let before = n_lines(run);
    if draws.uniform() < 0.25 {
        std::thread::sleep(Duration::from_secs_f64(0.4 * draws.uniform()));
        return;
    }
    let wanted = before + (25.0 * draws.uniform()) as usize;
    while n_lines(run) < wanted && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_secs_f64(0.02 * draws.uniform()));
}

#[test]
fn killed_at_random_moments_it_ends_with_the_same_bytes() {
    const KILLS: u64 = 10;
    const LONGER: [&str; 2] = ["stage.0.train.steps=100", "stage.1.train.steps=100"];
    let place = Place::new();
    place.finish("whole", &LONGER);
    let moments = Stream::new(20_261_124, "robust/kill");
    let run = place.path("killed");
    let mut landed = 0;
    for kill in 0..KILLS {
        let mut args = vec!["run", "recipe.toml", "--out", "killed", "--resume"];
        LONGER.iter().for_each(|set| args.extend(["--set", set]));
        let mut child = place.posttrain(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_moment(&mut child, &run, &mut moments.at(kill));
        landed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(landed >= KILLS / 2, "{landed} of {KILLS} kills found the program running");
    place.finish("killed", &LONGER);
    assert_same(&place.path("whole"), &run, "killed");
    assert_eq!(partial_files(&run), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupt_finishes_the_step_and_says_how_to_go_on() {
    let place = Place::new();
    let child = place.start("run", 5);
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("posttrain run recipe.toml --out run --resume"), "{said}");
    let lines = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap().lines().count();
    let saved = newest_checkpoint(&place.path("run"), "01-pretrain");
    assert_eq!(saved.file_name().unwrap().to_string_lossy(), format!("step-{lines:06}"), "{said}");
    place.finish("run", &[]);
    place.finish("whole", &[]);
    assert_same(&place.path("whole"), &place.path("run"), "interrupted");
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing_half_written() {
    let place = Place::new();
    let run = |units: &str| place.full_disk("run", units);
    // In units of 512 or 1024 bytes: metrics fit, then nothing but the checkpoints does not, and at last all but the last.
    for units in ["40", "100"] {
        let output = run(units);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("error") && said.contains("File too large"), "{said}");
        assert!(said.contains(".safetensors") || said.contains("step-"), "which file: {said}");
        assert_eq!(partial_files(&place.path("run")), Vec::<PathBuf>::new());
    }
    place.finish("run", &[]);
    place.finish("whole", &[]);
    assert_same(&place.path("whole"), &place.path("run"), "after a full disk");
}

/// A stage that samples, from the model of the run `base`: its files of rollouts are much larger than its checkpoints.
const SAMPLING: &str = "\
seed = 3
[model]
base = \"base/stages/01-sft/model\"
[[stage]]
type = \"grpo\"
data.train = [\"generated:letters?level=1&n=40&seed=5&form=prompt_only\"]
train.method = \"lora\"
lora.rank = 1
train.rows_per_step = 4
train.steps = 6
train.save_every = 2
optimizer.learning_rate = 5e-3
rollout.n = 48
rollout.max_new_tokens = 64
rollout.alarms = \"off\"
eval.n = 1
eval.max_new_tokens = 1
[[stage.reward]]
type = \"contains\"
required = [\"a\", \"e\"]
partial = true
";

#[test]
fn a_disk_that_fills_up_with_rollouts_loses_nothing() {
    let place = Place::new();
    let base = RECIPE.replace("train.method = \"lora\"\n", "").replace("train.steps = 40", "train.steps = 5");
    let from_sft = base.find("[[stage]]\ntype = \"sft\"").unwrap();
    let base = format!("{}{}", &base[..base.find("[[stage]]").unwrap()], &base[from_sft..]);
    std::fs::write(place.path("recipe.toml"), base).unwrap();
    place.finish("base", &[]);
    std::fs::write(place.path("recipe.toml"), SAMPLING).unwrap();
    place.finish("whole", &[]);
    let rollouts = place.path("run").join("stages/01-grpo/rollouts");
    let fails = |expected: &str| {
        let output = place.full_disk("run", "64");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot write") && said.contains("File too large"), "what: {said}");
        assert!(said.contains(&format!("rollouts/{expected}.jsonl.zst")), "where: {said}");
        assert!(!rollouts.join(format!("{expected}.jsonl.zst")).exists());
        assert_eq!(partial_files(&place.path("run")), Vec::<PathBuf>::new());
    };
    // Before anything was saved, and again.
    fails("step-00000000");
    fails("step-00000000");
    // And in the middle, after some steps on a disk with room.
    std::fs::remove_dir_all(place.path("run")).unwrap();
    let mut child = place.start("run", 1);
    signal(&child, "-INT");
    child.wait().unwrap();
    let done = std::fs::read_dir(&rollouts).unwrap().count();
    assert!((1..6).contains(&done), "the interrupt came after {done} rounds");
    fails(&format!("step-{done:08}"));
    place.finish("run", &[]);
    assert_same(&place.path("whole"), &place.path("run"), "after a disk full of rollouts");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_all_damaged_are_an_error() {
    let place = Place::new();
    let mut child = place.start("run", 8);
    child.kill().unwrap();
    child.wait().unwrap();
    let run = place.path("run");
    let newest = newest_checkpoint(&run, "01-pretrain");
    let damage = |folder: &Path| {
        let path = folder.join("tensors.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    damage(&newest);
    place.finish("run", &[]);
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    assert!(events.contains("checkpoint_skipped") && events.contains("tensors.safetensors"), "{events}");
    place.finish("whole", &[]);
    assert_same(&place.path("whole"), &run, "one damaged");

    let mut child = place.start("hopeless", 8);
    child.kill().unwrap();
    child.wait().unwrap();
    for entry in std::fs::read_dir(place.path("hopeless/stages/01-pretrain/checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("step-") {
            damage(&path);
        }
    }
    let output = place.posttrain(&["run", "recipe.toml", "--out", "hopeless", "--resume"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no valid checkpoint in"), "{}", stderr(&output));
}

#[test]
fn mistakes_are_answered_with_what_was_meant() {
    let place = Place::new();
    std::fs::write(place.path("typo.toml"), RECIPE.replace("train.steps", "train.stepz")).unwrap();
    std::fs::write(place.path("torn.toml"), &RECIPE[..RECIPE.len() - 30]).unwrap();
    place.finish("done", &["stage.0.train.steps=3", "stage.1.train.steps=3"]);
    for (args, code, expected) in [
        (&["run", "typo.toml"][..], 1, &["typo.toml:13", "stepz", "steps"][..]),
        (&["plan", "typo.toml"], 1, &["typo.toml:13", "stepz", "steps"]),
        (&["run", "recipe.toml", "--set", "stage.sft.train.epoch=2"], 1, &["epoch", "epochs"]),
        (&["run", "recipe.toml", "--set", "stage.sft.train.method=lorra"], 1, &["lorra", "lora"]),
        (&["run", "recipe.toml", "--set", "stage.1.optimizer.type=adamww"], 1, &["adamww", "adamw"]),
        (&["run", "recipe.toml", "--set", "stage.0.data.train=[\"generated:rawx\"]"], 1, &["rawx", "raw"]),
        (&["run", "recipes.toml"], 1, &["recipes.toml"]),
        (&["run", "recipe.toml", "--out", "done"], 1, &["done", "--resume"]),
        (&["run", "recipe.toml", "--out", "done", "--resume"], 1, &["stages.0.steps was 3, is 40"]),
        (&["run", "recipe.toml", "--resume"], 2, &["--out"]),
        (&["rum", "recipe.toml"], 2, &["rum", "run"]),
        (&["run", "recipe.toml", "--ouT", "x"], 2, &["--out"]),
    ] {
        let output = place.posttrain(args).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for part in expected {
            assert!(said.contains(part), "{args:?}: expected {part:?} in\n{said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}
