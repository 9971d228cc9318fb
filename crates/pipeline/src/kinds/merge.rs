//! `merge`: several models fused into one, which later stages begin with. Of one model with an adapter, the adapter is folded in.

use pt_export::{EXACT, FuseMethod, FuseOptions, PROOF_TEXT, fuse, prove_folder};
use pt_models::Model;
use pt_recipe::{MergeMethod, MergeSection, StageSection};
use serde_json::json;

use super::{Around, Done, Planning, StageKind, Work};
use crate::error::Result;
use crate::graph::shown_name;
use crate::loaded::Loaded;
use crate::output::write_model;
use crate::reference::{Extent, check_same_tokens};

/// The kind.
pub(super) struct Merge;

impl StageKind for Merge {
    fn name(&self) -> &'static str {
        "merge"
    }

    fn plan(&self, section: &StageSection, around: &Around<'_>) -> Result<Planning> {
        let merge = &section.merge;
        if is_fused(merge) {
            options(merge, around.recipe.seed).checked(models(merge).len(), merge.base.is_some())?;
        }
        let mut planning = Planning::default();
        for written in models(merge).iter().chain(&merge.base) {
            planning.files.extend(around.model_files(written)?);
        }
        planning.settings = serde_json::to_value(merge).expect("a section is plain JSON");
        let names: Vec<&str> = models(merge).iter().map(|written| shown_name(written)).collect();
        planning.line("models", names.join(", "));
        planning.line("method", merge.method.as_str());
        if let Some(weights) = &merge.weights {
            planning.line("weights", json!(weights).to_string());
        }
        Ok(planning)
    }

    fn run(&self, section: &StageSection, work: &mut Work<'_>) -> Result<Option<Done>> {
        let merge = &section.merge;
        let mut loaded = Vec::new();
        for written in models(merge) {
            let model = work.load(written)?;
            if let Some(folder) = &model.folder {
                check_same_tokens("merged model", written, folder, work.tokenizer, Extent::All)?;
            }
            loaded.push(model);
        }
        let base = merge.base.as_ref().map(|written| work.load(written)).transpose()?;
        let first = loaded.remove(0);
        let Loaded { model, tokenizer, .. } = first;
        let models: Vec<Model> =
            std::iter::once(model).chain(loaded.into_iter().map(|other| other.model)).collect();
        let fused = match is_fused(merge) {
            true => fuse(models, base.as_ref().map(|base| &base.model), &options(merge, work.recipe.seed)),
            false => Ok(models.into_iter().next().expect("a merge has a model")),
        };
        let fused = fused.map_err(|error| work.problem(error))?;
        let out = work.folder.model_dir();
        write_model(&fused, &out, &tokenizer, None, None)?;
        let proof = prove_folder(&fused, Some(&tokenizer), &out, PROOF_TEXT, EXACT);
        let proof = proof.map_err(|error| work.problem(error))?;
        super::refuse_problems(&out, &proof).map_err(|error| work.problem(error))?;
        Ok(Some(Done::new(out, vec![proof.summary()])))
    }
}

fn models(merge: &MergeSection) -> &[String] {
    merge.models.as_deref().expect("a merge names models: that was checked when the recipe was read")
}

/// Whether there is more to do than to write one model.
fn is_fused(merge: &MergeSection) -> bool {
    models(merge).len() > 1 || merge.base.is_some()
}

fn options(merge: &MergeSection, seed: u64) -> FuseOptions {
    FuseOptions {
        method: match merge.method {
            MergeMethod::Linear => FuseMethod::Linear,
            MergeMethod::Slerp => FuseMethod::Slerp,
            MergeMethod::Ties => FuseMethod::Ties,
            MergeMethod::Dare => FuseMethod::Dare,
        },
        weights: merge.weights.clone().unwrap_or_default(),
        density: merge.density,
        scale: merge.scale,
        seed,
    }
}
