//! MBPP (Austin et al. 2021, arXiv:2108.07732): short Python functions, run against three asserts.
//!
//! Asked as lm-evaluation-harness 0.4.13 asks (`mbpp`, version 1): three solved tasks (ids 2, 3, 4), then the task with its
//! asserts and `[BEGIN]`; the reply ends at `[DONE]`. The test split is ids 11 to 510. Programs run in the sandbox, where the
//! tests are out of their reach; the harness runs both in one process.

use super::program::{METRIC, OPTIONS, Programs};
use crate::catalogue::{BenchmarkInfo, Loaded, MetricInfo};
use crate::error::Result;
use crate::item::{Ask, Item, Prompt};
use crate::source::Source;
use pt_data::Row;

const NAME: &str = "mbpp";
/// The solved tasks, in order.
const SHOT_IDS: [u64; 3] = [2, 3, 4];
const TEST_IDS: std::ops::RangeInclusive<u64> = 11..=510;

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "short Python functions, run against their tests",
    version: 1,
    source: "google-research/mbpp; prompt of lm-evaluation-harness 0.4.13 `mbpp` (version 1); run in the sandbox",
    dataset: "google-research-datasets/mbpp",
    few_shot: 3,
    max_new_tokens: 256,
    metrics: &[MetricInfo::share(METRIC, "the program passes all tests")],
    options: OPTIONS,
    load,
};

fn id_of(source: &Source<'_>, row: &Row) -> Result<u64> {
    let id = row.value.get("task_id").and_then(serde_json::Value::as_u64);
    id.ok_or_else(|| source.bad_row(row, &["task_id"], row.value.get("task_id")))
}

fn question(source: &Source<'_>, row: &Row) -> Result<String> {
    let tests = source.list(row, &["test_list"])?;
    if tests.len() < 3 {
        return Err(source.bad_row(row, &["test_list"], row.value.get("test_list")));
    }
    let text = source.text(row, &["text", "prompt"])?;
    Ok(format!(
        "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{}\n[BEGIN]\n",
        tests[..3].join("\n")
    ))
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    let rows = source.rows(&["mbpp.jsonl"], "test", Some("full"))?;
    let n_shots = source.few_shot();
    source.check_shots(n_shots, SHOT_IDS.len())?;
    let shots =
        SHOT_IDS[..n_shots].iter().map(|id| solved(source, &rows, *id)).collect::<Result<Vec<_>>>()?;
    let mut items = Vec::new();
    for row in rows {
        let id = id_of(source, &row)?;
        if !TEST_IDS.contains(&id) {
            continue;
        }
        items.push(Item {
            key: id.to_string(),
            category: NAME.to_owned(),
            prompt: Prompt { shots: shots.clone(), question: question(source, &row)?, ..Prompt::default() },
            ask: Ask::Reply { until: vec!["[DONE]".to_owned()], max_new_tokens: source.max_new_tokens() },
            gold: row.value.get("test_list").cloned().unwrap_or_default(),
            row: row.value,
        });
    }
    Ok(Loaded::Ruled(Box::new(Programs::new(source, items, true)?)))
}

/// A solved task: of the rows at hand, or of the split for prompts.
fn solved(source: &Source<'_>, rows: &[Row], id: u64) -> Result<(String, String)> {
    let is_it = |row: &&Row| row.value.get("task_id").and_then(serde_json::Value::as_u64) == Some(id);
    let prompts = match rows.iter().find(is_it) {
        Some(row) => vec![row.clone()],
        None => source.rows(&["prompt.jsonl"], "prompt", Some("full"))?,
    };
    let row = prompts.iter().find(is_it).ok_or(crate::EvalError::Missing {
        benchmark: NAME,
        what: "the solved tasks 2, 3 and 4, which are its examples",
        advice: "give the whole file (ids 1 to 974), or ask without examples: --few-shot 0",
    })?;
    Ok((question(source, row)?, format!("{}\n[DONE]", source.text(row, &["code"])?)))
}
