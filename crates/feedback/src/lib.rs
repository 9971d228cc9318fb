//! AI feedback: critique and revision to supervised data, judged pairs to preference data, and audits of judges.
//!
//! ```text
//! Constitution --draw--> principles
//! prompts --revise--> reply -> (critique -> revision) x rounds --> rows for SFT          (stage 1)
//! pairs   --judge---> votes in both orders, by principle      --> rows for DPO, reward  (stage 2)
//! prompts --answer--> replies --> rows for SFT (distillation from a teacher that can only be asked)
//! labelled pairs --audit--> figures against thresholds --> an audit file, without which `llm_judge` is no reward
//! ```
//!
//! Both stages are Constitutional AI (Bai et al. 2022, arXiv:2212.08073). Whoever answers is a [`Chat`]: a model of this
//! machine ([`LocalChat`]) or an OpenAI-compatible server ([`ServerChat`]). Answers are kept on disk by content, so that a
//! run that was killed goes on where it was and ends in the same bytes. A call that fails, or an answer that is
//! nonsense, is data: counted, with its reason.
//!
//! Left out: red-team prompts (bring your own, or generate them with `posttrain generate`), critiques of images.

mod answer;
mod audit;
mod chat;
mod constitution;
mod error;
mod figures;
mod judge;
mod llm_judge;
mod local;
mod pairs;
mod report;
mod revise;
mod server;
mod verdict;
mod wording;

pub use answer::{AnswerOptions, AnswerReport, Answered, answer};
pub use audit::{Audit, Check, Drawing, GradeOptions, Kind, Subject, Thresholds, audit_grader, audit_scores};
pub use chat::{Answer, Answers, Ask, AskOptions, Chat, Counted, Tally, Token, Turn};
pub use constitution::{BUILT_IN, Constitution, Principle, RevisionExample};
pub use error::{FeedbackError, Result};
pub use figures::{Figures, Observation, Share};
pub use judge::{
    Choice, JudgeOptions, JudgeReport, Judged, JudgedBy, Judgement, Judgements, Order, Outcome, Row, Vote,
    judge,
};
pub use llm_judge::{
    GRADE_TOKENS, LLM_JUDGE, LLM_JUDGE_OPTIONS, LLM_JUDGE_READS, LLM_JUDGE_SUMMARY, build_llm_judge, read_key,
};
pub use local::{LocalChat, identity_of};
pub use pairs::{Candidate, Pair, pairs_of, sample_pairs};
pub use report::Page;
pub use revise::{Chain, Failure, ReviseOptions, ReviseReport, Revised, RevisedBy, Step, revise};
pub use server::ServerChat;
