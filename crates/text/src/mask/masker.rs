//! Rows of every layout, turned into examples.

use std::ops::Range;

use serde_json::{Map, Value as Json};

use super::assemble::{self, Painter, TurnSpan};
use super::locate::{Located, TurnBytes};
use super::{Example, MaskPolicy, Part, TrainOn};
use crate::audit::{AuditError, AuditPolicy, audit_example};
use crate::error::{Origin, TextError};
use crate::show;
use crate::template::{ChatTemplate, Message, TemplateInputs};
use crate::tokenizer::{Encoding, Tokenizer};

/// Message fields that direct training and are hidden from the template: `train` (bool), `weight`
/// (number, at least 0) and `train_spans` (`[[start, end], ...]` in code points of the content).
pub const CONTROL_FIELDS: [&str; 3] = ["train", "weight", "train_spans"];

/// Tokens that a prompt mismatch shows before and after where it starts.
const SHOWN_BEFORE: usize = 4;
const SHOWN_AFTER: usize = 6;

/// A conversation as a row gives it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conversation<'a> {
    /// The messages.
    pub messages: &'a [Message],
    /// Tool schemas.
    pub tools: Option<&'a Json>,
    /// Documents for retrieval templates.
    pub documents: Option<&'a Json>,
    /// Keyword arguments of the template (`chat_template_kwargs`).
    pub kwargs: Option<&'a Map<String, Json>>,
}

/// What the model continues from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// The ids.
    pub token_ids: Vec<u32>,
}

/// Which tokens of a row that came as ids train.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// All of them.
    All,
    /// Those that are true (`completion_mask`, `assistant_masks`).
    Mask(&'a [bool]),
    /// Those that are not -100 (`labels`); the others must equal the ids.
    Labels(&'a [i64]),
    /// With these weights.
    Weights(&'a [f32]),
}

/// Makes examples from rows, and refuses rows that would train the wrong thing.
pub struct Masker<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template, which conversations need.
    pub template: Option<&'a ChatTemplate>,
    /// What trains.
    pub policy: MaskPolicy,
    /// What is refused.
    pub audit: AuditPolicy,
}

/// How one message trains.
struct MessagePlan {
    weight: f32,
    spans: Option<Vec<Range<usize>>>,
    overridden: bool,
}

impl<'a> Masker<'a> {
    /// A masker with the strict audit.
    pub fn new(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>, policy: MaskPolicy) -> Self {
        Self { tokenizer, template, policy, audit: AuditPolicy::default() }
    }

    /// A conversation (`messages`).
    ///
    /// # Errors
    /// Any [`TextError`], with the row's origin.
    pub fn conversation(&self, origin: &Origin, row: &Conversation) -> Result<Example, TextError> {
        self.rendered(origin, row, 0)
    }

    /// A prompt and a completion that are messages. The prompt does not train unless the policy is
    /// [`TrainOn::All`] or a message says so.
    ///
    /// # Errors
    /// Any [`TextError`], with the row's origin.
    pub fn prompt_completion(
        &self,
        origin: &Origin,
        prompt: &Conversation,
        completion: &[Message],
    ) -> Result<Example, TextError> {
        if completion.is_empty() {
            return Err(bad_row(origin, "completion", "no messages", "at least one message"));
        }
        let messages = [prompt.messages, completion].concat();
        let row = Conversation { messages: &messages, ..*prompt };
        self.rendered(origin, &row, prompt.messages.len())
    }

    /// A prompt and a completion that are plain text, tokenised as one text with EOS at its end.
    ///
    /// # Errors
    /// Any [`TextError`], with the row's origin.
    pub fn prompt_completion_text(&self, origin: &Origin, prompt: &str, completion: &str) -> Result<Example, TextError> {
        let text = format!("{prompt}{completion}");
        let prompt_weight = if self.policy.train_on == TrainOn::All { 1.0 } else { 0.0 };
        let mut painter = Painter::new(&text, Part::Completion, 1.0);
        painter.paint(&(0..prompt.len()), Some(Part::Prompt), None, Some(prompt_weight));
        let mut example = self.plain(origin, text, painter)?;
        example.n_prompt = self.check_prefix(&example, prompt, true)?;
        self.finish(example, &[])
    }

    /// Plain text, with EOS at its end. Every token trains.
    ///
    /// # Errors
    /// Any [`TextError`], with the row's origin.
    pub fn text(&self, origin: &Origin, text: &str) -> Result<Example, TextError> {
        let painter = Painter::new(text, Part::Text, 1.0);
        let example = self.plain(origin, text.to_owned(), painter)?;
        self.finish(example, &[])
    }

    /// A row that came as token ids.
    ///
    /// # Errors
    /// [`TextError::BadTokenId`], [`TextError::BadRow`] when lengths differ or labels are not the ids,
    /// and the audit's.
    pub fn pretokenised(&self, origin: &Origin, token_ids: &[u32], targets: Targets) -> Result<Example, TextError> {
        let n_tokens = self.tokenizer.vocab_size();
        if let Some(position) = token_ids.iter().position(|id| *id as usize >= n_tokens) {
            return Err(TextError::BadTokenId { origin: origin.clone(), id: token_ids[position], position, n_tokens });
        }
        let weights = weights_of(origin, token_ids, targets)?;
        let (text, offsets) = self.tokenizer.decode_with_offsets(token_ids)?;
        let painter = Painter::new(&text, Part::Tokens, 1.0);
        let encoding = Encoding { ids: token_ids.to_vec(), offsets };
        let mut example = assemble::example(origin, text, encoding, painter.finish(), &[]);
        example.weights = weights;
        example.straddling.clear();
        self.finish(example, &[])
    }

    /// The prompt that sampling continues: the conversation with the template's generation prompt, or,
    /// when its last message is the assistant's, that message left open.
    ///
    /// # Errors
    /// Any [`TextError`], with the row's origin.
    pub fn prompt(&self, origin: &Origin, row: &Conversation) -> Result<Prompt, TextError> {
        let template = self.template(origin)?;
        let messages = for_template(row.messages);
        let inputs = self.inputs(row);
        let open = messages.last().is_some_and(|m| role(m) == "assistant");
        let text = if open {
            let located = Located::new(template, &messages, &inputs).map_err(|e| e.in_row(origin))?;
            let last = located.regions_of(messages.len() - 1).next_back().map(|r| r.range.end);
            let end = last.ok_or_else(|| {
                cannot_locate(origin, &located, messages.len() - 1, "it has no content to continue".to_owned())
            })?;
            located.text()[..end].to_owned()
        } else {
            template.render(&messages, true, &inputs).map_err(|e| e.in_row(origin))?
        };
        let encoding = self.tokenizer.encode_whole(&text, false).map_err(|e| e.in_row(origin))?;
        Ok(Prompt { text, token_ids: encoding.ids })
    }

    /// A plain-text prompt, with BOS as the tokenizer adds it and without EOS.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`], with the row's origin.
    pub fn prompt_text(&self, origin: &Origin, prompt: &str) -> Result<Prompt, TextError> {
        let encoding = self.encode_open(origin, prompt)?;
        Ok(Prompt { text: prompt.to_owned(), token_ids: encoding.ids })
    }

    fn template(&self, origin: &Origin) -> Result<&'a ChatTemplate, TextError> {
        let hint = "the row holds messages and no template was given".to_owned();
        self.template.ok_or_else(|| TextError::NoChatTemplate { name: "default".into(), hint }.in_row(origin))
    }

    fn inputs(&self, row: &Conversation) -> TemplateInputs {
        let mut variables = self.tokenizer.template_variables();
        for (name, value) in row.kwargs.into_iter().flatten() {
            variables.insert(name.clone(), value.clone());
        }
        TemplateInputs { tools: row.tools.cloned(), documents: row.documents.cloned(), variables }
    }

    /// Renders, locates, paints and tokenises; messages before `n_prompt_messages` are the prompt.
    fn rendered(&self, origin: &Origin, row: &Conversation, n_prompt_messages: usize) -> Result<Example, TextError> {
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

    fn plans(&self, origin: &Origin, messages: &[Message], n_prompt: usize) -> Result<Vec<MessagePlan>, TextError> {
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
            let token = self.tokenizer.special_texts().iter().find(|t| text[start..].starts_with(t.as_str()))?;
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

    fn check_present(
        &self,
        origin: &Origin,
        located: &Located,
        messages: &[Message],
        tools: Option<&Json>,
    ) -> Result<(), TextError> {
        if !self.audit.dropped_content {
            return Ok(());
        }
        let dropped = |message: Option<usize>, what: String| {
            let shown = show::excerpt(located.text());
            let role = message.map_or_else(String::new, |i| role(&messages[i]).to_owned());
            Err(AuditError::MessageDropped { origin: origin.clone(), message, role, what, shown }.into())
        };
        let text = located.text();
        for &slot in &located.missing {
            let slot = &located.slots[slot];
            let is_last = slot.message + 1 == messages.len();
            let reasoned = located.regions_of(slot.message).any(|r| !located.slots[r.slot].is_content());
            if slot.is_content() || (is_last && !reasoned) {
                return dropped(Some(slot.message), slot.field.clone());
            }
        }
        if text.contains("[{'type': 'text', 'text': ") && messages.iter().any(|m| m["content"].is_array()) {
            return dropped(None, "a content of typed parts, which it prints as a Python list; flatten it to text".into());
        }
        for (i, message) in messages.iter().enumerate() {
            let calls = message.get("tool_calls").and_then(Json::as_array).is_some_and(|c| !c.is_empty());
            if calls && located.ignores(|messages, _| drop(messages[i].remove("tool_calls"))) {
                return dropped(Some(i), "tool_calls".into());
            }
        }
        let has_tools = tools.and_then(Json::as_array).is_some_and(|t| !t.is_empty());
        if has_tools && located.ignores(|_, inputs| inputs.tools = None) {
            return dropped(None, "tools".into());
        }
        Ok(())
    }

    /// Checks that what precedes trained turns is tokenised as a prompt would be; returns the number of
    /// prompt tokens.
    fn check_prompts(
        &self,
        example: &Example,
        located: &Located,
        turns: &[TurnSpan],
        n_prompt_messages: usize,
    ) -> Result<usize, TextError> {
        let last = turns.iter().map(|t| t.message).max();
        let mut n_prompt = 0;
        for span in turns {
            let is_first_reply = n_prompt_messages > 0 && span.message == n_prompt_messages;
            if is_first_reply || Some(span.message) == last {
                let prompt = located.prompt_text(span.message).unwrap_or_default();
                let n = match span.prompt_is_prefix || self.audit.prompt_prefix {
                    true => self.check_prefix(example, &prompt, false)?,
                    false => span_tokens(example, span.range.start),
                };
                n_prompt = if is_first_reply { n } else { n_prompt };
            } else if self.audit.prompt_prefix {
                let crosses = |r: &Range<usize>| r.start < span.range.start && span.range.start < r.end;
                if example.offsets.iter().any(crosses) {
                    self.check_prefix(example, &example.text[..span.range.start], false)?;
                }
            }
        }
        Ok(n_prompt)
    }

    /// Checks that the tokens of `prompt` start the example; returns how many they are.
    fn check_prefix(&self, example: &Example, prompt: &str, add_special: bool) -> Result<usize, TextError> {
        let ids = match add_special {
            true => self.encode_open(&example.origin, prompt)?.ids,
            false => self.tokenizer.encode(prompt, false).map_err(|e| e.in_row(&example.origin))?.ids,
        };
        if self.audit.prompt_prefix && !example.token_ids.starts_with(&ids) {
            return Err(self.not_prefix(example, &ids));
        }
        Ok(ids.len())
    }

    fn not_prefix(&self, example: &Example, prompt_ids: &[u32]) -> TextError {
        let differs = prompt_ids.iter().zip(&example.token_ids).take_while(|(a, b)| a == b).count();
        let near = |ids: &[u32]| {
            let from = differs.saturating_sub(SHOWN_BEFORE).min(ids.len());
            show::tokens(self.tokenizer, &ids[from..(differs + SHOWN_AFTER).min(ids.len())])
        };
        AuditError::PromptNotPrefix {
            origin: example.origin.clone(),
            position: differs,
            prompt: near(prompt_ids),
            row: near(&example.token_ids),
        }
        .into()
    }

    /// Encodes with the special tokens that come before a text, not those after it.
    fn encode_open(&self, origin: &Origin, text: &str) -> Result<Encoding, TextError> {
        let mut encoding = self.tokenizer.encode_whole(text, true).map_err(|e| e.in_row(origin))?;
        let eos = self.tokenizer.eos_id();
        // EOS that the tokenizer appends stands for no text.
        while encoding.offsets.last().is_some_and(|r| r.is_empty())
            && encoding.ids.len() > 1
            && encoding.ids.last().copied() == eos
        {
            encoding.ids.pop();
            encoding.offsets.pop();
        }
        Ok(encoding)
    }

    /// Tokenises plain text and ends it with EOS, which trains as the text before it does.
    fn plain(&self, origin: &Origin, mut text: String, painter: Painter) -> Result<Example, TextError> {
        let needed_for = "ending plain text";
        let missing = || TextError::MissingToken { origin: origin.clone(), role: "eos_token", needed_for };
        let eos = self.tokenizer.eos_id().ok_or_else(missing)?;
        let mut encoding = self.encode_open(origin, &text)?;
        let mut pieces = painter.finish();
        if encoding.ids.last() != Some(&eos) || encoding.ids.len() == 1 && encoding.offsets[0].is_empty() {
            let start = text.len();
            text.push_str(self.tokenizer.config().eos.as_deref().unwrap_or_default());
            encoding.ids.push(eos);
            encoding.offsets.push(start..text.len());
            let weight = if self.policy.train_end_of_turn { 1.0 } else { 0.0 };
            pieces.push(super::Piece { range: start..text.len(), part: Part::Added, message: None, weight });
        }
        Ok(assemble::example(origin, text, encoding, pieces, &[]))
    }

    fn finish(&self, mut example: Example, messages: &[Message]) -> Result<Example, TextError> {
        audit_example(&example, self.tokenizer, &self.policy, &self.audit)?;
        self.check_special_in_content(&example, messages)?;
        if assemble::truncate(&mut example, &self.policy) {
            audit_example(&example, self.tokenizer, &self.policy, &self.audit)?;
        }
        Ok(example)
    }

    /// A special token written out in somebody's message can end the turn and speak as another role.
    fn check_special_in_content(&self, example: &Example, messages: &[Message]) -> Result<(), TextError> {
        if !self.audit.special_in_content || messages.is_empty() {
            return Ok(());
        }
        let in_content = |i: &usize| {
            matches!(example.piece_of(*i).part, Part::Content | Part::Reasoning)
                && self.tokenizer.is_special(example.token_ids[*i])
        };
        match (0..example.len()).find(in_content) {
            None => Ok(()),
            Some(position) => Err(AuditError::SpecialInContent {
                origin: example.origin.clone(),
                message: example.piece_of(position).message.unwrap_or(0),
                token: self.tokenizer.id_to_token(example.token_ids[position]).unwrap_or_default(),
                position,
                shown: show::around(example, self.tokenizer, position),
            }
            .into()),
        }
    }
}

/// Number of tokens that start before a byte.
fn span_tokens(example: &Example, byte: usize) -> usize {
    example.offsets.partition_point(|r| r.start < byte)
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
        let replies: Vec<usize> = (0..messages.len()).filter(|m| role(&messages[*m]) == "assistant").collect();
        let nth = replies.iter().position(|m| *m == i).filter(|_| replies.len() == spans.len());
        found.extend(nth.map(|n| &spans[n]));
    }
    let start = found.iter().map(|s| s.start).min().ok_or("no {% generation %} block holds it")?;
    let end = found.iter().map(|s| s.end).max().ok_or("no {% generation %} block holds it")?;
    if let Some(r) = located.regions_of(i).find(|r| r.range.start < start || end < r.range.end) {
        return Err(format!("its {} is partly outside the {{% generation %}} block", located.slots[r.slot].field));
    }
    let prompt_is_prefix = located.prompt_end(i) == Some(start);
    Ok(TurnBytes { range: start..end, prompt_is_prefix, end_is_known: true })
}

/// The template's marks may hold nothing that somebody else wrote.
fn check_marks(origin: &Origin, located: &Located, messages: &[Message]) -> Result<(), TextError> {
    for span in &located.rendering.generation {
        let inside = |r: &&super::locate::Region| {
            let foreign = role(&messages[located.slots[r.slot].message]) != "assistant";
            foreign && r.range.start < span.end && span.start < r.range.end
        };
        if let Some(region) = located.regions.iter().find(inside) {
            let reason = "the template's {% generation %} block holds it, and it is not the assistant's".to_owned();
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
        return Err(cannot_locate(origin, located, i, "train_spans need a content that the template keeps".into()));
    };
    painter.paint(&region.range, None, None, Some(0.0));
    let byte_of = |chars: usize| content.char_indices().nth(chars).map_or(content.len(), |(b, _)| b);
    for span in spans {
        let n_chars = content.chars().count();
        if span.start > span.end || span.end > n_chars {
            let found = format!("[{}, {}]", span.start, span.end);
            return Err(bad_row(origin, &format!("messages[{i}].train_spans"), &found, &format!("0 <= start <= end <= {n_chars}")));
        }
        let at = |chars: usize| (region.range.start + byte_of(chars).saturating_sub(lead)).min(region.range.end);
        painter.paint(&(at(span.start)..at(span.end)), None, None, Some(plan.weight));
    }
    Ok(())
}

/// Reads a message's control fields.
fn plan(origin: &Origin, i: usize, message: &Message, by_default: bool) -> Result<MessagePlan, TextError> {
    let field = |name: &str| message.get(name).filter(|v| !v.is_null());
    let wrong = |name: &str, found: &Json, expected: &str| {
        bad_row(origin, &format!("messages[{i}].{name}"), &found.to_string(), expected)
    };
    let train = match field("train") {
        None => None,
        Some(value) => Some(value.as_bool().ok_or_else(|| wrong("train", value, "true or false"))?),
    };
    let weight = match field("weight") {
        None => None,
        Some(value) => {
            let weight = value.as_f64().filter(|w| w.is_finite() && *w >= 0.0);
            Some(weight.ok_or_else(|| wrong("weight", value, "a number, at least 0"))? as f32)
        }
    };
    let spans = match field("train_spans") {
        None => None,
        Some(value) => {
            let spans: Result<Vec<[usize; 2]>, _> = serde_json::from_value(value.clone());
            let spans = spans.map_err(|_| wrong("train_spans", value, "[[start, end], ...] in code points"))?;
            Some(spans.into_iter().map(|[s, e]| s..e).collect::<Vec<_>>())
        }
    };
    let overridden = train.is_some() || weight.is_some() || spans.is_some();
    let on = train.unwrap_or(by_default || spans.is_some());
    Ok(MessagePlan { weight: if on { weight.unwrap_or(1.0) } else { 0.0 }, spans, overridden })
}

fn weights_of(origin: &Origin, token_ids: &[u32], targets: Targets) -> Result<Vec<f32>, TextError> {
    let (field, n) = match targets {
        Targets::All => return Ok(vec![1.0; token_ids.len()]),
        Targets::Mask(mask) => ("mask", mask.len()),
        Targets::Labels(labels) => ("labels", labels.len()),
        Targets::Weights(weights) => ("weights", weights.len()),
    };
    if n != token_ids.len() {
        return Err(bad_row(origin, field, &format!("{n} values"), &format!("{}, one per token id", token_ids.len())));
    }
    match targets {
        Targets::All => unreachable!("returned above"),
        Targets::Mask(mask) => Ok(mask.iter().map(|m| if *m { 1.0 } else { 0.0 }).collect()),
        Targets::Weights(weights) => match weights.iter().find(|w| !w.is_finite() || **w < 0.0) {
            Some(bad) => Err(bad_row(origin, field, &bad.to_string(), "finite weights, at least 0")),
            None => Ok(weights.to_vec()),
        },
        Targets::Labels(labels) => {
            let is_wrong = |(label, id): &(&i64, &u32)| **label != -100 && **label != i64::from(**id);
            if let Some((label, id)) = labels.iter().zip(token_ids).find(is_wrong) {
                return Err(bad_row(origin, field, &format!("label {label} for token id {id}"), "the id itself, or -100"));
            }
            Ok(labels.iter().map(|l| if *l == -100 { 0.0 } else { 1.0 }).collect())
        }
    }
}

fn role(message: &Message) -> &str {
    message.get("role").and_then(Json::as_str).unwrap_or_default()
}

/// The messages as the template sees them.
fn for_template(messages: &[Message]) -> Vec<Message> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        message.retain(|key, _| !CONTROL_FIELDS.contains(&key.as_str()));
        alias_reasoning(message);
    }
    messages
}

fn bad_row(origin: &Origin, field: &str, found: &str, expected: &str) -> TextError {
    TextError::BadRow { origin: origin.clone(), field: field.into(), found: found.into(), expected: expected.into() }
}

fn cannot_locate(origin: &Origin, located: &Located, message: usize, reason: String) -> TextError {
    TextError::CannotLocate {
        origin: origin.clone(),
        message,
        role: located.role(message).to_owned(),
        reason,
        shown: show::excerpt(located.text()),
    }
}
