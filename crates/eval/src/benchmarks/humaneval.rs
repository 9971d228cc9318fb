//! HumanEval (Chen et al. 2021, arXiv:2107.03374): Python functions from their signature and documentation.
//!
//! Asked as lm-evaluation-harness 0.4.13 asks (`humaneval`, version 1): the beginning of the program is continued, up to the
//! next definition at the margin. With `--chat` the program is the reply's last fenced block. Run in the sandbox. For pass@k draw
//! several replies: `--samples 10 --temperature 0.8`.

use super::program::{METRIC, OPTIONS, Programs};
use crate::catalogue::{BenchmarkInfo, Loaded, MetricInfo};
use crate::error::Result;
use crate::item::{Ask, Item, Prompt};
use crate::source::Source;

const NAME: &str = "humaneval";
const UNTIL: [&str; 5] = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"];

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "Python functions from their documentation, run against their tests",
    version: 1,
    source: "openai/human-eval; prompt of lm-evaluation-harness 0.4.13 `humaneval` (version 1); run in the sandbox",
    dataset: "openai/openai_humaneval",
    few_shot: 0,
    max_new_tokens: 1024,
    metrics: &[MetricInfo::share(METRIC, "the program passes all tests")],
    options: OPTIONS,
    load,
};

fn load(source: &Source<'_>) -> Result<Loaded> {
    source.check_shots(source.few_shot(), 0)?;
    let rows = source.rows(&["HumanEval.jsonl", "example_problem.jsonl"], "test", None)?;
    let is_chat = source.settings.chat;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        let prompt = source.text(&row, &["prompt"])?;
        // A reply in a chat begins again from the signature, so nothing at the margin ends it.
        let (question, until) = match is_chat {
            true => (format!("Complete this Python function.\n\n```python\n{prompt}```\n"), Vec::new()),
            false => (prompt, UNTIL.map(str::to_owned).to_vec()),
        };
        items.push(Item {
            key: source.text(&row, &["task_id"])?,
            category: NAME.to_owned(),
            prompt: Prompt::bare(question),
            ask: Ask::Reply { until, max_new_tokens: source.max_new_tokens() },
            gold: row.value.get("test").cloned().unwrap_or_default(),
            row: row.value,
        });
    }
    Ok(Loaded::Ruled(Box::new(Programs::new(source, items, is_chat)?)))
}
