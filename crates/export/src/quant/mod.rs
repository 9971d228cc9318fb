//! The tensor types of GGUF files: how many values make a block, and how blocks are packed and unpacked.
//!
//! Source: the ggml project's published description of its block formats. Blocks lie along a row. `f16` scales are rounded
//! to nearest even; the arithmetic is `f32` in one order, so bytes are the same on every machine.
//!
//! | type | block | value | bits per value |
//! | --- | --- | --- | --- |
//! | `Q4_0` | 32 | `d (q - 8)` | 4.5 |
//! | `Q5_0` | 32 | `d (q - 16)` | 5.5 |
//! | `Q5_1` | 32 | `d q + m` | 6 |
//! | `Q8_0` | 32 | `d q` | 8.5 |
//! | `Q4_K` | 256 | `d s_j q - m t_j` | 4.5 |
//! | `Q5_K` | 256 | `d s_j q - m t_j` | 5.5 |
//! | `Q6_K` | 256 | `d s_j (q - 32)` | 6.5625 |

mod k_blocks;
mod legacy;

use half::{bf16, f16};
use rayon::prelude::*;

/// Values of one block of the `K` types.
pub const K_BLOCK: usize = 256;
/// Values of one block of the older types.
pub const BLOCK: usize = 32;

/// A tensor type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
    /// 4 bits, one scale.
    Q4_0,
    /// 5 bits, one scale.
    Q5_0,
    /// 5 bits, scale and minimum.
    Q5_1,
    /// 8 bits, one scale.
    Q8_0,
    /// 4 bits, scales and minima of 6 bits.
    Q4K,
    /// 5 bits, scales and minima of 6 bits.
    Q5K,
    /// 6 bits, scales of 8 bits.
    Q6K,
}

/// Type, its number in files, its name, values and bytes of a block.
const TABLE: [(TensorType, u32, &str, usize, usize); 10] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", BLOCK, 18),
    (TensorType::Q5_0, 6, "Q5_0", BLOCK, 22),
    (TensorType::Q5_1, 7, "Q5_1", BLOCK, 24),
    (TensorType::Q8_0, 8, "Q8_0", BLOCK, 34),
    (TensorType::Q4K, 12, "Q4_K", K_BLOCK, 144),
    (TensorType::Q5K, 13, "Q5_K", K_BLOCK, 176),
    (TensorType::Q6K, 14, "Q6_K", K_BLOCK, 210),
    (TensorType::Bf16, 30, "BF16", 1, 2),
];

impl TensorType {
    fn row(self) -> &'static (TensorType, u32, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has every type")
    }

    /// The number that stands for it in files.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The type of that number.
    pub fn from_id(id: u32) -> Option<TensorType> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values of a block.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of `n` values in whole blocks.
    ///
    /// # Panics
    /// If a block would be cut.
    pub fn bytes_of(self, n: usize) -> usize {
        assert!(n.is_multiple_of(self.block_len()), "{n} values in blocks of {}", self.block_len());
        n / self.block_len() * self.block_bytes()
    }

    /// Packs values.
    ///
    /// # Panics
    /// If a block would be cut.
    pub fn quantise(self, values: &[f32]) -> Vec<u8> {
        let mut out = vec![0u8; self.bytes_of(values.len())];
        // Work is shared by blocks; what a block becomes depends on its values alone.
        let blocks_per_chunk = (1 << 14) / self.block_len();
        let chunks = values.par_chunks(blocks_per_chunk * self.block_len());
        chunks.zip(out.par_chunks_mut(blocks_per_chunk * self.block_bytes())).for_each(|(values, out)| {
            let blocks = values.chunks_exact(self.block_len());
            blocks.zip(out.chunks_exact_mut(self.block_bytes())).for_each(|(x, out)| self.pack(x, out));
        });
        out
    }

    /// Unpacks `bytes`.
    ///
    /// # Panics
    /// If a block is cut.
    pub fn dequantise(self, bytes: &[u8]) -> Vec<f32> {
        assert!(bytes.len().is_multiple_of(self.block_bytes()), "whole blocks of {}", self.name());
        let mut out = vec![0.0f32; bytes.len() / self.block_bytes() * self.block_len()];
        let blocks = bytes.chunks_exact(self.block_bytes());
        blocks.zip(out.chunks_exact_mut(self.block_len())).for_each(|(bytes, out)| self.unpack(bytes, out));
        out
    }

    fn pack(self, x: &[f32], out: &mut [u8]) {
        match self {
            TensorType::F32 => out.copy_from_slice(&x[0].to_le_bytes()),
            TensorType::F16 => out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
            TensorType::Bf16 => out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
            TensorType::Q4_0 => legacy::pack_q4_0(x, out),
            TensorType::Q5_0 => legacy::pack_q5_0(x, out),
            TensorType::Q5_1 => legacy::pack_q5_1(x, out),
            TensorType::Q8_0 => legacy::pack_q8_0(x, out),
            TensorType::Q4K => k_blocks::pack_q4_k(x, out),
            TensorType::Q5K => k_blocks::pack_q5_k(x, out),
            TensorType::Q6K => k_blocks::pack_q6_k(x, out),
        }
    }

    fn unpack(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            TensorType::F32 => out[0] = f32::from_le_bytes(bytes.try_into().expect("four bytes")),
            TensorType::F16 => out[0] = f16_at(bytes, 0),
            TensorType::Bf16 => out[0] = bf16::from_le_bytes(bytes.try_into().expect("two bytes")).to_f32(),
            TensorType::Q4_0 => legacy::unpack_q4_0(bytes, out),
            TensorType::Q5_0 => legacy::unpack_q5_0(bytes, out),
            TensorType::Q5_1 => legacy::unpack_q5_1(bytes, out),
            TensorType::Q8_0 => legacy::unpack_q8_0(bytes, out),
            TensorType::Q4K => k_blocks::unpack_q4_k(bytes, out),
            TensorType::Q5K => k_blocks::unpack_q5_k(bytes, out),
            TensorType::Q6K => k_blocks::unpack_q6_k(bytes, out),
        }
    }
}

/// The `f16` at byte `at`, widened.
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Stores `value` as `f16` at byte `at`; gives it back as it was rounded.
fn put_f16(bytes: &mut [u8], at: usize, value: f32) -> f32 {
    let rounded = f16::from_f32(value);
    bytes[at..at + 2].copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    #[test]
    fn what_is_unpacked_is_near_what_was_packed() {
        // Half a step of each format, as a share of the block's largest value, with room for the rounding of scales.
        let cases = [
            (TensorType::F32, 0.0),
            (TensorType::F16, 5e-4),
            (TensorType::Bf16, 4e-3),
            (TensorType::Q8_0, 5e-3),
            (TensorType::Q6K, 0.04),
            (TensorType::Q5K, 0.07),
            (TensorType::Q5_1, 0.04),
            (TensorType::Q5_0, 0.07),
            (TensorType::Q4K, 0.13),
            (TensorType::Q4_0, 0.13),
        ];
        let stream = Stream::new(1, "quant test");
        let values: Vec<f32> = (0..K_BLOCK * 8).map(|i| stream.at(i as u64).normal() as f32).collect();
        let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        for (kind, tolerance) in cases {
            let back = kind.dequantise(&kind.quantise(&values));
            let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance * largest, "{}: off by {worst} of {largest}", kind.name());
        }
    }

    #[test]
    fn constant_and_empty_blocks_stay_finite() {
        for (kind, ..) in TABLE {
            for value in [0.0, 1.0, -0.5, 1e-20] {
                let values = [value; K_BLOCK];
                let back = kind.dequantise(&kind.quantise(&values));
                let near = |x: &f32| (x - value).abs() <= 0.07 * value.abs() + 1e-10;
                assert!(back.iter().all(near), "{} of {value}: {:?}", kind.name(), &back[..4]);
            }
        }
    }

    #[test]
    fn numbers_of_types_lead_back() {
        for (kind, id, ..) in TABLE {
            assert_eq!((TensorType::from_id(id), kind.id()), (Some(kind), id));
        }
        assert_eq!(TensorType::from_id(99), None);
    }
}
