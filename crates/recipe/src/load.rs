//! From text to a checked recipe.

use crate::keys::{Method, RecipeFile, ScheduleType, StageSection};
use crate::problem::{Location, RecipeError, RecipeErrors};
use crate::recipe::Recipe;
use crate::schema::{Catalogue, FromTable, Reader};
use crate::stage_types::{Credit, StageType, WorkType};
use crate::tree::{self, Node, NodeValue};
use std::collections::BTreeMap;
use std::path::Path;

impl Recipe {
    /// Reads the recipe in `path`, changed by `sets` (`KEY=VALUE` each, in order).
    ///
    /// # Errors
    /// [`RecipeError::Io`]; [`RecipeError::Invalid`] with every problem found.
    pub fn load(path: &Path, sets: &[String], catalogue: &Catalogue) -> Result<Recipe, RecipeError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RecipeError::Io { path: path.to_owned(), source })?;
        Ok(Recipe::parse(&text, path, sets, catalogue)?)
    }

    /// Reads a recipe from `text`; `file` is for messages and gives the default name.
    ///
    /// # Errors
    /// Every problem found. A text that is not TOML gives its syntax errors only.
    pub fn parse(
        text: &str,
        file: &Path,
        sets: &[String],
        catalogue: &Catalogue,
    ) -> Result<Recipe, RecipeErrors> {
        let errors = |problems| RecipeErrors { file: file.to_owned(), problems };
        let mut root = tree::parse(text).map_err(errors)?;
        let problems = tree::apply_sets(&mut root, sets);
        replace_alternatives(&mut root);
        name_objectives(&mut root);
        let mut reader = Reader { catalogue, problems, inside: root.at.clone() };
        let recipe = RecipeFile::from_table(&mut reader, "", Some(&root));
        Checks { reader: &mut reader, root: &root }.run(recipe.as_ref());
        reader.problems.sort_by(|a, b| a.at.cmp(&b.at));
        match recipe {
            Some(mut recipe) if reader.problems.is_empty() => {
                name_what_is_unnamed(&mut recipe, file);
                Ok(Recipe::of_file(recipe, &root))
            }
            _ => Err(errors(reader.problems)),
        }
    }
}

/// Keys of a stage that say the same in two ways; one of the two is written.
const ALTERNATIVES: &[(&str, &str)] = &[
    ("train.epochs", "train.steps"),
    ("train.rows_per_step", "train.tokens_per_step"),
    ("schedule.warmup_steps", "schedule.warmup_ratio"),
    ("data.eval", "data.eval_fraction"),
];

/// What is set on the command line takes the place of what the file says in the other way.
fn replace_alternatives(root: &mut Node) {
    let Some(NodeValue::List(stages)) = root.get_mut("stage").map(|stages| &mut stages.value) else { return };
    for stage in stages {
        for (one, other) in ALTERNATIVES {
            let is_set = |key: &str| stage.find(key).map(|node| matches!(node.at, Location::Set(_)));
            match (is_set(one), is_set(other)) {
                (Some(true), Some(false)) => stage.remove(other),
                (Some(false), Some(true)) => stage.remove(one),
                _ => {}
            }
        }
    }
}

/// Options of an objective without a `type` belong to the objective that the stage's own type names.
fn name_objectives(root: &mut Node) {
    let Some(NodeValue::List(stages)) = root.get_mut("stage").map(|stages| &mut stages.value) else { return };
    for stage in stages {
        let kind = stage.find("type").and_then(Node::str).and_then(crate::StageType::named);
        let (Some(kind), Some(objective)) = (kind, stage.get_mut("objective")) else { continue };
        let at = objective.at.clone();
        if let NodeValue::Table(table) = &mut objective.value
            && table.get("type").is_none()
        {
            let name = Node { value: NodeValue::String(kind.objective.to_owned()), at: at.clone() };
            table.0.push(("type".to_owned(), at, name));
        }
    }
}

fn name_what_is_unnamed(recipe: &mut RecipeFile, file: &Path) {
    let stem =
        || file.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
    recipe.name.get_or_insert_with(stem);
    for (i, name) in stage_names(&recipe.stage).into_iter().enumerate() {
        recipe.stage[i].name = Some(name);
    }
}

/// The stages' names: as written, else the type, numbered from the second one of its kind.
pub(crate) fn stage_names(stages: &[StageSection]) -> Vec<String> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut names = Vec::with_capacity(stages.len());
    for stage in stages {
        names.push(stage.name.clone().unwrap_or_else(|| {
            let n = seen.entry(&stage.r#type).or_default();
            *n += 1;
            if *n == 1 { stage.r#type.clone() } else { format!("{}-{n}", stage.r#type) }
        }));
    }
    names
}

/// Checks between keys. They look at what was written, so that a key without effect is an error.
struct Checks<'r, 'c> {
    reader: &'r mut Reader<'c>,
    root: &'r Node,
}

impl Checks<'_, '_> {
    fn run(&mut self, recipe: Option<&RecipeFile>) {
        self.model();
        let n_stages = self.count("stage");
        if n_stages == 0
            && self.root.find("stage").is_none_or(|stages| matches!(stages.value, NodeValue::List(_)))
        {
            self.at("", "stage", "a recipe needs at least one stage; add `[[stage]]` with `type = \"sft\"`");
        }
        for i in 0..n_stages {
            let stage = format!("stage.{i}");
            match self.type_of(&stage).and_then(|name| WorkType::named(&name)) {
                Some(work) => self.work(&stage, work),
                None => self.stage(&stage),
            }
        }
        if let Some(recipe) = recipe {
            self.new_model_sizes(recipe);
            self.schedules(recipe);
            self.mixtures(recipe);
            self.stage_names_differ(recipe);
            self.references(recipe);
        }
    }

    fn model(&mut self) {
        let (base, new) = (self.has("model.base"), self.has("model.new"));
        if base && new {
            self.at(
                "model.new",
                "model.new",
                "a model is either a `base` or a new one; remove one of the two",
            );
        }
        if !base && !new {
            let message =
                "which model? give `base = \"FOLDER OR HUB NAME\"`, or describe a new one in `[model.new]`";
            self.at("model", "model.base", message);
        }
        if new && !self.has("model.tokenizer") {
            self.at(
                "model.new",
                "model.tokenizer",
                "a new model needs `tokenizer = \"FILE OR FOLDER\"` in `[model]`",
            );
        }
    }

    fn stage(&mut self, stage: &str) {
        for (one, other) in ALTERNATIVES {
            let (one, other) = (format!("{stage}.{one}"), format!("{stage}.{other}"));
            if self.has(&one) && self.has(&other) {
                self.at(
                    &other,
                    &other,
                    &format!("`{one}` is given too and says the same; remove one of the two"),
                );
            }
        }
        self.needs_data(stage);
        self.constraints(stage);
        let text =
            |key: &str| self.root.find(&format!("{stage}.{key}")).and_then(Node::str).map(str::to_owned);
        let method = text("train.method").unwrap_or_else(|| Method::Full.as_str().to_owned());
        let schedule = text("schedule.type").unwrap_or_else(|| ScheduleType::Linear.as_str().to_owned());
        let quant = text("quantization.type").unwrap_or_else(|| "nf4".to_owned());
        let written = |name: &str, value: &str| format!("`{name} = {value:?}`");
        let full = method == Method::Full.as_str();
        let falls_late = schedule == ScheduleType::WarmupStableDecay.as_str();
        let not_qlora = method != Method::Qlora.as_str();
        let kind = text("type").unwrap_or_default();
        let from_data = crate::StageType::named(&kind).is_some_and(|kind| kind.rollout.is_none());
        let credit = crate::StageType::named(&kind).and_then(|kind| Some(kind.rollout?.credit));
        let is_kind = |credits: &[Credit]| credit.is_some_and(|credit| credits.contains(&credit));
        let teacher = format!("{stage}.distillation.teacher");
        let has_teacher = is_kind(&[Credit::Teacher, Credit::Divergence]);
        let of_rows = is_kind(&[Credit::Divergence]);
        // Neither these rows nor what is made of these samples is compared with a reference.
        let reads_no_reference = has_teacher
            || is_kind(&[Credit::Best])
            || (from_data && crate::StageType::named(&kind).is_some_and(StageType::never_reads_reference));
        if has_teacher && !self.has(&teacher) {
            self.at(stage, &teacher, "which teacher? give `distillation.teacher = \"FOLDER OR HUB NAME\"`");
        }
        for (key, useless, because) in [
            ("ppo", !is_kind(&[Credit::Values]), written("type", &kind)),
            ("distillation", !has_teacher, written("type", &kind)),
            ("distillation.lmbda", has_teacher && !of_rows, written("type", &kind)),
            ("distillation.seq_kd", has_teacher && !of_rows, written("type", &kind)),
            (
                "ppo.critic_learning_rate",
                !self.has(&format!("{stage}.ppo.critic")),
                "a value head, which trains with the policy: give `ppo.critic`".to_owned(),
            ),
            (
                "objective.vf_coef",
                self.has(&format!("{stage}.ppo.critic")),
                "`ppo.critic`, which learns values by itself".to_owned(),
            ),
            ("reference", reads_no_reference, written("type", &kind)),
            (
                "reference.mixup_alpha",
                !self.has(&format!("{stage}.reference.sync_steps")),
                "a reference that stays as it is: give `reference.sync_steps`".to_owned(),
            ),
            ("online.mixture_coef", !is_kind(&[Credit::Mixture]), written("type", &kind)),
            ("online.min_reward", !is_kind(&[Credit::Best]), written("type", &kind)),
            (
                "rollout.reward_kl",
                is_kind(&[Credit::Values]),
                "`[stage.ppo]`, whose `kl_coef` says it".to_owned(),
            ),
            ("rollout", from_data, written("type", &kind)),
            ("environment", from_data || of_rows, written("type", &kind)),
            ("server", from_data || of_rows, written("type", &kind)),
            ("reward", from_data || of_rows, written("type", &kind)),
            ("lora", full, written("train.method", &method)),
            ("quantization", not_qlora, written("train.method", &method)),
            ("quantization.double", !not_qlora && quant != "nf4", written("quantization.type", &quant)),
            ("schedule.decay_ratio", !falls_late, written("schedule.type", &schedule)),
            ("schedule.decay_shape", !falls_late, written("schedule.type", &schedule)),
            ("schedule.min_ratio", schedule == "constant", written("schedule.type", &schedule)),
        ] {
            let key = format!("{stage}.{key}");
            if useless && self.has(&key) {
                self.at(&key, &key, &format!("has no effect with {because}; change that, or remove it"));
            }
        }
        if of_rows {
            self.only_sampling(stage, &kind);
        }
        for (key, because) in crate::sampling_keys::useless(&|key| self.has(&format!("{stage}.{key}"))) {
            let key = format!("{stage}.{key}");
            if self.has(&key) {
                self.at(&key, &key, &format!("has no effect with {because}; give that, or remove this"));
            }
        }
    }

    /// Of the keys of rollouts, a stage that weighs no samples reads those of sampling alone.
    fn only_sampling(&mut self, stage: &str, kind: &str) {
        const READ: &[&str] = &["max_new_tokens", "temperature", "top_k", "top_p", "min_p"];
        let path = format!("{stage}.rollout");
        let table = self.root.find(&path).and_then(Node::table);
        let written: Vec<String> =
            table.iter().flat_map(|t| t.0.iter().map(|(key, ..)| key.clone())).collect();
        for key in written.iter().filter(|key| !READ.contains(&key.as_str())) {
            let key = format!("{path}.{key}");
            self.at(&key, &key, &format!("has no effect with `type = {kind:?}`; change that, or remove it"));
        }
    }

    fn new_model_sizes(&mut self, recipe: &RecipeFile) {
        let Some(new) = &recipe.model.new else { return };
        let (heads, width) = (new.num_attention_heads, new.hidden_size);
        let kv_heads = new.num_key_value_heads.unwrap_or(heads);
        if !width.is_multiple_of(heads) || !(width / heads).is_multiple_of(2) {
            let message = format!("{heads} heads do not divide a width of {width} into even parts");
            self.at("model.new.num_attention_heads", "model.new.num_attention_heads", &message);
        }
        if !heads.is_multiple_of(kv_heads) {
            let message = format!("{kv_heads} does not divide the {heads} attention heads");
            self.at("model.new.num_key_value_heads", "model.new.num_key_value_heads", &message);
        }
    }

    fn schedules(&mut self, recipe: &RecipeFile) {
        for (i, stage) in recipe.stage.iter().enumerate() {
            if let (Some(warmup), Some(steps)) = (stage.schedule.warmup_steps, stage.train.steps)
                && warmup > steps
            {
                let key = format!("stage.{i}.schedule.warmup_steps");
                self.at(
                    &key,
                    &key,
                    &format!("{warmup} steps of warm-up do not fit the stage's {steps} steps"),
                );
            }
        }
    }

    fn mixtures(&mut self, recipe: &RecipeFile) {
        for (i, stage) in recipe.stage.iter().enumerate() {
            let eval = stage.data.eval.iter().flatten().enumerate().map(|(j, source)| ("eval", j, source));
            let train = stage.data.train.iter().enumerate().map(|(j, source)| ("train", j, source));
            let n_weighted = stage.data.train.iter().filter(|source| source.weight.is_some()).count();
            for (list, j, source) in train.chain(eval) {
                let key = |name: &str| format!("stage.{i}.data.{list}.{j}.{name}");
                let mixed = list == "train" && n_weighted > 0;
                if list == "eval" && (source.weight.is_some() || source.repeats.is_some()) {
                    let key = key(if source.weight.is_some() { "weight" } else { "repeats" });
                    self.at(&key, &key, "has no effect: every held-out row is scored once; remove it");
                } else if mixed && source.repeats.is_some() {
                    self.at(
                        &key("repeats"),
                        &key("repeats"),
                        "has no effect beside `weight`; remove one of the two",
                    );
                } else if mixed && source.weight.is_none() {
                    self.at(
                        &key("weight"),
                        &key("weight"),
                        "other sources have a `weight`; give it to all or to none",
                    );
                }
            }
            let key = format!("stage.{i}.data.stopping_strategy");
            if n_weighted == 0 && self.has(&key) {
                self.at(
                    &key,
                    &key,
                    "has no effect while no source has a `weight`; remove it, or give weights",
                );
            }
        }
    }

    fn stage_names_differ(&mut self, recipe: &RecipeFile) {
        let names = stage_names(&recipe.stage);
        for (i, name) in names.iter().enumerate() {
            let key = format!("stage.{i}.name");
            if names[..i].contains(name) {
                self.at(&key, &key, &format!("another stage is called `{name}` already"));
            }
            if name == crate::recipe::MODEL {
                self.at(
                    &key,
                    &key,
                    "`model` is the one the recipe begins with; call the stage something else",
                );
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if !name.chars().all(plain) || name.chars().all(|c| c.is_ascii_digit()) {
                let message = format!(
                    "{name:?} names a folder: use letters, digits, `-` and `_`, and not digits alone"
                );
                self.at(&key, &key, &message);
            }
        }
    }

    fn type_of(&self, stage: &str) -> Option<String> {
        self.root.find(&format!("{stage}.type")).and_then(Node::str).map(str::to_owned)
    }

    fn has(&self, path: &str) -> bool {
        self.root.find(path).is_some()
    }

    fn count(&self, path: &str) -> usize {
        (0..).take_while(|i| self.has(&format!("{path}.{i}"))).count()
    }

    /// A problem at the place of `path`, or of the nearest table around it that was written.
    fn at(&mut self, path: &str, key: &str, message: &str) {
        let mut path = path;
        let at = loop {
            match (self.root.find(path), path.rsplit_once('.')) {
                (Some(node), _) => break node.at.clone(),
                (None, Some((around, _))) => path = around,
                (None, None) => break Location::File { line: 1, column: 1 },
            }
        };
        self.reader.problem(&at, key, message.to_owned());
    }
}

mod constraints;
mod works;

#[cfg(test)]
mod tests;
