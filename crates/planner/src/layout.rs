//! Layouts over many devices: data, tensor and pipeline parallelism, and ZeRO.
//!
//! `n = d t p` devices: tensor parallelism `t` inside a node, data parallelism `d` over neighbours, pipelines of `p` stages
//! outermost, as Narayanan et al. 2021 (arXiv:2104.04473) place them (takeaway 1).
//!
//! **Memory** of a device. Its stage holds `ceil(L / p)` blocks, each divided by `t`, and at the ends a vocabulary matrix.
//! ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 5) divides by `d`: stage 1 the optimiser's state, stage 2 the
//! gradients too, stage 3 the weights too, which then are gathered block by block. Activations are those of `crate::memory`
//! divided by `t`, as with sequence parallelism (Korthikanti et al. 2022, arXiv:2205.05198, eq. 4); the first stage of a
//! pipeline that alternates forward and backward (1F1B) keeps `min(p, m)` micro-batches (their section 4.2.3).
//!
//! **Time** of a step of `m` micro-batches:
//! `T = (m + p - 1) / m * (compute + tensor + pipeline) + data + update`.
//! - The bubble is `(p - 1) / (m + p - 1)` of the pipelined part; Narayanan et al., section 2.2.1, state `(p - 1) / m` of
//!   the ideal time, which is the same.
//! - Ring collectives of `B` bytes over `k` devices (Patarasuk and Yuan 2009, eq. 3): reduce-scatter and all-gather each
//!   `(k - 1) / k * B / bandwidth + (k - 1) * latency`; all-reduce is both.
//! - tensor: four all-reduces of `b s h` elements a block and micro-batch (Narayanan et al., section 3.2: `8 b s h (t-1)/t`),
//!   six where blocks run again.
//! - pipeline: `b s h / t` elements there and back at each boundary (their sections 3.2 and 4.1).
//! - data: all-reduce of the gradients; with ZeRO 1 and 2 reduce-scatter and an all-gather of what changed; with ZeRO 3
//!   a reduce-scatter and two all-gathers of the weights (Rajbhandari et al., section 7). ZeRO 2 and 3 reduce, and ZeRO 3
//!   gathers, for every micro-batch. Up to [`OVERLAP`] of it hides behind the backward pass it runs beside.
//!
//! Left out: expert and context parallelism, interleaved schedules, congestion.

use serde::Serialize;

use crate::error::{PlannerError, Result};
use crate::hardware::{Device, Hardware};
use crate::memory::{
    ADAPTER_BYTES, Memory, Method, Training, activation_peak, check, state_bytes, trainable_params,
    weight_bytes,
};
use crate::shape::Shape;
use crate::time::{Work, work};

/// Share of data-parallel communication that can hide behind the backward pass; an assumption.
pub const OVERLAP: f64 = 0.7;
/// Micro-batches tried, in sequences.
const MICRO: [u64; 4] = [1, 2, 4, 8];

/// How a model lies on devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Copies of the model that see different data.
    pub data: usize,
    /// Devices that share every matrix.
    pub tensor: usize,
    /// Stages of blocks.
    pub pipeline: usize,
    /// 0: none; 1 to 3: what data parallelism divides.
    pub zero: u8,
    /// Sequences of a micro-batch.
    pub micro_sequences: u64,
    /// Micro-batches of a step.
    pub micro_batches: u64,
    /// Whether blocks run again in backward.
    pub recompute: bool,
}

/// What a layout would need and take.
#[derive(Clone, Debug, Serialize)]
pub struct LayoutEstimate {
    /// The layout.
    pub layout: Layout,
    /// Bytes per device.
    pub memory: Memory,
    /// Seconds of a step.
    pub step_seconds: f64,
    /// Of these, arithmetic on a device.
    pub compute_seconds: f64,
    /// All-reduces of tensor parallelism.
    pub tensor_seconds: f64,
    /// Messages between stages.
    pub pipeline_seconds: f64,
    /// Data parallelism's communication, hidden or not.
    pub data_seconds: f64,
    /// What of it the step waits for.
    pub exposed_seconds: f64,
    /// Updates of the weights.
    pub update_seconds: f64,
    /// Idle share of the pipelined part: `(p - 1) / (m + p - 1)`.
    pub bubble: f64,
    /// Model operations (without those of recomputation) per second, over the peak of all devices.
    pub mfu: f64,
    /// Tokens per second of all devices.
    pub tokens_per_second: f64,
    /// Why it is so.
    pub reasons: Vec<String>,
}

/// What a search found.
#[derive(Clone, Debug, Serialize)]
pub struct Search {
    /// The fastest first; empty if none fits.
    pub best: Vec<LayoutEstimate>,
    /// The least memory of any layout, bytes per device.
    pub least_bytes: u64,
    /// Layouts looked at.
    pub n_tried: usize,
    /// Of these, those that fit.
    pub n_fitting: usize,
}

/// Share of a pipelined step that stages wait: Narayanan et al. 2021, section 2.2.1.
pub fn bubble(stages: usize, micro_batches: u64) -> f64 {
    let waiting = stages as f64 - 1.0;
    waiting / (micro_batches as f64 + waiting)
}

/// Seconds of an all-gather or a reduce-scatter of `bytes` over a ring of `k`.
pub fn gather_seconds(bytes: f64, k: usize, bytes_per_s: f64, latency_s: f64) -> f64 {
    let hops = k as f64 - 1.0;
    hops / k as f64 * bytes / bytes_per_s + hops * latency_s
}

/// Seconds of an all-reduce over a ring of `k`: reduce-scatter, then all-gather.
pub fn all_reduce_seconds(bytes: f64, k: usize, bytes_per_s: f64, latency_s: f64) -> f64 {
    2.0 * gather_seconds(bytes, k, bytes_per_s, latency_s)
}

/// What is asked of every layout; by default, anything goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Whether blocks run again in backward.
    pub recompute: Option<bool>,
    /// Sequences of a micro-batch.
    pub micro_sequences: Option<u64>,
}

/// What all layouts of a question share.
struct Facts<'a> {
    shape: &'a Shape,
    training: &'a Training,
    asked: Asked,
    device: &'a Device,
    n: usize,
    /// Sequences of a step.
    sequences: u64,
    state: f64,
    work: Work,
    work_again: Work,
}

/// Finds the fastest layouts that fit; `step_tokens` is what a step holds over all devices.
///
/// Tensor parallelism stays within a node and divides the heads; a pipeline has no more stages than blocks; ZeRO 2 and 3 are
/// not combined with pipelines, whose micro-batches would each pay for their communication.
///
/// # Errors
/// Numbers that are 0, a step that is not of whole sequences or cannot be shared out, an unknown optimiser.
pub fn search(
    shape: &Shape,
    training: &Training,
    hardware: &Hardware,
    step_tokens: u64,
    asked: Asked,
) -> Result<Search> {
    check(training)?;
    check_step(step_tokens, training.sequence)?;
    let sequences = step_tokens / training.sequence;
    let with = |recompute| Training { recompute, ..training.clone() };
    let facts = Facts {
        shape,
        training,
        asked,
        device: &hardware.device,
        n: hardware.n,
        sequences,
        state: state_bytes(shape, training)? as f64,
        work: work(shape, &with(false))?,
        work_again: work(shape, &with(true))?,
    };
    let all: Vec<LayoutEstimate> = facts.layouts().into_iter().map(|layout| facts.estimate(layout)).collect();
    let usable = hardware.device.usable_bytes();
    let least_bytes = all.iter().map(|estimate| estimate.memory.total()).min().unwrap_or(u64::MAX);
    let n_tried = all.len();
    if n_tried == 0 {
        return Err(PlannerError::Number {
            what: "the number of tokens of a step",
            found: format!("{step_tokens}, {sequences} sequences"),
            expected: match asked.micro_sequences {
                Some(micro) => format!(
                    "sequences that {} devices can share out in micro-batches of {micro}: a multiple of both",
                    hardware.n
                ),
                None => format!("sequences that {} devices can share out: a multiple of that", hardware.n),
            },
        });
    }
    let mut fitting: Vec<LayoutEstimate> = all.into_iter().filter(|e| e.memory.total() <= usable).collect();
    fitting.sort_by(|a, b| a.step_seconds.total_cmp(&b.step_seconds));
    let n_fitting = fitting.len();
    let mut best: Vec<LayoutEstimate> = Vec::new();
    for estimate in fitting {
        let key = |l: &Layout| (l.data, l.tensor, l.pipeline);
        if best.len() < 5 && best.iter().all(|known| key(&known.layout) != key(&estimate.layout)) {
            best.push(estimate);
        }
    }
    for estimate in &mut best {
        estimate.reasons = facts.reasons(estimate);
    }
    Ok(Search { best, least_bytes, n_tried, n_fitting })
}

/// The least power of two of devices that some layout fits on, up to 4096.
///
/// # Errors
/// As [`search`].
pub fn least_devices(
    shape: &Shape,
    training: &Training,
    device: &Device,
    asked: Asked,
) -> Result<Option<usize>> {
    for n in (0..=12).map(|i| 1usize << i) {
        let hardware = Hardware { device: device.clone(), n };
        let sequences = n as u64 * asked.micro_sequences.unwrap_or(1);
        if !search(shape, training, &hardware, sequences * training.sequence, asked)?.best.is_empty() {
            return Ok(Some(n));
        }
    }
    Ok(None)
}

/// Refuses a step that is not of whole sequences.
pub(crate) fn check_step(step_tokens: u64, sequence: u64) -> Result<()> {
    if step_tokens >= sequence && step_tokens.is_multiple_of(sequence) {
        return Ok(());
    }
    Err(PlannerError::Number {
        what: "the number of tokens of a step",
        found: step_tokens.to_string(),
        expected: match step_tokens < sequence {
            true => format!("at least one sequence of {sequence}"),
            false => format!("whole sequences: a multiple of {sequence}"),
        },
    })
}

fn divisors(n: usize) -> impl Iterator<Item = usize> {
    (1..=n).filter(move |k| n.is_multiple_of(*k))
}

impl Facts<'_> {
    fn layouts(&self) -> Vec<Layout> {
        let shape = self.shape;
        let divides_heads =
            |t: &usize| shape.n_heads.is_multiple_of(*t) && shape.n_kv_heads.is_multiple_of(*t);
        let micros = self.asked.micro_sequences.map_or_else(|| MICRO.to_vec(), |micro| vec![micro]);
        let again = self.asked.recompute.map_or_else(|| vec![false, true], |recompute| vec![recompute]);
        let mut layouts = Vec::new();
        let node = self.device.per_node;
        let in_node = divisors(self.n).take_while(|t| *t <= node).filter(|t| node.is_multiple_of(*t));
        for tensor in in_node.filter(divides_heads) {
            let rest = self.n / tensor;
            for pipeline in divisors(rest).take_while(|p| *p <= shape.n_layers) {
                let data = rest / pipeline;
                for &micro in &micros {
                    let share = data as u64 * micro;
                    if !self.sequences.is_multiple_of(share) {
                        continue;
                    }
                    let zeros = if data == 1 { 0..1 } else { 0..if pipeline > 1 { 2 } else { 4 } };
                    for (zero, recompute) in zeros.flat_map(|z| again.iter().map(move |again| (z, *again))) {
                        layouts.push(Layout {
                            data,
                            tensor,
                            pipeline,
                            zero,
                            micro_sequences: micro,
                            micro_batches: self.sequences / share,
                            recompute,
                        });
                    }
                }
            }
        }
        layouts
    }

    /// Blocks of the fullest stage.
    fn stage_blocks(&self, layout: &Layout) -> usize {
        self.shape.n_layers.div_ceil(layout.pipeline)
    }

    /// Bytes of weights, gradients and state of the fullest stage, before ZeRO.
    fn stage_bytes(&self, layout: &Layout) -> [f64; 3] {
        let (shape, training) = (self.shape, self.training);
        let element = training.dtype.bytes() as f64;
        let share = self.stage_blocks(layout) as f64 / shape.n_layers as f64;
        let vocabulary = shape.vocabulary_params() as f64;
        let here = if layout.pipeline == 1 { vocabulary } else { shape.head_params() as f64 };
        let t = layout.tensor as f64;
        let stored = weight_bytes(shape, training.method, training.dtype) as f64;
        let mut weights = ((stored - vocabulary * element) * share + here * element) / t;
        let trained = match training.method {
            Method::Full => (shape.n_params() as f64 - vocabulary) * share + here,
            _ => shape.adapter_params(training.rank) as f64 * share,
        } / t;
        if training.method != Method::Full {
            weights += trained * ADAPTER_BYTES as f64;
        }
        let state = self.state * trained / trainable_params(shape, training) as f64;
        [weights, 4.0 * trained, state]
    }

    fn memory(&self, layout: &Layout) -> Memory {
        let [mut weights, mut gradients, mut state] = self.stage_bytes(layout);
        let d = layout.data as f64;
        if layout.zero >= 1 {
            state /= d;
        }
        if layout.zero >= 2 {
            gradients /= d;
        }
        if layout.zero >= 3 {
            // Two blocks are whole at a time, the one that runs and the next; or a vocabulary matrix.
            let element = self.training.dtype.bytes() as f64;
            let block = self.shape.linear_params() as f64 / self.shape.n_layers as f64;
            let whole = (2.0 * block).max(self.shape.head_params() as f64) * element / layout.tensor as f64;
            weights = weights / d + whole;
        }
        let in_flight = layout.micro_batches.min(layout.pipeline as u64) as usize;
        let stage = Shape { n_layers: in_flight * self.stage_blocks(layout), ..self.shape.clone() };
        let training = Training {
            micro_tokens: (layout.micro_sequences * self.training.sequence).div_ceil(layout.tensor as u64),
            recompute: layout.recompute,
            pooled: false,
            ..self.training.clone()
        };
        let (activations, logits) = activation_peak(&stage, &training);
        Memory {
            weights: weights as u64,
            gradients: gradients as u64,
            optimizer_state: state as u64,
            activations,
            logits,
        }
    }

    /// Bandwidth in bytes and latency in seconds among devices that span so many neighbours.
    fn link(&self, span: usize) -> (f64, f64) {
        match span <= self.device.per_node {
            true => (self.device.link_gbs * 1e9, self.device.link_us * 1e-6),
            false => (self.device.network_gbs * 1e9, self.device.network_us * 1e-6),
        }
    }

    fn estimate(&self, layout: Layout) -> LayoutEstimate {
        let (shape, training, device) = (self.shape, self.training, self.device);
        let work = if layout.recompute { &self.work_again } else { &self.work };
        let tokens = (self.sequences * training.sequence) as f64;
        let balance = (self.stage_blocks(&layout) * layout.pipeline) as f64 / shape.n_layers as f64;
        let plain = Work { update_bytes: 0.0, ..*work };
        let compute = crate::time::step_seconds(device, training, &plain, tokens) / self.n as f64 * balance;
        let (m, micro_tokens) =
            (layout.micro_batches as f64, (layout.micro_sequences * training.sequence) as f64);
        let hidden = micro_tokens * shape.hidden_size as f64 * training.dtype.bytes() as f64;
        let (bandwidth, latency) = self.link(layout.tensor);
        let reduces = if layout.recompute { 6.0 } else { 4.0 } * self.stage_blocks(&layout) as f64 * m;
        let tensor = reduces * all_reduce_seconds(hidden, layout.tensor, bandwidth, latency);
        let pipeline = match layout.pipeline {
            1 => 0.0,
            _ => {
                let (bandwidth, latency) = self.link(2 * layout.tensor * layout.data);
                2.0 * m * (hidden / layout.tensor as f64 / bandwidth + latency)
            }
        };
        let (data, hides) = self.data_seconds(&layout, compute);
        let exposed = data - (OVERLAP * data).min(hides);
        let shards = layout.tensor * layout.pipeline * if layout.zero >= 1 { layout.data } else { 1 };
        let update = work.update_bytes / shards as f64 / (device.bandwidth_gbs * 1e9 * 0.8);
        let bubble = bubble(layout.pipeline, layout.micro_batches);
        let step_seconds = (compute + tensor + pipeline) / (1.0 - bubble) + exposed + update;
        let model_flops = (self.work.matrix_flops + self.work.attention_flops) * tokens;
        let peak = 1e12
            * self.n as f64
            * match training.dtype {
                crate::memory::Storage::F32 => device.tflops_f32,
                crate::memory::Storage::Bf16 => device.tflops_bf16,
            };
        LayoutEstimate {
            layout,
            memory: self.memory(&layout),
            step_seconds,
            compute_seconds: compute,
            tensor_seconds: tensor,
            pipeline_seconds: pipeline,
            data_seconds: data,
            exposed_seconds: exposed,
            update_seconds: update,
            bubble,
            mfu: model_flops / step_seconds / peak,
            tokens_per_second: tokens / step_seconds,
            reasons: Vec::new(),
        }
    }

    /// Data parallelism's communication in a step, and how much compute there is to hide it behind.
    fn data_seconds(&self, layout: &Layout, compute: f64) -> (f64, f64) {
        let (d, m) = (layout.data, layout.micro_batches as f64);
        let [weights, gradients, _] = self.stage_bytes(layout);
        let changed = match self.training.method {
            Method::Full => weights,
            _ => gradients / 4.0 * ADAPTER_BYTES as f64,
        };
        let (bandwidth, latency) = self.link(layout.tensor * d);
        let gather = |bytes: f64| gather_seconds(bytes, d, bandwidth, latency);
        // Backward is two thirds of a step; with gradients reduced once, that of the last micro-batch.
        let backward = compute * 2.0 / 3.0;
        match layout.zero {
            0 => (2.0 * gather(gradients), backward / m),
            1 => (gather(gradients) + gather(changed), backward / m),
            2 => (m * gather(gradients) + gather(changed), backward),
            _ => (m * (gather(gradients) + 2.0 * gather(weights)), compute),
        }
    }

    fn reasons(&self, estimate: &LayoutEstimate) -> Vec<String> {
        const GIB: f64 = crate::hardware::GIB;
        let (layout, device) = (&estimate.layout, self.device);
        let percent = |seconds: f64| 100.0 * seconds / estimate.step_seconds;
        let usable = device.usable_bytes() as f64 / GIB;
        let mut reasons = Vec::new();
        let whole: f64 = self.stage_bytes(&Layout { tensor: 1, pipeline: 1, ..*layout }).iter().sum();
        match (layout.tensor, layout.pipeline) {
            (1, 1) => reasons.push(format!(
                "no matrix is cut: only gradients{} travel, {:.0} % of the step waits for them",
                if layout.zero == 3 { " and weights" } else { "" },
                percent(estimate.exposed_seconds)
            )),
            _ => reasons.push(format!(
                "weights, gradients and optimiser state are {:.1} GiB in one piece, a device has {usable:.1}",
                whole / GIB
            )),
        }
        if layout.tensor > 1 {
            reasons.push(format!(
                "tensor {} stays within a node ({} GB/s) and divides {} heads; its all-reduces take {:.0} %",
                layout.tensor,
                device.link_gbs,
                self.shape.n_kv_heads,
                percent(estimate.tensor_seconds)
            ));
        }
        if layout.pipeline > 1 {
            reasons.push(format!(
                "pipeline {}: {} micro-batches leave a bubble of {:.0} %",
                layout.pipeline,
                layout.micro_batches,
                100.0 * estimate.bubble
            ));
        }
        if layout.zero > 0 {
            let without = self.memory(&Layout { zero: 0, ..*layout }).total();
            let saved = without.saturating_sub(estimate.memory.total()) as f64 / GIB;
            reasons.push(format!("ZeRO-{} over {} saves {saved:.1} GiB a device", layout.zero, layout.data));
        }
        if layout.recompute {
            let kept = self.memory(&Layout { recompute: false, ..*layout }).total() as f64 / GIB;
            reasons.push(format!("blocks run again: kept, they would need {kept:.1} of {usable:.1} GiB"));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{devices, find};
    use crate::memory::tests::training;

    fn searched(model: &str, hardware: &str, method: Method, sequences: u64) -> Search {
        let shape = Shape::find(model).unwrap();
        let hardware = find(hardware, &devices(None).unwrap()).unwrap();
        search(&shape, &training(method), &hardware, sequences * 4096, Asked::default()).unwrap()
    }

    #[test]
    fn collectives_and_bubbles_follow_their_formulae() {
        let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        close(all_reduce_seconds(8e9, 8, 100e9, 0.0), 2.0 * 7.0 / 8.0 * 0.08);
        close(gather_seconds(0.0, 8, 1.0, 1e-6), 7e-6);
        assert_eq!(all_reduce_seconds(1e9, 1, 1e9, 1.0), 0.0);
        close(bubble(8, 64), 7.0 / 71.0);
        assert_eq!(bubble(1, 3), 0.0);
        // Narayanan et al. state it relative to the ideal time.
        close(bubble(8, 64) / (1.0 - bubble(8, 64)), 7.0 / 64.0);
    }

    /// Rajbhandari et al. 2020, figure 1: 7.5B parameters on 64 devices, 2 + 2 + 12 bytes a parameter: 120, 31.4, 16.6 and
    /// 1.9 GB. Here gradients have 4 bytes and moments with the residual of the weights 10, so the whole is the same 16.
    #[test]
    fn zero_divides_what_it_says() {
        let shape = Shape::find("Qwen2.5-7B").unwrap();
        let hardware = find("A100x64", &devices(None).unwrap()).unwrap();
        let training = training(Method::Full);
        let facts = Facts {
            shape: &shape,
            training: &training,
            asked: Asked::default(),
            device: &hardware.device,
            n: 64,
            sequences: 64,
            state: state_bytes(&shape, &training).unwrap() as f64,
            work: work(&shape, &training).unwrap(),
            work_again: work(&shape, &training).unwrap(),
        };
        let layout = |zero| Layout {
            data: 64,
            tensor: 1,
            pipeline: 1,
            zero,
            micro_sequences: 1,
            micro_batches: 1,
            recompute: true,
        };
        let n = shape.n_params() as f64;
        let state = facts.state / n;
        let per_param = |zero| facts.memory(&layout(zero)).resident() as f64 / n;
        let check = |zero: u8, expected: f64| {
            assert!(
                (per_param(zero) / expected - 1.0).abs() < 1e-6,
                "{zero}: {} {expected}",
                per_param(zero)
            );
        };
        check(0, 2.0 + 4.0 + state);
        check(1, 2.0 + 4.0 + state / 64.0);
        check(2, 2.0 + (4.0 + state) / 64.0);
        let gathered = 2.0 * (shape.head_params() as f64).max(2.0 * shape.linear_params() as f64 / 28.0) / n;
        check(3, (6.0 + state) / 64.0 + gathered);
    }

    #[test]
    fn layouts_keep_their_constraints() {
        for (model, hardware, method, sequences) in [
            ("Llama-3.1-70B", "H100x64", Method::Full, 256),
            ("Llama-3.1-405B", "H100x512", Method::Full, 2048),
            ("Qwen2.5-7B", "A100x8", Method::Lora, 64),
            ("gemma-3-1b", "RTX-4090x4", Method::Full, 64),
        ] {
            let found = searched(model, hardware, method, sequences);
            let shape = Shape::find(model).unwrap();
            let hardware = find(hardware, &devices(None).unwrap()).unwrap();
            assert!(!found.best.is_empty(), "{model}: {} bytes at least", found.least_bytes);
            for estimate in &found.best {
                let l = estimate.layout;
                assert_eq!(l.data * l.tensor * l.pipeline, hardware.n, "{model}");
                assert!(l.tensor <= hardware.device.per_node && shape.n_kv_heads.is_multiple_of(l.tensor));
                assert_eq!(l.data as u64 * l.micro_sequences * l.micro_batches, sequences);
                assert!(estimate.memory.total() <= hardware.device.usable_bytes());
                assert!(estimate.mfu > 0.0 && estimate.mfu <= hardware.device.efficiency, "{model}");
                assert!(!estimate.reasons.is_empty());
            }
            assert!(found.best.windows(2).all(|pair| pair[0].step_seconds <= pair[1].step_seconds));
        }
    }

    #[test]
    fn steps_that_cannot_be_shared_out_are_refused() {
        let shape = Shape::find("SmolLM2-135M").unwrap();
        let hardware = find("H100x4096", &devices(None).unwrap()).unwrap();
        let message = |tokens, asked| {
            search(&shape, &training(Method::Full), &hardware, tokens, asked).unwrap_err().to_string()
        };
        let found = message(3 * 4096, Asked::default());
        assert!(found.contains("3 sequences") && found.contains("4096 devices"), "{found}");
        let found = message(4096 * 4096, Asked { micro_sequences: Some(3), ..Asked::default() });
        assert!(found.contains("micro-batches of 3"), "{found}");
        assert!(message(4097 * 4096 + 1, Asked::default()).contains("a multiple of 4096"));
    }

    #[test]
    fn what_does_not_fit_says_by_how_much() {
        let found = searched("Llama-3.1-405B", "H100x8", Method::Full, 64);
        assert!(found.best.is_empty() && found.least_bytes > 80 << 30);
        let shape = Shape::find("Llama-3.1-405B").unwrap();
        let device = find("H100", &devices(None).unwrap()).unwrap().device;
        let least =
            least_devices(&shape, &training(Method::Full), &device, Asked::default()).unwrap().unwrap();
        assert!((64..=512).contains(&least), "{least}");
    }

    /// What a given layout is expected to reach, against what was published of it. A quarter off is what these formulae are
    /// good for: both runs interleave their pipelines and overlap more than is counted here.
    fn check_published(
        shape: &Shape,
        hardware: &str,
        sequence: u64,
        sequences: u64,
        layout: Layout,
        mfu: f64,
    ) {
        let hardware = find(hardware, &devices(None).unwrap()).unwrap();
        let training = Training { sequence, ..training(Method::Full) };
        let again = Training { recompute: true, ..training.clone() };
        let facts = Facts {
            shape,
            training: &training,
            asked: Asked::default(),
            device: &hardware.device,
            n: hardware.n,
            sequences,
            state: state_bytes(shape, &training).unwrap() as f64,
            work: work(shape, &training).unwrap(),
            work_again: work(shape, &again).unwrap(),
        };
        assert_eq!(layout.data * layout.tensor * layout.pipeline, hardware.n);
        let found = facts.estimate(layout);
        assert!((found.mfu / mfu - 1.0).abs() < 0.25, "{}: {} of {mfu}: {found:?}", shape.name, found.mfu);
        assert!(found.memory.total() <= hardware.device.usable_bytes(), "{}: {:?}", shape.name, found.memory);
    }

    /// Llama 3 405B on 8192 H100 (arXiv:2407.21783, table 4, first row): 0.43 of the peak.
    #[test]
    fn the_run_of_llama_3_is_met() {
        let layout = Layout {
            data: 64,
            tensor: 8,
            pipeline: 16,
            zero: 1,
            micro_sequences: 1,
            micro_batches: 32,
            recompute: false,
        };
        check_published(&Shape::find("Llama-3.1-405B").unwrap(), "H100x8192", 8192, 64 * 32, layout, 0.43);
    }

    /// Narayanan et al. 2021, table 1, last row: 1T parameters on 3072 A100, 163 TFLOP/s counting recomputation, so that
    /// three quarters of it are the model's own. GPT's two feed-forward matrices of `4 h` are as large as three of `8 h / 3`.
    #[test]
    fn the_run_of_megatron_is_met() {
        let gpt = "vocab_size=51200,hidden_size=25600,n_layers=128,n_heads=160,n_kv_heads=160,ffn_size=68267,tied=true";
        let shape = Shape::find(gpt).unwrap();
        assert!((shape.n_params() as f64 / 1008e9 - 1.0).abs() < 0.01);
        let layout = Layout {
            data: 6,
            tensor: 8,
            pipeline: 64,
            zero: 1,
            micro_sequences: 1,
            micro_batches: 512,
            recompute: true,
        };
        check_published(&shape, "A100x3072", 2048, 3072, layout, 163.0 / 312.0 * 0.75);
    }
}
