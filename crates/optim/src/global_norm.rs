//! The Euclidean norm of all gradients together, and clipping by it.

use crate::OptimError;
use pt_engine::{Array, Kernel};
use rayon::prelude::*;

/// Elements per partial sum.
const CHUNK: usize = 1 << 15;
/// Independent running sums within a chunk.
const LANES: usize = 16;

/// The norm of the gradients of all parameters, given with their names, on one device.
///
/// Squares are added up in `f64` and in one order: partial sums of fixed chunks, first to last, parameter by parameter. The
/// result depends on the order of the parameters, never on threads. One number for each parameter leaves the device.
///
/// # Errors
/// [`OptimError::NonFiniteGradient`] names the first parameter with a bad element, and the element.
pub fn global_norm(grads: &[(&str, &Array)]) -> Result<f64, OptimError> {
    let Some((_, first)) = grads.first() else { return Ok(0.0) };
    let mut kernel = SumsOfSquares { grads, sums: Vec::with_capacity(grads.len()) };
    first.device().run(&mut kernel);
    // Squares of finite f32 cannot overflow an f64 sum, so this is exact.
    match grads.iter().zip(&kernel.sums).find(|(_, sum)| !sum.is_finite()) {
        None => Ok(kernel.sums.iter().fold(0.0, |sum, part| sum + part).sqrt()),
        Some(((param, grad), _)) => {
            let values = grad.to_f32();
            let index = values.iter().position(|g| !g.is_finite()).unwrap_or(0);
            Err(OptimError::NonFiniteGradient { param: (*param).to_owned(), index, value: values[index] })
        }
    }
}

/// The sum of squares of each gradient.
struct SumsOfSquares<'a> {
    grads: &'a [(&'a str, &'a Array)],
    sums: Vec<f64>,
}

impl Kernel for SumsOfSquares<'_> {
    fn name(&self) -> &'static str {
        "sums_of_squares"
    }

    fn cpu(&mut self) {
        self.sums.extend(self.grads.iter().map(|(_, grad)| {
            let partials: Vec<f64> = grad.open().f32s().par_chunks(CHUNK).map(sum_of_squares).collect();
            partials.iter().sum::<f64>()
        }));
    }
}

pt_kernels::kernel! {
    fn sum_of_squares(['a] grad: &'a [f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (rows, rest) = grad.as_chunks::<LANES>();
        for row in rows {
            for (lane, &g) in lanes.iter_mut().zip(row) {
                let g = f64::from(g);
                *lane += g * g;
            }
        }
        for (lane, &g) in lanes.iter_mut().zip(rest) {
            let g = f64::from(g);
            *lane += g * g;
        }
        lanes.iter().sum()
    }
}

/// What gradients of norm `norm` are multiplied by so that it becomes at most `max_norm`:
/// `min(1, max_norm / (norm + 1e-6))`, as `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    (max_norm / (norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    fn normals(n: usize) -> Vec<f32> {
        let mut draws = Stream::new(1, "norm").at(n as u64);
        (0..n).map(|_| draws.normal() as f32).collect()
    }

    #[test]
    fn equals_the_plain_sum_for_every_length() {
        for n in [0, 1, 15, 16, 17, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            let grad = normals(n);
            let norm = global_norm(&[("w", &Array::from_f32(&grad))]).unwrap();
            let expected: f64 = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            assert!((norm - expected.sqrt()).abs() <= 1e-12 * expected.sqrt(), "{n}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let grad = Array::from_f32(&normals(200_001));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| global_norm(&[("w", &grad), ("v", &grad)])).unwrap().to_bits()
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn a_bad_gradient_names_its_parameter() {
        let mut grad = normals(CHUNK + 100);
        let good = Array::from_f32(&grad);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            grad[CHUNK + 5] = bad;
            let grads = [("layers.0.k", &good), ("layers.0.q", &Array::from_f32(&grad))];
            let error = global_norm(&grads).unwrap_err();
            assert!(error.to_string().contains("`layers.0.q`"), "{error}");
            assert!(matches!(error, OptimError::NonFiniteGradient { index, .. } if index == CHUNK + 5));
        }
        let huge = Array::from_f32(&[f32::MAX; 100]);
        assert!(global_norm(&[("w", &huge)]).is_ok(), "large but finite");
    }

    #[test]
    fn clipping_is_pytorchs() {
        for (norm, max_norm, expected) in [(0.5, 1.0, 1.0), (4.0, 1.0, 1.0 / 4.000_001), (0.0, 1.0, 1.0)] {
            assert_eq!(clip_factor(norm, max_norm), expected as f32);
        }
    }
}
