//! Tools that come with the program, for rows whose questions need them.
//!
//! The chat template shows the model the tools of the row (its column `tools`), or of the recipe where the row has none. Every call
//! in a turn is answered by one message of the role `tool`, in order; a call that fails is answered with the error, which the model
//! may mend. A turn without a call is the final answer.

use std::collections::BTreeMap;

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use pt_text::Message;
use pt_text::tools::{Call, OPEN};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::catalogue::{EnvironmentInfo, KIND, TOOLS};
use crate::environment::{Environment, Episode, Outcome, Reaction, Start, Turn};

const NAME: &str = "tools";
/// The longest result that is given to a model, in characters.
const MAX_RESULT_CHARS: usize = 2_000;

/// The catalogue's entry.
pub(crate) const INFO: EnvironmentInfo = EnvironmentInfo {
    name: NAME,
    summary: "built-in tools: calculator, python (in the sandbox)",
    reads: "`tools`: those the row offers; without it, all that the recipe names",
    options: &[
        OptionInfo {
            name: "tools",
            kind: "array of texts",
            default: "[\"calculator\"]",
            doc: "the tools a model may call: calculator, python",
        },
        OptionInfo { name: "timeout_s", kind: "number", default: "5.0", doc: "the longest a call may take" },
        OptionInfo { name: "memory_mb", kind: "integer", default: "512", doc: "memory of a program" },
        OptionInfo {
            name: "python",
            kind: "text",
            default: "\"python3\"",
            doc: "the interpreter of the tool python",
        },
        OptionInfo {
            name: "allow_unisolated",
            kind: "bool",
            default: "false",
            doc: "runs programs even where this machine cannot isolate them (see `posttrain doctor`)",
        },
    ],
    build: |options| Ok(Box::new(Tools::new(parse::<Options>(KIND, NAME, options)?)?)),
};

/// A tool a model may call.
pub trait Tool: Send + Sync + std::fmt::Debug {
    /// How a chat template shows it: an OpenAI function.
    fn schema(&self) -> Value;

    /// Calls it.
    ///
    /// # Errors
    /// What the caller did wrong, in words the model reads.
    fn call(&self, arguments: &Map<String, Value>) -> Result<String, ToolError>;
}

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolError {
    /// The caller's doing; the model is told.
    Caller(String),
    /// The machine's doing; the episode cannot go on.
    Machine(String),
}

/// What tools may use.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Time of a call.
    pub timeout_s: f64,
    /// Memory of a program.
    pub memory_mb: u64,
    /// The interpreter.
    pub python: String,
    /// Whether to run without isolation.
    pub allow_unisolated: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { timeout_s: 5.0, memory_mb: 512, python: "python3".to_owned(), allow_unisolated: false }
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Options {
    #[serde(default = "calculator")]
    tools: Vec<String>,
    #[serde(flatten)]
    limits: Limits,
}

fn calculator() -> Vec<String> {
    vec!["calculator".to_owned()]
}

/// The environment.
#[derive(Debug)]
struct Tools {
    by_name: BTreeMap<String, Box<dyn Tool>>,
    /// In the order of the recipe.
    schemas: Vec<Value>,
}

impl Tools {
    fn new(options: Options) -> Result<Tools, CatalogueError> {
        let wrong = |problem: String| CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem };
        if options.tools.is_empty() {
            return Err(wrong("`tools` is empty; name at least one".to_owned()));
        }
        let (mut by_name, mut schemas) = (BTreeMap::new(), Vec::new());
        for name in options.tools {
            let info = pt_core::catalogue::find("tool", TOOLS, |info| info.name, &name)?;
            let tool = (info.build)(&options.limits).map_err(wrong)?;
            schemas.push(tool.schema());
            if by_name.insert(name.clone(), tool).is_some() {
                return Err(wrong(format!("`tools` names `{name}` twice")));
            }
        }
        Ok(Tools { by_name, schemas })
    }
}

/// A tool's name in a schema.
fn name_of(schema: &Value) -> Option<&str> {
    schema.pointer("/function/name").or_else(|| schema.get("name")).and_then(Value::as_str)
}

impl Environment for Tools {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tools(&self) -> Vec<Value> {
        self.schemas.clone()
    }

    fn check(&self, _: &Map<String, Value>, tools: &[Value]) -> Result<(), String> {
        let unknown = |schema: &&Value| name_of(schema).is_none_or(|name| !self.by_name.contains_key(name));
        match tools.iter().find(unknown) {
            None => Ok(()),
            Some(schema) => {
                let known: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
                let name = name_of(schema).unwrap_or("(without a name)");
                Err(format!(
                    "its column `tools` offers `{name}`, and environment.tools are {}; name it there if it is built in, or use \
                     the environment `command`",
                    known.join(", ")
                ))
            }
        }
    }

    fn begin(&self, start: &Start<'_>) -> Box<dyn Episode + '_> {
        let names = start.tools.iter().filter_map(name_of).map(str::to_owned).collect();
        Box::new(Calls { environment: self, names })
    }
}

struct Calls<'e> {
    environment: &'e Tools,
    names: Vec<String>,
}

impl Calls<'_> {
    fn call(&self, call: &Call) -> Result<String, ToolError> {
        let caller = |problem: String| Err(ToolError::Caller(problem));
        let tool = self.environment.by_name.get(&call.name).filter(|_| self.names.contains(&call.name));
        let Some(tool) = tool else {
            return caller(format!("there is no tool `{}`; there is {}", call.name, self.names.join(", ")));
        };
        match &call.problem {
            Some(problem) => caller(problem.clone()),
            None => tool.call(&call.arguments),
        }
    }
}

impl Episode for Calls<'_> {
    fn react(&mut self, turn: &Turn<'_>) -> Reaction {
        let calls = &turn.reply.calls;
        if calls.is_empty() && turn.reply.n_unreadable == 0 {
            return Reaction::end();
        }
        let (mut messages, mut n_failures) = (Vec::new(), 0);
        for (i, call) in calls.iter().enumerate() {
            let content = match self.call(call) {
                Ok(result) => shortened(&result),
                Err(ToolError::Caller(problem)) => {
                    n_failures += 1;
                    format!("Error: {}", shortened(&problem))
                }
                Err(ToolError::Machine(problem)) => return Reaction::of(Outcome::Failed(problem)),
            };
            messages.push(tool_message(&call.name, turn.first_call + i, content));
        }
        for _ in 0..turn.reply.n_unreadable {
            n_failures += 1;
            let content = format!("Error: {OPEN} is followed by no JSON object with `name` and `arguments`");
            messages.push(tool_message("unknown", turn.first_call + messages.len(), content));
        }
        let n_calls = messages.len();
        Reaction { outcome: Outcome::Continue(messages), n_calls, n_failures }
    }
}

/// The result of a call, for a chat template.
pub(crate) fn tool_message(name: &str, index: usize, content: String) -> Message {
    let fields =
        json!({ "role": "tool", "name": name, "tool_call_id": format!("call_{index}"), "content": content });
    let Value::Object(message) = fields else { unreachable!("written as an object") };
    message
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_RESULT_CHARS) {
        None => text.trim_end().to_owned(),
        Some((at, _)) => format!("{}\n[cut after {MAX_RESULT_CHARS} characters]", &text[..at]),
    }
}

#[cfg(test)]
mod tests {
    use pt_text::tools::Reply;

    use super::*;

    fn tools(options: &str) -> Box<dyn Environment> {
        crate::build(NAME, &options.parse().unwrap()).unwrap()
    }

    #[test]
    fn calls_are_answered_in_order_and_a_turn_without_one_is_the_end() {
        let environment = tools("");
        let (row, schemas) = (Map::new(), environment.tools());
        let mut episode = environment.begin(&Start { messages: &[], row: &row, tools: &schemas, seed: 0 });
        let mut first_call = 0;
        let mut check = |text: &str, expected: &[(&str, &str)], n_failures: usize| {
            let reply = Reply::parse(text);
            let reaction = episode.react(&Turn { index: 0, text, reply: &reply, first_call, is_last: false });
            first_call += reaction.n_calls;
            let Outcome::Continue(messages) = reaction.outcome else {
                return assert!(expected.is_empty(), "{text}: {reaction:?}");
            };
            let found: Vec<(&str, &str)> = messages
                .iter()
                .map(|m| (m["tool_call_id"].as_str().unwrap(), m["content"].as_str().unwrap()))
                .collect();
            assert_eq!((found.as_slice(), reaction.n_failures), (expected, n_failures), "{text}");
        };
        let call = |name: &str, expression: &str| {
            format!(
                "<tool_call>{{\"name\": \"{name}\", \"arguments\": {{\"expression\": \"{expression}\"}}}}</tool_call>"
            )
        };
        let two = call("calculator", "12 * 12") + &call("calculator", "1 / 0");
        check(&two, &[("call_0", "144"), ("call_1", "Error: division by zero in `1 / 0`")], 1);
        let unknown = "Error: there is no tool `search`; there is calculator";
        check(&call("search", "x"), &[("call_2", unknown)], 1);
        let unreadable = "Error: <tool_call> is followed by no JSON object with `name` and `arguments`";
        check("<tool_call>12*12</tool_call>", &[("call_3", unreadable)], 1);
        check("#### 144", &[], 0);
    }

    #[test]
    fn rows_offer_tools_that_exist() {
        let environment = tools("tools = ['calculator', 'python']");
        let row = Map::new();
        let schemas = environment.tools();
        assert_eq!(environment.check(&row, &schemas[..1]), Ok(()));
        let other = json!({"type": "function", "function": {"name": "search"}});
        assert!(environment.check(&row, &[other]).unwrap_err().contains("offers `search`"));
        let mut episode =
            environment.begin(&Start { messages: &[], row: &row, tools: &schemas[..1], seed: 0 });
        let text = "<tool_call>{\"name\": \"python\", \"arguments\": {\"code\": \"print(1)\"}}</tool_call>";
        let reply = Reply::parse(text);
        let reaction = episode.react(&Turn { index: 0, text, reply: &reply, first_call: 0, is_last: false });
        assert_eq!(reaction.n_failures, 1, "a tool that the row does not offer is not there: {reaction:?}");
    }

    #[test]
    fn options_that_name_no_tool_are_refused() {
        for (options, message) in [
            ("tools = []", "`tools` is empty"),
            ("tools = ['calculater']", "did you mean `calculator`"),
            ("tools = ['calculator', 'calculator']", "twice"),
            ("tools = ['python']\ntimeout_s = 0.0", "timeout_s"),
        ] {
            let error = crate::build(NAME, &options.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "{options}: {error}");
        }
    }
}
