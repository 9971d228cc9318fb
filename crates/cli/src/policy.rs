//! A language model that continues beginnings of replies, and the verifier that judges whole ones, for commands that search and label.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::bail;
use pt_data::{Body, Record, parallel};
use pt_pipeline::rl::{build_verifier_of_rows, prompt_text};
use pt_rollout::{Engine, EngineOptions, Event, Request, Sample, SamplingParams, Stop, content_key};
use pt_search::{Ask, Splitter, Written};
use pt_verify::{Question, Verifier};

use crate::commands::generate::{continuation, prompt_ids, stop_tokens};
use crate::commands::verify::options_of;
use crate::loading::Loaded;

/// How many draws a question has keys for: those of a question follow its own, so they must not reach the next one's.
const KEY_SPACING_BITS: u32 = 24;

/// A model with the questions it answers.
pub(crate) struct Policy<'a> {
    loaded: &'a Loaded,
    params: SamplingParams,
    prompts: Vec<Vec<u32>>,
    keys: Vec<u64>,
}

impl<'a> Policy<'a> {
    /// For questions whose replies are drawn as `params` says.
    ///
    /// # Errors
    /// The first row that has no prompt, or one that the model cannot read.
    pub(crate) fn new(
        loaded: &'a Loaded,
        params: SamplingParams,
        records: &[Record],
        chat: bool,
    ) -> anyhow::Result<Policy<'a>> {
        let prompts = parallel::try_map_ordered(records, |record| prompt_ids(&asked(record), loaded, chat))?;
        let params = SamplingParams { stop_token_ids: stop_tokens(loaded), ..params };
        let keys = keys(&prompts).into_iter().map(|key| key.wrapping_add(1) << KEY_SPACING_BITS).collect();
        Ok(Policy { loaded, params, prompts, keys })
    }

    /// Where a question's keys begin: it depends on the prompt, and on how often it came before.
    pub(crate) fn key(&self, question: usize) -> u64 {
        self.keys[question]
    }

    /// Continues beginnings to the end of the reply.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) fn whole(&self, asks: &[Ask]) -> anyhow::Result<Vec<Vec<Written>>> {
        self.write(asks, None, self.params.temperature)
    }

    /// Continues beginnings by the most probable token, whatever the temperature.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) fn greedy(&self, asks: &[Ask]) -> anyhow::Result<Vec<Vec<Written>>> {
        self.write(asks, None, 0.0)
    }

    /// Continues beginnings by one step.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) fn step(&self, asks: &[Ask], splitter: &Splitter) -> anyhow::Result<Vec<Vec<Written>>> {
        self.write(asks, Some(splitter.separator()), self.params.temperature)
    }

    /// A whole reply to each question.
    pub(crate) fn asks(&self, questions: impl Iterator<Item = usize>, n: usize) -> Vec<Ask> {
        let ask = |question| Ask {
            question,
            beginning: String::new(),
            n,
            key: self.key(question),
            max_tokens: self.params.max_new_tokens,
        };
        questions.map(ask).collect()
    }

    fn write(
        &self,
        asks: &[Ask],
        until: Option<&str>,
        temperature: f32,
    ) -> anyhow::Result<Vec<Vec<Written>>> {
        let tokenizer = &self.loaded.tokenizer;
        let mut options = EngineOptions { keeps_prefixes: false, ..EngineOptions::new(self.loaded.dtype) };
        if until.is_some() {
            options.detokenise =
                Some(Arc::new(move |ids: &[u32]| tokenizer.decode(ids, true).unwrap_or_default()));
        }
        let mut engine = Engine::new(&self.loaded.model, options);
        let stop: Vec<String> = until.map(str::to_owned).into_iter().collect();
        let mut requests = Vec::with_capacity(asks.len());
        for ask in asks {
            let mut prompt_ids = self.prompts[ask.question].clone();
            prompt_ids.extend(tokenizer.encode(&ask.beginning, false)?.ids);
            let request = Request { prompt_ids, key: ask.key };
            let params = SamplingParams {
                n: ask.n,
                max_new_tokens: ask.max_tokens,
                temperature,
                stop: stop.clone(),
                ..self.params.clone()
            };
            params.check()?;
            engine.submit(request.clone(), params)?;
            requests.push(request);
        }
        let mut samples: Vec<Vec<Option<Sample>>> = asks.iter().map(|ask| vec![None; ask.n]).collect();
        while !engine.is_idle() {
            for event in engine.step() {
                match event {
                    Event::Token { .. } => {}
                    Event::Finished { request, index, sample } => {
                        samples[request.0 as usize][index] = Some(sample);
                    }
                    Event::Failed { error, .. } => return Err(error.into()),
                }
            }
        }
        let written = |(request, samples): (&Request, Vec<Option<Sample>>)| -> anyhow::Result<Vec<Written>> {
            samples.into_iter().flatten().map(|sample| self.written(request, &sample, until)).collect()
        };
        requests.iter().zip(samples).map(written).collect()
    }

    fn written(&self, request: &Request, sample: &Sample, until: Option<&str>) -> anyhow::Result<Written> {
        let text = continuation(&self.loaded.tokenizer, &request.prompt_ids, sample)?;
        let text = match until.and_then(|until| text.split_once(until)) {
            Some((step, _)) => step.to_owned(),
            None => text,
        };
        let is_end = matches!(sample.stop, Some(Stop::Token(_)));
        Ok(Written { text, is_end, n_tokens: sample.token_ids.len() })
    }
}

/// Keys of draws that depend on the prompt and on how often it came before, not on its place among the others.
pub(crate) fn keys(prompts: &[Vec<u32>]) -> Vec<u64> {
    let mut seen: HashMap<u64, u64> = HashMap::new();
    let key = |prompt: &Vec<u32>| {
        let content = content_key(prompt);
        let earlier = seen.entry(content).or_default();
        let key = content.wrapping_add(*earlier);
        *earlier += 1;
        key
    };
    prompts.iter().map(key).collect()
}

/// A row as what is asked: of a solution in steps, the problem.
fn asked(record: &Record) -> Record {
    match &record.body {
        Body::Stepwise { prompt, .. } => {
            let prompt = pt_data::Content::Text(prompt.clone());
            Record { body: Body::PromptOnly { prompt }, ..record.clone() }
        }
        _ => record.clone(),
    }
}

/// Which verifier judges replies.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Judging replies")]
pub(crate) struct VerifierArgs {
    /// The verifier, of `posttrain list verifiers` [default: `task` where rows have a `check`, otherwise `math`]
    #[arg(long, value_name = "NAME")]
    pub(crate) verifier: Option<String>,
    /// An option of the verifier (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// The column of the right answer [default: the first of answer, solution, ground_truth, gold, target]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) gold: Option<String>,
}

/// A verifier with the rows that it judges replies to.
pub(crate) struct Judge<'a> {
    verifier: Box<dyn Verifier>,
    records: &'a [Record],
    /// What each row asks.
    pub(crate) prompts: Vec<String>,
}

impl VerifierArgs {
    /// The verifier's name.
    pub(crate) fn name(&self, records: &[Record]) -> &str {
        let has_check = || records.iter().all(|record| record.extra.contains_key("check"));
        self.verifier.as_deref().unwrap_or_else(|| if has_check() { "task" } else { "math" })
    }

    /// The verifier for these rows.
    ///
    /// # Errors
    /// If it is unknown or has not these options, or a row has not the column.
    pub(crate) fn judge<'a>(&self, records: &'a [Record]) -> anyhow::Result<Judge<'a>> {
        if let Some(column) = &self.gold
            && let Some(record) = records.iter().find(|record| !record.extra.contains_key(column))
        {
            let columns: Vec<&str> = record.extra.keys().map(String::as_str).collect();
            bail!(
                "{}: there is no column `{column}`; beside the prompt the row has {}",
                record.origin,
                columns.join(", ")
            );
        }
        let verifier =
            build_verifier_of_rows(self.name(records), &options_of(&self.sets)?, self.gold.clone())?;
        Ok(Judge { verifier, records, prompts: records.iter().map(prompt_text).collect() })
    }
}

impl Judge<'_> {
    /// Whether replies to these questions are right; `None` where the verifier cannot say.
    pub(crate) fn verdicts(&self, replies: &[(usize, String)]) -> Vec<Option<bool>> {
        let questions: Vec<Question<'_>> = replies
            .iter()
            .map(|(question, reply)| Question {
                prompt: &self.prompts[*question],
                reply,
                gold: None,
                row: &self.records[*question].extra,
                is_truncated: false,
            })
            .collect();
        let verdicts = self.verifier.verify_all(&questions);
        verdicts.iter().map(|verdict| verdict.score.map(|_| verdict.is_pass())).collect()
    }
}

/// The separator as it is written on a command line, where `\n` is a line break.
pub(crate) fn parse_separator(text: &str) -> Result<Splitter, String> {
    let text = text.replace("\\n", "\n").replace("\\t", "\t");
    Splitter::new(text).ok_or_else(|| "expected a text that is not empty".to_owned())
}
