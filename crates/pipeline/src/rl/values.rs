//! Advantages of tokens, by a value head or a critic: PPO.
//!
//! A value head reads the policy's own hidden states and trains with the policy; a critic is a model of its own with such a head,
//! which takes a step of its own in every step of the policy, at its own learning rate, and is part of every checkpoint. The value
//! of a token is read before the token, where it was chosen. Values are those of the weights that sampled, so they are kept in the rollouts file with the advantages and returns made of them (see
//! [`pt_rl::ppo`]). The coefficient of the divergence is fixed or follows a target; its state is part of every checkpoint.

use std::collections::BTreeMap;

use pt_engine::Tape;
use pt_models::Model;
use pt_recipe::PlannedPpo;
use pt_rl::ppo::{PpoConfig, RewardKl, Sampled};
use pt_rl::{KlController, RolloutRecord, TokenCredit};
use pt_run::{OwnedTensor, TensorEntry};
use pt_train::{Example, MicroBatch, Reply, ScoredToken, TrainError, Trainer};
use serde::{Deserialize, Serialize};

use super::credit::{Credit, Figures, JudgedRound};
use super::group_examples;
use crate::error::Result;

/// Values, generalised advantage estimation, and the divergence in the reward.
pub(crate) struct Values {
    config: PpoConfig,
    kl: KlController,
    /// The model that says values; `None`: the policy does.
    critic: Option<Box<Trainer>>,
    /// Steps of the critic that a checkpoint knows of.
    critic_steps: u64,
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
struct State {
    kl: KlController,
    critic_steps: u64,
}

impl Values {
    /// # Errors
    /// Options out of range.
    pub(crate) fn new(planned: &PlannedPpo) -> Result<Values> {
        let kl = match planned.kl_target {
            None => KlController::Fixed { coef: planned.kl_coef },
            Some(target) => {
                KlController::Adaptive { coef: planned.kl_coef, target, horizon: planned.kl_horizon }
            }
        };
        kl.check()?;
        let config = PpoConfig {
            kl_coef: planned.kl_coef,
            kl_estimator: match planned.kl_estimator {
                pt_recipe::RewardKl::K1 => RewardKl::K1,
                pt_recipe::RewardKl::K3 => RewardKl::K3,
            },
            gamma: planned.gamma,
            lam: planned.lam,
            whiten_rewards: planned.whiten_rewards,
            whiten_advantages: planned.whiten_advantages,
            // The stage takes it off the reward itself, whatever is made of that.
            missing_eos_penalty: None,
        };
        Ok(Values { config, kl, critic: None, critic_steps: 0 })
    }

    /// The same with a critic.
    pub(crate) fn with_critic(self, critic: Trainer) -> Values {
        Values { critic: Some(Box::new(critic)), ..self }
    }

    /// TRL's figures of a round.
    fn figures(&self, samples: &[Sampled<'_>], kls: &[f64], is_ended: &[bool]) -> Figures {
        let n = samples.len().max(1) as f64;
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n;
        let kl = mean(&mut kls.iter().copied());
        let entropy = mean(
            &mut samples.iter().map(|sample| -sample.logp.iter().map(|&logp| f64::from(logp)).sum::<f64>()),
        );
        let judged: Vec<f64> = samples.iter().filter_map(|sample| sample.score).collect();
        let scores = judged.iter().sum::<f64>() / judged.len().max(1) as f64;
        let non_score = -self.config.kl_coef * kl;
        [
            ("objective/kl", kl),
            ("objective/kl_coef", self.config.kl_coef),
            ("objective/entropy", entropy),
            ("objective/non_score_reward", non_score),
            ("objective/scores", scores),
            ("objective/rlhf_reward", scores + non_score),
            ("val/num_eos_tokens", is_ended.iter().filter(|is_ended| **is_ended).count() as f64),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

impl Credit for Values {
    fn judge(
        &mut self,
        round: &JudgedRound<'_>,
        examples: &[Example],
        records: &mut [RolloutRecord],
    ) -> Result<Figures> {
        let model = self.critic.as_ref().map_or(round.model, |critic| &critic.model);
        let values: Vec<Vec<f32>> =
            examples.iter().flat_map(|group| values_of(model, round, group)).collect();
        let replies: Vec<&Reply> = examples.iter().flat_map(|group| &group.replies).collect();
        let samples: Vec<Sampled<'_>> = records
            .iter()
            .zip(&values)
            .zip(&replies)
            .map(|((record, values), reply)| Sampled {
                score: record.reward,
                logp: &record.logprobs,
                reference_logp: Some(&*reply.known.reference_logp).filter(|logp| !logp.is_empty()),
                values,
                has_ended: !reply.is_truncated,
            })
            .collect();
        self.config.kl_coef = self.kl.coef();
        let targets = self.config.targets(&samples)?;
        let kls: Vec<f64> = samples.iter().map(|sample| self.divergence(sample)).collect();
        let ended: Vec<bool> = samples.iter().map(|sample| sample.has_ended).collect();
        let mut figures = self.figures(&samples, &kls, &ended);
        self.kl.update(kls.iter().sum::<f64>() / kls.len().max(1) as f64, kls.len());
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
        let credits: Vec<TokenCredit> = targets
            .iter()
            .zip(&values)
            .map(|(target, values)| TokenCredit {
                values: values.clone(),
                advantages: narrow(&target.advantages),
                returns: narrow(&target.returns),
            })
            .collect();
        for (record, credit) in records.iter_mut().zip(credits) {
            record.advantage = credit.advantages.first().copied().unwrap_or(0.0);
            record.tokens = credit;
        }
        figures.extend(round.reward_metrics()?);
        Ok(figures)
    }

    fn apply(&self, records: &[RolloutRecord], group: &mut Example) {
        for (reply, record) in group.replies.iter_mut().zip(records) {
            let TokenCredit { values, advantages, returns } = &record.tokens;
            reply.known.advantages = advantages.clone();
            // A sample that nothing could judge, or that is masked, teaches the value head nothing either.
            let is_judged = record.reward.is_some();
            reply.scored = states(reply)
                .zip(returns.iter().zip(values))
                .map(|((position, weight), (&target, &value))| ScoredToken {
                    position,
                    target,
                    weight: if is_judged { weight } else { 0.0 },
                    old_value: Some(value),
                })
                .collect();
        }
    }

    fn compares_groups(&self) -> bool {
        false
    }

    fn reads_reference(&self) -> bool {
        // A coefficient of 0 stays 0, whether it follows a target or not.
        self.kl.coef() > 0.0
    }

    fn train(&mut self, micro_batches: &[MicroBatch]) -> Result<Figures> {
        let Some(critic) = &mut self.critic else { return Ok(Vec::new()) };
        let learns =
            |batch: &MicroBatch| batch.predictions().score_weights.iter().any(|weight| *weight > 0.0);
        let stats = match micro_batches.iter().any(learns) {
            true => critic.step(micro_batches)?.0,
            false => critic.skip_step(),
        };
        let own = [
            ("critic/loss", stats.loss),
            ("critic/grad_norm", stats.grad_norm),
            ("critic/learning_rate", stats.learning_rate),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok(own.chain(stats.metrics).collect())
    }

    fn tensors(&self) -> Vec<TensorEntry<'static>> {
        let mut tensors: Vec<_> = self.critic.iter().flat_map(|critic| critic.export()).collect();
        tensors.iter_mut().for_each(|tensor| tensor.name.insert_str(0, CRITIC));
        tensors
    }

    fn restore_tensors(&mut self, tensors: &mut BTreeMap<String, OwnedTensor>) -> Result<()> {
        let Some(critic) = &mut self.critic else { return Ok(()) };
        critic.import_at(self.critic_steps, &mut |name| {
            let name = format!("{CRITIC}{name}");
            tensors.remove(&name).ok_or_else(|| TrainError::Mismatch {
                name: name.clone(),
                found: "no such tensor".to_owned(),
                expected: "the critic's".to_owned(),
            })
        })?;
        Ok(())
    }

    fn state(&self) -> serde_json::Value {
        let critic_steps = self.critic.as_ref().map_or(0, |critic| critic.steps_done());
        serde_json::to_value(State { kl: self.kl, critic_steps }).expect("numbers are JSON")
    }

    fn restore(&mut self, state: &serde_json::Value) -> std::result::Result<(), serde_json::Error> {
        let State { kl, critic_steps } = serde_json::from_value(state.clone())?;
        (self.kl, self.critic_steps) = (kl, critic_steps);
        Ok(())
    }
}

impl Values {
    /// A sample's divergence from the reference policy, summed over its tokens.
    fn divergence(&self, sample: &Sampled<'_>) -> f64 {
        let reference = sample.reference_logp.unwrap_or(&[]);
        let tokens = sample.logp.iter().zip(reference);
        tokens.map(|(logp, reference)| self.config.kl_estimator.estimate(*logp, *reference)).sum()
    }
}

/// What the names of the critic's tensors in a checkpoint begin with.
const CRITIC: &str = "critic.";

/// Where each token of a reply was chosen, and the token's weight.
fn states(reply: &Reply) -> impl Iterator<Item = (Option<usize>, f32)> {
    reply.weights.iter().enumerate().map(|(t, &weight)| (t.checked_sub(1), weight))
}

/// What the value head says before each token of a group's replies, the group cut as in training.
fn values_of(model: &Model, round: &JudgedRound<'_>, group: &Example) -> Vec<Vec<f32>> {
    let mut prompt = group.clone();
    let replies = std::mem::take(&mut prompt.replies);
    let parts = group_examples(&prompt, replies, round.tokens_per_micro_batch);
    parts.into_iter().flat_map(|part| values_of_part(model, round.dtype, part)).collect()
}

fn values_of_part(model: &Model, dtype: pt_engine::Dtype, mut whole: Example) -> Vec<Vec<f32>> {
    for reply in &mut whole.replies {
        reply.scored = states(reply)
            .map(|(position, _)| ScoredToken { position, target: 0.0, weight: 1.0, old_value: None })
            .collect();
    }
    let lengths: Vec<usize> = whole.replies.iter().map(|reply| reply.token_ids.len()).collect();
    let micro_batch = MicroBatch::new(vec![whole]);
    let rows = micro_batch.predictions().score_rows;
    let batch = micro_batch.batch().expect("prompts and replies have tokens");
    let mut tape = Tape::inference(&model.params, &batch, dtype);
    let hidden = model.arch.hidden(&mut tape, false);
    let head = model.score_head().expect("the policy of ppo, or its critic, has a value head");
    let mut values = tape.score_head(&hidden, head, &rows).value().to_f32().into_iter();
    lengths.into_iter().map(|n| values.by_ref().take(n).collect()).collect()
}
