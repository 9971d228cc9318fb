//! From a row and a reply to what is to be run.

use serde_json::{Map, Value};

use crate::Question;
use crate::text::after_thinking;

/// What the answer is held to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tests {
    /// Python that raises unless the answer is right.
    Asserts {
        /// Runs before them.
        setup: String,
        /// Each counts alone.
        tests: Vec<String>,
        /// The function under test, where the row names it.
        entry: String,
        /// Whether the last test defines `check`, to be called with that function.
        has_check: bool,
    },
    /// Inputs with what the program must write for them.
    Cases(Vec<(String, String)>),
}

fn text<'a>(row: &'a Map<String, Value>, name: &str) -> &'a str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Numbers and lists of lines are accepted for texts.
fn lines(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(all) => Some(all.iter().map(lines).collect::<Option<Vec<_>>>()?.join("\n")),
        _ => None,
    }
}

fn cases(value: &Value) -> Option<Vec<(String, String)>> {
    match value {
        Value::Array(all) => {
            let case = |case: &Value| {
                let get = |name: &str| case.get(name).and_then(lines);
                Some((get("input").or_else(|| get("stdin"))?, get("output").or_else(|| get("stdout"))?))
            };
            all.iter().map(case).collect()
        }
        // With a function's name, the inputs are its arguments.
        Value::Object(columns) if columns.contains_key("fn_name") => None,
        Value::Object(columns) => {
            let get =
                |name: &str| columns.get(name)?.as_array()?.iter().map(lines).collect::<Option<Vec<_>>>();
            let (inputs, outputs) = (get("inputs")?, get("outputs")?);
            (inputs.len() == outputs.len()).then(|| inputs.into_iter().zip(outputs).collect())
        }
        _ => None,
    }
}

/// The tests of a question: its gold answer, or the columns of MBPP, HumanEval or APPS.
///
/// # Errors
/// What is wrong with them.
pub(super) fn tests(question: &Question<'_>) -> Result<Tests, String> {
    let row = question.row;
    let columns = ["test_list", "test", "tests", "input_output"];
    let gold = question.gold.or_else(|| columns.iter().find_map(|name| row.get(*name)));
    let Some(gold) = gold else {
        return Err(format!("no gold answer and none of the columns {}", columns.join(", ")));
    };
    // Several data sets keep them as JSON in a text, which is no Python.
    let decoded = gold.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let decoded = decoded.filter(|value| value.is_array() || value.is_object());
    let gold = decoded.as_ref().unwrap_or(gold);
    let entry = text(row, "entry_point").to_owned();
    let setup =
        ["test_setup_code", "test_imports"].map(|name| row.get(name).and_then(lines).unwrap_or_default());
    let setup = setup.join("\n").trim().to_owned();
    if let Some(cases) = cases(gold).filter(|cases| !cases.is_empty()) {
        return Ok(Tests::Cases(cases));
    }
    let tests = match gold {
        Value::String(test) => vec![test.clone()],
        Value::Array(all) => {
            let tests: Option<Vec<String>> = all.iter().map(|t| t.as_str().map(str::to_owned)).collect();
            tests.ok_or("the tests are a list, but not of texts or of objects with `input` and `output`")?
        }
        Value::Object(_) => {
            let problem = "the tests are an object, expected one with lists `inputs` and `outputs` of the same length, of \
                           texts, and without `fn_name`";
            return Err(problem.to_owned());
        }
        _ => return Err("the tests are neither a text nor a list".to_owned()),
    };
    if tests.iter().all(|test| test.trim().is_empty()) {
        return Err("there are no tests".to_owned());
    }
    let has_check = !entry.is_empty() && tests.last().is_some_and(|test| test.contains("def check("));
    Ok(Tests::Asserts { setup, tests, entry, has_check })
}

/// The program in a reply: the last fenced block if `from_fence` and there is one, else all of it. One that does not define the
/// function the row names is taken to go on where the row's prompt ends (HumanEval); one that does, to need what the prompt
/// has before that function.
pub(super) fn program(question: &Question<'_>, from_fence: bool) -> String {
    let reply = after_thinking(question.reply);
    let block = from_fence.then(|| last_block(reply)).flatten();
    let code = block.unwrap_or_else(|| reply.to_owned());
    let (prompt, entry) = (text(question.row, "prompt"), text(question.row, "entry_point"));
    if entry.is_empty() || prompt.is_empty() {
        return code;
    }
    match (definition(prompt, entry), definition(&code, entry)) {
        (Some(at), Some(_)) => format!("{}\n{code}", &prompt[..at]),
        (Some(_), None) => format!("{prompt}{code}"),
        (None, _) => code,
    }
}

/// Where a function of that whole name is defined.
fn definition(code: &str, name: &str) -> Option<usize> {
    let start = format!("def {name}");
    let is_whole = |at: &usize| code[at + start.len()..].trim_start_matches(' ').starts_with('(');
    code.match_indices(&start).map(|(at, _)| at).find(is_whole)
}

/// The text in the last pair of fences; up to the end where the last is not closed.
fn last_block(reply: &str) -> Option<String> {
    let (mut last, mut open) = (None, None::<(&str, Vec<&str>)>);
    for line in reply.lines() {
        let start = line.trim_start();
        let fence = ["```", "~~~"].into_iter().find(|fence| start.starts_with(fence));
        open = match (open, fence) {
            (Some((mark, lines)), Some(fence)) if mark == fence && start.trim_end() == mark => {
                last = Some(lines.join("\n"));
                None
            }
            (Some((mark, mut lines)), _) => {
                lines.push(line);
                Some((mark, lines))
            }
            (None, Some(fence)) => Some((fence, Vec::new())),
            (None, None) => None,
        };
    }
    open.map(|(_, lines)| lines.join("\n")).or(last)
}

/// Whether two outputs have the same words.
pub(super) fn is_same_output(found: &str, expected: &str) -> bool {
    found.split_whitespace().eq(expected.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_is_taken() {
        let check = |reply: &str, expected: Option<&str>| {
            assert_eq!(last_block(reply).as_deref(), expected, "{reply:?}");
        };
        check("no fence", None);
        check("a\n```python\nx = 1\n```\nb", Some("x = 1"));
        check("```\na\n```\n```py\nb\n  c\n```", Some("b\n  c"));
        check("```\na\n```\n```\nb", Some("b"));
        check("~~~\n```\n~~~", Some("```"));
        check("  ```python\n  x\n  ```", Some("  x"));
        check("```", Some(""));
    }
}
