//! `posttrain list`: everything that can be chosen, from the catalogues themselves.

use std::io::{self, Write};

use clap::ValueEnum;
use pt_core::catalogue::OptionInfo;
use pt_data::layout::LAYOUTS;
use pt_kernels::isa::{self, Isa};
use pt_models::ARCHITECTURES;
use pt_objectives::OBJECTIVES;
use pt_optim::{OPTIMISERS, SCHEDULES};
use pt_recipe::{Fallback, Kind, STAGE_TYPES, documented_keys};
use pt_tasks::FAMILIES;
use serde_json::{Map, Value, json};

use crate::Context;
use crate::ui::{self, Style, Table};

const HELP: &str = "\
Examples:
  posttrain list objectives
  posttrain list keys | grep learning_rate
  posttrain list layouts --json | jq -r '.[].name'";

/// Options of `list`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Of what
    #[arg(value_enum, value_name = "KIND")]
    kind: Listed,
    /// As a JSON array of objects
    #[arg(long)]
    json: bool,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Listed {
    /// What training minimises.
    Objectives,
    /// How gradients become updates.
    Optimizers,
    /// The learning rate over time.
    Schedules,
    /// Model architectures that are understood.
    Models,
    /// Dataset layouts that are recognised.
    Layouts,
    /// Problems that can be generated and checked.
    Tasks,
    /// What replies are judged by: the rewards of stages that sample.
    Verifiers,
    /// What answers a model between its turns, in stages that sample.
    Environments,
    /// Tools that come with the environment `tools`.
    Tools,
    /// Types of a recipe's stages.
    Stages,
    /// Every key of a recipe.
    Keys,
    /// Instruction sets.
    Isas,
}

/// One entry of a catalogue.
struct Entry {
    name: String,
    summary: String,
    /// More about it: a label and a text.
    details: Vec<(&'static str, String)>,
    options: &'static [OptionInfo],
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let entries = entries(args.kind);
    let mut out = io::stdout().lock();
    if args.json {
        let list: Vec<Value> = entries.iter().map(Entry::to_json).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
    } else {
        write!(out, "{}", to_text(&entries, ui::screen_width(&context.environment), context.style))?;
    }
    Ok(())
}

fn entries(kind: Listed) -> Vec<Entry> {
    match kind {
        Listed::Objectives => objectives(),
        Listed::Optimizers => optimizers(),
        Listed::Schedules => schedules(),
        Listed::Models => models(),
        Listed::Layouts => layouts(),
        Listed::Tasks => tasks(),
        Listed::Verifiers => verifiers(),
        Listed::Environments => environments(),
        Listed::Tools => tools(),
        Listed::Stages => stages(),
        Listed::Keys => keys(),
        Listed::Isas => isas(),
    }
}

fn objectives() -> Vec<Entry> {
    let entry = |info: &pt_objectives::ObjectiveInfo| {
        Entry::new(info.name, info.summary)
            .with("loss", info.equation)
            .with("source", info.source)
            .with_options(info.options)
    };
    OBJECTIVES.iter().map(entry).collect()
}

fn optimizers() -> Vec<Entry> {
    let entry = |info: &pt_optim::OptimiserInfo| {
        Entry::new(info.name, info.summary).with("source", info.source).with_options(info.options)
    };
    OPTIMISERS.iter().map(entry).collect()
}

fn schedules() -> Vec<Entry> {
    let source = "keys: `posttrain list keys`, section stage.schedule";
    SCHEDULES.iter().map(|info| Entry::new(info.name, info.summary).with("see", source)).collect()
}

fn models() -> Vec<Entry> {
    let entry = |a: &pt_models::Architecture| {
        Entry::new(a.model_type, a.summary).with("class", a.class_name).with("models", a.notes)
    };
    ARCHITECTURES.iter().map(entry).collect()
}

fn layouts() -> Vec<Entry> {
    let entry = |layout: &pt_data::layout::Layout| {
        let entry = Entry::new(layout.name, layout.summary).with("columns", layout.columns.join(", "));
        let entry = if layout.optional.is_empty() {
            entry
        } else {
            entry.with("optional", layout.optional.join(", "))
        };
        entry.with("example", layout.example)
    };
    LAYOUTS.iter().map(entry).collect()
}

fn tasks() -> Vec<Entry> {
    let entry = |family: &pt_tasks::Family| {
        let mut entry = Entry::new(family.name, family.summary).with(
            "source",
            format!("generated:{}?level=1-{}&n=1000&seed=0", family.name, family.levels.len()),
        );
        for (i, level) in family.levels.iter().enumerate() {
            entry = entry.with("level", format!("{}: {}", i + 1, level.summary));
        }
        if family.name == pt_tasks::guess::NAME {
            let plays = pt_tasks::guess::Play::NAMES.join(", ");
            entry = entry
                .with(
                    "whole games",
                    format!("generated:{}?form=transcript&play=halving&turns=8", family.name),
                )
                .with("plays", plays);
        }
        entry
    };
    let mix = Entry::new("mix", "several families, each with levels and a weight")
        .with("source", "generated:mix?families=sum,letters@1-2:3,chat@2&n=1000");
    let raw = Entry::new("raw", "plain text for pre-training, with the words and numbers of the tasks")
        .with("source", "generated:raw?chars=100000&seed=0");
    FAMILIES.iter().map(entry).chain([mix, raw]).collect()
}

fn verifiers() -> Vec<Entry> {
    let entry = |info: &pt_verify::VerifierInfo| {
        Entry::new(info.name, info.summary).with("reads", info.reads).with_options(info.options)
    };
    let local = |info: &pt_pipeline::rl::LocalVerifier| {
        Entry::new(info.name, info.summary).with("reads", info.reads).with_options(info.options)
    };
    let all = pt_verify::VERIFIERS.iter().map(entry);
    all.chain(pt_pipeline::rl::LOCAL_VERIFIERS.iter().map(local)).collect()
}

fn environments() -> Vec<Entry> {
    let entry = |info: &pt_environments::EnvironmentInfo| {
        Entry::new(info.name, info.summary).with("reads", info.reads).with_options(info.options)
    };
    pt_environments::ENVIRONMENTS.iter().map(entry).collect()
}

fn tools() -> Vec<Entry> {
    pt_environments::TOOLS
        .iter()
        .map(|info| Entry::new(info.name, info.summary).with("named by", "environment.tools"))
        .collect()
}

fn stages() -> Vec<Entry> {
    let entry = |stage: &pt_recipe::StageType| {
        let rates = format!(
            "{:e} for every weight, {:e} for adapters",
            stage.learning_rate_full, stage.learning_rate_adapter
        );
        Entry::new(stage.name, stage.doc)
            .with("objective", stage.objective)
            .with("epochs", stage.epochs.to_string())
            .with("learning rate", rates)
            .with("packing", stage.packing.as_str())
    };
    let work = |work: &pt_recipe::WorkType| {
        Entry::new(work.name, work.doc).with("sections", work.sections.join(", "))
    };
    STAGE_TYPES.iter().map(entry).chain(pt_recipe::WORK_TYPES.iter().map(work)).collect()
}

fn keys() -> Vec<Entry> {
    let entry = |key: &pt_recipe::KeyDoc| {
        let default = match key.default {
            Fallback::Required { example } => format!("none, it is required; for example {example}"),
            Fallback::Value(value) => value.to_owned(),
            Fallback::Derived { rule, .. } => rule.to_owned(),
        };
        Entry::new(key.path(), key.doc).with("value", accepted(&key.kind)).with("default", default)
    };
    documented_keys().map(entry).collect()
}

fn accepted(kind: &Kind) -> String {
    match kind {
        Kind::String => "text".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Int { min, max } => format!("whole number from {min} to {max}"),
        Kind::Float { min, max } => format!("number from {min:?} to {max:?}"),
        Kind::Choice(names) => names.join(", "),
        Kind::Component(kind) => {
            format!("a name of `posttrain list {}s`", format!("{kind:?}").to_lowercase())
        }
        Kind::Strings => "text, or list of texts".to_owned(),
        Kind::Floats => "a list of numbers".to_owned(),
        Kind::StringTable => "table from text to text".to_owned(),
        Kind::Sources => "source, or list of sources".to_owned(),
    }
}

fn isas() -> Vec<Entry> {
    let summary = |isa: Isa| match isa {
        Isa::Portable => "what every machine of this kind has",
        Isa::Avx2 => "AVX2 with FMA",
        Isa::Avx512 => "AVX-512 F, BW, DQ and VL",
        Isa::Avx512Bf16 => "AVX-512 with products of bf16",
    };
    let state = |isa: Isa| match isa {
        isa if isa == isa::current() => "in use",
        isa if isa <= isa::best() => "available",
        _ => "not on this machine",
    };
    Isa::ALL.into_iter().map(|isa| Entry::new(isa.name(), summary(isa)).with("here", state(isa))).collect()
}

impl Entry {
    fn new(name: impl Into<String>, summary: impl Into<String>) -> Entry {
        Entry { name: name.into(), summary: summary.into(), details: Vec::new(), options: &[] }
    }

    fn with(mut self, label: &'static str, text: impl Into<String>) -> Entry {
        self.details.push((label, text.into()));
        self
    }

    fn with_options(self, options: &'static [OptionInfo]) -> Entry {
        Entry { options, ..self }
    }

    /// Details of one label are a text, of a label that comes again a list.
    fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("name".to_owned(), json!(self.name));
        map.insert("summary".to_owned(), json!(self.summary));
        for (label, text) in &self.details {
            let key = label.replace(' ', "_");
            match map.get_mut(&key) {
                None => drop(map.insert(key, json!(text))),
                Some(Value::Array(list)) => list.push(json!(text)),
                Some(value) => *value = json!([value, text]),
            }
        }
        if !self.options.is_empty() {
            let options = self
                .options
                .iter()
                .map(|o| json!({"name": o.name, "kind": o.kind, "default": o.default, "doc": o.doc}));
            map.insert("options".to_owned(), options.collect());
        }
        Value::Object(map)
    }
}

fn to_text(entries: &[Entry], width: usize, style: Style) -> String {
    let left = entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0);
    // Long names, as of keys, would leave no room beside them.
    let left = left.min(width / 3);
    let mut out = String::new();
    for entry in entries {
        let n_chars = entry.name.chars().count();
        let indent = " ".repeat(left + 2);
        let mut lines = ui::wrap(&entry.summary, width - left - 2).into_iter();
        let first = if n_chars > left {
            String::from("\n")
        } else {
            let padding = " ".repeat(left - n_chars + 2);
            format!("{padding}{}\n", lines.next().unwrap_or_default())
        };
        out += &format!("{}{first}", style.name(&entry.name));
        lines.for_each(|line| out += &format!("{indent}{line}\n"));
        for (label, text) in &entry.details {
            for line in ui::wrap(&format!("{label}: {text}"), width - left - 2) {
                out += &format!("{indent}{}\n", style.dim(&line));
            }
        }
        if !entry.options.is_empty() {
            let mut table = Table::new(left + 4);
            for o in entry.options {
                let default =
                    if o.default.is_empty() { String::new() } else { format!(" [default: {}]", o.default) };
                table.row(o.name, format!("{} ({}){default}", o.doc, o.kind));
            }
            out += &table.render(width, style);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_has_entries_with_unique_names_and_summaries() {
        for kind in Listed::value_variants() {
            let entries = entries(*kind);
            let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            assert!(!names.is_empty(), "{kind:?}");
            assert!(
                entries.iter().all(|entry| !entry.summary.is_empty() && !entry.details.is_empty()),
                "{kind:?}"
            );
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), entries.len(), "{kind:?}");
            let text = to_text(&entries, 80, Style::new(false));
            let word = |line: &str| line.split_whitespace().next().map_or(0, str::len);
            for line in text.lines().filter(|line| line.chars().count() > 80) {
                let longest = line.split_whitespace().map(str::len).max().unwrap_or_else(|| word(line));
                assert!(longest > 40, "{kind:?}: a line that could be wrapped: {line}");
            }
        }
    }
}
