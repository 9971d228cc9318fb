//! Newton–Schulz iteration: the nearest (semi-)orthogonal matrix, approximately.
//!
//! With X = G / ‖G‖ (Frobenius), five times `X ← a X + (b A + c A²) X` where `A = X Xᵀ`. The
//! coefficients make singular values approach 1 quickly rather than exactly: they end in about
//! [0.7, 1.2]. Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"
//! (kellerjordan.github.io/posts/muon). PyTorch iterates in `bf16`; here products are `f32`.

use pt_kernels::gemm::{Epilogue, Operand, Output, Part, Precision, Right, Values, gemm, pack_left};

/// a, b, c of the quintic.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Orthogonalises the row-major `[rows, cols]` matrix `x` in place; a norm below `eps` counts as `eps`.
pub(crate) fn orthogonalise(x: &mut Vec<f32>, rows: usize, cols: usize, steps: usize, eps: f64) {
    // The products are with the smaller Gram matrix; that of the transpose if the matrix is tall.
    let tall = rows > cols;
    if tall {
        *x = transpose(x, rows, cols);
    }
    let (n, k) = (rows.min(cols), rows.max(cols));
    let norm = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt().max(eps);
    x.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    let [a, b, c] = COEFFICIENTS;
    let (mut gram, mut square, mut next) = (vec![0.0; n * n], vec![0.0; n * n], vec![0.0; n * k]);
    for _ in 0..steps {
        product(x, x, Axis::Shared, [n, k, n], &mut gram);
        product(&gram, &gram, Axis::Rows, [n, n, n], &mut square);
        gram.iter_mut().zip(&square).for_each(|(g, s)| *g = b * *g + c * s);
        product(&gram, x, Axis::Rows, [n, n, k], &mut next);
        x.iter_mut().zip(&next).for_each(|(x, y)| *x = a * *x + y);
    }
    if tall {
        *x = transpose(x, cols, rows);
    }
}

/// Which axis of the right operand is summed over.
enum Axis {
    /// Its columns: `A Bᵀ`.
    Shared,
    /// Its rows: `A B`.
    Rows,
}

/// `out[m, n] = a[m, k] b`.
fn product(a: &[f32], b: &[f32], axis: Axis, [m, k, n]: [usize; 3], out: &mut [f32]) {
    let left = pack_left(&Operand::k_inner(Values::F32(a), k), m, k, Precision::F32);
    let right = match axis {
        Axis::Shared => Operand::k_inner(Values::F32(b), k),
        Axis::Rows => Operand::k_outer(Values::F32(b), n),
    };
    let part = Part { a: &left, b: Right::Operand(right) };
    gemm(m, n, &[part], Output::F32(out, n), Epilogue::default(), Precision::F32);
}

fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for row in 0..rows {
        for col in 0..cols {
            out[col * rows + row] = x[row * cols + col];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The iteration in f64 with plain loops, always on `X Xᵀ`.
    fn slow(x: &[f32], rows: usize, cols: usize) -> Vec<f64> {
        let norm = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let mut x: Vec<f64> = x.iter().map(|&v| f64::from(v) / norm).collect();
        let [a, b, c] = COEFFICIENTS.map(f64::from);
        for _ in 0..5 {
            let mut gram = vec![0.0; rows * rows];
            for (i, j, l) in triples(rows, rows, cols) {
                gram[i * rows + j] += x[i * cols + l] * x[j * cols + l];
            }
            let mut poly: Vec<f64> = gram.iter().map(|g| b * g).collect();
            for (i, j, l) in triples(rows, rows, rows) {
                poly[i * rows + j] += c * gram[i * rows + l] * gram[l * rows + j];
            }
            let mut next: Vec<f64> = x.iter().map(|v| a * v).collect();
            for (i, j, l) in triples(rows, cols, rows) {
                next[i * cols + j] += poly[i * rows + l] * x[l * cols + j];
            }
            x = next;
        }
        x
    }

    fn triples(m: usize, n: usize, k: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..m * n * k).map(move |i| (i / (n * k), i / k % n, i % k))
    }

    #[test]
    fn equals_the_plain_iteration_for_wide_tall_and_degenerate_matrices() {
        for (rows, cols) in [(1, 1), (1, 7), (7, 1), (12, 20), (33, 17), (16, 16)] {
            let mut draws = pt_core::rng::Stream::new(1, "ns").at(rows as u64);
            let x: Vec<f32> = (0..rows * cols).map(|_| draws.normal() as f32).collect();
            let mut ours = x.clone();
            orthogonalise(&mut ours, rows, cols, 5, 1e-7);
            for (a, b) in ours.iter().zip(slow(&x, rows, cols)) {
                // Five quintic steps in f32 amplify rounding of small singular values by up to a^5 = 485.
                assert!((f64::from(*a) - b).abs() < 2e-4, "{rows}x{cols}: {a} against {b}");
            }
        }
        let mut zeros = vec![0.0; 6];
        orthogonalise(&mut zeros, 2, 3, 5, 1e-7);
        assert_eq!(zeros, [0.0; 6]);
    }
}
