//! BIG-Bench Hard (Suzgun et al. 2022, arXiv:2210.09261): tasks where language models lagged behind people.
//!
//! Asked as lm-evaluation-harness 0.4.13 asks (`bbh_cot_fewshot`, version 4): the task's description, its three worked
//! examples, then `Q: ...\nA: Let's think step by step.\n`. Description and examples come from the authors' `cot-prompts`
//! folder beside the tasks. The answer is what follows the first `the answer is `, up to the last character of its line.

use std::path::{Path, PathBuf};

use pt_core::catalogue::OptionInfo;
use pt_data::read::{ReadOptions, read_all};
use serde_json::Value;

use crate::catalogue::{Benchmark, BenchmarkInfo, DATA, Loaded, MetricInfo};
use crate::error::{EvalError, Result};
use crate::item::{Answer, Ask, Item, Mark, Marks, Prompt};
use crate::source::Source;

const NAME: &str = "bbh";
const UNTIL: [&str; 3] = ["</s>", "Q", "\n\n"];
const PROMPTS: &str = "cot-prompts";
/// What stands before the answer.
const CUE: &str = "the answer is ";

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "reasoning tasks with worked examples",
    version: 1,
    source: "suzgunmirac/BIG-Bench-Hard; prompt and judgement of lm-evaluation-harness 0.4.13 `bbh_cot_fewshot` (version 4)",
    dataset: "(none: the folder `bbh` of suzgunmirac/BIG-Bench-Hard)",
    few_shot: 3,
    max_new_tokens: 1024,
    metrics: &[MetricInfo::share("exact_match", "the answer is the right one, letter for letter")],
    options: &[
        DATA,
        OptionInfo {
            name: "tasks",
            kind: "names with commas between",
            default: "",
            doc: "which tasks, as `navigate,snarks`; all",
        },
    ],
    load,
};

struct Bbh {
    items: Vec<Item>,
}

/// The folder with the tasks' files.
fn folder(source: &Source<'_>) -> Result<PathBuf> {
    let data = source.option("data").map(PathBuf::from);
    let root = source.settings.data_dir.as_ref();
    let folders = data.into_iter().chain(root.into_iter().flat_map(|root| [root.join(NAME), root.clone()]));
    let mut folders = folders.filter(|folder| folder.is_dir() && !tasks(folder).is_empty());
    folders.next().ok_or_else(|| source.no_data(&["boolean_expressions.json and so on"]))
}

/// The tasks in a folder: name and file.
fn tasks(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut tasks: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let task = name.strip_suffix(".json").or_else(|| name.strip_suffix(".json.gz"))?;
            Some((task.to_owned(), entry.path()))
        })
        .collect();
    tasks.sort();
    tasks
}

/// A task's description and worked examples, from its file in `cot-prompts`.
type Worked = (String, Vec<(String, String)>);

fn worked(source: &Source<'_>, folder: &Path, task: &str) -> Result<Worked> {
    let n_shots = source.few_shot();
    if n_shots == 0 {
        return Ok((String::new(), Vec::new()));
    }
    let path = folder.join(PROMPTS).join(format!("{task}.txt"));
    let text = std::fs::read_to_string(&path).map_err(EvalError::io("read", &path))?;
    // The first lines ask not to be trained on.
    let text = text.split_once("-----\n").map_or(text.as_str(), |(_, rest)| rest).trim();
    let mut parts = text.split("\n\nQ: ");
    let description = parts.next().unwrap_or_default();
    let shots: Vec<(String, String)> = parts
        .filter_map(|part| {
            let (question, answer) = part.split_once(STEP)?;
            Some((format!("Q: {question}{STEP}"), answer.to_owned()))
        })
        .collect();
    source.check_shots(n_shots, shots.len())?;
    Ok((format!("{description}\n\n"), shots.into_iter().take(n_shots).collect()))
}

const STEP: &str = "\nA: Let's think step by step.\n";

fn load(source: &Source<'_>) -> Result<Loaded> {
    let folder = folder(source)?;
    let options = ReadOptions { rows_key: Some("examples".to_owned()), ..ReadOptions::default() };
    let mut items = Vec::new();
    let tasks = tasks(&folder);
    source.check_names("tasks", &tasks.iter().map(|(task, _)| task.as_str()).collect::<Vec<_>>())?;
    for (task, path) in tasks.into_iter().filter(|(task, _)| source.wants("tasks", task)) {
        let (system, shots) = worked(source, &folder, &task)?;
        for (index, row) in read_all(&path.to_string_lossy(), &options)?.into_iter().enumerate() {
            items.push(Item {
                key: format!("{task}/{index}"),
                category: task.clone(),
                prompt: Prompt {
                    system: system.clone(),
                    shots: shots.clone(),
                    question: format!("Q: {}{STEP}", source.text(&row, &["input"])?),
                    delimiter: "",
                },
                ask: Ask::Reply {
                    until: UNTIL.map(str::to_owned).to_vec(),
                    max_new_tokens: source.max_new_tokens(),
                },
                gold: Value::String(source.text(&row, &["target"])?),
                row: row.value,
            });
        }
    }
    Ok(Loaded::Ruled(Box::new(Bbh { items })))
}

/// The harness' `(?<=the answer is )(.*)(?=.)`, first match: at the first cue with at least one character after it in its line.
fn extract(reply: &str) -> Option<String> {
    let mut from = 0;
    while let Some(at) = reply[from..].find(CUE) {
        from += at + CUE.len();
        let line = reply[from..].split('\n').next().unwrap_or_default();
        let mut chars = line.chars();
        if chars.next_back().is_some() {
            return Some(chars.as_str().trim().to_owned());
        }
    }
    None
}

impl Benchmark for Bbh {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        let found = extract(super::reply(answer).0);
        let gold = item.gold.as_str().unwrap_or_default();
        let reason = match &found {
            Some(found) => format!("answers {found}, expected {gold}"),
            None => format!("nothing after `{CUE}`, expected {gold}"),
        };
        let is_right = found.as_deref() == Some(gold);
        Marks { marks: vec![Mark::of("exact_match", is_right)], answer: found, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_as_the_harness_finds_them() {
        for (reply, expected) in [
            ("Z = False. So the answer is False.", Some("False")),
            ("So the answer is (B).\nthe answer is (C).", Some("(B)")),
            ("the answer is \nand the answer is 7 x", Some("7")),
            ("The answer: 7", None),
        ] {
            assert_eq!(extract(reply).as_deref(), expected, "{reply}");
        }
    }

    /// The completions of the authors' own runs have the answers their tables count.
    #[test]
    fn published_completions_are_judged() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        for (file, n_right) in [
            ("boolean_expressions_few_shot_template_0-255000.json.gz", 232),
            ("navigate_few_shot_template_0-255000.json.gz", 241),
        ] {
            let path = data.join("bbh/code-davinci-002-cot").join(file);
            let options = ReadOptions { rows_key: Some("outputs".to_owned()), ..ReadOptions::default() };
            let rows = read_all(&path.to_string_lossy(), &options).unwrap();
            let right = rows.iter().filter(|row| {
                let text = |name: &str| row.value[name].as_str().unwrap_or_default().trim().to_owned();
                extract(&text("prediction")).is_some_and(|found| found == text("target"))
            });
            assert_eq!((right.count(), rows.len()), (n_right, 250), "{file}");
        }
    }
}
