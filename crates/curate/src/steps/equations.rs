//! Arithmetic that a text claims, computed again.
//!
//! Every equation `expression = number` of the reply (see `arithmetic`) is computed; a row is dropped where more than
//! `max_wrong` are wrong beyond rounding. It needs no gold answer and finds slips within a solution whose end is right;
//! it does not understand words, so it cannot tell that the wrong things were added. For final answers see `verify`.

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;

use super::arithmetic::equations;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;

const NAME: &str = "equations";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "accuracy",
    summary: "drops rows whose reply has arithmetic that is wrong when computed again",
    options: &[OptionInfo {
        name: "max_wrong",
        kind: "integer",
        default: "0",
        doc: "wrong equations that are forgiven",
    }],
    build: |options, _| {
        Ok(Box::new(Equations { options: parse(NAME, options)?, n: 0, n_wrong: 0, n_rows: 0 }))
    },
};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    max_wrong: usize,
}

struct Equations {
    options: Options,
    n: u64,
    n_wrong: u64,
    n_rows: u64,
}

impl Step for Equations {
    /// Equations found, and those that are wrong with what they should be.
    type Seen = (usize, Vec<String>);

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        let all = equations(&item.view.reply);
        let wrong = all.iter().filter(|equation| equation.is_wrong());
        let said = wrong.map(|e| format!("{} (it is {})", e.text, e.computed.unwrap_or(f64::NAN)));
        Ok((all.len(), said.collect()))
    }

    fn decide(&mut self, _item: &Item, (n, wrong): Self::Seen) -> Decision {
        self.n += n as u64;
        self.n_wrong += wrong.len() as u64;
        self.n_rows += u64::from(n > 0);
        match wrong.len() > self.options.max_wrong {
            true => Decision::drop("wrong arithmetic", wrong.join("; ")),
            false => Decision::Keep,
        }
    }

    fn summary(&self) -> Summary {
        let line = format!("{} equations in {} rows, {} wrong", self.n, self.n_rows, self.n_wrong);
        let mut summary = Summary { lines: vec![line], ..Summary::default() };
        summary.facts.insert("equations".to_owned(), self.n.into());
        summary.facts.insert("wrong".to_owned(), self.n_wrong.into());
        summary
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Harness, prompt};

    #[test]
    fn slips_are_found() {
        let rows =
            [prompt("q", "<<2+2=4>>4"), prompt("q", "2 + 2 = 5, so 5 * 2 = 10"), prompt("q", "no sums")];
        let outcome = Harness::new("equations", "").run(&rows);
        assert_eq!(outcome.kept, [0, 2]);
        assert_eq!(outcome.details(), ["2 + 2=5 (it is 4)"]);
        assert_eq!(Harness::new("equations", "max_wrong = 1").run(&rows).kept, [0, 1, 2]);
    }
}
