//! Stages that learn from their own samples: prompts in, groups of replies sampled, judged, and given advantages.
//!
//! ```text
//! prompts --sample--> groups --judge--> rewards --pt-rl--> advantages --> micro-batches
//!    ^                  |                  |
//!    +--- other prompts in place of groups without signal (dynamic sampling)
//! ```
//!
//! On-policy and synchronous: the samples of a round are drawn with the weights that the round begins with, by the trainer's own
//! kernels. A round is a pure function of those weights, the plan and the curriculum, so a resumed run samples the same.

mod advantages;
mod batches;
mod best;
mod check;
mod credit;
mod drawing;
pub(crate) mod environment;
mod judge;
pub(crate) mod measured;
mod mixture;
mod own_logp;
mod pairs;
mod play;
mod policy;
mod probe;
pub(crate) mod process_reward;
mod reference;
mod replay;
pub(crate) mod reward_model;
mod round;
mod sampler;
pub(crate) mod server;
mod source;
mod taught;
mod values;
mod weigh;

pub(crate) use batches::{group_examples, pack_groups, texts_beside};
pub(crate) use check::check_rollout;
pub(crate) use credit::{Credit, build_credit, values_of_critic};
pub use judge::{
    LOCAL_VERIFIERS, LocalVerifier, build_rewards, build_verifier, build_verifier_of_rows, prompt_text,
};
pub(crate) use probe::{LongestRounds, decode_speed};
pub(crate) use reference::{Reference, ReferenceKind};
pub use replay::{ReplayOptions, Replayed, replay};
pub(crate) use sampler::Sampler;
pub(crate) use source::{Rounds, RoundsOptions};
