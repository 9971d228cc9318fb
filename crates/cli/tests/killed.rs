//! The quickstart, killed without warning at ten random moments and resumed each time, ends as if nothing had happened: the
//! same files byte for byte, and a report that differs in times alone.
//!
//! The quick test takes the recipe at a reduced size, with all its stages. At full size (about three times as long as the
//! quickstart takes):
//!
//! ```sh
//! cargo test --release -p posttrain --test killed -- --ignored
//! ```

#[path = "common/program.rs"]
mod program;
#[path = "common/reduced.rs"]
mod reduced;
#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use program::{command, run};
use pt_core::rng::{Draws, Stream};
use pt_core::testdata::workspace_root;
use reduced::{Size, reduce};
use runs::{assert_same, n_lines, partial_files};
use serde_json::Value;

const KILLS: u64 = 10;
/// A run that ends before it could be killed is begun again, not endlessly.
const MAX_ATTEMPTS: u64 = 4 * KILLS;
/// Long enough for ten kills.
const SIZE: Size = Size { steps: 20, rows: 160 };
/// The share of kills that come while the program still starts, wherever it goes on.
const EARLY: f64 = 0.2;
const LONGEST_START: Duration = Duration::from_millis(400);

/// A folder with the recipe, and the run under one name in a folder for each of its two fates.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(recipe: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("quickstart.toml"), recipe).unwrap();
        Place { dir }
    }

    fn fate(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn start(&self, fate: &str) -> Child {
        let args = ["run", "../quickstart.toml", "--out", "run", "--resume"];
        let mut command = command(&self.fate(fate), &args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Runs to the end, from wherever it is.
    fn finish(&self, fate: &str) {
        run(&self.fate(fate), &["run", "../quickstart.toml", "--out", "run", "--resume"]).ok();
    }
}

/// What a run that is never stopped takes.
struct Whole {
    n_lines: usize,
    time: Duration,
}

/// Waits for a random moment: while the program starts, or some steps on and then somewhere between two of them.
fn wait_for_moment(child: &mut Child, out: &Path, whole: &Whole, draws: &mut Draws) {
    if draws.uniform() < EARLY {
        return std::thread::sleep(LONGEST_START.mul_f64(draws.uniform()));
    }
    let share = 1.5 / KILLS as f64;
    let wanted = n_lines(out) + (share * whole.n_lines as f64 * draws.uniform()) as usize;
    while n_lines(out) < wanted && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(whole.time.mul_f64(share / 3.0 * draws.uniform()));
}

/// Kills the run ten times, each time while it runs.
fn kill_again_and_again(place: &Place, whole: &Whole) {
    let moments = Stream::new(20_261_124, "killed/moment");
    let out = place.fate("killed").join("run");
    let mut landed = 0;
    for attempt in 0..MAX_ATTEMPTS {
        let mut child = place.start("killed");
        wait_for_moment(&mut child, &out, whole, &mut moments.at(attempt));
        let is_running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        landed += u64::from(is_running);
        if landed == KILLS {
            return;
        }
        if !is_running {
            fs::remove_dir_all(&out).unwrap();
        }
    }
    panic!("{landed} of {MAX_ATTEMPTS} kills found the program running");
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What happened, without when, and without what being stopped and going on leave behind.
fn happenings(run: &Path) -> Vec<Value> {
    const OF_RESTARTS: &[&str] =
        &["started", "resumed", "stage_begun", "checkpoint_saved", "checkpoint_skipped"];
    let mut events = json_lines(&run.join("events.jsonl"));
    events.retain(|event| !OF_RESTARTS.contains(&event["event"].as_str().unwrap()));
    events.iter_mut().for_each(|event| event["time"] = Value::Null);
    events
}

/// The plan without what was measured before the run: how long it would take, and in how much memory.
fn decided(run: &Path) -> Value {
    fn forget(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|key, _| key != "expected_seconds" && key != "memory");
                fields.values_mut().for_each(forget);
            }
            Value::Array(values) => values.iter_mut().for_each(forget),
            _ => {}
        }
    }
    let mut plan = serde_json::from_slice(&fs::read(run.join("plan.json")).unwrap()).unwrap();
    forget(&mut plan);
    plan
}

/// The steps whose time is known.
fn timed_steps(run: &Path) -> Vec<(Value, Value)> {
    let lines = json_lines(&run.join("timing.jsonl"));
    lines.into_iter().map(|line| (line["stage"].clone(), line["step"].clone())).collect()
}

/// Gives the run `to` the clock of `from`: the files that say when and how long.
fn set_clock(from: &Path, to: &Path) {
    for file in ["timing.jsonl", "events.jsonl", "plan.json"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

fn report(fate: &Path) -> String {
    run(fate, &["report", "run", "--out", "report.html"]).ok();
    fs::read_to_string(fate.join("report.html")).unwrap()
}

fn check(recipe: &str) {
    let place = Place::new(recipe);
    let began = Instant::now();
    place.finish("whole");
    let (whole, killed) = (place.fate("whole"), place.fate("killed"));
    let figures = Whole { n_lines: n_lines(&whole.join("run")), time: began.elapsed() };
    kill_again_and_again(&place, &figures);
    place.finish("killed");
    let (a, b) = (whole.join("run"), killed.join("run"));
    assert_same(&a, &b, "killed ten times");
    assert_eq!(partial_files(&b), Vec::<PathBuf>::new());
    assert_eq!(decided(&a), decided(&b), "the plan");
    assert_eq!(happenings(&a), happenings(&b), "events");
    assert_eq!(timed_steps(&a), timed_steps(&b), "the steps in timing.jsonl");
    assert!(b.join("report.html").is_file());
    set_clock(&a, &b);
    let (a, b) = (report(&whole), report(&killed));
    assert!(a == b, "the reports differ: {}", first_difference(&a, &b));
}

/// The first lines that differ.
fn first_difference(a: &str, b: &str) -> String {
    let differ = a.lines().zip(b.lines()).find(|(a, b)| a != b);
    differ.map_or_else(|| "in length".to_owned(), |(a, b)| format!("\n{a}\n{b}"))
}

fn quickstart() -> String {
    fs::read_to_string(workspace_root().join("recipes/quickstart.toml")).unwrap()
}

#[test]
fn the_reduced_quickstart_killed_ten_times_ends_in_the_same_report() {
    check(&reduce(&quickstart(), &workspace_root(), SIZE));
}

#[test]
#[ignore = "takes three times as long as the quickstart; see the top of the file"]
fn the_quickstart_killed_ten_times_ends_in_the_same_report() {
    check(&quickstart());
}
