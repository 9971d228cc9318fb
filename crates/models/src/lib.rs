//! Language-model architectures, configuration and weights of Hugging Face directories, adapters.
