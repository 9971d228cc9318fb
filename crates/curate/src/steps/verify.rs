//! Replies judged by a verifier of `pt-verify`: maths derived again, code run in the sandbox, formats checked.
//!
//! `verifier` and its `options` are those of recipes (`posttrain list verifiers`). `gold` is the column with the right answer, which
//! may also be one that the layout finds (`ground_truth` of GSM8K). A reply with a score below `min_score` is
//! dropped; one that cannot be judged (a skip) is kept or dropped as `skipped` says, and counted apart either way.

use pt_core::catalogue::OptionInfo;
use pt_verify::{Question, Verdict, Verifier};
use serde::Deserialize;

use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::view::column;
use crate::words::excerpt;

const NAME: &str = "verify";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "accuracy",
    summary: "drops rows whose reply a verifier rejects (maths, code in the sandbox, ...)",
    options: &[
        OptionInfo {
            name: "verifier",
            kind: "a name of `posttrain list verifiers`",
            default: "",
            doc: "who judges",
        },
        OptionInfo { name: "options", kind: "table", default: "{}", doc: "the verifier's options" },
        OptionInfo {
            name: "gold",
            kind: "text",
            default: "\"ground_truth\"",
            doc: "the column with the right answer",
        },
        OptionInfo { name: "min_score", kind: "number", default: "1.0", doc: "the least score that is kept" },
        OptionInfo {
            name: "skipped",
            kind: r#""drop", "keep""#,
            default: "\"drop\"",
            doc: "what happens to rows that cannot be judged",
        },
    ],
    build: |options, _| {
        let options: Options = parse(NAME, options)?;
        let Some(name) = &options.verifier else {
            return Err(CurateError::option(NAME, "`verifier` is required, as in verifier = \"exact\""));
        };
        let verifier = pt_verify::build(name, &options.options)?;
        Ok(Box::new(Verify { options, verifier, n_passed: 0, n_failed: 0, n_skipped: 0 }))
    },
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    verifier: Option<String>,
    options: toml::Table,
    gold: String,
    min_score: f64,
    skipped: Skipped,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Skipped {
    Drop,
    Keep,
}

impl Default for Options {
    fn default() -> Self {
        let gold = "ground_truth".to_owned();
        Options { verifier: None, options: toml::Table::new(), gold, min_score: 1.0, skipped: Skipped::Drop }
    }
}

struct Verify {
    options: Options,
    verifier: Box<dyn Verifier>,
    n_passed: u64,
    n_failed: u64,
    n_skipped: u64,
}

impl Step for Verify {
    type Seen = Verdict;

    fn see(&self, item: &Item) -> Result<Verdict, CurateError> {
        let gold = column(&item.row.value, &self.options.gold)
            .or_else(|| column(&item.view.extra, &self.options.gold));
        Ok(self.verifier.verify(&Question {
            prompt: &item.view.instruction,
            reply: &item.view.reply,
            gold,
            row: &item.row.value,
            is_truncated: false,
        }))
    }

    fn decide(&mut self, item: &Item, verdict: Verdict) -> Decision {
        match verdict.score {
            Some(score) if score >= self.options.min_score => {
                self.n_passed += 1;
                Decision::Keep
            }
            Some(score) => {
                self.n_failed += 1;
                let reply = excerpt(&item.view.reply, 80);
                Decision::drop(
                    "rejected by the verifier",
                    format!("score {score}: {} (reply: {reply})", verdict.reason),
                )
            }
            None => {
                self.n_skipped += 1;
                match self.options.skipped {
                    Skipped::Drop => Decision::drop("could not be judged", verdict.reason),
                    Skipped::Keep => Decision::Flag { reason: "could not be judged", detail: verdict.reason },
                }
            }
        }
    }

    fn summary(&self) -> Summary {
        let (passed, failed, skipped) = (self.n_passed, self.n_failed, self.n_skipped);
        let mut summary = Summary::default();
        summary.lines.push(format!(
            "`{}`: {passed} passed, {failed} failed, {skipped} could not be judged",
            self.verifier.name()
        ));
        let n = passed + failed + skipped;
        if n > 0 && skipped * 2 > n {
            summary.warnings.push(format!(
                "{skipped} of {n} rows could not be judged; does the column `{}` hold the right answers?",
                self.options.gold
            ));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::Harness;

    #[test]
    fn a_verifier_decides() {
        let row = |reply: &str, gold: serde_json::Value| json!({"prompt": "1+1?", "completion": reply, "answer": gold});
        let rows = [row("2", json!("2")), row("3", json!("2")), row("2", json!(null)), row(" 2 ", json!(2))];
        let check = |options: &str, kept: &[usize]| {
            let options = format!("verifier = \"exact\"\ngold = \"answer\"\n{options}");
            let outcome = Harness::new(NAME, &options).run(&rows);
            assert_eq!(outcome.kept, kept, "{options}");
            outcome
        };
        let outcome = check("", &[0, 3]);
        assert!(outcome.details()[0].contains("expected exactly `2` (reply: 3)"), "{:?}", outcome.details());
        let outcome = check("skipped = \"keep\"", &[0, 2, 3]);
        assert_eq!(outcome.reason(2), Some("could not be judged"));
        assert!(Harness::refusal(NAME, "").contains("`verifier` is required"));
        assert!(Harness::refusal(NAME, "verifier = \"exct\"").contains("did you mean `exact`"));
    }

    #[test]
    fn mathematics_is_derived_again_on_real_rows() {
        // The verifier is in the catalogue of `pt-verify`, built by name; nothing here depends on its type.
        if !pt_verify::VERIFIERS.iter().any(|info| info.name == "math") {
            return;
        }
        let Some(data) = pt_core::testdata::shared_data() else { return };
        let source = data.join("gsm8k/test.jsonl.gz").display().to_string();
        let items = crate::source::read_small(&source, &Default::default()).unwrap();
        let mut rows: Vec<serde_json::Value> =
            items.iter().take(50).map(|item| item.row.value.clone().into()).collect();
        for row in &mut rows[..10] {
            let answer = row["answer"].as_str().unwrap().rsplit_once("#### ").unwrap().0.to_owned();
            row["answer"] = json!(format!("{answer}#### 987654"));
            row["gold"] = json!("1");
        }
        for row in &mut rows[10..] {
            row["gold"] = json!(row["answer"].as_str().unwrap().rsplit_once("#### ").unwrap().1);
        }
        // With a further column the layout is still that of question and answer.
        let outcome = Harness::new(NAME, "verifier = \"math\"\ngold = \"gold\"").run(&rows);
        assert_eq!(outcome.kept, (10..50).collect::<Vec<_>>(), "{:?}", outcome.details());
    }
}
