//! A server that samples in place of the model in training.
//!
//! Prompts go out as token ids, and samples come back as token ids with the log-probability of each, as vLLM gives them for
//! `return_token_ids`, or for `return_tokens_as_token_ids`. A server that gives only text is believed where its tokens, tokenised
//! again, are the same tokens, one by one; what is not is dropped and counted, since training on other tokens than were sampled is
//! training on another sample. A request that gets no answer after all its attempts costs its samples, never the round.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pt_client::{
    Choice, Client, ClientError, ClientOptions, Completion, HttpOptions, Prompt, RetryPolicy, TokenLogprob,
};
use pt_models::Model;
use pt_recipe::{PlannedRollout, PlannedServer, ServerLogprobs};
use pt_rollout::{FinishReason, Request, Sample, SamplingParams};
use pt_text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

use super::policy::{Ended, Policy};
use crate::error::{PipelineError, Result};
use crate::output::write_model;

/// A server, and what became of what it was asked.
pub(crate) struct Server {
    client: Arc<Client>,
    planned: PlannedServer,
    model: Mutex<Option<String>>,
    counts: Mutex<Counts>,
}

/// What became of samples since the last round.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Samples that were asked for.
    pub(super) n_asked: usize,
    /// Of these, how many got no answer.
    pub(super) n_lost: usize,
    /// How many came and could not be used, by reason.
    pub(super) dropped: BTreeMap<&'static str, usize>,
    /// Why the last request failed.
    pub(super) last_error: Option<String>,
}

impl Counts {
    /// `server/lost`, `server/dropped`: shares of the samples asked for.
    pub(super) fn metrics(&self) -> Vec<(String, f64)> {
        let n = self.n_asked.max(1) as f64;
        let n_dropped: usize = self.dropped.values().sum();
        vec![
            ("server/lost".to_owned(), self.n_lost as f64 / n),
            ("server/dropped".to_owned(), n_dropped as f64 / n),
        ]
    }

    /// What went wrong, in words.
    fn reasons(&self) -> String {
        let dropped = self.dropped.iter().map(|(reason, n)| format!("{n} dropped: {reason}"));
        let lost = self.last_error.iter().map(|error| format!("{} lost: {error}", self.n_lost));
        dropped.chain(lost).collect::<Vec<_>>().join("; ")
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.planned.url).finish_non_exhaustive()
    }
}

impl Server {
    /// A server that nobody has spoken to yet.
    ///
    /// # Errors
    /// Options that do not go together, a key that cannot be read.
    pub(crate) fn new(planned: &PlannedServer, rollout: &PlannedRollout, seed: u64) -> Result<Server> {
        check(planned, rollout)?;
        let read = |path: &String| {
            let path = Path::new(path);
            let text = std::fs::read_to_string(path).map_err(PipelineError::io("read", path))?;
            Ok::<_, PipelineError>(text.trim().to_owned())
        };
        let options = ClientOptions {
            api_key: planned.key_file.as_ref().map(read).transpose()?,
            http: HttpOptions { timeout_s: planned.timeout_s, ..HttpOptions::default() },
            retry: RetryPolicy { max_retries: planned.max_retries as u32, seed, ..RetryPolicy::default() },
            ..ClientOptions::new(planned.url.clone())
        };
        Ok(Server {
            client: Arc::new(Client::new(options)?),
            planned: planned.clone(),
            model: Mutex::new(planned.model.clone()),
            counts: Mutex::new(Counts::default()),
        })
    }

    /// The server's name of the model.
    fn model(&self) -> Result<String> {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = model.as_ref() {
            return Ok(model.clone());
        }
        let models = self.client.models()?;
        let [only] = models.as_slice() else {
            return Err(PipelineError::Unsupported {
                what: format!("the server at {} has the models {}", self.planned.url, models.join(", ")),
                advice: "name one of them with server.model".to_owned(),
            });
        };
        *model = Some(only.clone());
        Ok(only.clone())
    }

    /// What became of samples since this was last asked.
    pub(super) fn take_counts(&self) -> Counts {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The error of a round of which nothing came back.
    pub(super) fn nothing_came(&self, counts: &Counts) -> PipelineError {
        PipelineError::NoSamples { url: self.planned.url.clone(), reasons: counts.reasons() }
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Refuses settings under which the server's log-probabilities are not those of what it sampled from.
fn check(planned: &PlannedServer, rollout: &PlannedRollout) -> Result<()> {
    let is_plain =
        rollout.temperature == 1.0 && rollout.top_k == 0 && rollout.top_p == 1.0 && rollout.min_p == 0.0;
    if planned.logprobs == ServerLogprobs::Raw && !is_plain {
        return Err(PipelineError::Unsupported {
            what: "server.logprobs = \"raw\" are the model's own, and the rollout has another temperature than 1 or filters: what \
                   was sampled from would not be known"
                .to_owned(),
            advice: "let the server give those of its samples (vLLM: --logprobs-mode processed_logprobs) and set \
                     server.logprobs = \"processed\", or remove rollout.temperature, top_k, top_p and min_p"
                .to_owned(),
        });
    }
    let mentions_path = |text: &String| text.contains(PATH);
    let command = planned.reload_command.as_ref();
    let is_blind = command.is_some_and(|command| !command.iter().any(mentions_path))
        || planned.reload_body.as_ref().is_some_and(|body| !mentions_path(body));
    if is_blind {
        return Err(PipelineError::Unsupported {
            what: "server.reload_command or server.reload_body does not say where the weights are".to_owned(),
            advice: "write {path} where the folder belongs".to_owned(),
        });
    }
    if let Some(body) = &planned.reload_body
        && let Err(error) = serde_json::from_str::<Value>(body)
    {
        return Err(PipelineError::Unsupported {
            what: format!("server.reload_body is not JSON: {error}"),
            advice: "write it as in '{\"model_path\": \"{path}\"}'".to_owned(),
        });
    }
    Ok(())
}

/// Stands for the folder of the weights.
const PATH: &str = "{path}";

/// A request with what it is for.
type Asked = (usize, Arc<SamplingParams>, pt_client::Request);

/// An answer, or why there is none, with what it is for.
type Answered = (usize, Arc<SamplingParams>, std::result::Result<Completion, ClientError>);

/// The server as a policy: requests in flight on threads of their own.
pub(super) struct Remote<'s> {
    server: &'s Server,
    tokenizer: &'s Tokenizer,
    model: String,
    jobs: Sender<Asked>,
    queue: Arc<Mutex<Receiver<Asked>>>,
    done: Sender<Answered>,
    answers: Receiver<Answered>,
    n_threads: usize,
    n_open: usize,
}

impl<'s> Remote<'s> {
    /// # Errors
    /// A server that cannot be asked for its model's name.
    pub(super) fn new(server: &'s Server, tokenizer: &'s Tokenizer) -> Result<Remote<'s>> {
        let (jobs, queue) = channel();
        let (done, answers) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let model = server.model()?;
        Ok(Remote { server, tokenizer, model, jobs, queue, done, answers, n_threads: 0, n_open: 0 })
    }

    /// One more thread, if there are requests for it. It ends when the policy is dropped and its request is answered.
    fn help(&mut self) {
        if self.n_threads >= self.n_open.min(self.server.planned.parallel as usize) {
            return;
        }
        self.n_threads += 1;
        let (queue, done, client) = (self.queue.clone(), self.done.clone(), self.server.client.clone());
        std::thread::spawn(move || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((ticket, params, request)) = next else { return };
                if done.send((ticket, params, client.complete(&request))).is_err() {
                    return;
                }
            }
        });
    }

    fn ended(&self, (ticket, params, answer): Answered) -> Vec<Ended> {
        self.server.count(|counts| counts.n_asked += params.n);
        let completion = match answer {
            Ok(completion) => completion,
            Err(error) => {
                self.server.count(|counts| {
                    counts.n_lost += params.n;
                    counts.last_error = Some(error.to_string());
                });
                return (0..params.n).map(|index| Ended { ticket, index, sample: None }).collect();
            }
        };
        let one = |(index, choice): (usize, &Choice)| {
            let sample = match sample_of(choice, self.tokenizer, &params.stop_token_ids) {
                Ok(sample) => Some(sample),
                Err(reason) => {
                    self.server.count(|counts| *counts.dropped.entry(reason).or_default() += 1);
                    None
                }
            };
            Ended { ticket, index, sample }
        };
        completion.choices.iter().enumerate().map(one).collect()
    }
}

impl Policy for Remote<'_> {
    fn submit(&mut self, ticket: usize, request: Request, params: Arc<SamplingParams>) -> Result<()> {
        let asked = request_of(&self.model, &request, &params);
        self.n_open += 1;
        self.help();
        self.jobs.send((ticket, params, asked)).expect("the queue lives as long as the policy");
        Ok(())
    }

    fn advance(&mut self, waits: bool) -> Result<Vec<Ended>> {
        let mut ended = Vec::new();
        while self.n_open > 0 {
            let answer = match waits && ended.is_empty() {
                true => self.answers.recv().ok(),
                false => self.answers.try_recv().ok(),
            };
            let Some(answer) = answer else { break };
            self.n_open -= 1;
            ended.extend(self.ended(answer));
        }
        if ended.is_empty() && !waits && self.n_open > 0 {
            // Both sides are asked in turn; neither is asked all the time.
            std::thread::sleep(IDLE);
        }
        Ok(ended)
    }

    fn is_idle(&self) -> bool {
        self.n_open == 0
    }
}

/// The pause between two looks at what the server and the environment have done.
const IDLE: Duration = Duration::from_millis(2);

fn request_of(model: &str, request: &Request, params: &SamplingParams) -> pt_client::Request {
    let mut asked = pt_client::Request::new(model, Prompt::TokenIds(request.prompt_ids.clone()));
    asked.n = params.n as u32;
    asked.max_tokens = Some(params.max_new_tokens as u32);
    asked.temperature = Some(params.temperature.into());
    // One alternative: servers take 0 for no log-probabilities.
    asked.logprobs = Some(1);
    // Draws of the same prompt differ from round to round. Servers take numbers of 63 bits.
    let words = [params.seed.to_le_bytes(), request.key.to_le_bytes()].concat();
    let hash = pt_core::hash::of_bytes(&words);
    asked.seed = u64::from_str_radix(&hash[..16], 16).ok().map(|seed| seed >> 1);
    let mut extra = vec![
        ("return_token_ids", json!(true)),
        ("return_tokens_as_token_ids", json!(true)),
        ("stop_token_ids", json!(params.stop_token_ids)),
    ];
    if params.top_p < 1.0 {
        asked.top_p = Some(params.top_p.into());
    }
    if params.top_k > 0 {
        extra.push(("top_k", json!(params.top_k)));
    }
    if params.min_p > 0.0 {
        extra.push(("min_p", json!(params.min_p)));
    }
    asked.extra.extend(extra.into_iter().map(|(key, value)| (key.to_owned(), value)));
    asked
}

/// A choice as tokens that can be trained on, or why it cannot be.
fn sample_of(
    choice: &Choice,
    tokenizer: &Tokenizer,
    stops: &[u32],
) -> std::result::Result<Sample, &'static str> {
    let tokens = choice.logprobs.as_deref().ok_or("the server gave no log-probabilities")?;
    let given = choice.token_ids.clone().or_else(|| named_ids(tokens));
    let token_ids = given
        .or_else(|| tokenised_again(tokens, tokenizer))
        .ok_or("its text is not tokenised again to the tokens it was sampled in")?;
    if token_ids.len() != tokens.len() || token_ids.is_empty() {
        return Err("it has another number of tokens than of log-probabilities");
    }
    if token_ids.iter().any(|&id| id as usize >= tokenizer.vocab_size()) {
        return Err("it has tokens that the tokenizer has not");
    }
    let logprobs: Option<Vec<f32>> = tokens
        .iter()
        .map(|token| token.logprob.map(|logprob| logprob as f32).filter(|logprob| logprob.is_finite()))
        .collect();
    let logprobs = logprobs.ok_or("a log-probability is no finite number")?;
    let has_ended = token_ids.last().is_some_and(|id| stops.contains(id));
    let finish_reason = match choice.finish_reason.as_deref() {
        Some("length") if !has_ended => FinishReason::Length,
        Some("stop" | "length") if has_ended => FinishReason::Stop,
        _ => return Err("it ended without the token that ends a turn"),
    };
    Ok(Sample {
        token_ids,
        // The policy's own are computed later, by the trainer.
        filtered_logprobs: Some(logprobs.clone()),
        logprobs,
        top_logprobs: Vec::new(),
        finish_reason,
        stop: None,
        text: None,
    })
}

/// Ids that stand in the place of texts.
fn named_ids(tokens: &[TokenLogprob]) -> Option<Vec<u32>> {
    tokens.iter().map(|token| token.token.strip_prefix("token_id:")?.parse().ok()).collect()
}

/// The ids of texts, where they are certain.
fn tokenised_again(tokens: &[TokenLogprob], tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let mut texts: Vec<&str> = tokens.iter().map(|token| token.token.as_str()).collect();
    let special = texts.last().and_then(|text| tokenizer.token_to_id(text));
    let end = special.filter(|&id| tokenizer.is_special(id));
    if end.is_some() {
        texts.pop();
    }
    let mut ids = tokenizer.encode(&texts.concat(), false).ok()?.ids;
    let is_same =
        |(id, text): (&u32, &&str)| tokenizer.decode(&[*id], false).is_ok_and(|decoded| decoded == **text);
    if ids.len() != texts.len() || !ids.iter().zip(&texts).all(is_same) {
        return None;
    }
    ids.extend(end);
    Some(ids)
}

/// What keeps the server's weights near the policy's.
pub(crate) struct Reload {
    planned: PlannedServer,
    /// Where weights are written for the server.
    dir: PathBuf,
    /// The steps that had been taken when this life of the run gave it weights last. No checkpoint keeps it: what the server has
    /// when a run is resumed is not known, since it may have been restarted, or have got weights that are undone.
    loaded: Option<u64>,
}

impl Reload {
    pub(crate) fn new(planned: &PlannedServer, dir: PathBuf) -> Reload {
        Reload { planned: planned.clone(), dir, loaded: None }
    }

    /// Gives the server the policy's weights where it is time for it. Returns the steps by which it is behind.
    ///
    /// # Errors
    /// A program or an address that does not do it: samples of weights that nobody knows are worth nothing.
    pub(super) fn before_round(
        &mut self,
        client: &Server,
        (round, step): (u64, u64),
        model: &Model,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<u64> {
        let has_hook = self.planned.reload_command.is_some() || self.planned.reload_url.is_some();
        if has_hook && is_due(self.loaded, round, self.planned.reload_every) {
            write_model(model, &self.dir, tokenizer, template, None)?;
            let path = std::fs::canonicalize(&self.dir).map_err(PipelineError::io("find", &self.dir))?;
            self.tell(client, &path.display().to_string())?;
            self.loaded = Some(step);
        }
        // Without a way to give it weights, it is taken to have those that the stage began with.
        Ok(step - self.loaded.unwrap_or(0))
    }

    fn tell(&self, server: &Server, path: &str) -> Result<()> {
        if let Some(command) = &self.planned.reload_command {
            let args: Vec<String> = command.iter().map(|arg| arg.replace(PATH, path)).collect();
            run(&args, self.planned.reload_timeout_s)?;
        }
        if let Some(url) = &self.planned.reload_url {
            let body = self.planned.reload_body.as_deref().unwrap_or_default();
            let mut body: Value = serde_json::from_str(body).expect("checked with the recipe");
            fill(&mut body, path);
            server.client.post(url, &body)?;
        }
        Ok(())
    }
}

/// Whether a server gets weights before a round: where it is not known which it has, and at every so many rounds of the stage, so
/// that a resumed run comes back to the rounds of one that was never interrupted.
fn is_due(loaded: Option<u64>, round: u64, reload_every: u64) -> bool {
    loaded.is_none() || round.is_multiple_of(reload_every)
}

/// Puts the folder into every text of the body.
fn fill(body: &mut Value, path: &str) {
    match body {
        Value::String(text) => *text = text.replace(PATH, path),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, path)),
        Value::Object(fields) => fields.values_mut().for_each(|value| fill(value, path)),
        _ => {}
    }
}

fn run(args: &[String], timeout_s: f64) -> Result<()> {
    let failed = |problem: String| PipelineError::Reload { command: args.join(" "), problem };
    pt_verify::run_within(&args[0], &args[1..], Duration::from_secs_f64(timeout_s)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use pt_text::train_byte_bpe;

    use super::*;

    fn choice(tokens: &[(&str, Option<f64>)], ids: Option<&[u32]>, finish: &str) -> Choice {
        let tokens = tokens.iter().map(|(token, logprob)| TokenLogprob {
            token: (*token).to_owned(),
            logprob: *logprob,
            top: Vec::new(),
        });
        Choice {
            text: String::new(),
            reasoning: None,
            tool_calls: Vec::new(),
            finish_reason: Some(finish.to_owned()),
            logprobs: Some(tokens.collect()),
            token_ids: ids.map(<[u32]>::to_vec),
        }
    }

    #[test]
    fn samples_are_the_tokens_that_were_sampled_or_none() {
        let tokenizer = train_byte_bpe(["the cat sat on the mat"], 280, &["<|end|>"]).unwrap();
        let end = tokenizer.token_to_id("<|end|>").unwrap();
        let ids = tokenizer.encode("the cat", false).unwrap().ids;
        let texts: Vec<String> = ids.iter().map(|id| tokenizer.decode(&[*id], false).unwrap()).collect();
        let mut as_text: Vec<(&str, Option<f64>)> =
            texts.iter().map(|text| (text.as_str(), Some(-0.5))).collect();
        let cut = as_text.clone();
        as_text.push(("<|end|>", Some(-0.25)));
        let whole: Vec<u32> = ids.iter().copied().chain([end]).collect();
        let named: Vec<String> = whole.iter().map(|id| format!("token_id:{id}")).collect();
        let as_ids: Vec<(&str, Option<f64>)> = named.iter().map(|name| (name.as_str(), Some(-0.5))).collect();
        let check = |choice: &Choice, expected: std::result::Result<&[u32], &str>| {
            let found = sample_of(choice, &tokenizer, &[end]);
            match (&found, expected) {
                (Ok(sample), Ok(expected)) => assert_eq!(sample.token_ids, expected),
                (Err(reason), Err(expected)) => assert!(reason.contains(expected), "{reason}"),
                _ => panic!("{found:?}, expected {expected:?}"),
            }
        };
        check(&choice(&as_text, None, "stop"), Ok(&whole));
        check(&choice(&as_text, Some(&whole), "stop"), Ok(&whole));
        check(&choice(&as_ids, None, "stop"), Ok(&whole));
        check(&choice(&cut, None, "length"), Ok(&ids));
        check(&choice(&cut, None, "stop"), Err("without the token that ends"));
        check(&choice(&cut, None, "abort"), Err("without the token that ends"));
        check(&choice(&as_text, Some(&ids), "stop"), Err("another number"));
        check(&choice(&[("c", Some(-1.0)), ("at", Some(-1.0)), ("x", Some(-1.0))], None, "length"), {
            let again = tokenizer.encode("catx", false).unwrap().ids.len();
            assert_ne!(again, 3, "the pieces are not the tokenizer's own");
            Err("not tokenised again")
        });
        check(&choice(&[("\u{fffd}", Some(-1.0))], None, "length"), Err("not tokenised again"));
        check(&choice(&[("a", None)], Some(&[65]), "length"), Err("no finite number"));
        check(&choice(&[("a", Some(-1.0))], Some(&[9999]), "length"), Err("the tokenizer has not"));
        let silent = Choice { logprobs: None, ..choice(&[], Some(&ids), "length") };
        check(&silent, Err("no log-probabilities"));
    }

    #[test]
    fn the_folder_is_put_where_it_belongs() {
        let mut body = json!({"lora_name": "policy", "lora_path": "{path}", "also": ["{path}/x", 1]});
        fill(&mut body, "/tmp/a \"b\"");
        assert_eq!(
            body,
            json!({"lora_name": "policy", "lora_path": "/tmp/a \"b\"", "also": ["/tmp/a \"b\"/x", 1]})
        );
        let ran = |script: &str, timeout_s: f64| {
            run(&["sh", "-c", script].map(str::to_owned), timeout_s).map_err(|error| error.to_string())
        };
        assert_eq!(ran("true", 60.0), Ok(()));
        let check = |script: &str, timeout_s: f64, parts: &[&str]| {
            let error = ran(script, timeout_s).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        check("echo no room >&2; exit 3", 60.0, &["exit status: 3", "ends: no room"]);
        let hangs = "echo waiting for the server >&2; sleep 600 & wait";
        check(hangs, 0.2, &["not ended after 0.2 s", "ends: waiting", "server.reload_timeout_s"]);
        let missing = run(&["/no/such/program".to_owned()], 1.0).unwrap_err().to_string();
        assert!(missing.contains("cannot be started"), "{missing}");
    }

    #[test]
    fn weights_are_given_at_the_same_rounds_and_whenever_nobody_knows_which_there_are() {
        let check = |reload_every: u64, begins: &[u64], n_rounds: u64, expected: &[(u64, u64)]| {
            let mut told = Vec::new();
            for (i, &begin) in begins.iter().enumerate() {
                let mut loaded = None;
                let end = begins.get(i + 1).copied().unwrap_or(n_rounds);
                for round in begin..end {
                    if is_due(loaded, round, reload_every) {
                        loaded = Some(round);
                    }
                    told.push((round, round - loaded.unwrap()));
                }
            }
            assert_eq!(told, expected, "{reload_every} {begins:?}");
        };
        check(2, &[0], 5, &[(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]);
        // Resumed at round 1: who knows what the server did since; and then as if nothing had been.
        check(2, &[0, 1], 5, &[(0, 0), (1, 0), (2, 0), (3, 1), (4, 0)]);
        check(3, &[0, 5], 7, &[(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 0), (6, 0)]);
    }
}
