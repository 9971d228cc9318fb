//! The engine's side: one thread that owns the model and steps all jobs together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use tokio::sync::{mpsc, oneshot};

use crate::sampling::Sampling;

/// A prompt to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Token ids, at least one.
    pub prompt_ids: Vec<u32>,
    /// How.
    pub sampling: Sampling,
    /// Most tokens of a sample, at least 1: the request's, or what the context has room for.
    pub max_new_tokens: usize,
    /// Tokens that end a sample.
    pub stop_token_ids: Vec<u32>,
    /// With the prompt, what the draws depend on.
    pub seed: u64,
    /// How many of the most probable tokens are to be reported beside each sampled one.
    pub top_logprobs: usize,
}

/// A token that was sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The id.
    pub token: u32,
    /// Its log-probability at the sampling temperature, in nats.
    pub logprob: f32,
    /// The most probable tokens, in order.
    pub top: Vec<(u32, f32)>,
}

/// What a token of a given text was worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Its log-probability after those before it, in nats.
    pub logprob: f32,
    /// The most probable tokens there, in order.
    pub top: Vec<(u32, f32)>,
}

/// What happens to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token of one of its samples.
    Token {
        /// Which.
        sample: usize,
        /// The token.
        sampled: Sampled,
    },
    /// One of its samples ended.
    Finished {
        /// Which.
        sample: usize,
        /// By an end token, which is the last one given, or by a stop string; otherwise by length.
        stopped: bool,
    },
    /// It cannot go on.
    Failed(BackendError),
    /// It was cut because the server ends.
    Cut,
}

/// Why a job cannot be done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BackendError {
    /// The job is wrong.
    #[error("{0}")]
    Job(String),
    /// The engine is.
    #[error("{0}")]
    Engine(String),
}

/// Samples tokens for many jobs at once. Lives on one thread.
pub trait Backend {
    /// Takes a job under a new name.
    ///
    /// # Errors
    /// [`BackendError`], if it can never be done.
    fn submit(&mut self, id: u64, job: &Job) -> Result<(), BackendError>;

    /// Computes the next tokens and reports what happened.
    fn step(&mut self, emit: &mut dyn FnMut(u64, Event));

    /// Forgets a job; nothing more is emitted of it.
    fn cancel(&mut self, id: u64);

    /// Scores each token of `ids` after the first, with the `top` most probable tokens in its place.
    ///
    /// # Errors
    /// [`BackendError`].
    fn score(&mut self, ids: &[u32], top: usize) -> Result<Vec<Scored>, BackendError>;
}

type Events = mpsc::UnboundedSender<Event>;
type Scores = oneshot::Sender<Result<Vec<Scored>, BackendError>>;

/// What the engine's thread is told.
enum Command {
    Submit(Job, Events),
    Score(Vec<u32>, usize, Scores),
    CutAll,
    End,
}

/// The connections' end.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    commands: Sender<Command>,
    state: Arc<State>,
}

/// The engine thread's end.
pub struct Commands {
    receiver: Receiver<Command>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    gone: AtomicBool,
    cut: AtomicBool,
}

/// Both ends.
pub(crate) fn engine_channel() -> (EngineHandle, Commands) {
    let (commands, receiver) = channel();
    let state = Arc::new(State::default());
    (EngineHandle { commands, state: state.clone() }, Commands { receiver, state })
}

/// A job's samples, as one connection sees them. Dropping it cancels the job.
pub(crate) struct JobEvents {
    events: mpsc::UnboundedReceiver<Event>,
    state: Arc<State>,
}

impl JobEvents {
    /// The next event; `None` if the engine's thread has died.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        // What came before the end of the server is of no use to anybody.
        if self.state.cut.load(Ordering::SeqCst) {
            return Some(Event::Cut);
        }
        let event = self.events.recv().await;
        // The engine tells how each job ends; it did not come to that.
        if event.is_none() {
            self.state.gone.store(true, Ordering::SeqCst);
        }
        event
    }
}

impl EngineHandle {
    /// Gives a job to the engine. An engine that is gone shows at the first event.
    pub(crate) fn submit(&self, job: Job) -> JobEvents {
        let (sender, events) = mpsc::unbounded_channel();
        // Where nobody listens, the sender is dropped, and the events end.
        let _ = self.commands.send(Command::Submit(job, sender));
        JobEvents { events, state: self.state.clone() }
    }

    /// Scores a text; `None` if the engine's thread has died.
    pub(crate) async fn score(&self, ids: Vec<u32>, top: usize) -> Option<Result<Vec<Scored>, BackendError>> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Score(ids, top, sender)).ok()?;
        receiver.await.ok()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state.gone.load(Ordering::SeqCst)
    }

    pub(crate) fn cut_all(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
        let _ = self.commands.send(Command::CutAll);
    }

    pub(crate) fn end(&self) {
        let _ = self.commands.send(Command::End);
    }
}

/// Says that the engine is gone, however its thread ends.
struct GoneOnDrop(Arc<State>);

impl Drop for GoneOnDrop {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::SeqCst);
    }
}

/// Serves jobs until the server ends.
pub fn run(backend: &mut dyn Backend, commands: Commands) {
    let _gone = GoneOnDrop(commands.state.clone());
    let mut jobs: BTreeMap<u64, Running> = BTreeMap::new();
    let mut next_id = 0;
    loop {
        let command = if jobs.is_empty() {
            match commands.receiver.recv() {
                Ok(command) => Some(command),
                Err(_) => return,
            }
        } else {
            match commands.receiver.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            }
        };
        match command {
            Some(Command::Submit(job, events)) => {
                next_id += 1;
                match backend.submit(next_id, &job) {
                    Ok(()) => drop(jobs.insert(next_id, Running { events, n_left: job.sampling.n })),
                    Err(error) => drop(events.send(Event::Failed(error))),
                }
            }
            Some(Command::Score(ids, top, reply)) => {
                if !reply.is_closed() {
                    let _ = reply.send(backend.score(&ids, top));
                }
                // Samples go on however many texts wait to be scored.
                advance(backend, &mut jobs);
            }
            Some(Command::CutAll) => {
                for (id, job) in std::mem::take(&mut jobs) {
                    backend.cancel(id);
                    let _ = job.events.send(Event::Cut);
                }
            }
            Some(Command::End) => return,
            // All that came was taken in: compute.
            None => advance(backend, &mut jobs),
        }
    }
}

struct Running {
    events: Events,
    /// Samples that are not over.
    n_left: usize,
}

fn advance(backend: &mut dyn Backend, jobs: &mut BTreeMap<u64, Running>) {
    jobs.retain(|&id, job| {
        let is_wanted = !job.events.is_closed();
        if !is_wanted {
            backend.cancel(id);
        }
        is_wanted
    });
    if jobs.is_empty() {
        return;
    }
    backend.step(&mut |id, event| {
        let Some(job) = jobs.get_mut(&id) else { return };
        match event {
            Event::Finished { .. } => job.n_left -= 1,
            Event::Failed(_) | Event::Cut => job.n_left = 0,
            Event::Token { .. } => {}
        }
        // A client that went away is seen before the next step.
        let _ = job.events.send(event);
        if job.n_left == 0 {
            jobs.remove(&id);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;

    /// Writes down what it is told to do.
    #[derive(Default)]
    struct Diary(Vec<&'static str>);

    impl Backend for Diary {
        fn submit(&mut self, _id: u64, _job: &Job) -> Result<(), BackendError> {
            self.0.push("submit");
            Ok(())
        }

        fn step(&mut self, _emit: &mut dyn FnMut(u64, Event)) {
            self.0.push("step");
        }

        fn cancel(&mut self, _id: u64) {}

        fn score(&mut self, _ids: &[u32], _top: usize) -> Result<Vec<Scored>, BackendError> {
            self.0.push("score");
            Ok(Vec::new())
        }
    }

    #[test]
    fn samples_go_on_between_texts_to_be_scored() {
        let (handle, commands) = engine_channel();
        let mut fields = Fields::parse(b"{}").unwrap();
        let job = Job {
            prompt_ids: vec![1],
            sampling: Sampling::take(&mut fields, None).unwrap(),
            max_new_tokens: 9,
            stop_token_ids: Vec::new(),
            seed: 0,
            top_logprobs: 0,
        };
        let _events = handle.submit(job);
        let mut replies = Vec::new();
        for _ in 0..3 {
            let (sender, receiver) = oneshot::channel();
            replies.push(receiver);
            handle.commands.send(Command::Score(vec![1, 2], 0, sender)).unwrap();
        }
        handle.end();
        let mut diary = Diary::default();
        run(&mut diary, commands);
        assert_eq!(diary.0, ["submit", "score", "step", "score", "step", "score", "step"]);
    }
}
