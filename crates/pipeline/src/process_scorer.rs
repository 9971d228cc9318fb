//! Scores of steps by a process reward model.

use std::path::Path;
use std::sync::Arc;

use pt_engine::{Dtype, Storage};
use pt_models::{Model, ScoreHeadKind};
use pt_text::{MaskPolicy, Masker, Origin, Tokenizer};
use pt_train::{Example, Reply, ScoredToken};

use crate::error::{PipelineError, Result};
use crate::model::tokenizer_at;
use crate::replies::step_token_ids;
use crate::scorer::{load_scorer, scores, with_shared_prompts};

/// A process reward model with its tokenizer.
#[derive(Debug)]
pub struct ProcessScorer {
    model: Model,
    tokenizer: Tokenizer,
    dtype: Dtype,
}

impl ProcessScorer {
    /// Reads the process reward model of a folder: what a `prm` stage wrote (model or adapter), or a ...ForTokenClassification.
    ///
    /// # Errors
    /// As [`load_scorer`]; [`PipelineError::Unsupported`] if it does not score steps by one output or two.
    pub fn open(path: &Path, dtype: Option<Dtype>) -> Result<ProcessScorer> {
        let model = load_scorer(path, dtype)?;
        let n_outputs = model.classifier().map_or(0, |head| head.n_outputs);
        if model.score_head_kind() != Some(ScoreHeadKind::Token) || !(1..=2).contains(&n_outputs) {
            return Err(PipelineError::Unsupported {
                what: format!(
                    "the score head of {} is {:?} of {n_outputs} outputs",
                    path.display(),
                    model.score_head_kind()
                ),
                advice:
                    "scores of steps come from a token classifier of two classes, as `prm` stages write it"
                        .to_owned(),
            });
        }
        let dtype = match model.params.get(model.arch.head()).weight.storage() {
            Storage::Bf16 => Dtype::Bf16,
            _ => Dtype::F32,
        };
        Ok(ProcessScorer { tokenizer: tokenizer_at(path)?, model, dtype })
    }

    /// How likely each step of each solution is right, from 0 to 1: `(prompt, steps)` in, one probability for each step out, read where
    /// training labels it. Each is the same whatever else is scored with it.
    ///
    /// # Errors
    /// If the texts cannot be tokenised, or give tokens outside the model's vocabulary.
    pub fn probabilities(&self, solutions: &[(&str, &[String])]) -> Result<Vec<Vec<f64>>> {
        let scored = solutions.iter().filter(|(_, steps)| !steps.is_empty());
        let examples =
            scored.map(|(prompt, steps)| self.example(prompt, steps)).collect::<Result<Vec<_>>>()?;
        let n_outputs = self.model.classifier().map_or(1, |head| head.n_outputs);
        let outputs = scores(&self.model, self.dtype, &with_shared_prompts(examples));
        let mut outputs = outputs.chunks_exact(n_outputs).map(probability);
        Ok(solutions.iter().map(|(_, steps)| outputs.by_ref().take(steps.len()).collect()).collect())
    }

    fn example(&self, prompt: &str, steps: &[String]) -> Result<Example> {
        let origin = Origin::new("solution", 1);
        let masker = Masker::new(&self.tokenizer, None, MaskPolicy::default());
        let prompt = masker.prompt_text(&origin, prompt)?.token_ids;
        if prompt.is_empty() {
            return Err(PipelineError::Unsupported {
                what: "the prompt has no tokens".to_owned(),
                advice: "give the problem whose solution is scored".to_owned(),
            });
        }
        let mut reply = Reply::default();
        for ids in step_token_ids(&self.tokenizer, steps)? {
            reply.token_ids.extend(ids);
            let position = Some(reply.token_ids.len() - 1);
            reply.scored.push(ScoredToken { position, target: 0.0, weight: 1.0, old_value: None });
        }
        let vocabulary = self.model.config.vocab_size;
        let ids = || prompt.iter().chain(&reply.token_ids).copied();
        if let Some(id) = ids().find(|&id| id as usize >= vocabulary) {
            return Err(PipelineError::Vocabulary {
                origin: origin.to_string(),
                id,
                token: self.tokenizer.id_to_token(id).unwrap_or_default(),
                vocabulary,
                tokenizer_size: self.tokenizer.vocab_size(),
            });
        }
        reply.weights = vec![0.0; reply.token_ids.len()];
        Ok(Example::prompt(prompt, vec![reply], 0, Arc::from("solution")))
    }
}

/// The probability of "right", as the `prm` objective has it: of one output its logistic function, of two the second's share.
fn probability(outputs: &[f32]) -> f64 {
    let log_odds = match outputs {
        [only] => f64::from(*only),
        [wrong, right, ..] => f64::from(*right) - f64::from(*wrong),
        [] => unreachable!("a score head has outputs"),
    };
    1.0 / (1.0 + (-log_odds).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_objective() {
        for (outputs, expected) in
            [(vec![0.0], 0.5), (vec![1.0, 1.0], 0.5), (vec![-1.0, 1.0], 0.880_797_077_977_882_3)]
        {
            assert!((probability(&outputs) - expected).abs() < 1e-12, "{outputs:?}");
        }
        assert_eq!((probability(&[1e4]), probability(&[1e4, 0.0])), (1.0, 0.0));
    }
}
