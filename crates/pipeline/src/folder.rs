//! The run folder of a plan: begun, or continued if the plan is still the same.

use std::path::Path;

use pt_recipe::Plan;
use pt_run::{Event, RunFolder};
use serde_json::Value;

use crate::error::{PipelineError, PlanChange, Result};
use crate::run::RunOptions;

/// Opens the folder that the options name.
///
/// # Errors
/// [`PipelineError::RunExists`], [`PipelineError::PlanChanged`], and those of the run folder.
pub(crate) fn open_folder(plan: &Plan, options: &RunOptions) -> Result<RunFolder> {
    let path = &options.out;
    if path.join("plan.json").exists() {
        if !options.resume {
            return Err(PipelineError::RunExists { path: path.clone() });
        }
        expect_same_plan(path, plan)?;
        return Ok(RunFolder::open(path)?);
    }
    let mut folder = RunFolder::create(path, plan)?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    folder.event(&Event::Started { version, plan_hash: plan.hash() })?;
    Ok(folder)
}

fn expect_same_plan(path: &Path, plan: &Plan) -> Result<()> {
    let stored = RunFolder::read_plan(path)?;
    // Through text as the stored plan came, so that no number differs by the way it was read.
    let text = serde_json::to_string(plan).expect("a plan is plain JSON");
    let new: Value = serde_json::from_str(&text).expect("it was just written");
    let mut changes = Vec::new();
    differences(&stored, &new, "", &mut changes);
    changes.retain(|(pointer, _)| matters(&stored, &new, pointer));
    if changes.is_empty() {
        return Ok(());
    }
    let changes = changes.into_iter().map(|(_, change)| change).collect();
    Err(PipelineError::PlanChanged { path: path.to_owned(), changes })
}

/// Leaves that differ, as JSON pointers and as people read them.
fn differences(old: &Value, new: &Value, pointer: &str, found: &mut Vec<(String, PlanChange)>) {
    let step = |key: &str| format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let added = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(added) {
                let side =
                    |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                differences(&side(a), &side(b), &step(key), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &step(&i.to_string()), found);
            }
        }
        (old, new) if old == new => {}
        (old, new) => {
            let key = pointer.trim_start_matches('/').replace('/', ".");
            found.push((pointer.to_owned(), PlanChange { key, old: shown(old), new: shown(new) }));
        }
    }
}

/// Whether the plan's hash sees the difference at `pointer`: estimates, names and how checkpoints are kept may change.
fn matters(old: &Value, new: &Value, pointer: &str) -> bool {
    let mut changed = old.clone();
    let (Some(place), Some(value)) = (changed.pointer_mut(pointer), new.pointer(pointer)) else {
        return true;
    };
    *place = value.clone();
    let hash = |value: &Value| serde_json::from_value::<Plan>(value.clone()).map(|plan| plan.hash()).ok();
    match (hash(old), hash(&changed)) {
        (Some(before), Some(after)) => before != after,
        _ => true,
    }
}

fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = match value {
        Value::Array(items) if items.iter().any(Value::is_object) => format!("{} entries", items.len()),
        Value::Object(_) => "given".to_owned(),
        Value::Null => "none".to_owned(),
        value => value.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}
