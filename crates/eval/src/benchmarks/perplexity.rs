//! Perplexity of a text: by token, by byte, by word.
//!
//! Windows as lm-evaluation-harness 0.4.13 cuts them (`loglikelihood_rolling`): as many tokens as the model was made for,
//! each conditioned on all before it in its window; the last window reaches back so that it is full; the first token is
//! conditioned on BOS (or EOS). Text is tokenised without special tokens; the harness tokenises with them, and so scores BOS
//! after BOS on models that add one, unless told `add_bos_token=False`. Words are what stands between white space.

use pt_core::catalogue::OptionInfo;
use pt_data::read::{ReadOptions, TextUnit, read_all};
use serde_json::Value;

use crate::catalogue::{Benchmark, BenchmarkInfo, Loaded, MetricInfo, Scale};
use crate::error::{EvalError, Result};
use crate::item::{Answer, Ask, Item, Mark, Marks, Prompt};
use crate::source::Source;

const NAME: &str = "perplexity";
const UNITS: [&str; 2] = ["file", "line"];

const fn lower(name: &'static str, doc: &'static str, scale: Scale) -> MetricInfo {
    MetricInfo { name, doc, higher_is_better: false, scale }
}

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "how surprising a text is: `perplexity?data=FILE`",
    version: 1,
    source: "a file of yours; windows of lm-evaluation-harness 0.4.13 `loglikelihood_rolling`",
    dataset: "(none)",
    few_shot: 0,
    max_new_tokens: 0,
    metrics: &[
        lower("byte_perplexity", "exponential of the mean surprise of a byte", Scale::Exponential),
        lower("token_perplexity", "the same of a token", Scale::Exponential),
        lower("word_perplexity", "the same of a word", Scale::Exponential),
        lower("bits_per_byte", "bits to write a byte", Scale::Number),
    ],
    options: &[
        OptionInfo {
            name: "data",
            kind: "path",
            default: "",
            doc: "a text file, or rows with a column `text`",
        },
        OptionInfo {
            name: "unit",
            kind: "\"file\" or \"line\"",
            default: "\"file\"",
            doc: "what of a text file is one document; intervals need several",
        },
        OptionInfo {
            name: "separator",
            kind: "text",
            default: "",
            doc: "what stands between documents, as <|endoftext|>",
        },
    ],
    load,
};

struct Perplexity {
    items: Vec<Item>,
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    let Some(path) = source.option("data") else {
        return Err(EvalError::Missing {
            benchmark: NAME,
            what: "a text",
            advice: "name a file: perplexity?data=held-out.txt",
        });
    };
    let unit = match (source.option("separator"), source.one_of("unit", &UNITS)?) {
        (Some(separator), _) => TextUnit::Separator(separator.to_owned()),
        (None, 0) => TextUnit::File,
        (None, _) => TextUnit::Line,
    };
    let options =
        ReadOptions { text_unit: unit, hf_home: source.settings.hf_home.clone(), ..ReadOptions::default() };
    let mut items = Vec::new();
    for (index, row) in read_all(path, &options)?.into_iter().enumerate() {
        let text = source.text(&row, &["text"])?;
        if text.is_empty() {
            continue;
        }
        items.push(Item {
            key: index.to_string(),
            category: NAME.to_owned(),
            prompt: Prompt::bare(text),
            ask: Ask::Roll,
            gold: Value::Null,
            row: pt_data::Columns::new(),
        });
    }
    Ok(Loaded::Ruled(Box::new(Perplexity { items })))
}

impl Benchmark for Perplexity {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        let Answer::Rolled(score) = answer else { panic!("the whole text was asked for, not {answer:?}") };
        let text = &item.prompt.question;
        let n_words = text.split_whitespace().count().max(1);
        let per = |metric: &'static str, n: usize| {
            let weight = n as f64;
            Mark { metric, value: -score.logprob / weight, weight }
        };
        let bytes = per("byte_perplexity", text.len());
        let bits = Mark { metric: "bits_per_byte", value: bytes.value / std::f64::consts::LN_2, ..bytes };
        let (tokens, words) = (per("token_perplexity", score.n_tokens), per("word_perplexity", n_words));
        let reason = format!("{:.4} nats per token over {} tokens", tokens.value, score.n_tokens);
        Marks { marks: vec![bytes, tokens, words, bits], answer: None, reason }
    }
}
