//! How far a judge can be trusted: agreement with labels and with itself, calibration, biases.
//!
//! ```text
//! accuracy       share of labelled pairs whose winner is the label's; a tie counts one half
//! ece            sum_b n_b / n |accuracy_b - confidence_b|     ten bins of max(p, 1-p) from 1/2 to 1
//! kappa          (p_o - p_e) / (1 - p_e)                        judge against label, ties as a class of their own
//! consistency    share of pairs whose winner is the same in both orders
//! position_bias  share of votes for place A, minus 1/2          of the votes that are no ties
//! length_bias    P(judge prefers the longer) - P(label does)    minus 1/2 where there are no labels
//! vote_agreement mean over pairs of the share of agreeing pairs of votes in one order
//! ```
//!
//! Sources: ECE is Guo et al. 2017, arXiv:1706.04599, equation 3; kappa is Cohen 1960, "A coefficient of agreement for
//! nominal scales". Pairs are stored in an order drawn by content, so places and labels are balanced. Without labels the
//! length bias compares with a judge that does not care, which is no fault where longer replies are better.

use pt_tasks::stats::{Z_95, wilson_interval};
use serde::{Deserialize, Serialize};

use crate::judge::{Choice, Order, Vote};

/// Bins of confidence.
const N_BINS: usize = 10;

/// What is known of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Probability that the first reply is better.
    pub p_first: Option<f64>,
    /// Whether the winner is the same however the pair is shown.
    pub is_consistent: Option<bool>,
    /// All votes; empty for a scorer that sees one reply at a time.
    pub votes: Vec<Vote>,
    /// Characters of both replies.
    pub lengths: [usize; 2],
    /// Which is better, where that is known.
    pub label: Option<usize>,
}

/// A share with its Wilson 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The share.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Of how many.
    pub n: usize,
}

/// Figures over pairs. What has no data is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Pairs.
    pub n_pairs: usize,
    /// Of these, with a probability.
    pub n_judged: usize,
    /// Of these, with a label.
    pub n_labelled: usize,
    /// Votes asked for.
    pub n_votes: usize,
    /// Votes for neither reply.
    pub n_tie_votes: usize,
    /// Answers without a choice.
    pub n_abstained: usize,
    /// Calls without an answer.
    pub n_failed: usize,
    /// Votes with probabilities of the letters.
    pub n_soft: usize,
    /// Agreement with labels.
    pub accuracy: Option<Share>,
    /// Expected calibration error.
    pub ece: Option<f64>,
    /// Cohen's kappa with labels.
    pub kappa: Option<f64>,
    /// Agreement of both orders.
    pub consistency: Option<Share>,
    /// Agreement of votes in one order.
    pub vote_agreement: Option<f64>,
    /// Preference for place A.
    pub position_bias: Option<f64>,
    /// Share of preferences for the longer reply.
    pub prefers_longer: Option<Share>,
    /// Undue preference for the longer reply.
    pub length_bias: Option<f64>,
    /// Accuracy where the longer reply is the better one.
    pub accuracy_longer_better: Option<Share>,
    /// Accuracy where the shorter reply is the better one.
    pub accuracy_shorter_better: Option<Share>,
    /// Answers without a choice, of all answers; 0 where there are no votes.
    pub abstain_rate: f64,
}

/// A share of `halves / 2` of `n`, so that a tie can count one half; the interval takes it as rounded to the nearest.
fn share_of_halves(halves: usize, n: usize) -> Option<Share> {
    (n > 0).then(|| {
        let value = halves as f64 / (2 * n) as f64;
        let (low, high) = wilson_interval(halves.div_ceil(2), n, Z_95);
        Share { value, low, high, n }
    })
}

fn share(outcomes: impl Iterator<Item = bool>) -> Option<Share> {
    let outcomes: Vec<bool> = outcomes.collect();
    let halves = 2 * outcomes.iter().filter(|outcome| **outcome).count();
    share_of_halves(halves, outcomes.len())
}

/// 0, 1, or 2 for a tie.
fn winner(p_first: f64) -> usize {
    match p_first.partial_cmp(&0.5) {
        Some(std::cmp::Ordering::Greater) => 0,
        Some(std::cmp::Ordering::Less) => 1,
        _ => 2,
    }
}

/// Halves of a success.
fn credit(p_first: f64, label: usize) -> usize {
    match winner(p_first) {
        2 => 1,
        winner => 2 * usize::from(winner == label),
    }
}

impl Figures {
    /// The figures of these pairs.
    pub fn of(observations: &[Observation]) -> Figures {
        let votes = || observations.iter().flat_map(|observation| &observation.votes);
        let count = |choice: Choice| votes().filter(|vote| vote.choice == choice).count();
        let labelled: Vec<(f64, usize, [usize; 2])> = observations
            .iter()
            .filter_map(|observation| Some((observation.p_first?, observation.label?, observation.lengths)))
            .collect();
        let accuracy = |keep: &dyn Fn(usize, [usize; 2]) -> bool| {
            let kept = labelled.iter().filter(|(_, label, lengths)| keep(*label, *lengths));
            let credits: Vec<usize> = kept.map(|(p, label, _)| credit(*p, *label)).collect();
            share_of_halves(credits.iter().sum(), credits.len())
        };
        let n_answered = votes().count() - count(Choice::Failed);
        Figures {
            n_pairs: observations.len(),
            n_judged: observations.iter().filter(|observation| observation.p_first.is_some()).count(),
            n_labelled: labelled.len(),
            n_votes: votes().count(),
            n_tie_votes: count(Choice::Tie),
            n_abstained: count(Choice::Abstained),
            n_failed: count(Choice::Failed),
            n_soft: votes().filter(|vote| vote.is_soft).count(),
            accuracy: accuracy(&|_, _| true),
            ece: ece(&labelled),
            kappa: kappa(&labelled),
            consistency: share(observations.iter().filter_map(|observation| observation.is_consistent)),
            vote_agreement: vote_agreement(observations),
            position_bias: position_bias(votes()),
            prefers_longer: prefers_longer(observations),
            length_bias: length_bias(observations),
            accuracy_longer_better: accuracy(&|label, lengths| lengths[label] > lengths[1 - label]),
            accuracy_shorter_better: accuracy(&|label, lengths| lengths[label] < lengths[1 - label]),
            abstain_rate: count(Choice::Abstained) as f64 / n_answered.max(1) as f64,
        }
    }
}

fn ece(labelled: &[(f64, usize, [usize; 2])]) -> Option<f64> {
    let mut bins = [(0usize, 0.0, 0.0); N_BINS];
    for (p, label, _) in labelled {
        let confidence = p.max(1.0 - p);
        let at = (((confidence - 0.5) * 2.0 * N_BINS as f64) as usize).min(N_BINS - 1);
        bins[at].0 += 1;
        bins[at].1 += credit(*p, *label) as f64 / 2.0;
        bins[at].2 += confidence;
    }
    let total: f64 = bins.iter().map(|(_, right, confidence)| (right - confidence).abs()).sum();
    (!labelled.is_empty()).then(|| total / labelled.len() as f64)
}

fn kappa(labelled: &[(f64, usize, [usize; 2])]) -> Option<f64> {
    let n = labelled.len() as f64;
    let (mut judge, mut label, mut agreed) = ([0.0; 3], [0.0; 3], 0.0);
    for (p, right, _) in labelled {
        judge[winner(*p)] += 1.0 / n;
        label[*right] += 1.0 / n;
        agreed += f64::from(u8::from(winner(*p) == *right)) / n;
    }
    let by_chance: f64 = judge.iter().zip(&label).map(|(a, b)| a * b).sum();
    // Both always the same answer: agreement says nothing.
    (n > 0.0 && by_chance < 1.0 - f64::EPSILON).then(|| (agreed - by_chance) / (1.0 - by_chance))
}

fn position_bias<'a>(votes: impl Iterator<Item = &'a Vote>) -> Option<f64> {
    let chose_a = |vote: &Vote| match (vote.choice, vote.order) {
        (Choice::First, Order::Forward) | (Choice::Second, Order::Backward) => Some(true),
        (Choice::First, Order::Backward) | (Choice::Second, Order::Forward) => Some(false),
        _ => None,
    };
    share(votes.filter_map(chose_a)).map(|share| share.value - 0.5)
}

/// Whether the longer reply won, of pairs with a winner and unequal lengths.
fn longer_won(p_first: f64, lengths: [usize; 2]) -> Option<bool> {
    let winner = winner(p_first);
    (winner < 2 && lengths[0] != lengths[1]).then(|| lengths[winner] > lengths[1 - winner])
}

fn prefers_longer(observations: &[Observation]) -> Option<Share> {
    share(observations.iter().filter_map(|observation| longer_won(observation.p_first?, observation.lengths)))
}

fn length_bias(observations: &[Observation]) -> Option<f64> {
    let decided = observations.iter().filter_map(|observation| {
        let judge = longer_won(observation.p_first?, observation.lengths)?;
        let lengths = observation.lengths;
        Some((judge, observation.label.map(|label| lengths[label] > lengths[1 - label])))
    });
    let (judges, labels): (Vec<bool>, Vec<Option<bool>>) = decided.unzip();
    let expected = match labels.iter().copied().collect::<Option<Vec<bool>>>() {
        Some(labels) => share(labels.into_iter())?.value,
        None => 0.5,
    };
    Some(share(judges.into_iter())?.value - expected)
}

fn vote_agreement(observations: &[Observation]) -> Option<f64> {
    let mut shares = Vec::new();
    for observation in observations {
        for order in [Order::Forward, Order::Backward] {
            let is_choice = |choice: &Choice| matches!(choice, Choice::First | Choice::Second | Choice::Tie);
            let votes = observation.votes.iter().filter(|vote| vote.order == order);
            let choices: Vec<Choice> = votes.map(|vote| vote.choice).filter(is_choice).collect();
            let n_pairs = choices.len() * choices.len().saturating_sub(1) / 2;
            if n_pairs > 0 {
                let agree =
                    |i: usize| choices[i + 1..].iter().filter(|choice| **choice == choices[i]).count();
                shares.push((0..choices.len()).map(agree).sum::<usize>() as f64 / n_pairs as f64);
            }
        }
    }
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(p_first: f64, label: Option<usize>, lengths: [usize; 2]) -> Observation {
        Observation { p_first: Some(p_first), is_consistent: Some(true), votes: Vec::new(), lengths, label }
    }

    fn close(found: Option<f64>, expected: f64) {
        let found = found.expect("there is a figure");
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn agreement_with_labels_by_hand() {
        // Right, right, wrong, tie.
        let observations = [
            observed(0.9, Some(0), [3, 5]),
            observed(0.2, Some(1), [3, 5]),
            observed(0.7, Some(1), [5, 3]),
            observed(0.5, Some(0), [5, 3]),
        ];
        let figures = Figures::of(&observations);
        close(figures.accuracy.map(|share| share.value), 2.5 / 4.0);
        // Each in a bin of its own: |1-.9| + |1-.8| + |0-.7| + |.5-.5|, over 4.
        close(figures.ece, (0.1 + 0.2 + 0.7) / 4.0);
        // Observed 1/2; by chance 1/2 1/2 + 1/4 1/2 = 3/8.
        close(figures.kappa, (0.5 - 0.375) / 0.625);
        // The longer: no, yes, yes; of the labels: no, yes, no.
        close(figures.prefers_longer.map(|share| share.value), 2.0 / 3.0);
        close(figures.length_bias, 1.0 / 3.0);
        close(figures.accuracy_longer_better.map(|share| share.value), 1.5 / 2.0);
        close(figures.accuracy_shorter_better.map(|share| share.value), 0.5);
        assert_eq!(figures.position_bias, None, "no votes, no places");
    }

    #[test]
    fn places_and_votes_by_hand() {
        let vote = |order, choice| Vote { order, choice, p_first: None, is_soft: false, reason: None };
        use {Choice::*, Order::*};
        // Place A is chosen three times of four; ties, nonsense and failures have no place.
        let votes = vec![
            vote(Forward, First),
            vote(Forward, First),
            vote(Forward, Second),
            vote(Backward, Second),
            vote(Backward, Tie),
            vote(Backward, Abstained),
            vote(Backward, Failed),
        ];
        let one = Observation { votes, ..observed(0.6, None, [4, 4]) };
        let figures = Figures::of(&[one]);
        close(figures.position_bias, 0.25);
        // Forward: one pair of three agrees; backward: the one pair does not.
        close(figures.vote_agreement, 1.0 / 6.0);
        close(Some(figures.abstain_rate), 1.0 / 6.0);
        assert_eq!((figures.n_votes, figures.n_failed, figures.n_tie_votes), (7, 1, 1));
        assert_eq!((figures.accuracy, figures.length_bias), (None, None));
    }

    #[test]
    fn nothing_has_no_figures() {
        let figures = Figures::of(&[]);
        assert_eq!((figures.accuracy, figures.ece, figures.kappa), (None, None, None));
    }
}
