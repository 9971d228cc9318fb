//! Finding what each message wrote in the rendered text.
//!
//! Contents are found by rendering the conversation a second time with a unique word in place of each
//! and comparing: between the words stands what the template wrote, and it must be found again around
//! the real contents. Turns are found by rendering prefixes of the conversation: what
//! `add_generation_prompt` gives is what the model continues from. Whatever cannot be verified this
//! way is reported, never guessed.

use std::ops::Range;

use serde_json::Value as Json;

use crate::template::{ChatTemplate, Message, Rendering, TemplateInputs};

/// Message fields that hold reasoning, by the names templates use.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// A piece of text in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub message: usize,
    pub field: String,
    /// Index in a list of typed parts.
    pub part: Option<usize>,
}

impl Slot {
    pub(super) fn is_content(&self) -> bool {
        self.field == "content"
    }

    fn get<'a>(&self, messages: &'a [Message]) -> &'a str {
        let value = &messages[self.message][&self.field];
        let value = self.part.map_or(value, |i| &value[i]["text"]);
        value.as_str().expect("slots are made from strings")
    }

    fn set(&self, messages: &mut [Message], text: String) {
        let value = &mut messages[self.message][&self.field];
        let value = match self.part {
            Some(i) => &mut value[i]["text"],
            None => value,
        };
        *value = Json::String(text);
    }
}

/// Where a slot's text stands in the rendering.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub slot: usize,
    pub range: Range<usize>,
    /// How many bytes at the start of the slot's text the template removed; `None` when it changed more.
    pub lead: Option<usize>,
}

/// A rendered conversation and what is known about it.
pub(super) struct Located<'a> {
    template: &'a ChatTemplate,
    inputs: &'a TemplateInputs,
    messages: &'a [Message],
    pub rendering: Rendering,
    pub slots: Vec<Slot>,
    /// In order of the text.
    pub regions: Vec<Region>,
    /// Slots that are not in the rendering.
    pub missing: Vec<usize>,
    skeleton: Option<Skeleton>,
}

/// The rendering with a word in place of every slot.
struct Skeleton {
    messages: Vec<Message>,
    text: String,
    words: Vec<String>,
    /// Per region of [`Located::regions`], its word in `text`.
    places: Vec<Range<usize>>,
}

/// The bytes of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TurnBytes {
    pub range: Range<usize>,
    pub prompt_is_prefix: bool,
    /// Whether the end was verified; otherwise it is the end of the content.
    pub end_is_known: bool,
}

/// Bounds of a turn found by giving it a content; what could not be verified is `None`.
struct Probe {
    start: Option<usize>,
    end: Option<usize>,
}

impl<'a> Located<'a> {
    pub(super) fn new(
        template: &'a ChatTemplate,
        messages: &'a [Message],
        inputs: &'a TemplateInputs,
    ) -> Result<Self, crate::TextError> {
        let rendering = template.render_marked(messages, false, inputs)?;
        let slots = slots_of(messages);
        let mut located = Self {
            template,
            inputs,
            messages,
            rendering,
            slots,
            regions: Vec::new(),
            missing: Vec::new(),
            skeleton: None,
        };
        if !located.align_all() {
            located.align_each();
        }
        located.regions.sort_by_key(|r| (r.range.start, r.range.end));
        let found = |slot: usize| located.regions.iter().any(|r| r.slot == slot);
        located.missing = (0..located.slots.len()).filter(|s| !found(*s)).collect();
        Ok(located)
    }

    pub(super) fn text(&self) -> &str {
        &self.rendering.text
    }

    pub(super) fn regions_of(&self, message: usize) -> impl DoubleEndedIterator<Item = &Region> {
        self.regions.iter().filter(move |r| self.slots[r.slot].message == message)
    }

    pub(super) fn role(&self, message: usize) -> &str {
        self.messages[message].get("role").and_then(Json::as_str).unwrap_or_default()
    }

    /// The content of a message, when it is one text.
    pub(super) fn content(&self, message: usize) -> Option<&str> {
        self.messages[message].get("content").and_then(Json::as_str)
    }

    /// Where the template's prompt for message `i` ends, when it is a prefix of the text.
    pub(super) fn prompt_end(&self, i: usize) -> Option<usize> {
        let prompt = self.prompt_text(i)?;
        self.text().starts_with(&prompt).then_some(prompt.len())
    }

    /// The template's prompt for message `i`.
    pub(super) fn prompt_text(&self, i: usize) -> Option<String> {
        self.template.render(&self.messages[..i], true, self.inputs).ok()
    }

    /// Whether the text would be the same without what `remove` takes away.
    pub(super) fn ignores(&self, remove: impl FnOnce(&mut Vec<Message>, &mut TemplateInputs)) -> bool {
        let (mut messages, mut inputs) = (self.messages.to_vec(), self.inputs.clone());
        remove(&mut messages, &mut inputs);
        self.template.render(&messages, false, &inputs).is_ok_and(|text| text == self.text())
    }

    /// What the template would write after the content of message `i` if it were plain text.
    pub(super) fn plain_end_of_turn(&self, i: usize) -> Option<String> {
        let word = "Qz0Kx";
        let mut messages = self.messages[..i].to_vec();
        let reply = serde_json::json!({"role": self.role(i), "content": word});
        messages.push(reply.as_object().cloned()?);
        let text = self.template.render(&messages, false, self.inputs).ok()?;
        let end = text.rfind(word)? + word.len();
        Some(text[end..].trim_end().to_owned()).filter(|t| !t.is_empty())
    }

    /// The bytes that sampling message `i` would produce, and up to where its turn reaches.
    pub(super) fn turn(&self, i: usize) -> Result<TurnBytes, String> {
        let content_start = self.regions_of(i).next().map(|r| r.range.start);
        let content_end = self.regions_of(i).next_back().map(|r| r.range.end);
        let start = self.turn_start(i, content_start);
        let end = if i + 1 == self.messages.len() { Some(self.text().len()) } else { self.turn_end(i) };
        let (start, prompt_is_prefix) = match (start, content_start) {
            (Some(found), _) => found,
            (None, Some(content)) if !self.has_tool_calls(i) => (content, false),
            _ => return Err("the text before it is not what the template gives as its prompt".into()),
        };
        let (end, end_is_known) = match (end, content_end) {
            (Some(end), _) => (end, true),
            (None, Some(content)) if !self.has_tool_calls(i) => (content, false),
            _ => return Err("the template renders it differently when later messages follow".into()),
        };
        let holds = |r: &Region| start <= r.range.start && r.range.end <= end;
        if start > end || !self.regions_of(i).all(holds) {
            return Err("its content lies outside what the template renders for it".into());
        }
        Ok(TurnBytes { range: start..end, prompt_is_prefix, end_is_known })
    }

    fn has_tool_calls(&self, i: usize) -> bool {
        self.messages[i].get("tool_calls").is_some_and(|t| t.as_array().is_some_and(|t| !t.is_empty()))
    }

    /// Where the prompt for message `i` ends, and whether it is a prefix of the whole text.
    fn turn_start(&self, i: usize, content_start: Option<usize>) -> Option<(usize, bool)> {
        let before = |at: &usize| content_start.is_none_or(|c| *at <= c);
        if let Some(end) = self.prompt_end(i).filter(before) {
            return Some((end, true));
        }
        let skeleton = self.skeleton.as_ref()?;
        let prompt = self.template.render(&skeleton.messages[..i], true, self.inputs).ok()?;
        let start = self.follow(&prompt).into_iter().rfind(before);
        start.or_else(|| self.probe(i).and_then(|p| p.start)).map(|at| (at, false))
    }

    /// Where the rendering of the conversation up to and with message `i` ends.
    fn turn_end(&self, i: usize) -> Option<usize> {
        let content_end = self.regions_of(i).next_back().map_or(0, |r| r.range.end);
        let part = self.template.render(&self.messages[..=i], false, self.inputs).ok();
        if let Some(part) = part.filter(|p| self.text().starts_with(p.as_str()) && p.len() >= content_end) {
            return Some(part.len());
        }
        let skeleton = self.skeleton.as_ref()?;
        let part = self.template.render(&skeleton.messages[..=i], false, self.inputs).ok()?;
        let end = self.follow(&part).into_iter().find(|at| *at >= content_end);
        end.or_else(|| self.probe(i).and_then(|p| p.end))
    }

    /// The bounds of a message without content (tool calls only), by giving it one: the template's text
    /// between the neighbours' contents and the new one must stand next to the neighbours as before.
    fn probe(&self, i: usize) -> Option<Probe> {
        let skeleton = self.skeleton.as_ref()?;
        if self.regions_of(i).next().is_some() {
            return None;
        }
        let word = format!("{}p", skeleton.words.first()?);
        let mut messages = skeleton.messages.clone();
        messages[i].insert("content".into(), Json::from(word.as_str()));
        let whole = self.template.render(&messages, false, self.inputs).ok()?;
        let part = self.template.render(&messages[..=i], false, self.inputs).ok()?;
        let (before, after) = whole.split_once(&word)?;
        let (_, own_tail) = part.split_once(&word)?;

        let text = self.text();
        let of = |later: bool| {
            let is_later = move |r: &&Region| (self.slots[r.slot].message > i) == later;
            self.regions.iter().filter(is_later)
        };
        let start = of(false).next_back().and_then(|region| {
            let previous = &skeleton.words[region.slot];
            let header = &before[before.rfind(previous.as_str())? + previous.len()..];
            text[region.range.end..].starts_with(header).then(|| region.range.end + header.len())
        });
        let end = of(true).next().and_then(|region| {
            let between = &after[..after.find(skeleton.words[region.slot].as_str())?];
            let header = between.strip_prefix(own_tail)?;
            text[..region.range.start].ends_with(header).then(|| region.range.start - header.len())
        });
        Some(Probe { start, end })
    }

    /// Where `part`, a rendering of the first messages with words for contents, can end in the text:
    /// what it has after its last word is looked for after the same word of the whole conversation.
    fn follow(&self, part: &str) -> Vec<usize> {
        let Some(skeleton) = &self.skeleton else { return Vec::new() };
        let last =
            skeleton.words.iter().enumerate().filter_map(|(s, w)| Some((part.rfind(w)? + w.len(), s))).max();
        let Some((end, slot)) = last else { return Vec::new() };
        let tail = &part[end..];
        let places = self.regions.iter().zip(&skeleton.places).filter(|(r, _)| r.slot == slot);
        places
            .filter(|(_, place)| skeleton.text[place.end..].starts_with(tail))
            .map(|(region, _)| region.range.end + tail.len())
            .collect()
    }

    /// Finds every slot with one more rendering; false when the comparison fails.
    fn align_all(&mut self) -> bool {
        let words = self.words();
        let mut messages = self.messages.to_vec();
        for (slot, word) in self.slots.iter().zip(&words) {
            slot.set(&mut messages, word.clone());
        }
        let Ok(text) = self.template.render(&messages, false, self.inputs) else { return false };
        let places = find_words(&text, &words);
        let Some(regions) = self.align(&text, &places) else { return false };
        self.regions = regions;
        let places = places.into_iter().map(|(_, range)| range).collect();
        self.skeleton = Some(Skeleton { messages, text, words, places });
        true
    }

    /// Matches the skeleton against the text: literals must be equal, contents may lose white space.
    fn align(&self, skeleton: &str, places: &[(usize, Range<usize>)]) -> Option<Vec<Region>> {
        let text = self.text();
        let first = places.first().map_or(skeleton.len(), |(_, r)| r.start);
        let mut rest = text.strip_prefix(&skeleton[..first])?;
        let mut regions = Vec::new();
        for (k, (slot, place)) in places.iter().enumerate() {
            let next = places.get(k + 1).map_or(skeleton.len(), |(_, r)| r.start);
            let literal = &skeleton[place.end..next];
            let fits =
                |tail: &str| if next == skeleton.len() { tail == literal } else { tail.starts_with(literal) };
            let content = self.slots[*slot].get(self.messages);
            let (variant, lead) = variants(content)
                .into_iter()
                .find(|(variant, _)| rest.strip_prefix(variant).is_some_and(fits))?;
            let start = text.len() - rest.len();
            regions.push(Region { slot: *slot, range: start..start + variant.len(), lead: Some(lead) });
            rest = &rest[variant.len() + literal.len()..];
        }
        rest.is_empty().then_some(regions)
    }

    /// Finds slots one at a time, for templates that look into contents.
    fn align_each(&mut self) {
        let words = self.words();
        for (s, slot) in self.slots.iter().enumerate() {
            let mut messages = self.messages.to_vec();
            slot.set(&mut messages, words[s].clone());
            let Ok(other) = self.template.render(&messages, false, self.inputs) else { continue };
            let Some(at) = other.find(&words[s]) else { continue };
            let text = self.text();
            let start = common_prefix(text, &other[..at]);
            let end = text.len() - common_suffix(&text[start..], &other[at + words[s].len()..]);
            let content = slot.get(self.messages);
            let exact = start == at && text.len() - end == other.len() - at - words[s].len();
            let variant = variants(content).into_iter().find(|(v, _)| match exact {
                true => text[start..end] == **v,
                false => text[start..end].contains(v),
            });
            let region = match variant {
                Some((variant, lead)) => {
                    let from = start + text[start..end].find(variant).expect("it was found just now");
                    Region { slot: s, range: from..from + variant.len(), lead: Some(lead) }
                }
                // What the template made of the content stands here, whatever it is.
                None => Region { slot: s, range: start..end, lead: None },
            };
            self.regions.push(region);
        }
    }

    /// One word per slot that occurs nowhere else.
    fn words(&self) -> Vec<String> {
        let stem = (0..).map(|n| format!("Qz{n}Kx")).find(|stem| !self.text().contains(stem.as_str()));
        let stem = stem.expect("some stem is absent from any finite text");
        (0..self.slots.len()).map(|i| format!("{stem}{i}w")).collect()
    }
}

/// Every string a template may print as a message's content or reasoning; blank ones cannot be told
/// apart from the template's own white space and are left out.
fn slots_of(messages: &[Message]) -> Vec<Slot> {
    let mut slots = Vec::new();
    for (message, fields) in messages.iter().enumerate() {
        for field in REASONING_FIELDS.into_iter().chain(["content"]) {
            let slot = |part| Slot { message, field: field.to_owned(), part };
            match fields.get(field) {
                Some(Json::String(text)) if !text.trim().is_empty() => slots.push(slot(None)),
                Some(Json::Array(parts)) => {
                    let has_text = |p: &Json| p["text"].as_str().is_some_and(|t| !t.trim().is_empty());
                    let with_text = parts.iter().enumerate().filter(|(_, p)| has_text(p));
                    slots.extend(with_text.map(|(i, _)| slot(Some(i))));
                }
                _ => {}
            }
        }
    }
    slots
}

/// What templates make of a content, with the bytes lost at its start.
fn variants(content: &str) -> Vec<(&str, usize)> {
    let lead = content.len() - content.trim_start().len();
    let mut variants =
        vec![(content, 0), (content.trim_end(), 0), (content.trim_start(), lead), (content.trim(), lead)];
    // Templates that take reasoning out of the content leave what follows its end.
    if let Some((_, answer)) = content.rsplit_once("</think>") {
        for answer in [answer.trim_start_matches('\n'), answer.trim()] {
            variants.push((answer, answer.as_ptr() as usize - content.as_ptr() as usize));
        }
    }
    variants.retain(|(v, _)| !v.is_empty());
    variants
}

fn find_words(text: &str, words: &[String]) -> Vec<(usize, Range<usize>)> {
    let places = |(slot, word): (usize, &String)| {
        text.match_indices(word.as_str()).map(|(at, w)| (slot, at..at + w.len())).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = words.iter().enumerate().flat_map(places).collect();
    found.sort_by_key(|(_, r)| r.start);
    found
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

fn common_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}
