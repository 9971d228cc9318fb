//! The Markdown files beside the verifiers, read as tests.
//!
//! Each row of a table with the columns `options`, `gold`, `reply`, `score` (and optionally `row` and `prompt`) is one case:
//! options are TOML with commas between them, gold and row JSON, reply and prompt JSON texts, all in backticks; an empty cell is absent; a score is a
//! number or `skip`. A cell's `|` is written `\|`.

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use crate::{Question, VERIFIERS, build};

    fn cells(line: &str) -> Vec<String> {
        let line = line.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{0}");
        let plain = |cell: &str| {
            let cell = cell.trim();
            let inner = cell.strip_prefix('`').and_then(|c| c.strip_suffix('`')).unwrap_or(cell);
            inner.replace('\u{0}', "|")
        };
        line.split('|').map(plain).collect()
    }

    fn json(cell: &str, what: &str) -> Value {
        serde_json::from_str(cell).unwrap_or_else(|e| panic!("{what}: `{cell}`: {e}"))
    }

    #[test]
    fn every_verifier_accepts_and_rejects_what_its_page_says() {
        for info in VERIFIERS {
            let (mut header, mut n_pass, mut n_other) = (Vec::new(), 0, 0);
            for (index, line) in info.examples.lines().enumerate() {
                if !line.starts_with('|') {
                    header.clear();
                    continue;
                }
                if line.starts_with("| ---") {
                    continue;
                }
                let row = cells(line);
                if header.is_empty() {
                    header = row;
                    continue;
                }
                let place = format!("{}.md, line {}", info.name, index + 1);
                let get = |name: &str| {
                    let at = header.iter().position(|h| h == name)?;
                    Some(row.get(at).unwrap_or_else(|| panic!("{place}: no cell `{name}`")).clone())
                };
                let cell = |name: &str| get(name).filter(|cell| !cell.is_empty());
                let text = |name: &str| {
                    let value = cell(name).map(|c| json(&c, &place));
                    value.map_or(String::new(), |v| {
                        v.as_str().unwrap_or_else(|| panic!("{place}: {name} is a text")).to_owned()
                    })
                };
                let written = format!("options = {{ {} }}", cell("options").unwrap_or_default());
                let written: toml::Table = written.parse().unwrap_or_else(|e| panic!("{place}: {e}"));
                let options = written["options"].as_table().expect("an inline table");
                let verifier = build(info.name, options).unwrap_or_else(|e| panic!("{place}: {e}"));
                let gold = cell("gold").map(|c| json(&c, &place));
                let columns: Map<String, Value> = cell("row").map_or(Map::new(), |c| {
                    json(&c, &place).as_object().cloned().expect("a row is an object")
                });
                let (prompt, reply) = (text("prompt"), text("reply"));
                let question = Question {
                    prompt: &prompt,
                    reply: &reply,
                    gold: gold.as_ref(),
                    row: &columns,
                    is_truncated: false,
                };
                let verdict = verifier.verify(&question);
                let expected = match cell("score").as_deref() {
                    Some("skip") => None,
                    Some(score) => {
                        Some(score.parse::<f64>().unwrap_or_else(|e| panic!("{place}: score: {e}")))
                    }
                    None => panic!("{place}: a score is required"),
                };
                match expected.is_some_and(|score| score >= 1.0) {
                    true => n_pass += 1,
                    false => n_other += 1,
                }
                assert_eq!(verdict.score, expected, "{place}: {line}\n{verdict:?}");
            }
            assert!(
                n_pass > 0 && n_other > 0,
                "{}.md has replies that pass and replies that do not",
                info.name
            );
        }
    }

    #[test]
    fn entries_build_with_their_defaults_and_have_docs() {
        for info in VERIFIERS {
            let listed: String = info
                .options
                .iter()
                .filter(|o| !o.default.is_empty())
                .map(|o| format!("{} = {}\n", o.name, o.default))
                .collect();
            if let Ok(plain) = build(info.name, &toml::Table::new()) {
                assert_eq!(plain.name(), info.name);
                let from_listed = build(info.name, &listed.parse().unwrap()).unwrap();
                assert_eq!(
                    format!("{from_listed:?}"),
                    format!("{plain:?}"),
                    "listed defaults are the defaults"
                );
            } else {
                assert!(
                    info.options.iter().any(|o| o.default.is_empty()),
                    "`{}` has required options",
                    info.name
                );
            }
            assert!(!info.summary.is_empty() && !info.reads.is_empty(), "`{}`", info.name);
        }
    }

    /// Replies of pieces that matter to some verifier, and replies that are long.
    fn strange_reply(index: u64) -> String {
        const PIECES: &[&str] = &[
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "```",
            "```json\n",
            "{",
            "}",
            "[",
            "]",
            "(",
            ")",
            "\"",
            "'",
            "\\",
            "\\boxed{",
            "\\frac{1}{",
            "$",
            "####",
            "<tool_call>",
            "</tool_call>",
            "f(a=",
            "Answer: ",
            "(B)",
            " A ",
            "\n",
            "\n\n",
            "***",
            "******",
            "*",
            "- ",
            "P.S.",
            "Mr. ",
            "...",
            "?!",
            "12",
            "-3.5",
            "1e999",
            ",",
            "é",
            "ß",
            "\u{301}",
            "\u{0}",
            "\u{1c}",
            "\u{feff}",
            "哈",
            "🦀",
            "ǅ",
            "\"a\": ",
            "null",
            "the ",
            "x",
            "=",
            ": ",
        ];
        let mut draws = pt_core::rng::Stream::new(1, "strange").at(index);
        if index.is_multiple_of(10) {
            return draws.pick(PIECES).repeat(2_000);
        }
        (0..draws.below(60)).map(|_| *draws.pick(PIECES)).collect()
    }

    #[test]
    fn no_reply_makes_a_verifier_panic_or_hang() {
        let gold = serde_json::json!("B");
        let mut columns = Map::new();
        columns.insert("choices".to_owned(), serde_json::json!(["one", "two"]));
        let kinds = ["length_constraints:number_sentences", "detectable_format:json_format"];
        columns.insert("instruction_id_list".to_owned(), serde_json::json!(kinds));
        let kwargs = serde_json::json!([{"num_sentences": 2, "relation": "at least"}, {}]);
        columns.insert("kwargs".to_owned(), kwargs);
        let golds = [serde_json::json!({"a": 1}), serde_json::json!([{"name": "f"}]), gold, Value::Null];
        for info in VERIFIERS {
            let Ok(verifier) = build(info.name, &toml::Table::new()) else { continue };
            for index in 0..150 {
                let reply = strange_reply(index);
                let gold = &golds[index as usize % golds.len()];
                let question = Question {
                    prompt: &reply,
                    reply: &reply,
                    gold: Some(gold),
                    row: &columns,
                    is_truncated: false,
                };
                let verdict = verifier.verify(&question);
                assert!(!verdict.reason.is_empty(), "`{}` gives a reason", info.name);
                assert!(verdict.score.is_none_or(f64::is_finite), "`{}`: {verdict:?}", info.name);
                assert_eq!(verifier.verify(&question), verdict, "`{}` says the same twice", info.name);
            }
        }
    }
}
