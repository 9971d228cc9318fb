//! Llama: pre-normalised blocks of grouped-query attention with rotary positions and of SwiGLU.
//!
//! Source: Touvron et al. 2023, arXiv:2302.13971, section 2.2, and arXiv:2307.09288, appendix A.2.1. Names and
//! defaults are those of transformers' `LlamaForCausalLM`.

use std::rc::Rc;

use pt_engine::{Activation, Angles, Linear, LogprobOptions, ParamId, Tape, Var};

use crate::builder::Builder;
use crate::config::ModelConfig;
use crate::decoder::{Attention, AttentionBias, Mlp, declare_head, full_attention, only_silu, run_block};
use crate::error::Result;
use crate::model::CausalLm;
use crate::options::Options;
use crate::rope::{Rope, RopeContext};

#[derive(Debug)]
struct Llama {
    embedding: ParamId,
    layers: Vec<Layer>,
    norm: ParamId,
    head: ParamId,
    rope: Rope,
    eps: f32,
}

#[derive(Debug)]
struct Layer {
    attention_norm: ParamId,
    attention: Attention,
    mlp_norm: ParamId,
    mlp: Mlp,
}

pub(super) fn build(
    config: &ModelConfig,
    options: &Options<'_>,
    builder: &mut Builder<'_>,
) -> Result<Box<dyn CausalLm>> {
    only_silu(options)?;
    let bias = options.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = options.flag("mlp_bias")?.unwrap_or(false);
    let rope = Rope::read(options, RopeContext::new(config, 10_000.0))?;
    let embedding = builder.embedding("model.embed_tokens.weight", config.vocab_size, config.hidden_size)?;
    let mut layers = Vec::with_capacity(config.n_layers);
    for i in 0..config.n_layers {
        let name = format!("model.layers.{i}");
        let bias = AttentionBias { qkv: bias, o: bias };
        layers.push(Layer {
            attention_norm: builder.norm(&format!("{name}.input_layernorm.weight"), config.hidden_size)?,
            attention: Attention::declare(builder, &name, config, full_attention(config), bias)?,
            mlp_norm: builder.norm(&format!("{name}.post_attention_layernorm.weight"), config.hidden_size)?,
            mlp: Mlp::declare(builder, &name, config, mlp_bias)?,
        });
    }
    let norm = builder.norm("model.norm.weight", config.hidden_size)?;
    let head = declare_head(builder, config, embedding)?;
    Ok(Box::new(Llama { embedding, layers, norm, head, rope, eps: config.norm_eps }))
}

impl Llama {
    fn block<'m>(&'m self, tape: &mut Tape<'m>, x: &Var, layer_idx: usize, angles: &Rc<Angles>) -> Var {
        let Layer { attention_norm, attention, mlp_norm, mlp } = &self.layers[layer_idx];
        let h = tape.rms_norm(x, *attention_norm, self.eps, 0.0, None);
        let qkv = tape.linear(&h, &[&attention.q, &attention.k, &attention.v], None);
        let qkv = tape.rope(qkv, &attention.shape, angles);
        let h = tape.attention(&qkv, &attention.shape, layer_idx);
        let x = tape.linear(&h, &[&attention.o], Some(x));
        let h = tape.rms_norm(&x, *mlp_norm, self.eps, 0.0, None);
        let gate_up = tape.linear(&h, &[&mlp.gate, &mlp.up], None);
        let h = tape.gated(&gate_up, Activation::Silu);
        tape.linear(&h, &[&mlp.down], Some(&x))
    }
}

impl CausalLm for Llama {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, recompute: bool) -> Var {
        let angles = self.rope.angles(tape.batch());
        let mut x = tape.embedding(self.embedding, 1.0);
        for layer_idx in 0..self.layers.len() {
            let angles = angles.clone();
            x = run_block(tape, &x, recompute, move |tape, x| self.block(tape, x, layer_idx, &angles));
        }
        tape.rms_norm(&x, self.norm, self.eps, 0.0, None)
    }

    fn head(&self) -> ParamId {
        self.head
    }

    fn logprob_options(&self) -> LogprobOptions {
        LogprobOptions::default()
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
