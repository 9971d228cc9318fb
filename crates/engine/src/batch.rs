//! What one forward pass runs over.

use std::cell::RefCell;
use std::rc::Rc;

use crate::cache::KvCache;
use crate::segments::SegmentTable;

/// Query rows that continue a cached sequence.
#[derive(Clone, Debug)]
pub struct CachedSpan {
    /// First row of the batch.
    pub q_row: usize,
    /// Number of rows.
    pub q_len: usize,
    /// Cache row of every position; the last `q_len` are where this batch's keys go.
    pub rows: Vec<u32>,
    /// Length of the sequence that was known from the start: a prompt's. Where angles depend on the sequence's length,
    /// that of position `p` is `max(prompt_len, p + 1)`: the same whether the prompt is computed whole or in chunks,
    /// and whether a later token is decoded or computed again with all before it.
    pub prompt_len: usize,
}

pub(crate) enum Keys {
    /// Keys and values are those of the batch itself.
    InBatch(SegmentTable),
    /// Keys and values live in a cache that this pass extends.
    Cached { cache: Rc<RefCell<KvCache>>, spans: Vec<CachedSpan> },
}

/// Tokens, who sees whom, and the identity of each row.
pub struct Batch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    path_lens: Vec<u32>,
    row_keys: Vec<u64>,
    pub(crate) keys: Keys,
}

impl Batch {
    /// A batch of segments, as in training.
    ///
    /// # Panics
    /// If the table does not cover the tokens.
    pub fn new(tokens: Vec<u32>, table: SegmentTable) -> Batch {
        assert_eq!(tokens.len(), table.n_tokens(), "one token per row of the segment table");
        Batch {
            positions: table.positions().to_vec(),
            path_lens: table.path_lens().to_vec(),
            row_keys: (0..tokens.len() as u64).collect(),
            tokens,
            keys: Keys::InBatch(table),
        }
    }

    /// A batch that continues sequences in `cache`, as in decoding. It computes no gradients.
    ///
    /// # Panics
    /// If the spans do not cover the tokens in order.
    pub fn cached(tokens: Vec<u32>, cache: Rc<RefCell<KvCache>>, spans: Vec<CachedSpan>) -> Batch {
        let (mut positions, mut path_lens) = (Vec::new(), Vec::new());
        for span in &spans {
            assert_eq!(span.q_row, positions.len(), "spans cover the rows in order");
            assert!(span.q_len <= span.rows.len(), "a span's own rows are part of its context");
            let own = span.rows.len() - span.q_len..span.rows.len();
            positions.extend(own.clone().map(|p| p as u32));
            path_lens.extend(own.map(|p| span.prompt_len.max(p + 1) as u32));
        }
        assert_eq!(positions.len(), tokens.len(), "spans cover all rows");
        Batch {
            positions,
            path_lens,
            row_keys: (0..tokens.len() as u64).collect(),
            tokens,
            keys: Keys::Cached { cache, spans },
        }
    }

    /// Sets the identity of each row, on which dropout depends: the same token of the same example must have
    /// the same key whatever else is in the batch.
    #[must_use]
    pub fn with_row_keys(mut self, row_keys: Vec<u64>) -> Batch {
        assert_eq!(row_keys.len(), self.tokens.len(), "one key per row");
        self.row_keys = row_keys;
        self
    }

    /// Token of each row.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Position of each row in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// For each row, the length of its sequence as far as it is known (some rope scalings depend on it).
    pub fn path_lens(&self) -> &[u32] {
        &self.path_lens
    }

    /// Identity of each row.
    pub fn row_keys(&self) -> &[u64] {
        &self.row_keys
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
