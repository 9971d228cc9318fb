//! Tokenizers, chat templates, loss masks from token provenance, and their audit.
