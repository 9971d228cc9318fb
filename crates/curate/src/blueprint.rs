//! From shares that are wanted and rows that are there to a mixture.
//!
//! With `a_d` the amount found of domain `d` (rows or words), `s_d` its share and `m` the most repeats, a total `T` needs
//! `r_d = T s_d / a_d` repeats of each. The largest total without more than `m` repeats is `T = m min_d a_d / s_d`; the
//! mixture takes that, or the total at which no row is used more than once where that is enough (`m = 1`).
//!
//! Shares are met exactly, up to rounding to whole rows, or not at all: a domain without rows is a shortfall, said with
//! what is missing, and the others keep their proportions.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::error::CurateError;
use crate::report::{Amount, Composition};
use crate::steps::domains::DOMAINS;

/// Shares must sum to one within this; published shares are rounded to a tenth of a percent.
const SUM_TOLERANCE: f64 = 0.02;

/// The composition that is wanted.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blueprint {
    /// The share of each domain; together 1 (they are scaled to it when off by rounding).
    pub shares: BTreeMap<String, f64>,
    /// The most often a row may come in an epoch.
    #[serde(default = "one")]
    pub max_repeats: f64,
    /// What shares are of.
    #[serde(default)]
    pub by: Unit,
    /// The rows (or words) of an epoch, where fewer are wanted than the most possible.
    pub total: Option<f64>,
}

/// What shares are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rows.
    #[default]
    Rows,
    /// Words, which is nearer to what the model sees.
    Words,
}

fn one() -> f64 {
    1.0
}

/// The mixture that meets a blueprint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mixture {
    /// What shares are of.
    pub by: Unit,
    /// One part per domain with a share and rows, largest share first.
    pub parts: Vec<MixPart>,
    /// Domains that are wanted and not there, or not enough for the total.
    pub shortfalls: Vec<Shortfall>,
}

/// A domain's part of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MixPart {
    /// The domain.
    pub domain: String,
    /// The file of its rows.
    pub source: String,
    /// Rows and words found.
    pub found: Amount,
    /// The share of what was found.
    pub share_found: f64,
    /// The share that was wanted.
    pub share_wanted: f64,
    /// The share in the mixture.
    pub share: f64,
    /// How often each row comes in an epoch.
    pub repeats: f64,
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shortfall {
    /// The domain.
    pub domain: String,
    /// In words.
    pub problem: String,
}

impl Blueprint {
    /// Refuses domains there are not, and shares that are no shares.
    ///
    /// # Errors
    /// [`CurateError::Config`].
    pub fn check(&self) -> Result<(), CurateError> {
        let fail = |problem: String| Err(CurateError::Config { place: "[blueprint]".to_owned(), problem });
        if let Some(domain) = self.shares.keys().find(|domain| !DOMAINS.contains(&domain.as_str())) {
            return fail(format!(
                "there is no domain `{domain}`; {}",
                pt_core::suggest::hint(domain, DOMAINS)
            ));
        }
        if let Some((domain, share)) = self.shares.iter().find(|(_, share)| !(0.0..=1.0).contains(*share)) {
            return fail(format!(
                "the share of `{domain}` is {share}; a share is between 0 and 1 (39.4 % is 0.394)"
            ));
        }
        let sum: f64 = self.shares.values().sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return fail(format!("the shares sum to {sum}, expected 1"));
        }
        if self.max_repeats.is_nan() || self.max_repeats <= 0.0 {
            return fail(format!("max_repeats is {}, expected a number above 0", self.max_repeats));
        }
        match self.total {
            Some(total) if total.is_nan() || total <= 0.0 => {
                fail(format!("total is {total}, expected a number above 0"))
            }
            _ => Ok(()),
        }
    }

    /// The mixture for what was found; `source` names the file of a domain.
    pub fn mix(&self, found: &Composition, source: impl Fn(&str) -> String) -> Mixture {
        let amount = |domain: &str| found.domains.get(domain).copied().unwrap_or_default();
        let measure = |amount: Amount| match self.by {
            Unit::Rows => amount.rows as f64,
            Unit::Words => amount.words as f64,
        };
        let all: f64 = found.domains.values().map(|amount| measure(*amount)).sum();
        let sum: f64 = self.shares.values().sum();
        let wanted =
            self.shares.iter().map(|(domain, share)| (domain, share / sum)).filter(|(_, share)| *share > 0.0);
        let (there, absent): (Vec<_>, Vec<_>) = wanted.partition(|(domain, _)| measure(amount(domain)) > 0.0);
        let mut shortfalls: Vec<Shortfall> =
            absent.iter().map(|(domain, share)| missing(domain, *share)).collect();
        let present: f64 = there.iter().map(|(_, share)| share).sum();
        let most =
            |(domain, share): &(&String, f64)| self.max_repeats * measure(amount(domain)) * present / share;
        let possible = there.iter().map(most).fold(f64::INFINITY, f64::min);
        let total = self.total.unwrap_or(possible).min(possible);
        if let Some(asked) = self.total.filter(|asked| *asked > possible) {
            let scarce =
                there.iter().min_by(|a, b| most(a).total_cmp(&most(b))).expect("some domain is there");
            let needed = asked * scarce.1 / present / self.max_repeats;
            shortfalls.push(Shortfall {
                domain: scarce.0.clone(),
                problem: format!(
                    "{asked:.0} {} need {needed:.0} of `{}`, {:.0} are there; the mixture has {possible:.0}",
                    self.unit(),
                    scarce.0,
                    measure(amount(scarce.0)),
                ),
            });
        }
        let mut parts: Vec<MixPart> = there
            .iter()
            .map(|(domain, share)| MixPart {
                domain: (*domain).clone(),
                source: source(domain),
                found: amount(domain),
                share_found: measure(amount(domain)) / all,
                share_wanted: *share,
                share: share / present,
                repeats: total * share / present / measure(amount(domain)),
            })
            .collect();
        parts.sort_by(|a, b| b.share_wanted.total_cmp(&a.share_wanted).then(a.domain.cmp(&b.domain)));
        Mixture { by: self.by, parts, shortfalls }
    }

    fn unit(&self) -> &'static str {
        match self.by {
            Unit::Rows => "rows",
            Unit::Words => "words",
        }
    }
}

fn missing(domain: &str, share: f64) -> Shortfall {
    let problem = format!("{:.1} % of `{domain}` are wanted and there is none", 100.0 * share);
    Shortfall { domain: domain.to_owned(), problem }
}

impl Mixture {
    /// The mixture as the sources of a recipe's stage.
    pub fn to_toml(&self) -> String {
        let mut text =
            String::from("# The mixture that meets the blueprint: paste it below a [[stage]] of a recipe.\n");
        for shortfall in &self.shortfalls {
            let _ = writeln!(text, "# Not met: {}", shortfall.problem);
        }
        for part in &self.parts {
            let _ = write!(
                text,
                "\n# {}: found {:.1} %, wanted {:.1} %, here {:.1} %: {} rows\n[[stage.data.train]]\nsource = {}\nrepeats = {:.6}\n",
                part.domain,
                100.0 * part.share_found,
                100.0 * part.share_wanted,
                100.0 * part.share,
                (part.found.rows as f64 * part.repeats).round(),
                toml::Value::from(part.source.as_str()),
                part.repeats,
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composition(rows: &[(&'static str, u64)]) -> Composition {
        let domains = rows.iter().map(|(domain, n)| (*domain, Amount { rows: *n, words: n * 10 }));
        Composition { domains: domains.collect(), inputs: BTreeMap::new() }
    }

    fn blueprint(text: &str) -> Blueprint {
        toml::from_str(text).unwrap()
    }

    const TULU: &str = "shares = { maths = 0.394, code = 0.389, chat = 0.176, instruction_following = 0.041 }\nmax_repeats = 2";

    #[test]
    fn shares_are_met_without_more_repeats_than_allowed() {
        let cases: [&[(&'static str, u64)]; 3] = [
            &[("maths", 394), ("code", 389), ("chat", 176), ("instruction_following", 41)],
            &[("maths", 5000), ("code", 200), ("chat", 9000), ("instruction_following", 41)],
            &[("maths", 50), ("code", 2000), ("chat", 90), ("instruction_following", 4100), ("other", 7)],
        ];
        for rows in cases {
            for by in ["rows", "words"] {
                let mixture =
                    blueprint(&format!("{TULU}\nby = \"{by}\"")).mix(&composition(rows), str::to_owned);
                let drawn: Vec<f64> = mixture.parts.iter().map(|p| p.found.rows as f64 * p.repeats).collect();
                let total: f64 = drawn.iter().sum();
                for (part, drawn) in mixture.parts.iter().zip(&drawn) {
                    assert!((drawn / total - part.share_wanted).abs() < 1e-9, "{mixture:?}");
                    assert!(part.repeats <= 2.0 + 1e-9, "{mixture:?}");
                }
                let most = mixture.parts.iter().map(|part| part.repeats).fold(0.0, f64::max);
                assert!((most - 2.0).abs() < 1e-9, "as large as allowed: {mixture:?}");
                assert!(mixture.shortfalls.is_empty() && mixture.parts[0].domain == "maths");
                assert_eq!(mixture.to_toml().matches("[[stage.data.train]]").count(), 4);
            }
        }
    }

    #[test]
    fn what_cannot_be_met_is_said() {
        let rows = composition(&[("maths", 100), ("code", 100), ("chat", 100)]);
        let mixture = blueprint(TULU).mix(&rows, str::to_owned);
        assert_eq!(mixture.shortfalls[0].domain, "instruction_following");
        assert!((mixture.parts.iter().map(|part| part.share).sum::<f64>() - 1.0).abs() < 1e-9);
        let mixture =
            blueprint("shares = { maths = 0.5, code = 0.5 }\ntotal = 1000").mix(&rows, str::to_owned);
        assert!(mixture.shortfalls[0].problem.contains("need 500 of"), "{mixture:?}");
        assert!(mixture.parts.iter().all(|part| part.repeats == 1.0));
        let mixture =
            blueprint("shares = { maths = 0.5, code = 0.5 }\ntotal = 100").mix(&rows, str::to_owned);
        assert!(mixture.parts.iter().all(|part| part.repeats == 0.5));
        assert!(blueprint(TULU).mix(&composition(&[]), str::to_owned).parts.is_empty());
    }

    #[test]
    fn wrong_blueprints_are_refused() {
        for (text, expected) in [
            ("shares = { math = 1 }", "did you mean `maths`"),
            ("shares = { maths = 39.4 }", "39.4 % is 0.394"),
            ("shares = { maths = 0.5 }", "sum to 0.5"),
            ("shares = { maths = 1 }\nmax_repeats = 0", "above 0"),
            ("shares = { maths = 1 }\ntotal = -1", "above 0"),
        ] {
            let error = blueprint(text).check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        blueprint(TULU).check().unwrap();
    }
}
