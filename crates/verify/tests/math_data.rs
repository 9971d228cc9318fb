//! The mathematics verifier against labelled replies and real gold answers.

use std::io::Read;

use pt_verify::{Question, Verdict, Verifier, build};
use serde_json::{Map, Value};

/// The rows of a file of `../shared/data`, plain or compressed.
fn rows(path: &str) -> Option<Vec<Value>> {
    let path = pt_core::testdata::shared_data()?.join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = match path.extension().is_some_and(|extension| extension == "gz") {
        true => {
            let mut text = String::new();
            flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
            text
        }
        false => String::from_utf8(bytes).unwrap(),
    };
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn math(options: &str) -> Box<dyn Verifier> {
    build("math", &options.parse().unwrap()).unwrap()
}

fn judge(verifier: &dyn Verifier, prompt: &str, gold: &Value, reply: &str) -> Verdict {
    let row = Map::new();
    verifier.verify(&Question { prompt, reply, gold: Some(gold), row: &row, is_truncated: false })
}

/// Rows: labelled wrong, labelled right. Columns: wrong, right, skip.
type Confusion = [[usize; 3]; 2];

fn count(confusion: &mut Confusion, label: bool, verdict: &Verdict) {
    let said = verdict.score.map_or(2, |score| usize::from(score >= 1.0));
    confusion[usize::from(label)][said] += 1;
}

#[test]
fn gsm8k_labels_are_all_met() {
    let Some(rows) = rows("gsm8k/example_model_solutions.jsonl.gz") else { return };
    let (verifier, mut confusion) = (math(""), Confusion::default());
    for row in &rows {
        let gold = Value::from(row["ground_truth"].as_str().unwrap().rsplit("A: ").next().unwrap());
        for sample in row.as_object().unwrap().values().filter(|value| value.is_object()) {
            let reply = sample["solution"].as_str().unwrap();
            let verdict = judge(&*verifier, row["question"].as_str().unwrap(), &gold, reply);
            count(&mut confusion, sample["is_correct"].as_bool().unwrap(), &verdict);
        }
    }
    assert_eq!(confusion, [[3275, 0, 0], [0, 2001, 0]]);
}

/// The disagreements, all nine of them looked at, are errors of the label:
///
/// - problem 3, all eight samples: the gold answer is `\text{4:30 p.m.}`, the replies end in `\boxed{4:30 \text{ p.m.}}`. The
///   labels judged `4:30`, what an extraction left that takes words for units, against the untouched gold answer.
/// - problem 72, sample 7: the gold answer is `10{,}000`, the reply ends in `\boxed{10000}`. The labels did not know the
///   mark of thousands.
#[test]
fn math_labels_are_met_where_they_are_right() {
    let Some(rows) = rows("math-samples/math_cot_100.jsonl.gz") else { return };
    let (verifier, mut confusion, mut disagreements) = (math(""), Confusion::default(), Vec::new());
    for (problem, row) in rows.iter().enumerate() {
        for sample in 0..8 {
            let label = row["score"][sample].as_bool().unwrap();
            let reply = row["response"][sample].as_str().unwrap();
            let verdict = judge(&*verifier, row["question"].as_str().unwrap(), &row["answer"], reply);
            count(&mut confusion, label, &verdict);
            if verdict.is_pass() != label {
                disagreements.push((problem, sample));
            }
        }
    }
    assert_eq!(confusion, [[63, 9, 0], [0, 728, 0]]);
    let mut expected: Vec<(usize, usize)> = (0..8).map(|sample| (3, sample)).collect();
    expected.push((72, 7));
    assert_eq!(disagreements, expected);
}

#[test]
fn every_math500_gold_answer_is_read_and_equals_itself() {
    let Some(rows) = rows("math500/math.jsonl") else { return };
    let verifier = math("");
    assert_eq!(rows.len(), 300);
    for row in &rows {
        let solution = row["solution"].as_str().unwrap();
        let verdict = judge(&*verifier, row["problem"].as_str().unwrap(), &row["solution"], solution);
        assert!(verdict.is_pass(), "{}: {verdict:?}", row["id"]);
        // Read, and not only equal as a text: else another answer would be a skip.
        let verdict = judge(&*verifier, "", &row["solution"], "\\boxed{-73001.25}");
        assert_eq!(verdict.score, Some(0.0), "{}: {verdict:?}", row["id"]);
    }
}

/// Each answer of MATH-500 against each other one: what passes is the same answer written another way.
#[test]
fn different_math500_answers_are_different() {
    let Some(rows) = rows("math500/math.jsonl") else { return };
    let verifier = math("");
    let solutions: Vec<&str> = rows.iter().map(|row| row["solution"].as_str().unwrap()).collect();
    let boxes: Vec<&str> = solutions.iter().map(|text| &text[text.rfind("\\boxed").unwrap()..]).collect();
    let starts = |text: &str, answers: &[&str]| answers.iter().any(|answer| text.starts_with(answer));
    let families: [&[&str]; 7] = [
        &["\\boxed{25\\%}", "\\boxed{25}", "\\boxed{\\frac{1}{4}}"],
        &["\\boxed{90\\text", "\\boxed{90}", "\\boxed{90^\\circ}"],
        &["\\boxed{120^\\circ}", "\\boxed{\\frac{2 \\pi}{3}}", "\\boxed{120}"],
        &["\\boxed{60^\\circ}", "\\boxed{\\frac{\\pi}{3}}", "\\boxed{60}"],
        &["\\boxed{\\text{(C)}}", "\\boxed{C}", "\\boxed C"],
        &["\\boxed{\\frac{3}{13}", "\\boxed{\\dfrac{3}{13}"],
        &["\\boxed{\\frac{5}{36}", "\\boxed{\\dfrac{5}{36}"],
    ];
    for (a, gold) in boxes.iter().enumerate() {
        for (b, reply) in boxes.iter().enumerate() {
            if judge(&*verifier, "", &Value::from(*gold), reply).is_pass() {
                let answer =
                    |text: &str| text.split_once('}').map_or(text.to_owned(), |(start, _)| start.to_owned());
                let is_family = families.iter().any(|family| starts(gold, family) && starts(reply, family));
                assert!(is_family || answer(gold) == answer(reply), "rows {a} and {b}: {gold} | {reply}");
            }
        }
    }
}
