//! JSON that a reply shows must be JSON.
//!
//! Looked at are fenced blocks marked `json`, replies that begin with `{` or `[` as a whole, and with `require` every reply.

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;

use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::words::excerpt;

const NAME: &str = "json";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "accuracy",
    summary: "drops rows whose reply shows JSON that does not parse",
    options: &[OptionInfo {
        name: "require",
        kind: "bool",
        default: "false",
        doc: "whether every reply must have JSON",
    }],
    build: |options, _| Ok(Box::new(Json { options: parse(NAME, options)?, n: 0 })),
};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    require: bool,
}

struct Json {
    options: Options,
    n: u64,
}

/// The parts of a reply that say they are JSON.
fn parts(reply: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = reply;
    while let Some(at) = rest.find("```") {
        let block = &rest[at + 3..];
        let (info, body) = block.split_once('\n').unwrap_or((block, ""));
        let end = body.find("```").unwrap_or(body.len());
        if info.trim().eq_ignore_ascii_case("json") {
            parts.push(&body[..end]);
        }
        rest = body.get(end + 3..).unwrap_or("");
    }
    let whole = reply.trim();
    // Square brackets also begin notes and citations: only what goes on like JSON is taken for it.
    let like_json = whole.starts_with('{') && whole.ends_with('}') && whole.contains('"')
        || whole.starts_with('[')
            && whole.ends_with(']')
            && whole[1..].trim_start().starts_with(['{', '"', '[', ']']);
    if parts.is_empty() && like_json {
        parts.push(whole);
    }
    parts
}

impl Step for Json {
    /// How many parts there are, and the first that is wrong.
    type Seen = (usize, Option<String>);

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        let parts = parts(&item.view.reply);
        let wrong = parts.iter().find_map(|part| {
            let error = serde_json::from_str::<serde::de::IgnoredAny>(part).err()?;
            Some(format!("{error}: {}", excerpt(part.trim(), 100)))
        });
        Ok((parts.len(), wrong))
    }

    fn decide(&mut self, _item: &Item, (n, wrong): Self::Seen) -> Decision {
        self.n += n as u64;
        match wrong {
            Some(wrong) => Decision::drop("JSON that does not parse", wrong),
            None if n == 0 && self.options.require => {
                Decision::drop("no JSON", "neither a block nor the whole reply is JSON")
            }
            None => Decision::Keep,
        }
    }

    fn summary(&self) -> Summary {
        Summary { lines: vec![format!("{} pieces of JSON looked at", self.n)], ..Summary::default() }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Harness, prompt};

    #[test]
    fn json_is_checked_where_it_is_claimed() {
        let replies = [
            ("{\"a\": 1}", true),
            ("{\"a\": 1,}", false),
            ("Here:\n```json\n[1, 2]\n```\nand\n```json\n[1, 2\n```", false),
            ("```python\n{not json}\n```", true),
            ("[1] is a citation [2]", true),
            ("[\"a\", \"b\" \"c\"]", false),
            ("plain", true),
        ];
        let rows: Vec<_> = replies.iter().map(|(reply, _)| prompt("q", reply)).collect();
        let expected: Vec<usize> = (0..replies.len()).filter(|i| replies[*i].1).collect();
        assert_eq!(Harness::new("json", "").run(&rows).kept, expected);
        assert_eq!(Harness::new("json", "require = true").run(&rows).kept, [0]);
    }
}
