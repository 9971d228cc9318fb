//! What MBPP and HumanEval share: programs judged by their tests in the sandbox.

use pt_verify::Verifier;

use crate::catalogue::{Benchmark, DATA};
use crate::error::Result;
use crate::item::{Answer, Item, Mark, Marks};
use crate::source::Source;
use pt_core::catalogue::OptionInfo;

/// The metric.
pub(super) const METRIC: &str = "pass@1";

/// The options of both.
pub(super) const OPTIONS: &[OptionInfo] = &[
    DATA,
    OptionInfo { name: "timeout_s", kind: "number", default: "5.0", doc: "time for all tests of a program" },
];

/// Programs with tests.
pub(super) struct Programs {
    items: Vec<Item>,
    verifier: Box<dyn Verifier>,
}

impl Programs {
    /// The questions; each row has its tests. `fenced`: whether the program is the last fenced block, where there is one.
    pub(super) fn new(source: &Source<'_>, items: Vec<Item>, fenced: bool) -> Result<Programs> {
        let mut options = toml::Table::from_iter([
            ("fenced".to_owned(), fenced.into()),
            ("partial_credit".to_owned(), false.into()),
        ]);
        if let Some(text) = source.option("timeout_s") {
            let seconds: f64 = text.parse().map_err(|_| crate::EvalError::Option {
                benchmark: source.info.name,
                option: "timeout_s",
                found: format!("`{text}`"),
                expected: "a number of seconds".to_owned(),
            })?;
            options.insert("timeout_s".to_owned(), seconds.into());
        }
        Ok(Programs { items, verifier: pt_verify::build("code", &options)? })
    }

    fn marks(verdict: pt_verify::Verdict) -> Marks {
        let marks = verdict.score.iter().map(|_| Mark::of(METRIC, verdict.is_pass())).collect();
        Marks { marks, answer: None, reason: verdict.reason }
    }
}

impl Benchmark for Programs {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        Programs::marks(self.verifier.verify(&super::question(item, answer, None)))
    }

    fn mark_all(&self, answers: &[(&Item, Answer<'_>)]) -> Vec<Marks> {
        let questions: Vec<_> =
            answers.iter().map(|(item, answer)| super::question(item, answer, None)).collect();
        self.verifier.verify_all(&questions).into_iter().map(Programs::marks).collect()
    }
}
