//! The user's own program as a process that is started when it is needed, started anew when it fails, and given up after some
//! failures in a row.

use std::time::{Duration, Instant};

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::child::{Heard, LineChild};
use crate::{Part, Verdict};

/// How the program is run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The longest wait for an answer, in seconds.
    #[serde(default = "ten")]
    pub timeout_s: f64,
    /// What is added to that for the first answer of a new process.
    #[serde(default = "sixty")]
    pub startup_s: f64,
    /// How often in a row it may fail and be started again.
    #[serde(default = "three")]
    pub max_restarts: u32,
    /// How many run side by side.
    #[serde(default = "one")]
    pub n_processes: usize,
}

fn ten() -> f64 {
    10.0
}
fn sixty() -> f64 {
    60.0
}
fn three() -> u32 {
    3
}
fn one() -> usize {
    1
}

impl Command {
    /// Its options for a catalogue; `program` says what `command` is.
    pub const fn options(program: &'static str) -> [OptionInfo; 5] {
        const fn info(
            name: &'static str,
            kind: &'static str,
            default: &'static str,
            doc: &'static str,
        ) -> OptionInfo {
            OptionInfo { name, kind, default, doc }
        }
        [
            info("command", "array of texts", "", program),
            info("timeout_s", "number", "10.0", "the longest wait for an answer"),
            info(
                "startup_s",
                "number",
                "60.0",
                "what is added to that for the first answer of a new process",
            ),
            info("max_restarts", "integer", "3", "how often in a row it may fail and be started again"),
            info("n_processes", "integer", "1", "how many run side by side"),
        ]
    }

    /// Refuses values out of range, in words.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self) -> Result<(), String> {
        if self.command.first().is_none_or(|program| program.is_empty()) {
            return Err("`command` is empty; expected a program and its arguments".to_owned());
        }
        for (name, value) in [("timeout_s", self.timeout_s), ("startup_s", self.startup_s)] {
            if !(0.0..=86_400.0).contains(&value) {
                return Err(format!("`{name}` is {value}; expected 0 to 86400 seconds"));
            }
        }
        if !(1..=1024).contains(&self.n_processes) {
            return Err(format!("`n_processes` is {}; expected 1 to 1024", self.n_processes));
        }
        Ok(())
    }
}

/// One process, or the memory of why there is none.
#[derive(Debug, Default)]
pub struct Process {
    child: Option<LineChild>,
    has_answered: bool,
    /// Failures since the last good answer.
    n_failures: u32,
    last_failure: String,
    n_started: u64,
}

impl Process {
    /// Why it is not started any more, if it is not.
    pub fn given_up(&self, config: &Command) -> Option<String> {
        (self.n_failures > config.max_restarts).then(|| {
            format!("gave up after {} failures in a row; the last: {}", self.n_failures, self.last_failure)
        })
    }

    /// Starts it if it does not run.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(&mut self, config: &Command) -> Result<(), String> {
        if self.child.is_none() {
            let started = LineChild::start(&config.command[0], &config.command[1..]);
            self.child = Some(started.map_err(|e| format!("cannot start `{}`: {e}", config.command[0]))?);
            self.has_answered = false;
            self.n_started += 1;
        }
        Ok(())
    }

    /// How often it was started: what an earlier one was told, a later one does not know.
    pub fn n_started(&self) -> u64 {
        self.n_started
    }

    /// Whether it runs, as far as is known.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Sends it a line.
    ///
    /// # Panics
    /// If it was not started.
    pub fn say(&self, line: String) {
        self.child.as_ref().expect("the process was started").say(line);
    }

    /// Waits for its next line.
    ///
    /// # Errors
    /// What came instead.
    ///
    /// # Panics
    /// If it was not started.
    pub fn hear(&self, config: &Command) -> Result<String, String> {
        let child = self.child.as_ref().expect("the process was started");
        let wait_s = config.timeout_s + if self.has_answered { 0.0 } else { config.startup_s };
        match child.hear(Instant::now() + Duration::from_secs_f64(wait_s)) {
            Heard::Line(line) => Ok(line),
            Heard::TooLong => Err("it wrote a line of more than 1 MiB".to_owned()),
            Heard::Nothing => Err(format!("no answer within {wait_s} s")),
            Heard::End => Err("it ended without an answer".to_owned()),
        }
    }

    /// It has answered well.
    pub fn has_answered(&mut self) {
        self.has_answered = true;
        self.n_failures = 0;
    }

    /// Ends the process and says what happened.
    pub fn fail(&mut self, reason: &str) -> String {
        self.n_failures += 1;
        let mut reason = format!("the command failed: {reason}");
        if let Some(child) = self.child.take() {
            let (status, stderr) = child.end();
            if let Some(status) = status {
                reason += &format!(" ({status})");
            }
            if !stderr.is_empty() {
                reason += &format!("; its standard error ends: {stderr}");
            }
        }
        self.last_failure.clone_from(&reason);
        reason
    }
}

/// A score: a finite number, or a truth as 1 or 0.
pub(crate) fn number_of(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
        other => other.as_f64().filter(|score| score.is_finite()),
    }
}

/// What an answer's `error` says, if it has one.
pub fn complaint_of(answer: &Map<String, Value>) -> Option<String> {
    let error = answer.get("error").filter(|error| !error.is_null())?;
    let error = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
    Some(format!("the command says: {error}"))
}

/// The verdict in an answer's `score`, `reason` and `parts`; none without a `score`, a skip where that is null. `who` gave it.
///
/// # Errors
/// A score that is none.
pub fn verdict_of(answer: &Map<String, Value>, who: &str) -> Result<Option<Verdict>, String> {
    let Some(score) = answer.get("score") else { return Ok(None) };
    let reason = answer.get("reason").and_then(Value::as_str);
    let or = |other: String| reason.map_or(other, str::to_owned);
    let verdict = match (score, number_of(score)) {
        (Value::Null, _) => Verdict::skip(or(format!("the {who} gave no score"))),
        (_, Some(score)) => Verdict::scored(score, or(format!("the {who} gave {score}"))),
        (other, None) => return Err(format!("its score is {other}, expected a finite number")),
    };
    let parts = answer.get("parts").and_then(Value::as_object).into_iter().flatten();
    let parts = parts.filter_map(|(name, score)| Some(Part { name: name.clone(), score: number_of(score)? }));
    Ok(Some(verdict.with_parts(parts.collect())))
}
