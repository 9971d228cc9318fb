//! What is named and not there is downloaded from the Hugging Face hub, and said before it is.

use std::path::Path;

use anyhow::Context as _;
use pt_client::hub::{Event, Hub, HubOptions, is_name};
use pt_pipeline::model::locate_model;
use pt_recipe::Recipe;

use crate::environment::Environment;
use crate::ui;

/// Brings a model, or the tokenizer in its repository, into the local cache, if it is a name that is not there yet.
///
/// Offline, and for what can be no name on the hub, it does nothing: looking it up will say what is missing.
///
/// # Errors
/// If the hub does not have it, or the download fails.
pub(crate) fn ensure_model(name: &str, revision: &str, environment: &Environment) -> anyhow::Result<()> {
    let is_here =
        || Path::new(name).exists() || locate_model(name, revision, &environment.surroundings()).is_ok();
    let Some(hub) = hub_for(name, environment, is_here)? else { return Ok(()) };
    let mut watch = Watch::default();
    hub.model(name, revision, &mut |event| watch.event(&event)).map(|_| ()).with_context(|| absent(name))
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
    for name in [&recipe.model.base, &recipe.model.tokenizer].into_iter().flatten() {
        ensure_model(name, &recipe.model.revision, environment)?;
    }
    for stage in &recipe.stage {
        for source in stage.data.train.iter().chain(stage.data.eval.iter().flatten()) {
            ensure_dataset(&source.source, environment)?;
        }
    }
    Ok(())
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
            Event::Progress { file, n_done } if *n_done == file.n_bytes => {
                self.n_done += 1;
                ui::note(&format!("  {} of {}: {}", self.n_done, self.n_files, file.path));
            }
            Event::Progress { .. } => {}
            Event::Done { folder } => ui::note(&format!("downloaded into {}", folder.display())),
        }
    }
}
