//! A recipe as a tree of values that know where they were written, and `--set` changes to it.

use crate::problem::{Location, Problem};
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub value: NodeValue,
    pub at: Location,
}

#[derive(Clone, Debug)]
pub(crate) enum NodeValue {
    String(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Date(String),
    List(Vec<Node>),
    Table(Table),
}

/// The entries of a table, each key with its own place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table(pub Vec<(String, Location, Node)>);

impl Table {
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.0.iter().find(|(name, ..)| name == key).map(|(.., node)| node)
    }

    fn entry(&mut self, key: &str, at: &Location) -> &mut Node {
        let position = self.0.iter().position(|(name, ..)| name == key).unwrap_or_else(|| {
            let value = NodeValue::Table(Table::default());
            self.0.push((key.to_owned(), at.clone(), Node { value, at: at.clone() }));
            self.0.len() - 1
        });
        &mut self.0[position].2
    }
}

impl Node {
    pub fn table(&self) -> Option<&Table> {
        match &self.value {
            NodeValue::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn str(&self) -> Option<&str> {
        match &self.value {
            NodeValue::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<f64> {
        match self.value {
            NodeValue::Int(value) => Some(value as f64),
            NodeValue::Float(value) => Some(value),
            _ => None,
        }
    }

    /// The kind of value and, where it is short, the value: for messages.
    pub fn describe(&self) -> String {
        match &self.value {
            NodeValue::String(text) => format!("the string {text:?}"),
            NodeValue::Int(value) => format!("the integer {value}"),
            NodeValue::Float(value) => format!("the number {value:?}"),
            NodeValue::Bool(value) => format!("the boolean {value}"),
            NodeValue::Date(text) => format!("the date {text}"),
            NodeValue::List(items) => format!("a list of {} items", items.len()),
            NodeValue::Table(_) => "a table".to_owned(),
        }
    }

    /// An entry of a table, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match &mut self.value {
            NodeValue::Table(table) => {
                table.0.iter_mut().find(|(name, ..)| name == key).map(|(.., node)| node)
            }
            _ => None,
        }
    }

    /// Takes the entry under a dotted path of tables away.
    pub fn remove(&mut self, path: &str) {
        let (around, key) = path.rsplit_once('.').unwrap_or(("", path));
        let mut parts = around.split('.').filter(|part| !part.is_empty());
        let table = parts.try_fold(self, |node, part| node.get_mut(part));
        if let Some(NodeValue::Table(table)) = table.map(|node| &mut node.value) {
            table.0.retain(|(name, ..)| name != key);
        }
    }

    /// The node under a dotted path, where numbers index lists.
    pub fn find(&self, path: &str) -> Option<&Node> {
        path.split('.').filter(|part| !part.is_empty()).try_fold(self, |node, part| match &node.value {
            NodeValue::Table(table) => table.get(part),
            NodeValue::List(items) => items.get(part.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The same value without places. Numbers that JSON lacks become their text.
    pub fn to_json(&self) -> Value {
        match &self.value {
            NodeValue::String(text) | NodeValue::Date(text) => text.as_str().into(),
            NodeValue::Int(value) => (*value).into(),
            NodeValue::Float(value) => {
                serde_json::Number::from_f64(*value).map_or_else(|| value.to_string().into(), Value::Number)
            }
            NodeValue::Bool(value) => (*value).into(),
            NodeValue::List(items) => items.iter().map(Node::to_json).collect(),
            NodeValue::Table(table) => {
                Value::Object(table.0.iter().map(|(key, _, node)| (key.clone(), node.to_json())).collect())
            }
        }
    }
}

/// Parses TOML; every syntax error is a problem with its place.
pub(crate) fn parse(text: &str) -> Result<Node, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let places = Places::new(text);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let at = places.at(error.span().map_or(0, |span| span.start));
            Problem { at, key: String::new(), message: format!("not valid TOML: {}", error.message()) }
        })
        .collect();
    let root = table_node(&table, &places, &mut problems);
    if problems.is_empty() { Ok(root) } else { Err(problems) }
}

/// Applies `--set KEY=VALUE` arguments in order.
pub(crate) fn apply_sets(root: &mut Node, sets: &[String]) -> Vec<Problem> {
    sets.iter().filter_map(|set| apply_set(root, set).err()).collect()
}

fn apply_set(root: &mut Node, set: &str) -> Result<(), Problem> {
    let at = Location::Set(set.to_owned());
    let problem = |key: &str, message: String| Problem { at: at.clone(), key: key.to_owned(), message };
    let (path, text) = set.split_once('=').ok_or_else(|| {
        problem("", "expected KEY=VALUE, as in stage.0.optimizer.learning_rate=2e-5".to_owned())
    })?;
    let path = path.trim();
    let mut node = &mut *root;
    let mut walked = String::new();
    let parts: Vec<&str> = path.split('.').collect();
    for (i, part) in parts.iter().enumerate() {
        let inside = parts.get(i + 1).copied();
        node = step_into(node, part, inside, &at)
            .map_err(|message| problem(path, format!("at `{walked}`: {message}")))?;
        walked = if walked.is_empty() { (*part).to_owned() } else { format!("{walked}.{part}") };
    }
    *node = set_value(text.trim(), &at);
    Ok(())
}

/// The node called `part`; where a table lacks it, it is a new table, or a new list if what comes `inside` it is an
/// index. An index one past the end of a list of tables makes a new item.
fn step_into<'n>(
    node: &'n mut Node,
    part: &str,
    inside: Option<&str>,
    at: &Location,
) -> Result<&'n mut Node, String> {
    let described = node.describe();
    match &mut node.value {
        NodeValue::Table(table) => {
            let is_new = table.get(part).is_none();
            let node = table.entry(part, at);
            if is_new && inside.is_some_and(|inside| inside.parse::<usize>().is_ok()) {
                node.value = NodeValue::List(Vec::new());
            }
            Ok(node)
        }
        NodeValue::List(items) => {
            let n = items.len();
            let index = part.parse().ok().or_else(|| items.iter().position(|item| is_called(item, part)));
            if index == Some(n) && items.iter().all(|item| item.table().is_some()) {
                items.push(Node { value: NodeValue::Table(Table::default()), at: at.clone() });
            }
            index.and_then(|i: usize| items.get_mut(i)).ok_or_else(|| {
                format!(
                    "there are {n} items, and `{part}` is neither an index from 0 nor the name of one; \
                     `{n}` would add one"
                )
            })
        }
        _ => Err(format!("{described} has no `{part}` inside; write it as a table to set its parts")),
    }
}

/// Stages may be called by their name, or by their type when they have no name.
fn is_called(item: &Node, part: &str) -> bool {
    let Some(table) = item.table() else { return false };
    table.get("name").or_else(|| table.get("type")).and_then(Node::str) == Some(part)
}

/// TOML where it parses, a plain string where it does not: `lora`, `HuggingFaceTB/SmolLM2-135M`.
fn set_value(text: &str, at: &Location) -> Node {
    let parsed = parse(&format!("value = {text}")).ok();
    let value = parsed.and_then(|root| root.find("value").map(|node| node.value.clone()));
    let mut node =
        Node { value: value.unwrap_or_else(|| NodeValue::String(text.to_owned())), at: at.clone() };
    relocate(&mut node, at);
    node
}

fn relocate(node: &mut Node, at: &Location) {
    node.at = at.clone();
    match &mut node.value {
        NodeValue::List(items) => items.iter_mut().for_each(|item| relocate(item, at)),
        NodeValue::Table(table) => table.0.iter_mut().for_each(|(_, key_at, item)| {
            *key_at = at.clone();
            relocate(item, at);
        }),
        _ => {}
    }
}

/// Byte offsets as lines and columns.
struct Places<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Places<'t> {
    fn new(text: &'t str) -> Self {
        let starts = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(i, _)| i + 1);
        Places { text, line_starts: std::iter::once(0).chain(starts).collect() }
    }

    fn at(&self, offset: usize) -> Location {
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Location::File { line, column }
    }
}

fn table_node(table: &Spanned<DeTable<'_>>, places: &Places<'_>, problems: &mut Vec<Problem>) -> Node {
    let at = places.at(table.span().start);
    Node { value: NodeValue::Table(entries(table.get_ref(), places, problems)), at }
}

fn entries(table: &DeTable<'_>, places: &Places<'_>, problems: &mut Vec<Problem>) -> Table {
    let mut keys: Vec<_> = table.iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start);
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        (name.to_string(), places.at(key.span().start), value_node(value, places, problems))
    };
    Table(keys.into_iter().map(entry).collect())
}

fn value_node(value: &Spanned<DeValue<'_>>, places: &Places<'_>, problems: &mut Vec<Problem>) -> Node {
    let at = places.at(value.span().start);
    let mut number = |found: Option<NodeValue>, text: &str| {
        found.unwrap_or_else(|| {
            let message = format!("{text} does not fit a 64-bit number");
            problems.push(Problem { at: at.clone(), key: String::new(), message });
            NodeValue::Int(0)
        })
    };
    let value = match value.get_ref() {
        DeValue::String(text) => NodeValue::String(text.to_string()),
        DeValue::Integer(i) => {
            number(i64::from_str_radix(i.as_str(), i.radix()).ok().map(NodeValue::Int), i.as_str())
        }
        DeValue::Float(f) => number(f.as_str().parse().ok().map(NodeValue::Float), f.as_str()),
        DeValue::Boolean(value) => NodeValue::Bool(*value),
        DeValue::Datetime(date) => NodeValue::Date(date.to_string()),
        DeValue::Array(items) => {
            NodeValue::List(items.iter().map(|item| value_node(item, places, problems)).collect())
        }
        DeValue::Table(table) => NodeValue::Table(entries(table, places, problems)),
    };
    Node { value, at }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "seed = 1\n[model]\nbase = \"é\" # c\n[[stage]]\ntype = \"sft\"\n[stage.train]\nsteps = 1_000\n[[stage]]\nname = \"second\"\n";

    #[test]
    fn values_know_their_line_and_column() {
        let root = parse(TEXT).unwrap();
        for (path, line, column) in [("seed", 1, 8), ("model.base", 3, 8), ("stage.0.train.steps", 7, 9)] {
            assert_eq!(root.find(path).unwrap().at, Location::File { line, column }, "{path}");
        }
        assert!(matches!(root.find("stage.0.train.steps").unwrap().value, NodeValue::Int(1000)));
        assert!(root.find("stage.2").is_none() && root.find("seed.x").is_none());
    }

    #[test]
    fn sets_reach_by_index_by_name_and_into_what_was_absent() {
        for (set, path, expected) in [
            ("seed=7", "seed", serde_json::json!(7)),
            ("stage.0.train.steps = 5", "stage.0.train.steps", serde_json::json!(5)),
            ("stage.sft.train.method=lora", "stage.0.train.method", serde_json::json!("lora")),
            (
                "stage.second.optimizer.learning_rate=2e-5",
                "stage.1.optimizer.learning_rate",
                serde_json::json!(2e-5),
            ),
            (
                "stage.1.optimizer.betas=[0.9, 0.95]",
                "stage.1.optimizer.betas",
                serde_json::json!([0.9, 0.95]),
            ),
            ("model.base=a/b=c", "model.base", serde_json::json!("a/b=c")),
            ("model.base=\"quoted\"", "model.base", serde_json::json!("quoted")),
            ("stage.0.reward.0.type=math", "stage.0.reward.0.type", serde_json::json!("math")),
            ("stage.2.type=sft", "stage.2.type", serde_json::json!("sft")),
        ] {
            let mut root = parse(TEXT).unwrap();
            assert_eq!(apply_sets(&mut root, &[set.to_owned()]), [], "{set}");
            let node = root.find(path).unwrap();
            assert_eq!((node.to_json(), &node.at), (expected, &Location::Set(set.to_owned())));
        }
    }

    #[test]
    fn sets_that_lead_nowhere_are_problems() {
        for (set, part) in [
            ("seed", "expected KEY=VALUE"),
            ("stage.3.train.steps=1", "there are 2 items, and `3` is neither"),
            ("stage.0.reward.1.type=math", "there are 0 items, and `1` is neither"),
            ("stage.dpo.train.steps=1", "`dpo` is neither an index"),
            ("seed.x=1", "at `seed`: the integer 1 has no `x` inside"),
        ] {
            let problems = apply_sets(&mut parse(TEXT).unwrap(), &[set.to_owned()]);
            assert!(problems.len() == 1 && problems[0].message.contains(part), "{set}: {problems:?}");
        }
    }

    #[test]
    fn syntax_errors_and_repeated_keys_have_their_line() {
        for (text, line, part) in [
            ("a = 1\na = 2\n", 2, "duplicate key"),
            ("a = 1\nb = \n", 2, ""),
            ("x = 99999999999999999999", 1, "64-bit"),
        ] {
            let problems = parse(text).unwrap_err();
            let Location::File { line: found, .. } = problems[0].at else { panic!() };
            assert!(found == line && problems[0].message.contains(part), "{text}: {problems:?}");
        }
    }
}
