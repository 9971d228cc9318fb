//! One stage's data, made of its recipe section: sources mixed into steps, held-out rows, the chat template.

use pt_data::batches::StepSize;
use pt_data::mix::{Blend, Stop};
use pt_data::{Record, split};
use pt_recipe::{
    Mask, Packing, PlannedTemplate, Recipe, RowKind, Source, SourceFacts, StageSection, StoppingStrategy,
};
use pt_text::{ChatTemplate, MaskPolicy, Masker, Tokenizer};
use pt_train::{Example, MicroBatch};
use serde_json::{Map, Value};

use crate::error::{PipelineError, Result};
use crate::model::{chat_template, template_date};
use crate::replies::{label_balance, tokenise_replies};
use crate::rl::environment::Stage as Environment;
use crate::row_fit::check_rows_fit;
use crate::source::{SourceRows, Surroundings, read_source};
use crate::steps::{StepOptions, Steps, eval_micro_batches};
use crate::tokenise::{TokeniseOptions, TokenisedSource, tokenise};
pub use crate::trainable::{planned_schedule, prepare_model, quantise_model, stage_trainer};

/// A stage's data, ready.
pub struct StageData {
    /// The training steps.
    pub steps: Steps,
    /// The rows behind the prompts of a stage that samples, by source.
    pub records: Vec<Vec<Record>>,
    /// The held-out rows.
    pub eval: Vec<MicroBatch>,
    /// Text that trains beside the samples (PPO-ptx).
    pub ptx: Option<Steps>,
    /// The chat template, if the stage has conversations to render.
    pub template: Option<ChatTemplate>,
    /// What a person should know.
    pub notes: Vec<String>,
    pub(crate) train_facts: Vec<SourceFacts>,
    pub(crate) eval_facts: Vec<SourceFacts>,
    pub(crate) ptx_facts: Vec<SourceFacts>,
}

impl StageData {
    /// Refuses the first row with a token that a model of `vocabulary` tokens has no embedding for.
    ///
    /// # Errors
    /// [`PipelineError::Vocabulary`].
    pub(crate) fn check_vocabulary(&self, tokenizer: &Tokenizer, vocabulary: usize) -> Result<()> {
        let refuse = |id: u32, origin: String| PipelineError::Vocabulary {
            origin,
            id,
            token: tokenizer.id_to_token(id).unwrap_or_default(),
            vocabulary,
            tokenizer_size: tokenizer.vocab_size(),
        };
        let beyond = |example: &Example| example.all_token_ids().find(|&id| id as usize >= vocabulary);
        for source in self.steps.sources().iter().filter(|s| s.counts.largest_id as usize >= vocabulary) {
            for index in 0..source.n_rows() {
                let example = source.example(index, 0)?;
                if let Some(id) = beyond(&example) {
                    return Err(refuse(id, example.origin.to_string()));
                }
            }
        }
        let mut eval = self.eval.iter().flat_map(MicroBatch::examples);
        match eval.find_map(|example| Some((beyond(example)?, example))) {
            Some((id, example)) => Err(refuse(id, example.origin.to_string())),
            None => Ok(()),
        }
    }
}

/// Reads, tokenises and audits a stage's data.
///
/// # Errors
/// The first row that cannot be read or would train the wrong thing.
pub fn stage_data(
    recipe: &Recipe,
    stage: &StageSection,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<StageData> {
    check_rows_fit(stage)?;
    let template = chat_template(stage.data.chat_template.as_deref(), tokenizer)?;
    let mut loader = Loader {
        stage,
        tokenizer,
        template: template.as_ref(),
        surroundings,
        seed: recipe.seed,
        notes: Vec::new(),
    };
    let kind = stage.stage_type().rows;
    let samples = kind == RowKind::Prompts;
    if samples && stage.has_held_out_rows() {
        return Err(PipelineError::Unsupported {
            what: "held-out rows of a stage that samples have no loss to be measured".to_owned(),
            advice: "remove data.eval and data.eval_fraction; name tasks under [stage.eval]".to_owned(),
        });
    }
    let environment = stage.planned_environment().as_ref().map(Environment::new).transpose()?;
    if let Some(environment) = &environment {
        environment.check_template(&Masker::new(tokenizer, template.as_ref(), MaskPolicy::default()))?;
    }
    let (mut train, mut train_facts, mut held_out) = (Vec::new(), Vec::new(), Vec::new());
    let mut records = Vec::new();
    for source in &stage.data.train {
        let mut rows = read_source(source, surroundings)?;
        if stage.data.eval_fraction > 0.0 {
            let (kept, held) = split::hold_out(rows.records, stage.data.eval_fraction, recipe.seed)?;
            rows.records = kept;
            let identity = format!("{}|held out {} {}", rows.identity, stage.data.eval_fraction, recipe.seed);
            let held =
                SourceRows { records: held, identity: format!("{identity} eval"), files: Vec::new(), ..rows };
            rows = SourceRows { records: rows.records, identity, layout: held.layout, files: rows.files };
            held_out.push((source, held));
        }
        if let Some(environment) = &environment {
            environment.prepare_rows(&mut rows.records)?;
        }
        let (tokenised, facts) = loader.tokenise(source, &rows, kind)?;
        train.push(tokenised);
        train_facts.push(facts);
        if samples {
            records.push(rows.records);
        }
    }
    let (mut eval, mut eval_facts) = (Vec::new(), Vec::new());
    for source in stage.data.eval.iter().flatten() {
        let rows = read_source(source, surroundings)?;
        let (tokenised, facts) = loader.tokenise(source, &rows, kind)?;
        eval.push(tokenised);
        eval_facts.push(facts);
    }
    for (source, rows) in &held_out {
        eval.push(loader.tokenise(source, rows, kind)?.0);
    }
    let (mut ptx, mut ptx_facts) = (Vec::new(), Vec::new());
    for source in stage.ppo.ptx.iter().flatten() {
        let rows = read_source(source, surroundings)?;
        let (tokenised, facts) = loader.tokenise(source, &rows, RowKind::Text)?;
        ptx.push(tokenised);
        ptx_facts.push(facts);
    }
    let mut notes = loader.notes;
    if template.as_ref().is_some_and(ChatTemplate::reads_clock) {
        notes.push(format!(
            "the chat template asks for the date; it is told {}",
            template_date().strftime("%d %B %Y")
        ));
    }
    let tokens_per_micro_batch = stage.train.tokens_per_micro_batch as usize;
    notes.extend(label_balance(stage, &train));
    let mut steps = Steps::new(train, step_options(recipe, stage))?;
    if kind == RowKind::Pairs {
        steps.watch_displacement();
    }
    let eval = eval_micro_batches(&eval, tokens_per_micro_batch)?;
    let ptx = match ptx.is_empty() {
        true => None,
        false => Some(Steps::new(ptx, ptx_options(recipe, stage))?),
    };
    Ok(StageData { steps, records, eval, ptx, template, notes, train_facts, eval_facts, ptx_facts })
}

struct Loader<'a> {
    stage: &'a StageSection,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    surroundings: &'a Surroundings,
    seed: u64,
    notes: Vec<String>,
}

impl Loader<'_> {
    fn tokenise(
        &mut self,
        source: &Source,
        rows: &SourceRows,
        kind: RowKind,
    ) -> Result<(TokenisedSource, SourceFacts)> {
        let (has_prompt, is_conversation) = rows.records.first().map_or((false, false), kind_of);
        let options = TokeniseOptions {
            tokenizer: self.tokenizer,
            template: self.template,
            mask: mask_of(self.stage, has_prompt, is_conversation),
            train_end_of_turn: self.stage.data.train_end_of_turn,
            max_length: Some(self.stage.data.max_length as usize)
                .filter(|_| self.stage.packing() != Packing::Wrapped),
            truncation: self.stage.data.truncation,
            stage: &self.stage.r#type,
        };
        let tokenised = match kind {
            RowKind::Text => tokenise(rows, &options, self.surroundings)?,
            _ => {
                let (tokenised, notes) = tokenise_replies(rows, kind, &options, self.seed)?;
                self.notes.extend(notes.iter().map(|note| format!("{}: {note}", source.source)));
                tokenised
            }
        };
        if let Some(problem) = &tokenised.cache_problem {
            self.notes.push(format!("{}: {problem}", source.source));
        }
        let counts = tokenised.counts;
        if tokenised.n_rows() == 0 && counts.rows_dropped > 0 {
            return Err(PipelineError::AllDropped {
                source_name: source.source.clone(),
                n_dropped: counts.rows_dropped,
                max_length: self.stage.data.max_length,
            });
        }
        let facts = SourceFacts {
            layout: rows.layout.to_owned(),
            has_prompt,
            is_conversation,
            files: rows.files.clone(),
            rows: tokenised.n_rows() as u64,
            tokens: counts.tokens,
            trained_tokens: counts.trained_tokens,
            rows_truncated: counts.rows_truncated,
            rows_dropped: counts.rows_dropped,
        };
        Ok((tokenised, facts))
    }
}

/// Which tokens of a kind of rows train in this stage.
pub fn mask_of(stage: &StageSection, has_prompt: bool, is_conversation: bool) -> Mask {
    Source::mask(stage.stage_type(), stage.data.mask, has_prompt, is_conversation)
}

/// Whether a record has a prompt, and whether it is a conversation.
pub fn kind_of(record: &pt_data::Record) -> (bool, bool) {
    use pt_data::{Body, Content};
    match &record.body {
        Body::PromptCompletion { prompt, .. } => (true, matches!(prompt, Content::Messages(_))),
        Body::LanguageModel(content) => (false, matches!(content, Content::Messages(_))),
        Body::PromptOnly { prompt } | Body::Unpaired { prompt, .. } => {
            (true, matches!(prompt, Content::Messages(_)))
        }
        Body::Preference { chosen, .. } => (true, matches!(chosen, Content::Messages(_))),
        Body::Stepwise { .. } => (true, false),
        _ => (false, false),
    }
}

fn step_options(recipe: &Recipe, stage: &StageSection) -> StepOptions {
    let sources = &stage.data.train;
    let blend = match sources.iter().map(|source| source.weight).collect::<Option<Vec<f64>>>() {
        None => Blend::Repeats(sources.iter().map(|source| source.repeats.unwrap_or(1.0)).collect()),
        Some(weights) => {
            let stop = match stage.data.stopping_strategy {
                StoppingStrategy::FirstExhausted => Stop::FirstExhausted,
                StoppingStrategy::AllExhausted => Stop::AllExhausted,
            };
            Blend::Shares(weights, stop)
        }
    };
    StepOptions {
        blend,
        packing: stage.packing(),
        max_length: stage.data.max_length as usize,
        step_size: match stage.step_size() {
            pt_recipe::StepSize::Rows(n) => StepSize::Rows(n as usize),
            pt_recipe::StepSize::Tokens(n) => StepSize::Tokens(n as usize),
        },
        tokens_per_micro_batch: stage.train.tokens_per_micro_batch as usize,
        shuffle: stage.data.shuffle,
        seed: recipe.seed,
    }
}

/// Text beside the samples: a number of rows in every step.
fn ptx_options(recipe: &Recipe, stage: &StageSection) -> StepOptions {
    let sources = stage.ppo.ptx.iter().flatten();
    StepOptions {
        blend: Blend::Repeats(sources.map(|source| source.repeats.unwrap_or(1.0)).collect()),
        packing: Packing::Bfd,
        step_size: StepSize::Rows(stage.ppo.ptx_rows_per_step as usize),
        ..step_options(recipe, stage)
    }
}

/// The chat template as plans show it.
pub(crate) fn planned_template(
    stage: &StageSection,
    template: Option<&ChatTemplate>,
) -> Option<PlannedTemplate> {
    template.map(|template| PlannedTemplate {
        origin: stage.data.chat_template.clone().unwrap_or_else(|| "tokenizer".to_owned()),
        blake3: pt_core::hash::of_bytes(template.source().as_bytes()),
    })
}

/// A component's options with the defaults of those not written, as plans show them.
pub(crate) fn with_defaults<'a>(
    defaults: impl Iterator<Item = (&'a str, &'a str)>,
    written: &Map<String, Value>,
) -> Value {
    let mut all = Map::new();
    for (name, default) in defaults {
        let parsed = format!("value = {default}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut table| table.remove("value"));
        if let Some(value) = parsed.and_then(|value| serde_json::to_value(value).ok()) {
            all.insert(name.to_owned(), value);
        }
    }
    all.extend(written.clone());
    Value::Object(all)
}
