//! A row on its way through the steps, and what a step says of it.

use pt_data::{Columns, Row};

use crate::view::View;

/// A row with what the steps read of it.
#[derive(Clone, Debug)]
pub struct Item {
    /// The row as it was read; what leaves in the end.
    pub row: Row,
    /// Its texts, whatever its layout.
    pub view: View,
    /// The layout of its columns; `columns` where none was asked for.
    pub layout: &'static str,
    /// Which input it came from.
    pub input_idx: usize,
    /// Its number among all rows read, from 0.
    pub row_idx: u64,
    /// What steps noted of it: scores, clusters. Written to the column `curation` where asked for.
    pub notes: Columns,
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It goes on.
    Keep,
    /// It goes no further.
    Drop {
        /// The reason in few words, the same for all rows of its kind; counted.
        reason: &'static str,
        /// The evidence: the text, the score, the other row.
        detail: String,
    },
    /// It goes on with other columns.
    Change {
        /// All columns, changed.
        value: Columns,
        /// The reason in few words; counted.
        reason: &'static str,
        /// What was changed.
        detail: String,
    },
    /// One or more rows take its place.
    Replace {
        /// The columns of each.
        values: Vec<Columns>,
        /// The reason in few words; counted.
        reason: &'static str,
        /// What was done.
        detail: String,
    },
    /// It goes on, and the reason is counted and shown: a find that is left for a person to judge.
    Flag {
        /// The reason in few words; counted.
        reason: &'static str,
        /// The evidence.
        detail: String,
    },
    /// It goes on with a note (a score, a cluster).
    Note(Columns),
}

impl Decision {
    /// [`Decision::Drop`].
    pub(crate) fn drop(reason: &'static str, detail: impl Into<String>) -> Decision {
        Decision::Drop { reason, detail: detail.into() }
    }
}
