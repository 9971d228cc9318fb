//! The environment of a stage: built from its plan, held against its rows and its chat template before anything is sampled.

use pt_data::{Body, Content, Message as DataMessage, Record};
use pt_environments::Environment;
use pt_recipe::{PlannedEnvironment, RewrittenTurns};
use pt_text::{Conversation, Masker, Message, Origin};
use serde_json::{Map, Value, json};

use super::play::Scene;
use crate::error::{PipelineError, Result};
use crate::example::{template_messages, text_origin};
use crate::stop::stop_token_ids;

/// How far an episode may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Turns of the model.
    pub(crate) max_turns: usize,
    /// Tokens after the prompt, the environment's too.
    pub(crate) max_tokens: usize,
    /// Whether an episode goes on where the template would write earlier turns in another way.
    pub(crate) keeps_rewritten: bool,
}

/// An environment with its limits.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) environment: Box<dyn Environment>,
    pub(crate) limits: Limits,
    /// Episodes that it works on at once.
    pub(crate) n_workers: usize,
}

impl Stage {
    /// The environment that a plan names.
    ///
    /// # Errors
    /// Options that are not understood.
    pub(crate) fn new(planned: &PlannedEnvironment) -> Result<Stage> {
        let options = toml::Table::try_from(&planned.params).expect("parameters read from TOML are TOML");
        Ok(Stage {
            environment: pt_environments::build(&planned.r#type, &options)?,
            limits: Limits {
                max_turns: planned.max_turns as usize,
                max_tokens: planned.max_tokens as usize,
                keeps_rewritten: planned.rewritten_turns == RewrittenTurns::Keep,
            },
            n_workers: planned.parallel as usize,
        })
    }

    /// Gives rows without tools those of the environment, and refuses rows it cannot play.
    ///
    /// # Errors
    /// The first such row, with its place.
    pub(crate) fn prepare_rows(&self, records: &mut [Record]) -> Result<()> {
        let own = self.environment.tools();
        for record in records {
            if record.tools.as_ref().is_none_or(Vec::is_empty) && !own.is_empty() {
                record.tools = Some(own.clone());
            }
            let refuse = |problem: String| PipelineError::EnvironmentRow {
                origin: record.origin.to_string(),
                environment: self.environment.name(),
                problem,
            };
            let tools = record.tools.as_deref().unwrap_or_default();
            self.environment.check(&record.extra, tools).map_err(refuse)?;
            if messages_of(record).last().is_some_and(|message| message["role"] == "assistant") {
                return Err(refuse("its last message is the assistant's; it must be a question".to_owned()));
            }
        }
        Ok(())
    }

    /// Refuses a template with which conversations cannot grow.
    ///
    /// # Errors
    /// That says what it does.
    pub(crate) fn check_template(&self, masker: &Masker<'_>) -> Result<()> {
        let tools = Some(Value::Array(self.environment.tools())).filter(|tools| tools != &json!([]));
        let Some(template) = masker.template else {
            return Err(PipelineError::Unsupported {
                what: "an environment talks with the model, and there is no chat template".to_owned(),
                advice: "name one with data.chat_template".to_owned(),
            });
        };
        let parts: [(Message, Vec<Message>); 2] = [
            (message(json!({"role": "assistant", "content": "Hello"})), vec![message(user())]),
            (
                message(json!({"role": "assistant", "content": "", "tool_calls": [call()]})),
                vec![message(json!({"role": "tool", "name": "f", "tool_call_id": "call_0", "content": "4"}))],
            ),
        ];
        let question = [message(user())];
        let prompt = |tools| {
            let row = Conversation { messages: &question, tools, ..Conversation::default() };
            masker.prompt(&Origin::new("the environment's trial of the chat template", 0), &row)
        };
        if tools.is_some() && prompt(tools.as_ref())? == prompt(None)? {
            return Err(PipelineError::Unsupported {
                what: "the chat template does not show the model its tools".to_owned(),
                advice: "name one that does with data.chat_template".to_owned(),
            });
        }
        let wanted = if tools.is_some() { &parts[1] } else { &parts[0] };
        let said = [message(user()), wanted.0.clone()];
        let row = Conversation { messages: &said, tools: tools.as_ref(), ..Conversation::default() };
        let origin = Origin::new("the environment's trial of the chat template", 0);
        let mut trials = stop_token_ids(masker.tokenizer, Some(template))
            .into_iter()
            .map(|end| masker.continuation(&origin, &row, &wanted.1, end));
        let first = trials.next().unwrap_or_else(|| {
            Err(pt_text::TextError::NoContinuation {
                origin: origin.clone(),
                reason: "neither the tokenizer nor the template has a token that ends a turn".to_owned(),
                shown: String::new(),
            })
        });
        let best = std::iter::once(first)
            .chain(trials)
            .reduce(|best, other| if best.is_ok() { best } else { other });
        if best.expect("at least one")?.is_rewritten && !self.limits.keeps_rewritten {
            return Err(PipelineError::Unsupported {
                what: "the chat template writes earlier turns in another way when more follows".to_owned(),
                advice:
                    "name another with data.chat_template, or train on the tokens as they were sampled with \
                         environment.rewritten_turns = \"keep\""
                        .to_owned(),
            });
        }
        Ok(())
    }
}

fn message(value: Value) -> Message {
    let Value::Object(message) = value else { unreachable!("written as an object") };
    message
}

fn user() -> Value {
    json!({"role": "user", "content": "Hello"})
}

fn call() -> Value {
    json!({"id": "call_0", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}})
}

/// What a row's episodes begin with.
pub(super) fn scene_of(record: &Record) -> Scene {
    Scene {
        origin: text_origin(record),
        messages: messages_of(record),
        tools: record.tools.clone().map(Value::Array),
        kwargs: record.chat_template_kwargs.clone(),
    }
}

/// The prompt's messages, as the template renders them.
pub(super) fn messages_of(record: &Record) -> Vec<Message> {
    let prompt = match &record.body {
        Body::PromptOnly { prompt }
        | Body::PromptCompletion { prompt, .. }
        | Body::Unpaired { prompt, .. }
        | Body::Preference { prompt: Some(prompt), .. } => prompt,
        _ => return Vec::new(),
    };
    match prompt {
        Content::Text(text) => template_messages(&[DataMessage::new("user", text.clone())]),
        Content::Messages(messages) => template_messages(messages),
        Content::Segments(_) => Vec::new(),
    }
}

/// The columns a verifier sees of a sample from an environment: the row's, and `episode`.
pub(crate) fn row_with_episode(record: &Record, played: &super::play::Played) -> Map<String, Value> {
    let mut row = record.extra.clone();
    row.insert(
        EPISODE.to_owned(),
        json!({
            "messages": played.messages,
            "turns": played.n_turns,
            "tool_calls": played.n_calls,
            "tool_failures": played.n_failures,
            "verdict": played.verdict,
        }),
    );
    row
}

/// The column that holds what happened in the environment.
pub(crate) const EPISODE: &str = "episode";
