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
