//! Groups of samples drawn, with or without an environment between the turns.
//!
//! The policy never waits for a slow tool, nor a tool for the policy: reactions are made by a few threads of their own, and a
//! conversation goes on when its answer is there, whatever turn the others are at. What each comes to does not depend on when.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};

use pt_environments::{Episode, Reaction, Start, Turn};
use pt_rollout::{Request, SamplingParams};
use pt_text::tools::Reply;
use pt_text::{MaskPolicy, Masker};
use pt_verify::Verdict;

use super::environment::{Stage, scene_of};
use super::play::{End, Next, Play, Scene};
use super::policy::{Ended, Policy};
use super::sampler::{Drawn, Prompt, Sampler};
use crate::error::Result;

/// A group for each prompt. Samples that were lost on the way are missing.
///
/// # Errors
/// Those of sampling, and of a template that cannot go on.
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

/// What came of it.
struct Done<'e> {
    at: usize,
    episode: Box<dyn Episode + 'e>,
    answer: Answer,
}

enum Answer {
    Reaction(Reaction),
    Told(End, Option<Verdict>),
}

fn work<'e>(jobs: &Mutex<Receiver<Job<'e>>>, done: &Sender<Done<'e>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { at, mut episode, task }) = next else { return };
        let answer = match &task {
            Task::React { index, text, reply, first_call, is_last } => {
                Answer::Reaction(episode.react(&Turn {
                    index: *index,
                    text,
                    reply,
                    first_call: *first_call,
                    is_last: *is_last,
                }))
            }
            Task::End(end) => Answer::Told(*end, episode.end(end.as_str())),
        };
        if done.send(Done { at, episode, answer }).is_err() {
            return;
        }
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
        drawing.run(&scenes)?;
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
        // Without its turn a sample is lost, with all that came before.
        let Some(sample) = sample else {
            self.plays[at] = None;
            return Ok(());
        };
        if let Ticket::Group(group) = self.tickets[ticket] {
            self.plays[at] = Some(self.begin(group, index, &scenes[group]));
        }
        let (play, _) = self.plays[at].as_mut().expect("a sample that takes a turn has begun");
        let next = play.taken(sample, self.sampler.tokenizer(), &self.sampler.params().stop_token_ids)?;
        self.follow(at, next)
    }

    fn begin(
        &self,
        group: usize,
        index: usize,
        scene: &'e Scene,
    ) -> (Play<'e>, Option<Box<dyn Episode + 'e>>) {
        let prompt = &self.prompts[group];
        let start = Start {
            messages: &scene.messages,
            row: &prompt.row().extra,
            tools: prompt.row().tools.as_deref().unwrap_or_default(),
            seed: key_of(self.sampler.params().seed, prompt.key, index, 0),
        };
        (Play::new(scene), Some(self.stage.environment.begin(&start)))
    }

    fn answered(&mut self, Done { at, episode, answer }: Done<'e>) -> Result<()> {
        self.n_asked -= 1;
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
mod tests {
    use pt_data::{Body, Content, Message, Origin, Record};
    use pt_engine::Dtype;
    use pt_recipe::{PlannedEnvironment, RewrittenTurns};
    use pt_rollout::{FinishReason, Sample};
    use pt_text::{ChatTemplate, Tokenizer, train_byte_bpe};
    use serde_json::json;

    use super::*;

    const CHATML: &str = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}\
        {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        {% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    /// What a model is told of earlier turns is without their reasoning.
    const FORGETFUL: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}\
        {{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn tokenizer() -> Tokenizer {
        let special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];
        train_byte_bpe(["What is 12 * 12? It is 144. user assistant tool calculator"], 300, &special).unwrap()
    }

    /// Says what it is told to, turn by turn; remembers what it was asked to continue.
    struct Scripted<'t> {
        tokenizer: &'t Tokenizer,
        /// Each with the token that ends it; without one it is cut.
        turns: Vec<(&'static str, Option<&'static str>)>,
        asked: Vec<(usize, Vec<u32>)>,
        n_said: usize,
    }

    impl Policy for Scripted<'_> {
        fn submit(&mut self, ticket: usize, request: Request, params: Arc<SamplingParams>) -> Result<()> {
            assert_eq!(params.n, 1);
            self.asked.push((ticket, request.prompt_ids));
            Ok(())
        }

        fn advance(&mut self, _: bool) -> Result<Vec<Ended>> {
            let (ticket, _) = self.asked[self.n_said];
            let (text, end) = self.turns[self.n_said];
            self.n_said += 1;
            let mut token_ids = self.tokenizer.encode(text, false)?.ids;
            token_ids.extend(end.map(|end| self.tokenizer.token_to_id(end).unwrap()));
            let logprobs = (0..token_ids.len()).map(|i| -0.5 - i as f32).collect();
            let finish_reason = if end.is_some() { FinishReason::Stop } else { FinishReason::Length };
            let sample = Sample {
                token_ids,
                logprobs,
                filtered_logprobs: None,
                top_logprobs: Vec::new(),
                finish_reason,
                stop: None,
                text: None,
            };
            Ok(vec![Ended { ticket, index: 0, sample: Some(sample) }])
        }

        fn is_idle(&self) -> bool {
            self.n_said == self.asked.len()
        }
    }

    /// One sample of a scripted model in the environment `tools` or `guess`.
    fn played(
        kind: &str,
        template: &str,
        planned: impl FnOnce(&mut PlannedEnvironment),
        turns: &[(&'static str, Option<&'static str>)],
    ) -> (Drawn, Vec<Vec<u32>>) {
        played_with(None, kind, template, planned, turns)
    }

    /// The same with the tools of the row.
    fn played_with(
        tools: Option<Vec<serde_json::Value>>,
        kind: &str,
        template: &str,
        planned: impl FnOnce(&mut PlannedEnvironment),
        turns: &[(&'static str, Option<&'static str>)],
    ) -> (Drawn, Vec<Vec<u32>>) {
        let mut environment = PlannedEnvironment {
            r#type: kind.to_owned(),
            max_turns: 4,
            max_tokens: 400,
            rewritten_turns: RewrittenTurns::End,
            parallel: 2,
            params: json!({}),
        };
        planned(&mut environment);
        let stage = Arc::new(Stage::new(&environment).unwrap());
        let tokenizer = tokenizer();
        let template = ChatTemplate::new(template).unwrap();
        let mut records = vec![Record {
            body: Body::PromptOnly {
                prompt: Content::Messages(vec![Message::new("user", "What is 12 * 12?")]),
            },
            tools,
            chat_template_kwargs: None,
            extra: serde_json::Map::from_iter([(
                "check".to_owned(),
                "{\"kind\": \"number\", \"value\": 144}".into(),
            )]),
            origin: Origin::new("rows.jsonl", 1),
        }];
        stage.prepare_rows(&mut records).unwrap();
        let scene = scene_of(&records[0]);
        let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
        let row = pt_text::Conversation {
            messages: &scene.messages,
            tools: scene.tools.as_ref(),
            ..pt_text::Conversation::default()
        };
        let token_ids = masker.prompt(&scene.origin, &row).unwrap().token_ids;
        let stops = ["<|im_end|>", "<|endoftext|>"].map(|end| tokenizer.token_to_id(end).unwrap()).to_vec();
        let params =
            SamplingParams { stop_token_ids: stops, max_new_tokens: 200, ..SamplingParams::default() };
        let sampler =
            Sampler::of_params(&tokenizer, Some(&template), params, Dtype::F32).with_stage(Some(stage));
        let mut policy =
            Scripted { tokenizer: &tokenizer, turns: turns.to_vec(), asked: Vec::new(), n_said: 0 };
        let prompts = [Prompt { key: 7, token_ids, record: Some(&records[0]) }];
        let mut groups = draw(&mut policy, &sampler, &prompts).unwrap();
        (groups.pop().unwrap().pop().unwrap(), policy.asked.into_iter().map(|(_, ids)| ids).collect())
    }

    const END: Option<&str> = Some("<|im_end|>");
    const CALL: &str =
        "<tool_call>{\"name\": \"calculator\", \"arguments\": {\"expression\": \"12*12\"}}</tool_call>";

    #[test]
    fn a_conversation_grows_by_its_own_tokens_and_those_of_the_template() {
        let (drawn, asked) = played("tools", CHATML, |_| {}, &[(CALL, END), ("It is 144.", END)]);
        let tokenizer = tokenizer();
        let between = "\n<|im_start|>tool\n144<|im_end|>\n<|im_start|>assistant\n";
        let text = tokenizer.decode(&drawn.token_ids, false).unwrap();
        assert_eq!(text, format!("{CALL}<|im_end|>{between}It is 144.<|im_end|>"));
        let n = |text: &str| tokenizer.encode(text, false).unwrap().ids.len();
        let expected: Vec<f32> = [(1.0, n(CALL) + 1), (0.0, n(between)), (1.0, n("It is 144.") + 1)]
            .map(|(w, n)| vec![w; n])
            .concat();
        assert_eq!(drawn.weights, expected);
        // The second request is the first, what was sampled, and what came between, to the token.
        assert!(asked[1].starts_with(&asked[0]));
        assert_eq!(asked[1][asked[0].len()..], drawn.token_ids[..n(CALL) + 1 + n(between)]);
        assert_eq!((drawn.text.as_str(), drawn.end, drawn.is_truncated), ("It is 144.", End::Stop, false));
        let episode = drawn.episode.unwrap();
        assert_eq!((episode.n_turns, episode.n_calls, episode.n_failures), (2, 1, 0));
        let calls: Vec<&str> = episode.messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(calls, ["assistant", "tool", "assistant"]);
        assert_eq!(episode.messages[1]["tool_call_id"], episode.messages[0]["tool_calls"][0]["id"]);
        let zeros = drawn.logprobs.iter().zip(&drawn.weights).filter(|(logp, _)| **logp == 0.0);
        assert_eq!(zeros.count(), n(between));
    }

    #[test]
    fn a_model_may_call_only_what_its_row_offers() {
        let python = json!({"type": "function", "function": {"name": "python", "parameters": {}}});
        let both = |e: &mut PlannedEnvironment| e.params = json!({"tools": ["calculator", "python"]});
        for (tools, result) in [(None, "144"), (Some(vec![python]), "Error: there is no tool `calculator`")] {
            let turns = [(CALL, END), ("It is 144.", END)];
            let (drawn, _) = played_with(tools, "tools", CHATML, both, &turns);
            let episode = drawn.episode.unwrap();
            let said = episode.messages[1]["content"].as_str().unwrap();
            assert!(said.starts_with(result), "{said}");
            assert_eq!(episode.n_failures, usize::from(result != "144"));
        }
    }

    #[test]
    fn an_episode_ends_for_a_reason_that_is_kept() {
        let thought = ("<think>hm</think>9", END);
        type Change = fn(&mut PlannedEnvironment);
        type Said = Vec<(&'static str, Option<&'static str>)>;
        let plain: Change = |_| {};
        let cases: [(&str, &str, &str, Change, Said, End, usize); 7] = [
            ("answers", "tools", CHATML, plain, vec![("It is 144.", END)], End::Stop, 1),
            ("cut", "tools", CHATML, plain, vec![(CALL, None)], End::Length, 1),
            ("turns", "tools", CHATML, |e| e.max_turns = 2, vec![(CALL, END), (CALL, END)], End::MaxTurns, 2),
            ("tokens", "tools", CHATML, |e| e.max_tokens = 60, vec![(CALL, END)], End::Length, 1),
            ("another end", "tools", CHATML, plain, vec![(CALL, Some("<|endoftext|>"))], End::Rewritten, 1),
            ("rewritten", "guess", FORGETFUL, plain, vec![thought], End::Rewritten, 1),
            (
                "kept",
                "guess",
                FORGETFUL,
                |e| e.rewritten_turns = RewrittenTurns::Keep,
                vec![thought, ("144", END)],
                End::Stop,
                2,
            ),
        ];
        for (case, kind, template, planned, turns, end, n_turns) in cases {
            let (drawn, _) = played(kind, template, planned, &turns);
            let episode = drawn.episode.as_ref().unwrap();
            assert_eq!((drawn.end, episode.n_turns), (end, n_turns), "{case}");
            assert_eq!(drawn.is_truncated, end == End::Length, "{case}");
            assert_eq!(drawn.weights.len(), drawn.token_ids.len(), "{case}");
            let n: usize = episode.turns.iter().map(|turn| turn.n_tokens).sum();
            assert_eq!(n, drawn.token_ids.len(), "{case}");
        }
    }
}
