//! An audit: figures of a judge, grader or scorer over labelled pairs, held against thresholds, in a file.
//!
//! Nothing that is trained against should be trusted unseen. The file says what was audited (model and instrument, by
//! content) and whether it passed; `llm_judge` asks for it.

use std::path::Path;

use pt_data::{Body, Record};
use serde::{Deserialize, Serialize};

use crate::chat::{Ask, AskOptions, Chat, Counted, Tally, Turn};
use crate::error::{FeedbackError, Result};
use crate::figures::{Figures, Observation};
use crate::pairs::{Candidate, Pair};
use crate::revise::{call_seed, wrong};
use crate::{verdict, wording};

/// What was audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Sees two replies at once, by a constitution.
    Pairwise,
    /// Grades one reply at a time, by a rubric.
    Grader,
    /// Gave scores by itself: a reward model, a verifier.
    Scorer,
}

/// What an audit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// Labelled pairs with a judgement.
    pub min_pairs: usize,
    /// Agreement with labels.
    pub min_accuracy: f64,
    /// Cohen's kappa with labels.
    pub min_kappa: f64,
    /// Expected calibration error.
    pub max_ece: f64,
    /// Agreement with itself: in both orders, or in repeated grades.
    pub min_consistency: f64,
    /// Preference for a place, either way.
    pub max_position_bias: f64,
    /// Undue preference for length, either way.
    pub max_length_bias: f64,
    /// Answers without a choice or grade.
    pub max_abstain_rate: f64,
}

impl Default for Thresholds {
    /// Bounds that a usable judge meets with ease; they are conventions of this project, not from a paper.
    fn default() -> Self {
        Thresholds {
            min_pairs: 50,
            min_accuracy: 0.6,
            min_kappa: 0.2,
            max_ece: 0.25,
            min_consistency: 0.7,
            max_position_bias: 0.1,
            max_length_bias: 0.15,
            max_abstain_rate: 0.1,
        }
    }
}

/// One figure against its bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The figure.
    pub name: String,
    /// What it is; none if it could not be measured, which does not pass.
    pub value: Option<f64>,
    /// `>=` or `<=`.
    pub relation: String,
    /// The bound.
    pub bound: f64,
    /// Whether it holds.
    pub passed: bool,
}

/// What is audited, and on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    /// The model's name, or that of the scorer.
    pub model: String,
    /// Content of the constitution or the rubric; empty for a scorer.
    pub instrument: String,
    /// How a grader's answers are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn: Option<Drawing>,
}

/// How a grader's answers are drawn. An audit holds for answers that are drawn alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawing {
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Divides the logits.
    pub temperature: f64,
    /// Grades of each reply.
    pub votes: usize,
}

impl Drawing {
    /// Greedy votes are all the same, so their number makes no difference.
    fn is_like(&self, other: &Drawing) -> bool {
        let same_votes = self.votes == other.votes || self.temperature == 0.0;
        self.max_tokens == other.max_tokens && self.temperature == other.temperature && same_votes
    }

    fn describe(&self) -> String {
        format!("max_tokens {}, temperature {}, votes {}", self.max_tokens, self.temperature, self.votes)
    }
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// What was audited.
    pub subject: Subject,
    /// Whether every check passed.
    pub passed: bool,
    /// The checks that apply to its kind.
    pub checks: Vec<Check>,
    /// All figures.
    pub figures: Figures,
    /// Calls and tokens.
    pub calls: Tally,
    /// By the price given.
    pub cost: f64,
}

impl Audit {
    /// Holds figures against thresholds.
    pub fn new(
        subject: Subject,
        figures: Figures,
        thresholds: &Thresholds,
        calls: Tally,
        cost: f64,
    ) -> Audit {
        let at_least = |name: &str, value: Option<f64>, bound: f64| Check {
            name: name.to_owned(),
            value,
            relation: ">=".to_owned(),
            bound,
            passed: value.is_some_and(|value| value >= bound),
        };
        let at_most = |name: &str, value: Option<f64>, bound: f64| Check {
            name: name.to_owned(),
            value,
            relation: "<=".to_owned(),
            bound,
            passed: value.is_some_and(|value| value.abs() <= bound),
        };
        let t = thresholds;
        let mut checks = vec![
            at_least("labelled_pairs", Some(figures.n_labelled as f64), t.min_pairs as f64),
            at_least("accuracy", figures.accuracy.map(|share| share.value), t.min_accuracy),
            at_least("kappa", figures.kappa, t.min_kappa),
            at_most("length_bias", figures.length_bias, t.max_length_bias),
        ];
        if subject.kind != Kind::Grader {
            checks.push(at_most("ece", figures.ece, t.max_ece));
        }
        if subject.kind != Kind::Scorer {
            let consistency = figures.consistency.map(|share| share.value);
            // Greedy grades are the same twice whatever the judge is worth: that is no measurement, and so no check.
            let is_greedy = subject.drawn.is_some_and(|drawn| drawn.temperature == 0.0);
            if !is_greedy {
                checks.push(at_least("consistency", consistency, t.min_consistency));
            }
            checks.push(at_most("abstain_rate", Some(figures.abstain_rate), t.max_abstain_rate));
        }
        if subject.kind == Kind::Pairwise {
            checks.push(at_most("position_bias", figures.position_bias, t.max_position_bias));
        }
        let passed = checks.iter().all(|check| check.passed);
        Audit { subject, passed, checks, figures, calls, cost }
    }

    /// Reads an audit and refuses one that failed, or that is about something else than `wanted`.
    ///
    /// # Errors
    /// [`FeedbackError::Audit`] with what is wrong; if the file cannot be read.
    pub fn check_file(path: &Path, wanted: &Subject) -> Result<Audit> {
        let text = std::fs::read_to_string(path).map_err(FeedbackError::io("read", path))?;
        let refuse = |problem: String| Err(FeedbackError::Audit { path: path.to_owned(), problem });
        let audit: Audit = match serde_json::from_str(&text) {
            Ok(audit) => audit,
            Err(error) => {
                return refuse(format!("it is no audit ({error}); make one with `posttrain feedback audit`"));
            }
        };
        let found = &audit.subject;
        if found.kind != wanted.kind {
            return refuse(
                format!("it is of a {:?}, expected a {:?}", found.kind, wanted.kind).to_lowercase(),
            );
        }
        if found.model != wanted.model {
            return refuse(format!(
                "it is of the model `{}`, and `{}` is to be used",
                found.model, wanted.model
            ));
        }
        if found.instrument != wanted.instrument {
            return refuse(
                "it was made with another rubric, scale or constitution; audit the one that is used".into(),
            );
        }
        let describe = |drawn: Option<Drawing>| drawn.map_or("unknown".to_owned(), |drawn| drawn.describe());
        let is_alike = match (&found.drawn, &wanted.drawn) {
            (Some(found), Some(wanted)) => found.is_like(wanted),
            (found, wanted) => found == wanted,
        };
        if !is_alike {
            return refuse(format!(
                "its answers were drawn with {}, and {} are to be used; audit the judge as it is used",
                describe(found.drawn),
                describe(wanted.drawn)
            ));
        }
        let failed: Vec<&str> =
            audit.checks.iter().filter(|check| !check.passed).map(|check| check.name.as_str()).collect();
        if !audit.passed || !failed.is_empty() || audit.checks.is_empty() {
            return refuse(format!("it did not pass: {}", failed.join(", ")));
        }
        Ok(audit)
    }
}

/// How replies are graded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GradeOptions {
    /// What a good reply is like.
    pub rubric: String,
    /// The best grade; the worst is 1.
    pub scale: u32,
    /// Grades of each reply.
    pub votes: usize,
    /// Keys the model's draws.
    pub seed: u64,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Divides the logits.
    pub temperature: f64,
}

impl GradeOptions {
    /// Identity of the instrument: rubric and scale.
    pub fn instrument(&self) -> String {
        pt_core::hash::of_parts([self.rubric.trim().as_bytes(), &self.scale.to_le_bytes()])
    }

    /// How answers are drawn, for the audit.
    pub fn drawn(&self) -> Drawing {
        Drawing { max_tokens: self.max_tokens, temperature: self.temperature, votes: self.votes }
    }

    /// What is asked of one reply, once per vote.
    pub(crate) fn asks(&self, prompt: &[Turn], reply: &str) -> Vec<Ask> {
        let text = wording::grade(self.rubric.trim(), prompt, reply, self.scale);
        let key = crate::chat::key_of([text.as_str()]);
        let ask = |vote: usize| Ask {
            messages: vec![Turn::user(text.as_str())],
            seed: call_seed(self.seed, key, vote as u64),
        };
        (0..self.votes).map(ask).collect()
    }

    pub(crate) fn ask_options(&self) -> AskOptions {
        AskOptions { max_tokens: self.max_tokens, temperature: self.temperature, top_logprobs: 0 }
    }

    /// Refuses what no grade can come from.
    ///
    /// # Errors
    /// [`FeedbackError::Option`].
    pub fn check(&self) -> Result<()> {
        let bad = |name, found: String, expected| Err(FeedbackError::Option { name, found, expected });
        match self {
            _ if self.rubric.trim().is_empty() => {
                bad("rubric", "empty".to_owned(), "what a good reply is like")
            }
            _ if self.scale < 2 => bad("scale", self.scale.to_string(), "at least 2"),
            _ if self.votes == 0 => bad("votes", "0".to_owned(), "at least 1"),
            _ => Ok(()),
        }
    }
}

/// What grades say of a pair: `P = share of pairs of grades (i, j) with g_i > h_j`, ties one half.
fn compare(first: &[f64], second: &[f64]) -> (Option<f64>, Option<bool>) {
    let won = |a: f64, b: f64| if a > b { 1.0 } else { f64::from(u8::from(a == b)) / 2.0 };
    let all: Vec<f64> = first.iter().flat_map(|a| second.iter().map(|b| won(*a, *b))).collect();
    let p = (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64);
    let rounds: Vec<f64> = first.iter().zip(second).map(|(a, b)| won(*a, *b)).collect();
    let flips = rounds.contains(&1.0) && rounds.contains(&0.0);
    (p, (rounds.len() > 1).then_some(!flips))
}

/// Grades both replies of each labelled pair, for an audit.
///
/// # Errors
/// [`FeedbackError::Option`]; [`FeedbackError::AllFailed`]; a cache that cannot be used.
pub fn audit_grader(
    candidates: &[Candidate],
    chat: &dyn Chat,
    options: &GradeOptions,
    thresholds: &Thresholds,
    watch: &mut dyn FnMut(&Tally),
) -> Result<Audit> {
    options.check()?;
    let pairs: Vec<&Pair> = candidates
        .iter()
        .filter_map(|candidate| match candidate {
            Candidate::Pair(pair) => Some(pair),
            Candidate::Excluded { .. } => None,
        })
        .collect();
    let asks: Vec<Ask> = pairs
        .iter()
        .flat_map(|pair| pair.replies.iter().flat_map(|reply| options.asks(&pair.prompt, reply)))
        .collect();
    let mut calls = Counted::new(chat, watch);
    let answers = calls.ask_all(&asks, &options.ask_options())?;
    let (mut n_answered, mut n_abstained) = (0, 0);
    let mut grades = |answers: &[std::result::Result<crate::Answer, String>]| -> Vec<f64> {
        let answered = answers.iter().filter_map(|answer| answer.as_ref().ok());
        let graded: Vec<Option<f64>> =
            answered.map(|answer| verdict::grade(&answer.text, options.scale)).collect();
        n_answered += graded.len();
        n_abstained += graded.iter().filter(|grade| grade.is_none()).count();
        graded.into_iter().flatten().collect()
    };
    let mut observations = Vec::with_capacity(pairs.len());
    for (pair, answers) in pairs.iter().zip(answers.chunks(2 * options.votes)) {
        let (first, second) = answers.split_at(options.votes);
        let (p_first, is_consistent) = compare(&grades(first), &grades(second));
        let is_consistent = is_consistent.filter(|_| options.temperature > 0.0);
        let (lengths, label) = (pair.lengths(), pair.label);
        observations.push(Observation { p_first, is_consistent, votes: Vec::new(), lengths, label });
    }
    let tally = calls.tally();
    let figures = Figures {
        n_votes: tally.n_calls as usize,
        n_failed: tally.n_failed as usize,
        n_abstained,
        abstain_rate: n_abstained as f64 / n_answered.max(1) as f64,
        ece: None,
        ..Figures::of(&observations)
    };
    let subject = Subject {
        kind: Kind::Grader,
        model: chat.name().to_owned(),
        instrument: options.instrument(),
        drawn: Some(options.drawn()),
    };
    Ok(Audit::new(subject, figures, thresholds, tally, chat.cost(&tally)))
}

/// Audits scores that are in the rows already: `score_chosen` and `score_rejected` beside a preference. The probability
/// that the chosen reply is better is the logistic function of their difference (Bradley-Terry).
///
/// # Errors
/// A row that is no preference, or without scores.
pub fn audit_scores(records: &[Record], name: &str, thresholds: &Thresholds) -> Result<Audit> {
    let mut observations = Vec::with_capacity(records.len());
    for (i, record) in records.iter().enumerate() {
        let Body::Preference { chosen, rejected, .. } = &record.body else {
            return Err(wrong(record, "a preference (`chosen` and `rejected`)", record.body.kind()));
        };
        let score = |column: &str| record.extra.get(column).and_then(serde_json::Value::as_f64);
        let (Some(a), Some(b)) = (score("score_chosen"), score("score_rejected")) else {
            return Err(wrong(record, "numbers in `score_chosen` and `score_rejected`", "without them"));
        };
        let length = |content: &pt_data::Content| content.to_row().to_string().chars().count();
        let p_chosen = 1.0 / (1.0 + (b - a).exp());
        // Alternating places keep kappa's expectation at one half.
        let label = i % 2;
        let lengths = [length(chosen), length(rejected)];
        observations.push(Observation {
            p_first: Some(if label == 0 { p_chosen } else { 1.0 - p_chosen }),
            is_consistent: None,
            votes: Vec::new(),
            lengths: if label == 0 { lengths } else { [lengths[1], lengths[0]] },
            label: Some(label),
        });
    }
    let subject =
        Subject { kind: Kind::Scorer, model: name.to_owned(), instrument: String::new(), drawn: None };
    Ok(Audit::new(subject, Figures::of(&observations), thresholds, Tally::default(), 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grades_are_compared_vote_by_vote() {
        type Case<'a> = (&'a [f64], &'a [f64], Option<f64>, Option<bool>);
        let cases: &[Case<'_>] = &[
            (&[7.0], &[3.0], Some(1.0), None),
            (&[5.0], &[5.0], Some(0.5), None),
            (&[7.0, 6.0], &[3.0, 6.0], Some(0.875), Some(true)),
            (&[7.0, 2.0], &[3.0, 6.0], Some(0.5), Some(false)),
            (&[], &[3.0], None, None),
        ];
        for (first, second, p, consistent) in cases {
            assert_eq!(compare(first, second), (*p, *consistent), "{first:?} {second:?}");
        }
    }

    #[test]
    fn an_audit_that_failed_or_is_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.json");
        let subject = |model: &str| Subject {
            kind: Kind::Scorer,
            model: model.to_owned(),
            instrument: String::new(),
            drawn: None,
        };
        let share = |value| Some(crate::Share { value, low: 0.0, high: 1.0, n: 100 });
        let good = Figures {
            n_labelled: 100,
            accuracy: share(0.9),
            kappa: Some(0.8),
            ece: Some(0.1),
            length_bias: Some(0.0),
            ..Figures::default()
        };
        let check = |figures: &Figures, wanted: &Subject, expected: Option<&str>| {
            let thresholds = Thresholds::default();
            let audit = Audit::new(subject("m"), figures.clone(), &thresholds, Tally::default(), 0.0);
            std::fs::write(&path, serde_json::to_string(&audit).unwrap()).unwrap();
            let outcome = Audit::check_file(&path, wanted);
            match expected {
                None => assert_eq!(outcome.unwrap(), audit),
                Some(part) => {
                    let error = outcome.unwrap_err().to_string();
                    assert!(error.contains(part), "`{error}` lacks `{part}`");
                }
            }
        };
        check(&good, &subject("m"), None);
        check(&good, &subject("other"), Some("it is of the model `m`, and `other`"));
        check(&good, &Subject { kind: Kind::Grader, ..subject("m") }, Some("expected a grader"));
        check(&good, &Subject { instrument: "x".into(), ..subject("m") }, Some("another rubric"));
        let bad = |change: &dyn Fn(&mut Figures)| {
            let mut figures = good.clone();
            change(&mut figures);
            figures
        };
        check(&bad(&|f| f.accuracy = share(0.55)), &subject("m"), Some("did not pass: accuracy"));
        check(&bad(&|f| f.length_bias = Some(-0.3)), &subject("m"), Some("did not pass: length_bias"));
        check(&bad(&|f| f.kappa = None), &subject("m"), Some("did not pass: kappa"));
        check(&bad(&|f| f.n_labelled = 3), &subject("m"), Some("did not pass: labelled_pairs"));
        let drawn = |max_tokens, temperature, votes| Subject {
            kind: Kind::Grader,
            drawn: Some(Drawing { max_tokens, temperature, votes }),
            ..subject("m")
        };
        let check_drawn = |audited: Subject, wanted: Subject, expected: Option<&str>| {
            let consistent = Figures { consistency: share(0.9), ..good.clone() };
            let audit = Audit::new(audited, consistent, &Thresholds::default(), Tally::default(), 0.0);
            std::fs::write(&path, serde_json::to_string(&audit).unwrap()).unwrap();
            let error = Audit::check_file(&path, &wanted).err().map(|error| error.to_string());
            match (&error, expected) {
                (None, None) => {}
                (Some(error), Some(part)) if error.contains(part) => {}
                _ => panic!("{error:?}, expected {expected:?}"),
            }
        };
        check_drawn(drawn(512, 0.0, 1), drawn(512, 0.0, 3), None);
        check_drawn(drawn(512, 1.0, 2), drawn(512, 1.0, 2), None);
        check_drawn(drawn(16, 0.0, 1), drawn(512, 0.0, 1), Some("drawn with max_tokens 16"));
        check_drawn(drawn(512, 0.0, 2), drawn(512, 1.0, 2), Some("temperature 0"));
        check_drawn(drawn(512, 1.0, 2), drawn(512, 1.0, 1), Some("votes 2, and"));
        let unknown = Subject { drawn: None, ..drawn(512, 0.0, 1) };
        check_drawn(unknown, drawn(512, 0.0, 1), Some("drawn with unknown"));
        let names = |temperature| {
            let thresholds = Thresholds::default();
            let (subject, figures) =
                (drawn(512, temperature, 2), Figures { consistency: None, ..good.clone() });
            let audit = Audit::new(subject, figures, &thresholds, Tally::default(), 0.0);
            (audit.passed, audit.checks.iter().any(|check| check.name == "consistency"))
        };
        assert_eq!((names(0.0), names(1.0)), ((true, false), (false, true)));
        std::fs::write(&path, "{\"passed\": true}").unwrap();
        let error = Audit::check_file(&path, &subject("m")).unwrap_err().to_string();
        assert!(error.contains("it is no audit"), "{error}");
    }
}
