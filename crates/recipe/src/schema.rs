//! How a section is declared once, and read, checked and documented from that one declaration.

use crate::problem::{Location, Problem};
use crate::tree::{Node, NodeValue, Table};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a key accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Any text but the empty one.
    String,
    /// `true` or `false`.
    Bool,
    /// A whole number in a range, both ends included.
    Int {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// A number in a range, both ends included. Never NaN or infinite.
    Float {
        /// Least value.
        min: f64,
        /// Greatest value.
        max: f64,
    },
    /// One of a few names.
    Choice(&'static [&'static str]),
    /// The name of an entry of a catalogue.
    Component(ComponentKind),
    /// A list of texts, or one text.
    Strings,
    /// A list of numbers.
    Floats,
    /// A table from text to text.
    StringTable,
    /// Sources of rows: texts or tables, or one text.
    Sources,
}

/// The catalogues whose entries a recipe names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentKind {
    /// What is minimised.
    Objective,
    /// How gradients become updates.
    Optimizer,
    /// How the columns of a row are understood.
    Layout,
    /// What a reply is worth.
    Verifier,
    /// What answers between turns.
    Environment,
}

/// What a key means when it is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must be written.
    Required {
        /// A typical value, as TOML.
        example: &'static str,
    },
    /// This value, as TOML.
    Value(&'static str),
    /// A value that depends on something else.
    Derived {
        /// On what, and how.
        rule: &'static str,
        /// A typical value, as TOML.
        example: &'static str,
    },
}

/// One key of a recipe: the only place where its type, default and meaning are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyDoc {
    /// The section it belongs to, as in `stage.train`; empty at the top.
    pub section: &'static str,
    /// Its name.
    pub key: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// What it means when it is not written.
    pub default: Fallback,
    /// A value other than the default and the example, as TOML.
    pub alternative: &'static str,
    /// What it does.
    pub doc: &'static str,
}

impl KeyDoc {
    /// The name as written in a recipe.
    pub fn name(&self) -> &'static str {
        self.key.strip_prefix("r#").unwrap_or(self.key)
    }

    /// The dotted path, as in `stage.train.epochs`.
    pub fn path(&self) -> String {
        join(self.section, self.name())
    }

    /// The path a `--set` argument takes to try the key on stage `stage` (from 0), as in `stage.0.train.epochs`; for a key that
    /// stages read which train nothing, on the stage after it.
    pub fn set_path(&self, stage: usize) -> String {
        match self.path().strip_prefix("stage.") {
            Some(rest) => format!("stage.{}.{rest}", self.tried_on(stage)),
            None => self.path(),
        }
    }

    /// The stage the key is tried on: `stage`, or one after it.
    fn tried_on(&self, stage: usize) -> usize {
        let path = self.path();
        stage + usize::from(path == "stage.base" || crate::work_keys::is_of_works(&path))
    }

    /// What else must be set on stage `stage` for the key to have an effect, as `--set` arguments; see [`KeyDoc::set_path`].
    pub fn set_beside(&self, stage: usize) -> Vec<String> {
        let needed: &[&str] = match self.path().as_str() {
            "stage.quantization.type" | "stage.quantization.double" => &["train.method=qlora"],
            "stage.schedule.decay_ratio" | "stage.schedule.decay_shape" => {
                &["schedule.type=warmup_stable_decay"]
            }
            "stage.data.stopping_strategy" => &["data.train.0.weight=1"],
            path if path.starts_with("stage.lora.") => &["train.method=lora"],
            "stage.ppo.kl_horizon" => &["type=ppo", "ppo.kl_target=6"],
            "stage.online.mixture_coef" => &["type=nash_md"],
            "stage.online.min_reward" => &["type=rejection"],
            "stage.distillation.teacher" => &["type=distillation"],
            path if path.starts_with("stage.distillation.") => {
                &["type=gkd", "distillation.teacher=models/teacher"]
            }
            "stage.reference.mixup_alpha" => &["type=grpo", "objective.beta=0.1", "reference.sync_steps=4"],
            path if path.starts_with("stage.reference.") => &["type=grpo", "objective.beta=0.1"],
            "stage.base" => &["type=pretrain", "data.train=generated:raw?chars=2000"],
            path if crate::work_keys::is_of_eval_stages(path) => {
                &["type=eval", "eval.tasks=generated:letters?level=1&n=20"]
            }
            path if path.starts_with("stage.gate.") => {
                &["type=eval", "eval.tasks=generated:letters?level=1&n=20", "gate.max_loss=0.1"]
            }
            "stage.curate.sources" => &["type=curate", "curate.sources=generated:letters?level=1&n=9"],
            path if path.starts_with("stage.curate.") => {
                &["type=curate", "curate.sources=generated:letters?level=1&n=9"]
            }
            "stage.feedback.model" => &["type=feedback", "feedback.sources=generated:letters?level=1&n=9"],
            "stage.feedback.respond" => &[
                "type=feedback",
                "feedback.sources=generated:letters?level=1&n=9",
                "feedback.server=http://127.0.0.1:8000/v1",
                "feedback.task=judge",
            ],
            "stage.feedback.respond_temperature" | "stage.feedback.respond_max_new_tokens" => &[
                "type=feedback",
                "feedback.sources=generated:letters?level=1&n=9",
                "feedback.server=http://127.0.0.1:8000/v1",
                "feedback.task=judge",
                "feedback.respond=[\"model\"]",
            ],
            "stage.feedback.votes" => &[
                "type=feedback",
                "feedback.sources=generated:letters?level=1&n=9",
                "feedback.server=http://127.0.0.1:8000/v1",
                "feedback.task=judge",
                "feedback.temperature=0.7",
            ],
            "stage.feedback.swap" | "stage.feedback.principles" | "stage.feedback.tie_margin" => &[
                "type=feedback",
                "feedback.sources=generated:letters?level=1&n=9",
                "feedback.server=http://127.0.0.1:8000/v1",
                "feedback.task=judge",
            ],
            path if path.starts_with("stage.feedback.") => &[
                "type=feedback",
                "feedback.sources=generated:letters?level=1&n=9",
                "feedback.server=http://127.0.0.1:8000/v1",
            ],
            "stage.merge.base" | "stage.merge.density" | "stage.merge.scale" => &[
                "type=merge",
                "merge.models=[\"model\", \"model\"]",
                "merge.base=model",
                "merge.method=ties",
            ],
            path if path.starts_with("stage.merge.") => {
                &["type=merge", "merge.models=[\"model\", \"model\"]"]
            }
            path if path.starts_with("stage.export.") => &["type=export", "export.format=gguf"],
            "stage.ppo.critic_learning_rate" => &["type=ppo", "ppo.critic=policy"],
            path if path.starts_with("stage.ppo.") => &["type=ppo"],
            "stage.environment.type" => &["type=grpo"],
            path if path.starts_with("stage.environment.") => {
                &["type=grpo", "environment.type=command", "environment.command=['true']"]
            }
            "stage.server.url" => &["type=grpo"],
            "stage.server.reload_timeout_s" => {
                &["type=grpo", "server.url=http://127.0.0.1:1/v1", "server.reload_command=['true', '{path}']"]
            }
            "stage.server.reload_body" | "stage.server.reload_every" => &[
                "type=grpo",
                "server.url=http://127.0.0.1:1/v1",
                "server.reload_url=http://127.0.0.1:1/reload",
            ],
            path if path.starts_with("stage.server.") => &["type=grpo", "server.url=http://127.0.0.1:1/v1"],
            path if path.starts_with("stage.rollout.") => &["type=grpo"],
            path if path.starts_with("stage.reward.0.multiplier_") => {
                &["type=grpo", "reward.0.type=math", "reward.0.at_least=0.9"]
            }
            path if path.starts_with("stage.reward.") => &["type=grpo", "reward.0.type=math"],
            _ => &[],
        };
        let stage = self.tried_on(stage);
        needed.iter().map(|set| format!("stage.{stage}.{set}")).collect()
    }

    /// A typical value, as TOML: the default where there is a fixed one.
    pub fn example(&self) -> &'static str {
        match self.default {
            Fallback::Required { example } | Fallback::Derived { example, .. } | Fallback::Value(example) => {
                example
            }
        }
    }
}

/// A section of a recipe, for the reference.
#[derive(Clone, Copy, Debug)]
pub struct SectionDoc {
    /// Its path, as in `stage.train`; empty at the top.
    pub path: &'static str,
    /// How its header is written, as in `[stage.train]`.
    pub header: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// Its keys.
    pub keys: &'static [KeyDoc],
    /// The catalogue whose entry owns the section's other keys.
    pub open_to: Option<ComponentKind>,
}

/// One entry of a catalogue, as far as a recipe needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The value of `type`.
    pub name: String,
    /// The parameters it owns.
    pub keys: Vec<String>,
}

/// The components a recipe may name, given from above: this crate knows none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Objectives.
    pub objectives: Vec<Component>,
    /// Optimisers. Their parameters do not include `learning_rate`, which is the recipe's.
    pub optimizers: Vec<Component>,
    /// Dataset layouts; they own no keys.
    pub layouts: Vec<Component>,
    /// Verifiers.
    pub verifiers: Vec<Component>,
    /// Environments.
    pub environments: Vec<Component>,
}

impl Catalogue {
    /// The entries of one kind.
    pub fn of(&self, kind: ComponentKind) -> &[Component] {
        match kind {
            ComponentKind::Objective => &self.objectives,
            ComponentKind::Optimizer => &self.optimizers,
            ComponentKind::Layout => &self.layouts,
            ComponentKind::Verifier => &self.verifiers,
            ComponentKind::Environment => &self.environments,
        }
    }
}

/// A component's own parameters, as written, to be checked by the component.
#[derive(Clone, Debug, Default)]
pub struct Params {
    section: String,
    values: serde_json::Map<String, Value>,
    places: BTreeMap<String, Location>,
}

impl PartialEq for Params {
    fn eq(&self, other: &Params) -> bool {
        self.values == other.values
    }
}

impl Serialize for Params {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.values.serialize(serializer)
    }
}

impl Params {
    /// The parameters as JSON.
    pub fn values(&self) -> &serde_json::Map<String, Value> {
        &self.values
    }

    /// The parameters as a TOML table.
    ///
    /// # Panics
    /// Never on what a recipe can hold: TOML has every value that was read from TOML.
    pub fn to_toml(&self) -> toml::Table {
        toml::Table::try_from(&self.values).expect("values read from TOML are TOML")
    }

    /// The parameters as the component's own type, which has `deny_unknown_fields` and defaults.
    ///
    /// # Errors
    /// A [`Problem`] with the place of the parameter the message names.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_value(Value::Object(self.values.clone())).map_err(|error| {
            let message = error.to_string();
            let named = self.values.keys().find(|key| message.contains(&format!("`{key}`")));
            // serde names the field only when it is unknown or missing; else try each key alone.
            let culprit =
                named.cloned().or_else(|| self.values.keys().find(|key| self.alone_fails::<T>(key)).cloned());
            self.problem(culprit.as_deref().unwrap_or(""), message)
        })
    }

    /// A problem with the parameter `key`, found by the component itself.
    pub fn problem(&self, key: &str, message: String) -> Problem {
        let first = || self.places.values().next().cloned();
        let at =
            self.places.get(key).cloned().or_else(first).unwrap_or(Location::File { line: 1, column: 1 });
        Problem { at, key: join(&self.section, key), message }
    }

    /// Whether `key` by itself, without the others, gives an error about a value.
    fn alone_fails<T: DeserializeOwned>(&self, key: &str) -> bool {
        let alone = serde_json::Map::from_iter([(key.to_owned(), self.values[key].clone())]);
        serde_json::from_value::<T>(Value::Object(alone)).is_err()
    }
}

/// What reading collects.
pub(crate) struct Reader<'c> {
    pub catalogue: &'c Catalogue,
    pub problems: Vec<Problem>,
    /// The innermost section being read that was written: where what it lacks is reported.
    pub inside: Location,
}

impl Reader<'_> {
    pub fn problem(&mut self, at: &Location, key: &str, message: String) {
        self.problems.push(Problem { at: at.clone(), key: key.to_owned(), message });
    }

    /// The value of one key of the section `table`, or its default.
    pub fn key<T: FromNode>(&mut self, path: &str, section: Option<&Node>, doc: &KeyDoc) -> Option<T> {
        let path = join(path, doc.name());
        if let Some(node) = section.and_then(Node::table).and_then(|table| table.get(doc.name())) {
            return T::from_node(self, &path, node, &doc.kind);
        }
        match doc.default {
            Fallback::Value(text) => {
                let root = crate::tree::parse(&format!("value = {text}")).expect("a default is TOML");
                T::from_node(self, &path, root.find("value").expect("it was just written"), &doc.kind)
            }
            Fallback::Derived { .. } => Some(
                T::absent()
                    .unwrap_or_else(|| panic!("{path} has a derived default, so its field is an Option")),
            ),
            Fallback::Required { example } => {
                let at = self.inside.clone();
                self.problem(
                    &at,
                    &path,
                    format!("is required; add it, for example `{} = {example}`", doc.name()),
                );
                None
            }
        }
    }

    /// Reports keys that `known` lacks, or hands them to the component that owns them.
    pub fn rest(
        &mut self,
        path: &str,
        section: Option<&Node>,
        known: &[&str],
        open_to: Option<ComponentKind>,
        default_type: Option<&str>,
    ) -> Params {
        let mut params = Params { section: path.to_owned(), ..Params::default() };
        let Some(table) = section.and_then(Node::table) else { return params };
        let owner = open_to.map(|kind| (kind, table.get("type").and_then(Node::str).or(default_type)));
        for (key, at, node) in &table.0 {
            if known.contains(&key.as_str()) {
                continue;
            }
            match self.owned_keys(owner) {
                Ok(owned) if owned.iter().any(|k| k == key) => {
                    params.values.insert(key.clone(), node.to_json());
                    params.places.insert(key.clone(), at.clone());
                }
                Ok(owned) => {
                    let all: Vec<&str> =
                        known.iter().copied().chain(owned.iter().map(String::as_str)).collect();
                    self.problem(at, &join(path, key), format!("unknown key; {}", hint(key, &all)));
                }
                Err(Some(message)) => self.problem(at, &join(path, key), message),
                Err(None) => {}
            }
        }
        params
    }

    /// The parameters of the component a section names. `Err(None)`: its type is unknown, which is
    /// reported where the type is read.
    fn owned_keys(
        &self,
        owner: Option<(ComponentKind, Option<&str>)>,
    ) -> Result<Vec<String>, Option<String>> {
        let Some((kind, name)) = owner else { return Ok(Vec::new()) };
        let name =
            name.ok_or_else(|| Some("give `type` beside it: the key belongs to one type".to_owned()))?;
        let component = self.catalogue.of(kind).iter().find(|component| component.name == name);
        component.map(|component| component.keys.clone()).ok_or(None)
    }

    /// The table of a section, or a problem when something else stands there.
    pub fn section<'n>(&mut self, path: &str, node: Option<&'n Node>) -> Option<Option<&'n Node>> {
        match node {
            Some(node) if node.table().is_none() => {
                self.problem(
                    &node.at,
                    path,
                    format!("expected a table, `[{path}]`, found {}", node.describe()),
                );
                None
            }
            node => {
                if let Some(node) = node {
                    self.inside = node.at.clone();
                }
                Some(node)
            }
        }
    }
}

/// A value read from one key.
pub(crate) trait FromNode: Sized {
    /// Reads `node`, which must be of `kind`; reports a problem and returns `None` otherwise.
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, kind: &Kind) -> Option<Self>;

    /// The value that stands for "not written", where the type has one.
    fn absent() -> Option<Self> {
        None
    }
}

/// A section: a struct of keys and sections.
pub(crate) trait FromTable: Sized {
    /// Reads the section from `node`; an absent one has its defaults.
    fn from_table(reader: &mut Reader<'_>, path: &str, node: Option<&Node>) -> Option<Self>;
}

impl<T: FromTable> FromTable for Option<T> {
    fn from_table(reader: &mut Reader<'_>, path: &str, node: Option<&Node>) -> Option<Self> {
        match node {
            Some(_) => T::from_table(reader, path, node).map(Some),
            None => Some(None),
        }
    }
}

impl<T: FromTable> FromTable for Vec<T> {
    fn from_table(reader: &mut Reader<'_>, path: &str, node: Option<&Node>) -> Option<Self> {
        let Some(node) = node else { return Some(Vec::new()) };
        let NodeValue::List(items) = &node.value else {
            let message = format!("expected a list of tables, `[[{path}]]`, found {}", node.describe());
            reader.problem(&node.at, path, message);
            return None;
        };
        let read = |(i, item)| T::from_table(reader, &format!("{path}.{i}"), Some(item));
        // Every item is read before the first failure counts, so that all problems are reported.
        items.iter().enumerate().map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

impl<T: FromNode> FromNode for Option<T> {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, kind: &Kind) -> Option<Self> {
        T::from_node(reader, path, node, kind).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl FromNode for bool {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, _: &Kind) -> Option<Self> {
        match node.value {
            NodeValue::Bool(value) => Some(value),
            _ => wrong(reader, path, node, "true or false"),
        }
    }
}

impl FromNode for u64 {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, kind: &Kind) -> Option<Self> {
        const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
        let &Kind::Int { min, max } = kind else {
            panic!("{path}: an integer field is declared as {kind:?}")
        };
        let value = match node.value {
            NodeValue::Int(value) => u64::try_from(value).ok(),
            // `1e6` is a float to TOML and a whole number to people.
            NodeValue::Float(value) if value.fract() == 0.0 && (0.0..=EXACT).contains(&value) => {
                Some(value as u64)
            }
            NodeValue::Float(_) => None,
            _ => return wrong(reader, path, node, "a whole number"),
        };
        let expected = format!("a whole number from {min} to {max}");
        value.filter(|v| (min..=max).contains(v)).or_else(|| wrong(reader, path, node, &expected))
    }
}

impl FromNode for f64 {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, kind: &Kind) -> Option<Self> {
        let &Kind::Float { min, max } = kind else {
            panic!("{path}: a number field is declared as {kind:?}")
        };
        let value = match node.value {
            NodeValue::Int(value) => value as f64,
            NodeValue::Float(value) => value,
            _ => return wrong(reader, path, node, "a number"),
        };
        let expected = format!("a number from {min:?} to {max:?}");
        Some(value).filter(|v| (min..=max).contains(v)).or_else(|| wrong(reader, path, node, &expected))
    }
}

impl FromNode for String {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, kind: &Kind) -> Option<Self> {
        let Some(text) = node.str().filter(|text| !text.trim().is_empty()) else {
            return wrong(reader, path, node, "a string that is not empty");
        };
        if let Some(names) = accepted_names(reader.catalogue, kind)
            && !names.contains(&text)
        {
            let message = format!("unknown value {text:?}; {}", pt_core::suggest::hint(text, &names));
            reader.problem(&node.at, path, message);
            return None;
        }
        Some(text.to_owned())
    }
}

impl FromNode for Vec<String> {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, _: &Kind) -> Option<Self> {
        let one = std::slice::from_ref(node);
        let items = match &node.value {
            NodeValue::List(items) if !items.is_empty() => items.as_slice(),
            NodeValue::String(_) => one,
            _ => return wrong(reader, path, node, "a list of strings that is not empty"),
        };
        let read = |item| String::from_node(reader, path, item, &Kind::String);
        items.iter().map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

impl FromNode for Vec<f64> {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, _: &Kind) -> Option<Self> {
        let NodeValue::List(items) = &node.value else {
            return wrong(reader, path, node, "a list of numbers");
        };
        if items.is_empty() {
            return wrong(reader, path, node, "a list of numbers that is not empty");
        }
        let any = Kind::Float { min: f64::MIN, max: f64::MAX };
        let read = |item| f64::from_node(reader, path, item, &any);
        items.iter().map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

impl FromNode for BTreeMap<String, String> {
    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, _: &Kind) -> Option<Self> {
        let Some(Table(entries)) = node.table() else {
            return wrong(reader, path, node, "a table of strings, as in { prompt = \"question\" }");
        };
        let read = |(key, _, node): &(String, Location, Node)| {
            String::from_node(reader, &join(path, key), node, &Kind::String).map(|text| (key.clone(), text))
        };
        entries.iter().map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

/// Reports that `node` is not what it should be.
pub(crate) fn wrong<T>(reader: &mut Reader<'_>, path: &str, node: &Node, expected: &str) -> Option<T> {
    reader.problem(&node.at, path, format!("expected {expected}, found {}", node.describe()));
    None
}

/// Where an unknown key belongs: another section, TRL's name for ours, or the nearest name here.
fn hint(key: &str, known: &[&str]) -> String {
    let mut namesakes = crate::documented_keys().filter(|doc| doc.name() == key);
    if let (Some(doc), None) = (namesakes.next(), namesakes.next()) {
        return format!("`{key}` belongs in `{}`", crate::keys::header_of(doc.section));
    }
    match crate::keys::TRL_NAMES.iter().find(|(theirs, _)| *theirs == key) {
        Some((_, ours)) => format!("what TRL and PEFT call `{key}` is `{ours}` here"),
        None => pt_core::suggest::hint(key, known),
    }
}

fn accepted_names<'a>(catalogue: &'a Catalogue, kind: &Kind) -> Option<Vec<&'a str>> {
    match kind {
        Kind::Choice(names) => Some(names.to_vec()),
        Kind::Component(kind) => Some(catalogue.of(*kind).iter().map(|c| c.name.as_str()).collect()),
        _ => None,
    }
}

/// `a.b`, or `b` when `a` is empty.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Declares a closed set of names as an enum.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// The names a recipe accepts.
            pub const NAMES: &'static [&'static str] = &[$($text),*];

            /// The name a recipe uses.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl $crate::schema::FromNode for $name {
            fn from_node(
                reader: &mut $crate::schema::Reader<'_>,
                path: &str,
                node: &$crate::tree::Node,
                kind: &$crate::schema::Kind,
            ) -> Option<Self> {
                match String::from_node(reader, path, node, kind)?.as_str() {
                    $($text => Some($name::$variant),)*
                    other => unreachable!("{other} was accepted as one of {:?}", Self::NAMES),
                }
            }
        }
    };
}

/// Declares a section: a struct, its documentation table and its reader, from one list.
///
/// Each key: `name: Type, kind, fallback, alternative, "doc";`.
macro_rules! section {
    (
        $(#[doc = $doc:literal])* $name:ident at $path:literal as $header:literal
        $(open to $owner:expr, default $default_type:expr;)?
        keys { $($key:ident: $type:ty, $kind:expr, $default:expr, $alternative:literal, $key_doc:literal;)* }
        sections { $($section:ident: $section_type:ty;)* }
        $(params $params:ident)?
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $name {
            $(#[doc = $key_doc] pub $key: $type,)*
            $(#[doc = concat!("The section `", stringify!($section), "`.")] pub $section: $section_type,)*
            $(/// The parameters of the component named by `type`, which checks them itself.
            pub $params: $crate::schema::Params,)?
        }

        impl $name {
            /// The section's documentation.
            pub const DOC: $crate::schema::SectionDoc = $crate::schema::SectionDoc {
                path: $path,
                header: $header,
                doc: concat!($($doc),*),
                keys: &[$($crate::schema::KeyDoc {
                    section: $path,
                    key: stringify!($key),
                    kind: $kind,
                    default: $default,
                    alternative: $alternative,
                    doc: $key_doc,
                }),*],
                open_to: section!(@first $(Some($owner),)? None),
            };
        }

        impl $crate::schema::FromTable for $name {
            fn from_table(
                reader: &mut $crate::schema::Reader<'_>,
                path: &str,
                node: Option<&$crate::tree::Node>,
            ) -> Option<Self> {
                let outside = reader.inside.clone();
                let node = reader.section(path, node)?;
                let sections: &[&str] = &[$(stringify!($section)),*];
                let keys = Self::DOC.keys.iter().map(|doc| doc.name());
                let known: Vec<&str> = keys.chain(sections.iter().copied()).collect();
                let _rest = reader.rest(
                    path,
                    node,
                    &known,
                    Self::DOC.open_to,
                    section!(@first $($default_type,)? None),
                );
                let mut docs = Self::DOC.keys.iter();
                // Everything is read before the first failure counts, so that all problems are reported.
                $(let $key = reader.key(path, node, docs.next().expect("one doc per key"));)*
                $(let $section = $crate::schema::FromTable::from_table(
                    reader,
                    &$crate::schema::join(path, stringify!($section)),
                    node.and_then(|node| node.table()).and_then(|table| table.get(stringify!($section))),
                );)*
                reader.inside = outside;
                Some($name {
                    $($key: $key?,)*
                    $($section: $section?,)*
                    $($params: _rest,)?
                })
            }
        }
    };
    (@first $first:expr $(, $rest:expr)*) => { $first };
}

pub(crate) use {choice, section};
