//! `posttrain score` with a reward model: a reward for each row.

use anyhow::Context as _;
use pt_data::{Body, Columns, Record};
use pt_pipeline::scorer::Scorer;
use serde::Serialize;

use super::score::Args;
use crate::Context;
use crate::ui::{self, Progress};

/// Rows scored between two looks at the progress bar.
const ROWS_PER_BATCH: usize = 64;

/// A row of the output; the columns of the input follow.
#[derive(Default, Serialize)]
struct Scored {
    /// The reward: the mean of the outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    reward: Option<f64>,
    /// Of a pair, that of either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    reward_chosen: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reward_rejected: Option<f64>,
    /// Every output, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    rewards: Option<Vec<f32>>,
    #[serde(flatten)]
    extra: Columns,
}

/// Columns of the input that are left out, since the output has them.
const COLUMNS: [&str; 4] = ["reward", "reward_chosen", "reward_rejected", "rewards"];

pub(crate) fn run(args: &Args, scorer: &Scorer, context: &Context) -> anyhow::Result<()> {
    let rows = args.read.read(&args.data, &context.environment)?;
    let mut progress = Progress::rows(rows.records.len());
    let n_rows = rows.records.len();
    let mut n_tokens = 0;
    ui::write_json_lines(&args.out, |out| {
        for records in rows.records.chunks(ROWS_PER_BATCH) {
            let sides: Vec<Vec<Record>> = records.iter().map(sides).collect::<anyhow::Result<_>>()?;
            let mut examples = Vec::new();
            for record in sides.iter().flatten() {
                examples.push(scorer.record(record).with_context(|| record.origin.to_string())?);
            }
            let batch_tokens: usize = examples.iter().map(pt_train::Example::n_tokens).sum();
            let scores = scorer.scores(examples);
            let mut scores = scores.chunks_exact(scorer.n_outputs());
            for (record, sides) in records.iter().zip(&sides) {
                let outputs: Vec<&[f32]> = scores.by_ref().take(sides.len()).collect();
                out.write(&scored(record, &outputs))?;
            }
            n_tokens += batch_tokens;
            progress.advance(records.len(), batch_tokens);
        }
        Ok(())
    })?;
    progress.clear();
    let (rows, tokens) = (ui::counted(n_rows, "row"), ui::counted(n_tokens, "token"));
    ui::note(&format!("rewarded {rows}, {tokens} in {:.1} s", progress.seconds()));
    Ok(())
}

/// What of a row is scored: the row, or the two replies of a pair.
fn sides(record: &Record) -> anyhow::Result<Vec<Record>> {
    let Body::Preference { .. } = record.body else { return Ok(vec![record.clone()]) };
    let record = record.clone().extract_prompt()?;
    let Body::Preference { prompt: Some(prompt), chosen, rejected, .. } = &record.body else {
        unreachable!("the prompt was extracted");
    };
    let one = |completion: &pt_data::Content| Record {
        body: Body::PromptCompletion { prompt: prompt.clone(), completion: completion.clone() },
        ..record.clone()
    };
    Ok(vec![one(chosen), one(rejected)])
}

fn scored(record: &Record, outputs: &[&[f32]]) -> Scored {
    let mean = |outputs: &[f32]| outputs.iter().map(|&x| f64::from(x)).sum::<f64>() / outputs.len() as f64;
    let mut extra = record.extra.clone();
    extra.retain(|column, _| !COLUMNS.contains(&column.as_str()));
    match outputs {
        [chosen, rejected] => Scored {
            reward_chosen: Some(mean(chosen)),
            reward_rejected: Some(mean(rejected)),
            extra,
            ..Scored::default()
        },
        _ => Scored {
            reward: Some(mean(outputs[0])),
            rewards: (outputs[0].len() > 1).then(|| outputs[0].to_vec()),
            extra,
            ..Scored::default()
        },
    }
}
