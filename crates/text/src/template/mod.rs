//! Chat templates: Jinja, rendered as transformers renders it.
//!
//! The engine is minijinja with Python's string methods. On top of it, to the letter of
//! transformers: `trim_blocks` and `lstrip_blocks`, loop controls, `tojson` as
//! `json.dumps(ensure_ascii=False)`, `raise_exception`, `strftime_now`, Python's `str()` of numbers,
//! lists and dictionaries, and the `{% generation %}` tag. Absent `tools` and `documents` are `None`.
//!
//! Left out: templates that include or import other templates, and Python's `%` on strings; both are
//! errors. `dict_items` and `range` objects print as lists.

mod clock;
mod methods;
mod python;
mod rewrite;

use std::fmt;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde_json::{Map, Value as Json};

pub use clock::Moment;

use crate::error::TextError;

/// One message of a conversation: any JSON object; unknown fields reach the template.
pub type Message = Map<String, Json>;

const NAME: &str = "chat_template";

/// A compiled chat template.
pub struct ChatTemplate {
    source: String,
    env: Environment<'static>,
    marks_generation: bool,
}

/// What a template sees besides the messages.
#[derive(Clone, Debug, Default)]
pub struct TemplateInputs {
    /// Tool schemas; `None` is Python's `None`.
    pub tools: Option<Json>,
    /// Documents for retrieval templates; `None` is Python's `None`.
    pub documents: Option<Json>,
    /// Template variables: special tokens (`bos_token`, ...) and the caller's keyword arguments.
    pub variables: Map<String, Json>,
}

/// A rendering with the places the template marked as the model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendering {
    /// The text.
    pub text: String,
    /// Byte ranges of `text` inside `{% generation %}`, in order of their end.
    pub generation: Vec<Range<usize>>,
}

impl Rendering {
    /// The generation spans in Unicode code points, as Python counts.
    pub fn generation_chars(&self) -> Vec<Range<usize>> {
        let to_chars = |byte: usize| self.text[..byte].chars().count();
        self.generation.iter().map(|r| to_chars(r.start)..to_chars(r.end)).collect()
    }
}

impl ChatTemplate {
    /// Compiles a template; `strftime_now` reads the machine's clock.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`].
    pub fn new(source: &str) -> Result<Self, TextError> {
        Self::at(source, Moment::now())
    }

    /// Compiles a template whose `strftime_now` is always `now`.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`].
    pub fn at(source: &str, now: Moment) -> Result<Self, TextError> {
        let (rewritten, marks_generation) = rewrite::rewrite(source);
        let mut env = environment(now);
        env.add_template_owned(NAME, rewritten).map_err(|error| TextError::TemplateSyntax {
            message: error.detail().unwrap_or("syntax error").to_owned(),
            line: error.line().unwrap_or(0),
        })?;
        Ok(Self { source: source.to_owned(), env, marks_generation })
    }

    /// The source it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template asks for the date, so that its renderings depend on the moment it was given.
    pub fn reads_clock(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// Whether the template has `{% generation %}` tags.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders `messages`.
    ///
    /// # Errors
    /// [`TextError::TemplateRaised`] with the template's own message, or [`TextError::TemplateFailed`].
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        inputs: &TemplateInputs,
    ) -> Result<String, TextError> {
        self.render_with(messages, add_generation_prompt, inputs, None)
    }

    /// Renders `messages` and tells what the template marked with `{% generation %}`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; also [`TextError::TemplateFailed`] when the marks cannot be followed
    /// because the template rewrites what it has marked.
    pub fn render_marked(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        inputs: &TemplateInputs,
    ) -> Result<Rendering, TextError> {
        let text = self.render(messages, add_generation_prompt, inputs)?;
        if !self.marks_generation {
            return Ok(Rendering { text, generation: Vec::new() });
        }
        let lost = |message: &str| TextError::TemplateFailed { message: message.to_owned(), line: 0 };
        let markers = rewrite::markers_absent_from(&text)
            .ok_or_else(|| lost("the conversation uses all of Unicode's noncharacters"))?;
        let marked = self.render_with(messages, add_generation_prompt, inputs, Some(markers))?;
        let (unmarked, generation) = rewrite::take_spans(&marked, markers);
        if unmarked != text {
            return Err(lost(
                "it changes text after marking it with {% generation %}, so its marks are lost",
            ));
        }
        Ok(Rendering { text, generation })
    }

    fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        inputs: &TemplateInputs,
        markers: Option<[char; 2]>,
    ) -> Result<String, TextError> {
        let optional =
            |value: &Option<Json>| value.as_ref().map_or(Value::from(()), |v| Value::from(Serde(v)));
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", Value::from(Serde(messages))),
            ("tools", optional(&inputs.tools)),
            ("documents", optional(&inputs.documents)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        context
            .extend(inputs.variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        if let Some(markers) = markers {
            context.push((rewrite::MARKERS, Value::from(String::from_iter(markers))));
        }
        let template = self.env.get_template(NAME).expect("the only template was added when it was compiled");
        template.render(Value::from_pairs(context)).map_err(|error| render_error(&error))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What `raise_exception` throws; it is found again under whatever the engine wraps around it.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn render_error(error: &Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TextError::TemplateRaised { message: message.clone() };
        }
        cause = current.source();
    }
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TextError::TemplateFailed { message, line: error.line().unwrap_or(0) }
}

fn environment(now: Moment) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("Jinja's own delimiters are valid"));
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, _, value| out.write_str(&python::to_str(value)).map_err(Error::from));
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let raised = Raised(python::to_str(&message));
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    env.add_function("strftime_now", move |format: &str| now.strftime(format));
    env.add_function(rewrite::ITERABLE, |value: Value| match is_iterable(&value) {
        true => Ok(value),
        false => {
            let message = format!("cannot iterate over {}", python::repr(&value));
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
    });
    env.add_filter("list", |value: Value| match is_iterable(&value) {
        true => value.try_iter().map(|items| Value::from_iter(items.collect::<Vec<_>>())),
        false => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("cannot make a list of {}", python::repr(&value)),
        )),
    });
    env.add_test("iterable", |value: Value| is_iterable(&value));
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: Value| python::to_str(&value));
    env.add_filter(rewrite::FILTER, mark_generation);
    env
}

/// As in Python, where an undefined value is an empty sequence and `None` is none.
fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
}

fn tojson(value: Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let style = python::JsonStyle::from_kwargs(indent, &kwargs)?;
    python::to_json(&value, &style).map(Value::from)
}

fn mark_generation(state: &State, body: &str) -> String {
    let markers = state.lookup(rewrite::MARKERS).filter(|v| v.kind() == ValueKind::String);
    match markers.as_ref().and_then(Value::as_str).map(|m| m.chars().collect::<Vec<_>>()).as_deref() {
        Some([open, close]) => format!("{open}{body}{close}"),
        _ => body.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn noon() -> Moment {
        Moment::from_civil(2024, 7, 26, 12, 0, 0)
    }

    fn check(source: &str, variables: Json, expected: &str) {
        let Json::Object(variables) = variables else { panic!("variables are an object") };
        let inputs = TemplateInputs { variables, ..TemplateInputs::default() };
        let got = ChatTemplate::at(source, noon()).unwrap().render(&[], false, &inputs);
        assert_eq!(got.as_deref().ok(), Some(expected), "{source}: {got:?}");
    }

    #[test]
    fn values_print_as_in_python() {
        let data = serde_json::json!({
            "d": {"b": 1, "a": [true, null, 1.0, "it's"]}, "s": "  Ab c ", "f": 1e16, "empty": "",
        });
        let cases = [
            ("{{ d }}", "{'b': 1, 'a': [True, None, 1.0, \"it's\"]}"),
            ("{{ d.a|string }}", "[True, None, 1.0, \"it's\"]"),
            ("{{ d|tojson }}", "{\"b\": 1, \"a\": [true, null, 1.0, \"it's\"]}"),
            ("{{ [1]|tojson(indent=2) }}", "[\n  1\n]"),
            ("{{ d|tojson(separators=(',', ':')) }}", "{\"b\":1,\"a\":[true,null,1.0,\"it's\"]}"),
            ("{{ f }} {{ true }} {{ none }}{{ missing }}", "1e+16 True None"),
            ("{{ s.strip() }}|{{ s.rstrip() }}|{{ s.split() }}", "Ab c|  Ab c|['Ab', 'c']"),
            ("{{ s[2:4] }}{{ s[::-1] }}", "Ab c bA  "),
            ("{{ s.strip().lower().startswith('ab') }}", "True"),
            ("{% for k, v in d.items() %}{{ k }}{% break %}{% endfor %}", "b"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            (
                "{%- set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            ("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
            ("{{ messages is defined }}{{ tools is none }}", "TrueTrue"),
            ("{{ 'a' ~ 1 ~ none ~ d.b }}", "a1None1"),
        ];
        for (source, expected) in cases {
            check(source, data.clone(), expected);
        }
    }

    /// Expected values are Jinja2 3.1.6's, sandboxed as transformers does; `None` is an error.
    #[test]
    fn expressions_mean_what_they_mean_in_jinja2() {
        let data = serde_json::json!({"s": "  Ab c-d ", "u": "straße", "d": {"b": 1, "a": [true, null, 1.0, "it's"]}, "l": [3, 1, 2], "f": 2.5, "n": null, "msgs": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "n": 2}]});
        let inputs =
            TemplateInputs { variables: data.as_object().unwrap().clone(), ..TemplateInputs::default() };
        let cases: &[(&str, Option<&str>)] = &[
            ("s.rsplit('-', 1)", Some("['  Ab c', 'd ']")),
            ("s.partition('-')", Some("('  Ab c', '-', 'd ')")),
            ("s.rpartition('-')", Some("('  Ab c', '-', 'd ')")),
            ("s.strip().removeprefix('Ab')", Some(" c-d")),
            ("s.strip().removesuffix('d')", Some("Ab c-")),
            ("'7'.zfill(3)", Some("007")),
            ("s.index('c')", Some("5")),
            ("'ab'.ljust(4)~'|'", Some("ab  |")),
            ("'ab'.rjust(4)", Some("  ab")),
            ("'ab'.center(6)~'|'", Some("  ab  |")),
            ("u.casefold()", Some("strasse")),
            ("'aB'.swapcase()", Some("Ab")),
            ("s.split(' ',1)", Some("['', ' Ab c-d ']")),
            ("'a\\nb'.splitlines()", Some("['a', 'b']")),
            ("'{0}{a}'.format(1,a=2)", Some("12")),
            ("d.items()|list", Some("[('b', 1), ('a', [True, None, 1.0, \"it's\"])]")),
            ("d|length", Some("2")),
            ("l|sort", Some("[1, 2, 3]")),
            ("d.a|join(',')", Some("True,None,1.0,it's")),
            ("msgs|map(attribute='role')|list", Some("['user', 'assistant']")),
            ("msgs|selectattr('role','equalto','user')|list", Some("[{'role': 'user', 'content': 'x'}]")),
            ("msgs|selectattr('n','defined')|list|length", Some("1")),
            ("s[1:-1]", Some(" Ab c-d")),
            ("1/2", Some("0.5")),
            ("-7//2", Some("-4")),
            ("-7%3", Some("2")),
            ("2**-1", Some("0.5")),
            ("1e20", Some("1e+20")),
            ("1e-7", Some("1e-07")),
            ("[1]+[2]", Some("[1, 2]")),
            ("n|default('q')", Some("None")),
            ("n|default('q', true)", Some("q")),
            ("2.567|round(2)", Some("2.57")),
            ("\"it's a dog\"|title", Some("It's A Dog")),
            ("'<a>'|e", Some("&lt;a&gt;")),
            (
                "d|tojson(indent=4)",
                Some(
                    "{\n    \"b\": 1,\n    \"a\": [\n        true,\n        null,\n        1.0,\n        \"it's\"\n    ]\n}",
                ),
            ),
            ("d|string", Some("{'b': 1, 'a': [True, None, 1.0, \"it's\"]}")),
            ("{'a':n}", Some("{'a': None}")),
            ("(1,2)", Some("(1, 2)")),
            ("(1,)", Some("(1,)")),
            ("[\"a'b\"]", Some("[\"a'b\"]")),
            ("[\"a\\nb\\\\\"]", Some("['a\\nb\\\\']")),
            ("s.startswith(('  A','x'))", Some("True")),
            ("dict(a=1)", Some("{'a': 1}")),
            ("d|dictsort", Some("[('a', [True, None, 1.0, \"it's\"]), ('b', 1)]")),
            ("'a\\nb'|indent(2)", Some("a\n  b")),
            ("true == 1", Some("True")),
            ("d|tojson(sort_keys=true)", Some("{\"a\": [true, null, 1.0, \"it's\"], \"b\": 1}")),
            ("'é'|tojson(ensure_ascii=true)", Some("\"\\u00e9\"")),
            ("'</x>'|tojson", Some("\"</x>\"")),
            ("0.1+0.2", Some("0.30000000000000004")),
            ("1 and 'x'", Some("x")),
            ("l.index(1)", Some("1")),
            (
                "msgs|map('tojson')|join(',')",
                Some(
                    "{\"role\": \"user\", \"content\": \"x\"},{\"role\": \"assistant\", \"content\": \"y\", \"n\": 2}",
                ),
            ),
            ("[1,[2,'q']]|tojson(indent=2)", Some("[\n  1,\n  [\n    2,\n    \"q\"\n  ]\n]")),
            ("s.title()", Some("  Ab C-D ")),
            ("s.strip('- d')", Some("Ab c")),
            ("'a' ~ l ~ n ~ true ~ 1.0", Some("a[3, 1, 2]NoneTrue1.0")),
            ("zz|length", Some("0")),
            ("{'a': {'b': [1, 2]}}.a.b[0]", Some("1")),
            ("l|batch(2)|list", Some("[[3, 1], [2]]")),
            ("n.foo", Some("")),
            ("n|length", None),
            ("n|list", None),
            ("s + n", None),
            ("s + 1", None),
            ("l + s", None),
        ];
        for (expression, expected) in cases {
            let template = ChatTemplate::at(&format!("{{{{ {expression} }}}}"), noon()).unwrap();
            let got = template.render(&[], false, &inputs);
            assert_eq!(got.as_deref().ok(), *expected, "{expression}: {got:?}");
        }
    }

    fn golden_template(dir: &std::path::Path, name: &str) -> String {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        if !name.ends_with(".json") {
            return text;
        }
        let json: Json = serde_json::from_str(&text).unwrap();
        json["chat_template"].as_str().unwrap().to_owned()
    }

    fn objects(value: &Json) -> Vec<Message> {
        value.as_array().unwrap().iter().map(|m| m.as_object().unwrap().clone()).collect()
    }

    /// Every template and conversation of the golden set renders to the byte, or fails as it should.
    #[test]
    fn the_golden_renderings_are_reproduced() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        let dir = data.join("chat-templates");
        let inputs: Json =
            serde_json::from_slice(&std::fs::read(dir.join("conversations.json")).unwrap()).unwrap();
        let mut lines = String::new();
        let file = std::fs::File::open(dir.join("expected_renderings.jsonl.gz")).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut lines).unwrap();
        let mut wrong = Vec::new();
        let mut n_rows = 0;
        for line in lines.lines() {
            let row: Json = serde_json::from_str(line).unwrap();
            n_rows += 1;
            if let Err(problem) = check_golden_row(&dir, &inputs, &row) {
                wrong.push(format!("{} / {}: {problem}", row["template"], row["conversation"]));
            }
        }
        assert_eq!(n_rows, 793);
        assert!(wrong.is_empty(), "{} of {n_rows} rows differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    fn check_golden_row(dir: &std::path::Path, all: &Json, row: &Json) -> Result<(), String> {
        let mut conversation =
            all["conversations"][row["conversation"].as_str().unwrap()].as_object().unwrap().clone();
        let messages = objects(&conversation.remove("messages").unwrap());
        let gen_prompt = conversation.remove("add_generation_prompt").unwrap().as_bool().unwrap();
        let tools = conversation.remove("tools");
        let mut variables = all["variables"].as_object().unwrap().clone();
        variables.extend(conversation);
        let inputs = TemplateInputs { tools, documents: None, variables };
        let source = golden_template(dir, row["template"].as_str().unwrap());
        let template = ChatTemplate::at(&source, noon()).map_err(|e| e.to_string())?;
        let got = template.render_marked(&messages, gen_prompt, &inputs);
        if let Some(message) = row.get("raises") {
            return match got {
                Err(TextError::TemplateRaised { message: ours }) if *message == ours => Ok(()),
                other => Err(format!("expected raise {message}, got {other:?}")),
            };
        }
        if row.get("error_kind").is_some() {
            return got.map_or(Ok(()), |r| Err(format!("expected an error, got {:?}", r.text)));
        }
        let got = got.map_err(|e| e.to_string())?;
        if row["rendered"] != got.text.as_str() {
            return Err(format!("\nexpected {}\ngot      {:?}", row["rendered"], got.text));
        }
        if let Some(spans) = row.get("generation_spans") {
            let ours: Vec<[usize; 2]> = got.generation_chars().iter().map(|r| [r.start, r.end]).collect();
            if *spans != serde_json::json!(ours) {
                return Err(format!("expected spans {spans}, got {ours:?}"));
            }
        }
        Ok(())
    }
}
