//! Which tensor is stored how.
//!
//! `q4_0` and `q4_k_m` are llama.cpp's mixtures: the output layer (the embedding, where the two are one) is `Q6_K`; in
//! `q4_k_m` so are values and down-projections of the first and last eighth of the layers and of every third between, and
//! fused query-key-value matrices are `Q5_K`. Rows that do not fill the blocks of a `K` type take the older type of one bit
//! more, rows that do not fill those either are `F16`. Norms and biases are `F32` always.

use std::str::FromStr;

use crate::error::ExportError;
use crate::quant::TensorType;

/// How a whole file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// Everything in 32-bit floats.
    F32,
    /// Matrices in 16-bit floats.
    F16,
    /// Matrices in 16-bit brain floats.
    Bf16,
    /// Matrices in 8 bits.
    Q8_0,
    /// Matrices in 4 bits with one scale for 32.
    Q4_0,
    /// The usual mixture around `Q4_K`.
    Q4KM,
}

/// Quantisation, name, the number llama.cpp has for it, and the mean divergence per token that is let pass, in nats.
///
/// The limits: `f32` and `f16` differ by rounding only; the others were measured on `stories260K` and the model of the
/// quickstart (see `docs/guide/export.md`), whose few weights suffer more than those of large models, and are several times that.
const TABLE: [(Quant, &str, u32, f64); 6] = [
    (Quant::F32, "f32", 0, 1e-6),
    (Quant::F16, "f16", 1, 1e-4),
    (Quant::Bf16, "bf16", 32, 2e-3),
    (Quant::Q8_0, "q8_0", 7, 5e-3),
    (Quant::Q4_0, "q4_0", 2, 0.25),
    (Quant::Q4KM, "q4_k_m", 15, 0.15),
];

impl Quant {
    /// All of them.
    pub const ALL: [Quant; 6] = [Quant::F32, Quant::F16, Quant::Bf16, Quant::Q8_0, Quant::Q4_0, Quant::Q4KM];

    fn row(self) -> &'static (Quant, &'static str, u32, f64) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has every quantisation")
    }

    /// Its name, as `q4_k_m`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().2
    }

    /// The mean divergence per token, in nats, above which an export has failed.
    pub fn max_mean_kl(self) -> f64 {
        self.row().3
    }

    /// The type of one tensor.
    pub fn tensor_type(self, tensor: &TensorRole<'_>) -> TensorType {
        let [_, columns] = *tensor.shape else { return TensorType::F32 };
        let wanted = match self {
            Quant::F32 => TensorType::F32,
            Quant::F16 => TensorType::F16,
            Quant::Bf16 => TensorType::Bf16,
            Quant::Q8_0 => TensorType::Q8_0,
            Quant::Q4_0 if tensor.is_output() => TensorType::Q6K,
            Quant::Q4_0 => TensorType::Q4_0,
            Quant::Q4KM => tensor.q4_k_m(),
        };
        fitting(wanted, columns)
    }
}

impl FromStr for Quant {
    type Err = ExportError;

    fn from_str(name: &str) -> Result<Quant, ExportError> {
        let names: Vec<&str> = TABLE.iter().map(|row| row.1).collect();
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0).ok_or_else(|| ExportError::Option {
            option: "quant",
            found: name.to_owned(),
            expected: format!("one of {}", names.join(", ")),
        })
    }
}

/// What the choice of a tensor's type depends on.
#[derive(Clone, Copy, Debug)]
pub struct TensorRole<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Layers of the model.
    pub n_layers: usize,
    /// Whether the embedding is the output layer.
    pub tied: bool,
}

impl TensorRole<'_> {
    fn is_output(&self) -> bool {
        self.name == "output.weight" || (self.tied && self.name == "token_embd.weight")
    }

    fn q4_k_m(&self) -> TensorType {
        let mut parts = self.name.split('.');
        let layer = parts.nth(1).and_then(|layer| layer.parse::<usize>().ok());
        let part = parts.next().unwrap_or("");
        let eighth = self.n_layers / 8;
        let wants_more =
            |layer: usize| layer < eighth || layer >= 7 * self.n_layers / 8 || (layer - eighth) % 3 == 2;
        match (part, layer) {
            _ if self.is_output() => TensorType::Q6K,
            ("attn_v" | "ffn_down", Some(layer)) if wants_more(layer) => TensorType::Q6K,
            ("attn_qkv", _) => TensorType::Q5K,
            _ => TensorType::Q4K,
        }
    }
}

/// `wanted`, or what its rows can be stored as.
fn fitting(wanted: TensorType, columns: usize) -> TensorType {
    if columns.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let older = match wanted {
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        TensorType::Q6K => TensorType::Q8_0,
        _ => TensorType::F16,
    };
    if columns.is_multiple_of(older.block_len()) { older } else { TensorType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_stored_as_the_mixtures_say() {
        let check = |quant: Quant, name: &str, shape: &[usize], tied: bool, expected: TensorType| {
            let role = TensorRole { name, shape, n_layers: 16, tied };
            assert_eq!(quant.tensor_type(&role), expected, "{} of {name} {shape:?}", quant.name());
        };
        let square = &[256, 256][..];
        check(Quant::Q4KM, "output.weight", square, false, TensorType::Q6K);
        check(Quant::Q4KM, "token_embd.weight", square, false, TensorType::Q4K);
        check(Quant::Q4KM, "token_embd.weight", square, true, TensorType::Q6K);
        check(Quant::Q4KM, "blk.0.attn_v.weight", square, true, TensorType::Q6K);
        check(Quant::Q4KM, "blk.3.attn_v.weight", square, true, TensorType::Q4K);
        check(Quant::Q4KM, "blk.4.ffn_down.weight", square, true, TensorType::Q6K);
        check(Quant::Q4KM, "blk.13.ffn_down.weight", square, true, TensorType::Q6K);
        check(Quant::Q4KM, "blk.4.ffn_up.weight", square, true, TensorType::Q4K);
        check(Quant::Q4KM, "blk.4.attn_qkv.weight", square, true, TensorType::Q5K);
        check(Quant::Q4KM, "blk.4.attn_qkv.weight", &[4, 64], true, TensorType::Q5_1);
        check(Quant::Q4KM, "blk.3.attn_v.weight", &[4, 64], true, TensorType::Q5_0);
        check(Quant::Q4KM, "blk.3.attn_v.weight", &[4, 40], true, TensorType::F16);
        check(Quant::Q4KM, "blk.3.attn_norm.weight", &[64], true, TensorType::F32);
        check(Quant::Q4_0, "output.weight", &[4, 64], false, TensorType::Q8_0);
        check(Quant::Q4_0, "blk.0.attn_q.weight", &[4, 64], false, TensorType::Q4_0);
        check(Quant::Q8_0, "output.weight", square, false, TensorType::Q8_0);
        check(Quant::F16, "blk.0.attn_q.bias", &[64], false, TensorType::F32);
    }
}
