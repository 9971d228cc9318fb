//! Rows of every layout, turned into examples.

use serde_json::{Map, Value as Json};

use super::assemble::{self, Painter};
use super::conversation::{cannot_locate, for_template};
use super::locate::Located;
use super::plan::{bad_row, role, weights_of};
use super::{Example, MaskPolicy, Part, TrainOn};
use crate::audit::{AuditPolicy, audit_example};
use crate::error::{Origin, TextError};
use crate::template::{ChatTemplate, Message, TemplateInputs};
use crate::tokenizer::{Encoding, Tokenizer};

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
    pub fn prompt_completion_text(
        &self,
        origin: &Origin,
        prompt: &str,
        completion: &str,
    ) -> Result<Example, TextError> {
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
    pub fn pretokenised(
        &self,
        origin: &Origin,
        token_ids: &[u32],
        targets: Targets,
    ) -> Result<Example, TextError> {
        let n_tokens = self.tokenizer.vocab_size();
        if let Some(position) = token_ids.iter().position(|id| *id as usize >= n_tokens) {
            return Err(TextError::BadTokenId {
                origin: origin.clone(),
                id: token_ids[position],
                position,
                n_tokens,
            });
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
                cannot_locate(
                    origin,
                    &located,
                    messages.len() - 1,
                    "it has no content to continue".to_owned(),
                )
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

    pub(super) fn template(&self, origin: &Origin) -> Result<&'a ChatTemplate, TextError> {
        let hint = "the row holds messages and no template was given".to_owned();
        self.template.ok_or_else(|| TextError::NoChatTemplate { name: "default".into(), hint }.in_row(origin))
    }

    pub(super) fn inputs(&self, row: &Conversation) -> TemplateInputs {
        let mut variables = self.tokenizer.template_variables();
        for (name, value) in row.kwargs.into_iter().flatten() {
            variables.insert(name.clone(), value.clone());
        }
        TemplateInputs { tools: row.tools.cloned(), documents: row.documents.cloned(), variables }
    }

    /// Encodes with the special tokens that come before a text, not those after it.
    pub(super) fn encode_open(&self, origin: &Origin, text: &str) -> Result<Encoding, TextError> {
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

    pub(super) fn finish(&self, mut example: Example, messages: &[Message]) -> Result<Example, TextError> {
        audit_example(&example, self.tokenizer, &self.policy, &self.audit)?;
        self.check_special_in_content(&example, messages)?;
        if assemble::truncate(&mut example, &self.policy) {
            audit_example(&example, self.tokenizer, &self.policy, &self.audit)?;
        }
        Ok(example)
    }
}
