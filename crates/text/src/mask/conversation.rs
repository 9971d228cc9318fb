//! Conversations: rendered, located, painted, tokenised.

use std::ops::Range;

use super::assemble::{self, Painter, TurnSpan};
use super::locate::{Located, Region, TurnBytes};
use super::plan::{CONTROL_FIELDS, MessagePlan, bad_row, plan, role};
use super::{Conversation, Example, Masker, Part, TrainOn};
use crate::error::{Origin, TextError};
use crate::show;
use crate::template::Message;

impl Masker<'_> {
    /// Renders, locates, paints and tokenises; messages before `n_prompt_messages` are the prompt.
    pub(super) fn rendered(
        &self,
        origin: &Origin,
        row: &Conversation,
        n_prompt_messages: usize,
    ) -> Result<Example, TextError> {
        let template = self.template(origin)?;
        let plans = self.plans(origin, row.messages, n_prompt_messages)?;
        let messages = for_template(row.messages);
        let inputs = self.inputs(row);
        let located = Located::new(template, &messages, &inputs).map_err(|e| e.in_row(origin))?;
        self.check_present(origin, &located, &messages, row.tools)?;
        check_marks(origin, &located, &messages)?;

        let base = if self.policy.train_on == TrainOn::All { 1.0 } else { 0.0 };
        let mut painter = Painter::new(located.text(), Part::Template, base);
        for region in &located.regions {
            let slot = &located.slots[region.slot];
            let part = if slot.is_content() { Part::Content } else { Part::Reasoning };
            painter.paint(&region.range, Some(part), Some(slot.message), None);
        }
        let mut turns = Vec::new();
        for (i, plan) in plans.iter().enumerate() {
            if base > 0.0 && !plan.overridden {
                continue;
            }
            if role(&messages[i]) == "assistant" && plan.weight > 0.0 {
                turns.push(self.paint_turn(origin, &located, &messages, i, plan, &mut painter)?);
            } else {
                paint_content(origin, &located, i, plan, &mut painter)?;
            }
        }
        let text = located.text().to_owned();
        let encoding = self.tokenizer.encode_whole(&text, false).map_err(|e| e.in_row(origin))?;
        let mut example = assemble::example(origin, text, encoding, painter.finish(), &turns);
        example.n_prompt = self.check_prompts(&example, &located, &turns, n_prompt_messages)?;
        self.finish(example, &messages)
    }

    fn plans(
        &self,
        origin: &Origin,
        messages: &[Message],
        n_prompt: usize,
    ) -> Result<Vec<MessagePlan>, TextError> {
        let last = messages.iter().rposition(|m| role(m) == "assistant");
        let by_default = |i: usize| match self.policy.train_on {
            TrainOn::All => true,
            // Rows with a prompt say what the completion is; conversations mean their last reply.
            TrainOn::Completion if n_prompt > 0 => i >= n_prompt && role(&messages[i]) == "assistant",
            TrainOn::Completion => Some(i) == last,
            TrainOn::Assistant => i >= n_prompt && role(&messages[i]) == "assistant",
        };
        messages.iter().enumerate().map(|(i, m)| plan(origin, i, m, by_default(i))).collect()
    }

    /// Paints one assistant message: what sampling it would produce, to the end of its turn.
    fn paint_turn(
        &self,
        origin: &Origin,
        located: &Located,
        messages: &[Message],
        i: usize,
        plan: &MessagePlan,
        painter: &mut Painter,
    ) -> Result<TurnSpan, TextError> {
        let bytes = match located.rendering.generation.is_empty() {
            true => located.turn(i),
            false => marked_turn(located, messages, i),
        };
        let bytes = bytes.map_err(|reason| cannot_locate(origin, located, i, reason))?;
        let end_of_turn = self.end_of_turn(located, messages, i, &bytes);
        let end = end_of_turn.as_ref().map_or_else(
            || bytes.range.start + located.text()[bytes.range.clone()].trim_end().len(),
            |r| r.end,
        );
        let content_end = located.regions_of(i).next_back().map_or(bytes.range.start, |r| r.range.end);
        let range = bytes.range.start..end.max(content_end);
        match &plan.spans {
            None => painter.paint(&range, None, Some(i), Some(plan.weight)),
            Some(_) => {
                painter.paint(&range, None, Some(i), Some(0.0));
                paint_content(origin, located, i, plan, painter)?;
            }
        }
        if let Some(end_of_turn) = &end_of_turn {
            let weight = if self.policy.train_end_of_turn { plan.weight } else { 0.0 };
            painter.paint(end_of_turn, Some(Part::EndOfTurn), Some(i), Some(weight));
        }
        Ok(TurnSpan { message: i, range, end_of_turn, prompt_is_prefix: bytes.prompt_is_prefix })
    }

    /// The text that ends a turn: the first special tokens after its content (the last ones, when tool
    /// calls come between), or else all that the template writes there, white space at its end aside.
    /// Some templates end the whole conversation with one more token; that is not the turn's.
    fn end_of_turn(
        &self,
        located: &Located,
        messages: &[Message],
        i: usize,
        bytes: &TurnBytes,
    ) -> Option<Range<usize>> {
        let text = located.text();
        let content_end = located.regions_of(i).next_back().map_or(bytes.range.start, |r| r.range.end);
        if !bytes.end_is_known {
            // Only what follows the content at once can be trusted to end it.
            let tail = &text[content_end..];
            let start = content_end + (tail.len() - tail.trim_start().len());
            let token =
                self.tokenizer.special_texts().iter().find(|t| text[start..].starts_with(t.as_str()))?;
            return Some(start..start + token.len());
        }
        let tail = &text[content_end..bytes.range.end.max(content_end)];
        let calls_tools = messages[i].get("tool_calls").is_some_and(|t| !t.is_null());
        if let Some(found) = self.special_run(tail, calls_tools) {
            return Some(content_end + found.start..content_end + found.end);
        }
        let tail = tail.trim_end();
        let len = match calls_tools {
            false => tail.len(),
            // After tool calls it is what ends a plain message.
            true => located.plain_end_of_turn(i).filter(|end| tail.ends_with(end.as_str()))?.len(),
        };
        let end = content_end + tail.len();
        (len > 0).then(|| end - len..end)
    }

    /// The first or last run of special tokens without anything between them.
    fn special_run(&self, text: &str, last: bool) -> Option<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let starts = |t: &&String| text[at..].starts_with(t.as_str());
            match self.tokenizer.special_texts().iter().filter(starts).map(String::len).max() {
                Some(len) => {
                    match runs.last_mut() {
                        Some(run) if run.end == at => run.end += len,
                        _ => runs.push(at..at + len),
                    }
                    at += len;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        if last { runs.pop() } else { runs.into_iter().next() }
    }
}

/// The messages as the template sees them.
pub(super) fn for_template(messages: &[Message]) -> Vec<Message> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        message.retain(|key, _| !CONTROL_FIELDS.contains(&key.as_str()));
        alias_reasoning(message);
    }
    messages
}

/// As transformers (5.23) does before it renders: whatever name a message gives its reasoning, it is
/// also `reasoning_content`, and `thinking` unless that is something else.
fn alias_reasoning(message: &mut Message) {
    let named = |name: &&str| message.get(*name).is_some_and(|v| !v.is_null());
    let Some(name) = ["reasoning_content", "thinking", "reasoning"].into_iter().find(named) else { return };
    let reasoning = message[name].clone();
    message.insert("reasoning_content".into(), reasoning.clone());
    if !message.contains_key("thinking") {
        message.shift_insert(0, "thinking".into(), reasoning);
    }
}

/// The turn of an assistant message by the template's own `{% generation %}` marks.
fn marked_turn(located: &Located, messages: &[Message], i: usize) -> Result<TurnBytes, String> {
    let spans = &located.rendering.generation;
    let holds = |span: &&Range<usize>| {
        located.regions_of(i).any(|r| span.start < r.range.end && r.range.start < span.end)
    };
    let mut found: Vec<&Range<usize>> = spans.iter().filter(holds).collect();
    if found.is_empty() {
        let replies: Vec<usize> =
            (0..messages.len()).filter(|m| role(&messages[*m]) == "assistant").collect();
        let nth = replies.iter().position(|m| *m == i).filter(|_| replies.len() == spans.len());
        found.extend(nth.map(|n| &spans[n]));
    }
    let start = found.iter().map(|s| s.start).min().ok_or("no {% generation %} block holds it")?;
    let end = found.iter().map(|s| s.end).max().ok_or("no {% generation %} block holds it")?;
    if let Some(r) = located.regions_of(i).find(|r| r.range.start < start || end < r.range.end) {
        return Err(format!(
            "its {} is partly outside the {{% generation %}} block",
            located.slots[r.slot].field
        ));
    }
    let prompt_is_prefix = located.prompt_end(i) == Some(start);
    Ok(TurnBytes { range: start..end, prompt_is_prefix, end_is_known: true })
}

/// The template's marks may hold nothing that somebody else wrote.
fn check_marks(origin: &Origin, located: &Located, messages: &[Message]) -> Result<(), TextError> {
    for span in &located.rendering.generation {
        let inside = |r: &&Region| {
            let foreign = role(&messages[located.slots[r.slot].message]) != "assistant";
            foreign && r.range.start < span.end && span.start < r.range.end
        };
        if let Some(region) = located.regions.iter().find(inside) {
            let reason =
                "the template's {% generation %} block holds it, and it is not the assistant's".to_owned();
            return Err(cannot_locate(origin, located, located.slots[region.slot].message, reason));
        }
    }
    Ok(())
}

/// Paints a message's content: all of it, or its spans.
fn paint_content(
    origin: &Origin,
    located: &Located,
    i: usize,
    plan: &MessagePlan,
    painter: &mut Painter,
) -> Result<(), TextError> {
    let regions: Vec<_> = located.regions_of(i).filter(|r| located.slots[r.slot].is_content()).collect();
    let Some(spans) = &plan.spans else {
        regions.iter().for_each(|r| painter.paint(&r.range, None, None, Some(plan.weight)));
        return Ok(());
    };
    let ([region], Some(content)) = (regions.as_slice(), located.content(i)) else {
        return Err(cannot_locate(origin, located, i, "train_spans need a content that is one text".into()));
    };
    let Some(lead) = region.lead else {
        return Err(cannot_locate(
            origin,
            located,
            i,
            "train_spans need a content that the template keeps".into(),
        ));
    };
    painter.paint(&region.range, None, None, Some(0.0));
    let byte_of = |chars: usize| content.char_indices().nth(chars).map_or(content.len(), |(b, _)| b);
    for span in spans {
        let n_chars = content.chars().count();
        if span.start > span.end || span.end > n_chars {
            let found = format!("[{}, {}]", span.start, span.end);
            return Err(bad_row(
                origin,
                &format!("messages[{i}].train_spans"),
                &found,
                &format!("0 <= start <= end <= {n_chars}"),
            ));
        }
        let at =
            |chars: usize| (region.range.start + byte_of(chars).saturating_sub(lead)).min(region.range.end);
        painter.paint(&(at(span.start)..at(span.end)), None, None, Some(plan.weight));
    }
    Ok(())
}

pub(super) fn cannot_locate(origin: &Origin, located: &Located, message: usize, reason: String) -> TextError {
    TextError::CannotLocate {
        origin: origin.clone(),
        message,
        role: located.role(message).to_owned(),
        reason,
        shown: show::excerpt(located.text()),
    }
}
