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
use program::{command, run};
use pt_core::testdata::{shared_data, workspace_root};
use reduced::{SMALL, STAND_IN, reduce, strings};

/// How many recipes there are. A recipe that is added or removed changes this number by hand, so that none is missed.
const N_RECIPES: usize = 6;
const N_SCRIPTS: usize = 1;

fn files(extension: &str) -> Vec<PathBuf> {
    let folder = workspace_root().join("recipes");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

/// The recipes, made small, by name.
fn recipes() -> BTreeMap<String, String> {
    let root = workspace_root();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.file_stem().unwrap().to_string_lossy().into_owned(), reduce(&text, &root, SMALL))
    };
    files("toml").into_iter().map(read).collect()
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
    recipes: BTreeMap<String, String>,
    done: Vec<String>,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap(), recipes: recipes(), done: Vec::new() }
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

const CONSTITUTION: &str = "\
name = \"manners\"
[[principle]]
id = \"polite\"
text = \"The reply says please.\"
category = \"form\"
[[principle]]
id = \"kind\"
text = \"The reply insults nobody.\"
category = \"content\"
";

/// Both stages of constitutional AI, with a judge that answers by rules; the second call finds everything done.
#[cfg(unix)]
fn check_constitutional_ai(script: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let server = JudgeServer::start(|_, text| by_rules_then_length(text));
    let prompt =
        |i: usize| format!("{{\"prompt\": [{{\"role\": \"user\", \"content\": \"one two {i}\"}}]}}\n");
    fs::write(at("constitution.toml"), CONSTITUTION).unwrap();
    fs::write(at("prompts.jsonl"), (0..12).map(prompt).collect::<String>()).unwrap();
    stand_in(dir.path());
    let call = || {
        let posttrain = command(dir.path(), &[]);
        let mut shell = std::process::Command::new("sh");
        shell.arg(script).args([STAND_IN, "prompts.jsonl", &server.url, "cai", "constitution.toml"]);
        shell.current_dir(dir.path()).env("POSTTRAIN", posttrain.get_program());
        for (name, value) in posttrain.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell.env("FEEDBACK", "--retries 0").env("RESPOND", "--respond-max-new-tokens 12");
        shell.env("SFT", "--set stage.0.train.steps=2").env("DPO", "--set stage.0.train.steps=2");
        let output = shell.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    };
    call();
    for name in
        ["revised.report.md", "sft/stages/01-sft/model/config.json", "dpo/stages/01-dpo/model/config.json"]
    {
        assert!(at("cai").join(name).is_file(), "{name} is not there");
    }
    let by_principle = fs::read_to_string(at("cai/judged.report.md")).unwrap();
    assert!(by_principle.contains("| polite | form | ") && by_principle.contains("| kind | content | "));
    let n_asked = server.n_asked();
    call();
    assert_eq!(server.n_asked(), n_asked, "every answer was kept");
}

#[cfg(unix)]
#[test]
fn every_script_runs_at_reduced_size() {
    let scripts = files("sh");
    assert_eq!(scripts.len(), N_SCRIPTS, "recipes/*.sh: {scripts:?}");
    for script in scripts {
        match script.file_name().unwrap().to_str().unwrap() {
            "constitutional-ai.sh" => check_constitutional_ai(&script),
            other => panic!("nothing here knows what recipes/{other} needs: add that"),
        }
    }
}
