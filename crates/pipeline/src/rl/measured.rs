//! Generated tasks answered in a stage's environment, as the stage trains.

use std::sync::Arc;

use pt_data::{Body, Content, Message, Origin, Record};
use pt_models::Model;
use pt_rollout::SamplingParams;
use pt_tasks::{Form, Problem};
use pt_text::{Conversation, MaskPolicy, Masker};
use serde_json::Value;

use super::environment::{Stage, messages_of};
use super::sampler::{Prompt, Sampler};
use crate::error::Result;
use crate::example::text_origin;
use crate::tasks::TaskOptions;

/// The last turn of an episode on each problem.
///
/// # Errors
/// A problem the environment cannot play, and those of rendering and sampling.
pub(crate) fn replies_in(
    stage: &Arc<Stage>,
    model: &Model,
    problems: &[Problem],
    task: &str,
    params: SamplingParams,
    options: &TaskOptions<'_>,
) -> Result<Vec<String>> {
    let mut records: Vec<Record> = problems.iter().enumerate().map(|(i, p)| record_of(p, task, i)).collect();
    stage.prepare_rows(&mut records)?;
    let masker = Masker::new(options.tokenizer, options.template, MaskPolicy::default());
    let prompt = |record: &Record| -> Result<Vec<u32>> {
        let (messages, tools) = (messages_of(record), record.tools.clone().map(Value::Array));
        let row = Conversation { messages: &messages, tools: tools.as_ref(), ..Conversation::default() };
        Ok(masker.prompt(&text_origin(record), &row)?.token_ids)
    };
    let ids = records.iter().map(prompt).collect::<Result<Vec<_>>>()?;
    let prompts: Vec<Prompt<'_>> = records
        .iter()
        .zip(ids)
        .enumerate()
        .map(|(key, (record, token_ids))| Prompt { key: key as u64, token_ids, record: Some(record) })
        .collect();
    let sampler = Sampler::of_params(options.tokenizer, options.template, params, options.dtype);
    let groups = sampler.with_stage(Some(stage.clone())).samples(model, &prompts)?;
    Ok(groups.into_iter().map(|mut group| group.pop().map(|drawn| drawn.text).unwrap_or_default()).collect())
}

fn record_of(problem: &Problem, task: &str, i: usize) -> Record {
    Record {
        body: Body::PromptOnly {
            prompt: Content::Messages(vec![Message::new("user", problem.prompt.clone())]),
        },
        tools: None,
        chat_template_kwargs: None,
        extra: pt_tasks::row(problem, Form::PromptOnly),
        origin: Origin::new(task, i + 1),
    }
}
