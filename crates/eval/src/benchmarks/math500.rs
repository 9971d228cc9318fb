//! MATH-500 (Hendrycks et al. 2021, arXiv:2103.03874; the 500 of Lightman et al. 2023): competition mathematics.
//!
//! Asked as lm-evaluation-harness 0.4.13 asks (`hendrycks_math500`): `Problem: ...\nAnswer:`, without examples. Judged by the
//! verifier `math`, which compares values: the harness compares texts after rewriting them, and so fails `2/4` where
//! `\frac{1}{2}` is asked for. Use `--chat` for models that write a solution with its answer in a box.

use pt_verify::Verifier;
use serde_json::Value;

use crate::catalogue::{Benchmark, BenchmarkInfo, DATA, Loaded, MetricInfo};
use crate::error::Result;
use crate::item::{Answer, Ask, Item, Mark, Marks, Prompt};
use crate::source::Source;

const NAME: &str = "math500";

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "competition mathematics with answers in LaTeX",
    version: 1,
    source: "hendrycks/math; prompt of lm-evaluation-harness 0.4.13 `hendrycks_math500`; judged as mathematics, not as text",
    dataset: "HuggingFaceH4/MATH-500",
    few_shot: 0,
    max_new_tokens: 512,
    metrics: &[MetricInfo::share("acc", "the final answer equals the gold answer")],
    options: &[DATA],
    load,
};

struct Math500 {
    items: Vec<Item>,
    verifier: Box<dyn Verifier>,
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    source.check_shots(source.few_shot(), 0)?;
    let rows = source.rows(&["test.jsonl", "math.jsonl"], "test", None)?;
    let mut items = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        let problem = source.text(&row, &["problem"])?;
        let gold = source.text(&row, &["solution", "answer"])?;
        let category = source.text(&row, &["subject", "type"]).unwrap_or_else(|_| NAME.to_owned());
        let until = vec!["Problem:".to_owned()];
        items.push(Item {
            key: source.text(&row, &["unique_id", "id"]).unwrap_or_else(|_| index.to_string()),
            category,
            prompt: Prompt {
                question: format!("Problem: {problem}\nAnswer:"),
                delimiter: " ",
                ..Prompt::default()
            },
            ask: Ask::Reply { until, max_new_tokens: source.max_new_tokens() },
            gold: Value::String(gold),
            row: row.value,
        });
    }
    let verifier = pt_verify::build("math", &toml::Table::new())?;
    Ok(Loaded::Ruled(Box::new(Math500 { items, verifier })))
}

impl Benchmark for Math500 {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        let verdict = self.verifier.verify(&super::question(item, answer, Some(&item.gold)));
        let marks = verdict.score.iter().map(|_| Mark::of("acc", verdict.is_pass())).collect();
        let said = super::reply(answer).0;
        let boxed = said.rfind("\\boxed").map_or_else(|| said.trim(), |at| &said[at..]);
        let last = boxed.lines().last().unwrap_or_default().trim();
        let answer = (!last.is_empty()).then(|| last.to_owned());
        Marks { marks, answer, reason: verdict.reason }
    }
}
