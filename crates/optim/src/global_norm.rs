//! The Euclidean norm of all gradients together, and clipping by it.

use crate::OptimError;
use rayon::prelude::*;

/// Elements per partial sum.
const CHUNK: usize = 1 << 15;
/// Independent running sums within a chunk.
const LANES: usize = 16;

/// Adds up squares parameter by parameter, in `f64` and in one order: partial sums of fixed chunks,
/// added first to last. The result depends on the order of the parameters, never on threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GlobalNorm {
    sum: f64,
}

impl GlobalNorm {
    /// Adds the gradient of `param`.
    ///
    /// # Errors
    /// [`OptimError::NonFiniteGradient`] names the parameter and the first bad element.
    pub fn add(&mut self, param: &str, grad: &[f32]) -> Result<(), OptimError> {
        let partials: Vec<f64> = grad.par_chunks(CHUNK).map(sum_of_squares).collect();
        let sum: f64 = partials.iter().sum();
        // Squares of finite f32 cannot overflow an f64 sum, so this is exact.
        if !sum.is_finite() {
            let index = grad.iter().position(|g| !g.is_finite()).unwrap_or(0);
            return Err(OptimError::NonFiniteGradient { param: param.to_owned(), index, value: grad[index] });
        }
        self.sum += sum;
        Ok(())
    }

    /// The norm of everything added.
    pub fn norm(&self) -> f64 {
        self.sum.sqrt()
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
            let mut norm = GlobalNorm::default();
            norm.add("w", &grad).unwrap();
            let expected: f64 = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            assert!((norm.norm() - expected.sqrt()).abs() <= 1e-12 * expected.sqrt(), "{n}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let grad = normals(200_001);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut norm = GlobalNorm::default();
            pool.install(|| norm.add("w", &grad)).unwrap();
            norm.norm().to_bits()
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn a_bad_gradient_names_its_parameter() {
        let mut grad = normals(CHUNK + 100);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            grad[CHUNK + 5] = bad;
            let error = GlobalNorm::default().add("layers.0.q", &grad).unwrap_err();
            assert!(error.to_string().contains("`layers.0.q`"), "{error}");
            assert!(matches!(error, OptimError::NonFiniteGradient { index, .. } if index == CHUNK + 5));
        }
        let huge = vec![f32::MAX; 100];
        assert!(GlobalNorm::default().add("w", &huge).is_ok(), "large but finite");
    }

    #[test]
    fn clipping_is_pytorchs() {
        for (norm, max_norm, expected) in [(0.5, 1.0, 1.0), (4.0, 1.0, 1.0 / 4.000_001), (0.0, 1.0, 1.0)] {
            assert_eq!(clip_factor(norm, max_norm), expected as f32);
        }
    }
}
