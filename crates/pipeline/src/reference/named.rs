//! Another model, named by a stage: a reference or a teacher.

use std::path::Path;

use pt_models::Model;
use pt_recipe::{PlannedFile, Recipe};
use pt_text::Tokenizer;

use crate::error::{PipelineError, Result};
use crate::model::{config_at, engine_dtype, load_model, locate_model, model_files_at, tokenizer_at};
use crate::output::merge;
use crate::scorer::{is_scorer, load_scorer};
use crate::source::Surroundings;

/// The model called `name`, in the recipe's type; nothing of it trains. `role` is what it is for, in messages.
///
/// # Errors
/// If it cannot be found or read, or knows other tokens than `tokenizer`.
pub(crate) fn load_named(
    role: &str,
    name: &str,
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<Model> {
    let path = locate_model(name, "main", surroundings)?;
    check_same_tokens(role, name, &path, tokenizer, Extent::Shared)?;
    let mut model = load_model(&path, Some(engine_dtype(recipe.model.dtype)))?;
    model.freeze();
    Ok(model)
}

/// What a stage calls the model that it begins with, where another may stand.
pub(crate) const POLICY: &str = "policy";

/// The model called `name` as a critic: a language model, or a reward model with its score head.
///
/// # Errors
/// As [`load_named`].
pub(crate) fn load_critic(
    name: &str,
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<Model> {
    let path = locate_model(name, "main", surroundings)?;
    if !is_scorer(&path) {
        return load_named("critic", name, recipe, tokenizer, surroundings);
    }
    check_same_tokens("critic", name, &path, tokenizer, Extent::Shared)?;
    let mut model = load_scorer(&path, Some(engine_dtype(recipe.model.dtype)))?;
    if model.adapter().is_some() {
        merge(&mut model, engine_dtype(recipe.model.dtype))?;
    }
    Ok(model)
}

/// What it takes in memory, by its configuration.
///
/// # Errors
/// If it cannot be found or read.
pub(crate) fn named_bytes(name: &str, recipe: &Recipe, surroundings: &Surroundings) -> Result<usize> {
    let config = config_at(&locate_model(name, "main", surroundings)?)?;
    Ok(config.n_params() * engine_dtype(recipe.model.dtype).bytes())
}

/// Its files, hashed; none where no model is named.
///
/// # Errors
/// If it cannot be found or read.
pub(crate) fn named_files(name: Option<&str>, surroundings: &Surroundings) -> Result<Vec<PlannedFile>> {
    name.map_or_else(|| Ok(Vec::new()), |name| model_files_at(locate_model(name, "main", surroundings)?))
}

/// How far two tokenizers must be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Up to the end of the smaller: for models whose predictions are compared.
    Shared,
    /// Every token of both: for models whose weights become one.
    All,
}

/// [`expect_same_tokens`] for the tokenizer of a folder. Where it has none, nothing is known and nothing refused.
///
/// # Errors
/// [`PipelineError::Unsupported`] with the first id that differs; a tokenizer that cannot be read.
pub(crate) fn check_same_tokens(
    role: &str,
    name: &str,
    path: &Path,
    tokenizer: &Tokenizer,
    extent: Extent,
) -> Result<()> {
    if !path.is_dir() || !path.join("tokenizer.json").is_file() {
        return Ok(());
    }
    expect_same_tokens(role, name, &tokenizer_at(path)?, tokenizer, extent)
}

/// Refuses a model whose own tokenizer gives an id another token: the two would speak of different things.
///
/// # Errors
/// [`PipelineError::Unsupported`] with the first id that differs.
pub fn expect_same_tokens(
    role: &str,
    name: &str,
    theirs: &Tokenizer,
    expected: &Tokenizer,
    extent: Extent,
) -> Result<()> {
    let sizes = [theirs.vocab_size(), expected.vocab_size()];
    let n = match extent {
        Extent::Shared => sizes[0].min(sizes[1]),
        Extent::All => sizes[0].max(sizes[1]),
    };
    let shown =
        |token: Option<String>| token.map_or_else(|| "no token".to_owned(), |token| format!("`{token}`"));
    for id in 0..n as u32 {
        let (own, other) = (expected.id_to_token(id), theirs.id_to_token(id));
        if own != other {
            return Err(PipelineError::Unsupported {
                what: format!(
                    "the {role} `{name}` has another tokenizer: its token {id} is {}, and {} is expected",
                    shown(other),
                    shown(own)
                ),
                advice: format!("choose a {role} with the same tokenizer"),
            });
        }
    }
    Ok(())
}
