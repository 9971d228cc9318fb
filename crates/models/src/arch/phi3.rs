//! Phi 3: Llama with query, key and value in one matrix, gate and up in another, and perhaps only the first part of
//! each head rotated.
//!
//! Source: Abdin et al. 2024, arXiv:2404.14219, section 2. Names and defaults are those of transformers'
//! `Phi3ForCausalLM`; so are the kinds of rotary scaling, `longrope` (once called `su`) only.

use std::rc::Rc;

use pt_engine::{Activation, Angles, AttentionShape, Linear, LogprobOptions, ParamId, Tape, Var};

use crate::builder::Builder;
use crate::config::ModelConfig;
use crate::decoder::{declare_head, full_attention, only_silu, read_window, run_block};
use crate::error::Result;
use crate::model::CausalLm;
use crate::options::Options;
use crate::rope::{Rope, RopeContext};

#[derive(Debug)]
struct Phi3 {
    embedding: ParamId,
    layers: Vec<Layer>,
    norm: ParamId,
    head: ParamId,
    rope: Rope,
    shape: AttentionShape,
    eps: f32,
}

#[derive(Debug)]
struct Layer {
    attention_norm: ParamId,
    qkv: Linear,
    o: Linear,
    mlp_norm: ParamId,
    gate_up: Linear,
    down: Linear,
}

pub(super) fn build(
    config: &ModelConfig,
    options: &Options<'_>,
    builder: &mut Builder<'_>,
) -> Result<Box<dyn CausalLm>> {
    only_silu(options)?;
    for key in ["attention_bias", "resid_pdrop", "embd_pdrop"] {
        options.only(key, "off", crate::options::is_off)?;
    }
    // Written by Phi 4 mini; transformers has no other value.
    for key in ["full_attn_mod", "interpolate_factor"] {
        options.only(key, "1", |v| v.as_f64() == Some(1.0))?;
    }
    let context = RopeContext {
        may_be_partial: true,
        default_original: 4096,
        kinds: &["default", "longrope"],
        ..RopeContext::new(config, 10_000.0)
    };
    let rope = Rope::read(options, context)?;
    options.value("original_max_position_embeddings"); // Written even where no scaling starts from it.
    let shape = AttentionShape { window: read_window(options, None)?, ..full_attention(config) };
    let (hidden, ffn, q_width) = (config.hidden_size, config.ffn_size, shape.heads * shape.head_dim);
    let embedding = builder.embedding("model.embed_tokens.weight", config.vocab_size, hidden)?;
    let mut layers = Vec::with_capacity(config.n_layers);
    for i in 0..config.n_layers {
        let name = format!("model.layers.{i}");
        layers.push(Layer {
            attention_norm: builder.norm(&format!("{name}.input_layernorm.weight"), hidden)?,
            qkv: builder.linear(&format!("{name}.self_attn.qkv_proj"), shape.qkv_width(), hidden, false)?,
            o: builder.linear(&format!("{name}.self_attn.o_proj"), hidden, q_width, false)?,
            mlp_norm: builder.norm(&format!("{name}.post_attention_layernorm.weight"), hidden)?,
            gate_up: builder.linear(&format!("{name}.mlp.gate_up_proj"), 2 * ffn, hidden, false)?,
            down: builder.linear(&format!("{name}.mlp.down_proj"), hidden, ffn, false)?,
        });
    }
    let norm = builder.norm("model.norm.weight", hidden)?;
    let head = declare_head(builder, config, embedding)?;
    Ok(Box::new(Phi3 { embedding, layers, norm, head, rope, shape, eps: config.norm_eps }))
}

impl Phi3 {
    fn block<'m>(&'m self, tape: &mut Tape<'m>, x: &Var, layer_idx: usize, angles: &Rc<Angles>) -> Var {
        let Layer { attention_norm, qkv, o, mlp_norm, gate_up, down } = &self.layers[layer_idx];
        let h = tape.rms_norm(x, *attention_norm, self.eps, 0.0, None);
        let qkv = tape.linear(&h, &[qkv], None);
        let qkv = tape.rope(qkv, &self.shape, angles);
        let h = tape.attention(&qkv, &self.shape, layer_idx);
        let x = tape.linear(&h, &[o], Some(x));
        let h = tape.rms_norm(&x, *mlp_norm, self.eps, 0.0, None);
        let gate_up = tape.linear(&h, &[gate_up], None);
        let h = tape.gated(&gate_up, Activation::Silu);
        tape.linear(&h, &[down], Some(&x))
    }
}

impl CausalLm for Phi3 {
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
        self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.layers.iter_mut().flat_map(|l| [&mut l.qkv, &mut l.o, &mut l.gate_up, &mut l.down]).collect()
    }

    fn kv_widths(&self) -> Vec<usize> {
        vec![self.shape.kv_heads * self.shape.head_dim; self.layers.len()]
    }
}
