//! `posttrain verify`: a verifier over a file of replies, against what people say of them.

use std::borrow::Cow;
use std::io::Write;

use anyhow::{Context as _, bail};
use pt_data::read::{ReadOptions, read_all};
use pt_pipeline::rl::build_verifier;
use pt_verify::{Question, Verdict};
use serde_json::{Map, Value, json};

use crate::Context;
use crate::ui::{self, Style};

const HELP: &str = "\
Each row has a reply and what the verifier reads beside it (see `posttrain list verifiers`). A column may be a path into \
nested columns, and through a list into each of its items (`samples.text` of what `posttrain generate` writes); where it leads to a list, \
every item is a reply, with the item of the same place in the label's list.

With --label the verdicts are counted against the labels: how often the verifier accepts what is right and rejects what \
is wrong, and where they disagree. A skip is a reply that could not be judged, for example because the right answer \
cannot be read; it counts on neither side.

Examples:
  posttrain verify --verifier math --data solutions.jsonl --reply solution --gold answer --label is_correct
  posttrain verify --verifier math --data math_cot_100.jsonl.gz --reply response --gold answer --label score
  posttrain verify --verifier task --data samples.jsonl --reply samples.text
  posttrain verify --verifier length --set unit=words --set max=20 --data replies.jsonl";

/// The columns that are looked at for the reply and for the right answer, in this order. Rows that `generate` wrote may have the data's
/// own reply, too.
const REPLIES: &[&str] = &["samples.text", "reply", "completion", "response", "solution", "output"];
const GOLDS: &[&str] = &["answer", "ground_truth", "gold", "target"];
/// The columns of the prompt.
const PROMPTS: &[&str] = &["prompt", "question", "input", "problem"];

/// Options of `verify`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The verifier, of `posttrain list verifiers`
    #[arg(long, value_name = "NAME")]
    verifier: String,
    /// An option of the verifier (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Rows with replies
    #[arg(long, value_name = "FILE")]
    data: String,
    /// The column of the reply [default: the first of samples.text, reply, completion, response, solution, output]
    #[arg(long, value_name = "COLUMN")]
    reply: Option<String>,
    /// The column of the right answer [default: the first of answer, ground_truth, gold, target]
    #[arg(long, value_name = "COLUMN")]
    gold: Option<String>,
    /// The column that says whether the reply is right: true or false, 1 or 0
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Show so many disagreements and skips
    #[arg(long, value_name = "N", default_value_t = 5)]
    show: usize,
    /// Write every verdict to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    out: Option<String>,
}

/// A reply with what belongs to it.
struct Case {
    place: String,
    prompt: String,
    reply: String,
    gold: Option<Value>,
    row: Map<String, Value>,
    label: Option<bool>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    args.out.as_deref().map_or(Ok(()), ui::check_target)?;
    let options = options_of(&args.sets)?;
    let verifier = build_verifier(&args.verifier, &options)?;
    let rows = read_all(&args.data, &ReadOptions::default())?;
    let mut cases = Vec::new();
    for row in &rows {
        let place = row.origin.to_string();
        cases.extend(cases_of(args, place.clone(), &row.value).with_context(|| place)?);
    }
    if cases.is_empty() {
        bail!("{}: there are no replies", args.data);
    }
    let questions: Vec<Question<'_>> = cases
        .iter()
        .map(|case| Question {
            prompt: &case.prompt,
            reply: &case.reply,
            gold: case.gold.as_ref(),
            row: &case.row,
            is_truncated: false,
        })
        .collect();
    let verdicts = verifier.verify_all(&questions);
    if let Some(out) = &args.out {
        ui::write_json_lines(out, |lines| {
            for (case, verdict) in cases.iter().zip(&verdicts) {
                lines.write(&json!({
                    "origin": case.place, "reply": case.reply, "label": case.label, "score": verdict.score,
                    "reason": verdict.reason, "parts": verdict.parts,
                }))?;
            }
            Ok(())
        })?;
    }
    let text = report(args, &cases, &verdicts, context.style);
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// `key=value` arguments as a table: TOML where it parses, text where it does not.
pub(crate) fn options_of(sets: &[String]) -> anyhow::Result<toml::Table> {
    let mut options = toml::Table::new();
    for set in sets {
        let Some((key, text)) = set.split_once('=') else { bail!("--set {set}: expected KEY=VALUE") };
        let parsed = format!("value = {text}").parse::<toml::Table>().ok();
        let value = parsed.and_then(|mut table| table.remove("value"));
        options.insert(key.trim().to_owned(), value.unwrap_or_else(|| text.into()));
    }
    Ok(options)
}

/// What is under a dotted path of columns; through a list, what each of its items has there.
fn at<'v>(row: &'v Map<String, Value>, path: &str) -> Option<Cow<'v, Value>> {
    if let Some(value) = row.get(path) {
        return Some(Cow::Borrowed(value));
    }
    let (first, rest) = path.split_once('.')?;
    match row.get(first)? {
        Value::Object(inner) => at(inner, rest),
        Value::Array(items) => {
            let of_item = |item: &Value| Some(at(item.as_object()?, rest)?.into_owned());
            items.iter().map(of_item).collect::<Option<_>>().map(|all| Cow::Owned(Value::Array(all)))
        }
        _ => None,
    }
}

/// The column that was named, which must be there, or the first of the usual ones.
fn column<'v>(
    row: &'v Map<String, Value>,
    named: Option<&String>,
    usual: &[&str],
) -> anyhow::Result<Option<Cow<'v, Value>>> {
    match named {
        None => Ok(usual.iter().find_map(|name| at(row, name))),
        Some(name) => match at(row, name) {
            Some(value) => Ok(Some(value)),
            None => {
                let columns: Vec<&str> = row.keys().map(String::as_str).collect();
                bail!("there is no column `{name}`; the row has {}", columns.join(", "))
            }
        },
    }
}

fn cases_of(args: &Args, place: String, row: &Map<String, Value>) -> anyhow::Result<Vec<Case>> {
    let Some(reply) = column(row, args.reply.as_ref(), REPLIES)? else {
        let columns: Vec<&str> = row.keys().map(String::as_str).collect();
        bail!("no column is a reply; name one of {} with --reply", columns.join(", "));
    };
    let gold = column(row, args.gold.as_ref(), GOLDS)?;
    let label = match &args.label {
        Some(_) => column(row, args.label.as_ref(), &[])?,
        None => None,
    };
    let prompt = column(row, None, PROMPTS)?;
    let prompt = prompt.as_deref().and_then(Value::as_str).unwrap_or_default();
    let replies: Vec<&Value> = reply.as_array().map_or_else(|| vec![&*reply], |list| list.iter().collect());
    let labels: Vec<Option<&Value>> = match label.as_deref() {
        Some(Value::Array(list)) if reply.is_array() => list.iter().map(Some).collect(),
        one => vec![one; replies.len()],
    };
    if labels.len() != replies.len() {
        bail!("there are {} replies and {} labels", replies.len(), labels.len());
    }
    let n = replies.len();
    let case = |(i, (reply, label)): (usize, (&Value, Option<&Value>))| {
        let Some(reply) = reply.as_str() else { bail!("the reply is {reply}, expected a text") };
        Ok(Case {
            place: if n == 1 { place.clone() } else { format!("{place}, reply {}", i + 1) },
            prompt: prompt.to_owned(),
            reply: reply.to_owned(),
            gold: gold.as_deref().cloned(),
            row: row.clone(),
            label: label.map(label_of).transpose()?,
        })
    };
    replies.into_iter().zip(labels).enumerate().map(case).collect()
}

fn label_of(value: &Value) -> anyhow::Result<bool> {
    let text = value.as_str().map(str::to_lowercase);
    match (value, text.as_deref()) {
        (Value::Bool(label), _) => Ok(*label),
        (Value::Number(_), _) if value.as_f64() == Some(1.0) => Ok(true),
        (Value::Number(_), _) if value.as_f64() == Some(0.0) => Ok(false),
        (_, Some("true" | "yes" | "1" | "correct")) => Ok(true),
        (_, Some("false" | "no" | "0" | "incorrect")) => Ok(false),
        _ => bail!("the label is {value}, expected true or false, or 1 or 0"),
    }
}

/// What became of a reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Rejected,
    Skipped,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 3] =
        [(Outcome::Accepted, "accepted"), (Outcome::Rejected, "rejected"), (Outcome::Skipped, "skipped")];

    fn of(verdict: &Verdict) -> Outcome {
        match verdict.score {
            None => Outcome::Skipped,
            Some(_) if verdict.is_pass() => Outcome::Accepted,
            Some(_) => Outcome::Rejected,
        }
    }
}

fn report(args: &Args, cases: &[Case], verdicts: &[Verdict], style: Style) -> String {
    let title = format!(
        "{} on {}: {}",
        args.verifier,
        args.data,
        ui::counted(cases.len(), "reply").replace("replys", "replies")
    );
    let mut out = format!("{}\n\n", style.bold(&title));
    let n = |outcome: Outcome, label: Option<bool>| {
        let both = cases.iter().zip(verdicts);
        both.filter(|(case, verdict)| case.label == label && Outcome::of(verdict) == outcome).count()
    };
    let is_labelled = args.label.is_some();
    if is_labelled {
        out += &format!("{:<10}{:>16}{:>16}\n", "", "labelled right", "labelled wrong");
    }
    for (outcome, name) in Outcome::ALL {
        out += &match is_labelled {
            true => {
                let [right, wrong] = [true, false].map(|label| ui::count(n(outcome, Some(label))));
                format!("{name:<10}{right:>16}{wrong:>16}\n")
            }
            false => format!("{name:<10}{:>10}\n", ui::count(n(outcome, None))),
        };
    }
    let scores: Vec<f64> = verdicts.iter().filter_map(|verdict| verdict.score).collect();
    if !scores.is_empty() {
        out += &format!("\nmean score {:.4}", scores.iter().sum::<f64>() / scores.len() as f64);
    }
    if is_labelled {
        let agree = n(Outcome::Accepted, Some(true)) + n(Outcome::Rejected, Some(false));
        let judged = scores.len();
        out += &format!(
            "; agreement {:.2} % ({} of {} judged)",
            100.0 * agree as f64 / judged.max(1) as f64,
            ui::count(agree),
            ui::count(judged)
        );
    }
    out += "\n";
    let disagrees = |(case, verdict): &(&Case, &Verdict)| {
        matches!(
            (case.label, Outcome::of(verdict)),
            (Some(true), Outcome::Rejected) | (Some(false), Outcome::Accepted)
        )
    };
    out += &shown("disagreements", args.show, cases.iter().zip(verdicts).filter(disagrees), style);
    let is_skip = |(_, verdict): &(&Case, &Verdict)| Outcome::of(verdict) == Outcome::Skipped;
    out += &shown("skips", args.show, cases.iter().zip(verdicts).filter(is_skip), style);
    out
}

fn shown<'c>(
    what: &str,
    most: usize,
    found: impl Iterator<Item = (&'c Case, &'c Verdict)>,
    style: Style,
) -> String {
    let found: Vec<(&Case, &Verdict)> = found.collect();
    if found.is_empty() || most == 0 {
        return String::new();
    }
    let mut out =
        format!("\n{}\n", style.bold(&format!("{what}: {} of {}", most.min(found.len()), found.len())));
    for (case, verdict) in found.into_iter().take(most) {
        let label = match case.label {
            Some(true) => ", labelled right",
            Some(false) => ", labelled wrong",
            None => "",
        };
        out += &format!("{}{label}: {}\n", style.name(&case.place), verdict.reason);
        if let Some(gold) = &case.gold {
            out += &format!(
                "  gold:  {}\n",
                tail(&gold.as_str().map_or_else(|| gold.to_string(), str::to_owned))
            );
        }
        out += &format!("  reply: {}\n", style.dim(&tail(&case.reply)));
    }
    out
}

/// The end of a text, on one line: answers stand there.
fn tail(text: &str) -> String {
    const MOST: usize = 100;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let n = line.chars().count();
    if n <= MOST { line } else { format!("... {}", line.chars().skip(n - MOST).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(reply: Option<&str>, label: Option<&str>) -> Args {
        Args {
            verifier: "math".to_owned(),
            sets: Vec::new(),
            data: "rows.jsonl".to_owned(),
            reply: reply.map(str::to_owned),
            gold: None,
            label: label.map(str::to_owned),
            show: 5,
            out: None,
        }
    }

    fn check(row: Value, reply: Option<&str>, label: Option<&str>, expected: &str) {
        let row = row.as_object().unwrap();
        let found = match cases_of(&args(reply, label), "rows.jsonl:1".to_owned(), row) {
            Ok(cases) => cases
                .iter()
                .map(|case| format!("{}|{:?}", case.reply, case.label))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        };
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn replies_and_labels_are_found_in_columns_paths_and_lists() {
        check(json!({"reply": "a", "answer": 1}), None, None, "a|None");
        check(json!({"response": ["a", "b"], "ok": [1, 0]}), None, Some("ok"), "a|Some(true) b|Some(false)");
        check(
            json!({"x": {"solution": "a", "is_correct": false}}),
            Some("x.solution"),
            Some("x.is_correct"),
            "a|Some(false)",
        );
        check(
            json!({"solution": "known", "samples": [{"text": "a", "right": true}, {"text": "b", "right": false}]}),
            None,
            Some("samples.right"),
            "a|Some(true) b|Some(false)",
        );
        check(
            json!({"samples": [{"text": "a"}, {}]}),
            Some("samples.text"),
            None,
            "no column `samples.text`; the row has samples",
        );
        check(json!({"response": ["a", "b"], "ok": [1]}), None, Some("ok"), "2 replies and 1 labels");
        check(json!({"reply": 3}), None, None, "the reply is 3");
        check(json!({"text": "a"}), None, None, "name one of text with --reply");
        check(json!({"reply": "a"}), None, Some("ok"), "no column `ok`; the row has reply");
        check(json!({"reply": "a", "ok": 2}), None, Some("ok"), "the label is 2");
    }

    #[test]
    fn verdicts_are_counted_against_labels() {
        let row =
            json!({"reply": ["#### 1", "#### 2", "#### 3", "#### 1"], "ok": [1, 1, 0, 0], "answer": "1"});
        let args = args(None, Some("ok"));
        let cases = cases_of(&args, "rows.jsonl:1".to_owned(), row.as_object().unwrap()).unwrap();
        let verdicts = [Verdict::pass(""), Verdict::fail("why"), Verdict::skip("cannot"), Verdict::pass("")];
        let text = report(&args, &cases, &verdicts, Style::new(false));
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        for expected in [["accepted", "1", "1"], ["rejected", "1", "0"], ["skipped", "0", "1"]] {
            assert!(rows.iter().any(|row| row == &expected), "{expected:?}: {text}");
        }
        assert!(text.contains("agreement 33.33 % (1 of 3 judged)"), "{text}");
        assert!(text.contains("rows.jsonl:1, reply 2, labelled right: why"), "{text}");
        assert!(text.contains("skips: 1 of 1"), "{text}");
    }
}
