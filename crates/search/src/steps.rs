//! Where a step ends and the next one begins.

/// Cuts replies into steps at a text.
///
/// Steps are what stands between separators, without white space at either end; what is blank is no step. A reply and its steps joined
/// again may therefore differ in white space, and the joined form is the one that is continued and scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splitter {
    separator: String,
}

impl Default for Splitter {
    /// At line breaks, as TRL's PRM trainer ends steps.
    fn default() -> Splitter {
        Splitter { separator: "\n".to_owned() }
    }
}

impl Splitter {
    /// Cuts at `separator`; `None` if it is empty.
    pub fn new(separator: impl Into<String>) -> Option<Splitter> {
        let separator = separator.into();
        (!separator.is_empty()).then_some(Splitter { separator })
    }

    /// What ends a step.
    pub fn separator(&self) -> &str {
        &self.separator
    }

    /// The steps of a reply.
    pub fn split(&self, reply: &str) -> Vec<String> {
        reply
            .split(&self.separator)
            .map(str::trim)
            .filter(|step| !step.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Steps as the beginning of a reply that goes on: each with its separator.
    pub fn beginning(&self, steps: &[String]) -> String {
        steps.iter().flat_map(|step| [step.as_str(), &self.separator]).collect()
    }

    /// Steps as a whole reply.
    pub fn join(&self, steps: &[String]) -> String {
        steps.join(&self.separator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_become_steps_and_beginnings() {
        for (separator, reply, steps) in [
            ("\n", "a\nb\n\n c \n", vec!["a", "b", "c"]),
            ("\n\n", "a\nb\n\nc", vec!["a\nb", "c"]),
            ("\n", "one", vec!["one"]),
            ("\n", " \n", vec![]),
        ] {
            let splitter = Splitter::new(separator).unwrap();
            let found = splitter.split(reply);
            assert_eq!(found, steps, "{reply:?}");
            assert_eq!(splitter.split(&splitter.join(&found)), steps);
            let with_ends: String = steps.iter().map(|step| format!("{step}{separator}")).collect();
            assert_eq!(splitter.beginning(&found), with_ends);
        }
        assert_eq!(Splitter::new(""), None);
    }
}
