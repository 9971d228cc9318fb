//! Models for curations: how likely replies are, with their prompt and without it.
//!
//! A prompt and its reply are one turn each of the tokenizer's chat template, or one text where it has none; the reply alone are
//! the tokens it has after an empty prompt, behind the token that begins a text (BOS, else EOS; without either its first token
//! is not predicted). The end of the turn counts as the reply's. Rows that are longer than the model, or that the template or
//! the vocabulary cannot take, are not scored.

use std::sync::Arc;

use pt_curate::{FindModels, ModelScores};
use pt_data::{Body, Content, Message, Record};
use pt_recipe::{Mask, Truncation};
use pt_train::{Example, MicroBatch, Reply};
use serde_json::Map;

use crate::loaded::Loaded;
use crate::model::{config_at, locate_model};
use crate::source::Surroundings;
use crate::tokenise::{TokeniseOptions, example, masker};

/// Finds the models that curations name.
pub struct CurationModels {
    surroundings: Surroundings,
}

impl CurationModels {
    /// Models in folders, in llama2.c files, and in the hub's cache.
    pub fn new(surroundings: &Surroundings) -> Self {
        CurationModels { surroundings: surroundings.clone() }
    }
}

impl FindModels for CurationModels {
    fn check(&self, name: &str) -> Result<(), String> {
        let path = locate_model(name, "main", &self.surroundings).map_err(|error| error.to_string())?;
        config_at(&path).map(|_| ()).map_err(|error| error.to_string())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ModelScores>, String> {
        let path = locate_model(name, "main", &self.surroundings).map_err(|error| error.to_string())?;
        let loaded = Loaded::read(&path, None, None).map_err(|error| error.to_string())?;
        Ok(Arc::new(Likelihood { loaded }))
    }
}

/// A model that says how likely replies are.
struct Likelihood {
    loaded: Loaded,
}

impl Likelihood {
    /// Prompt and reply as tokens.
    fn tokens(&self, prompt: &str, reply: &str) -> Option<Example> {
        let template = self.loaded.template.as_ref();
        let content = |role, text: &str| match template {
            Some(_) => Content::Messages(vec![Message::new(role, text)]),
            None => Content::Text(text.to_owned()),
        };
        let record = Record {
            body: Body::PromptCompletion {
                prompt: content("user", prompt),
                completion: content("assistant", reply),
            },
            origin: pt_data::Origin::new("row", 1),
            tools: None,
            chat_template_kwargs: None,
            extra: Map::new(),
        };
        let options = TokeniseOptions {
            tokenizer: &self.loaded.tokenizer,
            template,
            mask: Mask::CompletionOnly,
            train_end_of_turn: true,
            max_length: None,
            truncation: Truncation::Error,
            stage: "difficulty",
        };
        let side = example(&masker(&options), &record, &options).ok()?;
        let (context, ids) = side.token_ids.split_at(side.n_prompt);
        let tokenizer = &self.loaded.tokenizer;
        let context = match prompt.is_empty() {
            true => tokenizer.bos_id().or(tokenizer.eos_id()).into_iter().collect(),
            false => context.to_vec(),
        };
        let mut weights = side.weights[side.n_prompt..].to_vec();
        if context.is_empty() {
            // Nothing is before the first token.
            *weights.first_mut()? = 0.0;
            return Some(Example::sequence(ids.to_vec(), weights, 0, "row".into()));
        }
        let reply = Reply { token_ids: ids.to_vec(), weights, ..Reply::default() };
        Some(Example::prompt(context, vec![reply], 0, "row".into()))
    }

    fn fits(&self, example: &Example) -> bool {
        let config = &self.loaded.model.config;
        let replies = example.replies.iter().flat_map(|reply| &reply.token_ids);
        example.n_tokens() <= config.max_positions
            && example.token_ids.iter().chain(replies).all(|id| (*id as usize) < config.vocab_size)
    }
}

impl ModelScores for Likelihood {
    fn mean_nll(&self, prompt: &str, reply: &str) -> Option<f64> {
        let example = self.tokens(prompt, reply).filter(|example| self.fits(example))?;
        let batch = MicroBatch::new(vec![example]);
        let predictions = batch.predictions();
        let engine_batch = batch.batch().ok()?;
        let found = pt_train::score(&self.loaded.model, &engine_batch, self.loaded.dtype, &predictions);
        let n = found.logp.len();
        let mean = -found.logp.iter().map(|logp| f64::from(*logp)).sum::<f64>() / n as f64;
        mean.is_finite().then_some(mean)
    }
}

/// The model that a step names, by its options.
pub(crate) fn model_of(options: &toml::Table) -> Option<&str> {
    options.get("model").and_then(toml::Value::as_str)
}

#[cfg(test)]
mod tests {
    use pt_core::testdata::shared_data;

    use super::*;

    /// One forward pass over the same tokens, by the model itself.
    fn by_hand(loaded: &Loaded, tokens: &[u32], n_context: usize) -> f64 {
        let weights = (0..tokens.len()).map(|i| if i < n_context { 0.0 } else { 1.0 }).collect();
        let batch = MicroBatch::new(vec![Example::sequence(tokens.to_vec(), weights, 0, "row".into())]);
        let found =
            pt_train::score(&loaded.model, &batch.batch().unwrap(), loaded.dtype, &batch.predictions());
        -found.logp.iter().map(|logp| f64::from(*logp)).sum::<f64>() / found.logp.len() as f64
    }

    #[test]
    fn replies_are_as_likely_as_their_tokens() {
        let Some(data) = shared_data() else { return };
        let path = data.join("stories260K/stories260K.bin");
        let name = path.display().to_string();
        let models =
            CurationModels::new(&Surroundings { hf_home: None, cache_dir: None, memory_bytes: None });
        models.check(&name).unwrap();
        assert!(models.check("no/such-model").unwrap_err().contains("no/such-model"));
        let model = models.open(&name).unwrap();
        let loaded = Loaded::read(&path, None, None).unwrap();
        let (prompt, reply) =
            ("Once upon a time, there was a little", " girl who liked to play with her toys.");
        let ids = |text: &str| loaded.tokenizer.encode(text, false).unwrap().ids;
        let bos = loaded.tokenizer.bos_id().unwrap();
        // Without a template prompt and reply are one text, and the end of it is the reply's.
        let end = loaded.tokenizer.eos_id().unwrap();
        let whole = [vec![bos], ids(&[prompt, reply].concat()), vec![end]].concat();
        let alone = [vec![bos], ids(reply), vec![end]].concat();
        let check = |found: Option<f64>, expected: f64| {
            let found = found.expect("it is scored");
            assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
        };
        check(model.mean_nll(prompt, reply), by_hand(&loaded, &whole, 1 + ids(prompt).len()));
        check(model.mean_nll("", reply), by_hand(&loaded, &alone, 1));
        assert!(model.mean_nll(prompt, reply) < model.mean_nll("", reply), "the prompt helps");
        assert_eq!(model.mean_nll(prompt, &"very ".repeat(2000)), None, "too long");
    }
}
