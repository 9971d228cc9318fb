//! Gemma 2: blocks normalised on both sides, soft-capped scores and logits, windows on every other layer.
//!
//! Source: Gemma Team 2024, arXiv:2408.00118, section 2. Names and defaults are those of transformers'
//! `Gemma2ForCausalLM`. Gains are `1 + weight`; embeddings are multiplied by `sqrt(hidden)`, in `f32` (transformers
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
use crate::rope::{Rope, RopeContext};

#[derive(Debug)]
struct Gemma2 {
    embedding: ParamId,
    embedding_scale: f32,
    layers: Vec<Layer>,
    norm: ParamId,
    head: ParamId,
    rope: Rope,
    eps: f32,
    logit_softcap: Option<f32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: ParamId,
    attention: Attention,
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
    let windows = read_windows(options, config.n_layers, window, |layer| layer % 2 == 0)?;
    let scale = options.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    let softcap = read_softcap(options, "attn_logit_softcapping", Some(50.0))?;
    let logit_softcap = read_softcap(options, "final_logit_softcapping", Some(30.0))?;
    let rope = Rope::read(options, RopeContext::new(config, 10_000.0))?;
    let hidden = config.hidden_size;
    let embedding = builder.embedding("model.embed_tokens.weight", config.vocab_size, hidden)?;
    let mut layers = Vec::with_capacity(config.n_layers);
    for (i, window) in windows.into_iter().enumerate() {
        let name = format!("model.layers.{i}");
        let shape = AttentionShape { scale, window, softcap, ..full_attention(config) };
        let bias = AttentionBias { qkv: bias, o: bias };
        layers.push(Layer {
            attention_norm: builder.norm(&format!("{name}.input_layernorm.weight"), hidden)?,
            attention: Attention::declare(builder, &name, config, shape, bias)?,
            post_attention_norm: builder.norm(&format!("{name}.post_attention_layernorm.weight"), hidden)?,
            mlp_norm: builder.norm(&format!("{name}.pre_feedforward_layernorm.weight"), hidden)?,
            mlp: Mlp::declare(builder, &name, config, false)?,
            post_mlp_norm: builder.norm(&format!("{name}.post_feedforward_layernorm.weight"), hidden)?,
        });
    }
    let norm = builder.norm("model.norm.weight", hidden)?;
    let head = declare_head(builder, config, embedding)?;
    let embedding_scale = (hidden as f64).sqrt() as f32;
    Ok(Box::new(Gemma2 {
        embedding,
        embedding_scale,
        layers,
        norm,
        head,
        rope,
        eps: config.norm_eps,
        logit_softcap,
    }))
}

impl Gemma2 {
    fn block<'m>(&'m self, tape: &mut Tape<'m>, x: &Var, layer_idx: usize, angles: &Rc<Angles>) -> Var {
        let Layer { attention_norm, attention, post_attention_norm, mlp_norm, mlp, post_mlp_norm } =
            &self.layers[layer_idx];
        let h = tape.rms_norm(x, *attention_norm, self.eps, 1.0, None);
        let qkv = tape.linear(&h, &[&attention.q, &attention.k, &attention.v], None);
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

impl CausalLm for Gemma2 {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, recompute: bool) -> Var {
        let angles = self.rope.angles(tape.batch());
        let mut x = tape.embedding(self.embedding, self.embedding_scale);
        for layer_idx in 0..self.layers.len() {
            let angles = angles.clone();
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
