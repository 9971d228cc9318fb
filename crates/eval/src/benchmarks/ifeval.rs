//! IFEval (Zhou et al. 2023, arXiv:2311.07911): instructions whose following a program can check.
//!
//! Prompt and metrics as lm-evaluation-harness 0.4.13 (`ifeval`, version 4); the verifier's documentation names where it
//! differs. A prompt with an instruction that cannot be judged is left out and counted as skipped.

use pt_verify::{Verdict, Verifier};
use serde_json::Value;

use crate::catalogue::{Benchmark, BenchmarkInfo, DATA, Loaded, MetricInfo};
use crate::error::Result;
use crate::item::{Answer, Ask, Item, Mark, Marks, Prompt};
use crate::source::Source;

const NAME: &str = "ifeval";

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "instructions whose following a program can check",
    version: 1,
    source: "google-research/instruction_following_eval; prompt and judgement of lm-evaluation-harness 0.4.13 `ifeval` \
             (version 4)",
    dataset: "google/IFEval",
    few_shot: 0,
    max_new_tokens: 1280,
    metrics: &[
        MetricInfo::share("prompt_level_strict_acc", "prompts all of whose instructions are followed"),
        MetricInfo::share("inst_level_strict_acc", "instructions that are followed"),
        MetricInfo::share("prompt_level_loose_acc", "the same, first and last line and asterisks left away"),
        MetricInfo::share("inst_level_loose_acc", "the same for instructions"),
    ],
    options: &[DATA],
    load,
};

struct IfEval {
    items: Vec<Item>,
    strict: Box<dyn Verifier>,
    loose: Box<dyn Verifier>,
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    source.check_shots(source.few_shot(), 0)?;
    let rows = source.rows(&["input_data.jsonl", "ifeval_input_data.jsonl"], "train", None)?;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        let ids = source.list(&row, &["instruction_id_list"])?;
        let group = ids.first().and_then(|id| id.split(':').next()).unwrap_or(NAME).to_owned();
        items.push(Item {
            key: source.text(&row, &["key"])?,
            category: group,
            prompt: Prompt::bare(source.text(&row, &["prompt"])?),
            ask: Ask::Reply { until: Vec::new(), max_new_tokens: source.max_new_tokens() },
            gold: Value::from(ids),
            row: row.value,
        });
    }
    let loose = toml::Table::from_iter([("loose".to_owned(), true.into())]);
    Ok(Loaded::Ruled(Box::new(IfEval {
        items,
        strict: pt_verify::build("ifeval", &toml::Table::new())?,
        loose: pt_verify::build("ifeval", &loose)?,
    })))
}

fn marks(verdict: &Verdict, [prompt, instruction]: [&'static str; 2]) -> Vec<Mark> {
    let weight = verdict.parts.len() as f64;
    let value = verdict.score.unwrap_or_default();
    vec![Mark::of(prompt, verdict.is_pass()), Mark { metric: instruction, value, weight }]
}

impl Benchmark for IfEval {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        let question = super::question(item, answer, None);
        let (strict, loose) = (self.strict.verify(&question), self.loose.verify(&question));
        if strict.score.is_none() || loose.score.is_none() {
            return Marks { reason: strict.reason, ..Marks::default() };
        }
        let mut all = marks(&strict, ["prompt_level_strict_acc", "inst_level_strict_acc"]);
        all.extend(marks(&loose, ["prompt_level_loose_acc", "inst_level_loose_acc"]));
        Marks { marks: all, answer: None, reason: strict.reason }
    }
}
