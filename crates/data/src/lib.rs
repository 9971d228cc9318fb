//! Readers, dataset layouts, conversion, mixtures, packing and the tokenised cache.
