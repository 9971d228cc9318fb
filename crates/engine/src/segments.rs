//! Which tokens see which: segments with parents instead of padding and masks.

use std::ops::Range;

/// A run of tokens that continues its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row in the batch.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Index of the segment it continues; `None` for the start of a sequence.
    pub parent: Option<usize>,
}

/// Why a list of segments is not a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Segments must cover the rows in order.
    #[error("segment {index} starts at row {start}, expected {expected}: segments lie one after the other")]
    Gap {
        /// Which segment.
        index: usize,
        /// Where it starts.
        start: usize,
        /// Where the previous one ended.
        expected: usize,
    },
    /// A parent must come before its children, in the same tree.
    #[error("segment {index} names segment {parent} as its parent, which is not in the tree being listed")]
    Parent {
        /// Which segment.
        index: usize,
        /// Its parent.
        parent: usize,
    },
    /// Empty segments carry no information and usually mean lost data.
    #[error("segment {index} is empty")]
    Empty {
        /// Which segment.
        index: usize,
    },
}

/// Segments, with what attention needs derived from them.
///
/// A token sees its own segment causally and all ancestors; its position continues its parent's.
/// Trees lie one after the other, each parent before its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentTable {
    segments: Vec<Segment>,
    positions: Vec<u32>,
    contexts: Vec<Vec<u32>>,
    trees: Vec<Range<usize>>,
    path_lens: Vec<u32>,
}

impl SegmentTable {
    /// Checks the segments and derives positions and contexts.
    ///
    /// # Errors
    /// [`SegmentError`] names the first segment out of place.
    pub fn new(segments: Vec<Segment>) -> Result<SegmentTable, SegmentError> {
        let mut positions = Vec::new();
        let mut contexts: Vec<Vec<u32>> = Vec::with_capacity(segments.len());
        let mut trees: Vec<Range<usize>> = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            if segment.len == 0 {
                return Err(SegmentError::Empty { index });
            }
            if segment.start != positions.len() {
                return Err(SegmentError::Gap { index, start: segment.start, expected: positions.len() });
            }
            let mut context = match segment.parent {
                None => {
                    trees.push(index..index);
                    Vec::new()
                }
                Some(parent) => {
                    let in_tree = trees.last().is_some_and(|tree| tree.start <= parent && parent < index);
                    if !in_tree {
                        return Err(SegmentError::Parent { index, parent });
                    }
                    contexts[parent].clone()
                }
            };
            let first = context.len();
            positions.extend((first..first + segment.len).map(|p| p as u32));
            context.extend((segment.start..segment.start + segment.len).map(|row| row as u32));
            contexts.push(context);
            if let Some(tree) = trees.last_mut() {
                tree.end = index + 1;
            }
        }
        let mut path_lens = vec![0; positions.len()];
        for tree in &trees {
            let longest = contexts[tree.clone()].iter().map(Vec::len).max().unwrap_or(0) as u32;
            for segment in &segments[tree.clone()] {
                path_lens[segment.start..segment.start + segment.len].fill(longest);
            }
        }
        Ok(SegmentTable { segments, positions, contexts, trees, path_lens })
    }

    /// Independent sequences of the given lengths.
    ///
    /// # Errors
    /// [`SegmentError::Empty`] for a length of 0.
    pub fn sequences(lens: &[usize]) -> Result<SegmentTable, SegmentError> {
        let mut start = 0;
        let segments = lens
            .iter()
            .map(|&len| {
                start += len;
                Segment { start: start - len, len, parent: None }
            })
            .collect();
        SegmentTable::new(segments)
    }

    /// The segments as given.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Position of each row in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// For each row, the length of the longest path of its tree (some rope scalings depend on it).
    pub fn path_lens(&self) -> &[u32] {
        &self.path_lens
    }

    /// For each segment, the rows it sees, in order of position, its own last.
    pub fn context(&self, segment: usize) -> &[u32] {
        &self.contexts[segment]
    }

    /// Ranges of segments that form a tree.
    pub fn trees(&self) -> &[Range<usize>] {
        &self.trees
    }

    /// Number of rows (tokens).
    pub fn n_tokens(&self) -> usize {
        self.positions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: usize, len: usize, parent: Option<usize>) -> Segment {
        Segment { start, len, parent }
    }

    #[test]
    fn a_tree_continues_positions_and_shares_its_prompt() {
        let table = SegmentTable::new(vec![
            segment(0, 3, None),
            segment(3, 2, Some(0)),
            segment(5, 1, Some(0)),
            segment(6, 2, Some(1)),
            segment(8, 2, None),
        ])
        .unwrap();
        assert_eq!(table.positions(), [0, 1, 2, 3, 4, 3, 5, 6, 0, 1]);
        assert_eq!(table.context(3), [0, 1, 2, 3, 4, 6, 7]);
        assert_eq!(table.context(2), [0, 1, 2, 5]);
        assert_eq!(table.trees(), [0..4, 4..5]);
        assert_eq!(table.path_lens(), [7, 7, 7, 7, 7, 7, 7, 7, 2, 2]);
    }

    #[test]
    fn misplaced_segments_are_named() {
        let new = SegmentTable::new;
        assert_eq!(
            new(vec![segment(1, 2, None)]),
            Err(SegmentError::Gap { index: 0, start: 1, expected: 0 })
        );
        assert_eq!(new(vec![segment(0, 0, None)]), Err(SegmentError::Empty { index: 0 }));
        let other_tree = vec![segment(0, 1, None), segment(1, 1, None), segment(2, 1, Some(0))];
        assert_eq!(new(other_tree), Err(SegmentError::Parent { index: 2, parent: 0 }));
        assert_eq!(new(vec![segment(0, 1, Some(0))]), Err(SegmentError::Parent { index: 0, parent: 0 }));
    }
}
