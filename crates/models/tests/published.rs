//! Configurations of published models: all are understood, and give the published numbers of parameters.

use pt_models::ModelConfig;
use serde_json::{Value, json};

fn check(name: &str, config: Value, n_params: usize) {
    let config = ModelConfig::parse(name, &config.to_string(), &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.n_params(), n_params, "{name}");
}

/// The parts of a configuration that every architecture has.
fn sizes(model_type: &str, class: &str, sizes: [usize; 6]) -> Value {
    json!({
        "model_type": model_type, "architectures": [class], "vocab_size": sizes[0], "hidden_size": sizes[1],
        "intermediate_size": sizes[2], "num_hidden_layers": sizes[3], "num_attention_heads": sizes[4],
        "num_key_value_heads": sizes[5], "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": true,
        "attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2,
    })
}

fn with(mut config: Value, more: Value) -> Value {
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[test]
fn llamas() {
    check(
        "SmolLM2-135M",
        with(
            sizes("llama", "LlamaForCausalLM", [49152, 576, 1536, 30, 9, 3]),
            json!({"is_llama_config": true, "rope_interleaved": false, "rope_theta": 100000, "rms_norm_eps": 1e-5,
                "hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1,
                "max_position_embeddings": 8192, "rope_scaling": null, "tie_word_embeddings": true}),
        ),
        134_515_008,
    );
    let llama3 = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    check(
        "Llama-3.2-1B",
        with(
            sizes("llama", "LlamaForCausalLM", [128256, 2048, 8192, 16, 32, 8]),
            json!({"head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu",
                "rope_theta": 500000.0, "rope_scaling": llama3, "tie_word_embeddings": true, "eos_token_id": [1, 2]}),
        ),
        1_235_814_400,
    );
    check(
        "Llama-2-7b",
        with(
            sizes("llama", "LlamaForCausalLM", [32000, 4096, 11008, 32, 32, 32]),
            json!({"_name_or_path": "x", "hidden_act": "silu", "rope_scaling": null, "tie_word_embeddings": false}),
        ),
        6_738_415_616,
    );
}

#[test]
fn mistral_and_qwen() {
    check(
        "Mistral-7B-v0.1",
        with(
            sizes("mistral", "MistralForCausalLM", [32000, 4096, 14336, 32, 32, 8]),
            json!({"sliding_window": 4096, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false}),
        ),
        7_241_732_096,
    );
    check(
        "Qwen2.5-0.5B",
        with(
            sizes("qwen2", "Qwen2ForCausalLM", [151936, 896, 4864, 24, 14, 2]),
            json!({"max_window_layers": 24, "sliding_window": 32768, "use_mrope": false, "use_sliding_window": false,
                "rope_theta": 1000000.0, "tie_word_embeddings": true, "hidden_act": "silu"}),
        ),
        494_032_768,
    );
    check(
        "Qwen3-0.6B",
        with(
            sizes("qwen3", "Qwen3ForCausalLM", [151936, 1024, 3072, 28, 16, 8]),
            json!({"head_dim": 128, "attention_bias": false, "max_window_layers": 28, "sliding_window": null,
                "use_sliding_window": false, "rope_scaling": null, "rope_theta": 1000000, "tie_word_embeddings": true}),
        ),
        596_049_920,
    );
}

#[test]
fn gemma_and_phi() {
    check(
        "gemma-2-2b",
        with(
            sizes("gemma2", "Gemma2ForCausalLM", [256000, 2304, 9216, 26, 8, 4]),
            json!({"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
                "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
                "sliding_window": 4096, "cache_implementation": "hybrid", "attention_bias": false}),
        ),
        2_614_341_888,
    );
    check(
        "gemma-3-1b-it",
        with(
            sizes("gemma3_text", "Gemma3ForCausalLM", [262144, 1152, 6912, 26, 4, 1]),
            json!({"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": null,
                "final_logit_softcapping": null, "query_pre_attn_scalar": 256, "sliding_window": 512,
                "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": null,
                "cache_implementation": "hybrid", "attention_bias": false, "max_position_embeddings": 32768}),
        ),
        999_885_952,
    );
    check(
        "Phi-3-mini-4k-instruct",
        with(
            sizes("phi3", "Phi3ForCausalLM", [32064, 3072, 8192, 32, 32, 32]),
            json!({"auto_map": {"AutoConfig": "x"}, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "hidden_act": "silu",
                "original_max_position_embeddings": 4096, "rope_scaling": null, "sliding_window": 2047,
                "tie_word_embeddings": false, "attention_bias": false, "pad_token_id": 32000}),
        ),
        3_821_079_552,
    );
    let factors = vec![1.0; 48];
    check(
        "Phi-4-mini-instruct",
        with(
            sizes("phi3", "Phi3ForCausalLM", [200064, 3072, 8192, 32, 24, 8]),
            json!({"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": false, "mlp_bias": false,
                "partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096, "sliding_window": 262144,
                "max_position_embeddings": 131072, "tie_word_embeddings": true,
                "rope_scaling": {"type": "longrope", "short_factor": factors, "long_factor": factors}}),
        ),
        3_836_021_760,
    );
}
