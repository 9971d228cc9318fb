//! Generated tasks: problems of the held-out split, made on the spot and checked by program (see `pt_tasks`).

use pt_tasks::{Form, GeneratedSource, Problem, Replies};
use serde_json::Value;

use crate::catalogue::{Benchmark, BenchmarkInfo, Loaded, MetricInfo};
use crate::error::{EvalError, Result};
use crate::item::{Answer, Ask, Item, Mark, Marks, Prompt};
use crate::source::Source;
use pt_core::catalogue::OptionInfo;

const NAME: &str = "generated";
/// Where the source does not say how many: enough for an interval of about seven points.
const N_PROBLEMS: usize = 200;

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "problems made on the spot, by the name of a task: `generated:sum?level=2&n=200`",
    version: 1,
    source: "pt-tasks; the problem alone, always from the held-out split, without repeats",
    dataset: "(none)",
    few_shot: 0,
    max_new_tokens: 128,
    metrics: &[MetricInfo::share("acc", "the check passes")],
    options: &[OptionInfo {
        name: "task",
        kind: "a generated task",
        default: "",
        doc: "what to make; `generated:sum` is short for it",
    }],
    load,
};

/// The held-out form of a task's name, every parameter written out.
pub(crate) fn canonical(written: &str) -> Result<String> {
    let GeneratedSource::Problems(mut source) = GeneratedSource::parse(written)? else {
        return Err(EvalError::Name {
            name: written.to_owned(),
            problem: "raw text has no answers to check".to_owned(),
        });
    };
    if !written.contains("n=") {
        source.n = N_PROBLEMS;
    }
    source.split = pt_tasks::Split::HeldOut;
    source.form = Form::PromptOnly;
    source.replies = Replies::default();
    source.unique = true;
    Ok(GeneratedSource::Problems(source).canonical())
}

struct Generated {
    items: Vec<Item>,
    problems: Vec<Problem>,
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    let Some(task) = source.option("task") else {
        return Err(EvalError::Missing {
            benchmark: NAME,
            what: "the name of a task",
            advice: "write it as generated:sum?level=2; `posttrain list tasks` has the names",
        });
    };
    source.check_shots(source.few_shot(), 0)?;
    let GeneratedSource::Problems(problems) = GeneratedSource::parse(&canonical(task)?)? else {
        unreachable!("a canonical name names problems");
    };
    let problems: Vec<Problem> = problems.problems()?.collect();
    let item = |(index, problem): (usize, &Problem)| Item {
        key: index.to_string(),
        category: format!("{}@{}", problem.family, problem.level),
        prompt: Prompt::bare(problem.prompt.clone()),
        ask: Ask::Reply { until: Vec::new(), max_new_tokens: source.max_new_tokens() },
        gold: Value::String(problem.answer.clone()),
        row: pt_data::Columns::from_iter([("problem".to_owned(), index.into())]),
    };
    let items = problems.iter().enumerate().map(item).collect();
    Ok(Loaded::Ruled(Box::new(Generated { items, problems })))
}

impl Benchmark for Generated {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        let index = item.row["problem"].as_u64().expect("an item was made with its place") as usize;
        let (reply, _) = super::reply(answer);
        let verdict = self.problems[index].check(reply);
        Marks {
            marks: vec![Mark::of("acc", verdict.passed())],
            answer: Some(reply.trim().to_owned()),
            reason: verdict.reason,
        }
    }
}
