//! Tensors, parameters, segment tables and the tape of fused operations.
