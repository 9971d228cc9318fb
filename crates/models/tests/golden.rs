//! Every architecture against what transformers computes, and against itself in other company.

mod common;

use common::*;
use pt_engine::{Dtype, Weight};

/// All folders of `golden/models`; the test below asserts that none is forgotten.
const MODELS: &[&str] = &[
    "gemma2",
    "gemma3",
    "gemma3_v5",
    "llama",
    "llama_bf16",
    "llama_bias",
    "llama_f16",
    "llama_rope_dynamic",
    "llama_rope_linear",
    "llama_rope_llama3",
    "llama_rope_yarn",
    "llama_sharded",
    "llama_tied",
    "mistral",
    "phi3",
    "phi3_longrope",
    "phi3_longrope_partial",
    "qwen2",
    "qwen3",
];

fn files(name: &str) -> (String, std::collections::BTreeMap<String, Vec<f64>>) {
    let path = format!("models/{name}");
    let tensors = tensors(&golden(&path).join("golden.safetensors"));
    (path, tensors)
}

#[test]
fn no_golden_model_and_no_architecture_is_forgotten() {
    let mut names: Vec<String> = std::fs::read_dir(golden("models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, MODELS);
    let types: Vec<String> = MODELS
        .iter()
        .map(|name| load_golden(&format!("models/{name}"), Dtype::F32).config.model_type)
        .collect();
    for architecture in pt_models::ARCHITECTURES {
        assert!(
            types.iter().any(|t| t == architecture.model_type),
            "{} has no golden model",
            architecture.model_type
        );
    }
}

#[test]
fn logits_logprobs_loss_and_gradients_are_those_of_transformers() {
    for name in MODELS {
        let (path, expected) = files(name);
        let mut model = load_golden(&path, Dtype::F32);
        model.train_all().unwrap();
        let sequences = sequences(&expected);
        let batch = packed(&sequences);
        assert_close(&format!("{name} logits"), &logits(&model, &batch, Dtype::F32), &expected["logits"]);
        let (rows, targets) = predictions(&sequences);
        let weights = vec![1.0 / rows.len() as f32; rows.len()];
        let (logp, grads) = gradients(&model, &batch, &rows, &targets, &weights, false);
        assert_close(&format!("{name} logprobs"), &logp, &expected["logprobs"]);
        let loss = -logp.iter().sum::<f32>() / logp.len() as f32;
        assert_close(&format!("{name} loss"), &[loss], &expected["loss"]);
        let expected_grads: Vec<&String> = expected.keys().filter(|key| key.starts_with("grad.")).collect();
        assert_eq!(expected_grads.len(), grads.len(), "{name}: every parameter has a gradient");
        for key in expected_grads {
            assert_close(&format!("{name} {key}"), &grads[&key["grad.".len()..]], &expected[key]);
        }
    }
}

#[test]
fn bf16_logits_are_as_near_as_those_of_transformers() {
    for name in MODELS {
        let (path, expected) = files(name);
        let model = load_golden(&path, Dtype::Bf16);
        let found = logits(&model, &packed(&sequences(&expected)), Dtype::Bf16);
        let error = norm_error(&found, &expected["logits"]);
        assert!(error < BF16_TOLERANCE, "{name}: {error:.2e}");
    }
}

#[test]
fn a_sequence_gives_the_same_bits_packed_and_alone() {
    for name in MODELS {
        let (path, expected) = files(name);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = load_golden(&path, dtype);
            let sequences = sequences(&expected);
            let together = logits(&model, &packed(&sequences), dtype);
            let alone: Vec<f32> = sequences
                .iter()
                .flat_map(|s| logits(&model, &packed(std::slice::from_ref(s)), dtype))
                .collect();
            assert_eq!(bits(&together), bits(&alone), "{name} {dtype:?}");
        }
    }
}

#[test]
fn recomputing_blocks_gives_the_same_bits() {
    for name in MODELS {
        let (path, expected) = files(name);
        let mut model = load_golden(&path, Dtype::F32);
        model.train_all().unwrap();
        let sequences = sequences(&expected);
        let (batch, (rows, targets)) = (packed(&sequences), predictions(&sequences));
        let weights = vec![1.0; rows.len()];
        let run = |recompute| gradients(&model, &batch, &rows, &targets, &weights, recompute);
        let ((logp, grads), (logp_again, grads_again)) = (run(false), run(true));
        assert_eq!(bits(&logp), bits(&logp_again), "{name}");
        assert_eq!(grads.len(), grads_again.len(), "{name}");
        for (key, grad) in &grads {
            assert_eq!(bits(grad), bits(&grads_again[key]), "{name} {key}");
        }
    }
}

/// A prompt with two continuations, against the prompt repeated: the same bits forward, and the same gradients but for
/// the order of sums. Both paths have one length, so that scalings which depend on it see the same.
#[test]
fn a_shared_prompt_equals_repeated_prompts() {
    for name in MODELS {
        let (path, expected) = files(name);
        let mut model = load_golden(&path, Dtype::F32);
        model.train_all().unwrap();
        let ids = sequences(&expected).concat();
        let (prompt, first, second) = (&ids[0..7], &ids[7..12], &ids[12..17]);
        let shared = tree(prompt, &[first, second]);
        let repeated_sequences = [[prompt, first].concat(), [prompt, second].concat()];
        let repeated = packed(&repeated_sequences);
        let vocabulary = model.config.vocab_size;
        let (a, b) = (logits(&model, &shared, Dtype::F32), logits(&model, &repeated, Dtype::F32));
        let rows_of = |values: &[f32], range: std::ops::Range<usize>| {
            bits(&values[range.start * vocabulary..range.end * vocabulary])
        };
        assert_eq!(rows_of(&a, 0..12), rows_of(&b, 0..12), "{name}");
        assert_eq!(rows_of(&a, 12..17), rows_of(&b, 19..24), "{name}");

        // Targets are the continuations but their first tokens, which only the prompt's last row could predict.
        let targets: Vec<u32> = [&first[1..], &second[1..]].concat();
        let rows =
            |starts: [u32; 2]| starts.iter().flat_map(|s| (0..4).map(move |i| s + i)).collect::<Vec<u32>>();
        let weights = [1.0, 2.0, -1.0, 0.5, 1.0, 1.0, 3.0, -2.0];
        let (logp, grads) = gradients(&model, &shared, &rows([7, 12]), &targets, &weights, false);
        let (logp_b, grads_b) = gradients(&model, &repeated, &rows([7, 19]), &targets, &weights, false);
        assert_eq!(bits(&logp), bits(&logp_b), "{name}");
        for (key, grad) in &grads {
            let other: Vec<f64> = grads_b[key].iter().map(|x| f64::from(*x)).collect();
            assert_close(&format!("{name} {key}"), grad, &other);
        }
    }
}

/// The golden numbers are those of the values decoded to `f32`; products use them rounded to `bf16`, as bitsandbytes
/// decodes a `bf16` model. So: decoded, the logits are the golden ones, and what products see is the rounded values.
#[test]
fn stored_quantised_models_are_read() {
    for name in ["llama_nf4", "llama_int8"] {
        let expected = tensors(&golden("quant").join(name).join("golden.safetensors"));
        let sequences = sequences(&expected);
        let quantised = load_golden(&format!("quant/{name}"), Dtype::F32);
        assert!(
            quantised.arch.linears().iter().all(|l| quantised.params.get(l.weight).weight.is_quantised()),
            "{name}"
        );
        let with = |convert: fn(&[f32]) -> Weight| {
            let mut model = load_golden(&format!("quant/{name}"), Dtype::F32);
            for (_, param) in model.params.iter_mut().filter(|(_, param)| param.weight.is_quantised()) {
                param.weight = convert(&param.weight.to_f32());
            }
            model
        };
        let decoded = with(Weight::from_f32);
        let found = logits(&decoded, &packed(&sequences), Dtype::F32);
        assert_close(&format!("{name} logits"), &found, &expected["logits"]);
        assert_close(
            &format!("{name} logprobs"),
            &logprobs(&decoded, &sequences, Dtype::F32),
            &expected["logprobs"],
        );
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let run = |model| bits(&logits(model, &packed(&sequences), dtype));
            assert_eq!(run(&quantised), run(&with(Weight::bf16_from_f32)), "{name} {dtype:?}");
        }
    }
}
