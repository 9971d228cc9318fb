//! Every recipe of the repository, carried out by the program at a reduced size.

#[path = "common/judge.rs"]
mod judge;
#[path = "common/program.rs"]
mod program;
#[path = "common/reduced.rs"]
mod reduced;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use judge::{JudgeServer, by_rules_then_length};
use program::run;
use pt_core::testdata::{shared_data, workspace_root};
use reduced::{SMALL, STAND_IN, reduce, strings};

/// How many recipes there are. A recipe that is added or removed changes this number by hand, so that none is missed.
const N_RECIPES: usize = 7;
/// The server that recipes speak of; here it is a judge that answers by rules.
const SERVER: &str = "http://127.0.0.1:8000/v1";
/// Prompts that recipes read.
const N_PROMPTS: usize = 12;

/// The recipes, made small, by name.
fn recipes() -> BTreeMap<String, String> {
    let root = workspace_root();
    let read = |path: PathBuf| {
        assert!(
            path.extension().is_some_and(|extension| extension == "toml"),
            "no recipe: {}",
            path.display()
        );
        let text = fs::read_to_string(&path).unwrap();
        (path.file_stem().unwrap().to_string_lossy().into_owned(), reduce(&text, &root, SMALL))
    };
    let entries = fs::read_dir(root.join("recipes")).unwrap();
    entries.map(|entry| read(entry.unwrap().path())).collect()
}

/// The other recipes whose runs this one reads: it names files in `runs/NAME/`.
fn needed(recipe: &str) -> Vec<String> {
    let name = |text: String| Some(text.strip_prefix("runs/")?.split('/').next()?.to_owned());
    strings(recipe).into_iter().filter_map(name).collect()
}

/// A chat model in the usual folder's layout.
const TINY: &str = "\
[model]
tokenizer = \"bpe:300\"
[model.new]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
[[stage]]
type = \"sft\"
data.train = [\"generated:chat?n=24&seed=1\"]
train.steps = 2
eval.n = 4
eval.max_new_tokens = 8
";

/// Makes that model as [`STAND_IN`] in `dir`, unless it is there.
fn stand_in(dir: &Path) {
    let model = dir.join(STAND_IN);
    if !model.exists() {
        fs::write(dir.join("tiny.toml"), TINY).unwrap();
        run(dir, &["run", "tiny.toml", "--out", "tiny", "--no-report"]).ok();
        fs::create_dir_all(model.parent().unwrap()).unwrap();
        fs::rename(dir.join("tiny/stages/01-sft/model"), model).unwrap();
    }
}

/// A folder in which recipes find what they name.
struct Place {
    dir: tempfile::TempDir,
    server: JudgeServer,
    recipes: BTreeMap<String, String>,
    done: Vec<String>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let prompt =
            |i: usize| format!("{{\"prompt\": [{{\"role\": \"user\", \"content\": \"one two {i}\"}}]}}\n");
        fs::write(dir.path().join("prompts.jsonl"), (0..N_PROMPTS).map(prompt).collect::<String>()).unwrap();
        let server = JudgeServer::start(|_, text| by_rules_then_length(text));
        let asks_it = |(name, text): (String, String)| (name, text.replace(SERVER, &server.url));
        let recipes = recipes().into_iter().map(asks_it).collect();
        Place { dir, server, recipes, done: Vec::new() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `name`, and before it what it needs.
    fn run(&mut self, name: &str) {
        if self.done.iter().any(|done| done == name) {
            return;
        }
        let recipe =
            self.recipes.get(name).unwrap_or_else(|| panic!("no recipe leaves runs/{name} behind")).clone();
        self.done.push(name.to_owned());
        for needed in needed(&recipe) {
            self.run(&needed);
        }
        if strings(&recipe).iter().any(|text| text == STAND_IN) {
            stand_in(self.dir.path());
        }
        fs::write(self.dir.path().join(format!("{name}.toml")), &recipe).unwrap();
        let (file, out) = (format!("{name}.toml"), format!("runs/{name}"));
        let outcome = run(self.dir.path(), &["run", &file, "--out", &out]);
        assert_eq!(outcome.code, 0, "{name}: {}\n{}\nrecipe:\n{recipe}", outcome.stdout, outcome.stderr);
        check_run(&self.dir.path().join(&out), &recipe);
    }
}

/// All stages ran, and the report can be written again and has nothing missing.
fn check_run(out: &Path, recipe: &str) {
    let table: toml::Table = toml::from_str(recipe).unwrap();
    let n_stages = table["stage"].as_array().unwrap().len();
    let stages = fs::read_dir(out.join("stages")).unwrap().map(|entry| entry.unwrap().path());
    let finished = stages.filter(|stage| stage.join("outcome.json").is_file()).count();
    assert_eq!(finished, n_stages, "stages of {} that have an outcome", out.display());
    run(out, &["report", ".", "--out", "again.html"]).ok();
    let page = fs::read_to_string(out.join("again.html")).unwrap();
    assert!(page.ends_with("</html>\n") && !page.contains("Missing or damaged"), "{}", out.display());
    for stage in table["stage"].as_array().unwrap() {
        let kind = stage["type"].as_str().unwrap();
        assert!(page.contains(kind), "the report of {} does not speak of {kind}", out.display());
    }
}

#[test]
fn every_recipe_runs_at_reduced_size() {
    let mut place = Place::new();
    let names: Vec<String> = place.recipes.keys().cloned().collect();
    assert_eq!(names.len(), N_RECIPES, "recipes/*.toml: {names:?}");
    for name in names {
        let reads_shared_data =
            strings(&place.recipes[&name]).iter().any(|text| text.contains("shared/data"));
        if !reads_shared_data || shared_data().is_some() {
            place.run(&name);
        }
    }
}

#[test]
fn the_reduction_leaves_what_is_not_an_amount() {
    let before = "seed = 9\n[model]\nbase = \"Owner/Name\"\ntokenizer = \"bpe:4096\"\n[[stage]]\ntype = \"x\"\n\
                  data.train = [\"generated:mix?families=sum@3-4:2&n=4000&seed=7\", \"a.jsonl\"]\n\
                  train.epochs = 3\ntrain.steps = 2\noptimizer.learning_rate = 0.5\nrollout.n = 16\neval.n = 2\n\
                  [[stage.data.eval]]\nsource = \"b.jsonl\"\nlimit = 5\n";
    let after = "seed = 9\n[model]\nbase = \"models/chat\"\ntokenizer = \"bpe:300\"\n[[stage]]\ntype = \"x\"\n\
                 data.train = [\"generated:mix?families=sum@3-4:2&n=32&seed=7\", {source = \"a.jsonl\", limit = 32}]\n\
                 train.epochs = 1\ntrain.steps = 2\noptimizer.learning_rate = 0.5\nrollout.n = 4\neval.n = 2\n\
                 [[stage.data.eval]]\nsource = \"b.jsonl\"\nlimit = 5\n";
    let read = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
    assert_eq!(read(&reduce(before, Path::new("."), SMALL)), read(after));
}

/// Both stages of constitutional AI: every principle that was drawn is in the report, and nothing that was answered is asked again.
#[test]
fn constitutional_ai_reports_by_principle_and_asks_nothing_twice() {
    let mut place = Place::new();
    place.run("constitutional-ai");
    let first = place.at("runs/constitutional-ai");
    let page = fs::read_to_string(first.join("report.html")).unwrap();
    for stage in ["01-revise", "03-judge"] {
        let text = fs::read_to_string(first.join("stages").join(stage).join("report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let principles = report["principles"].as_array().unwrap();
        assert!(principles.len() > 1, "{stage}: {report}");
        for principle in principles.iter().filter(|principle| principle["n_drawn"] != 0) {
            let id = principle["id"].as_str().unwrap();
            assert!(page.contains(&format!(">{id}<")), "{stage}: {id} is not in the report");
        }
    }
    let n_asked = place.server.n_asked();
    // A reply, two critiques and two revisions of each prompt, and every pair at least in both orders.
    assert!(n_asked > N_PROMPTS * 5, "{n_asked}");

    let again = |out: &str, sets: &[&str]| {
        let args = ["run", "constitutional-ai.toml", "--out", out, "--reuse", "runs/constitutional-ai"];
        run(place.dir.path(), &[&args[..], sets].concat()).ok();
    };
    again("again", &[]);
    assert_eq!(place.server.n_asked(), n_asked, "stages that did not change are taken over");
    for file in ["01-revise/rows.jsonl", "03-judge/rows.jsonl", "04-dpo/model/model.safetensors"] {
        let of = |run: &Path| fs::read(run.join("stages").join(file)).unwrap();
        assert!(of(&first) == of(&place.at("again")), "{file} differs");
    }
    again("other-pairs", &["--set", "stage.dpo.optimizer.learning_rate=1e-5"]);
    assert_eq!(place.server.n_asked(), n_asked, "another way to learn from the same preferences");

    // A model that learned otherwise from the same revisions replies otherwise: its pairs are judged, at most two principles in
    // two orders each, and nothing is revised again.
    again("other-model", &["--set", "stage.sft.optimizer.learning_rate=1e-3"]);
    let n_more = place.server.n_asked() - n_asked;
    assert!((1..=4 * N_PROMPTS).contains(&n_more), "{n_more}");
}
