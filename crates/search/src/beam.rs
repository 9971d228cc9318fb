//! Step-guided beam search: write a step, keep the beginnings that score best, write the next.
//!
//! ```text
//! round 1:  n first steps
//! round t:  of the beginnings that go on, the `width` best; from each n / width next steps
//! result:   of all replies that ended, the one with the best score
//! ```
//!
//! A reply's score is the aggregate of its steps' scores, so beginnings of different lengths compare as whole replies do. Each round
//! writes about n steps, so a search costs about what n replies cost. Source: Snell et al. 2024 (arXiv:2408.03314), section 5.2, whose
//! lookahead is left out. Equal beginnings are kept once; replies that ended leave the beam and compete at the end. Where no reply has
//! ended after `max_steps` or `max_tokens`, the best beginning is the result.

use crate::{Aggregate, Ask, Splitter, Written};

/// How wide and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeamOptions {
    /// Steps written in each round.
    pub n: usize,
    /// Beginnings kept; at most `n`.
    pub width: usize,
    /// Most steps of a reply.
    pub max_steps: usize,
    /// Most tokens of a reply.
    pub max_tokens: usize,
    /// How the scores of steps become a reply's.
    pub aggregate: Aggregate,
}

/// A reply with its steps' scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its steps.
    pub steps: Vec<String>,
    /// The score of each.
    pub step_scores: Vec<f64>,
    /// Their aggregate.
    pub score: f64,
    /// Whether it ended by itself.
    pub is_end: bool,
    /// Tokens written for it.
    pub n_tokens: usize,
}

/// The state of one question's search.
struct Search {
    question: usize,
    key: u64,
    /// Beginnings that go on.
    live: Vec<Found>,
    ended: Vec<Found>,
    n_tokens: usize,
}

/// What a search of a question gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Searched {
    /// The best reply; `None` if nothing but blanks was written.
    pub found: Option<Found>,
    /// Tokens written in all.
    pub n_tokens: usize,
}

/// Searches a reply to each question, all at the same time; `(question, key)` are as in [`Ask`], and keys of different questions lie
/// far apart.
///
/// `write` continues beginnings by one step: its texts are without the separator, and `is_end` says that the reply is over. `score`
/// gives a score for every step of each (question, steps).
///
/// # Errors
/// Those of `write` and `score`.
///
/// # Panics
/// If `width` is 0 or above `n`, or not everything is answered.
#[expect(
    clippy::type_complexity,
    reason = "the two callbacks are the whole interface: what they take and give is best read here"
)]
pub fn beam_search<E>(
    questions: &[(usize, u64)],
    splitter: &Splitter,
    options: BeamOptions,
    write: &mut dyn FnMut(&[Ask]) -> Result<Vec<Vec<Written>>, E>,
    score: &mut dyn FnMut(&[(usize, &[String])]) -> Result<Vec<Vec<f64>>, E>,
) -> Result<Vec<Searched>, E> {
    assert!(options.width > 0 && options.width <= options.n, "a beam of {} of {}", options.width, options.n);
    let start = Found { steps: vec![], step_scores: vec![], score: 0.0, is_end: false, n_tokens: 0 };
    let search = |&(question, key): &(usize, u64)| Search {
        question,
        key,
        live: vec![start.clone()],
        ended: Vec::new(),
        n_tokens: 0,
    };
    let mut searches: Vec<Search> = questions.iter().map(search).collect();
    for round in 0..options.max_steps {
        let asks: Vec<Vec<Ask>> =
            searches.iter().map(|search| search.asks(round, splitter, &options)).collect();
        if asks.iter().all(Vec::is_empty) {
            break;
        }
        let written = write(&asks.concat())?;
        assert_eq!(written.len(), asks.iter().map(Vec::len).sum::<usize>(), "every beginning is continued");
        let mut written = written.into_iter();
        for (search, asks) in searches.iter_mut().zip(&asks) {
            let own: Vec<Vec<Written>> = written.by_ref().take(asks.len()).collect();
            search.grow(own, &options);
        }
        let unscored: Vec<(usize, &[String])> = searches
            .iter()
            .flat_map(|search| search.live.iter().map(|found| (search.question, found.steps.as_slice())))
            .collect();
        let scores = score(&unscored)?;
        assert_eq!(scores.len(), unscored.len(), "every beginning is scored");
        let mut scores = scores.into_iter();
        for search in &mut searches {
            let n = search.live.len();
            search.settle(scores.by_ref().take(n), &options);
        }
    }
    Ok(searches.into_iter().map(Search::result).collect())
}

impl Search {
    /// What to write next: each beginning's share of the round's steps, the earlier (better) ones getting what is left over.
    fn asks(&self, round: usize, splitter: &Splitter, options: &BeamOptions) -> Vec<Ask> {
        let n_live = self.live.len().max(1);
        let ask = |(i, found): (usize, &Found)| Ask {
            question: self.question,
            beginning: splitter.beginning(&found.steps),
            n: options.n / n_live + usize::from(i < options.n % n_live),
            key: self.key.wrapping_add((round * options.n + i) as u64),
            max_tokens: options.max_tokens - found.n_tokens,
        };
        self.live.iter().enumerate().map(ask).collect()
    }

    /// Puts the continuations in the place of what they continue. A blank one is the end of a reply that has steps, and nothing
    /// otherwise.
    fn grow(&mut self, written: Vec<Vec<Written>>, options: &BeamOptions) {
        let mut grown: Vec<Found> = Vec::new();
        for (found, written) in std::mem::take(&mut self.live).into_iter().zip(written) {
            for Written { text, is_end, n_tokens } in written {
                self.n_tokens += n_tokens;
                let mut longer = found.clone();
                longer.n_tokens += n_tokens;
                let step = text.trim();
                match step.is_empty() {
                    // Nothing but blanks to the end of the limit leads nowhere.
                    true if !is_end && longer.n_tokens >= options.max_tokens => continue,
                    true if longer.steps.is_empty() && is_end => continue,
                    true => {}
                    false => longer.steps.push(step.to_owned()),
                }
                longer.is_end = is_end;
                if !longer.steps.is_empty()
                    && !grown.iter().any(|known| known.steps == longer.steps && known.is_end == is_end)
                {
                    grown.push(longer);
                }
            }
        }
        self.live = grown;
    }

    /// Notes the scores, sets aside what ended, and keeps the best.
    fn settle(&mut self, scores: impl Iterator<Item = Vec<f64>>, options: &BeamOptions) {
        let scored = std::mem::take(&mut self.live).into_iter().zip(scores);
        let (ended, mut live): (Vec<Found>, Vec<Found>) = scored
            .map(|(found, step_scores)| {
                assert_eq!(step_scores.len(), found.steps.len(), "every step has a score");
                let score = options.aggregate.of(&step_scores).expect("a beginning has steps");
                Found { step_scores, score, ..found }
            })
            .partition(|found| found.is_end);
        self.ended.extend(ended);
        // A stable order: of equals, the earlier stays.
        live.sort_by(|a, b| b.score.total_cmp(&a.score));
        live.truncate(options.width);
        // What has no room for more tokens is as long as it gets.
        let (full, live) = live.into_iter().partition(|found| found.n_tokens >= options.max_tokens);
        self.ended.extend::<Vec<Found>>(full);
        self.live = live;
    }

    fn result(self) -> Searched {
        let rank = |found: &Found| (found.is_end, found.score);
        let better = |best: Found, next: Found| if rank(&next) > rank(&best) { next } else { best };
        let found = self.ended.into_iter().chain(self.live).filter(|found| !found.steps.is_empty());
        Searched { found: found.reduce(better), n_tokens: self.n_tokens }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Digits are written in turn, 0 ends a reply; the score of a step is its digit over ten. A reply's sum of digits is what a search
    /// for large digits should make large.
    fn search(options: BeamOptions, start: usize) -> Searched {
        let mut write = |asks: &[Ask]| -> Result<Vec<Vec<Written>>, Infallible> {
            let one = |ask: &Ask| {
                let text = |i: usize| {
                    let depth = ask.beginning.lines().count();
                    if depth == 3 {
                        (String::new(), true)
                    } else {
                        (((i + start + ask.key as usize) % 10).to_string(), false)
                    }
                };
                let written = |i: usize| {
                    let (text, is_end) = text(i);
                    Written { text, is_end, n_tokens: 1 }
                };
                (0..ask.n).map(written).collect()
            };
            Ok(asks.iter().map(one).collect())
        };
        let mut score = |asked: &[(usize, &[String])]| -> Result<Vec<Vec<f64>>, Infallible> {
            let digit = |step: &String| step.parse::<f64>().unwrap() / 10.0;
            Ok(asked.iter().map(|(_, steps)| steps.iter().map(digit).collect()).collect())
        };
        beam_search(&[(0, 0)], &Splitter::default(), options, &mut write, &mut score).unwrap().remove(0)
    }

    const OPTIONS: BeamOptions =
        BeamOptions { n: 4, width: 2, max_steps: 10, max_tokens: 50, aggregate: Aggregate::Mean };

    #[test]
    fn the_best_steps_are_continued() {
        // Round 1 writes 0 1 2 3 and keeps 3 and 2; round 2 (keys 4, 5) writes 4 5 and 5 6, of which 3 5 and 2 6 tie and the earlier
        // stays first.
        let found = search(OPTIONS, 0).found.unwrap();
        assert_eq!(found.steps[..2], ["3", "5"]);
        assert_eq!((found.steps.len(), found.is_end), (3, true));
        assert!((found.score - found.step_scores.iter().sum::<f64>() / 3.0).abs() < 1e-12);
        // A wider search finds no worse, and the result is a function of its arguments.
        let wide = search(BeamOptions { n: 8, width: 4, ..OPTIONS }, 0);
        assert!(wide.found.as_ref().unwrap().score >= found.score);
        assert_eq!(wide, search(BeamOptions { n: 8, width: 4, ..OPTIONS }, 0));
    }

    #[test]
    fn limits_end_a_search_with_the_best_beginning() {
        for options in [BeamOptions { max_steps: 2, ..OPTIONS }, BeamOptions { max_tokens: 2, ..OPTIONS }] {
            let found = search(options, 0).found.unwrap();
            assert_eq!((found.steps.join(" ").as_str(), found.is_end), ("3 5", false));
        }
    }
}
