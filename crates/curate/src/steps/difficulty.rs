//! How hard a row is for a model: perplexity, and instruction-following difficulty.
//!
//! With `nll` the model's mean negative log-likelihood per token of the reply, in nats:
//! perplexity = exp(nll(reply | prompt)); IFD = exp(nll(reply | prompt) - nll(reply)), the ratio of the perplexities with
//! and without the prompt (Li et al. 2023, "From Quantity to Quality", equations 3 and 4, who write it as a ratio of the
//! nlls; Li et al. 2024, "Superfiltering", equation 2, as the ratio of perplexities that is computed here). Near 0 the
//! prompt gives the reply away; above 1 the prompt does not help, and the two probably do not belong together.
//!
//! The model is found from above ([`crate::FindModels`]); that there is one is known before anything is read, and it is read with
//! the first rows.

use std::sync::Arc;

use pt_core::catalogue::OptionInfo;
use pt_data::Columns;
use serde::Deserialize;

use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::{FindModels, ModelScores, Step};

const NAME: &str = "difficulty";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "complexity",
    summary: "drops rows by perplexity or instruction-following difficulty under a model",
    options: &[
        OptionInfo {
            name: "model",
            kind: "folder, llama2.c file or hub name",
            default: "",
            doc: "the model that scores; required",
        },
        OptionInfo {
            name: "min_perplexity",
            kind: "number",
            default: "",
            doc: "the least perplexity that is kept",
        },
        OptionInfo {
            name: "max_perplexity",
            kind: "number",
            default: "",
            doc: "the highest perplexity that is kept",
        },
        OptionInfo { name: "min_ifd", kind: "number", default: "", doc: "the least difficulty that is kept" },
        OptionInfo {
            name: "max_ifd",
            kind: "number",
            default: "1.0",
            doc: "the highest difficulty that is kept",
        },
    ],
    build: |options, given| {
        let options: Options = parse(NAME, options)?;
        let models = given.models.clone().ok_or(CurateError::NeedsModel { step: NAME })?;
        if options.model.is_empty() {
            let problem = "model is not given; name the model that scores, as `model = \"models/chat\"`";
            return Err(CurateError::option(NAME, problem));
        }
        models.check(&options.model).map_err(|problem| CurateError::option(NAME, problem))?;
        Ok(Box::new(Difficulty {
            options,
            models,
            model: None,
            n: 0,
            n_unscored: 0,
            sum_nll: 0.0,
            sum_ifd: 0.0,
        }))
    },
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    model: String,
    min_perplexity: Option<f64>,
    max_perplexity: Option<f64>,
    min_ifd: Option<f64>,
    max_ifd: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            model: String::new(),
            min_perplexity: None,
            max_perplexity: None,
            min_ifd: None,
            max_ifd: Some(1.0),
        }
    }
}

struct Difficulty {
    options: Options,
    models: Arc<dyn FindModels>,
    /// Read with the first rows.
    model: Option<Arc<dyn ModelScores>>,
    n: u64,
    n_unscored: u64,
    sum_nll: f64,
    sum_ifd: f64,
}

impl Step for Difficulty {
    /// Mean nll with the prompt, and without.
    type Seen = Option<(f64, f64)>;

    fn begin_chunk(&mut self) -> Result<(), CurateError> {
        if self.model.is_none() {
            let opened = self.models.open(&self.options.model);
            self.model = Some(opened.map_err(|problem| CurateError::option(NAME, problem))?);
        }
        Ok(())
    }

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        let model = self.model.as_ref().expect("it was opened at the chunk's beginning");
        let score = |prompt: &str| model.mean_nll(prompt, &item.view.reply);
        let with = score(&item.view.prompt);
        Ok(with.and_then(|with| Some((with, if item.view.prompt.is_empty() { with } else { score("")? }))))
    }

    fn decide(&mut self, _item: &Item, seen: Self::Seen) -> Decision {
        let Some((with, without)) = seen else {
            self.n_unscored += 1;
            return Decision::Keep;
        };
        let (perplexity, ifd) = (with.exp(), (with - without).exp());
        (self.n, self.sum_nll, self.sum_ifd) = (self.n + 1, self.sum_nll + with, self.sum_ifd + ifd);
        let Options { min_perplexity, max_perplexity, min_ifd, max_ifd, .. } = self.options;
        for (name, value, min, max) in
            [("perplexity", perplexity, min_perplexity, max_perplexity), ("ifd", ifd, min_ifd, max_ifd)]
        {
            if let Some(min) = min.filter(|min| value < *min) {
                return Decision::drop("too easy for the model", format!("{name} {value:.3} is below {min}"));
            }
            if let Some(max) = max.filter(|max| value > *max) {
                return Decision::drop("too hard for the model", format!("{name} {value:.3} is above {max}"));
            }
        }
        let notes =
            [("perplexity", perplexity), ("ifd", ifd)].map(|(name, value)| (name.to_owned(), value.into()));
        Decision::Note(Columns::from_iter(notes))
    }

    fn summary(&self) -> Summary {
        let n = self.n.max(1) as f64;
        let line = format!(
            "{} rows scored, {} not; perplexity {:.2} (of the mean nll), mean difficulty {:.3}",
            self.n,
            self.n_unscored,
            (self.sum_nll / n).exp(),
            self.sum_ifd / n
        );
        Summary { lines: vec![line], ..Summary::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Given;
    use crate::testing::{Harness, prompt};

    /// Half a nat per letter that the prompt lacks; unscored where there is no reply.
    struct Letters;

    impl ModelScores for Letters {
        fn mean_nll(&self, prompt: &str, reply: &str) -> Option<f64> {
            let unknown = reply.chars().filter(|c| !prompt.contains(*c)).count();
            (!reply.is_empty()).then(|| 0.5 * unknown as f64 + if prompt == "bad" { 9.0 } else { 0.0 })
        }
    }

    /// Has one model, `letters`, and one that cannot be read.
    struct Shelf;

    impl FindModels for Shelf {
        fn check(&self, name: &str) -> Result<(), String> {
            if ["letters", "torn"].contains(&name) { Ok(()) } else { Err(format!("no model {name}")) }
        }

        fn open(&self, name: &str) -> Result<Arc<dyn ModelScores>, String> {
            if name == "letters" { Ok(Arc::new(Letters)) } else { Err(format!("{name} is torn")) }
        }
    }

    fn given() -> Given {
        Given { models: Some(Arc::new(Shelf)), ..Given::default() }
    }

    #[test]
    fn rows_are_kept_by_difficulty_under_the_given_model() {
        let rows = [prompt("ab", "abc"), prompt("bad", "xy"), prompt("abc", "abc"), prompt("q", "")];
        let check = |options: &str, kept: &[usize]| {
            let options = format!("model = \"letters\"\n{options}");
            assert_eq!(Harness::new(NAME, &options).given(given()).run(&rows).kept, kept, "{options}");
        };
        check("", &[0, 2, 3]);
        check("min_ifd = 0.3", &[0, 3]);
        check("max_perplexity = 1.5", &[2, 3]);
    }

    #[test]
    fn without_its_model_the_step_is_refused() {
        assert!(Harness::refusal(NAME, "").contains("scores rows with a model"));
        let rows = [prompt("ab", "abc")];
        for (options, expected) in [
            ("", "model is not given"),
            ("model = \"nowhere\"", "no model nowhere"),
            ("model = \"torn\"", "torn is torn"),
        ] {
            let error = Harness::new(NAME, options).given(given()).error(&rows);
            assert!(error.contains(expected), "{error}");
        }
    }
}
