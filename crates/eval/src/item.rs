//! Questions, answers and marks: what a benchmark asks and how it judges.

use pt_data::Columns;
use serde_json::{Map, Value};

/// Between an example and the next, in plain text.
const SHOT_END: &str = "\n\n";

/// What is shown to the model. As plain text: `system`, each shot as question, delimiter, answer and an empty line, then the
/// question. As a conversation: `system` as a system message, shots as turns, the question as the user's last message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// What comes first; may be empty.
    pub system: String,
    /// Examples: question and answer.
    pub shots: Vec<(String, String)>,
    /// The question.
    pub question: String,
    /// Between question and answer, in plain text.
    pub delimiter: &'static str,
}

impl Prompt {
    /// A question alone, as it is.
    pub fn bare(question: impl Into<String>) -> Prompt {
        Prompt { question: question.into(), ..Prompt::default() }
    }

    /// As plain text.
    pub fn text(&self) -> String {
        let mut text = self.system.clone();
        for (question, answer) in &self.shots {
            text += &[question, self.delimiter, answer, SHOT_END].concat();
        }
        text + &self.question
    }

    /// As a conversation.
    pub fn messages(&self) -> Vec<Map<String, Value>> {
        let system = self.system.trim();
        let system = (!system.is_empty()).then(|| message("system", system));
        let shots = self.shots.iter().flat_map(|(q, a)| [message("user", q), message("assistant", a)]);
        system.into_iter().chain(shots).chain([message("user", &self.question)]).collect()
    }
}

/// A message for chat templates.
pub(crate) fn message(role: &str, content: &str) -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content.into())])
}

/// What the model is to do with the prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Say how probable each of these continuations is. The prompt's delimiter comes before each, in plain text.
    Choose(Vec<String>),
    /// Continue it.
    Reply {
        /// Texts that end the reply; they are not part of it.
        until: Vec<String>,
        /// Most tokens.
        max_new_tokens: usize,
    },
    /// Say how probable the question itself is, whole, from the beginning of a text.
    Roll,
}

/// One question of a benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its name, unique in the benchmark and the same on every machine.
    pub key: String,
    /// What it is about; the benchmark's name where there is one kind only.
    pub category: String,
    /// What is shown.
    pub prompt: Prompt,
    /// What is asked.
    pub ask: Ask,
    /// What is right.
    pub gold: Value,
    /// The row it was made from.
    pub row: Columns,
}

/// How probable a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChoiceScore {
    /// The natural logarithm of its probability.
    pub logprob: f64,
    /// Whether every token of it is the most probable one.
    pub is_greedy: bool,
    /// Its tokens.
    pub n_tokens: usize,
}

/// What the model said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer<'a> {
    /// To [`Ask::Choose`]: one for each choice.
    Choice(&'a [ChoiceScore]),
    /// To [`Ask::Reply`].
    Reply {
        /// The text.
        text: &'a str,
        /// Whether it was cut at the token limit.
        is_truncated: bool,
    },
    /// To [`Ask::Roll`].
    Rolled(ChoiceScore),
}

/// One number an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Of which metric.
    pub metric: &'static str,
    /// The number.
    pub value: f64,
    /// How much it counts in the mean.
    pub weight: f64,
}

impl Mark {
    /// A mark that counts as one.
    pub fn new(metric: &'static str, value: f64) -> Mark {
        Mark { metric, value, weight: 1.0 }
    }

    /// 1 or 0.
    pub fn of(metric: &'static str, is_right: bool) -> Mark {
        Mark::new(metric, f64::from(u8::from(is_right)))
    }
}

/// What an answer is worth, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// The numbers; none if the question cannot be judged.
    pub marks: Vec<Mark>,
    /// The answer that was found in the reply, for majority votes.
    pub answer: Option<String>,
    /// Why, in words.
    pub reason: String,
}

impl Marks {
    /// The value of a metric, if it has one.
    pub fn value(&self, metric: &str) -> Option<f64> {
        self.marks.iter().find(|mark| mark.metric == metric).map(|mark| mark.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_text_or_a_conversation() {
        let prompt = Prompt {
            system: "Add.\n\n".to_owned(),
            shots: vec![("1+1=".to_owned(), "2".to_owned())],
            question: "2+2=".to_owned(),
            delimiter: " ",
        };
        assert_eq!(prompt.text(), "Add.\n\n1+1= 2\n\n2+2=");
        let roles: Vec<String> = prompt.messages().iter().map(|m| m["role"].to_string()).collect();
        assert_eq!(roles, ["\"system\"", "\"user\"", "\"assistant\"", "\"user\""]);
        assert_eq!(Prompt::bare("x").messages().len(), 1);
    }
}
