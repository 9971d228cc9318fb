//! A model behind an OpenAI-compatible server.

use pt_client::{Client, ClientError, Completion, Counts, Price, Prompt, Request};
use serde_json::{Map, Value};

use crate::chat::{Answer, Answers, Ask, AskOptions, Chat, Tally, Token};
use crate::error::{FeedbackError, Result};

/// Asks a server, through the client's cache, retries and rate limit.
pub struct ServerChat {
    client: Client,
    model: String,
    max_parallel: usize,
    price: Price,
    /// Further members of every request.
    extra: Map<String, Value>,
}

impl std::fmt::Debug for ServerChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerChat {{ model {}, max_parallel {} }}", self.model, self.max_parallel)
    }
}

impl ServerChat {
    /// The server's only model, or the one named.
    ///
    /// # Errors
    /// If no model is named and the server has not exactly one, or cannot be asked.
    pub fn new(client: Client, model: Option<&str>, max_parallel: usize, price: Price) -> Result<ServerChat> {
        let model = match model {
            Some(model) => model.to_owned(),
            None => only(client.models()?)?,
        };
        Ok(ServerChat { client, model, max_parallel, price, extra: Map::new() })
    }

    /// With further members in every request, as `chat_template_kwargs`.
    #[must_use]
    pub fn with_extra(mut self, extra: Map<String, Value>) -> ServerChat {
        self.extra = extra;
        self
    }

    /// What went over the wire so far.
    pub fn counts(&self) -> Counts {
        self.client.counts()
    }

    fn request(&self, ask: &Ask, options: &AskOptions) -> Request {
        let message = |turn: &crate::Turn| {
            let pair = |key: &str, text: &str| (key.to_owned(), Value::from(text));
            Map::from_iter([pair("role", &turn.role), pair("content", &turn.content)])
        };
        let mut request =
            Request::new(&*self.model, Prompt::Chat(ask.messages.iter().map(message).collect()));
        request.max_tokens = Some(options.max_tokens);
        request.temperature = Some(options.temperature);
        // 53 bits: what every JSON reader keeps, and every server's signed integer.
        request.seed = Some(ask.seed >> 11);
        request.logprobs = (options.top_logprobs > 0).then_some(options.top_logprobs);
        request.extra = self.extra.clone();
        request
    }
}

fn only(models: Vec<String>) -> Result<String> {
    match models.as_slice() {
        [model] => Ok(model.clone()),
        models => Err(FeedbackError::Option {
            name: "model",
            found: format!("not given, and the server has {}: {}", models.len(), models.join(", ")),
            expected: "the name of one",
        }),
    }
}

fn answer(completion: Completion) -> std::result::Result<Answer, String> {
    let usage = completion.usage.unwrap_or_default();
    let choice = completion.choices.into_iter().next().ok_or("the answer has no choice")?;
    let token = |token: pt_client::TokenLogprob| {
        Some(Token { text: token.token, logprob: token.logprob?, top: token.top })
    };
    Ok(Answer {
        text: choice.text,
        tokens: choice.logprobs.unwrap_or_default().into_iter().filter_map(token).collect(),
        is_truncated: choice.finish_reason.as_deref() == Some("length"),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
    })
}

impl Chat for ServerChat {
    fn name(&self) -> &str {
        &self.model
    }

    fn ask_all(&self, asks: &[Ask], options: &AskOptions) -> Result<Answers> {
        let requests: Vec<Request> = asks.iter().map(|ask| self.request(ask, options)).collect();
        let outcomes = self.client.complete_all(&requests, self.max_parallel);
        let one = |outcome: std::result::Result<Completion, ClientError>| match outcome {
            Ok(completion) => Ok(answer(completion)),
            // What a server did is data; what this machine's disk did stops the run.
            Err(error @ ClientError::Request { .. }) => Ok(Err(reason(&error))),
            Err(error) => Err(FeedbackError::from(error)),
        };
        outcomes.into_iter().map(one).collect()
    }

    fn cost(&self, tokens: &Tally) -> f64 {
        let usage = pt_client::Usage {
            prompt_tokens: tokens.prompt_tokens,
            completion_tokens: tokens.completion_tokens,
        };
        self.price.of(&usage)
    }
}

/// What happened, without the address, so that outputs do not depend on it.
fn reason(error: &ClientError) -> String {
    error.trouble().map_or_else(|| error.to_string(), ToString::to_string)
}
