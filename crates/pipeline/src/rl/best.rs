//! Rejection sampling: the best sample of each group is imitated.
//!
//! Best-of-n as training data (Touvron et al. 2023, "Llama 2", arXiv:2307.09288, section 3.2.3; Dong et al. 2023, "RAFT",
//! arXiv:2304.06767). The objective is cross-entropy on the winner. Samples of equal reward are winners in the order they were drawn; a
//! group whose best is below `online.min_reward`, or that nothing could judge, is left out and counted.

use pt_rl::RolloutRecord;
use pt_train::Example;

use super::credit::{Credit, Figures, JudgedRound};
use crate::error::Result;

/// The best of each group.
pub(crate) struct Best {
    min_reward: Option<f64>,
}

impl Best {
    pub(crate) fn new(min_reward: Option<f64>) -> Best {
        Best { min_reward }
    }

    /// Which of a group's samples is imitated.
    fn winner(&self, rewards: impl Iterator<Item = Option<f64>>) -> Option<usize> {
        let least = self.min_reward.unwrap_or(f64::NEG_INFINITY);
        let judged = rewards.enumerate().filter_map(|(i, reward)| Some((i, reward?)));
        // Of equal ones the first: `max_by` would take the last.
        let best = judged.reduce(|best, other| if other.1 > best.1 { other } else { best });
        best.filter(|(_, reward)| *reward >= least).map(|(i, _)| i)
    }
}

impl Credit for Best {
    fn judge(
        &mut self,
        round: &JudgedRound<'_>,
        examples: &[Example],
        records: &mut [RolloutRecord],
    ) -> Result<Figures> {
        let (mut n_kept, mut sum) = (0, 0.0);
        for group in records.chunk_by_mut(|a, b| a.group == b.group) {
            let winner = self.winner(group.iter().map(|record| record.reward));
            for (i, record) in group.iter_mut().enumerate() {
                record.advantage = f32::from(u8::from(winner == Some(i)));
            }
            n_kept += usize::from(winner.is_some());
            sum += winner.and_then(|i| group[i].reward).unwrap_or(0.0);
        }
        let mut figures = round.reward_metrics()?;
        figures.push(("rejection/kept".to_owned(), n_kept as f64 / examples.len().max(1) as f64));
        if n_kept > 0 {
            figures.push(("rejection/best_reward".to_owned(), sum / n_kept as f64));
        }
        Ok(figures)
    }

    fn apply(&self, records: &[RolloutRecord], group: &mut Example) {
        let winner = self.winner(records.iter().map(|record| record.reward));
        let mut replies = std::mem::take(&mut group.replies).into_iter();
        group.replies.extend(winner.and_then(|i| replies.nth(i)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_best_wins_if_it_is_good_enough() {
        let check = |min_reward, rewards: &[Option<f64>], expected| {
            assert_eq!(Best::new(min_reward).winner(rewards.iter().copied()), expected, "{rewards:?}");
        };
        check(None, &[Some(0.0), Some(1.0), Some(1.0)], Some(1));
        check(None, &[Some(-1.0), None], Some(0));
        check(Some(1.0), &[Some(0.5), Some(0.9)], None);
        check(Some(1.0), &[Some(0.5), Some(1.0)], Some(1));
        check(None, &[None, None], None);
        check(None, &[], None);
    }
}
