//! Groups of samples drawn, with or without an environment between the turns.
//!
//! The policy never waits for a slow tool, nor a tool for the policy: reactions are made by a few threads of their own, and a
//! conversation goes on when its answer is there, whatever turn the others are at. What each comes to does not depend on when.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};

use pt_environments::{Episode, Outcome, Reaction, Start, Turn};
use pt_rollout::{Request, SamplingParams};
use pt_text::tools::Reply;
use pt_text::{MaskPolicy, Masker};
use pt_verify::Verdict;

use super::environment::{Stage, scene_of};
use super::play::{End, Next, Play, Scene};
use super::policy::{Ended, Policy};
use super::sampler::{Drawn, Prompt, Sampler};
use crate::error::{PipelineError, Result};

/// A group for each prompt. Samples that were lost on the way are missing.
///
/// # Errors
/// Those of sampling, of a template that cannot go on, and of an environment that panics.
pub(super) fn draw(
    policy: &mut dyn Policy,
    sampler: &Sampler<'_>,
    prompts: &[Prompt<'_>],
) -> Result<Vec<Vec<Drawn>>> {
    match sampler.stage() {
        None => draw_turn(policy, sampler, prompts),
        Some(stage) => draw_episodes(policy, sampler, stage, prompts),
    }
}

fn draw_turn(
    policy: &mut dyn Policy,
    sampler: &Sampler<'_>,
    prompts: &[Prompt<'_>],
) -> Result<Vec<Vec<Drawn>>> {
    let mut groups: Groups = empty(prompts.len(), sampler.n());
    let params = Arc::new(sampler.params().clone());
    for (ticket, prompt) in prompts.iter().enumerate() {
        policy.submit(ticket, prompt.request(), params.clone())?;
    }
    while !policy.is_idle() {
        for Ended { ticket, index, sample } in policy.advance(true)? {
            groups[ticket][index] = sample.map(|sample| sampler.drawn(sample)).transpose()?;
        }
    }
    Ok(present(groups))
}

type Groups = Vec<Vec<Option<Drawn>>>;

fn empty(n_groups: usize, n: usize) -> Groups {
    (0..n_groups).map(|_| (0..n).map(|_| None).collect()).collect()
}

fn present(groups: Groups) -> Vec<Vec<Drawn>> {
    groups.into_iter().map(|group| group.into_iter().flatten().collect()).collect()
}

/// What a worker is to do for the sample at a place.
struct Job<'e> {
    at: usize,
    episode: Box<dyn Episode + 'e>,
    task: Task,
}

enum Task {
    React { index: usize, text: String, reply: Reply, first_call: usize, is_last: bool },
    End(End),
}

/// What came of it: an answer, or what a panic said.
struct Done<'e> {
    at: usize,
    outcome: std::result::Result<(Box<dyn Episode + 'e>, Answer), String>,
}

enum Answer {
    Reaction(Reaction),
    Told(End, Option<Verdict>),
}

/// What `work` gives, or the words of its panic: whoever waits for a worker must hear of it.
fn caught<T>(work: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| words_of(&*panic))
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave no reason").to_owned()
}

fn work<'e>(jobs: &Mutex<Receiver<Job<'e>>>, done: &Sender<Done<'e>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { at, mut episode, task }) = next else { return };
        let outcome = caught(move || {
            let answer = answer_of(&mut *episode, &task);
            (episode, answer)
        });
        if done.send(Done { at, outcome }).is_err() {
            return;
        }
    }
}

fn answer_of(episode: &mut dyn Episode, task: &Task) -> Answer {
    match task {
        Task::React { index, text, reply, first_call, is_last } => {
            let turn = Turn { index: *index, text, reply, first_call: *first_call, is_last: *is_last };
            Answer::Reaction(episode.react(&turn))
        }
        Task::End(end) => Answer::Told(*end, episode.end(end.as_str())),
    }
}

fn draw_episodes(
    policy: &mut dyn Policy,
    sampler: &Sampler<'_>,
    stage: &Stage,
    prompts: &[Prompt<'_>],
) -> Result<Vec<Vec<Drawn>>> {
    let scenes: Vec<Scene> = prompts.iter().map(|prompt| scene_of(prompt.row())).collect();
    let (jobs, queue) = channel::<Job<'_>>();
    let (done, answers) = channel::<Done<'_>>();
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..stage.n_workers.min(prompts.len() * sampler.n()).max(1) {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || work(queue, &done));
        }
        let masker = Masker::new(sampler.tokenizer(), sampler.template(), MaskPolicy::default());
        let mut drawing = Drawing {
            policy,
            sampler,
            stage,
            prompts,
            masker,
            plays: (0..prompts.len() * sampler.n()).map(|_| None).collect(),
            tickets: Vec::new(),
            results: (0..prompts.len() * sampler.n()).map(|_| None).collect(),
            // Dropped with it, which ends the workers.
            jobs,
            answers,
            n_asked: 0,
        };
        if let Err(error) = drawing.run(&scenes) {
            drawing.abandon();
            return Err(error);
        }
        let mut results = std::mem::take(&mut drawing.results).into_iter();
        Ok(present((0..prompts.len()).map(|_| results.by_ref().take(sampler.n()).collect()).collect()))
    })
}

/// What is written so far, and the episode unless it is with a worker or there is none.
type Playing<'e> = (Play<'e>, Option<Box<dyn Episode + 'e>>);

/// Samples under way, each at its place: group by group.
struct Drawing<'d, 'e> {
    policy: &'d mut dyn Policy,
    sampler: &'d Sampler<'d>,
    stage: &'e Stage,
    prompts: &'d [Prompt<'d>],
    masker: Masker<'d>,
    plays: Vec<Option<Playing<'e>>>,
    /// What each request is for: the first turns of a group, or the next turn of the sample at a place.
    tickets: Vec<Ticket>,
    results: Vec<Option<Drawn>>,
    jobs: Sender<Job<'e>>,
    answers: Receiver<Done<'e>>,
    /// Answers that are awaited.
    n_asked: usize,
}

#[derive(Clone, Copy)]
enum Ticket {
    Group(usize),
    Sample(usize),
}

impl<'e> Drawing<'_, 'e> {
    fn run(&mut self, scenes: &'e [Scene]) -> Result<()> {
        let limits = self.stage.limits;
        let first = self.sampler.params().clone();
        let params =
            Arc::new(SamplingParams { max_new_tokens: first.max_new_tokens.min(limits.max_tokens), ..first });
        for (group, prompt) in self.prompts.iter().enumerate() {
            self.tickets.push(Ticket::Group(group));
            self.policy.submit(self.tickets.len() - 1, prompt.request(), params.clone())?;
        }
        loop {
            let is_idle = self.policy.is_idle();
            if is_idle && self.n_asked == 0 {
                return Ok(());
            }
            // Nobody waits for the other while there is something to do.
            if !is_idle {
                for ended in self.policy.advance(self.n_asked == 0)? {
                    self.taken(ended, scenes)?;
                }
            }
            loop {
                let answer = match is_idle && self.policy.is_idle() && self.n_asked > 0 {
                    true => self.answers.recv().map_err(|_| TryRecvError::Disconnected),
                    false => self.answers.try_recv(),
                };
                match answer {
                    Ok(done) => self.answered(done)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => unreachable!("workers live as long as their queue"),
                }
                if self.n_asked == 0 {
                    break;
                }
            }
        }
    }

    fn taken(&mut self, Ended { ticket, index, sample }: Ended, scenes: &'e [Scene]) -> Result<()> {
        let n = self.sampler.n();
        let at = match self.tickets[ticket] {
            Ticket::Group(group) => group * n + index,
            Ticket::Sample(at) => at,
        };
        // Without its turn a sample is lost, with all that came before; what has begun hears of it.
        let Some(sample) = sample else {
            if self.plays[at].is_some() {
                self.ask(at, Task::End(End::Lost));
            }
            return Ok(());
        };
        if let Ticket::Group(group) = self.tickets[ticket] {
            self.plays[at] = Some(self.begin(group, index, &scenes[group])?);
        }
        let (play, _) = self.plays[at].as_mut().expect("a sample that takes a turn has begun");
        let next = play.taken(sample, self.sampler.tokenizer(), &self.sampler.params().stop_token_ids)?;
        self.follow(at, next)
    }

    fn begin(&self, group: usize, index: usize, scene: &'e Scene) -> Result<Playing<'e>> {
        let prompt = &self.prompts[group];
        let start = Start {
            messages: &scene.messages,
            row: &prompt.row().extra,
            tools: prompt.row().tools.as_deref().unwrap_or_default(),
            seed: key_of(self.sampler.params().seed, prompt.key, index, 0),
        };
        let environment = &self.stage.environment;
        let begun = caught(|| environment.begin(&start));
        let episode = begun.map_err(|problem| self.panicked(group, problem))?;
        Ok((Play::new(scene), Some(episode)))
    }

    fn panicked(&self, group: usize, problem: String) -> PipelineError {
        PipelineError::EnvironmentPanicked {
            origin: self.prompts[group].row().origin.to_string(),
            environment: self.stage.environment.name(),
            problem,
        }
    }

    /// Tells every episode that has begun and has not ended that it is over: an error ends the round.
    fn abandon(&mut self) {
        let held: Vec<usize> =
            (0..self.plays.len()).filter(|&at| matches!(self.plays[at], Some((_, Some(_))))).collect();
        held.into_iter().for_each(|at| self.ask(at, Task::End(End::Lost)));
        while self.n_asked > 0 {
            let Ok(Done { at, outcome }) = self.answers.recv() else { return };
            self.n_asked -= 1;
            // What panicked is gone; what was asked for a reaction when the error came is told now.
            if let (Ok((episode, Answer::Reaction(reaction))), Some((_, held))) =
                (outcome, &mut self.plays[at])
                && matches!(reaction.outcome, Outcome::Continue(_))
            {
                *held = Some(episode);
                self.ask(at, Task::End(End::Lost));
            }
        }
    }

    fn answered(&mut self, Done { at, outcome }: Done<'e>) -> Result<()> {
        self.n_asked -= 1;
        let (episode, answer) = outcome.map_err(|problem| self.panicked(at / self.sampler.n(), problem))?;
        let limits = self.stage.limits;
        let (play, held) = self.plays[at].as_mut().expect("a sample that was asked about is under way");
        *held = Some(episode);
        let next = match answer {
            Answer::Reaction(reaction) => play.answered(reaction, &self.masker, &limits)?,
            Answer::Told(end, verdict) => {
                play.told(verdict);
                Next::Over(end)
            }
        };
        self.follow(at, next)
    }

    fn follow(&mut self, at: usize, next: Next) -> Result<()> {
        match next {
            Next::Ask => {
                let limits = self.stage.limits;
                let (play, _) = self.plays[at].as_ref().expect("it has just taken a turn");
                let Turn { index, text, reply, first_call, is_last } = play.turn(&limits);
                let (text, reply) = (text.to_owned(), reply.clone());
                self.ask(at, Task::React { index, text, reply, first_call, is_last });
            }
            Next::Tell(end) => self.ask(at, Task::End(end)),
            Next::GoOn { ids, max_new_tokens } => self.go_on(at, &ids, max_new_tokens)?,
            Next::Over(End::Lost) => self.plays[at] = None,
            Next::Over(end) => {
                let (play, _) = self.plays[at].take().expect("what ends was under way");
                self.results[at] = Some(play.finish(end));
            }
        }
        Ok(())
    }

    fn ask(&mut self, at: usize, task: Task) {
        let (_, held) = self.plays[at].as_mut().expect("it is under way");
        let episode = held.take().expect("an episode is asked one thing at a time");
        self.n_asked += 1;
        let sent = self.jobs.send(Job { at, episode, task });
        assert!(sent.is_ok(), "workers live as long as their queue");
    }

    /// The next turn of a sample: a request of its own, which shares what was computed of it.
    fn go_on(&mut self, at: usize, ids: &[u32], left: usize) -> Result<()> {
        let (n, first) = (self.sampler.n(), self.sampler.params());
        let prompt = &self.prompts[at / n];
        let n_turns = self.plays[at].as_ref().map_or(0, |(play, _)| play.n_turns());
        let prompt_ids = prompt.token_ids.iter().chain(ids).copied().collect();
        let request = Request { prompt_ids, key: key_of(first.seed, prompt.key, at % n, n_turns) };
        let max_new_tokens = first.max_new_tokens.min(left);
        let params = SamplingParams { n: 1, max_new_tokens, ..first.clone() };
        self.tickets.push(Ticket::Sample(at));
        self.policy.submit(self.tickets.len() - 1, request, Arc::new(params))
    }
}

/// Identifies a later turn's draws, or an episode's own: as good as different for all of them.
fn key_of(seed: u64, prompt_key: u64, sample: usize, turn: usize) -> u64 {
    let words = [seed, prompt_key, sample as u64, turn as u64];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let hash = pt_core::hash::of_parts([b"turn".as_slice(), &bytes]);
    u64::from_str_radix(&hash[..16], 16).expect("a hash is hexadecimal")
}

#[cfg(test)]
mod tests;
