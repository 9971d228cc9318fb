//! Comparisons within a group: online DPO, XPO, Nash-MD.
//!
//! | stage | samples of a prompt | what trains |
//! | --- | --- | --- |
//! | `online_dpo` (Guo et al. 2024, arXiv:2402.04792) | all of the policy | the best against the worst |
//! | `xpo` (Xie et al. 2024, arXiv:2405.21046) | first half of the policy, second half of its reference | the best of one half against the best of the other |
//! | `nash_md` (Munos et al. 2023, arXiv:2312.00886) | first half of the policy, second half of a mixture of both | each of the policy, labelled with its probability to beat its opponent |
//!
//! The probability to win is that of Bradley and Terry, σ(reward − opponent's reward), as in TRL where there is no judge of pairs.
//! **Difference from TRL**: two samples of equal reward are no pair. TRL takes the first as the better one, which teaches noise; here
//! they are left out and counted (`pairs/ties`).
//!
//! Iterated DPO (Xu et al. 2023, arXiv:2312.16682) is several `online_dpo` stages one after the other: each samples from, and is held
//! to, the model of the stage before. `rollout.mini_batches` sets how many steps a stage takes on the samples of one round.

use pt_models::Model;
use pt_objectives::CompletionKind;
use pt_rl::RolloutRecord;
use pt_train::{Example, Reply};

use super::credit::{Credit, Figures, JudgedRound};
use super::mixture;
use super::reference::Reference;
use super::sampler::{Drawn, Prompt, Sampler};
use crate::error::Result;

/// Sets the draws of the second half apart from those of the first, which has the same prompts.
const OPPONENT: u64 = 0x6f70_706f_6e65_6e74;

/// A better and a worse sample.
pub(crate) struct Pairs {
    /// The second half of each group is the reference policy's: the seed of its draws.
    reference_seed: Option<u64>,
}

impl Pairs {
    /// All samples are the policy's.
    pub(crate) fn of_policy() -> Pairs {
        Pairs { reference_seed: None }
    }

    /// The second half of each group is the reference policy's.
    pub(crate) fn with_reference(seed: u64) -> Pairs {
        Pairs { reference_seed: Some(seed ^ OPPONENT) }
    }

    /// Which samples are the better and the worse one; none if all are worth the same, or nothing could judge them.
    fn pair(&self, rewards: &[Option<f64>]) -> Option<(usize, usize)> {
        let best = |range: std::ops::Range<usize>, sign: f64| {
            let judged = range.filter_map(|i| Some((i, sign * rewards[i]?)));
            judged.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(i, _)| i)
        };
        let (one, other) = match self.reference_seed {
            None => (best(0..rewards.len(), 1.0)?, best(0..rewards.len(), -1.0)?),
            Some(_) => {
                let half = rewards.len() / 2;
                (best(0..half, 1.0)?, best(half..rewards.len(), 1.0)?)
            }
        };
        let (reward, opponents) = (rewards[one]?, rewards[other]?);
        match reward.partial_cmp(&opponents)? {
            std::cmp::Ordering::Greater => Some((one, other)),
            std::cmp::Ordering::Less => Some((other, one)),
            std::cmp::Ordering::Equal => None,
        }
    }
}

/// The first half of `n` samples.
fn halves(n: usize) -> (usize, usize) {
    (n / 2, n - n / 2)
}

/// A group's rewards.
fn rewards(records: &[RolloutRecord]) -> Vec<Option<f64>> {
    records.iter().map(|record| record.reward).collect()
}

/// Groups of two halves.
fn joined(first: Vec<Vec<Drawn>>, second: Vec<Vec<Drawn>>) -> Vec<Vec<Drawn>> {
    first.into_iter().zip(second).map(|(a, b)| a.into_iter().chain(b).collect()).collect()
}

/// The reference as a model of its own, which the stage of a method that samples from it always has.
fn own_model(reference: Option<&Reference>) -> &Model {
    let own = reference.and_then(Reference::own_model);
    own.unwrap_or_else(|| {
        panic!("a method that samples from the reference has a model for it, not {reference:?}")
    })
}

impl Credit for Pairs {
    fn sample(
        &self,
        sampler: &Sampler<'_>,
        model: &Model,
        reference: Option<&Reference>,
        prompts: &[Prompt<'_>],
    ) -> Result<Vec<Vec<Drawn>>> {
        let Some(seed) = self.reference_seed else { return sampler.samples(model, prompts) };
        let (n_policy, n_reference) = halves(sampler.n());
        let first = sampler.of_size(n_policy).samples(model, prompts)?;
        let second = sampler.of_size(n_reference).seeded(seed).samples(own_model(reference), prompts)?;
        Ok(joined(first, second))
    }

    fn judge(
        &mut self,
        round: &JudgedRound<'_>,
        examples: &[Example],
        records: &mut [RolloutRecord],
    ) -> Result<Figures> {
        let (mut n_pairs, mut difference) = (0, 0.0);
        for group in records.chunk_by_mut(|a, b| a.group == b.group) {
            let Some((chosen, rejected)) = self.pair(&rewards(group)) else { continue };
            (group[chosen].advantage, group[rejected].advantage) = (1.0, -1.0);
            difference += group[chosen].reward.unwrap_or(0.0) - group[rejected].reward.unwrap_or(0.0);
            n_pairs += 1;
        }
        let mut figures = round.reward_metrics()?;
        figures.push(("pairs/ties".to_owned(), 1.0 - n_pairs as f64 / examples.len().max(1) as f64));
        if n_pairs > 0 {
            figures.push(("pairs/reward_difference".to_owned(), difference / n_pairs as f64));
        }
        figures.extend(ended(examples));
        Ok(figures)
    }

    fn apply(&self, records: &[RolloutRecord], group: &mut Example) {
        let pair = self.pair(&rewards(records));
        let n_policy = match self.reference_seed {
            Some(_) => halves(records.len()).0,
            None => records.len(),
        };
        let replies = std::mem::take(&mut group.replies);
        let side = |i: usize, kind: CompletionKind| Reply {
            kind,
            is_reference_sample: i >= n_policy,
            ..replies[i].clone()
        };
        let trains = |&(chosen, rejected): &(usize, usize)| {
            // Of a reply that is masked there is nothing to compare.
            [chosen, rejected].iter().all(|&i| replies[i].weights.iter().any(|w| *w > 0.0))
        };
        if let Some((chosen, rejected)) = pair.filter(trains) {
            group.replies =
                vec![side(chosen, CompletionKind::Chosen), side(rejected, CompletionKind::Rejected)];
        }
    }

    fn keeps_groups(&self) -> bool {
        true
    }

    fn samples_reference(&self) -> bool {
        self.reference_seed.is_some()
    }
}

/// TRL's figure of samples that ended by themselves.
fn ended(examples: &[Example]) -> Figures {
    let replies: Vec<&Reply> = examples.iter().flat_map(|group| &group.replies).collect();
    let n_ended = replies.iter().filter(|reply| !reply.is_truncated).count();
    vec![("val/contain_eos_token".to_owned(), n_ended as f64 / replies.len().max(1) as f64)]
}

/// Samples of the policy against samples of its geometric mixture with the reference.
pub(crate) struct Mixture {
    coef: f64,
    seed: u64,
}

impl Mixture {
    /// The reference's share in the mixture, and the seed of its draws.
    pub(crate) fn new(coef: f64, seed: u64) -> Mixture {
        Mixture { coef, seed: seed ^ OPPONENT }
    }
}

/// The probability that a sample beats its opponent; none where one of them could not be judged.
fn win(rewards: &[Option<f64>], i: usize) -> Option<f64> {
    let opponent = rewards.len() / 2 + i;
    Some(1.0 / (1.0 + ((*rewards.get(opponent)?)? - rewards[i]?).exp()))
}

impl Credit for Mixture {
    fn sample(
        &self,
        sampler: &Sampler<'_>,
        model: &Model,
        reference: Option<&Reference>,
        prompts: &[Prompt<'_>],
    ) -> Result<Vec<Vec<Drawn>>> {
        let (n_policy, n_opponents) = halves(sampler.n());
        let first = sampler.of_size(n_policy).samples(model, prompts)?;
        let opponents = sampler.of_size(n_opponents).seeded(self.seed);
        let second = mixture::groups(&opponents, model, own_model(reference), self.coef, prompts)?;
        Ok(joined(first, second))
    }

    fn judge(
        &mut self,
        round: &JudgedRound<'_>,
        examples: &[Example],
        records: &mut [RolloutRecord],
    ) -> Result<Figures> {
        for group in records.chunk_by_mut(|a, b| a.group == b.group) {
            let rewards = rewards(group);
            for (i, record) in group.iter_mut().enumerate().take(rewards.len() / 2) {
                record.advantage = win(&rewards, i).map_or(0.0, |p| (p - 0.5) as f32);
            }
        }
        let mut figures = round.reward_metrics()?;
        figures.extend(ended(examples));
        Ok(figures)
    }

    fn apply(&self, records: &[RolloutRecord], group: &mut Example) {
        let rewards = rewards(records);
        let replies = std::mem::take(&mut group.replies).into_iter().take(halves(rewards.len()).0);
        group.replies = replies
            .enumerate()
            .filter_map(|(i, reply)| Some(Reply { label: win(&rewards, i)? as f32, ..reply }))
            .collect();
    }

    fn samples_reference(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_chosen_the_worst_rejected_and_a_tie_is_no_pair() {
        let check = |pairs: &Pairs, rewards: &[Option<f64>], expected| {
            assert_eq!(pairs.pair(rewards), expected, "{rewards:?}");
        };
        let (own, both) = (Pairs::of_policy(), Pairs::with_reference(1));
        check(&own, &[Some(0.0), Some(1.0)], Some((1, 0)));
        check(&own, &[Some(1.0), Some(0.5), Some(-1.0), None], Some((0, 2)));
        check(&own, &[Some(1.0), Some(1.0)], None);
        check(&own, &[Some(1.0), None], None);
        check(&own, &[Some(1.0)], None);
        check(&both, &[Some(0.0), Some(2.0), Some(3.0), Some(1.0)], Some((2, 1)));
        check(&both, &[Some(0.0), Some(2.0), Some(2.0), Some(1.0)], None);
        check(&both, &[Some(0.0), None], None);
    }

    #[test]
    fn a_sample_wins_by_the_difference_of_rewards() {
        assert_eq!(win(&[Some(1.0), Some(1.0)], 0), Some(0.5));
        let p = win(&[Some(0.0), Some(2.0), Some(0.0), Some(0.0)], 1).unwrap();
        assert!((p - 1.0 / (1.0 + (-2.0_f64).exp())).abs() < 1e-12);
        assert_eq!(win(&[Some(1.0), None], 0), None);
    }
}
