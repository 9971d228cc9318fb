//! What decoder architectures are made of: weights of attention and feed-forward layers, and small readers of the
//! options several of them share. Their forward passes are written out in their own files.

use pt_engine::{AttentionShape, Linear, ParamId, Tape, Var};
use serde_json::Value;

use crate::builder::Builder;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::options::Options;

/// Weights of an attention layer with separate projections.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) shape: AttentionShape,
}

/// Which projections of an attention layer have biases.
#[derive(Clone, Copy)]
pub(crate) struct AttentionBias {
    pub(crate) qkv: bool,
    pub(crate) o: bool,
}

impl Attention {
    pub(crate) fn declare(
        builder: &mut Builder<'_>,
        layer: &str,
        config: &ModelConfig,
        shape: AttentionShape,
        bias: AttentionBias,
    ) -> Result<Attention> {
        let (hidden, q_width, kv_width) =
            (config.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        Ok(Attention {
            q: builder.linear(&format!("{layer}.self_attn.q_proj"), q_width, hidden, bias.qkv)?,
            k: builder.linear(&format!("{layer}.self_attn.k_proj"), kv_width, hidden, bias.qkv)?,
            v: builder.linear(&format!("{layer}.self_attn.v_proj"), kv_width, hidden, bias.qkv)?,
            o: builder.linear(&format!("{layer}.self_attn.o_proj"), hidden, q_width, bias.o)?,
            shape,
        })
    }

    pub(crate) fn linears(&self) -> [&Linear; 4] {
        [&self.q, &self.k, &self.v, &self.o]
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o]
    }
}

/// Weights of a gated feed-forward layer.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Mlp {
    pub(crate) fn declare(
        builder: &mut Builder<'_>,
        layer: &str,
        config: &ModelConfig,
        has_bias: bool,
    ) -> Result<Mlp> {
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        Ok(Mlp {
            gate: builder.linear(&format!("{layer}.mlp.gate_proj"), ffn, hidden, has_bias)?,
            up: builder.linear(&format!("{layer}.mlp.up_proj"), ffn, hidden, has_bias)?,
            down: builder.linear(&format!("{layer}.mlp.down_proj"), hidden, ffn, has_bias)?,
        })
    }

    pub(crate) fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }
}

/// The geometry of an attention layer that sees everything and divides scores by `sqrt(head_dim)`.
pub(crate) fn full_attention(config: &ModelConfig) -> AttentionShape {
    AttentionShape {
        heads: config.n_heads,
        kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        scale: (config.head_dim as f64).powf(-0.5) as f32,
        window: None,
        softcap: None,
    }
}

/// Declares the output layer: the embedding itself where tied.
pub(crate) fn declare_head(
    builder: &mut Builder<'_>,
    config: &ModelConfig,
    embedding: ParamId,
) -> Result<ParamId> {
    match config.tied {
        true => Ok(embedding),
        false => builder.head("lm_head.weight", config.vocab_size, config.hidden_size),
    }
}

/// Runs a block, or records that backward shall run it again.
pub(crate) fn run_block<'m>(
    tape: &mut Tape<'m>,
    x: &Var,
    recompute: bool,
    block: impl Fn(&mut Tape<'m>, &Var) -> Var + 'm,
) -> Var {
    if recompute { tape.recompute(x, block) } else { block(tape, x) }
}

/// Refuses any activation but SiLU.
pub(crate) fn only_silu(options: &Options<'_>) -> Result<()> {
    options.only("hidden_act", "silu", |v| v == "silu" || v == "swish")
}

/// Refuses any activation but the tanh form of GELU, by Gemma's `hidden_activation`; an older `hidden_act` beside it
/// is not used by transformers either.
pub(crate) fn only_gelu_tanh(options: &Options<'_>) -> Result<()> {
    options.value("hidden_act");
    options.only("hidden_activation", "gelu_pytorch_tanh", |v| v == "gelu_pytorch_tanh")
}

/// The sliding window of each layer. `layer_types` decides where it is written, `slides` where it is not.
pub(crate) fn read_windows(
    options: &Options<'_>,
    n_layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let Some(types) = options.texts("layer_types")? else {
        return Ok((0..n_layers).map(|layer| window.filter(|_| slides(layer))).collect());
    };
    if types.len() != n_layers {
        return Err(options.bad("layer_types", &format!("one entry per layer, {n_layers}")));
    }
    let one = |name: &&str| match *name {
        "full_attention" => Ok(None),
        "sliding_attention" => match window {
            Some(window) => Ok(Some(window)),
            None => Err(options.bad("sliding_window", "a number where layer_types has sliding_attention")),
        },
        _ => Err(options.unsupported("layer_types", "full_attention and sliding_attention")),
    };
    types.iter().map(one).collect()
}

/// `sliding_window`: null is no window, an absent key the class's default.
pub(crate) fn read_window(options: &Options<'_>, default: Option<usize>) -> Result<Option<usize>> {
    let read = options.size("sliding_window", 1..=1 << 31)?;
    Ok(if options.has("sliding_window") { read } else { default })
}

/// The windows of Qwen models: off unless `use_sliding_window`, then on from layer `max_window_layers`.
pub(crate) fn read_switched_windows(options: &Options<'_>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = read_window(options, Some(4096))?;
    let first = options.size("max_window_layers", 0..=1 << 31)?.unwrap_or(28);
    let is_on = options.flag("use_sliding_window")?.unwrap_or(false);
    read_windows(options, n_layers, window.filter(|_| is_on), |layer| layer >= first)
}

/// A soft cap: null is none, an absent key the class's default.
pub(crate) fn read_softcap(
    options: &Options<'_>,
    key: &'static str,
    default: Option<f64>,
) -> Result<Option<f32>> {
    let read = options.positive(key)?;
    Ok(if options.has(key) { read } else { default }.map(|cap| cap as f32))
}

/// Refuses attention to later tokens.
pub(crate) fn only_causal(options: &Options<'_>) -> Result<()> {
    options.only("use_bidirectional_attention", "false: causal attention", |v| *v == Value::Bool(false))
}
