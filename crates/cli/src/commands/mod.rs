//! The commands, one file each: `Args` with its help, and `run`.

mod chat;
mod data;
mod data_convert;
mod data_curate;
mod data_decontaminate;
mod data_inspect;
mod data_mix;
mod data_step_labels;
mod doctor;
mod eval;
mod export;
mod feedback;
mod fuse;
mod gate;
pub(crate) mod generate;
mod list;
mod merge;
mod plan;
mod plan_model;
mod report;
mod rollouts;
mod run;
mod score;
mod score_rewards;
mod search;
mod serve;
mod sweep;
pub(crate) mod verify;
mod verify_invariance;
mod verify_resume;
mod why;

use crate::Context;

/// Every command.
#[derive(clap::Subcommand)]
#[allow(clippy::large_enum_variant, reason = "one is made in the life of the program")]
pub(crate) enum Command {
    /// Run a recipe: data checked, model trained, measured and written
    Run(run::Args),
    /// What a recipe, or training any model on any hardware, would take: tokens, steps, memory, time, cost
    Plan(plan::Args),
    /// Run a verifier over a file of replies, against labels
    Verify(verify::Args),
    /// What a run was worth: an HTML page, or a model card
    Report(report::Args),
    /// Why two runs differ
    Why(why::Args),
    /// Prove that a run that is stopped and resumed ends in the same bytes
    VerifyResume(verify_resume::Args),
    /// Prove that micro-batches, packing and recomputation change no gradient
    VerifyInvariance(verify_invariance::Args),
    /// Run variants of a recipe, and compare them
    Sweep(sweep::Args),
    /// Measure models by benchmarks, with intervals
    Eval(Box<eval::Args>),
    /// Fail when a model lost more than is allowed
    Gate(gate::Args),
    /// Read the samples that a run learned from, or train on a step of them again
    Rollouts(rollouts::Args),
    /// Log-probabilities of every token of given texts
    Score(score::Args),
    /// Sample continuations of many prompts
    Generate(generate::Args),
    /// Better replies by choosing among many, or by searching step by step
    Search(Box<search::Args>),
    /// Talk with a model
    Chat(chat::Args),
    /// Answer the OpenAI protocol with a model
    Serve(serve::Args),
    /// Feedback of a model by a constitution: revisions, preferences, audits of judges
    Feedback(feedback::Args),
    /// Fold an adapter into its model, and prove that nothing changed
    Merge(merge::Args),
    /// Make several models of one shape into one
    Fuse(fuse::Args),
    /// Write a model for other programs, and prove that it is the same
    Export(export::Args),
    /// Look at data, convert, curate and mix them
    Data(data::Args),
    /// What can be chosen: objectives, optimizers, layouts, tasks, recipe keys, ...
    List(list::Args),
    /// What this machine offers, measured
    Doctor(doctor::Args),
}

impl Command {
    /// Does what is asked.
    ///
    /// # Errors
    /// Whatever went wrong, for `main` to print.
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<()> {
        match self {
            Command::Run(args) => run::run(args, context),
            Command::Plan(args) => plan::run(args, context),
            Command::Verify(args) => verify::run(args, context),
            Command::Report(args) => report::run(args, context),
            Command::Why(args) => why::run(args, context),
            Command::VerifyResume(args) => verify_resume::run(args, context),
            Command::VerifyInvariance(args) => verify_invariance::run(args, context),
            Command::Sweep(args) => sweep::run(args, context),
            Command::Eval(args) => eval::run(args, context),
            Command::Gate(args) => gate::run(args, context),
            Command::Rollouts(args) => rollouts::run(args, context),
            Command::Score(args) => score::run(args, context),
            Command::Generate(args) => generate::run(args, context),
            Command::Search(args) => search::run(args, context),
            Command::Chat(args) => chat::run(args, context),
            Command::Serve(args) => serve::run(args, context),
            Command::Feedback(args) => feedback::run(args, context),
            Command::Merge(args) => merge::run(args, context),
            Command::Fuse(args) => fuse::run(args, context),
            Command::Export(args) => export::run(args, context),
            Command::Data(args) => data::run(args, context),
            Command::List(args) => list::run(args, context),
            Command::Doctor(args) => doctor::run(args, context),
        }
    }
}
