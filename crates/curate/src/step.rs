//! What a step is, and how the runner calls steps without knowing their types.

use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;

/// A filter, repair or analysis.
///
/// The runner calls, for every chunk of rows in their order: `begin_chunk`, `see` on all rows at once on all cores, then, in order,
/// `survey` in a first pass where [`Step::needs_survey`], and `decide`.
pub trait Step: Send + Sync {
    /// What is computed of a row alone.
    type Seen: Send;

    /// Before the rows of a chunk are seen: the place to move what is kept from memory to a file.
    ///
    /// # Errors
    /// Where a file cannot be written.
    fn begin_chunk(&mut self) -> Result<(), CurateError> {
        Ok(())
    }

    /// Looks at one row; must not depend on other rows of its chunk.
    ///
    /// # Errors
    /// Where a row lacks what the step cannot work without.
    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError>;

    /// Whether all rows must be seen before the first decision.
    fn needs_survey(&self) -> bool {
        false
    }

    /// The first pass, in row order.
    fn survey(&mut self, _item: &Item, _seen: Self::Seen) {}

    /// Between the passes.
    fn finish_survey(&mut self) {}

    /// Decides on a row, in row order.
    fn decide(&mut self, item: &Item, seen: Self::Seen) -> Decision;

    /// What it found, for the card.
    fn summary(&self) -> Summary {
        Summary::default()
    }

    /// A text of the card without what this step exists to hide.
    fn conceal(&self, text: &str) -> String {
        text.to_owned()
    }
}

/// Scores of a model, given from above: this crate knows no model.
pub trait ModelScores: Send + Sync {
    /// Mean negative log-likelihood per token of `reply` after `prompt`, in nats; `None` where the row cannot be scored
    /// (too long, empty).
    ///
    /// With the empty prompt it is that of the reply alone, so that both perplexity, `exp(nll(prompt, reply))`, and
    /// instruction-following difficulty, `exp(nll(prompt, reply) - nll("", reply))` (Li et al. 2023, "From Quantity to
    /// Quality", equation 4), follow from it.
    fn mean_nll(&self, prompt: &str, reply: &str) -> Option<f64>;
}

/// Finds models by name, given from above: this crate knows no files of models.
pub trait FindModels: Send + Sync {
    /// Says what is wrong where there is no such model, without reading its weights.
    ///
    /// # Errors
    /// What was found, and what to do.
    fn check(&self, name: &str) -> Result<(), String>;

    /// Reads a model.
    ///
    /// # Errors
    /// What was found, and what to do.
    fn open(&self, name: &str) -> Result<Arc<dyn ModelScores>, String>;
}

/// Counts the tokens of a text, in the tokenizer of the model to be trained.
pub type CountTokens = Arc<dyn Fn(&str) -> usize + Send + Sync>;

/// What is given from above.
#[derive(Clone, Default)]
pub struct Given {
    /// Finds the models that steps name.
    pub models: Option<Arc<dyn FindModels>>,
    /// Token counts, for the card's histogram; without it words are counted.
    pub count_tokens: Option<CountTokens>,
    /// Keys every random choice.
    pub seed: u64,
    /// The folder of temporary files; [`crate::run`] takes that of the output.
    pub scratch: PathBuf,
    /// How sources of steps (evaluation sets) are read.
    pub read: pt_data::read::ReadOptions,
}

/// A step whose type is forgotten.
pub(crate) trait AnyStep: Send + Sync {
    fn needs_survey(&self) -> bool;
    fn survey_chunk(&mut self, items: &[Item]) -> Result<(), CurateError>;
    fn finish_survey(&mut self);
    fn decide_chunk(&mut self, items: &[Item]) -> Result<Vec<Decision>, CurateError>;
    fn summary(&self) -> Summary;
    fn conceal(&self, text: &str) -> String;
}

impl<S: Step> AnyStep for S {
    fn needs_survey(&self) -> bool {
        Step::needs_survey(self)
    }

    fn survey_chunk(&mut self, items: &[Item]) -> Result<(), CurateError> {
        self.begin_chunk()?;
        for (item, seen) in items.iter().zip(see_all(self, items)?) {
            self.survey(item, seen);
        }
        Ok(())
    }

    fn finish_survey(&mut self) {
        Step::finish_survey(self);
    }

    fn decide_chunk(&mut self, items: &[Item]) -> Result<Vec<Decision>, CurateError> {
        self.begin_chunk()?;
        let seen = see_all(self, items)?;
        Ok(items.iter().zip(seen).map(|(item, seen)| self.decide(item, seen)).collect())
    }

    fn summary(&self) -> Summary {
        Step::summary(self)
    }

    fn conceal(&self, text: &str) -> String {
        Step::conceal(self, text)
    }
}

/// The first error by row order, whichever thread was first.
fn see_all<S: Step>(step: &S, items: &[Item]) -> Result<Vec<S::Seen>, CurateError> {
    let seen: Vec<Result<S::Seen, CurateError>> = items.par_iter().map(|item| step.see(item)).collect();
    seen.into_iter().collect()
}
