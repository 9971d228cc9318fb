//! The user's own environment, in any language: a long-lived process that speaks JSON lines.
//!
//! Every line that goes to the process is answered by one line, in order:
//!
//! ```text
//! {"event": "start", "episode": "31", "seed": 81, "row": {...}, "messages": [...], "tools": [...]}      answered by {}
//! {"event": "turn", "episode": "31", "turn": 0, "is_last": false, "text": "...", "content": "...",
//!  "tool_calls": [{"name": "f", "arguments": {...}}]}
//!     answered by {"message": "..."}                 another user turn
//!              or {"tools": ["...", ...]}            results of the calls, in order
//!              or {"messages": [{"role": ..., "content": ...}, ...]}
//!              or {"done": true}                     with "score", "reason" and "parts" if it judges
//! {"event": "end", "episode": "31", "reason": "length"}      answered by {} or a "score"
//! ```
//!
//! `tools` are those that the prompt shows the model, as OpenAI functions; none where the row has none.
//!
//! `end` comes only where the process did not say `done` itself: the turn was cut (`length`), was the last that is allowed
//! (`max_turns`), the chat template cannot go on after it (`rewritten`), or the next turn never came from the server that samples
//! (`lost`: such a sample is dropped, and a score is of no use). An answer
//! `{"error": "..."}`, no answer in time, a crash, or a line that is none of these ends the episode without a verdict: the sample is
//! counted and does not train. Other episodes of a process that ended are lost with it; it is started anew for those that begin
//! later, and given up after some failures in a row. It runs with the rights of whoever started the training.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pt_core::catalogue::{CatalogueError, parse};
use pt_text::Message;
use pt_verify::{Command, Process, Verdict, complaint_of, verdict_of};
use serde_json::{Map, Value, json};

use crate::catalogue::{EnvironmentInfo, KIND};
use crate::environment::{Environment, Episode, Outcome, Reaction, Start, Turn, user};
use crate::tools::tool_message;

const NAME: &str = "command";
/// Who judges, in the reasons of verdicts.
const WHO: &str = "environment";

/// The catalogue's entry.
pub(crate) const INFO: EnvironmentInfo = EnvironmentInfo {
    name: NAME,
    summary: "your own program, in any language, over JSON lines",
    reads: "whatever it wants of the prompt and the row",
    options: &Command::options("the program and its arguments, such as [\"python3\", \"game.py\"]"),
    build: |options| Ok(Box::new(External::new(parse::<Command>(KIND, NAME, options)?)?)),
};

/// The environment: a few processes, started when they are first needed.
#[derive(Debug)]
struct External {
    config: Command,
    processes: Vec<Mutex<Process>>,
    n_episodes: AtomicUsize,
}

impl External {
    fn new(config: Command) -> Result<External, CatalogueError> {
        config.check().map_err(|problem| CatalogueError::Option {
            kind: KIND,
            name: NAME.to_owned(),
            problem,
        })?;
        let processes = (0..config.n_processes).map(|_| Mutex::new(Process::default())).collect();
        Ok(External { config, processes, n_episodes: AtomicUsize::new(0) })
    }
}

impl Environment for External {
    fn name(&self) -> &'static str {
        NAME
    }

    fn begin(&self, start: &Start<'_>) -> Box<dyn Episode + '_> {
        let number = self.n_episodes.fetch_add(1, Ordering::Relaxed);
        let slot = number % self.processes.len();
        let line = json!({
            "event": "start", "episode": number.to_string(), "seed": start.seed, "row": start.row,
            "messages": start.messages, "tools": start.tools,
        });
        // Told with the first turn, when a worker of its own waits for it.
        Box::new(Dialogue {
            environment: self,
            slot,
            episode: number.to_string(),
            start: Some(line),
            life: 0,
        })
    }
}

/// One episode.
struct Dialogue<'e> {
    environment: &'e External,
    slot: usize,
    episode: String,
    /// What the process was not told yet.
    start: Option<Value>,
    /// Which life of the process knows of the episode.
    life: u64,
}

impl Dialogue<'_> {
    fn process(&self) -> MutexGuard<'_, Process> {
        self.environment.processes[self.slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a line and reads its answer.
    fn ask(&mut self, line: &Value) -> Result<Map<String, Value>, String> {
        let (config, start) = (&self.environment.config, self.start.take());
        let mut process = self.process();
        if let Some(reason) = process.given_up(config) {
            return Err(reason);
        }
        let is_known = start.is_none();
        if is_known && (!process.is_running() || process.n_started() != self.life) {
            return Err("the process ended in the middle of the episode".to_owned());
        }
        let answered = process.start(config).and_then(|()| {
            if let Some(start) = start {
                exchange(&mut process, config, &start)?;
            }
            exchange(&mut process, config, line)
        });
        let life = process.n_started();
        let answered = answered.map_err(|reason| process.fail(&reason));
        drop(process);
        self.life = life;
        answered
    }
}

fn exchange(process: &mut Process, config: &Command, line: &Value) -> Result<Map<String, Value>, String> {
    process.say(line.to_string());
    let heard = process.hear(config)?;
    let Ok(Value::Object(answer)) = serde_json::from_str(&heard) else {
        let shown: String = heard.chars().take(120).collect();
        return Err(format!(
            "it wrote `{shown}`, expected one JSON object for each line (diagnostics belong on standard error)"
        ));
    };
    process.has_answered();
    Ok(answer)
}

impl Episode for Dialogue<'_> {
    fn react(&mut self, turn: &Turn<'_>) -> Reaction {
        let calls = turn.reply.calls.iter();
        let calls: Vec<Value> =
            calls.map(|call| json!({"name": call.name, "arguments": call.arguments})).collect();
        let n_calls = calls.len();
        let line = json!({
            "event": "turn", "episode": self.episode, "turn": turn.index, "is_last": turn.is_last,
            "text": turn.text, "content": turn.reply.content, "tool_calls": calls,
        });
        let outcome = self.ask(&line).and_then(|answer| outcome_of(&answer, turn));
        Reaction { n_calls, ..Reaction::of(outcome.unwrap_or_else(Outcome::Failed)) }
    }

    fn end(&mut self, reason: &str) -> Option<Verdict> {
        let line = json!({"event": "end", "episode": self.episode, "reason": reason});
        verdict_of(&self.ask(&line).ok()?, WHO).ok().flatten()
    }
}

fn outcome_of(answer: &Map<String, Value>, turn: &Turn<'_>) -> Result<Outcome, String> {
    if let Some(complaint) = complaint_of(answer) {
        return Err(complaint);
    }
    if answer.get("done").and_then(Value::as_bool) == Some(true) {
        return Ok(Outcome::End(verdict_of(answer, WHO)?));
    }
    let messages = messages_of(answer, turn)?;
    match messages.is_empty() {
        false => Ok(Outcome::Continue(messages)),
        true => {
            let found = Value::Object(answer.clone());
            Err(format!(
                "it answered a turn with {found}, expected `message`, `tools`, `messages` or `\"done\": true`"
            ))
        }
    }
}

fn messages_of(answer: &Map<String, Value>, turn: &Turn<'_>) -> Result<Vec<Message>, String> {
    let mut messages = Vec::new();
    if let Some(results) = answer.get("tools").and_then(Value::as_array) {
        if results.len() != turn.reply.calls.len() {
            return Err(format!(
                "it gave {} results in `tools` for {} calls",
                results.len(),
                turn.reply.calls.len()
            ));
        }
        for (i, (result, call)) in results.iter().zip(&turn.reply.calls).enumerate() {
            let text = result.as_str().map_or_else(|| result.to_string(), str::to_owned);
            messages.push(tool_message(&call.name, turn.first_call + i, text));
        }
    }
    for message in answer.get("messages").and_then(Value::as_array).into_iter().flatten() {
        let role = message.get("role").and_then(Value::as_str);
        let is_good = message.get("content").is_some_and(Value::is_string)
            && role.is_some_and(|role| role != "assistant");
        match message.as_object().filter(|_| is_good) {
            Some(message) => messages.push(message.clone()),
            None => {
                return Err(format!("a message is {message}, expected `role` (not assistant) and `content`"));
            }
        }
    }
    messages.extend(answer.get("message").and_then(Value::as_str).map(user));
    Ok(messages)
}

#[cfg(all(test, unix))]
mod tests {
    use pt_text::tools::Reply;

    use super::*;

    /// Plays turns against a shell script; says what each came to.
    fn play(script: &str, more: &str, turns: &[&str]) -> Vec<String> {
        let mut options: toml::Table = more.parse().unwrap();
        options.insert("command".to_owned(), vec!["/bin/sh", "-c", script].into());
        let environment = crate::build(NAME, &options).unwrap();
        let row = Map::from_iter([("answer".to_owned(), json!("yes"))]);
        let mut episode = environment.begin(&Start { messages: &[], row: &row, tools: &[], seed: 7 });
        let shown = |(index, text): (usize, &&str)| {
            if let Some(reason) = text.strip_prefix("END ") {
                return format!("end {:?}", episode.end(reason).and_then(|verdict| verdict.score));
            }
            let reply = Reply::parse(text);
            match episode.react(&Turn { index, text, reply: &reply, first_call: 0, is_last: false }).outcome {
                Outcome::Continue(messages) => {
                    let said = messages.iter().map(|m| format!("{}: {}", m["role"], m["content"]));
                    said.collect::<Vec<_>>().join("; ").replace('"', "")
                }
                Outcome::End(verdict) => format!("done {:?}", verdict.and_then(|verdict| verdict.score)),
                Outcome::Failed(problem) => format!("failed: {problem}"),
            }
        };
        turns.iter().enumerate().map(shown).collect()
    }

    const SCRIPT: &str = r#"while read -r line; do case "$line" in
        *'"event":"start"'*) echo '{}';;
        *'"event":"end"'*) echo '{"score": 0.25}';;
        *crash*) echo 'Traceback: boom' >&2; exit 3;;
        *hang*) sleep 60;;
        *babble*) echo 'hello';;
        *silent*) echo '{}';;
        *broken*) echo '{"error": "no board"}';;
        *tool_call*'"name":"f"'*) echo '{"tools": ["4"]}';;
        *several*) echo '{"messages": [{"role": "tool", "content": "a"}, {"role": "user", "content": "b"}]}';;
        *right*) echo '{"done": true, "score": 1, "parts": {"speed": 0.5}}';;
        *over*) echo '{"done": true}';;
        *) echo '{"message": "go on"}';;
    esac; done"#;

    #[test]
    fn answers_are_turns_results_or_the_end() {
        let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        let check = |turns: &[&str], expected: &[&str]| assert_eq!(play(SCRIPT, "", turns), expected);
        check(
            &["x", call, "several", "right"],
            &["user: go on", "tool: 4", "tool: a; user: b", "done Some(1.0)"],
        );
        check(&["over"], &["done None"]);
        check(&["x", "END length"], &["user: go on", "end Some(0.25)"]);
    }

    #[test]
    fn a_process_hears_which_tools_the_prompt_shows() {
        let script = r#"read -r start; echo '{}'; read -r turn; case "$start" in
            *'"tools":[{'*'"name":"f"'*) echo '{"done": true, "score": 1}';;
            *'"tools":[]'*) echo '{"done": true, "score": 0}';; esac"#;
        let options = toml::Table::from_iter([("command".to_owned(), vec!["/bin/sh", "-c", script].into())]);
        let f = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        for (tools, score) in [(vec![f], 1.0), (Vec::new(), 0.0)] {
            let environment = crate::build(NAME, &options).unwrap();
            let row = Map::new();
            let mut episode = environment.begin(&Start { messages: &[], row: &row, tools: &tools, seed: 0 });
            let reply = Reply::default();
            let turn = Turn { index: 0, text: "x", reply: &reply, first_call: 0, is_last: false };
            let Outcome::End(Some(verdict)) = episode.react(&turn).outcome else { panic!("it says done") };
            assert_eq!(verdict.score, Some(score), "{tools:?}");
        }
    }

    #[test]
    fn whatever_breaks_ends_the_episode_with_its_reason() {
        for (turn, reason) in [
            ("crash", "ended without an answer (exit status: 3); its standard error ends: Traceback: boom"),
            ("hang", "no answer within 0.3 s"),
            ("babble", "wrote `hello`, expected one JSON object"),
            ("silent", "expected `message`, `tools`, `messages`"),
            ("broken", "the command says: no board"),
        ] {
            let found = play(SCRIPT, "timeout_s = 0.3\nstartup_s = 0.0", &["x", turn]);
            assert_eq!(found[0], "user: go on");
            assert!(found[1].starts_with("failed: ") && found[1].contains(reason), "{found:?}");
        }
        // A process that ended knows nothing of the episode any more.
        let found = play(SCRIPT, "timeout_s = 0.3\nstartup_s = 0.0", &["x", "crash", "x"]);
        assert!(found[2].contains("ended in the middle of the episode"), "{found:?}");
        let found = play("exit 1", "max_restarts = 0", &["x", "x"]);
        assert!(found[1].contains("gave up after 1 failures in a row"), "{found:?}");
    }

    #[test]
    fn episodes_of_one_process_do_not_mix() {
        let options: toml::Table =
            toml::Table::from_iter([("command".to_owned(), vec!["/bin/sh", "-c", SCRIPT].into())]);
        let environment = crate::build(NAME, &options).unwrap();
        let row = Map::new();
        let start = Start { messages: &[], row: &row, tools: &[], seed: 0 };
        std::thread::scope(|scope| {
            for i in 0..8 {
                let (environment, start) = (&environment, &start);
                scope.spawn(move || {
                    let mut episode = environment.begin(start);
                    let reply = Reply::default();
                    for index in 0..4 {
                        let text = if index == 3 { "right" } else { "x" };
                        let turn = Turn { index, text, reply: &reply, first_call: 0, is_last: false };
                        let is_end = matches!(episode.react(&turn).outcome, Outcome::End(Some(_)));
                        assert_eq!(is_end, index == 3, "episode {i}");
                    }
                });
            }
        });
    }
}
