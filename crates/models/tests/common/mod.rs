//! What the golden tests share: reading golden files, running a model, comparing.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pt_engine::{Batch, Dtype, Grads, LogprobGrad, LogprobOptions, Logprobs, Segment, SegmentTable, Tape};
use pt_models::{LoadOptions, Model, load};
use safetensors::SafeTensors;

/// `f32` against a truth computed in `f64`: the largest absolute error over the largest absolute value of a tensor.
/// PyTorch's own `f32` is up to 1.2e-5 from the truth on logits.
pub const F32_TOLERANCE: f64 = 1e-4;
/// `bf16` logits by norm of the difference over norm; transformers' own are at 0.9e-2 to 1.7e-2.
pub const BF16_TOLERANCE: f64 = 2e-2;

pub fn golden(path: &str) -> PathBuf {
    pt_core::testdata::workspace_root().join("golden").join(path)
}

/// All tensors of a file as `f64`.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let decode = |view: safetensors::tensor::TensorView<'_>| -> Vec<f64> {
        let data = view.data();
        match view.dtype() {
            safetensors::Dtype::F32 => {
                data.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            safetensors::Dtype::F64 => {
                data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I32 => {
                data.chunks(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            other => panic!("{}: {other:?}", path.display()),
        }
    };
    file.tensors().into_iter().map(|(name, view)| (name, decode(view))).collect()
}

pub fn load_golden(path: &str, dtype: Dtype) -> Model {
    let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
    load(&golden(path), &options).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn sequences(golden: &BTreeMap<String, Vec<f64>>) -> Vec<Vec<u32>> {
    let ids: Vec<u32> = golden["token_ids"].iter().map(|x| *x as u32).collect();
    let mut rest = ids.as_slice();
    let mut out = Vec::new();
    for len in &golden["lengths"] {
        let (sequence, tail) = rest.split_at(*len as usize);
        out.push(sequence.to_vec());
        rest = tail;
    }
    out
}

pub fn packed(sequences: &[Vec<u32>]) -> Batch {
    let lens: Vec<usize> = sequences.iter().map(Vec::len).collect();
    Batch::new(sequences.concat(), SegmentTable::sequences(&lens).unwrap())
}

/// A prompt with continuations.
pub fn tree(prompt: &[u32], children: &[&[u32]]) -> Batch {
    let mut tokens = prompt.to_vec();
    let mut segments = vec![Segment { start: 0, len: prompt.len(), parent: None }];
    for child in children {
        segments.push(Segment { start: tokens.len(), len: child.len(), parent: Some(0) });
        tokens.extend_from_slice(child);
    }
    Batch::new(tokens, SegmentTable::new(segments).unwrap())
}

/// Logits of all rows.
pub fn logits(model: &Model, batch: &Batch, dtype: Dtype) -> Vec<f32> {
    let mut tape = Tape::inference(&model.params, batch, dtype);
    let hidden = model.arch.hidden(&mut tape, false);
    let rows: Vec<u32> = (0..batch.len() as u32).collect();
    tape.logits(&hidden, model.arch.head(), &rows, &model.arch.logprob_options()).to_f32()
}

/// Rows that predict a next token, and those tokens.
pub fn predictions(sequences: &[Vec<u32>]) -> (Vec<u32>, Vec<u32>) {
    let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for sequence in sequences {
        rows.extend((0..sequence.len() as u32 - 1).map(|i| start + i));
        targets.extend(&sequence[1..]);
        start += sequence.len() as u32;
    }
    (rows, targets)
}

/// Log-probabilities of next tokens.
pub fn logprobs(model: &Model, sequences: &[Vec<u32>], dtype: Dtype) -> Vec<f32> {
    let (batch, (rows, targets)) = (packed(sequences), predictions(sequences));
    let mut tape = Tape::inference(&model.params, &batch, dtype);
    let hidden = model.arch.hidden(&mut tape, false);
    let options: LogprobOptions = model.arch.logprob_options();
    Logprobs::of(&tape.linear_logprob(&hidden, model.arch.head(), &rows, &targets, &options)).logp
}

/// Log-probabilities of `targets` at `rows`, and gradients of minus their weighted sum, by parameter name.
pub fn gradients(
    model: &Model,
    batch: &Batch,
    rows: &[u32],
    targets: &[u32],
    weights: &[f32],
    recompute: bool,
) -> (Vec<f32>, BTreeMap<String, Vec<f32>>) {
    gradients_with_dropout(model, batch, rows, targets, weights, recompute, None)
}

/// The same with a seed for dropout.
pub fn gradients_with_dropout(
    model: &Model,
    batch: &Batch,
    rows: &[u32],
    targets: &[u32],
    weights: &[f32],
    recompute: bool,
    dropout_seed: Option<u64>,
) -> (Vec<f32>, BTreeMap<String, Vec<f32>>) {
    let mut tape = Tape::training(&model.params, batch, Dtype::F32, dropout_seed);
    let hidden = model.arch.hidden(&mut tape, recompute);
    let var = tape.linear_logprob(&hidden, model.arch.head(), rows, targets, &model.arch.logprob_options());
    let logp = Logprobs::of(&var).logp;
    let d_logp: Vec<f32> = weights.iter().map(|w| -w).collect();
    let seed = Logprobs::seed(&var, &LogprobGrad { d_logp: &d_logp, d_entropy: None, d_mean_logp: None });
    let mut grads = Grads::new();
    drop((hidden, var));
    tape.backward(vec![seed], &mut grads);
    grads.settle(&model.params);
    let named =
        model.params.iter().filter_map(|(id, param)| Some((param.name.clone(), grads.get(id)?.to_f32())));
    (logp, named.collect())
}

/// Largest absolute error over largest absolute value.
pub fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    assert!(found.iter().all(|x| x.is_finite()), "finite values");
    let scale = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let gap = found.iter().zip(expected).fold(0.0f64, |max, (f, e)| max.max((f64::from(*f) - e).abs()));
    if scale == 0.0 { gap } else { gap / scale }
}

/// Norm of the difference over norm.
pub fn norm_error(found: &[f32], expected: &[f64]) -> f64 {
    let gap: f64 = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    (gap / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    let error = error(found, expected);
    assert!(error < F32_TOLERANCE, "{what}: relative error {error:.2e}");
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
