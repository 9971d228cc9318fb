//! `posttrain fuse`: several models of one shape made into one, or into a sweep of weights.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pt_core::atomic_file;
use pt_engine::Dtype;
use pt_export::{FuseMethod, FuseOptions, divergence, fuse, prove_model, sequences};
use pt_models::{LoadOptions, Model, SaveOptions};
use pt_pipeline::model::{load_model, locate_model};
use pt_text::Tokenizer;
use serde_json::json;

use super::export::{EXACT, TEXT, report};
use super::merge::{check_empty, publish, write_tokenizer};
use crate::Context;
use crate::hub::ensure_model;
use crate::loading::DtypeName;
use crate::ui;

const HELP: &str = "\
Methods:
  linear  the weighted mean
  slerp   between two models along the great circle, tensor by tensor
  ties    differences from --base: each trimmed to its largest share --density, signs elected, those that agree averaged
  dare    differences from --base: each element kept with probability --density, then enlarged, then added

Weights are divided by their sum. The models need one architecture, one shape and one vocabulary; tokenizer and \
chat template are the first one's. (An adapter is folded into its model by `posttrain merge`.)

With --sweep, two models are fused once for each weight of the second; sweep.md and sweep.jsonl say for each how far it is from \
both. Measure them as you measure models, and keep those that no other beats in everything.

Examples:
  posttrain fuse --models maths,chat --weights 0.6,0.4 --out fused
  posttrain fuse --models maths,chat --method ties --base base --density 0.2 --out fused
  posttrain fuse --models helpful,safe --method slerp --sweep 0,0.25,0.5,0.75,1 --out sweep";

/// Options of `fuse`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Hugging Face model folders, or models on the hub
    #[arg(long, value_name = "MODELS", value_delimiter = ',', required = true)]
    models: Vec<String>,
    /// How
    #[arg(long, value_name = "NAME", default_value = "linear", value_parser = FuseMethod::ALL.map(|(name, _)| name).to_vec())]
    method: String,
    /// One weight per model [default: equal ones]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', allow_hyphen_values = true)]
    weights: Vec<f64>,
    /// The model that all came from (ties, dare)
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Share of each difference that is kept (ties, dare)
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    density: f64,
    /// Factor on the fused difference (ties, dare)
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    scale: f64,
    /// Of what dare drops
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Weights of the second of two models, one result each
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', conflicts_with = "weights")]
    sweep: Vec<f64>,
    /// Storage type of the result [default: that of the first model's files]
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<DtypeName>,
    /// The folder to write; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    check_empty(&args.out)?;
    let surroundings = context.environment.surroundings();
    let find = |name: &String| {
        ensure_model(name, "main", &context.environment)?;
        anyhow::Ok(locate_model(name, "main", &surroundings)?)
    };
    let folders: Vec<PathBuf> = args.models.iter().map(find).collect::<anyhow::Result<_>>()?;
    let base = args.base.as_ref().map(find).transpose()?;
    let tokenizer = one_vocabulary(&folders)?;
    if args.sweep.is_empty() {
        return args
            .fuse_into(&folders, base.as_deref(), &args.weights, tokenizer.as_ref(), &args.out)
            .map(drop);
    }
    args.sweep(&folders, base.as_deref(), tokenizer.as_ref())
}

impl Args {
    fn load(&self, folder: &Path) -> anyhow::Result<Model> {
        Ok(load_model(folder, self.dtype.map(Dtype::from))?)
    }

    /// Fuses, writes, reads again; gives the result.
    fn fuse_into(
        &self,
        folders: &[PathBuf],
        base: Option<&Path>,
        weights: &[f64],
        tokenizer: Option<&Tokenizer>,
        out: &Path,
    ) -> anyhow::Result<Model> {
        let models: Vec<Model> =
            folders.iter().map(|folder| self.load(folder)).collect::<anyhow::Result<_>>()?;
        let base = base.map(|base| load_model(base, Some(Dtype::F32))).transpose()?;
        let options = FuseOptions {
            method: self.method.parse()?,
            weights: weights.to_vec(),
            density: self.density,
            scale: self.scale,
            seed: self.seed,
        };
        let fused = fuse(models, base.as_ref(), &options)?;
        publish(&fused, out, &SaveOptions::default(), |folder| {
            write_tokenizer(&folders[0], Path::new(""), folder)
        })?;
        let written = pt_models::load(out, &LoadOptions::default())?;
        let again = tokenizer.map(|_| Tokenizer::from_dir(out)).transpose()?;
        report(out, &prove_model(&fused, &written, tokenizer.zip(again.as_ref()), TEXT, EXACT)?)?;
        Ok(fused)
    }

    fn sweep(
        &self,
        folders: &[PathBuf],
        base: Option<&Path>,
        tokenizer: Option<&Tokenizer>,
    ) -> anyhow::Result<()> {
        let [first, second] = folders else {
            bail!("--sweep goes from one model to another: name two with --models, found {}", folders.len());
        };
        if let Some(weight) = self.sweep.iter().find(|w| !(0.0..=1.0).contains(*w)) {
            bail!("--sweep: {weight} is no weight from 0 to 1");
        }
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        let ends = [self.load(first)?, self.load(second)?];
        let tokens = sequences(&ends[0], tokenizer, TEXT, ends[0].config.max_positions)?;
        let mut table = format!(
            "| weight of {} | folder | nats per token from {} | from {} |\n| --- | --- | --- | --- |\n",
            self.models[1], self.models[0], self.models[1]
        );
        let mut rows = String::new();
        for weight in &self.sweep {
            let name = format!("weight-{weight}");
            let weights = [1.0 - weight, *weight];
            let fused = self.fuse_into(folders, base, &weights, tokenizer, &self.out.join(&name))?;
            let [a, b] = [0, 1].map(|i| divergence(&ends[i], &fused, &tokens).mean_kl);
            table += &format!("| {weight} | {name} | {a:.4} | {b:.4} |\n");
            let row = json!({"weight": weight, "model": name, "kl_from_first": a, "kl_from_second": b});
            rows += &format!("{row}\n");
        }
        for (name, text) in [("sweep.md", &table), ("sweep.jsonl", &rows)] {
            let path = self.out.join(name);
            atomic_file::write(&path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        ui::note(&table);
        Ok(())
    }
}

/// The first model's tokenizer; the others must number the same tokens alike. Models without one are compared by shape only,
/// but the first must have one where another has: the result gets it.
fn one_vocabulary(folders: &[PathBuf]) -> anyhow::Result<Option<Tokenizer>> {
    let mut tokenizers = Vec::new();
    for folder in folders {
        match Tokenizer::from_dir(folder) {
            Ok(tokenizer) => tokenizers.push((folder, tokenizer)),
            Err(error) => {
                ui::note(&format!("note: {} has no tokenizer to compare ({error})", folder.display()))
            }
        }
    }
    let Some((first_folder, first)) = tokenizers.first() else { return Ok(None) };
    if *first_folder != &folders[0] {
        bail!(
            "the fused model gets the first one's tokenizer, and {} has none that can be read; name {} first, or copy its \
             tokenizer's files",
            folders[0].display(),
            first_folder.display()
        );
    }
    for (folder, other) in &tokenizers[1..] {
        let n = first.vocab_size().max(other.vocab_size()) as u32;
        if let Some(id) = (0..n).find(|id| first.id_to_token(*id) != other.id_to_token(*id)) {
            bail!(
                "token {id} is {:?} in {} and {:?} in {}; models of different vocabularies cannot be fused",
                first.id_to_token(id),
                first_folder.display(),
                other.id_to_token(id),
                folder.display()
            );
        }
    }
    Ok(tokenizers.into_iter().next().map(|(_, tokenizer)| tokenizer))
}
