//! Checks of stages that train nothing, and of what stages name of each other.

use super::{Checks, stage_names};
use crate::keys::RecipeFile;
use crate::recipe::{Reference, references_in};
use crate::stage_types::{Product, StageType, WorkType, product_of};
use crate::tree::{Node, NodeValue};
use crate::work_keys::{FeedbackTask, MergeMethod, SECTIONS_OF_WORKS, is_of_eval_stages};

/// For each section, keys of which at least one must be written, and what to write.
const NEEDED: &[(&str, &[&str], &str)] = &[
    ("curate", &["sources", "file"], "curate.sources = [\"data/raw.jsonl\"]"),
    ("feedback", &["sources"], "feedback.sources = [\"data/prompts.jsonl\"]"),
    ("feedback", &["model", "server"], "feedback.model = \"stage:NAME\" or feedback.server = \"URL\""),
    ("eval", &["benchmarks", "tasks"], "eval.benchmarks = [\"gsm8k\"] or eval.tasks = [\"generated:sum\"]"),
    ("merge", &["models"], "merge.models = [\"stage:A\", \"stage:B\"]"),
];

/// Keys of `[stage.feedback]` that only some tasks read, and those tasks.
const OF_TASKS: &[(&[&str], &[FeedbackTask])] = &[
    (&["rounds", "keep_truncated"], &[FeedbackTask::Revise, FeedbackTask::Both]),
    (&["swap", "principles", "tie_margin"], &[FeedbackTask::Judge, FeedbackTask::Both]),
    // The temperature of `both` is that of its revisions; its judge has 0, where a second vote is the first again.
    (&["respond", "votes"], &[FeedbackTask::Judge]),
];
/// Keys of `[stage.feedback]` that belong to another one.
const OF_OTHERS: &[(&[&str], &str)] = &[
    (&["server_model", "api_key_file", "parallel"], "server"),
    (&["respond_temperature", "respond_max_new_tokens"], "respond"),
];

/// Keys of `[stage.merge]` and the methods that read them.
const OF_MERGES: &[(&str, &[MergeMethod])] = &[
    ("base", &[MergeMethod::Ties, MergeMethod::Dare]),
    ("density", &[MergeMethod::Ties, MergeMethod::Dare]),
    ("scale", &[MergeMethod::Ties, MergeMethod::Dare]),
];

impl Checks<'_, '_> {
    /// A stage that trains: it has data, and no section or key of stages that do not.
    pub(super) fn needs_data(&mut self, stage: &str) {
        if !self.has(&format!("{stage}.data.train")) {
            let key = format!("{stage}.data.train");
            self.at(&key, &key, "is required; add it, for example `train = [\"data/train.jsonl\"]`");
        }
        let Some(kind) = self.type_of(stage).filter(|name| StageType::named(name).is_some()) else { return };
        let of_eval = self.keys_of(&format!("{stage}.eval"));
        let of_eval = of_eval.into_iter().filter(|key| is_of_eval_stages(&format!("stage.eval.{key}")));
        let useless = of_eval.map(|key| format!("eval.{key}"));
        let useless = useless.chain(SECTIONS_OF_WORKS.iter().map(|name| (*name).to_owned()));
        for key in useless.collect::<Vec<_>>() {
            self.refuse_useless(&format!("{stage}.{key}"), &kind);
        }
    }

    /// A stage that trains nothing: only the sections that it reads, and what it cannot do without.
    pub(super) fn work(&mut self, stage: &str, work: &WorkType) {
        for key in self.keys_of(stage) {
            if !["type", "name"].contains(&key.as_str()) && !work.sections.contains(&key.as_str()) {
                self.refuse_useless(&format!("{stage}.{key}"), work.name);
            }
        }
        for (section, keys, example) in NEEDED.iter().filter(|(section, ..)| *section == work.sections[0]) {
            if !keys.iter().any(|key| self.has(&format!("{stage}.{section}.{key}"))) {
                let first = format!("{stage}.{section}.{}", keys[0]);
                let message = format!("a stage of type \"{}\" needs it; write {example}", work.name);
                self.at(&first, &first, &message);
            }
        }
        if work.sections[0] == "feedback" {
            self.feedback(stage);
        }
        if work.sections[0] == "merge" {
            self.merge(stage);
        }
        if self.has(&format!("{stage}.gate")) && !self.has(&format!("{stage}.gate.max_loss")) {
            let key = format!("{stage}.gate.max_loss");
            self.at(
                &key,
                &key,
                "without it the gate lets everything pass; give `max_loss = 0.02`, or remove the section",
            );
        }
    }

    /// Keys of feedback that have no effect as the rest is written.
    fn feedback(&mut self, stage: &str) {
        let section = format!("{stage}.feedback");
        let task = self.root.find(&format!("{section}.task")).and_then(Node::str);
        let task = task.unwrap_or(FeedbackTask::Revise.as_str()).to_owned();
        let of_tasks = OF_TASKS.iter().filter(|(_, tasks)| !tasks.iter().any(|read| read.as_str() == task));
        let mut useless: Vec<(&str, String)> = of_tasks
            .flat_map(|(keys, _)| keys.iter().map(|key| (*key, format!("`task = {task:?}`"))))
            .collect();
        for (keys, other) in OF_OTHERS.iter().filter(|(_, other)| !self.has(&format!("{section}.{other}"))) {
            useless.extend(keys.iter().map(|key| (*key, format!("no `{other}`"))));
        }
        let respond = format!("{section}.respond");
        let named = self.root.find(&respond).map(|node| &node.value);
        if matches!(named, Some(NodeValue::List(models)) if models.len() > 2) {
            self.at(&respond, &respond, "names one or two models: a pair has two replies");
        }
        if self.has(&format!("{section}.model")) {
            useless.push(("server", "`model`, which answers in its place".to_owned()));
        }
        for (key, because) in useless {
            let key = format!("{section}.{key}");
            if self.has(&key) {
                self.at(&key, &key, &format!("has no effect with {because}; change that, or remove it"));
            }
        }
    }

    /// Keys of a merge that its method does not read.
    fn merge(&mut self, stage: &str) {
        let section = format!("{stage}.merge");
        let method = self.root.find(&format!("{section}.method")).and_then(Node::str);
        let method = method.unwrap_or(MergeMethod::Linear.as_str()).to_owned();
        for (key, methods) in OF_MERGES {
            let key = format!("{section}.{key}");
            if self.has(&key) && !methods.iter().any(|read| read.as_str() == method) {
                let names: Vec<&str> = methods.iter().map(|method| method.as_str()).collect();
                let advice = format!("write {}, or remove it", names.join(" or "));
                self.at(&key, &key, &format!("has no effect with `method = {method:?}`; {advice}"));
            }
        }
    }

    fn refuse_useless(&mut self, key: &str, kind: &str) {
        if self.has(key) {
            self.at(key, key, &format!("has no effect with `type = {kind:?}`; change that, or remove it"));
        }
    }

    fn keys_of(&self, path: &str) -> Vec<String> {
        let table = self.root.find(path).and_then(Node::table);
        table.map(|table| table.0.iter().map(|(key, ..)| key.clone()).collect()).unwrap_or_default()
    }

    /// `stage:NAME` is an earlier stage, which makes what is wanted of it.
    pub(super) fn references(&mut self, recipe: &RecipeFile) {
        let names = stage_names(&recipe.stage);
        for i in 0..recipe.stage.len() {
            let path = format!("stage.{i}");
            let Some(node) = self.root.find(&path) else { continue };
            let found = references_in(node, &path);
            let kinds: Vec<&str> = recipe.stage[..i].iter().map(|stage| stage.r#type.as_str()).collect();
            for reference in found {
                if let Some(problem) = problem_of(&reference, &names[..i], &kinds) {
                    self.reader.problem(&reference.at, &reference.path, problem);
                }
            }
            let base = recipe.stage[i].base.as_deref();
            if base.is_some_and(|base| base != "model" && !base.starts_with("stage:")) {
                let key = format!("{path}.base");
                self.at(
                    &key,
                    &key,
                    "is `model`, the one the recipe begins with, or `stage:NAME`, an earlier stage's",
                );
            }
        }
    }
}

/// What is wrong with a reference to one of the earlier stages, called `names`, of types `kinds`.
fn problem_of(reference: &Reference, names: &[String], kinds: &[&str]) -> Option<String> {
    let name = reference.stage();
    let Some(at) = names.iter().position(|known| known == name) else {
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        return Some(format!(
            "no earlier stage is called `{name}`; {}",
            pt_core::suggest::hint(name, &known)
        ));
    };
    let product = product_of(kinds[at]);
    let wanted = match reference.is_of_rows() {
        true => product == Product::Rows,
        false if reference.path.contains(".reward.") || reference.path.ends_with(".ppo.critic") => {
            matches!(product, Product::Scorer | Product::Model)
        }
        false => product == Product::Model,
    };
    if wanted {
        return None;
    }
    let wanted = if reference.is_of_rows() { "rows" } else { "a model" };
    let made = match product {
        Product::Model => "a model",
        Product::Scorer => "a reward model",
        Product::Rows => "rows",
        Product::Nothing => "nothing that a stage reads",
    };
    Some(format!("here {wanted} can stand, and the stage `{name}`, of type `{}`, makes {made}", kinds[at]))
}
