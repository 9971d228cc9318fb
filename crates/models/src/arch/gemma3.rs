//! Gemma 3 (text): Gemma 2 with normalised queries and keys, most layers sliding, and a rotary base for each kind.
//!
//! Source: Gemma Team 2025, arXiv:2503.19786, section 2. Names and defaults are those of transformers'
//! `Gemma3ForCausalLM`, `Gemma3TextConfig`. Gains are `1 + weight`; embeddings are multiplied by `sqrt(hidden)`, in `f32` (transformers
//! rounds that factor to the storage type first, which is where `bf16` results differ by up to 2^-9).

use std::rc::Rc;

use pt_engine::{Activation, Angles, AttentionShape, Linear, LogprobOptions, ParamId, Tape, Var};

use crate::builder::Builder;
use crate::config::ModelConfig;
use crate::decoder::{
    Attention, AttentionBias, Mlp, declare_head, full_attention, only_causal, only_gelu_tanh, read_softcap,
    read_window, read_windows, run_block,
};
use crate::error::Result;
use crate::model::CausalLm;
use crate::options::Options;
use crate::rope::{Rope, RopeContext, is_per_layer_type};

#[derive(Debug)]
struct Gemma3 {
    embedding: ParamId,
    embedding_scale: f32,
    layers: Vec<Layer>,
    norm: ParamId,
    head: ParamId,
    /// Frequencies of layers that see everything, and of those that slide.
    rope: Rope,
    local_rope: Rope,
    eps: f32,
    logit_softcap: Option<f32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: ParamId,
    attention: Attention,
    q_norm: ParamId,
    k_norm: ParamId,
    post_attention_norm: ParamId,
    mlp_norm: ParamId,
    mlp: Mlp,
    post_mlp_norm: ParamId,
}

pub(super) fn build(
    config: &ModelConfig,
    options: &Options<'_>,
    builder: &mut Builder<'_>,
) -> Result<Box<dyn CausalLm>> {
    only_gelu_tanh(options)?;
    only_causal(options)?;
    let bias = options.flag("attention_bias")?.unwrap_or(false);
    let window = read_window(options, Some(4096))?;
    let pattern = options.size("sliding_window_pattern", 1..=1 << 12)?.unwrap_or(6);
    let windows = read_windows(options, config.n_layers, window, |layer| (layer + 1) % pattern != 0)?;
    let scale = options.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    // Transformers' Gemma 3 has the option and applies no cap to scores, so there is nothing to agree with.
    options.only("attn_logit_softcapping", "null", |_| false)?;
    let logit_softcap = read_softcap(options, "final_logit_softcapping", None)?;
    let (rope, local_rope) = read_ropes(options, config)?;
    let hidden = config.hidden_size;
    let embedding = builder.embedding("model.embed_tokens.weight", config.vocab_size, hidden)?;
    let mut layers = Vec::with_capacity(config.n_layers);
    for (i, window) in windows.into_iter().enumerate() {
        let name = format!("model.layers.{i}");
        let shape = AttentionShape { scale, window, ..full_attention(config) };
        let bias = AttentionBias { qkv: bias, o: bias };
        layers.push(Layer {
            attention_norm: builder.norm(&format!("{name}.input_layernorm.weight"), hidden)?,
            attention: Attention::declare(builder, &name, config, shape, bias)?,
            q_norm: builder.norm(&format!("{name}.self_attn.q_norm.weight"), config.head_dim)?,
            k_norm: builder.norm(&format!("{name}.self_attn.k_norm.weight"), config.head_dim)?,
            post_attention_norm: builder.norm(&format!("{name}.post_attention_layernorm.weight"), hidden)?,
            mlp_norm: builder.norm(&format!("{name}.pre_feedforward_layernorm.weight"), hidden)?,
            mlp: Mlp::declare(builder, &name, config, false)?,
            post_mlp_norm: builder.norm(&format!("{name}.post_feedforward_layernorm.weight"), hidden)?,
        });
    }
    let norm = builder.norm("model.norm.weight", hidden)?;
    let head = declare_head(builder, config, embedding)?;
    let embedding_scale = (hidden as f64).sqrt() as f32;
    Ok(Box::new(Gemma3 {
        embedding,
        embedding_scale,
        layers,
        norm,
        head,
        rope,
        local_rope,
        eps: config.norm_eps,
        logit_softcap,
    }))
}

/// The global and the local frequencies. A scaling without a layer type applies to the global ones only.
fn read_ropes(options: &Options<'_>, config: &ModelConfig) -> Result<(Rope, Rope)> {
    let (global, local) = (RopeContext::new(config, 1_000_000.0), RopeContext::new(config, 10_000.0));
    if is_per_layer_type(options) {
        let Some(parameters) = options.object("rope_parameters")? else {
            unreachable!("rope_parameters with layer types is an object")
        };
        let ropes = (
            Rope::read_layer_type(&parameters, "full_attention", options, global)?,
            Rope::read_layer_type(&parameters, "sliding_attention", options, local)?,
        );
        parameters.finish("the rotary embedding", |_| false)?;
        return Ok(ropes);
    }
    options.only(
        "rope_parameters",
        "full_attention and sliding_attention, each with its parameters",
        |_| false,
    )?;
    let theta = options.positive("rope_local_base_freq")?.unwrap_or(10_000.0);
    Ok((Rope::read(options, global)?, Rope::plain(theta, config.head_dim)))
}

impl Gemma3 {
    fn block<'m>(&'m self, tape: &mut Tape<'m>, x: &Var, layer_idx: usize, angles: &Rc<Angles>) -> Var {
        let Layer {
            attention_norm,
            attention,
            q_norm,
            k_norm,
            post_attention_norm,
            mlp_norm,
            mlp,
            post_mlp_norm,
        } = &self.layers[layer_idx];
        let h = tape.rms_norm(x, *attention_norm, self.eps, 1.0, None);
        let qkv = tape.linear(&h, &[&attention.q, &attention.k, &attention.v], None);
        let qkv = tape.head_norm(&qkv, &attention.shape, *q_norm, *k_norm, self.eps, 1.0);
        let qkv = tape.rope(qkv, &attention.shape, angles);
        let h = tape.attention(&qkv, &attention.shape, layer_idx);
        let h = tape.linear(&h, &[&attention.o], None);
        let x = tape.rms_norm(&h, *post_attention_norm, self.eps, 1.0, Some(x));
        let h = tape.rms_norm(&x, *mlp_norm, self.eps, 1.0, None);
        let gate_up = tape.linear(&h, &[&mlp.gate, &mlp.up], None);
        let h = tape.gated(&gate_up, Activation::GeluTanh);
        let h = tape.linear(&h, &[&mlp.down], None);
        tape.rms_norm(&h, *post_mlp_norm, self.eps, 1.0, Some(&x))
    }
}

impl CausalLm for Gemma3 {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, recompute: bool) -> Var {
        let global = self.rope.angles(tape.batch());
        let local = self.local_rope.angles(tape.batch());
        let mut x = tape.embedding(self.embedding, self.embedding_scale);
        for layer_idx in 0..self.layers.len() {
            let slides = self.layers[layer_idx].attention.shape.window.is_some();
            let angles = if slides { local.clone() } else { global.clone() };
            x = run_block(tape, &x, recompute, move |tape, x| self.block(tape, x, layer_idx, &angles));
        }
        tape.rms_norm(&x, self.norm, self.eps, 1.0, None)
    }

    fn head(&self) -> ParamId {
        self.head
    }

    fn logprob_options(&self) -> LogprobOptions {
        LogprobOptions { softcap: self.logit_softcap, ..LogprobOptions::default() }
    }

    fn linears(&self) -> Vec<&Linear> {
        self.layers.iter().flat_map(|l| l.attention.linears().into_iter().chain(l.mlp.linears())).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.layers
            .iter_mut()
            .flat_map(|l| l.attention.linears_mut().into_iter().chain(l.mlp.linears_mut()))
            .collect()
    }

    fn kv_widths(&self) -> Vec<usize> {
        self.layers.iter().map(|l| l.attention.shape.kv_heads * l.attention.shape.head_dim).collect()
    }
}
