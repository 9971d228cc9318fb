//! Where models and tokenizers come from: folders, the local hub cache, llama2.c files, or nothing.

use std::path::{Path, PathBuf};

use pt_engine::Dtype;
use pt_models::{LoadOptions, Model, ModelConfig, NewModel};
use pt_recipe::{PlannedFile, PlannedNewModel, PlannedStage, Recipe, StageSection, StageType};
use pt_text::template::Moment;
use pt_text::{ChatTemplate, Tokenizer, train_byte_bpe};

use crate::error::{PipelineError, Result};
use crate::reference::load_named;
use crate::source::{Surroundings, planned_file};

/// ChatML, for models that are made from nothing.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                      '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// Its special tokens; the first one ends a turn and a document.
const CHATML_TOKENS: [&str; 3] = ["<|im_end|>", "<|im_start|>", "<|pad|>"];
/// `tokenizer = "bpe:512"` trains one.
const TRAINED_PREFIX: &str = "bpe:";
/// Texts a tokenizer is trained on, at most.
const TOKENIZER_CHARS: usize = 4_000_000;

/// The engine's name of a recipe's storage type.
pub fn engine_dtype(dtype: pt_recipe::Dtype) -> Dtype {
    match dtype {
        pt_recipe::Dtype::Bf16 => Dtype::Bf16,
        pt_recipe::Dtype::F32 => Dtype::F32,
    }
}

/// A folder or file named directly, or the snapshot of a hub name in the local cache.
///
/// # Errors
/// [`PipelineError::NotDownloaded`].
pub fn locate_model(name: &str, revision: &str, surroundings: &Surroundings) -> Result<PathBuf> {
    let direct = PathBuf::from(name);
    if direct.exists() {
        return Ok(direct);
    }
    let cache = surroundings.hf_home.as_ref().map(|home| home.join("hub"));
    if let Some(cache) = &cache {
        let repository = cache.join(format!("models--{}", name.replace('/', "--")));
        let by_ref = std::fs::read_to_string(repository.join("refs").join(revision));
        let commit = by_ref.map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
        let snapshot = repository.join("snapshots").join(commit);
        if snapshot.is_dir() {
            return Ok(snapshot);
        }
    }
    let cache =
        cache.map_or_else(|| "no cache folder is known: set HF_HOME".to_owned(), |c| c.display().to_string());
    Err(PipelineError::NotDownloaded { name: name.to_owned(), cache })
}

/// Whether a planned stage writes a reward model.
pub(crate) fn writes_scorer(planned: &PlannedStage) -> bool {
    StageType::named(&planned.r#type).is_some_and(StageType::writes_scorer)
}

/// The recipe's tokenizer. `texts` are what one is trained on if the recipe asks for that.
///
/// # Errors
/// If it cannot be found, read or trained.
pub fn load_tokenizer(
    recipe: &Recipe,
    surroundings: &Surroundings,
    texts: impl FnOnce() -> Result<Vec<String>>,
) -> Result<Tokenizer> {
    let name = match (&recipe.model.tokenizer, &recipe.model.base) {
        (Some(name), _) => name.clone(),
        (None, Some(base)) => base.clone(),
        (None, None) => unreachable!("a recipe without base names its tokenizer: it was checked"),
    };
    if let Some(size) = name.strip_prefix(TRAINED_PREFIX) {
        let size: usize = size.parse().map_err(|_| PipelineError::Unsupported {
            what: format!("`model.tokenizer` is `{name}`, whose size is not a number"),
            advice: "write it as `bpe:512`".to_owned(),
        })?;
        return train_tokenizer(&texts()?, size);
    }
    let path = locate_model(&name, &recipe.model.revision, surroundings)?;
    if recipe.model.tokenizer.is_none() && path.is_file() {
        // Beside a llama2.c file lies its tokenizer; the file itself is none.
        return Ok(Tokenizer::from_dir(&folder_of(&path))?);
    }
    tokenizer_at(&path)
}

fn folder_of(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

/// The tokenizer of a model folder, or of a tokenizer file.
///
/// # Errors
/// If there is none.
pub fn tokenizer_at(path: &Path) -> Result<Tokenizer> {
    if path.is_dir() {
        return Ok(Tokenizer::from_dir(path)?);
    }
    if path.extension().is_some_and(|extension| extension == "bin") {
        return Ok(Tokenizer::from_llama2c(path)?);
    }
    // What stands beside it belongs to it: the chat template, and which tokens end a text.
    if path.file_name().is_some_and(|name| name == "tokenizer.json") {
        return Ok(Tokenizer::from_dir(&folder_of(path))?);
    }
    Err(PipelineError::Unsupported {
        what: format!("{} is no tokenizer by its name", path.display()),
        advice: "give a folder, a file called tokenizer.json, or the tok*.bin of llama2.c".to_owned(),
    })
}

/// What a person should know of a tokenizer that was trained: that it has fewer tokens than the recipe asks for.
pub(crate) fn tokenizer_note(recipe: &Recipe, tokenizer: &Tokenizer) -> Option<String> {
    let size: usize = recipe.model.tokenizer.as_deref()?.strip_prefix(TRAINED_PREFIX)?.parse().ok()?;
    let found = tokenizer.vocab_size();
    (found < size).then(|| {
        format!(
            "the trained tokenizer has {found} tokens of the {size} asked for: its texts have no more that repeat; give it \
             more text, or name a smaller size"
        )
    })
}

fn train_tokenizer(texts: &[String], size: usize) -> Result<Tokenizer> {
    if texts.iter().all(|text| text.trim().is_empty()) {
        return Err(PipelineError::Unsupported {
            what: "there is no text in the stages' training data that a tokenizer could be trained on"
                .to_owned(),
            advice: "name a tokenizer's folder with model.tokenizer, or give rows of text".to_owned(),
        });
    }
    let mut n_chars = 0;
    let within = texts.iter().take_while(|text| {
        n_chars += text.len();
        n_chars <= TOKENIZER_CHARS
    });
    let tokenizer = train_byte_bpe(within.map(String::as_str), size, &CHATML_TOKENS)?;
    let mut config = tokenizer.config().clone();
    config.pad = Some(CHATML_TOKENS[2].to_owned());
    config.set_chat_template(CHATML);
    Ok(tokenizer.with_config(config)?)
}

/// What a template that asks for the date is told: 26 July 2024, which is what Llama 3's own template writes where there
/// is no clock. Rows must not depend on the day, or a run resumed tomorrow would train on others.
pub fn template_date() -> Moment {
    Moment::from_civil(2024, 7, 26, 0, 0, 0)
}

/// The chat template a stage uses: a file, or the tokenizer's own if it has one. It is told [`template_date`].
///
/// # Errors
/// If the file cannot be read, or the template cannot be parsed.
pub fn chat_template(file: Option<&str>, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    match file {
        Some(path) => {
            let source = std::fs::read_to_string(path).map_err(PipelineError::io("read", path))?;
            Ok(Some(ChatTemplate::at(&source, template_date())?))
        }
        None if tokenizer.config().chat_template(None).is_ok() => {
            Ok(Some(tokenizer.chat_template_at(None, template_date())?))
        }
        None => Ok(None),
    }
}

/// A model to be made, as the models crate describes it.
pub fn new_model(planned: &PlannedNewModel, tokenizer: &Tokenizer) -> NewModel {
    NewModel {
        vocab_size: planned.vocab_size as usize,
        hidden_size: planned.hidden_size as usize,
        n_layers: planned.num_hidden_layers as usize,
        n_heads: planned.num_attention_heads as usize,
        n_kv_heads: planned.num_key_value_heads as usize,
        ffn_size: planned.intermediate_size as usize,
        max_positions: planned.max_position_embeddings as usize,
        tied: planned.tie_word_embeddings,
        rope_theta: planned.rope_theta,
        norm_eps: planned.rms_norm_eps,
        init_std: planned.initializer_range,
        bos_token_id: tokenizer.bos_id(),
        eos_token_id: tokenizer.eos_id(),
        pad_token_id: tokenizer.pad_id(),
    }
}

/// The model a recipe starts from, and the files it is made of.
///
/// # Errors
/// If it cannot be found, read or made.
pub fn load_base(recipe: &Recipe, tokenizer: &Tokenizer, surroundings: &Surroundings) -> Result<Model> {
    let dtype = engine_dtype(recipe.model.dtype);
    if let Some(new) = &recipe.model.new {
        let planned = new.resolve(tokenizer.vocab_size() as u64)?;
        return Ok(new_model(&planned, tokenizer).build(dtype, recipe.seed)?);
    }
    let base = recipe.model.base.as_deref().expect("a recipe has a base or a new model: it was checked");
    load_model(&locate_model(base, &recipe.model.revision, surroundings)?, Some(dtype))
}

/// A model folder, or a llama2.c file.
///
/// # Errors
/// If it cannot be read.
pub fn load_model(path: &Path, dtype: Option<Dtype>) -> Result<Model> {
    if path.is_dir() {
        return Ok(pt_models::load(path, &LoadOptions { dtype, ..LoadOptions::default() })?);
    }
    Ok(pt_models::llama2c::import(path, dtype.unwrap_or(Dtype::F32))?)
}

/// The files of the base model and tokenizer, hashed; none for what is made.
///
/// # Errors
/// If a file cannot be read.
pub fn model_files(recipe: &Recipe, surroundings: &Surroundings) -> Result<Vec<PlannedFile>> {
    let names = [recipe.model.base.as_deref(), recipe.model.tokenizer.as_deref()];
    let mut files = Vec::new();
    for name in names.into_iter().flatten().filter(|name| !name.starts_with(TRAINED_PREFIX)) {
        let path = locate_model(name, &recipe.model.revision, surroundings)?;
        let mut paths = if path.is_dir() { model_folder_files(&path)? } else { vec![path] };
        paths.sort();
        for path in paths {
            files.push(planned_file(&path)?);
        }
    }
    Ok(files)
}

fn model_folder_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(PipelineError::io("read", dir))?;
    let paths = entries.filter_map(std::result::Result::ok).map(|entry| entry.path());
    let relevant = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        path.is_file() && ["json", "safetensors", "txt", "model", "jinja", "bin"].contains(&extension)
    };
    Ok(paths.filter(relevant).collect())
}

/// The teacher of a distillation stage, which must have the student's vocabulary; nothing of it trains.
///
/// # Errors
/// If it cannot be found or read, or has another vocabulary.
///
/// # Panics
/// If the stage names none, which reading the recipe refuses.
pub(crate) fn load_teacher(
    recipe: &Recipe,
    stage: &StageSection,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
    student: &Model,
) -> Result<Model> {
    let name = stage.distillation.teacher.as_deref().expect("a distillation stage names its teacher");
    let teacher = load_named("teacher", name, recipe, tokenizer, surroundings)?;
    let (found, expected) = (teacher.config.vocab_size, student.config.vocab_size);
    if found != expected {
        return Err(PipelineError::Unsupported {
            what: format!(
                "the teacher `{name}` has a vocabulary of {found} tokens, the student one of {expected}"
            ),
            advice: "choose a teacher with the student's tokenizer and as many rows in its output layer, or learn from its samples: \
                     write them with `posttrain feedback answer`, and train on them in an `sft` stage"
                .to_owned(),
        });
    }
    Ok(teacher)
}

/// The files of a model's folder, or the one file it is, hashed.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn model_files_at(path: PathBuf) -> Result<Vec<PlannedFile>> {
    let mut paths = if path.is_dir() { model_folder_files(&path)? } else { vec![path] };
    paths.sort();
    paths.iter().map(planned_file).collect()
}

/// The configuration of the recipe's model, without reading its weights.
///
/// # Errors
/// If it cannot be read.
pub fn model_config(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<ModelConfig> {
    if let Some(new) = &recipe.model.new {
        let planned = new.resolve(tokenizer.vocab_size() as u64)?;
        let json = new_model(&planned, tokenizer).config_json(engine_dtype(recipe.model.dtype));
        return Ok(ModelConfig::from_map("model.new", json, &[])?);
    }
    let base = recipe.model.base.as_deref().expect("a recipe has a base or a new model: it was checked");
    config_at(&locate_model(base, &recipe.model.revision, surroundings)?)
}

pub(crate) fn config_at(path: &Path) -> Result<ModelConfig> {
    if path.is_dir() {
        return Ok(pt_models::load_config(path, &[])?);
    }
    Ok(load_model(path, None)?.config)
}
