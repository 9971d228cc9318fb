//! Labels of steps without people: how often a beginning of a solution still leads to the right answer.
//!
//! ```text
//! soft label of step k = (completions of steps 1..k that are right) / n          k < K
//! hard label of step k = 1 if any of them is, otherwise 0
//! label of step K      = whether the solution itself is right
//! ```
//!
//! Source: Wang et al. 2023, Math-Shepherd (arXiv:2312.08935), section 3.3, equations 3 (hard) and 4 (soft). A completion that the
//! verifier skips counts on neither side; a step of which none could be judged has no label.

use crate::{Ask, Splitter, Written};

/// A solution to be labelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// Which question it answers.
    pub question: usize,
    /// Its steps, at least one.
    pub steps: Vec<String>,
    /// Identifies its draws.
    pub key: u64,
}

/// What completions say of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepValue {
    /// Completions that could be judged; for the last step, the solution itself.
    pub n_judged: usize,
    /// Of these, right ones.
    pub n_right: usize,
}

impl StepValue {
    /// The share that is right; `None` if none could be judged.
    pub fn soft(self) -> Option<f64> {
        (self.n_judged > 0).then(|| self.n_right as f64 / self.n_judged as f64)
    }

    /// Whether any is right.
    pub fn hard(self) -> Option<bool> {
        (self.n_judged > 0).then_some(self.n_right > 0)
    }

    fn add(&mut self, verdict: Option<bool>) {
        self.n_judged += usize::from(verdict.is_some());
        self.n_right += usize::from(verdict == Some(true));
    }
}

/// A solution's steps with their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// One for each step.
    pub values: Vec<StepValue>,
    /// Completions that were written.
    pub n_rollouts: usize,
    /// Their tokens.
    pub n_tokens: usize,
}

/// Values of the steps of these solutions from `n` completions of each of their beginnings, of at most `max_tokens` each.
///
/// `write` continues beginnings to their end; `judge` says whether whole replies are right, `None` where it cannot.
///
/// # Errors
/// Those of `write`.
///
/// # Panics
/// If a solution has no steps, or `write` or `judge` does not answer everything.
#[expect(
    clippy::type_complexity,
    reason = "the two callbacks are the whole interface: what they take and give is best read here"
)]
pub fn label_steps<E>(
    solutions: &[Solution],
    splitter: &Splitter,
    (n, max_tokens): (usize, usize),
    write: &mut dyn FnMut(&[Ask]) -> Result<Vec<Vec<Written>>, E>,
    judge: &mut dyn FnMut(&[(usize, String)]) -> Vec<Option<bool>>,
) -> Result<Vec<Labelled>, E> {
    let mut asks = Vec::new();
    // What is judged, and the solution and step it speaks of.
    let (mut replies, mut places) = (Vec::new(), Vec::new());
    for (at, solution) in solutions.iter().enumerate() {
        let last = solution.steps.len().checked_sub(1).expect("a solution has steps");
        replies.push((solution.question, splitter.join(&solution.steps)));
        places.push((at, last));
        for step in 0..last {
            asks.push((at, step, ask(solution, step, splitter, n, max_tokens)));
        }
    }
    let written = write(&asks.iter().map(|(.., ask)| ask.clone()).collect::<Vec<_>>())?;
    assert_eq!(written.len(), asks.len(), "every beginning is continued");
    let empty = |solution: &Solution| Labelled {
        values: vec![StepValue::default(); solution.steps.len()],
        n_rollouts: 0,
        n_tokens: 0,
    };
    let mut labelled: Vec<Labelled> = solutions.iter().map(empty).collect();
    for ((at, step, ask), written) in asks.iter().zip(&written) {
        labelled[*at].n_rollouts += written.len();
        labelled[*at].n_tokens += written.iter().map(|written| written.n_tokens).sum::<usize>();
        for written in written {
            replies.push((ask.question, format!("{}{}", ask.beginning, written.text)));
            places.push((*at, *step));
        }
    }
    let verdicts = judge(&replies);
    assert_eq!(verdicts.len(), replies.len(), "every reply is judged");
    for ((at, step), verdict) in places.into_iter().zip(verdicts) {
        labelled[at].values[step].add(verdict);
    }
    Ok(labelled)
}

fn ask(solution: &Solution, step: usize, splitter: &Splitter, n: usize, max_tokens: usize) -> Ask {
    Ask {
        question: solution.question,
        beginning: splitter.beginning(&solution.steps[..=step]),
        n,
        key: solution.key.wrapping_add(step as u64),
        max_tokens,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A writer whose i-th completion of a beginning is right if i is below the digit that the beginning ends with, and a judge that
    /// accepts what holds `right` and cannot read what holds `?`.
    fn label(steps: &[&str], n: usize) -> Labelled {
        let steps = steps.iter().map(|s| (*s).to_owned()).collect();
        let solution = Solution { question: 3, steps, key: 40 };
        let mut write = |asks: &[Ask]| -> Result<Vec<Vec<Written>>, Infallible> {
            let one = |ask: &Ask| {
                let digit: usize =
                    ask.beginning.trim_end().chars().last().unwrap().to_digit(10).unwrap() as usize;
                let text = |i: usize| {
                    if i < digit {
                        "right"
                    } else if i == 7 {
                        "?"
                    } else {
                        "wrong"
                    }
                };
                (0..ask.n).map(|i| Written { text: text(i).to_owned(), is_end: true, n_tokens: 2 }).collect()
            };
            assert_eq!(
                asks.iter().map(|ask| ask.key).collect::<Vec<_>>(),
                (40..).take(asks.len()).collect::<Vec<_>>()
            );
            Ok(asks.iter().map(one).collect())
        };
        let mut judge = |replies: &[(usize, String)]| {
            assert!(replies.iter().all(|(question, _)| *question == 3));
            let one = |text: &str| (!text.contains('?')).then(|| text.ends_with("right"));
            replies.iter().map(|(_, text)| one(text)).collect()
        };
        label_steps(&[solution], &Splitter::default(), (n, 9), &mut write, &mut judge).unwrap().remove(0)
    }

    #[test]
    fn a_step_is_worth_the_share_of_its_completions_that_are_right() {
        let found = label(&["good 3", "worse 1", "bad 0", "so it is right"], 4);
        let soft: Vec<f64> = found.values.iter().map(|value| value.soft().unwrap()).collect();
        assert_eq!(soft, [0.75, 0.25, 0.0, 1.0]);
        let hard: Vec<bool> = found.values.iter().map(|value| value.hard().unwrap()).collect();
        assert_eq!(hard, [true, true, false, true]);
        assert_eq!((found.n_rollouts, found.n_tokens), (12, 24));
    }

    #[test]
    fn a_single_step_needs_no_completion_and_skips_count_on_neither_side() {
        let single = label(&["it is wrong"], 4);
        assert_eq!((single.values[0], single.n_rollouts), (StepValue { n_judged: 1, n_right: 0 }, 0));
        // The eighth completion cannot be judged, nor can the solution.
        let found = label(&["good 4", "?"], 8);
        assert_eq!(found.values[0], StepValue { n_judged: 7, n_right: 4 });
        assert_eq!((found.values[1].soft(), found.values[1].hard()), (None, None));
    }
}
