//! `posttrain merge`: an adapter folded into its model, with proof.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pt_core::atomic_file;
use pt_engine::{Batch, Dtype, SegmentTable, Tape};
use pt_models::{LoadOptions, Model, SaveOptions};
use pt_pipeline::model::load_model;
use pt_pipeline::own_dtype;
use pt_text::Tokenizer;

use crate::Context;
use crate::hub::ensure_model;
use crate::loading::{DtypeName, vocabulary};
use crate::ui;

/// Tokens of the prompt that both models are compared on.
const PROMPT_LEN: usize = 24;
/// Largest difference of two logits over the largest logit, weights in `f32`: sums in another order. Measured on golden
/// models of two layers: up to 2.2e-6.
const F32_TOLERANCE: f64 = 1e-4;
/// The same for weights in `bf16`, where the sum of weight and update is rounded once more, by up to 2^-9 of itself in
/// each weight of each layer. Measured: up to 1.5e-2 on golden models of two layers, 1.8e-2 on one of thirty.
const BF16_TOLERANCE: f64 = 5e-2;
/// Files that belong to a tokenizer.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

const HELP: &str = "\
Reads a PEFT adapter (LoRA, rsLoRA, DoRA), adds it to the weights, and writes a Hugging Face folder with the \
tokenizer's files: those of the adapter's folder where it has some, otherwise the model's. The folder is then read \
back and its logits are compared with those of model and adapter; it appears under its name only if they agree.

Examples:
  posttrain merge --model models/base --adapter runs/sft/stages/01-sft/adapter --out models/merged
  posttrain merge --model models/base --adapter adapter --dtype bf16 --out models/merged";

/// Options of `merge`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// A Hugging Face model folder, a model in the local hub cache, or a llama2.c file
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Branch, tag or commit of a model in the hub cache
    #[arg(long, value_name = "NAME", default_value = "main")]
    revision: String,
    /// A folder with a PEFT adapter
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The folder to write; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Storage type of the weights [default: that of the model's files]
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<DtypeName>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    check_empty(&args.out)?;
    let surroundings = context.environment.surroundings();
    ensure_model(&args.model, &args.revision, &context.environment)?;
    let base = pt_pipeline::model::locate_model(&args.model, &args.revision, &surroundings)?;
    let mut model = load_model(&base, args.dtype.map(Dtype::from))?;
    let dtype = own_dtype(&model);
    model.attach_peft(&args.adapter)?;
    let before = logits(&model);
    model.merge_adapter(dtype)?;
    let mut proof = None;
    publish(&model, &args.out, &SaveOptions::default(), |folder| {
        write_tokenizer(&base, &args.adapter, folder)?;
        let merged = pt_models::load(folder, &LoadOptions::default())?;
        proof = Some(Proof::of(&before, &logits(&merged), dtype).check()?);
        Ok(())
    })?;
    let proof = proof.expect("a folder that was published was compared");
    ui::note(&format!(
        "merged into {}: on {PROMPT_LEN} tokens the largest difference of two logits is {:.3e}, of logits up to {:.3} \
         ({:.1e} of the largest; allowed: {:.0e})",
        args.out.display(),
        proof.difference,
        proof.largest,
        proof.relative(),
        proof.tolerance
    ));
    Ok(())
}

/// An error on the way to the folder.
struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.into())
    }
}

/// Writes a model folder with what `also` adds; it appears under its name only if both succeed.
pub(super) fn publish(
    model: &Model,
    out: &Path,
    options: &SaveOptions,
    also: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    atomic_file::publish_dir(out, |folder| -> Result<(), Failure> {
        pt_models::save_into(model, folder, options)?;
        Ok(also(folder)?)
    })
    .map_err(|Failure(error)| error.context(format!("cannot write the model to {}", out.display())))
}

/// Publishing replaces an older folder whole, which must never be one with something in it.
pub(super) fn check_empty(out: &Path) -> anyhow::Result<()> {
    if out.exists() {
        let mut entries =
            std::fs::read_dir(out).with_context(|| format!("--out {} is not a folder", out.display()))?;
        if entries.next().is_some() {
            bail!("--out {} is there already and not empty; choose another name", out.display());
        }
    }
    match out.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        Some(parent) => {
            bail!("--out {}: there is no folder {}; make it first", out.display(), parent.display())
        }
        None => Ok(()),
    }
}

/// Logits of all rows of a fixed prompt, with activations in `f32` so that only the weights' rounding shows.
fn logits(model: &Model) -> Vec<f32> {
    let vocabulary = vocabulary(model);
    let tokens: Vec<u32> = (0..PROMPT_LEN).map(|i| (i * 7919 % vocabulary) as u32).collect();
    let batch = Batch::new(tokens, SegmentTable::sequences(&[PROMPT_LEN]).expect("the prompt is not empty"));
    let mut tape = Tape::inference(&model.params, &batch, Dtype::F32);
    let hidden = model.arch.hidden(&mut tape, false);
    let rows: Vec<u32> = (0..PROMPT_LEN as u32).collect();
    tape.logits(&hidden, model.arch.head(), &rows, &model.arch.logprob_options()).to_f32()
}

/// How far the merged model is from model and adapter.
struct Proof {
    difference: f64,
    largest: f64,
    tolerance: f64,
}

impl Proof {
    fn of(before: &[f32], after: &[f32], dtype: Dtype) -> Proof {
        let difference = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
        // `max` forgets NaN, and a NaN must not pass.
        let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
        Proof {
            difference: before.iter().zip(after).map(difference).fold(0.0, worst),
            largest: before.iter().map(|x| f64::from(x.abs())).fold(0.0, worst),
            tolerance: match dtype {
                Dtype::F32 => F32_TOLERANCE,
                Dtype::Bf16 => BF16_TOLERANCE,
            },
        }
    }

    fn relative(&self) -> f64 {
        self.difference / self.largest.max(f64::MIN_POSITIVE)
    }

    fn check(self) -> anyhow::Result<Proof> {
        if self.relative() <= self.tolerance {
            return Ok(self);
        }
        bail!(
            "the merged model differs from model and adapter: two logits by {:.3e}, of logits up to {:.3}, that is {:.1e} \
             where {:.0e} is allowed; nothing was written. Merge in f32 (--dtype f32) to see whether rounding is the cause",
            self.difference,
            self.largest,
            self.relative(),
            self.tolerance
        )
    }
}

/// Copies the tokenizer's files; the adapter's win, because it was trained with them.
pub(super) fn write_tokenizer(base: &Path, adapter: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut n_copied = 0;
    for from in [base, adapter].into_iter().filter(|from| from.is_dir()) {
        for name in TOKENIZER_FILES {
            let path = from.join(name);
            if path.is_file() {
                std::fs::copy(&path, folder.join(name))
                    .with_context(|| format!("cannot copy {}", path.display()))?;
                n_copied += 1;
            }
        }
    }
    if n_copied > 0 {
        return Ok(());
    }
    // A llama2.c model, or a folder with a tokenizer in another form: written as a tokenizer.json.
    let beside = if base.is_dir() { base } else { base.parent().unwrap_or(Path::new(".")) };
    match Tokenizer::from_dir(beside) {
        Ok(tokenizer) => Ok(tokenizer.save(folder)?),
        Err(error) => {
            ui::note(&format!(
                "note: the written model has no tokenizer, because there is none to copy ({error})"
            ));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_published_where_what_belongs_to_it_fails() {
        let new = pt_models::NewModel {
            vocab_size: 16,
            hidden_size: 8,
            n_layers: 1,
            n_heads: 2,
            n_kv_heads: 2,
            ffn_size: 8,
            max_positions: 8,
            tied: true,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            init_std: 0.02,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        };
        let (model, dir) = (new.build(Dtype::F32, 1).unwrap(), tempfile::tempdir().unwrap());
        let out = dir.path().join("out");
        let error = publish(&model, &out, &SaveOptions::default(), |folder| {
            assert!(folder.join("config.json").is_file());
            bail!("no tokenizer")
        });
        assert!(format!("{:#}", error.unwrap_err()).contains("no tokenizer"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        publish(&model, &out, &SaveOptions::default(), |_| Ok(())).unwrap();
        assert!(out.join("config.json").is_file());
    }

    #[test]
    fn a_difference_above_the_tolerance_or_not_a_number_is_refused() {
        let before = [1.0, -8.0, 3.0];
        let cases = [
            ([1.0, -8.0, 3.0], Dtype::F32, true),
            ([1.0, -8.0, 3.0 + 7e-4], Dtype::F32, true),
            ([1.0, -8.0, 3.0 + 9e-4], Dtype::F32, false),
            ([1.0, -8.3, 3.0], Dtype::Bf16, true),
            ([1.0, -8.5, 3.0], Dtype::Bf16, false),
            ([1.0, f32::NAN, 3.0], Dtype::Bf16, false),
        ];
        for (after, dtype, passes) in cases {
            assert_eq!(Proof::of(&before, &after, dtype).check().is_ok(), passes, "{after:?} {dtype:?}");
        }
    }
}
