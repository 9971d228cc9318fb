//! How the stages of a run know each other: where each lies, what each reads, and the key that decides whether it is done already.
//!
//! A stage's *key* is a hash of everything that decides what it makes: what the stage is by itself, and the keys of what it reads.
//! A changed stage has another key, and so have those that read it, directly or through others; the rest keep theirs. The tokenizer
//! is in the key of every stage that sees a model or trains: one that is trained on the stages' text depends on all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pt_core::hash;
use pt_recipe::{AnyStage, MODEL, OtherStage, Plan, Product, STAGE_PREFIX, product_of, stage_of};
use pt_text::Tokenizer;

use crate::error::{PipelineError, Result};

/// The file of a stage's rows.
pub(crate) const ROWS: &str = "rows.jsonl";

/// The key of stage `number`.
pub(crate) fn stage_key(plan: &Plan, number: u32, tokenizer: &Tokenizer) -> String {
    key_without(plan, number, tokenizer, &[])
}

/// The key of what stage `number` finds, whatever is then said of it: `settings` are those of its settings that judge and do not
/// change it.
pub(crate) fn key_without(plan: &Plan, number: u32, tokenizer: &Tokenizer, settings: &[&str]) -> String {
    let all = plan.all_stages();
    let stage = all.iter().find(|stage| stage.number() == number).expect("a stage of the plan");
    let mut alone = plan.stage_alone(number);
    if let Some(all) = alone["settings"].as_object_mut() {
        all.retain(|name, _| !settings.contains(&name.as_str()));
    }
    let mut parts = vec![plan.seed.to_string(), alone.to_string()];
    if sees_models(plan, stage) {
        parts.push(tokenizer.content_hash().to_owned());
        parts.push(plan.model.dtype.as_str().to_owned());
        // An adapter's folder names the model it stands on.
        parts.extend(base_folder(plan, stage));
    }
    for name in stage.reads() {
        parts.push(match plan.stage_named(name) {
            Some(other) => stage_key(plan, other.number(), tokenizer),
            None => plan.model_alone().to_string(),
        });
    }
    hash::of_parts(parts.iter().map(String::as_bytes))
}

/// Whether what the stage makes depends on the tokenizer: it trains, or reads a model.
fn sees_models(plan: &Plan, stage: &AnyStage<'_>) -> bool {
    let is_model = |name: &str| plan.stage_named(name).is_none_or(|s| product_of(s.kind()) != Product::Rows);
    matches!(stage, AnyStage::Training(_)) || stage.reads().into_iter().any(is_model)
}

/// The folder, seen from an adapter's, of the model that a stage that trains begins with.
pub(crate) fn base_folder(plan: &Plan, stage: &AnyStage<'_>) -> Option<String> {
    let base = plan.stage_named(stage.reads().first()?)?;
    Some(format!("../../{}/model", base.label()))
}

/// Whether a later stage reads a model that the stage called `name` makes.
pub(crate) fn model_is_read(plan: &Plan, name: &str) -> bool {
    let makes_model =
        |stage: AnyStage<'_>| matches!(product_of(stage.kind()), Product::Model | Product::Scorer);
    plan.stage_named(name).is_some_and(makes_model) && !plan.readers_of(name).is_empty()
}

/// The folder of a stage's model.
pub(crate) fn model_folder(run: &Path, plan: &Plan, name: &str) -> Option<PathBuf> {
    Some(run.join("stages").join(plan.stage_named(name)?.label()).join("model"))
}

/// What stands for `stage:NAME` and `stage:NAME/PART` once the stage is complete: the file of its rows, or the folder of its model.
///
/// # Errors
/// Where the stage did not make that part.
pub(crate) fn path_of(run: &Path, plan: &Plan, reference: &str) -> Result<PathBuf> {
    let name = stage_of(reference).expect("a reference names a stage");
    let stage = plan.stage_named(name).expect("references were checked when the recipe was read");
    let folder = run.join("stages").join(stage.label());
    let part = reference.split_once('/').map(|(_, part)| part);
    let path = match (product_of(stage.kind()), part) {
        (Product::Rows, None) => folder.join(ROWS),
        (Product::Rows, Some(part)) => folder.join(format!("{part}.jsonl")),
        (_, _) => folder.join("model"),
    };
    if path.exists() {
        return Ok(path);
    }
    Err(PipelineError::Unsupported {
        what: format!("`{reference}`: the stage `{name}` left no {}", path.display()),
        advice: format!("name the stage alone, `{STAGE_PREFIX}{name}`, or what lies in its folder"),
    })
}

/// The path that stands for each `stage:NAME` of a stage, once those are complete.
///
/// # Errors
/// As [`path_of`].
pub(crate) fn paths_of(run: &Path, plan: &Plan, stage: &OtherStage) -> Result<BTreeMap<String, String>> {
    let references = stage.references().into_iter();
    references.map(|named| Ok((named.clone(), path_of(run, plan, &named)?.display().to_string()))).collect()
}

/// The name a model has in results: the stage's, `base` for the recipe's own, or as written.
pub(crate) fn shown_name(written: &str) -> &str {
    stage_of(written).unwrap_or(if written == MODEL { "base" } else { written })
}
