//! Keys and values of positions already computed.

use crate::tensor::{Data, Dtype, Tensor};

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
    pub fn new(dtype: Dtype, rows: usize, widths: &[usize]) -> KvCache {
        let layer = |&width: &usize| [Tensor::zeros(dtype, rows, width), Tensor::zeros(dtype, rows, width)];
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
            let mut larger = Tensor::dirty(matrix.dtype(), rows, matrix.cols());
            let n_kept = self.rows * matrix.cols();
            match (&mut larger.data, &matrix.data) {
                (Data::F32(to), Data::F32(from)) => to[..n_kept].copy_from_slice(&from[..n_kept]),
                (Data::Bf16(to), Data::Bf16(from)) => to[..n_kept].copy_from_slice(&from[..n_kept]),
                _ => unreachable!("the larger matrix has the type of the smaller"),
            }
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
            let source = from * width..(from + n) * width;
            match &mut matrix.data {
                Data::F32(values) => values.copy_within(source, to * width),
                Data::Bf16(values) => values.copy_within(source, to * width),
            }
        }
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &[Tensor; 2] {
        &self.layers[layer]
    }

    /// Stores keys (columns `k_col ..`) and values (columns `v_col ..`) of row `from` of `qkv` in row `to`.
    pub(crate) fn store(
        &mut self,
        layer: usize,
        qkv: &Tensor,
        from: usize,
        k_col: usize,
        v_col: usize,
        to: usize,
    ) {
        for (which, col) in [(0, k_col), (1, v_col)] {
            let target = &mut self.layers[layer][which];
            let width = target.cols();
            let source = from * qkv.cols() + col;
            match (&mut target.data, &qkv.data) {
                (Data::F32(to_values), Data::F32(values)) => {
                    to_values[to * width..(to + 1) * width].copy_from_slice(&values[source..source + width]);
                }
                (Data::Bf16(to_values), Data::Bf16(values)) => {
                    to_values[to * width..(to + 1) * width].copy_from_slice(&values[source..source + width]);
                }
                _ => panic!("the cache and the activations have one storage type"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_content_as_the_cache_grows_and_copies_are_copies() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut cache = KvCache::new(dtype, 0, &[2, 3]);
            cache.grow(3);
            for (layer, width) in [(0, 2), (1, 3)] {
                let row: Vec<f32> = (0..2 * width).map(|i| (layer * 10 + i) as f32).collect();
                let qkv = Tensor::from_f32(&row, 1, 2 * width, dtype);
                cache.store(layer, &qkv, 0, 0, width, 1);
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
