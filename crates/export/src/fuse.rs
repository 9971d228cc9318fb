//! Several models of one shape made into one.
//!
//! With models `x_i`, a base `b`, task vectors `t_i = x_i - b` and weights `w_i`:
//!
//! | method | result | source |
//! | --- | --- | --- |
//! | `linear` | `sum w_i x_i` | Wortsman et al. 2022, arXiv:2203.05482 |
//! | `slerp` | along the great circle between two tensors, seen as vectors | Shoemake 1985 |
//! | `ties` | `b + scale * mean of those t_i that agree with the elected sign`, each trimmed to its largest share `density` | Yadav et al. 2023, arXiv:2306.01708, algorithm 1 |
//! | `dare` | `b + scale * sum w_i m t_i / density`, `m` keeps an element with probability `density` | Yu et al. 2024, arXiv:2311.03099, section 3.2 |
//!
//! Weights are divided by their sum. TIES is applied tensor by tensor (the paper trims over the whole model), its sign
//! is that of the weighted sum, its mean is weighted. DARE's draws depend on (seed, model, tensor, element) only. Sums are
//! in `f64`, the result has the first model's storage type.

use std::str::FromStr;

use pt_core::rng::Stream;
use pt_engine::{Storage, Weight};
use pt_models::Model;
use rayon::prelude::*;

use crate::error::{ExportError, Result};

/// Above this cosine two vectors are taken as parallel, where the great circle is a straight line.
const PARALLEL: f64 = 0.9995;
/// Words of one counter of a random stream.
const WORDS: usize = 4;

/// How models are fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseMethod {
    /// The weighted mean.
    Linear,
    /// Between two models along the great circle.
    Slerp,
    /// Task vectors, trimmed, signs elected, averaged where they agree.
    Ties,
    /// Task vectors, elements dropped at random, the rest enlarged.
    Dare,
}

impl FuseMethod {
    /// All with their names.
    pub const ALL: [(&'static str, FuseMethod); 4] = [
        ("linear", FuseMethod::Linear),
        ("slerp", FuseMethod::Slerp),
        ("ties", FuseMethod::Ties),
        ("dare", FuseMethod::Dare),
    ];

    /// Whether the method reads an option: `base`, `density`, `scale` or `seed`.
    pub fn reads(self, option: &str) -> bool {
        match option {
            "base" | "density" | "scale" => self.needs_base(),
            "seed" => self == FuseMethod::Dare,
            _ => true,
        }
    }

    fn needs_base(self) -> bool {
        matches!(self, FuseMethod::Ties | FuseMethod::Dare)
    }
}

impl FromStr for FuseMethod {
    type Err = ExportError;

    fn from_str(name: &str) -> Result<FuseMethod> {
        let names: Vec<&str> = FuseMethod::ALL.iter().map(|(name, _)| *name).collect();
        FuseMethod::ALL.iter().find(|(known, _)| *known == name).map(|(_, method)| *method).ok_or_else(|| {
            ExportError::Option {
                option: "method",
                found: name.to_owned(),
                expected: format!("one of {}", names.join(", ")),
            }
        })
    }
}

/// The options of all methods.
#[derive(Clone, Debug, PartialEq)]
pub struct FuseOptions {
    /// The method.
    pub method: FuseMethod,
    /// One per model; none means equal ones.
    pub weights: Vec<f64>,
    /// Share of a task vector that TIES and DARE keep.
    pub density: f64,
    /// On the fused task vector.
    pub scale: f64,
    /// Of DARE's draws.
    pub seed: u64,
}

impl Default for FuseOptions {
    fn default() -> Self {
        FuseOptions { method: FuseMethod::Linear, weights: Vec::new(), density: 0.5, scale: 1.0, seed: 0 }
    }
}

impl FuseOptions {
    /// Weights that sum to 1.
    ///
    /// # Errors
    /// [`ExportError::Option`]: options that cannot be right for `n_models`, with or without a base.
    pub fn checked(&self, n_models: usize, has_base: bool) -> Result<Vec<f64>> {
        let bad = |option, found: String, expected: &str| {
            Err(ExportError::Option { option, found, expected: expected.to_owned() })
        };
        if n_models < 2 && !self.method.needs_base() {
            return bad("models", n_models.to_string(), "two or more");
        }
        if self.method == FuseMethod::Slerp && n_models != 2 {
            return bad("models", n_models.to_string(), "two for slerp, which goes from one to the other");
        }
        if self.method.needs_base() && !has_base {
            return bad("base", "absent".to_owned(), "the model that all came from, for ties and dare");
        }
        if !(self.density > 0.0 && self.density <= 1.0) {
            return bad("density", self.density.to_string(), "above 0, at most 1");
        }
        if !self.scale.is_finite() {
            return bad("scale", self.scale.to_string(), "a finite number");
        }
        let weights = if self.weights.is_empty() { vec![1.0; n_models] } else { self.weights.clone() };
        if weights.len() != n_models {
            return bad(
                "weights",
                format!("{} numbers", weights.len()),
                &format!("{n_models}, one per model"),
            );
        }
        let sum: f64 = weights.iter().sum();
        if weights.iter().any(|w| !w.is_finite()) || sum.abs() < 1e-9 {
            return bad("weights", format!("{weights:?}"), "finite numbers whose sum is not 0");
        }
        if self.method == FuseMethod::Slerp && weights.iter().any(|w| *w < 0.0) {
            return bad("weights", format!("{weights:?}"), "none below 0 for slerp");
        }
        Ok(weights.into_iter().map(|w| w / sum).collect())
    }
}

/// Fuses models; the result lies in the first one's place and is returned.
///
/// # Errors
/// [`ExportError::Mismatch`] where architectures or shapes differ, an adapter is attached or weights are quantised;
/// [`ExportError::Option`].
pub fn fuse(mut models: Vec<Model>, base: Option<&Model>, options: &FuseOptions) -> Result<Model> {
    let weights = options.checked(models.len(), base.is_some())?;
    check_alike(&models, base)?;
    let (first, others) = models.split_first_mut().expect("there is at least one model");
    for (id, param) in first.params.iter_mut() {
        let own = param.weight.to_f32();
        let theirs: Vec<Vec<f32>> = others.iter().map(|m| m.params.get(id).weight.to_f32()).collect();
        let base = base.map(|base| base.params.get(id).weight.to_f32());
        let tensors: Vec<&[f32]> =
            std::iter::once(own.as_slice()).chain(theirs.iter().map(Vec::as_slice)).collect();
        let fused = fuse_tensor(&param.name, &tensors, base.as_deref(), &weights, options);
        param.set_weight(match param.weight.storage() {
            Storage::Bf16 => Weight::bf16_from_f32(&fused),
            _ => Weight::from_f32(&fused),
        });
    }
    Ok(models.swap_remove(0))
}

fn check_alike(models: &[Model], base: Option<&Model>) -> Result<()> {
    let mismatch = |problem: String| Err(ExportError::Mismatch { problem });
    let first = &models[0];
    let shapes = |m: &Model| -> Vec<(String, Vec<usize>)> {
        m.params.iter().map(|(_, p)| (p.name.clone(), p.shape.clone())).collect()
    };
    let expected = shapes(first);
    let named = models.iter().enumerate().map(|(i, m)| (format!("model {}", i + 1), m));
    for (name, model) in named.chain(base.map(|base| ("the base".to_owned(), base))) {
        if model.adapter().is_some() {
            return mismatch(format!("{name} has an adapter; merge it first"));
        }
        if let Some((_, param)) = model.params.iter().find(|(_, p)| p.weight.is_quantised()) {
            return mismatch(format!(
                "`{}` of {name} is stored as {}",
                param.name,
                param.weight.dtype_name()
            ));
        }
        if model.config.class_name != first.config.class_name {
            let (a, b) = (&model.config.class_name, &first.config.class_name);
            return mismatch(format!("{name} is a {a}, model 1 a {b}"));
        }
        let found = shapes(model);
        if let Some((a, b)) = found.iter().zip(&expected).find(|(a, b)| a != b) {
            return mismatch(format!("`{}` of {name} is {:?}; `{}` of model 1 is {:?}", a.0, a.1, b.0, b.1));
        }
        if found.len() != expected.len() {
            return mismatch(format!("{name} has {} tensors, model 1 {}", found.len(), expected.len()));
        }
    }
    Ok(())
}

/// One tensor; `weights` sum to 1.
fn fuse_tensor(
    name: &str,
    tensors: &[&[f32]],
    base: Option<&[f32]>,
    weights: &[f64],
    options: &FuseOptions,
) -> Vec<f32> {
    let n = tensors[0].len();
    match options.method {
        FuseMethod::Linear => map(n, |i| sum(tensors, weights, |x| f64::from(x[i]))),
        FuseMethod::Slerp => {
            let (a, b) = slerp_factors(tensors[0], tensors[1], weights[1]);
            map(n, |i| a * f64::from(tensors[0][i]) + b * f64::from(tensors[1][i]))
        }
        FuseMethod::Ties => {
            let base = base.expect("checked");
            let task = |x: &[f32], i: usize| f64::from(x[i]) - f64::from(base[i]);
            let least: Vec<f64> = tensors
                .par_iter()
                .map(|x| smallest_kept((0..n).map(|i| task(x, i).abs()).collect(), options.density))
                .collect();
            map(n, |i| {
                let kept = |(x, least): (&&[f32], &f64)| {
                    let t = task(x, i);
                    if t.abs() >= *least { t } else { 0.0 }
                };
                let tasks: Vec<f64> = tensors.iter().zip(&least).map(kept).collect();
                let elected: f64 = tasks.iter().zip(weights).map(|(t, w)| t * w).sum();
                let agreeing = || tasks.iter().zip(weights).filter(|(t, w)| **t * **w * elected > 0.0);
                let total: f64 = agreeing().map(|(_, w)| w.abs()).sum();
                let mean = agreeing().map(|(t, w)| t * w).sum::<f64>() / total.max(f64::MIN_POSITIVE);
                f64::from(base[i]) + options.scale * mean
            })
        }
        FuseMethod::Dare => {
            let base = base.expect("checked");
            let streams: Vec<Stream> =
                (0..tensors.len()).map(|m| Stream::new(options.seed, &format!("dare {m} {name}"))).collect();
            let kept = |stream: &Stream, i: usize| {
                let word = stream.words((i / WORDS) as u64, 0)[i % WORDS];
                f64::from(word) < options.density * 2f64.powi(32)
            };
            map(n, |i| {
                let b = f64::from(base[i]);
                let one = |((x, w), stream): ((&&[f32], &f64), &Stream)| {
                    if kept(stream, i) { w * (f64::from(x[i]) - b) / options.density } else { 0.0 }
                };
                let task: f64 = tensors.iter().zip(weights).zip(&streams).map(one).sum();
                b + options.scale * task
            })
        }
    }
}

fn map(n: usize, value: impl Fn(usize) -> f64 + Sync) -> Vec<f32> {
    (0..n).into_par_iter().map(|i| value(i) as f32).collect()
}

fn sum<'a>(tensors: &[&'a [f32]], weights: &[f64], value: impl Fn(&'a [f32]) -> f64) -> f64 {
    tensors.iter().zip(weights).map(|(x, w)| w * value(x)).sum()
}

/// The factors of both ends at share `t` of the way.
fn slerp_factors(a: &[f32], b: &[f32], t: f64) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    let cosine = if norms > 0.0 { dot(a, b) / norms } else { 1.0 };
    if cosine.abs() > PARALLEL {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
}

/// The least size among the largest `density` of all (at least one is kept).
fn smallest_kept(mut sizes: Vec<f64>, density: f64) -> f64 {
    let n_kept = ((sizes.len() as f64 * density) as usize).clamp(1, sizes.len().max(1));
    if sizes.is_empty() || n_kept == sizes.len() {
        return 0.0;
    }
    let at = sizes.len() - n_kept;
    *sizes.select_nth_unstable_by(at, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use pt_core::testdata::workspace_root;
    use serde_json::Value;

    use super::*;

    /// Both are in `f64` until the last rounding.
    const TOLERANCE: f32 = 1e-6;

    fn list(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    #[test]
    fn tensors_fuse_as_written_in_torch() {
        let path = workspace_root().join("golden/fuse/fuse.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let base = list(&golden["base"]);
        let models: Vec<Vec<f32>> = golden["models"].as_array().unwrap().iter().map(list).collect();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 8);
        for case in cases {
            let n = case["weights"].as_array().unwrap().len();
            let options = FuseOptions {
                method: case["method"].as_str().unwrap().parse().unwrap(),
                weights: list(&case["weights"]).into_iter().map(f64::from).collect(),
                density: case["density"].as_f64().unwrap(),
                scale: case["scale"].as_f64().unwrap(),
                seed: 0,
            };
            let weights = options.checked(n, true).unwrap();
            let tensors: Vec<&[f32]> = models[..n].iter().map(Vec::as_slice).collect();
            let found = fuse_tensor("t", &tensors, Some(&base), &weights, &options);
            for (i, (a, b)) in found.iter().zip(list(&case["expected"])).enumerate() {
                assert!((a - b).abs() <= TOLERANCE, "{case}: element {i} is {a}, expected {b}");
            }
        }
    }

    #[test]
    fn dare_keeps_the_share_asked_for_and_the_mean() {
        let n = 40_000;
        let (base, x) = (vec![1.0f32; n], vec![3.0f32; n]);
        let options = FuseOptions { method: FuseMethod::Dare, density: 0.25, ..FuseOptions::default() };
        let run =
            |seed| fuse_tensor("t", &[&x], Some(&base), &[1.0], &FuseOptions { seed, ..options.clone() });
        let found = run(0);
        assert!(found.iter().all(|v| *v == 1.0 || *v == 9.0), "dropped, or enlarged four times");
        let share = found.iter().filter(|v| **v == 9.0).count() as f64 / n as f64;
        // Four deviations of a binomial share.
        assert!((share - 0.25).abs() < 4.0 * (0.25f64 * 0.75 / n as f64).sqrt(), "{share}");
        assert_eq!(found, run(0));
        assert_ne!(found, run(1));
    }

    #[test]
    fn wrong_options_are_named() {
        let check = |options: FuseOptions, n: usize, base: bool, part: &str| {
            let message = options.checked(n, base).unwrap_err().to_string();
            assert!(message.contains(part), "{message} should mention {part}");
        };
        let of = |method| FuseOptions { method, ..FuseOptions::default() };
        check(of(FuseMethod::Linear), 1, false, "two or more");
        check(of(FuseMethod::Slerp), 3, false, "two for slerp");
        check(of(FuseMethod::Ties), 2, false, "base");
        check(FuseOptions { density: 0.0, ..of(FuseMethod::Dare) }, 2, true, "density");
        check(FuseOptions { weights: vec![1.0, -1.0], ..FuseOptions::default() }, 2, false, "sum is not 0");
        check(FuseOptions { weights: vec![1.0], ..FuseOptions::default() }, 2, false, "one per model");
        check(FuseOptions { weights: vec![2.0, -1.0], ..of(FuseMethod::Slerp) }, 2, false, "below 0");
        let reads =
            |method: FuseMethod| ["base", "density", "scale", "seed", "weights"].map(|o| method.reads(o));
        assert_eq!(reads(FuseMethod::Slerp), [false, false, false, false, true]);
        assert_eq!(reads(FuseMethod::Ties), [true, true, true, false, true]);
        assert_eq!(reads(FuseMethod::Dare), [true; 5]);
        assert!("dares".parse::<FuseMethod>().unwrap_err().to_string().contains("ties"));
    }
}
