//! Tests over the catalogue and on real files.
