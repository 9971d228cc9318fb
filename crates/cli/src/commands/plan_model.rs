//! `posttrain plan --model`: memory, time and cost of any model, method and hardware, by formula.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use pt_kernels::gemm::Precision;
use pt_pipeline::model::locate_model;
use pt_planner::hardware::{self, Device, Hardware, Measured};
use pt_planner::time::Rollout;
use pt_planner::{Method, Question, Shape, Storage};

use super::doctor;
use crate::Context;
use crate::environment::{Environment, available_memory_bytes};
use crate::loading::DtypeName;
use crate::ui::note;

/// Bytes read to measure the bandwidth.
const BANDWIDTH_BYTES: usize = 256 << 20;

/// What is to be planned without a recipe.
#[derive(clap::Args)]
#[command(next_help_heading = "Without a recipe")]
pub(crate) struct PlanModelArgs {
    /// Plan by formula: a model folder, a well-known shape (`Qwen2.5-7B`), or sizes (`hidden_size=64,...`)
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["recipe", "sets"])]
    pub(crate) model: Option<String>,
    /// What trains; several side by side [default: all]
    #[arg(long, value_enum, value_name = "METHOD", value_delimiter = ',', requires = "model")]
    method: Vec<MethodName>,
    /// Where: `this` machine, or `NAME` or `NAMExN` of the hardware table (`H100x8`)
    #[arg(long, value_name = "NAME[xN]", value_delimiter = ',', default_value = "this", requires = "model")]
    hardware: Vec<String>,
    /// A TOML file with more hardware, or other figures and prices for what is known
    #[arg(long, value_name = "FILE", requires = "model")]
    hardware_table: Option<PathBuf>,
    /// Tokens to train on, all epochs together: `500k`, `20M`, `1.5B`
    #[arg(long, value_name = "N", value_parser = tokens, default_value = "10M", requires = "model")]
    tokens: u64,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", value_parser = tokens, default_value = "2048", requires = "model")]
    sequence: u64,
    /// Tokens of a micro-batch of one device [default: a sequence]
    #[arg(long, value_name = "N", value_parser = tokens, requires = "model")]
    micro_tokens: Option<u64>,
    /// Tokens of a step of all devices [default: 4 sequences per device, at least 16]
    #[arg(long, value_name = "N", value_parser = tokens, requires = "model")]
    step_tokens: Option<u64>,
    /// Storage of weights and activations
    #[arg(long, value_enum, value_name = "TYPE", default_value = "bf16", requires = "model")]
    dtype: DtypeName,
    /// The optimizer
    #[arg(long, value_name = "NAME", default_value = "adamw", requires = "model")]
    optimizer: String,
    /// Rank of adapters
    #[arg(long, value_name = "N", default_value_t = 16, requires = "model", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rank: u32,
    /// Whether blocks run again in backward
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", requires = "model")]
    recompute: Recompute,
    /// Tokens of a prompt, for grpo
    #[arg(long, value_name = "N", value_parser = tokens, default_value = "256", requires = "model")]
    prompt_tokens: u64,
    /// Tokens sampled per answer, for grpo
    #[arg(long, value_name = "N", value_parser = tokens, default_value = "512", requires = "model")]
    new_tokens: u64,
    /// Answers per prompt, for grpo
    #[arg(long, value_name = "N", value_parser = tokens, default_value = "8", requires = "model")]
    group: u64,
    /// Sequences sampled together on a device, for grpo
    #[arg(long, value_name = "N", value_parser = tokens, default_value = "64", requires = "model")]
    concurrent: u64,
}

/// Methods by the names of recipes.
#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    Full,
    Lora,
    Qlora,
}

/// When blocks keep only their input.
#[derive(Clone, Copy, ValueEnum)]
enum Recompute {
    /// Where it does not fit otherwise.
    Auto,
    /// Always, by blocks.
    Block,
    /// Never.
    None,
}

/// A count with `k`, `M`, `B` or `T` behind it.
fn tokens(text: &str) -> Result<u64, String> {
    let units = [('k', 1e3), ('K', 1e3), ('M', 1e6), ('B', 1e9), ('G', 1e9), ('T', 1e12)];
    let unit = units.iter().find_map(|(c, factor)| Some((text.strip_suffix(*c)?, *factor)));
    let (digits, factor) = unit.unwrap_or((text, 1.0));
    let n = digits.replace('_', "").parse::<f64>().map(|n| n * factor).ok();
    // Beyond 2^53 whole numbers are no longer exact.
    let whole = n.filter(|n| (1.0..9e15).contains(n)).map(f64::round);
    whole
        .map(|n| n as u64)
        .ok_or_else(|| "expected a number of at least 1, such as 4096, 500k, 20M or 1.5B".to_owned())
}

/// Prints the plan.
///
/// # Errors
/// Unknown names, a table that cannot be read, a model that is not understood.
pub(super) fn run(name: &str, args: &PlanModelArgs, json: bool, context: &Context) -> anyhow::Result<()> {
    let shape = shape(name, &context.environment)?;
    let plan = pt_planner::plan(&question(shape, args)?)?;
    let text = match json {
        true => serde_json::to_string_pretty(&plan)? + "\n",
        false => pt_planner::render::text(&plan),
    };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// A folder, a model in the hub's cache, or a shape by name.
fn shape(name: &str, environment: &Environment) -> anyhow::Result<Shape> {
    let folder = Path::new(name).is_dir().then(|| PathBuf::from(name));
    let cached =
        || name.contains('/').then(|| locate_model(name, "main", &environment.surroundings()).ok())?;
    match folder.or_else(cached) {
        Some(folder) => {
            let config = pt_models::load_config(&folder, &[])
                .with_context(|| format!("the model {}", folder.display()))?;
            Ok(Shape::of_config(name, &config))
        }
        None => Ok(Shape::find(name)?),
    }
}

fn question(shape: Shape, args: &PlanModelArgs) -> anyhow::Result<Question> {
    let methods = args.method.iter().map(|name| match name {
        MethodName::Full => Method::Full,
        MethodName::Lora => Method::Lora,
        MethodName::Qlora => Method::Qlora,
    });
    let methods: Vec<Method> = methods.collect();
    Ok(Question {
        shape,
        methods: if methods.is_empty() { Method::ALL.to_vec() } else { methods },
        hardware: hardware_of(args)?,
        tokens: args.tokens,
        dtype: if args.dtype == DtypeName::F32 { Storage::F32 } else { Storage::Bf16 },
        rank: args.rank as usize,
        optimizer: args.optimizer.clone(),
        optimizer_options: toml::Table::new(),
        sequence: args.sequence,
        micro_tokens: args.micro_tokens,
        step_tokens: args.step_tokens,
        recompute: match args.recompute {
            Recompute::Auto => None,
            Recompute::Block => Some(true),
            Recompute::None => Some(false),
        },
        rollout: Rollout {
            prompt: args.prompt_tokens,
            new: args.new_tokens,
            group: args.group,
            concurrent: args.concurrent,
        },
    })
}

fn hardware_of(args: &PlanModelArgs) -> anyhow::Result<Vec<Hardware>> {
    let user = args.hardware_table.as_ref().map(|path| {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok::<_, anyhow::Error>((path.display().to_string(), text))
    });
    let user = user.transpose()?;
    let devices = hardware::devices(user.as_ref().map(|(file, text)| (file.as_str(), text.as_str())))?;
    let mut found = Vec::new();
    for name in &args.hardware {
        found.push(match hardware::is_this(name)? {
            true => Hardware { device: measured(), n: 1 },
            false => hardware::find(name, &devices)?,
        });
    }
    Ok(found)
}

/// This machine, measured in about a second.
fn measured() -> Device {
    note("measuring this machine ...");
    Device::this(Measured {
        memory_bytes: available_memory_bytes().unwrap_or(u64::MAX),
        gflops_f32: doctor::gflops(Precision::F32),
        gflops_bf16: doctor::gflops(Precision::Bf16),
        bandwidth_gbs: doctor::gigabytes_per_s(BANDWIDTH_BYTES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_units() {
        let check = |text: &str, expected: u64| assert_eq!(tokens(text), Ok(expected), "{text}");
        check("4096", 4096);
        check("500k", 500_000);
        check("1.5B", 1_500_000_000);
        check("10_000", 10_000);
        for wrong in ["", "0", "-1", "many", "1e99", "M", "NaN", "inf"] {
            assert!(tokens(wrong).is_err(), "{wrong}");
        }
    }
}
