//! The tool `python`: a program, run in the sandbox, and what it wrote.
//!
//! Every call is a program of its own: nothing is left of an earlier one. There are no site packages, no network and no files but an
//! empty folder; hashing and `random` start the same each time, so that a program that looks at no clock gives the same result.

use pt_verify::{PythonRunner, Ran};
use serde_json::{Map, Value, json};

use crate::catalogue::ToolInfo;
use crate::tools::{Limits, Tool, ToolError};

const NAME: &str = "python";

/// The catalogue's entry.
pub(crate) const INFO: ToolInfo = ToolInfo {
    name: NAME,
    summary: "runs a program in the sandbox; its result is what it prints",
    build: |limits: &Limits| {
        let Limits { timeout_s, memory_mb, python, allow_unisolated } = limits;
        Ok(Box::new(Python(PythonRunner::new(python, *timeout_s, *memory_mb, *allow_unisolated)?)))
    },
};

#[derive(Debug)]
struct Python(PythonRunner);

impl Tool for Python {
    fn schema(&self) -> Value {
        json!({
            "type": "function",
            "function": {
                "name": NAME,
                "description": "Runs a Python program and gives what it prints.",
                "parameters": {
                    "type": "object",
                    "properties": { "code": { "type": "string", "description": "The program." } },
                    "required": ["code"],
                },
            },
        })
    }

    fn call(&self, arguments: &Map<String, Value>) -> Result<String, ToolError> {
        let Some(code) = arguments.get("code").and_then(Value::as_str) else {
            return Err(ToolError::Caller("the argument `code` is missing, expected a text".to_owned()));
        };
        match self.0.run(code).map_err(ToolError::Machine)? {
            Ran::Wrote(text) if text.trim().is_empty() => Ok("(nothing was printed)".to_owned()),
            Ran::Wrote(text) => Ok(text),
            Ran::Failed(problem) => Err(ToolError::Caller(problem)),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test must be visible in the test output")]
    fn programs_are_run_apart_from_each_other() {
        let tool = (INFO.build)(&Limits { timeout_s: 20.0, ..Limits::default() }).unwrap();
        let call = |code: &str| tool.call(&Map::from_iter([("code".to_owned(), code.into())]));
        if let Err(ToolError::Machine(problem)) = call("print(1)") {
            eprintln!("\n*** SKIPPED: the tool python cannot run here: {problem} ***\n");
            return;
        }
        assert_eq!(call("x = 6\nprint(x * 7)").unwrap().trim(), "42");
        assert_eq!(call("print(x)"), Err(ToolError::Caller("NameError: name 'x' is not defined".to_owned())));
        assert_eq!(call("pass").unwrap(), "(nothing was printed)");
        assert_eq!(
            tool.call(&Map::new()),
            Err(ToolError::Caller("the argument `code` is missing, expected a text".to_owned()))
        );
        let random = "import random; print(random.random())";
        assert_eq!(call(random), call(random));
    }
}
