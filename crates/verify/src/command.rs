//! The user's own reward function, in any language: a long-lived process that speaks JSON lines.
//!
//! For every reply one line goes to the process: `{"id": 7, "prompt": ..., "completion": ..., "gold": ..., "row": {...},
//! "truncated": false}`. It answers with one line: `{"id": 7, "score": 0.5, "reason": "...", "parts": {"name": 0.5}}`, or
//! a plain number or `true`/`false`, which answers the oldest open question. `"score": null` or an `"error"` is a skip.
//! Several lines may be on their way; answers with ids may come in any order.
//!
//! A process that crashes, hangs, or answers what was not asked costs the question it was on (a skip with the reason and
//! the end of its standard error); it is started anew for the rest, and given up after some failures in a row. It runs
//! with the rights of whoever started the training: it is the user's program, not the model's.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, TryLockError};

use pt_core::catalogue::{CatalogueError, parse};
use serde_json::Value;

use crate::catalogue::{KIND, VerifierInfo};
use crate::process::{Command, Process, complaint_of, number_of, verdict_of};
use crate::text::shortened;
use crate::{Question, Verdict, Verifier};

const NAME: &str = "command";

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "your own program, in any language, over JSON lines",
    reads: "whatever it wants of the prompt, the reply and the row",
    options: &Command::options("the program and its arguments, such as [\"python3\", \"reward.py\"]"),
    examples: include_str!("command.md"),
    build: |options| Ok(Box::new(External::new(parse::<Command>(KIND, NAME, options)?)?)),
};

/// One process, and how far its questions are numbered.
#[derive(Debug, Default)]
struct Slot {
    process: Process,
    next_id: u64,
}

/// The verifier: a few processes, started when they are first needed.
#[derive(Debug)]
pub struct External {
    config: Command,
    slots: Vec<Mutex<Slot>>,
}

/// What a line from the process says.
struct Answer {
    id: Option<u64>,
    verdict: Verdict,
}

impl External {
    /// A verifier that runs `config`; nothing is started yet.
    ///
    /// # Errors
    /// If a value is out of range.
    pub fn new(config: Command) -> Result<External, CatalogueError> {
        let refuse = |problem: String| CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem };
        config.check().map_err(refuse)?;
        let slots = (0..config.n_processes).map(|_| Mutex::new(Slot::default())).collect();
        Ok(External { config, slots })
    }

    /// A slot nobody uses, or the first one when it is free.
    fn slot(&self) -> MutexGuard<'_, Slot> {
        for slot in &self.slots {
            match slot.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.slots[0].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Verifier for External {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        self.slot().ask(&self.config, std::slice::from_ref(question)).remove(0)
    }

    fn verify_all(&self, questions: &[Question<'_>]) -> Vec<Verdict> {
        if questions.is_empty() {
            return Vec::new();
        }
        let share = questions.len().div_ceil(self.slots.len());
        std::thread::scope(|scope| {
            let ask = |(slot, share): (&'_ Mutex<Slot>, &'_ [Question<'_>])| {
                let mut slot = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                slot.ask(&self.config, share)
            };
            let workers: Vec<_> = self
                .slots
                .iter()
                .zip(questions.chunks(share))
                .map(|pair| scope.spawn(move || ask(pair)))
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("asking a process does not panic"))
                .collect()
        })
    }
}

impl Slot {
    /// Asks all questions, in order, and waits for their answers.
    fn ask(&mut self, config: &Command, questions: &[Question<'_>]) -> Vec<Verdict> {
        let mut verdicts: Vec<Option<Verdict>> = vec![None; questions.len()];
        // Each turn of the loop answers at least one question, so it ends.
        while let Some(first) = verdicts.iter().position(Option::is_none) {
            if let Some(reason) = self.process.given_up(config) {
                verdicts
                    .iter_mut()
                    .filter(|v| v.is_none())
                    .for_each(|v| *v = Some(Verdict::skip(reason.clone())));
                break;
            }
            if let Err(reason) = self.converse(config, questions, &mut verdicts) {
                // The oldest open question is the one the process was on.
                let at = verdicts.iter().position(Option::is_none).unwrap_or(first);
                let reason = self.process.fail(&reason);
                verdicts[at] = Some(Verdict::skip(reason));
            }
        }
        verdicts.into_iter().map(|verdict| verdict.expect("every question has been answered")).collect()
    }

    /// Sends what is open and reads until all is answered, or something goes wrong.
    fn converse(
        &mut self,
        config: &Command,
        questions: &[Question<'_>],
        verdicts: &mut [Option<Verdict>],
    ) -> Result<(), String> {
        self.process.start(config)?;
        // Which question each open id stands for, oldest first.
        let mut open = BTreeMap::new();
        for (index, question) in questions.iter().enumerate().filter(|(i, _)| verdicts[*i].is_none()) {
            self.process.say(request(self.next_id, question));
            open.insert(self.next_id, index);
            self.next_id += 1;
        }
        while !open.is_empty() {
            let answer = read_answer(&self.process.hear(config)?)?;
            let id = answer.id.unwrap_or_else(|| *open.keys().next().expect("not empty"));
            let index = open
                .remove(&id)
                .ok_or_else(|| format!("it answered id {id}, which was not asked or was answered before"))?;
            verdicts[index] = Some(answer.verdict);
            self.process.has_answered();
        }
        Ok(())
    }
}

fn request(id: u64, question: &Question<'_>) -> String {
    serde_json::json!({
        "id": id,
        "prompt": question.prompt,
        "completion": question.reply,
        "gold": question.gold,
        "row": question.row,
        "truncated": question.is_truncated,
    })
    .to_string()
}

fn read_answer(line: &str) -> Result<Answer, String> {
    let garbage = || {
        format!(
            "it wrote `{}`, expected a number or {{\"id\": ..., \"score\": ...}} (diagnostics belong on standard error)",
            shortened(line, 120)
        )
    };
    let value: Value = serde_json::from_str(line).map_err(|_| garbage())?;
    let Value::Object(fields) = &value else {
        let score = number_of(&value).ok_or_else(garbage)?;
        return Ok(Answer { id: None, verdict: Verdict::scored(score, format!("the command gave {score}")) });
    };
    let id = match fields.get("id") {
        None | Some(Value::Null) => None,
        Some(id) => Some(id.as_u64().ok_or_else(garbage)?),
    };
    let verdict = match complaint_of(fields) {
        Some(complaint) => Verdict::skip(complaint),
        None => verdict_of(fields, "command")?.ok_or_else(garbage)?,
    };
    Ok(Answer { id, verdict })
}

#[cfg(all(test, unix))]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::Part;

    /// Asks a shell script about each reply.
    fn ask(script: &str, extra: &str, replies: &[&str]) -> Vec<Verdict> {
        let options: toml::Table = extra.parse().unwrap();
        let mut options = options;
        options.insert("command".to_owned(), vec!["/bin/sh", "-c", script].into());
        let verifier = crate::build(NAME, &options).unwrap();
        let row = Map::new();
        let questions: Vec<Question<'_>> = replies
            .iter()
            .map(|reply| Question { prompt: "p", reply, gold: None, row: &row, is_truncated: false })
            .collect();
        verifier.verify_all(&questions)
    }

    /// Answers 1 to what holds `yes`, crashes on `crash`, hangs on `hang`, babbles on `babble`.
    const MOODY: &str = r#"while read -r line; do case "$line" in
        *crash*) echo 'Traceback: boom' >&2; exit 3;;
        *hang*) sleep 60;;
        *babble*) echo 'loading model...';;
        *wrongid*) echo '{"id": 999999, "score": 1}';;
        *blank*) echo '{"score": null, "reason": "no idea"}';;
        *error*) echo '{"error": "bad row"}';;
        *flood*) head -c 3000000 /dev/zero | tr '\0' x; echo;;
        *nan*) echo NaN;;
        *yes*) echo 1;;
        *) echo false;;
    esac; done"#;

    #[test]
    fn whatever_the_process_does_the_other_answers_stand() {
        for (reply, reason) in [
            ("crash", "ended without an answer (exit status: 3); its standard error ends: Traceback: boom"),
            ("hang", "no answer within 0.3 s"),
            ("babble", "wrote `loading model...`, expected a number"),
            ("wrongid", "answered id 999999, which was not asked"),
            ("flood", "more than 1 MiB"),
            ("nan", "wrote `NaN`"),
            ("blank", "no idea"),
            ("error", "the command says: bad row"),
        ] {
            let verdicts =
                ask(MOODY, "timeout_s = 0.3\nstartup_s = 0.0", &["yes", "no", reply, "yes", reply, "no"]);
            let scores: Vec<Option<f64>> = verdicts.iter().map(|v| v.score).collect();
            assert_eq!(
                scores,
                [Some(1.0), Some(0.0), None, Some(1.0), None, Some(0.0)],
                "{reply}: {verdicts:?}"
            );
            assert!(verdicts[2].reason.contains(reason), "{reply}: {}", verdicts[2].reason);
        }
    }

    #[test]
    fn a_process_that_only_fails_is_given_up() {
        for (script, reason) in [("exit 1", "ended"), ("echo hello; cat > /dev/null", "hello")] {
            let verdicts = ask(script, "max_restarts = 1", &["a", "b", "c", "d"]);
            assert!(verdicts.iter().all(|v| v.score.is_none()), "{verdicts:?}");
            assert!(verdicts[3].reason.contains("gave up after 2 failures in a row"), "{:?}", verdicts[3]);
            assert!(verdicts[3].reason.contains(reason), "{:?}", verdicts[3]);
        }
        let options = "command = ['/nonexistent/reward']".parse().unwrap();
        let row = Map::new();
        let question = Question { prompt: "", reply: "", gold: None, row: &row, is_truncated: false };
        let verdict = crate::build(NAME, &options).unwrap().verify(&question);
        assert!(verdict.score.is_none() && verdict.reason.contains("cannot start"), "{verdict:?}");
    }

    #[test]
    fn answers_with_ids_come_in_any_order_and_many_processes_share_the_work() {
        // Reads two lines before it answers the second, then the first.
        let swapped = r#"while read -r a && read -r b; do
            for line in "$b" "$a"; do
                id=${line#*\"id\":}; id=${id%%,*}
                case "$line" in *yes*) s=1;; *) s=0;; esac
                echo "{\"id\": $id, \"score\": $s, \"parts\": {\"half\": 0.5}}"
            done
        done"#;
        let verdicts = ask(swapped, "", &["yes", "no", "no", "yes"]);
        let scores: Vec<Option<f64>> = verdicts.iter().map(|v| v.score).collect();
        assert_eq!(scores, [Some(1.0), Some(0.0), Some(0.0), Some(1.0)], "{verdicts:?}");
        assert_eq!(verdicts[0].parts, [Part { name: "half".to_owned(), score: 0.5 }]);
        let replies: Vec<&str> = (0..500).map(|i| if i % 3 == 0 { "yes" } else { "no" }).collect();
        let verdicts = ask(MOODY, "n_processes = 3", &replies);
        for (i, verdict) in verdicts.iter().enumerate() {
            assert_eq!(verdict.score, Some(f64::from(u8::from(i % 3 == 0))), "{i}");
        }
    }

    #[test]
    fn a_process_that_never_reads_does_not_block() {
        let long = "x".repeat(1 << 20);
        let verdicts = ask("sleep 60", "timeout_s = 0.2\nstartup_s = 0.0\nmax_restarts = 0", &[&long, &long]);
        assert!(verdicts.iter().all(|v| v.score.is_none()), "{verdicts:?}");
    }

    /// The reward of `command.md`, as it stands there.
    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test must be visible in the test output")]
    fn the_python_reward_of_the_page_works() {
        let page = INFO.examples;
        let code = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(code.lines().count(), 5, "a Python reward is five lines");
        let has_python = std::process::Command::new("python3").arg("--version").output();
        if has_python.is_err() {
            eprintln!(
                "\n*** SKIPPED: there is no python3 here, so the Python reward of command.md did not run ***\n"
            );
            return;
        }
        let mut options = toml::Table::new();
        options.insert("command".to_owned(), vec!["python3", "-c", code].into());
        let verifier = crate::build(NAME, &options).unwrap();
        let (row, gold) = (Map::new(), Value::from(12));
        let ask = |reply| Question { prompt: "", reply, gold: Some(&gold), row: &row, is_truncated: false };
        let verdicts = verifier.verify_all(&[ask("12 "), ask("13"), ask("é\n\"12\"")]);
        let scores: Vec<Option<f64>> = verdicts.iter().map(|v| v.score).collect();
        assert_eq!(scores, [Some(1.0), Some(0.0), Some(0.0)], "{verdicts:?}");
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for (options, message) in [
            ("command = []", "`command` is empty"),
            ("command = ['x']\ntimeout_s = -1.0", "`timeout_s` is -1"),
            ("command = ['x']\nn_processes = 0", "`n_processes` is 0"),
            ("", "command"),
        ] {
            let error = crate::build(NAME, &options.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
