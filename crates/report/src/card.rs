//! A model card in Hugging Face's form: YAML that the hub reads, then Markdown for people.
//!
//! What only a person can say (what the model is for, its licence) is marked `TO BE WRITTEN`, never invented.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::page::gains;
use crate::read::{RunData, StageData};
use crate::text::{compact, count, number, percent, points, short_task};
use crate::{Paired, ReportError};

/// The line by which a card of ours is known, so that only such a card is ever replaced.
pub const CARD_MARK: &str =
    "<!-- written by `posttrain report --card`; edits below are lost when it is written again -->";

/// Model card of a stage's result (`None`: the last stage that is complete).
///
/// Returns the card and the folder of the result, relative to the run.
///
/// # Errors
/// [`ReportError::NoStage`].
pub fn card(
    run: &RunData,
    stage: Option<&str>,
    paired: Paired,
) -> Result<(String, std::path::PathBuf), ReportError> {
    let is_it = |s: &&StageData| match stage {
        Some(name) => s.name() == name || s.label == name,
        // The last that left a model: what came after it looked at it.
        None => s.outcome.as_ref().is_some_and(|outcome| {
            outcome.output.as_os_str().is_empty()
                || outcome.output.ends_with("model")
                || outcome.output.ends_with("adapter")
        }),
    };
    let found = run.stages.iter().rposition(|s| is_it(&s)).ok_or_else(|| ReportError::NoStage {
        name: stage.unwrap_or("(complete)").to_owned(),
        known: run.stages.iter().map(|s| s.label.clone()).collect(),
    })?;
    let stages = &run.stages[..=found];
    let last = &run.stages[found];
    let output = last
        .outcome
        .as_ref()
        .map(|outcome| outcome.output.clone())
        .filter(|output| !output.as_os_str().is_empty());
    let output = output.unwrap_or_else(|| ["stages", &last.label, "model"].iter().collect());
    let mut out = front_matter(run, stages, paired);
    let _ = write!(out, "\n{CARD_MARK}\n\n# {}\n\n", plain(&run.name()));
    introduction(&mut out, run, stages);
    results(&mut out, stages, paired);
    evaluations(&mut out, &run.stages);
    procedure(&mut out, run, stages);
    closing(&mut out, run);
    Ok((out, output))
}

/// A name on the hub, not a folder on a disk.
fn is_hub_name(name: &str) -> bool {
    let mut parts = name.split('/');
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let two =
        parts.next().is_some_and(is_part) && parts.next().is_some_and(is_part) && parts.next().is_none();
    let is_file = [".jsonl", ".json", ".parquet", ".csv", ".txt"].iter().any(|end| name.ends_with(end));
    two && !name.starts_with('.') && !is_file
}

/// JSON is YAML too, and cannot be misread; quoting of names is JSON's.
fn yaml(value: &Value) -> String {
    value.to_string()
}

fn front_matter(run: &RunData, stages: &[StageData], paired: Paired) -> String {
    let last = stages.last();
    let is_adapter = last.is_some_and(|stage| !stage.plan["lora"].is_null());
    let mut out = "---\n".to_owned();
    match run.plan["model"]["base"].as_str().filter(|base| is_hub_name(base)) {
        Some(base) => {
            let _ = writeln!(out, "base_model: {}", yaml(&json!(base)));
            let _ = writeln!(out, "base_model_relation: {}", if is_adapter { "adapter" } else { "finetune" });
        }
        None => out.push_str("# base_model: TO BE WRITTEN if there is one on the hub\n"),
    }
    let _ = writeln!(out, "library_name: {}", if is_adapter { "peft" } else { "transformers" });
    out.push_str("pipeline_tag: text-generation\n# license: TO BE WRITTEN\n");
    let mut datasets: Vec<&str> = Vec::new();
    for source in stages.iter().flat_map(sources) {
        let name = source["source"].as_str().unwrap_or_default();
        if is_hub_name(name) && !datasets.contains(&name) {
            datasets.push(name);
        }
    }
    list(&mut out, "datasets", &datasets);
    let kinds: Vec<&str> = stages.iter().map(StageData::kind).filter(|kind| !kind.is_empty()).collect();
    let mut tags = vec!["posttrain"];
    tags.extend(
        kinds.iter().enumerate().filter(|(i, kind)| !kinds[..*i].contains(kind)).map(|(_, kind)| *kind),
    );
    list(&mut out, "tags", &tags);
    let results: Vec<Value> = last.map(|stage| index(stage, paired)).unwrap_or_default();
    if !results.is_empty() {
        list(&mut out, "metrics", &["accuracy"]);
        let _ = writeln!(out, "model-index: {}", yaml(&json!([{"name": run.name(), "results": results}])));
    }
    out + "---\n"
}

fn list(out: &mut String, key: &str, values: &[&str]) {
    if !values.is_empty() {
        let _ = writeln!(out, "{key}:");
        for value in values {
            let _ = writeln!(out, "- {}", yaml(&json!(value)));
        }
    }
}

fn sources(stage: &StageData) -> impl Iterator<Item = &Value> {
    stage.plan["data"]["train"].as_array().into_iter().flatten()
}

fn index(stage: &StageData, paired: Paired) -> Vec<Value> {
    let result = |gain: &crate::TaskGain| {
        json!({
            "task": {"type": "text-generation"},
            "dataset": {"name": short_task(&gain.task), "type": gain.task},
            "metrics": [{"type": "accuracy", "value": gain.after, "name": "accuracy"}],
        })
    };
    gains(stage, paired).iter().map(result).collect()
}

/// Text for Markdown: no markup of its own.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Text between backticks, which it must not close.
fn code(text: &str) -> String {
    format!("`{}`", text.replace(['`', '\n', '|'], " "))
}

fn introduction(out: &mut String, run: &RunData, stages: &[StageData]) {
    let model = &run.plan["model"];
    let base = match (model["base"].as_str(), model["new"]["architecture"].as_str()) {
        (Some(base), _) => format!("from {}", code(base)),
        (None, Some(architecture)) => {
            format!("from random weights of the architecture {}", code(architecture))
        }
        _ => "from an unknown base".to_owned(),
    };
    let parameters =
        model["parameters"].as_f64().map_or_else(String::new, |n| format!(" ({} parameters)", compact(n)));
    let names: Vec<String> = stages.iter().map(|stage| stage.title().to_owned()).collect();
    let _ = write!(
        out,
        "Trained with posttrain {base}{parameters} in {}: {}.\n\n\
         ## Intended use\n\n**TO BE WRITTEN**: what the model is for, and for whom.\n\n\
         ## Out of scope, risks and limitations\n\n**TO BE WRITTEN**: what it must not be used for; what it gets wrong. The results below are all \
         that was measured; nothing is known beyond them.\n\n",
        if stages.len() == 1 { "one stage".to_owned() } else { format!("{} stages", stages.len()) },
        names.join(", ")
    );
}

fn results(out: &mut String, stages: &[StageData], paired: Paired) {
    out.push_str("## Results\n\n");
    let all: Vec<_> = stages
        .iter()
        .flat_map(|stage| gains(stage, paired).into_iter().map(move |gain| (stage, gain)))
        .collect();
    if all.is_empty() {
        out.push_str("No task was measured before and after a stage.\n\n");
        return;
    }
    out.push_str(
        "Accuracy on held-out problems before and after each stage. The change is in points with its paired 95 % interval; *p* is of \
         the exact McNemar test.\n\n| stage | task | problems | before | after | change | p |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for (stage, gain) in &all {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} [{}, {}] | {} |",
            plain(stage.name()),
            plain(&short_task(&gain.task)),
            count(gain.n as u64),
            percent(gain.before),
            percent(gain.after),
            points(gain.difference),
            points(gain.interval95.0),
            points(gain.interval95.1),
            number(gain.p_value),
        );
    }
    out.push_str("\nThe tasks in full:\n\n");
    let mut tasks: Vec<&str> = Vec::new();
    for (_, gain) in &all {
        if !tasks.contains(&gain.task.as_str()) {
            tasks.push(&gain.task);
            let _ = writeln!(out, "- {}", code(&gain.task));
        }
    }
    out.push('\n');
}

/// What eval stages measured: a row for each benchmark, a column for each model.
fn evaluations(out: &mut String, stages: &[StageData]) {
    for outcome in stages.iter().filter_map(|stage| stage.outcome.as_ref()).filter(|o| !o.measures.is_empty())
    {
        let table = crate::evaluation::Table::of(&outcome.measures);
        let _ =
            write!(out, "Benchmarks, with 95 % intervals.\n\n| benchmark | {} |\n", table.models.join(" | "));
        let _ = writeln!(out, "| --- |{}", " ---: |".repeat(table.models.len()));
        for row in &table.rows {
            let cells = row.cells.iter().map(|cell| match cell {
                None => "–".to_owned(),
                Some(measure) => match measure.interval95 {
                    Some((low, high)) => {
                        format!("{} [{}, {}]", number(measure.value), number(low), number(high))
                    }
                    None => number(measure.value),
                },
            });
            let _ = writeln!(
                out,
                "| {} {} | {} |",
                code(&row.benchmark),
                plain(&row.metric),
                cells.collect::<Vec<_>>().join(" | ")
            );
        }
        out.push('\n');
    }
}

fn procedure(out: &mut String, run: &RunData, stages: &[StageData]) {
    out.push_str("## Training procedure\n\n");
    for stage in stages {
        let plan = &stage.plan;
        let _ = write!(out, "### {}: {}\n\n", plain(stage.name()), plain(stage.title()));
        let text = |at: &str| plan.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let n = |at: &str| plan.pointer(at).and_then(Value::as_f64).map(number);
        let facts = [
            ("method", text("/train/method")),
            ("objective", text("/objective/type")),
            ("optimizer", text("/optimizer/type")),
            ("learning rate", n("/schedule/learning_rate")),
            ("schedule", text("/schedule/type")),
            ("steps", n("/steps")),
            ("epochs", n("/train/epochs")),
            ("LoRA rank", n("/lora/rank")),
            ("trainable parameters", n("/trainable_parameters")),
            ("tokens", stage.last("num_tokens").map(compact)),
            ("held-out loss", stage.last("eval_loss").map(number)),
        ];
        for (name, value) in facts.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            let _ = writeln!(out, "- {name}: {}", plain(value));
        }
        for source in sources(stage) {
            let n = |key: &str| source[key].as_u64().map_or_else(|| "?".to_owned(), count);
            let name = source["source"].as_str().unwrap_or("?");
            let _ = writeln!(out, "- data: {}, {} rows, {} tokens", code(name), n("rows"), n("tokens"));
        }
        out.push('\n');
    }
    if let Some(seed) = run.plan["seed"].as_u64() {
        let _ = write!(out, "Seed {seed}.\n\n");
    }
}

fn closing(out: &mut String, run: &RunData) {
    let _ =
        write!(out, "## Framework versions\n\n- posttrain {}\n", plain(run.version().unwrap_or("(unknown)")));
    if let Some(hash) = run.plan_hash() {
        let _ = writeln!(out, "- plan {}", code(hash));
    }
    out.push_str("\nThe whole plan, metrics and answers are in the run folder; `posttrain report RUN` makes a page of them.\n");
}
