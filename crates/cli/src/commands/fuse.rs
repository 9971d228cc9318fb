//! `posttrain fuse`: several models of one shape made into one, or into a sweep of weights.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pt_core::atomic_file;
use pt_engine::Dtype;
use pt_eval::{BenchmarkResult, Company, Prepared, Settings};
use pt_export::{FuseMethod, FuseOptions, divergence, fuse, prove_folder, sequences};
use pt_models::{Model, SaveOptions};
use pt_pipeline::model::{load_model, locate_model};
use pt_pipeline::{Extent, expect_same_tokens};
use pt_report::{Front, FrontPoint, Measure, Measured, front_page};
use pt_text::Tokenizer;
use serde_json::json;

use super::eval::{measure, number, range, split_names};
use super::export::{EXACT, PROOF_TEXT as TEXT, report};
use super::merge::{check_empty, publish, write_tokenizer};
use crate::Context;
use crate::commands::score::parse_positive;
use crate::hub::ensure_model;
use crate::loading::{DtypeName, ModelArgs, TextArgs};
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
both. With --benchmarks, too, each is measured as `posttrain eval` does, and front.html draws every two benchmarks against each \
other, with 95 % intervals, and marks the Pareto front: the weights that no other beats in everything.

Examples:
  posttrain fuse --models maths,chat --weights 0.6,0.4 --out fused
  posttrain fuse --models maths,chat --method ties --base base --density 0.2 --out fused
  posttrain fuse --models helpful,safe --method slerp --sweep 0,0.25,0.5,0.75,1 --out sweep
  posttrain fuse --models maths,chat --sweep 0,0.5,1 --benchmarks 'generated:sum?level=2,generated:letters?level=1' --chat --out sweep";

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
    /// Share of each difference that is kept (ties, dare) [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// Factor on the fused difference (ties, dare) [default: 1]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// Of what dare drops [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Weights of the second of two models, one result each
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', conflicts_with = "weights")]
    sweep: Vec<f64>,
    #[command(flatten)]
    front: FrontArgs,
    /// Storage type of the result [default: that of the first model's files]
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<DtypeName>,
    /// The folder to write; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What the models of a sweep are measured by.
#[derive(clap::Args)]
#[command(next_help_heading = "Measuring a sweep")]
struct FrontArgs {
    /// Benchmarks, two or more, with commas between (or give the option again); see `posttrain eval --list`
    #[arg(long, value_name = "NAMES", requires = "sweep")]
    benchmarks: Vec<String>,
    /// A folder with the benchmarks' files
    #[arg(long, value_name = "DIR", requires = "benchmarks")]
    data_dir: Option<PathBuf>,
    /// Most questions of each benchmark [default: all]
    #[arg(long, value_name = "N", value_parser = parse_positive, requires = "benchmarks")]
    limit: Option<usize>,
    /// Ask through the chat template
    #[arg(long, requires = "benchmarks")]
    chat: bool,
    /// Most tokens of a reply [default: the benchmark's]
    #[arg(long, value_name = "N", value_parser = parse_positive, requires = "benchmarks")]
    max_new_tokens: Option<usize>,
}

/// Benchmarks that are read, and how models are asked.
struct Measuring {
    settings: Settings,
    prepared: Vec<Prepared>,
}

impl FrontArgs {
    /// Reads the benchmarks, before anything is fused.
    fn prepare(&self, context: &Context) -> anyhow::Result<Option<Measuring>> {
        if self.benchmarks.is_empty() {
            return Ok(None);
        }
        let settings = Settings {
            data_dir: self.data_dir.clone(),
            hf_home: context.environment.hf_home.clone(),
            limit: self.limit,
            chat: self.chat,
            max_new_tokens: self.max_new_tokens,
            ..Settings::greedy()
        };
        let names: Vec<String> = self.benchmarks.iter().flat_map(|list| split_names(list)).collect();
        if names.len() < 2 {
            bail!("--benchmarks {}: a front is of two benchmarks or more", names.join(","));
        }
        let prepared =
            names.iter().map(|name| pt_eval::prepare(name, &settings)).collect::<Result<Vec<_>, _>>()?;
        for benchmark in &prepared {
            benchmark.check_company(false, false)?;
        }
        Ok(Some(Measuring { settings, prepared }))
    }
}

impl Measuring {
    /// The main metric of each benchmark for the model in a folder.
    fn of(&self, folder: &Path, context: &Context) -> anyhow::Result<Vec<(Measure, Measured)>> {
        let model = ModelArgs {
            model: folder.display().to_string(),
            revision: "main".to_owned(),
            adapter: None,
            dtype: None,
        };
        let loaded = model.load(&TextArgs::default(), &context.environment)?;
        let company = Company { settings: &self.settings, judge: None, opponent: None };
        let name = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let found = measure(&name, &loaded, &self.prepared, &company, Some(folder))?;
        found.results.benchmarks.iter().map(measured).collect()
    }
}

fn measured(result: &BenchmarkResult) -> anyhow::Result<(Measure, Measured)> {
    let Some(metric) = result.main() else { bail!("{} measured nothing", result.benchmark) };
    let name = format!("{} {}", result.benchmark, metric.name);
    Ok((
        Measure { name, higher_is_better: metric.higher_is_better },
        Measured { value: metric.value, interval95: metric.interval95 },
    ))
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    check_empty(&args.out)?;
    args.options()?;
    let measuring = args.front.prepare(context)?;
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
    args.sweep(&folders, base.as_deref(), tokenizer.as_ref(), measuring.as_ref(), context)
}

impl Args {
    /// How models are fused, but for their weights.
    fn options(&self) -> anyhow::Result<FuseOptions> {
        let (method, default) = (self.method.parse::<FuseMethod>()?, FuseOptions::default());
        for (option, is_given) in [
            ("base", self.base.is_some()),
            ("density", self.density.is_some()),
            ("scale", self.scale.is_some()),
            ("seed", self.seed.is_some()),
        ] {
            if is_given && !method.reads(option) {
                bail!("--{option} has no effect with --method {}; change that, or leave it out", self.method);
            }
        }
        Ok(FuseOptions {
            method,
            density: self.density.unwrap_or(default.density),
            scale: self.scale.unwrap_or(default.scale),
            seed: self.seed.unwrap_or(default.seed),
            ..default
        })
    }

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
        // In the models' own type: rounding must not look like a difference from the base.
        let base = base.map(|base| self.load(base)).transpose()?;
        let options = FuseOptions { weights: weights.to_vec(), ..self.options()? };
        let fused = fuse(models, base.as_ref(), &options)?;
        publish(&fused, out, &SaveOptions::default(), |folder| {
            write_tokenizer(&folders[0], Path::new(""), folder)
        })?;
        report(out, &prove_folder(&fused, tokenizer, out, TEXT, EXACT)?)?;
        Ok(fused)
    }

    fn sweep(
        &self,
        folders: &[PathBuf],
        base: Option<&Path>,
        tokenizer: Option<&Tokenizer>,
        measuring: Option<&Measuring>,
        context: &Context,
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
        let mut swept = Vec::new();
        for weight in &self.sweep {
            let name = format!("weight-{weight}");
            let folder = self.out.join(&name);
            let fused = self.fuse_into(folders, base, &[1.0 - weight, *weight], tokenizer, &folder)?;
            let from = [0, 1].map(|i| divergence(&ends[i], &fused, &tokens).mean_kl);
            let measured = measuring.map(|measuring| measuring.of(&folder, context)).transpose()?;
            swept.push(Swept { weight: *weight, name, from, measured: measured.unwrap_or_default() });
        }
        let front = self.front(&swept);
        let on_front = front.as_ref().map(Front::undominated);
        let table = self.table(&swept, on_front.as_deref());
        let rows: String = swept
            .iter()
            .enumerate()
            .map(|(i, swept)| {
                let is_on = on_front.as_ref().map(|on| on[i]);
                format!("{}\n", swept.row(is_on))
            })
            .collect();
        let page = front.as_ref().map(front_page);
        let files = [("sweep.md", Some(&table)), ("sweep.jsonl", Some(&rows)), ("front.html", page.as_ref())];
        for (name, text) in files.into_iter().filter_map(|(name, text)| Some((name, text?))) {
            let path = self.out.join(name);
            atomic_file::write(&path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        ui::note(&table);
        if front.is_some() {
            ui::note(&format!("the front is drawn in {}", self.out.join("front.html").display()));
        }
        Ok(())
    }

    /// What was measured, as points of a plot.
    fn front(&self, swept: &[Swept]) -> Option<Front> {
        let measures: Vec<Measure> =
            swept.first()?.measured.iter().map(|(measure, _)| measure.clone()).collect();
        let point = |swept: &Swept| FrontPoint {
            label: swept.weight.to_string(),
            values: swept.measured.iter().map(|(_, measured)| *measured).collect(),
        };
        let [first, second] = [0, 1].map(|i| short(&self.models[i]));
        (!measures.is_empty()).then(|| Front {
            title: format!("From {first} to {second}, fused by {}", self.method),
            varied: format!("weight of {second}"),
            measures,
            points: swept.iter().map(point).collect(),
        })
    }

    fn table(&self, swept: &[Swept], on_front: Option<&[bool]>) -> String {
        let mut heads = vec![
            format!("weight of {}", self.models[1]),
            "folder".to_owned(),
            format!("nats per token from {}", self.models[0]),
            format!("from {}", self.models[1]),
        ];
        let measures =
            swept.first().map(|swept| swept.measured.iter().map(|(measure, _)| measure.name.clone()));
        heads.extend(measures.into_iter().flatten());
        heads.extend(on_front.map(|_| "front".to_owned()));
        let mut table = format!("| {} |\n|{}\n", heads.join(" | "), " --- |".repeat(heads.len()));
        for (i, swept) in swept.iter().enumerate() {
            let mut cells = vec![swept.weight.to_string(), swept.name.clone()];
            cells.extend(swept.from.map(|kl| format!("{kl:.4}")));
            cells.extend(
                swept.measured.iter().map(|(_, measured)| {
                    format!("{} ({})", number(measured.value), range(measured.interval95))
                }),
            );
            cells.extend(on_front.map(|on| if on[i] { "on it" } else { "beaten" }.to_owned()));
            table += &format!("| {} |\n", cells.join(" | "));
        }
        table
    }
}

/// One weight of a sweep, and what came of it.
struct Swept {
    weight: f64,
    name: String,
    /// Nats per token from the first and the second model.
    from: [f64; 2],
    measured: Vec<(Measure, Measured)>,
}

impl Swept {
    fn row(&self, on_front: Option<bool>) -> serde_json::Value {
        let mut row = json!({
            "weight": self.weight, "model": self.name, "kl_from_first": self.from[0], "kl_from_second": self.from[1],
        });
        if let Some(is_on) = on_front {
            let measures: Vec<serde_json::Value> = self
                .measured
                .iter()
                .map(|(measure, found)| {
                    json!({
                        "measure": measure.name, "value": found.value, "interval95": found.interval95,
                        "higher_is_better": measure.higher_is_better,
                    })
                })
                .collect();
            row["measures"] = measures.into();
            row["on_front"] = is_on.into();
        }
        row
    }
}

/// A model's name without its folders.
fn short(model: &str) -> String {
    Path::new(model).file_name().map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
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
        expect_same_tokens("model to fuse", &folder.display().to_string(), other, first, Extent::All)?;
    }
    Ok(tokenizers.into_iter().next().map(|(_, tokenizer)| tokenizer))
}
