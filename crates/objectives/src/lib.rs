//! Training objectives as pure functions of per-token arrays.
