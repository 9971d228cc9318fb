//! What is named and not there is downloaded from the Hugging Face hub, and said before it is.

use std::path::Path;

use anyhow::Context as _;
use pt_client::hub::{Event, Hub, HubOptions, has_tokenizer, has_weights, is_name};
use pt_pipeline::model::locate_model;
use pt_recipe::Recipe;

use crate::environment::Environment;
use crate::ui;

/// Brings a model into the local cache, if it is a name that is not there yet, or is there without all its weights.
///
/// Offline, and for what can be no name on the hub, it does nothing: looking it up will say what is missing.
///
/// # Errors
/// If the hub does not have it, or the download fails.
pub(crate) fn ensure_model(name: &str, revision: &str, environment: &Environment) -> anyhow::Result<()> {
    let Some(hub) = hub_for(name, environment, || is_here(name, revision, environment, has_weights))? else {
        return Ok(());
    };
    let mut watch = Watch::default();
    hub.model(name, revision, &mut |event| watch.event(&event)).map(|_| ()).with_context(|| absent(name))
}

/// The same for a repository of which only the tokenizer is wanted: its weights, if it has any, stay where they are.
///
/// # Errors
/// As [`ensure_model`].
pub(crate) fn ensure_tokenizer(name: &str, revision: &str, environment: &Environment) -> anyhow::Result<()> {
    let Some(hub) = hub_for(name, environment, || is_here(name, revision, environment, has_tokenizer))?
    else {
        return Ok(());
    };
    let mut watch = Watch::default();
    hub.tokenizer(name, revision, &mut |event| watch.event(&event)).map(|_| ()).with_context(|| absent(name))
}

/// Whether `name` is a path that is there, or is in the cache with what is needed of it.
fn is_here(name: &str, revision: &str, environment: &Environment, has: fn(&Path) -> bool) -> bool {
    Path::new(name).exists()
        || locate_model(name, revision, &environment.surroundings()).is_ok_and(|at| has(&at))
}

/// The same for a dataset.
///
/// # Errors
/// As [`ensure_model`].
pub(crate) fn ensure_dataset(name: &str, environment: &Environment) -> anyhow::Result<()> {
    let is_here = || {
        let folder = format!("hub/datasets--{}/snapshots", name.replace('/', "--"));
        Path::new(name).exists()
            || environment.hf_home.as_ref().is_some_and(|home| home.join(folder).is_dir())
    };
    let Some(hub) = hub_for(name, environment, is_here)? else { return Ok(()) };
    let mut watch = Watch::default();
    hub.dataset(name, "main", &mut |event| watch.event(&event)).map(|_| ()).with_context(|| absent(name))
}

/// The models and tokenizers that a recipe names, and its datasets.
///
/// # Errors
/// As [`ensure_model`].
pub(crate) fn ensure_recipe(recipe: &Recipe, environment: &Environment) -> anyhow::Result<()> {
    for (name, revision) in models_of(recipe) {
        ensure_model(name, revision, environment)?;
    }
    if let Some(name) = &recipe.model.tokenizer {
        ensure_tokenizer(name, &recipe.model.revision, environment)?;
    }
    datasets_of(recipe).into_iter().try_for_each(|name| ensure_dataset(name, environment))
}

/// Models by name and revision; teachers, references and critics are taken from their main branch.
fn models_of(recipe: &Recipe) -> Vec<(&str, &str)> {
    let model = &recipe.model;
    let base = model.base.iter().map(|name| (name.as_str(), model.revision.as_str()));
    let others = recipe.all_stages().into_iter().flat_map(|(_, stage)| {
        // `policy` is a copy of what is there.
        let critic = stage.ppo.critic.as_deref().filter(|name| *name != "policy");
        let of_training = [stage.distillation.teacher.as_deref(), stage.reference.model.as_deref(), critic];
        of_training.into_iter().flatten().chain(stage.named_models())
    });
    // What an earlier stage makes, and the recipe's own model, are no names on the hub.
    let others = others.filter(|name| *name != pt_recipe::MODEL && pt_recipe::stage_of(name).is_none());
    base.chain(others.map(|name| (name, "main"))).collect()
}

fn datasets_of(recipe: &Recipe) -> Vec<&str> {
    let sources = recipe.all_stages().into_iter().flat_map(|(_, stage)| stage.named_sources());
    sources.map(|source| source.source.as_str()).filter(|name| pt_recipe::stage_of(name).is_none()).collect()
}

fn absent(name: &str) -> String {
    format!(
        "`{name}` is not here, nor in the local cache, and could not be downloaded (--offline does not try)"
    )
}

fn hub_for(
    name: &str,
    environment: &Environment,
    is_here: impl FnOnce() -> bool,
) -> anyhow::Result<Option<Hub>> {
    let Some(home) = environment.hf_home.as_ref().filter(|_| !environment.offline && is_name(name)) else {
        return Ok(None);
    };
    if is_here() {
        return Ok(None);
    }
    let mut options = HubOptions::new(home.join("hub"));
    options.endpoint = environment.hf_endpoint.clone().unwrap_or(options.endpoint);
    options.token = environment.hf_token.clone();
    options.http.proxy = environment.https_proxy.clone();
    Ok(Some(Hub::new(options)?))
}

/// Says what is downloaded, and how far it is.
#[derive(Default)]
struct Watch {
    n_files: usize,
    n_done: usize,
}

impl Watch {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Begins { repository, files, n_bytes, endpoint } => {
                self.n_files = files.len();
                ui::note(&format!(
                    "downloading {} `{}` at commit {} from {endpoint}: {}, {:.1} MB",
                    repository.kind.name(),
                    repository.name,
                    &repository.commit[..8],
                    ui::counted(files.len(), "file"),
                    *n_bytes as f64 / 1e6
                ));
            }
            Event::FileDone { file } => {
                self.n_done += 1;
                ui::note(&format!("  {} of {}: {}", self.n_done, self.n_files, file.path));
            }
            Event::Progress { .. } => {}
            Event::Done { folder } => ui::note(&format!("downloaded into {}", folder.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_program_left_half_is_not_here() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let check = |weights: bool, tokenizer: bool| {
            assert_eq!((has_weights(dir.path()), has_tokenizer(dir.path())), (weights, tokenizer));
        };
        put("config.json", "{}");
        check(false, false);
        put("tokenizer.json", "{}");
        check(false, true);
        let map = r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
        put("model.safetensors.index.json", map);
        put("model-1-of-2.safetensors", "");
        check(false, true);
        put("model-2-of-2.safetensors", "");
        check(true, true);
    }

    #[test]
    fn everything_a_recipe_names_is_looked_for() {
        const RECIPE: &str = r#"
            name = "r"
            [model]
            base = "org/base"
            revision = "v2"
            [[stage]]
            name = "one"
            type = "distillation"
            data.train = ["org/prompts"]
            data.eval = ["org/held-out"]
            distillation.teacher = "org/teacher"
            [[stage]]
            name = "two"
            type = "ppo"
            data.train = ["org/more"]
            ppo.ptx = ["org/text"]
            objective.ptx_coef = 0.1
        "#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, RECIPE).unwrap();
        let recipe = pt_pipeline::load_recipe(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(models_of(&recipe), [("org/base", "v2"), ("org/teacher", "main")]);
        assert_eq!(datasets_of(&recipe), ["org/prompts", "org/held-out", "org/more", "org/text"]);
    }
}
