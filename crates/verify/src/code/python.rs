//! Python workers: interpreters in the sandbox that fork for every run, so that nobody waits for Python to start.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pt_sandbox::{Exchange, Job, Sandbox, Session};
use serde::Deserialize;
use serde_json::{Value, json};

const WORKER: &str = include_str!("worker.py");
/// What a worker may take to start, to notice that time is up, and to clear away.
const GRACE: Duration = Duration::from_secs(20);
/// What a trivial test may take on a loaded machine.
const PROBE_S: f64 = 30.0;
/// Says where the interpreter and its library lie. The worker needs `os.pidfd_open`, which came with 3.9.
const ASK: &str = "import sys
if sys.version_info < (3, 9): sys.exit('it is Python %d.%d' % sys.version_info[:2])
print(getattr(sys, '_base_executable', sys.executable)); print(sys.base_prefix); print(sys.base_exec_prefix)";

/// An interpreter, and workers that wait.
#[derive(Debug)]
pub(super) struct Python {
    job: Job,
    idle: Mutex<Vec<Session>>,
}

/// What is said before the body of an answer.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    /// `time` or `output`, whichever was used up.
    pub(super) over: Option<String>,
    /// The exit code of a program; negative is a signal.
    pub(super) code: Option<i32>,
    /// What a program wrote there at the end.
    #[serde(default)]
    pub(super) stderr: String,
    /// Whether the worker is to be used no more.
    retire: bool,
}

/// A run that came to no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Its own doing.
    Answer(&'static str),
    /// The machine's.
    Machine(String),
}

impl Python {
    /// Finds where the interpreter lies, by asking it. (It is the user's program; nothing of an answer runs here.)
    pub(super) fn find(name: &str) -> Result<Python, String> {
        let output = Command::new(name)
            .args(["-I", "-S", "-c", ASK])
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("`{name}` cannot be run: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut paths = text.lines().map(PathBuf::from);
        let program = paths.next().filter(|_| output.status.success());
        let program = program.ok_or_else(|| {
            let problem = String::from_utf8_lossy(&output.stderr);
            format!("`{name}` is no Python of version 3.9 or later: {}", problem.trim())
        })?;
        let program = program.canonicalize().map_err(|e| format!("{}: {e}", program.display()))?;
        let mut readable = Vec::new();
        for prefix in paths {
            let prefix = prefix.canonicalize().unwrap_or(prefix);
            if prefix.components().count() > 1 && !prefix.starts_with("/usr") && !readable.contains(&prefix) {
                readable.push(prefix);
            }
        }
        // No site packages; nothing of the environment but this: sets have the same order in every worker.
        let args = ["-s", "-S", "-B", "-c", WORKER].map(str::to_owned).to_vec();
        let env = vec![("PYTHONHASHSEED".to_owned(), "0".to_owned())];
        Ok(Python {
            job: Job { program, args, env, readable, ..Job::default() },
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Runs a trivial test, so that what fails later is the answer's doing and not the machine's.
    pub(super) fn probe(&self, sandbox: &Sandbox) -> Result<(), String> {
        let tests = json!({"setup": "", "tests": ["assert f() == 1"], "entry": "", "check": false});
        let problem = match self.test(sandbox, "def f():\n    return 1", &tests, PROBE_S) {
            Ok((head, body)) => {
                let found = serde_json::from_slice::<Value>(&body).ok();
                if found == Some(json!({"test": 0, "failed": null})) {
                    return Ok(());
                }
                format!("{head:?} {}", String::from_utf8_lossy(&body).trim())
            }
            Err(Trouble::Answer(problem)) => problem.to_owned(),
            Err(Trouble::Machine(problem)) => problem,
        };
        let program = self.job.program.display();
        Err(format!("`{program}` fails a trivial test in the sandbox, so it can judge nothing: {problem}"))
    }

    /// Tests an answer. The lines say what the judge found.
    pub(super) fn test(
        &self,
        sandbox: &Sandbox,
        code: &str,
        tests: &Value,
        seconds: f64,
    ) -> Result<(Head, Vec<u8>), Trouble> {
        self.run(sandbox, "tests", &[json!({"code": code}), tests.clone()], seconds)
    }

    /// Runs an answer as a program. The body is what it wrote.
    pub(super) fn program(
        &self,
        sandbox: &Sandbox,
        code: &str,
        input: &str,
        seconds: f64,
    ) -> Result<(Head, Vec<u8>), Trouble> {
        self.run(sandbox, "program", &[json!({"code": code}), json!({"input": input})], seconds)
    }

    fn run(
        &self,
        sandbox: &Sandbox,
        kind: &str,
        frames: &[Value],
        seconds: f64,
    ) -> Result<(Head, Vec<u8>), Trouble> {
        // Room for the head, and for what is cut off.
        let output = sandbox.limits().output_bytes / 2;
        let plan = json!({"kind": kind, "seconds": seconds, "output": output});
        let mut request = Vec::new();
        for frame in [plan].iter().chain(frames) {
            let body = frame.to_string();
            let length = u32::try_from(body.len())
                .map_err(|_| Trouble::Machine("the tests are too long".to_owned()))?;
            request.extend_from_slice(&length.to_le_bytes());
            request.extend_from_slice(body.as_bytes());
        }
        let timeout = Duration::from_secs_f64(seconds) + GRACE;
        // A worker that waited may have died waiting, or of what an earlier answer left; that is not this one's doing.
        let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut worker) = waiting {
            match worker.exchange(&request, timeout) {
                Exchange::Closed => {}
                exchange => return self.finish(worker, exchange),
            }
        }
        let mut worker = sandbox.spawn(&self.job).map_err(|e| Trouble::Machine(e.to_string()))?;
        let exchange = worker.exchange(&request, timeout);
        self.finish(worker, exchange)
    }

    fn finish(&self, worker: Session, exchange: Exchange) -> Result<(Head, Vec<u8>), Trouble> {
        let answer = match exchange {
            Exchange::Answer(answer) => answer,
            Exchange::TimedOut => return Err(Trouble::Answer("out of time")),
            Exchange::MemoryLimit => return Err(Trouble::Answer("out of memory")),
            Exchange::OutputLimit => return Err(Trouble::Answer("wrote too much")),
            Exchange::Closed => return Err(Trouble::Answer("the interpreter ended")),
        };
        let end = answer.iter().position(|byte| *byte == b'\n').unwrap_or(answer.len());
        let head: Head = serde_json::from_slice(&answer[..end])
            .map_err(|e| Trouble::Machine(format!("the worker's answer is not understood: {e}")))?;
        if !head.retire {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        }
        Ok((head, answer.get(end + 1..).unwrap_or_default().to_vec()))
    }
}
