//! A score that rows already carry: of a reward model, a judge, a classifier.

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::view::column;

const NAME: &str = "score";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "accuracy",
    summary: "drops rows whose score in a column (reward model, judge) is out of range",
    options: &[
        OptionInfo {
            name: "column",
            kind: "text",
            default: "\"score\"",
            doc: "the column, or a path as in `judge.score`",
        },
        OptionInfo { name: "min", kind: "number", default: "", doc: "the least score that is kept" },
        OptionInfo { name: "max", kind: "number", default: "", doc: "the highest score that is kept" },
        OptionInfo {
            name: "missing",
            kind: r#""error", "keep", "drop""#,
            default: "\"error\"",
            doc: "what happens to rows without a number there",
        },
    ],
    build: |options, _| {
        Ok(Box::new(Score {
            options: parse(NAME, options)?,
            n: 0,
            sum: 0.0,
            least: f64::INFINITY,
            most: f64::NEG_INFINITY,
        }))
    },
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    column: String,
    min: Option<f64>,
    max: Option<f64>,
    missing: Missing,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Missing {
    Error,
    Keep,
    Drop,
}

impl Default for Options {
    fn default() -> Self {
        Options { column: "score".to_owned(), min: None, max: None, missing: Missing::Error }
    }
}

struct Score {
    options: Options,
    n: u64,
    sum: f64,
    least: f64,
    most: f64,
}

impl Step for Score {
    type Seen = Option<f64>;

    fn see(&self, item: &Item) -> Result<Option<f64>, CurateError> {
        let found = column(&item.row.value, &self.options.column)
            .or_else(|| column(&item.notes, &self.options.column));
        let score = found.and_then(Value::as_f64);
        if score.is_none() && self.options.missing == Missing::Error {
            let names: Vec<&str> = item.row.value.keys().map(String::as_str).collect();
            return Err(CurateError::NoColumn {
                origin: item.row.origin.clone(),
                step: NAME,
                column: self.options.column.clone(),
                hint: pt_core::suggest::hint(&self.options.column, &names),
            });
        }
        Ok(score)
    }

    fn decide(&mut self, _item: &Item, score: Option<f64>) -> Decision {
        let Some(score) = score else {
            return match self.options.missing {
                Missing::Drop => {
                    Decision::drop("no score", format!("no number in `{}`", self.options.column))
                }
                _ => Decision::Keep,
            };
        };
        (self.n, self.sum) = (self.n + 1, self.sum + score);
        (self.least, self.most) = (self.least.min(score), self.most.max(score));
        let Options { column, min, max, .. } = &self.options;
        match (min, max) {
            (Some(min), _) if score < *min => {
                Decision::drop("score too low", format!("{column} {score} is below {min}"))
            }
            (_, Some(max)) if score > *max => {
                Decision::drop("score too high", format!("{column} {score} is above {max}"))
            }
            _ => Decision::Keep,
        }
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        if self.n > 0 {
            let mean = self.sum / self.n as f64;
            let line =
                format!("{} rows with a score: {} to {}, mean {mean:.4}", self.n, self.least, self.most);
            summary.facts.insert("mean".to_owned(), mean.into());
            summary.lines.push(line);
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Harness, text, text_with};

    #[test]
    fn scores_out_of_range_are_dropped() {
        let rows = [text_with("a", "score", 1.0), text_with("b", "score", 5.0), text_with("c", "score", 9.0)];
        let check = |options: &str, kept: &[usize]| {
            assert_eq!(Harness::new("score", options).run(&rows).kept, kept, "{options}");
        };
        check("min = 2", &[1, 2]);
        check("min = 2\nmax = 8.5", &[1]);
        check("", &[0, 1, 2]);
        let with_none = [text_with("a", "score", 1.0), text("b")];
        assert_eq!(Harness::new("score", "missing = \"drop\"").run(&with_none).kept, [0]);
        assert_eq!(Harness::new("score", "missing = \"keep\"").run(&with_none).kept, [0, 1]);
        assert!(
            Harness::new("score", "")
                .error(&with_none)
                .contains("test.jsonl:2: step `score` needs a column `score`")
        );
    }
}
