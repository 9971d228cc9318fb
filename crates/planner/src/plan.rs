//! The whole answer: memory, time and cost by hardware and method, what is recommended, the largest model that fits.

use serde::Serialize;

use crate::error::{PlannerError, Result};
use crate::hardware::{Device, Hardware};
use crate::layout::{self, Asked, LayoutEstimate};
use crate::memory::{
    Memory, Method, RolloutBytes, Storage, Training, rollout_bytes, trainable_params, training_memory,
    weight_bytes,
};
use crate::shape::Shape;
use crate::shapes::SHAPES;
use crate::time::{Rollout, forward_seconds_per_token, sampling_seconds, step_seconds, work};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The model.
    pub shape: Shape,
    /// The methods to compare.
    pub methods: Vec<Method>,
    /// Where to train.
    pub hardware: Vec<Hardware>,
    /// Tokens that are trained on, in all.
    pub tokens: u64,
    /// Storage of weights and activations.
    pub dtype: Storage,
    /// Rank of adapters.
    pub rank: usize,
    /// The optimiser, as in a recipe.
    pub optimizer: String,
    /// Its options.
    pub optimizer_options: toml::Table,
    /// Tokens of a sequence.
    pub sequence: u64,
    /// Tokens of a micro-batch on one device; a sequence if not given.
    pub micro_tokens: Option<u64>,
    /// Tokens of a step over all devices; four sequences per device and at least 16, if not given.
    pub step_tokens: Option<u64>,
    /// Whether blocks run again in backward; if not given, where it does not fit without.
    pub recompute: Option<bool>,
    /// What `grpo` samples.
    pub rollout: Rollout,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// Its architecture.
    pub model_type: String,
    /// Its parameters.
    pub parameters: u64,
    /// Tokens to train on.
    pub tokens: u64,
    /// Tokens of a sequence.
    pub sequence: u64,
    /// Storage.
    pub dtype: Storage,
    /// The optimiser.
    pub optimizer: String,
    /// Rank of adapters.
    pub rank: usize,
    /// What `grpo` samples.
    pub rollout: Rollout,
    /// One for each hardware asked for.
    pub hardware: Vec<HardwarePlan>,
}

/// The answer for one kind of hardware.
#[derive(Clone, Debug, Serialize)]
pub struct HardwarePlan {
    /// What it is.
    pub hardware: Hardware,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// One for each method asked for.
    pub methods: Vec<MethodPlan>,
    /// The method to take, if one fits.
    pub recommended: Option<Method>,
    /// Why.
    pub reasons: Vec<String>,
    /// The largest known model that each method fits.
    pub largest: Vec<Largest>,
}

/// The largest model that fits.
#[derive(Clone, Debug, Serialize)]
pub struct Largest {
    /// With this method.
    pub method: Method,
    /// Its name, if any fits.
    pub model: Option<&'static str>,
    /// Its parameters.
    pub parameters: u64,
}

/// The answer for one method.
#[derive(Clone, Debug, Serialize)]
pub struct MethodPlan {
    /// The method.
    pub method: Method,
    /// Parameters that train.
    pub trainable: u64,
    /// Bytes per device at the peak of an sft step.
    pub memory: Memory,
    /// Beside the weights, while sampling.
    pub rollout: RolloutBytes,
    /// Whether an sft step fits.
    pub fits: bool,
    /// Bytes at the peak, and bytes there are.
    pub peak_bytes: u64,
    /// What a device may use.
    pub usable_bytes: u64,
    /// Whether blocks run again.
    pub recompute: bool,
    /// What each kind of stage takes.
    pub stages: Vec<StagePlan>,
    /// With several devices, the best layouts.
    pub layouts: Vec<LayoutEstimate>,
    /// With several devices and none that fits, the least power of two of them that would.
    pub least_devices: Option<usize>,
}

/// What a kind of stage takes for the tokens asked about.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    /// `sft`, `dpo` or `grpo`.
    pub kind: &'static str,
    /// Optimiser steps.
    pub steps: u64,
    /// Bytes per device at its peak.
    pub peak_bytes: u64,
    /// Whether it fits.
    pub fits: bool,
    /// Seconds of training steps.
    pub training_seconds: f64,
    /// Seconds of the reference's forward passes.
    pub reference_seconds: f64,
    /// Seconds of sampling.
    pub sampling_seconds: f64,
    /// All of them.
    pub seconds: f64,
    /// US dollars for all devices.
    pub cost: f64,
    /// Tokens trained on per second.
    pub tokens_per_second: f64,
}

/// Kinds of stage that are planned.
const STAGES: [&str; 3] = ["sft", "dpo", "grpo"];
/// Share of the memory that a method must leave free to be recommended.
const MARGIN: f64 = 0.05;
/// Bits that a parameter of an adapter can take in, of about one that a token of a large data set gives: Schulman et al. 2025,
/// "LoRA without regret", who cite 2 bits a parameter (Allen-Zhu and Li 2024, arXiv:2404.05405).
const BITS_PER_PARAMETER: f64 = 2.0;

/// Answers a question.
///
/// # Errors
/// Numbers that are 0, an unknown optimiser.
pub fn plan(question: &Question) -> Result<Plan> {
    if question.tokens == 0 {
        return Err(PlannerError::Number {
            what: "the number of tokens",
            found: "0".to_owned(),
            expected: "1 or more".to_owned(),
        });
    }
    if let Some(tokens) = question.step_tokens {
        layout::check_step(tokens, question.sequence)?;
    }
    let hardware =
        question.hardware.iter().map(|hardware| hardware_plan(question, hardware)).collect::<Result<_>>()?;
    Ok(Plan {
        model: question.shape.name.clone(),
        model_type: question.shape.model_type.clone(),
        parameters: question.shape.n_params(),
        tokens: question.tokens,
        sequence: question.sequence,
        dtype: question.dtype,
        optimizer: question.optimizer.clone(),
        rank: question.rank,
        rollout: question.rollout,
        hardware,
    })
}

impl Question {
    fn step_tokens(&self, n: usize) -> u64 {
        let n = n as u64;
        let sequences = n * 16u64.div_ceil(n).max(4);
        self.step_tokens.unwrap_or(sequences * self.sequence)
    }

    /// What is asked of layouts over several devices. As in training, a longer sequence is a micro-batch by itself.
    fn asked(&self) -> Asked {
        let micro_sequences =
            self.micro_tokens.map(|tokens| tokens.checked_div(self.sequence).unwrap_or(1).max(1));
        Asked { recompute: self.recompute, micro_sequences }
    }

    fn training(&self, method: Method, device: &Device) -> Training {
        Training {
            method,
            dtype: self.dtype,
            rank: self.rank,
            optimizer: self.optimizer.clone(),
            optimizer_options: self.optimizer_options.clone(),
            micro_tokens: self.micro_tokens.unwrap_or(self.sequence),
            sequence: self.sequence,
            recompute: self.recompute.unwrap_or(false),
            one_pass_head: true,
            pooled: device.is_this,
        }
    }
}

fn hardware_plan(question: &Question, hardware: &Hardware) -> Result<HardwarePlan> {
    let plan_of = |method: &Method| method_plan(question, hardware, *method);
    let methods: Vec<MethodPlan> = question.methods.iter().map(plan_of).collect::<Result<_>>()?;
    let (recommended, reasons) = recommend(question, hardware, &methods);
    let mut largest = Vec::new();
    for method in &question.methods {
        largest.push(largest_of(question, hardware, *method)?);
    }
    Ok(HardwarePlan {
        hardware: hardware.clone(),
        step_tokens: question.step_tokens(hardware.n),
        methods,
        recommended,
        reasons,
        largest,
    })
}

/// Whether blocks run again, and the memory then: where nobody says, only if it does not fit without.
fn decided(
    question: &Question,
    shape: &Shape,
    device: &Device,
    method: Method,
) -> Result<(Training, Memory)> {
    let training = question.training(method, device);
    let memory = training_memory(shape, &training)?;
    if question.recompute.is_some() || memory.total() <= device.usable_bytes() {
        return Ok((training, memory));
    }
    let again = Training { recompute: true, ..training };
    let memory = training_memory(shape, &again)?;
    Ok((again, memory))
}

/// One method on one hardware, before its stages.
struct Found {
    training: Training,
    memory: Memory,
    fits: bool,
    /// Seconds of an sft step.
    step_seconds: f64,
    layouts: Vec<LayoutEstimate>,
    least_devices: Option<usize>,
}

fn alone(question: &Question, device: &Device, method: Method, step_tokens: u64) -> Result<Found> {
    let (training, memory) = decided(question, &question.shape, device, method)?;
    let work = work(&question.shape, &training)?;
    let step_seconds = step_seconds(device, &training, &work, step_tokens as f64);
    let fits = memory.total() <= device.usable_bytes();
    let least_devices = match fits || device.is_this {
        true => None,
        false => layout::least_devices(&question.shape, &training, device, question.asked())?,
    };
    Ok(Found { training, memory, fits, step_seconds, layouts: Vec::new(), least_devices })
}

fn together(question: &Question, hardware: &Hardware, method: Method, step_tokens: u64) -> Result<Found> {
    let training = question.training(method, &hardware.device);
    let asked = question.asked();
    let search = layout::search(&question.shape, &training, hardware, step_tokens, asked)?;
    match search.best.first() {
        Some(best) => Ok(Found {
            training: Training { recompute: best.layout.recompute, ..training },
            memory: best.memory,
            fits: true,
            step_seconds: best.step_seconds,
            layouts: search.best,
            least_devices: None,
        }),
        None => Ok(Found {
            memory: Memory { activations: search.least_bytes, ..Memory::default() },
            fits: false,
            step_seconds: f64::NAN,
            layouts: Vec::new(),
            least_devices: layout::least_devices(&question.shape, &training, &hardware.device, asked)?,
            training,
        }),
    }
}

fn method_plan(question: &Question, hardware: &Hardware, method: Method) -> Result<MethodPlan> {
    let step_tokens = question.step_tokens(hardware.n);
    let found = match hardware.n {
        1 => alone(question, &hardware.device, method, step_tokens)?,
        _ => together(question, hardware, method, step_tokens)?,
    };
    let rollout = rollout_of(question, hardware, &found);
    let usable = hardware.device.usable_bytes();
    let mut stages = Vec::new();
    for kind in STAGES {
        stages.push(stage_plan(question, hardware, &found, &rollout, kind)?);
    }
    Ok(MethodPlan {
        method,
        trainable: trainable_params(&question.shape, &found.training),
        memory: found.memory,
        rollout,
        fits: found.fits,
        peak_bytes: found.memory.total(),
        usable_bytes: usable,
        recompute: found.training.recompute,
        stages,
        layouts: found.layouts,
        least_devices: found.least_devices,
    })
}

/// Cache and logits of the sequences that one device decodes together.
fn rollout_of(question: &Question, hardware: &Hardware, found: &Found) -> RolloutBytes {
    let Rollout { prompt, new, group, concurrent } = question.rollout;
    let whole = rollout_bytes(&question.shape, question.dtype, concurrent, group, prompt, new);
    let group = sampling_group(&question.shape, hardware, &found.training) as u64;
    RolloutBytes { cache: whole.cache / group, logits: whole.logits / group }
}

/// Devices over which one copy of the weights is spread while sampling: the least that leave 40 % for the cache.
fn sampling_group(shape: &Shape, hardware: &Hardware, training: &Training) -> usize {
    let weights = weight_bytes(shape, training.method, training.dtype) as f64;
    let room = hardware.device.usable_bytes() as f64 * 0.6;
    let mut group = 1;
    while group * 2 <= hardware.n && weights / group as f64 > room {
        group *= 2;
    }
    group
}

fn stage_plan(
    question: &Question,
    hardware: &Hardware,
    found: &Found,
    rollout: &RolloutBytes,
    kind: &'static str,
) -> Result<StagePlan> {
    let (device, shape, n) = (&hardware.device, &question.shape, hardware.n as f64);
    let tokens = question.tokens as f64;
    let step_tokens = question.step_tokens(hardware.n);
    let steps = question.tokens.div_ceil(step_tokens);
    // Only cross-entropy knows its gradient before its value.
    let training = Training { one_pass_head: kind == "sft", ..found.training.clone() };
    let slower = match kind {
        "sft" => 1.0,
        _ => {
            let seconds = |training: &Training| -> Result<f64> {
                Ok(step_seconds(device, training, &work(shape, training)?, step_tokens as f64))
            };
            seconds(&training)? / seconds(&found.training)?
        }
    };
    let training_seconds = tokens / step_tokens as f64 * found.step_seconds * slower;
    let reference_seconds = match kind {
        "dpo" => tokens * forward_seconds_per_token(device, shape, &training) / n,
        _ => 0.0,
    };
    let sampling_seconds = if kind == "grpo" { sampling(question, hardware, &training) } else { 0.0 };
    let mut peak_bytes = match (hardware.n, kind) {
        (1, "dpo" | "grpo") => training_memory(shape, &training)?.total(),
        _ => found.memory.total(),
    };
    if kind == "grpo" {
        let resident = found.memory.resident();
        peak_bytes = peak_bytes.max(resident + rollout.cache + rollout.logits);
    }
    let seconds = training_seconds + reference_seconds + sampling_seconds;
    Ok(StagePlan {
        kind,
        steps,
        peak_bytes,
        fits: found.fits && peak_bytes <= device.usable_bytes(),
        training_seconds,
        reference_seconds,
        sampling_seconds,
        seconds,
        cost: seconds / 3600.0 * n * device.price_per_hour,
        tokens_per_second: tokens / seconds,
    })
}

/// Seconds to sample as many answers as give the tokens asked about, each prompt counted once per group.
fn sampling(question: &Question, hardware: &Hardware, training: &Training) -> f64 {
    let rollout = &question.rollout;
    let per_answer = rollout.new as f64 + rollout.prompt as f64 / rollout.group.max(1) as f64;
    let answers = question.tokens as f64 / per_answer;
    let group = sampling_group(&question.shape, hardware, training);
    // Devices that share the weights read and compute together.
    let device = Device {
        bandwidth_gbs: hardware.device.bandwidth_gbs * group as f64,
        tflops_bf16: hardware.device.tflops_bf16 * group as f64,
        tflops_f32: hardware.device.tflops_f32 * group as f64,
        ..hardware.device.clone()
    };
    let replicas = (hardware.n / group).max(1) as f64;
    sampling_seconds(&device, &question.shape, training, rollout, answers / replicas)
}

fn largest_of(question: &Question, hardware: &Hardware, method: Method) -> Result<Largest> {
    let mut shapes: Vec<_> = SHAPES.iter().collect();
    shapes.sort_by_key(|info| std::cmp::Reverse(info.published));
    for info in shapes {
        let shape = Shape::built_in(info);
        let training = Training { recompute: true, ..question.training(method, &hardware.device) };
        // What is there between steps must fit, over however many devices, before any layout is looked for.
        let least = training_memory(&shape, &training)?.resident() / hardware.n as u64;
        if least > hardware.device.usable_bytes() {
            continue;
        }
        let fits = match hardware.n {
            1 => training_memory(&shape, &training)?.total() <= hardware.device.usable_bytes(),
            _ => {
                let tokens = question.step_tokens(hardware.n);
                // The largest may run blocks again, whatever was asked of the model in question.
                let asked = Asked { recompute: None, ..question.asked() };
                !layout::search(&shape, &training, hardware, tokens, asked)?.best.is_empty()
            }
        };
        if fits {
            return Ok(Largest { method, model: Some(info.name), parameters: shape.n_params() });
        }
    }
    Ok(Largest { method, model: None, parameters: 0 })
}

fn recommend(
    question: &Question,
    hardware: &Hardware,
    methods: &[MethodPlan],
) -> (Option<Method>, Vec<String>) {
    const GIB: f64 = crate::hardware::GIB;
    let roomy =
        |plan: &MethodPlan| plan.fits && plan.peak_bytes as f64 <= plan.usable_bytes as f64 * (1.0 - MARGIN);
    let of = |method| methods.iter().find(|plan: &&MethodPlan| plan.method == method);
    let mut reasons = Vec::new();
    for plan in methods {
        let (peak, usable) = (plan.peak_bytes as f64 / GIB, plan.usable_bytes as f64 / GIB);
        if !plan.fits {
            let more = plan.least_devices.filter(|n| *n > hardware.n);
            let more = more.map_or_else(String::new, |n| format!("; {n} of these devices would do"));
            reasons.push(format!("{} needs {peak:.1} of {usable:.1} GiB{more}", plan.method.name()));
        } else if !roomy(plan) {
            reasons.push(format!(
                "{} fits with less than {:.0} % to spare",
                plan.method.name(),
                100.0 * MARGIN
            ));
        }
    }
    let capacity = BITS_PER_PARAMETER * question.shape.adapter_params(question.rank) as f64;
    let saturates = question.tokens as f64 > capacity;
    let (full, lora, qlora) = (of(Method::Full), of(Method::Lora), of(Method::Qlora));
    let small = format!(
        "an adapter of rank {} has {:.1} million parameters, room for about {:.0} million tokens at a bit each: {} than the \
         {:.1} million asked about",
        question.rank,
        question.shape.adapter_params(question.rank) as f64 / 1e6,
        capacity / 1e6,
        if saturates { "less" } else { "more" },
        question.tokens as f64 / 1e6,
    );
    if full.is_some_and(roomy) && (saturates || lora.is_none_or(|plan| !roomy(plan))) {
        reasons.push("full fits, and has no limit to what it can learn".to_owned());
        if lora.is_some() {
            reasons.push(small);
        }
        return (Some(Method::Full), reasons);
    }
    if let Some(lora) = lora.filter(|plan| roomy(plan)) {
        reasons.push(small);
        reasons.push(match (full, saturates) {
            (Some(full), false) if full.fits => format!(
                "lora takes {:.1} instead of {:.1} GiB; with a larger learning rate it learns as well on so little",
                lora.peak_bytes as f64 / GIB,
                full.peak_bytes as f64 / GIB
            ),
            (_, true) => "lora is the most that fits; a higher rank takes in more".to_owned(),
            _ => "lora fits, with weights that are not rounded to 4 bits as qlora's are".to_owned(),
        });
        return (Some(Method::Lora), reasons);
    }
    if qlora.is_some_and(|plan| plan.fits) {
        reasons.push("qlora is what fits: 4-bit weights cost time and a little quality".to_owned());
        return (Some(Method::Qlora), reasons);
    }
    // Tight, but there is nothing better.
    let tight = methods.iter().find(|plan| plan.fits).map(|plan| plan.method);
    if tight.is_none() {
        reasons.push("none fits: take a smaller model, more devices, or shorter sequences".to_owned());
    }
    (tight, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{devices, find};

    fn question(model: &str, hardware: &str, tokens: u64) -> Question {
        Question {
            shape: Shape::find(model).unwrap(),
            methods: Method::ALL.to_vec(),
            hardware: vec![find(hardware, &devices(None).unwrap()).unwrap()],
            tokens,
            dtype: Storage::Bf16,
            rank: 16,
            optimizer: "adamw".to_owned(),
            optimizer_options: toml::Table::new(),
            sequence: 2048,
            micro_tokens: None,
            step_tokens: None,
            recompute: None,
            rollout: Rollout { prompt: 256, new: 512, group: 8, concurrent: 64 },
        }
    }

    #[test]
    fn recommendations_follow_memory_and_data() {
        let check = |model: &str, hardware: &str, tokens: u64, expected: Option<Method>| {
            let plan = plan(&question(model, hardware, tokens)).unwrap();
            let found = &plan.hardware[0];
            assert_eq!(found.recommended, expected, "{model} on {hardware}: {:?}", found.reasons);
            assert!(!found.reasons.is_empty());
        };
        check("Qwen2.5-0.5B", "H100", 1_000_000, Some(Method::Lora));
        check("Qwen2.5-0.5B", "H100", 10_000_000_000, Some(Method::Full));
        check("Qwen2.5-7B", "H100", 10_000_000_000, Some(Method::Lora));
        check("Llama-3.1-8B", "RTX-4090", 1_000_000, Some(Method::Lora));
        check("Qwen2.5-14B", "RTX-4090", 1_000_000, Some(Method::Qlora));
        check("Llama-3.1-405B", "RTX-4090", 1_000_000, None);
        check("Llama-3.1-70B", "H100x64", 10_000_000_000, Some(Method::Full));
    }

    #[test]
    fn stages_add_up_and_cost_what_they_take() {
        let plan = plan(&question("Qwen2.5-0.5B", "H100", 50_000_000)).unwrap();
        let hardware = &plan.hardware[0];
        for method in &hardware.methods {
            let [sft, dpo, grpo] = &method.stages[..] else { panic!("three stages") };
            assert!(sft.seconds < dpo.seconds && dpo.reference_seconds > 0.0 && grpo.sampling_seconds > 0.0);
            for stage in &method.stages {
                let parts = stage.training_seconds + stage.reference_seconds + stage.sampling_seconds;
                assert_eq!(stage.seconds, parts);
                assert_eq!(stage.cost, stage.seconds / 3600.0 * 3.0);
                assert_eq!(stage.steps, 50_000_000u64.div_ceil(16 * 2048));
            }
        }
        let names: Vec<_> = hardware.largest.iter().map(|largest| largest.parameters).collect();
        assert!(names[0] < names[1] && names[1] < names[2], "{names:?}");
    }

    #[test]
    fn what_is_asked_of_layouts_is_looked_for_and_not_only_kept() {
        for recompute in [true, false] {
            for micro in [1, 2] {
                let question = Question {
                    recompute: Some(recompute),
                    micro_tokens: Some(micro * 2048 + 100),
                    ..question("Qwen2.5-0.5B", "H100x8", 1_000_000)
                };
                for method in &plan(&question).unwrap().hardware[0].methods {
                    assert!(method.fits && method.recompute == recompute, "{}", method.method.name());
                    assert!(!method.layouts.is_empty());
                    for estimate in &method.layouts {
                        let layout = &estimate.layout;
                        assert_eq!((layout.recompute, layout.micro_sequences), (recompute, micro));
                    }
                }
            }
        }
        // Shorter than a sequence: one sequence at a time.
        let short = Question { micro_tokens: Some(100), ..question("Qwen2.5-0.5B", "H100x8", 1_000_000) };
        let found = plan(&short).unwrap();
        assert_eq!(found.hardware[0].methods[0].layouts[0].layout.micro_sequences, 1);
    }

    #[test]
    fn a_step_is_of_whole_sequences() {
        for hardware in ["H100", "H100x8"] {
            let message = |tokens| {
                let question =
                    Question { step_tokens: Some(tokens), ..question("Qwen2.5-0.5B", hardware, 1_000_000) };
                plan(&question).unwrap_err().to_string()
            };
            assert!(message(2047).contains("at least one sequence of 2048"));
            assert!(message(16 * 2048 + 1).contains("a multiple of 2048"), "{hardware}");
        }
    }

    #[test]
    fn no_tokens_is_an_error() {
        let message = plan(&question("Qwen2.5-0.5B", "H100", 0)).unwrap_err().to_string();
        assert!(message.contains("number of tokens is 0"), "{message}");
    }
}
