//! Keys and values of positions already computed.

use crate::device::{DeviceRef, copy_columns, copy_prefix, copy_within};
use crate::tensor::{Dtype, Tensor};

/// One key and one value matrix per layer; a row holds one position of one sequence.
///
/// Which row belongs to which sequence is the caller's bookkeeping (see [`crate::CachedSpan`]).
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<[Tensor; 2]>,
    rows: usize,
}

impl KvCache {
    /// Room for `rows` positions in each layer; `widths[l]` is `kv_heads * head_dim` of layer `l`.
    pub fn new(device: DeviceRef, dtype: Dtype, rows: usize, widths: &[usize]) -> KvCache {
        let matrix = |width| Tensor::zeros(device, dtype, rows, width);
        let layer = |&width: &usize| [matrix(width), matrix(width)];
        KvCache { layers: widths.iter().map(layer).collect(), rows }
    }

    /// Number of positions there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Makes room for `rows` positions, keeping what is stored; never makes less.
    pub fn grow(&mut self, rows: usize) {
        if rows <= self.rows {
            return;
        }
        for matrix in self.layers.iter_mut().flatten() {
            let mut larger = Tensor::dirty(matrix.device(), matrix.dtype(), rows, matrix.cols());
            copy_prefix(matrix.array(), larger.array_mut(), self.rows * matrix.cols());
            *matrix = larger;
        }
        self.rows = rows;
    }

    /// Copies the keys and values of rows `from .. from + n` of every layer to rows `to .. to + n`.
    ///
    /// # Panics
    /// If a row is outside the cache.
    pub fn copy_rows(&mut self, from: usize, to: usize, n: usize) {
        assert!(from.max(to) + n <= self.rows, "rows {from} and {to} + {n} of {}", self.rows);
        for matrix in self.layers.iter_mut().flatten() {
            let width = matrix.cols();
            copy_within(matrix.array_mut(), from * width, to * width, n * width);
        }
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &[Tensor; 2] {
        &self.layers[layer]
    }

    /// Stores keys (columns `k_col ..`) and values (columns `v_col ..`) of rows `from ..` of `qkv` in the given rows.
    pub(crate) fn store(
        &mut self,
        layer: usize,
        qkv: &Tensor,
        from: usize,
        [k_col, v_col]: [usize; 2],
        rows: &[u32],
    ) {
        for (target, col) in self.layers[layer].iter_mut().zip([k_col, v_col]) {
            let width = target.cols();
            copy_columns(qkv.array(), (from, col, qkv.cols()), target.array_mut(), width, rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_content_as_the_cache_grows_and_copies_are_copies() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut cache = KvCache::new(DeviceRef::cpu(), dtype, 0, &[2, 3]);
            cache.grow(3);
            for (layer, width) in [(0, 2), (1, 3)] {
                let row: Vec<f32> = (0..2 * width).map(|i| (layer * 10 + i) as f32).collect();
                let qkv = Tensor::from_f32(&row, 1, 2 * width, dtype);
                cache.store(layer, &qkv, 0, [0, width], &[1]);
            }
            cache.grow(8);
            cache.grow(2);
            cache.copy_rows(1, 6, 1);
            assert_eq!(cache.rows(), 8);
            for row in [1, 6] {
                assert_eq!(cache.layer(0)[1].row_to_f32(row), [2.0, 3.0]);
                assert_eq!(cache.layer(1)[0].row_to_f32(row), [10.0, 11.0, 12.0]);
            }
        }
    }
}
