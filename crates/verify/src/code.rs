//! The reply is a program that passes its tests, run in the sandbox.
//!
//! **Tests** are Python asserts (a list, or a text, which with the columns `entry_point` and `prompt` is HumanEval's `check`),
//! or cases of input and output, compared word by word. What Python defines is tested with either, every other language with
//! cases.
//!
//! **Tests that say nothing of an answer are a skip**, not a score: those that only define functions and classes (unittest's and
//! pytest's are not run; `check` without `entry_point` is not called), and those that import what the interpreter has not without
//! its site packages.
//!
//! **An answer cannot fake its success.** Three kinds of process, all in one sandbox with one PID namespace:
//!
//! - the *worker* never runs anything of the answer or the tests; it forks the other two and is the only one that can write to
//!   us;
//! - the *answer's process* has the answer and never the tests: it defines what the answer defines, and calls it when asked to;
//! - the *judge* has the tests and never runs anything of the answer: a name the tests use is a stand-in that passes the call on
//!   and gets plain data back. Comparisons are made there.
//!
//! So patching builtins, `sys.exit`, `os._exit`, `atexit`, a class with its own `__eq__`, printing, looking through frames or
//! memory for the expected value or a secret: all of it happens in a process that knows neither, and whose only means of
//! expression is the value a function returns. The processes cannot trace, read or replace each other (`pt_sandbox`); killing the
//! judge means not having passed.
//!
//! What follows: values that are not plain data (numbers, texts, containers and their subclasses) stay in the answer's process;
//! the tests can call them, look at attributes and iterate, but they equal no plain data. A name that only the answer defines is
//! the answer's, also when tests use it as a helper. Names of Python and its library are the judge's own.
//!
//! **A verdict does not depend on other answers**: each runs in fresh forks, all its processes are killed, a worker in whose
//! folder something is left is replaced; hashing and `random` start the same each time. (Time is shared: a loaded machine
//! makes a program near its limit late.)

mod python;
mod runner;
mod task;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use pt_sandbox::{Job, Limits, Sandbox, Status};
use serde::Deserialize;
use serde_json::{Value, json};

use self::python::{Python, Trouble};
pub use self::runner::{PythonRunner, Ran};
use self::task::{Tests, is_same_output};
use crate::catalogue::{KIND, VerifierInfo};
use crate::text::shortened;
use crate::{Part, Question, Verdict, Verifier};

const NAME: &str = "code";

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the program in the reply passes its tests, run in the sandbox",
    reads: "the gold answer, or `test_list` (and `test_setup_code`), `test` (and `entry_point`, `prompt`), `tests`, \
            `input_output`: asserts, or cases of `input` and `output`",
    options: &[
        OptionInfo {
            name: "python",
            kind: "text",
            default: "\"python3\"",
            doc: "the interpreter of answers, where no command is given",
        },
        OptionInfo {
            name: "command",
            kind: "array of texts",
            default: "[]",
            doc: "what runs an answer in another language, such as [\"node\"]; the answer's file is the last argument. Only cases",
        },
        OptionInfo {
            name: "file",
            kind: "text",
            default: "\"answer.txt\"",
            doc: "the name of that file, such as \"main.js\"",
        },
        OptionInfo {
            name: "readable",
            kind: "array of texts",
            default: "[]",
            doc: "paths the command needs besides /usr, /bin and /lib",
        },
        OptionInfo {
            name: "fenced",
            kind: "bool",
            default: "true",
            doc: "whether the program is the last fenced block of the reply, where it has one",
        },
        OptionInfo {
            name: "partial_credit",
            kind: "bool",
            default: "true",
            doc: "whether the score is the share of tests passed, or 1 for all and else 0",
        },
        OptionInfo {
            name: "timeout_s",
            kind: "number",
            default: "5.0",
            doc: "time for all tests, or for each case",
        },
        OptionInfo { name: "memory_mb", kind: "integer", default: "512", doc: "memory of all its processes" },
        OptionInfo {
            name: "allow_unisolated",
            kind: "bool",
            default: "false",
            doc: "runs answers even where this machine cannot isolate them (see `posttrain doctor`)",
        },
    ],
    examples: include_str!("code.md"),
    build: |options| Ok(Box::new(Code::new(parse::<Options>(KIND, NAME, options)?)?)),
};

/// Its options.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The interpreter.
    pub python: String,
    /// Another language's.
    pub command: Vec<String>,
    /// The answer's file for it.
    pub file: String,
    /// What it needs to read.
    pub readable: Vec<PathBuf>,
    /// Whether to look for a fenced block.
    pub fenced: bool,
    /// Whether a part of the tests is worth a part.
    pub partial_credit: bool,
    /// Time.
    pub timeout_s: f64,
    /// Memory.
    pub memory_mb: u64,
    /// Whether to run without isolation.
    pub allow_unisolated: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            python: "python3".to_owned(),
            command: Vec::new(),
            file: "answer.txt".to_owned(),
            readable: Vec::new(),
            fenced: true,
            partial_credit: true,
            timeout_s: 5.0,
            memory_mb: 512,
            allow_unisolated: false,
        }
    }
}

/// Runs tests.
pub struct Code {
    options: Options,
    machine: OnceLock<Result<Arc<Machine>, String>>,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Code").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What is found out when it is first needed.
struct Machine {
    sandbox: Sandbox,
    language: Language,
}

enum Language {
    Python(Python),
    Command(PathBuf),
}

impl Machine {
    /// The machine for these options, shared by all verifiers that have the same: interpreters take long to start.
    fn shared(options: &Options) -> Result<Arc<Machine>, String> {
        type Shared = Mutex<BTreeMap<String, Result<Arc<Machine>, String>>>;
        static SHARED: Shared = Mutex::new(BTreeMap::new());
        // A worker keeps its runs to their time itself.
        let timeout_s = if options.command.is_empty() { 0.0 } else { options.timeout_s };
        let Options { python, command, readable, memory_mb, allow_unisolated, .. } = options;
        let key = format!("{:?}", (python, command, readable, timeout_s, memory_mb, allow_unisolated));
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.entry(key).or_insert_with(|| Machine::new(options).map(Arc::new)).clone()
    }

    fn new(options: &Options) -> Result<Machine, String> {
        let wall = Duration::from_secs_f64(options.timeout_s);
        let bytes = options.memory_mb << 20;
        let limits = Limits {
            wall,
            cpu: wall,
            memory_bytes: bytes,
            // Other languages reserve more than they use.
            address_bytes: options.command.is_empty().then_some(bytes.max(256 << 20) * 4),
            output_bytes: 4 << 20,
            allow_unisolated: options.allow_unisolated,
            ..Limits::default()
        };
        let sandbox = Sandbox::new(limits).map_err(|e| e.to_string())?;
        let language = match options.command.first() {
            None => {
                let python = Python::find(&options.python)?;
                python.probe(&sandbox)?;
                Language::Python(python)
            }
            Some(name) => Language::Command(find_program(name)?),
        };
        Ok(Machine { sandbox, language })
    }
}

/// A test with what became of it: nothing if it passed.
type TestResult = (String, Option<String>);

impl Code {
    fn new(options: Options) -> Result<Code, CatalogueError> {
        let wrong = |problem: String| CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem };
        if !(options.timeout_s > 0.0 && options.timeout_s <= 3600.0) {
            return Err(wrong(format!(
                "timeout_s is {}, expected more than 0 and at most 3600",
                options.timeout_s
            )));
        }
        if options.memory_mb < 64 {
            return Err(wrong(format!("memory_mb is {}, expected at least 64", options.memory_mb)));
        }
        check_language(&options).map_err(wrong)?;
        Ok(Code { options, machine: OnceLock::new() })
    }

    fn machine(&self) -> Result<&Machine, String> {
        let machine = self.machine.get_or_init(|| Machine::shared(&self.options));
        machine.as_deref().map_err(Clone::clone)
    }

    /// One result per test, or why there is none.
    fn run(&self, machine: &Machine, code: &str, tests: &Tests) -> Result<Vec<TestResult>, Verdict> {
        match (tests, &machine.language) {
            (Tests::Asserts { .. }, Language::Python(python)) => {
                self.run_asserts(machine, python, code, tests)
            }
            (Tests::Asserts { .. }, Language::Command(_)) => {
                Err(Verdict::skip("the tests are Python, and the option `command` runs another language"))
            }
            (Tests::Cases(cases), _) => {
                let mut results = Vec::new();
                for (i, (input, expected)) in cases.iter().enumerate() {
                    let failed = self.run_case(machine, code, input, expected)?;
                    results.push((format!("case {}", i + 1), failed));
                }
                Ok(results)
            }
        }
    }

    fn run_asserts(
        &self,
        machine: &Machine,
        python: &Python,
        code: &str,
        tests: &Tests,
    ) -> Result<Vec<TestResult>, Verdict> {
        let Tests::Asserts { setup, tests, entry, has_check } = tests else { unreachable!("given asserts") };
        let frame = json!({"setup": setup, "tests": tests, "entry": entry, "check": has_check});
        let run = python.test(&machine.sandbox, code, &frame, self.options.timeout_s);
        let (head, body) = run.map_err(trouble)?;
        let mut failures =
            vec![Some(stopped(&head).unwrap_or("the judge was stopped").to_owned()); tests.len()];
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(line) = serde_json::from_slice::<Value>(line) else { break };
            let text = |name: &str| line.get(name).and_then(Value::as_str);
            if let Some(problem) = text("gold") {
                return Err(Verdict::skip(format!("the tests cannot be used: {problem}")));
            }
            if let Some(problem) = text("load") {
                failures.fill(Some(problem.to_owned()));
            }
            let at = line.get("test").and_then(Value::as_u64).and_then(|i| failures.get_mut(i as usize));
            if let Some(failure) = at {
                *failure = text("failed").map(str::to_owned);
            }
        }
        Ok(tests.iter().map(|test| title(test)).zip(failures).collect())
    }

    fn run_case(
        &self,
        machine: &Machine,
        code: &str,
        input: &str,
        expected: &str,
    ) -> Result<Option<String>, Verdict> {
        let (failed, stdout) = match &machine.language {
            Language::Python(python) => {
                let run = python.program(&machine.sandbox, code, input, self.options.timeout_s);
                let (head, stdout) = match run {
                    Err(Trouble::Answer(problem)) => return Ok(Some(problem.to_owned())),
                    run => run.map_err(trouble)?,
                };
                let failed = match (stopped(&head), head.code) {
                    (Some(problem), _) => Some(problem.to_owned()),
                    (None, Some(0)) => None,
                    (None, code) => {
                        let last = head.stderr.lines().last().unwrap_or_default();
                        Some(format!("exited with {}: {}", code.unwrap_or(-1), shortened(last, 200)))
                    }
                };
                (failed, stdout)
            }
            Language::Command(program) => {
                let mut args = self.options.command[1..].to_vec();
                args.push(self.options.file.clone());
                let job = Job {
                    program: program.clone(),
                    args,
                    stdin: input.as_bytes().to_vec(),
                    files: vec![(PathBuf::from(&self.options.file), code.as_bytes().to_vec())],
                    readable: self.options.readable.clone(),
                    ..Job::default()
                };
                let outcome = machine.sandbox.run(&job).map_err(|e| Verdict::skip(e.to_string()))?;
                let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
                let last = stderr.lines().last().unwrap_or_default();
                let failed = (outcome.status != Status::Exited(0))
                    .then(|| format!("{} {}", outcome.status, shortened(last, 200)).trim().to_owned());
                (failed, outcome.stdout)
            }
        };
        let found = String::from_utf8_lossy(&stdout);
        let is_same = is_same_output(&found, expected);
        Ok(failed.or_else(|| (!is_same).then(|| format!("wrote `{}`", shortened(found.trim(), 80)))))
    }
}

/// That the options of one language do not stand beside the other's, where they would do nothing.
fn check_language(options: &Options) -> Result<(), String> {
    let Options { python, command, file, readable, .. } = options;
    let plain = Options::default();
    if command.is_empty() {
        return match (*file != plain.file, readable.is_empty()) {
            (true, _) => {
                Err(format!("file is `{file}`, which is for answers that a `command` runs; give one"))
            }
            (_, false) => Err("readable is for answers that a `command` runs; give one".to_owned()),
            _ => Ok(()),
        };
    }
    if command[0].is_empty() {
        return Err("command begins with an empty text, expected a program".to_owned());
    }
    if *python != plain.python {
        return Err(format!("python is `{python}`, and `command` runs answers; give one of the two"));
    }
    let is_plain = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    match is_plain && !file.is_empty() {
        true => Ok(()),
        false => Err(format!("file is `{file}`, expected a relative path without `.` and `..`")),
    }
}

/// Its last line, which is what is asserted; a whole `check` goes by its own name.
fn title(test: &str) -> String {
    if test.contains("def check(") {
        return "check".to_owned();
    }
    shortened(test.trim().lines().last().unwrap_or_default().trim(), 80)
}

fn trouble(trouble: Trouble) -> Verdict {
    match trouble {
        Trouble::Answer(problem) => Verdict::fail(problem),
        Trouble::Machine(problem) => Verdict::skip(problem),
    }
}

fn stopped(head: &python::Head) -> Option<&'static str> {
    Some(if head.over.as_deref()? == "time" { "out of time" } else { "wrote too much" })
}

/// Where a program lies, as the user's shell finds it.
fn find_program(name: &str) -> Result<PathBuf, String> {
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", "command -v -- \"$1\"", "sh", name])
        .output()
        .map_err(|e| format!("`/bin/sh` cannot be run: {e}"))?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    match path.is_absolute() && path.exists() {
        true => Ok(path),
        false => Err(format!("the option `command` names `{name}`, which is not found")),
    }
}

impl Verifier for Code {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let tests = match task::tests(question) {
            Ok(tests) => tests,
            Err(problem) => return Verdict::skip(problem),
        };
        let machine = match self.machine() {
            Ok(machine) => machine,
            Err(problem) => return Verdict::skip(problem),
        };
        let code = task::program(question, self.options.fenced);
        let results = match self.run(machine, &code, &tests) {
            Ok(results) => results,
            Err(verdict) => return verdict,
        };
        let n_passed = results.iter().filter(|(_, failed)| failed.is_none()).count();
        let share = n_passed as f64 / results.len() as f64;
        let score = if self.options.partial_credit { share } else { share.floor() };
        let first = results.iter().find_map(|(name, failed)| Some((name, failed.as_ref()?)));
        let first = first.map_or_else(String::new, |(name, failed)| format!("; {name}: {failed}"));
        let score_of = |failed: &Option<String>| if failed.is_none() { 1.0 } else { 0.0 };
        let reason = format!("{n_passed} of {} tests passed{first}", results.len());
        let parts = results.iter().map(|(name, failed)| Part { name: name.clone(), score: score_of(failed) });
        Verdict::scored(score, reason).with_parts(parts.collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::build;

    #[test]
    fn options_that_would_do_nothing_are_refused() {
        let check = |options: &str, expected: Option<&str>| {
            let found = build("code", &options.parse().unwrap()).err().map(|e| e.to_string());
            let is_as_expected = match (&found, expected) {
                (Some(found), Some(expected)) => found.contains(expected),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(is_as_expected, "{options}: {found:?}");
        };
        check("", None);
        check("python = 'python3.12'", None);
        check("command = ['node']\nfile = 'src/main.js'\nreadable = ['/opt/node']", None);
        check("file = 'main.js'", Some("file is `main.js`"));
        check("readable = ['/opt/node']", Some("readable is for answers"));
        check("command = ['node']\npython = 'python3.12'", Some("python is `python3.12`"));
        check("command = ['']", Some("command begins with an empty text"));
        for file in ["", "/main.js", "../main.js", "./main.js", "a/../b.js"] {
            check(&format!("command = ['node']\nfile = '{file}'"), Some("expected a relative path"));
        }
    }
}
