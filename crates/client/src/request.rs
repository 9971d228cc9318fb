//! What is asked of a server.

use serde_json::{Map, Value, json};

/// What is to be continued or answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Messages, for the server's chat template: `{"role": ..., "content": ...}`.
    Chat(Vec<Map<String, Value>>),
    /// Text, continued as it is.
    Text(String),
    /// Token ids, continued as they are (vLLM, SGLang, `posttrain serve`).
    TokenIds(Vec<u32>),
}

/// One request for completions. What is `None` is left to the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The server's name of the model.
    pub model: String,
    /// What is to be continued.
    pub prompt: Prompt,
    /// Choices.
    pub n: u32,
    /// Most tokens of each choice.
    pub max_tokens: Option<u32>,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Only the most probable tokens that together reach this probability.
    pub top_p: Option<f64>,
    /// Keys the draws, where the server has such a thing.
    pub seed: Option<u64>,
    /// Texts that end a choice; they are not part of it.
    pub stop: Vec<String>,
    /// Log-probabilities of the sampled tokens, and of this many alternatives each.
    pub logprobs: Option<u32>,
    /// Tools in the server's chat template (chat only).
    pub tools: Option<Value>,
    /// `auto`, `none`, ... (chat only).
    pub tool_choice: Option<Value>,
    /// Further members of the body as they are, for what only some servers have (`top_k`, `echo`,
    /// `chat_template_kwargs`, `return_token_ids`, ...). They count over the fields above.
    pub extra: Map<String, Value>,
}

impl Request {
    /// One choice, all else left to the server.
    pub fn new(model: impl Into<String>, prompt: Prompt) -> Request {
        Request {
            model: model.into(),
            prompt,
            n: 1,
            max_tokens: None,
            temperature: None,
            top_p: None,
            seed: None,
            stop: Vec::new(),
            logprobs: None,
            tools: None,
            tool_choice: None,
            extra: Map::new(),
        }
    }

    /// A user's message.
    pub fn chat(model: impl Into<String>, user: &str) -> Request {
        let message = [("role".to_owned(), json!("user")), ("content".to_owned(), json!(user))];
        Request::new(model, Prompt::Chat(vec![Map::from_iter(message)]))
    }

    /// Text to continue.
    pub fn text(model: impl Into<String>, prompt: &str) -> Request {
        Request::new(model, Prompt::Text(prompt.to_owned()))
    }

    /// Where it goes, below the base address.
    pub fn path(&self) -> &'static str {
        match self.prompt {
            Prompt::Chat(_) => "chat/completions",
            Prompt::Text(_) | Prompt::TokenIds(_) => "completions",
        }
    }

    /// What is sent. The same request gives the same bytes.
    pub fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(self.model));
        match &self.prompt {
            Prompt::Chat(messages) => body.insert("messages".to_owned(), json!(messages)),
            Prompt::Text(text) => body.insert("prompt".to_owned(), json!(text)),
            Prompt::TokenIds(ids) => body.insert("prompt".to_owned(), json!(ids)),
        };
        let stop = (!self.stop.is_empty()).then(|| json!(self.stop));
        let optional = [
            ("n", Some(json!(self.n))),
            ("max_tokens", self.max_tokens.map(|n| json!(n))),
            ("temperature", self.temperature.map(|t| json!(t))),
            ("top_p", self.top_p.map(|p| json!(p))),
            ("seed", self.seed.map(|s| json!(s))),
            ("stop", stop),
        ];
        let given = optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        body.extend(given);
        self.insert_by_kind(&mut body);
        body.extend(self.extra.clone());
        body
    }

    fn insert_by_kind(&self, body: &mut Map<String, Value>) {
        let is_chat = matches!(self.prompt, Prompt::Chat(_));
        match self.logprobs {
            Some(n) if is_chat => {
                body.insert("logprobs".to_owned(), json!(true));
                body.insert("top_logprobs".to_owned(), json!(n));
            }
            Some(n) => {
                body.insert("logprobs".to_owned(), json!(n));
            }
            None => {}
        }
        for (key, value) in [("tools", &self.tools), ("tool_choice", &self.tool_choice)] {
            if let Some(value) = value {
                body.insert(key.to_owned(), value.clone());
            }
        }
    }
}
