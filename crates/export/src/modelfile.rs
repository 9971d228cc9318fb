//! A Modelfile for Ollama: the model, its template as Go writes it, the texts that stop it.
//!
//! Ollama has templates of its own. One is derived from renderings: what the chat template puts around each role's text and
//! before an answer, found with probes. The derived template is then held against the chat template's renderings of whole
//! conversations; where it is not the same text, none is written and the Modelfile says why, since Ollama then takes what it
//! finds in the model file.

use pt_text::{ChatTemplate, Message, TemplateInputs, Tokenizer};
use serde_json::{Value as Json, json};

use crate::error::Result;
use crate::export::conversations;

/// Texts that no template holds.
const PROBES: [&str; 2] = ["\u{1}probe one\u{1}", "\u{1}probe two\u{1}"];
/// The longest context asked for; a longer one takes memory before anybody needs it.
const MAX_CONTEXT: usize = 8192;

/// A Modelfile, and what there is to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modelfile {
    /// Its text.
    pub text: String,
    /// Why it has no template, where there is one that could not be derived.
    pub template_problem: Option<String>,
}

/// The Modelfile for `model_file`, a path as seen from the Modelfile.
///
/// # Errors
/// Those of the tokenizer.
pub fn modelfile(model_file: &str, tokenizer: &Tokenizer, context: usize) -> Result<Modelfile> {
    let mut text = format!("FROM {model_file}\n");
    let mut template_problem = None;
    if let Ok(template) = tokenizer.chat_template(None) {
        match Parts::derive(&template, tokenizer) {
            Ok(parts) => text += &format!("TEMPLATE \"\"\"{}\"\"\"\n", parts.go()),
            Err(problem) => {
                text +=
                    &format!("# No TEMPLATE: {problem}. Ollama takes the chat template in the model file.\n");
                template_problem = Some(problem);
            }
        }
    }
    for id in tokenizer.eos_ids() {
        if let Some(stop) = tokenizer.id_to_token(*id) {
            text += &format!("PARAMETER stop {}\n", json!(stop));
        }
    }
    text += &format!("PARAMETER num_ctx {}\n", context.min(MAX_CONTEXT));
    Ok(Modelfile { text, template_problem })
}

/// What stands around the texts of each role, and before an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    /// Before everything.
    start: String,
    /// Role, text before, text after.
    roles: Vec<(&'static str, String, String)>,
    /// Before an answer.
    prompt: String,
}

type Found<T> = std::result::Result<T, String>;

impl Parts {
    fn derive(template: &ChatTemplate, tokenizer: &Tokenizer) -> Found<Parts> {
        let bos = tokenizer.config().bos.clone().filter(|_| tokenizer.adds_bos()).unwrap_or_default();
        let inputs =
            TemplateInputs { variables: tokenizer.template_variables(), ..TemplateInputs::default() };
        let render = |messages: &[Message], open: bool| {
            let text = template.render(messages, open, &inputs).map_err(|error| error.to_string())?;
            // llama.cpp puts BOS before the text by itself.
            Ok::<String, String>(text.strip_prefix(bos.as_str()).unwrap_or(&text).to_owned())
        };
        let user = [message("user", PROBES[0])];
        let (closed, open) = (render(&user, false)?, render(&user, true)?);
        let prompt =
            open.strip_prefix(closed.as_str()).ok_or("what precedes an answer is no suffix")?.to_owned();
        // A second turn shows what belongs to a turn and what to the start.
        let turns = [message("user", PROBES[0]), message("assistant", "x"), message("user", PROBES[1])];
        let twice = render(&turns, false)?;
        let (before, after) = around(&closed, PROBES[0])?;
        let (until_second, after_second) = around(&twice, PROBES[1])?;
        if after_second != after {
            return Err("what follows a user's text depends on its place".to_owned());
        }
        let with_answer = render(&[message("user", PROBES[0]), message("assistant", PROBES[1])], false)?;
        let (until_answer, after_answer) = around(&with_answer, PROBES[1])?;
        let before_answer = until_answer
            .strip_prefix(closed.as_str())
            .ok_or("an answer changes what stands before it")?
            .to_owned();
        let first_turns = format!("{closed}{before_answer}x{after_answer}");
        let before_user = until_second
            .strip_prefix(first_turns.as_str())
            .ok_or("a second turn changes what stands before it")?
            .to_owned();
        let start = before
            .strip_suffix(before_user.as_str())
            .ok_or("the first turn is unlike the second")?
            .to_owned();
        let mut roles = vec![("user", before_user, after), ("assistant", before_answer, after_answer)];
        if let Ok(with_system) = render(&[message("system", PROBES[1]), message("user", PROBES[0])], false) {
            let (before_system, rest) = around(&with_system, PROBES[1])?;
            let own_turn = closed.strip_prefix(start.as_str()).unwrap_or(&closed);
            let after_system =
                rest.strip_suffix(own_turn).ok_or("a system text becomes part of the user's turn")?;
            let before_system = before_system
                .strip_prefix(start.as_str())
                .ok_or("a system text changes what stands before everything")?;
            roles.insert(0, ("system", before_system.to_owned(), after_system.to_owned()));
        }
        let parts = Parts { start, roles, prompt };
        parts.check(&render)?;
        Ok(parts)
    }

    /// Whether whole conversations come out the same.
    fn check(&self, render: &dyn Fn(&[Message], bool) -> Found<String>) -> Found<()> {
        for (messages, open) in conversations() {
            let Ok(expected) = render(&messages, open) else { continue };
            if self.render(&messages, open) != Some(expected) {
                return Err(format!("a conversation of {} messages is rendered otherwise", messages.len()));
            }
        }
        Ok(())
    }

    fn render(&self, messages: &[Message], open: bool) -> Option<String> {
        let mut text = self.start.clone();
        for message in messages {
            let role = message["role"].as_str()?;
            let (_, before, after) = self.roles.iter().find(|(name, ..)| *name == role)?;
            text += before;
            text += message["content"].as_str()?;
            text += after;
        }
        if open {
            text += &self.prompt;
        }
        Some(text)
    }

    /// The same as a Go template. Actions in `{{ }}` keep all white space around them.
    fn go(&self) -> String {
        let mut text = literal(&self.start);
        text += "{{ range .Messages }}";
        for (i, (role, before, after)) in self.roles.iter().enumerate() {
            let word = if i == 0 { "if" } else { "else if" };
            text += &format!(
                "{{{{ {word} eq .Role \"{role}\" }}}}{}{{{{ .Content }}}}{}",
                literal(before),
                literal(after)
            );
        }
        text += "{{ end }}{{ end }}";
        text += &literal(&self.prompt);
        text
    }
}

/// Text that Go's templates and the Modelfile's quotes leave alone.
fn literal(text: &str) -> String {
    if text.contains("{{") || text.contains("\"\"\"") {
        // A Go string, as an action; JSON's escapes are Go's.
        return format!("{{{{ {} }}}}", json!(text));
    }
    text.to_owned()
}

fn message(role: &str, content: &str) -> Message {
    let Json::Object(map) = json!({"role": role, "content": content}) else { unreachable!("an object") };
    map
}

/// What stands before and after the only occurrence of `probe`.
fn around(text: &str, probe: &str) -> Found<(String, String)> {
    match text.split(probe).collect::<Vec<_>>().as_slice() {
        [before, after] => Ok(((*before).to_owned(), (*after).to_owned())),
        parts => Err(format!("a message's text appears {} times", parts.len() - 1)),
    }
}

#[cfg(test)]
mod tests {
    use pt_text::{TokenizerConfig, train_byte_bpe};

    use super::*;

    fn derived(template: &str) -> Found<Parts> {
        let tokenizer = train_byte_bpe(["some text"], 300, &["<|im_end|>", "<|im_start|>"]).unwrap();
        let config = TokenizerConfig { eos: Some("<|im_end|>".into()), ..TokenizerConfig::default() };
        let tokenizer = tokenizer.with_config(config).unwrap();
        Parts::derive(&ChatTemplate::new(template).unwrap(), &tokenizer)
    }

    #[test]
    fn turns_of_the_same_form_become_a_go_template() {
        let parts = derived(
            "START{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
             {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        )
        .unwrap();
        let go = "START{{ range .Messages }}{{ if eq .Role \"system\" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n\
                  {{ else if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n\
                  {{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}\
                  <|im_start|>assistant\n";
        assert_eq!(parts.go(), go);
    }

    #[test]
    fn templates_with_other_rules_are_not_translated() {
        let check = |template: &str, part: &str| {
            let problem = derived(template).unwrap_err();
            assert!(problem.contains(part), "{problem} should mention {part}");
        };
        // The last user's turn is marked.
        check(
            "{% for m in messages %}{% if loop.last %}!{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}",
            "an answer changes",
        );
        check("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.content }}{% endfor %}", "2 times");
        check("{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}", "0 times");
        let drops_system = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}";
        check(drops_system, "0 times");
    }
}
