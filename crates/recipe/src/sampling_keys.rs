//! What stands beside a stage's sampling: an environment between the turns, a server that samples. Keys declared as those in
//! `keys.rs` are, and what plans make of them.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::keys::StageSection;
use crate::schema::Fallback::{Derived, Value};
use crate::schema::Kind::{Choice, Component, Float, Int, String as Text, Strings};
use crate::schema::{ComponentKind, choice, section};

choice! {
    /// What happens where the chat template writes earlier turns in another way once more follows (without their reasoning, most often).
    RewrittenTurns {
        /// The episode ends there: nothing is trained in other tokens than the template's own.
        End = "end",
        /// It goes on with the tokens as they were sampled.
        Keep = "keep",
    }
}

choice! {
    /// Which log-probabilities a server gives.
    ServerLogprobs {
        /// Those of the model itself (vLLM's default): right at temperature 1 and without filters alone.
        Raw = "raw",
        /// Those of the distribution that was sampled from (vLLM: `--logprobs-mode processed_logprobs`).
        Processed = "processed",
    }
}

section! {
    /// What answers the model between its turns, for stages that learn from samples: tools, games, your own program. Its other keys belong to the environment: see `posttrain list environments`.
    EnvironmentSection at "stage.environment" as "[stage.environment]"
    open to ComponentKind::Environment, default None;
    keys {
        r#type: Option<String>, Component(ComponentKind::Environment), Derived { rule: "none: a sample is one turn", example: "\"guess\"" }, "\"tools\"",
            "The environment. What it says does not train.";
        max_turns: u64, Int { min: 1, max: 1000 }, Value("8"), "3",
            "Most turns of the model in an episode. (TRL: max_tool_calling_iterations.)";
        max_tokens: Option<u64>, Int { min: 1, max: 16_777_216 }, Derived { rule: "`rollout.max_new_tokens` times `max_turns`", example: "2048" }, "700",
            "Most tokens of an episode after the prompt, the environment's too; `rollout.max_new_tokens` is the limit of each turn.";
        rewritten_turns: RewrittenTurns, Choice(RewrittenTurns::NAMES), Value("\"end\""), "\"keep\"",
            "What happens where the chat template would write earlier turns in another way than they were sampled: the episode ends there and is counted, or goes on in the tokens it was sampled in.";
        parallel: u64, Int { min: 1, max: 1024 }, Value("8"), "2",
            "Episodes the environment works on at once.";
    }
    sections { }
    params params
}

section! {
    /// A server that samples in place of the model in training: any that speaks the OpenAI protocol and takes token ids (vLLM, SGLang, `posttrain serve`). Its samples come from weights that may be older and kernels that compute otherwise, so `importance_sampling_correction` is on there unless the objective says otherwise.
    ServerSection at "stage.server" as "[stage.server]"
    keys {
        url: Option<String>, Text, Derived { rule: "none: the model in training samples", example: "\"http://127.0.0.1:8000/v1\"" }, "\"http://10.0.0.2:8000/v1\"",
            "The server, with the version.";
        model: Option<String>, Text, Derived { rule: "the only one the server lists", example: "\"policy\"" }, "\"other\"",
            "The server's name of the model.";
        key_file: Option<String>, Text, Derived { rule: "none", example: "\"key.txt\"" }, "\"other-key.txt\"",
            "A file with the key that is sent as a bearer token.";
        logprobs: ServerLogprobs, Choice(ServerLogprobs::NAMES), Value("\"raw\""), "\"processed\"",
            "Which log-probabilities the server gives: of the model itself, or of what was sampled from, at the temperature and with the filters.";
        parallel: u64, Int { min: 1, max: 4096 }, Value("32"), "8",
            "Most requests at once.";
        timeout_s: f64, Float { min: 0.1, max: 86_400.0 }, Value("600.0"), "60.0",
            "The longest wait for an answer.";
        max_retries: u64, Int { min: 0, max: 1000 }, Value("8"), "20",
            "Attempts after the first, with growing pauses of up to half a minute, before a request is given up.";
        reload_command: Option<Vec<String>>, Strings, Derived { rule: "none", example: "[\"sh\", \"reload.sh\", \"{path}\"]" }, "[\"sh\", \"other.sh\", \"{path}\"]",
            "A program that gives the server the weights in the folder `{path}`.";
        reload_timeout_s: f64, Float { min: 0.1, max: 86_400.0 }, Value("600.0"), "60.0",
            "The longest the program may take; it is killed then, and the run ends with what is saved.";
        reload_url: Option<String>, Text, Derived { rule: "none", example: "\"http://127.0.0.1:8000/v1/load_lora_adapter\"" }, "\"http://127.0.0.1:8000/update_weights_from_disk\"",
            "An address that is sent `reload_body` for the same.";
        reload_body: Option<String>, Text, Derived { rule: "`{\"model_path\": \"{path}\"}` (SGLang)", example: "'{\"lora_name\": \"policy\", \"lora_path\": \"{path}\", \"load_inplace\": true}'" }, "'{\"path\": \"{path}\"}'",
            "JSON that is sent there; `{path}` is the folder of the weights.";
        reload_every: u64, Int { min: 1, max: 1_000_000 }, Value("1"), "4",
            "Rounds between two reloads.";
    }
    sections { }
}

/// What answers the model between its turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented above, under the same names")]
pub struct PlannedEnvironment {
    pub r#type: String,
    pub max_turns: u64,
    pub max_tokens: u64,
    pub rewritten_turns: RewrittenTurns,
    pub parallel: u64,
    /// The environment's own options.
    pub params: Json,
}

/// A server that samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented above, under the same names")]
pub struct PlannedServer {
    pub url: String,
    pub model: Option<String>,
    pub key_file: Option<String>,
    pub logprobs: ServerLogprobs,
    pub parallel: u64,
    pub timeout_s: f64,
    pub max_retries: u64,
    pub reload_command: Option<Vec<String>>,
    pub reload_timeout_s: f64,
    pub reload_url: Option<String>,
    pub reload_body: Option<String>,
    pub reload_every: u64,
}

impl StageSection {
    /// The environment, every option decided; `None` where a sample is one turn.
    pub fn planned_environment(&self) -> Option<PlannedEnvironment> {
        let own = &self.environment;
        let r#type = own.r#type.clone().filter(|_| self.stage_type().rollout.is_some())?;
        let longest = self.rollout.max_new_tokens.saturating_mul(own.max_turns);
        Some(PlannedEnvironment {
            r#type,
            max_turns: own.max_turns,
            max_tokens: own.max_tokens.unwrap_or(longest),
            rewritten_turns: own.rewritten_turns,
            parallel: own.parallel,
            params: Json::Object(own.params.values().clone()),
        })
    }

    /// The server that samples; `None` where the model in training does.
    pub fn planned_server(&self) -> Option<PlannedServer> {
        let own = &self.server;
        let url = own.url.clone().filter(|_| self.stage_type().rollout.is_some())?;
        let default_body = || own.reload_url.as_ref().map(|_| "{\"model_path\": \"{path}\"}".to_owned());
        Some(PlannedServer {
            url,
            model: own.model.clone(),
            key_file: own.key_file.clone(),
            logprobs: own.logprobs,
            parallel: own.parallel,
            timeout_s: own.timeout_s,
            max_retries: own.max_retries,
            reload_command: own.reload_command.clone(),
            reload_timeout_s: own.reload_timeout_s,
            reload_url: own.reload_url.clone(),
            reload_body: own.reload_body.clone().or_else(default_body),
            reload_every: own.reload_every,
        })
    }

    /// Most tokens of a sample, whatever its turns; `None` for a stage that learns from data.
    pub fn completion_limit(&self) -> Option<u64> {
        let rollout = self.planned_rollout()?;
        Some(self.planned_environment().map_or(rollout.max_new_tokens, |environment| environment.max_tokens))
    }
}

/// Keys that have no effect as the rest is written, and why.
pub(crate) fn useless(has: &dyn Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    let mut useless = Vec::new();
    if !has("environment.type") {
        let keys = [
            "environment.max_turns",
            "environment.max_tokens",
            "environment.rewritten_turns",
            "environment.parallel",
        ];
        useless.extend(keys.map(|key| (key, "no `environment.type`")));
    }
    if has("server") && !has("server.url") {
        useless.push(("server", "no `server.url`"));
    }
    if !has("server.reload_url") {
        useless.push(("server.reload_body", "no `server.reload_url`"));
    }
    if !has("server.reload_command") {
        useless.push(("server.reload_timeout_s", "no `server.reload_command`"));
    }
    if !has("server.reload_url") && !has("server.reload_command") {
        useless.push(("server.reload_every", "neither `server.reload_command` nor `server.reload_url`"));
    }
    useless
}
