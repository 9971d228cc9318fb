//! A linear layer as a model sees it: parameters by id, and what an adapter hangs on it.

use crate::params::ParamId;

/// `y = x W^T + b`, with an optional low-rank update.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Module path in the checkpoint, without `.weight`, for example `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[n_out, n_in]`.
    pub weight: ParamId,
    /// `[n_out]`.
    pub bias: Option<ParamId>,
    /// Inputs.
    pub n_in: usize,
    /// Outputs.
    pub n_out: usize,
    /// The adapter, if one is attached.
    pub lora: Option<Lora>,
}

/// `y += scale * (x A^T) B^T`.
///
/// Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; `scale` is alpha / rank, or alpha / sqrt(rank) for rsLoRA
/// (Kalajdzievski 2023, arXiv:2312.03732).
#[derive(Clone, Debug)]
pub struct Lora {
    /// `[rank, n_in]`.
    pub a: ParamId,
    /// `[n_out, rank]`.
    pub b: ParamId,
    /// Inner width.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f32,
    /// Probability with which an input of the adapter is dropped in training.
    pub dropout: f32,
    /// DoRA's magnitude `[n_out]` (Liu et al. 2024, arXiv:2402.09353, eq. 5): the output of row `n` is scaled by
    /// `m_n / ||W_n + scale (B A)_n||`, whose norm is held constant in backward (section 4.3).
    pub magnitude: Option<ParamId>,
}
