//! Leading singular vectors of a matrix, by subspace iteration.
//!
//! Source: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1: a random block, multiplied by
//! `W^T W` a few times with orthonormalisation in between, spans the leading directions; the small matrix that is
//! left is diagonalised by Jacobi rotations. Products with `W` are `f32`, everything else is `f64`. Deterministic: the
//! block comes from a named random stream and every sum has a fixed order.

use pt_core::rng::Stream;
use pt_kernels::gemm::{Epilogue, Operand, Output, Part, Precision, Right, Values, gemm, pack_left};

/// Extra directions carried along, which decide how fast the wanted ones converge.
const OVERSAMPLING: usize = 10;
/// Multiplications by `W^T W`. Directions `k` past the block shrink by `(sigma_k / sigma_r)^2` each time.
const ITERATIONS: usize = 12;
/// Rotations stop when no off-diagonal element is larger than this share of the largest diagonal one.
const JACOBI_TOLERANCE: f64 = 1e-14;
/// Sweeps of rotations; quadratic convergence needs far fewer.
const MAX_SWEEPS: usize = 60;

/// The first `rank` singular triples, in descending order; vectors are rows.
pub(super) struct Svd {
    pub(super) sigma: Vec<f64>,
    /// `[rank, rows]`.
    pub(super) u: Vec<f64>,
    /// `[rank, cols]`.
    pub(super) v: Vec<f64>,
}

/// Singular triples of the row-major `[rows, cols]` matrix `w`, `rank` of them.
pub(super) fn leading(w: &[f32], rows: usize, cols: usize, rank: usize, stream: &Stream) -> Svd {
    assert!(rank <= rows.min(cols), "rank {rank} of a [{rows}, {cols}] matrix");
    let width = (rank + OVERSAMPLING).min(rows).min(cols);
    let mut q: Vec<f64> = (0..width as u64)
        .flat_map(|k| {
            let mut draws = stream.at(k);
            (0..cols).map(move |_| draws.normal())
        })
        .collect();
    orthonormalise(&mut q, cols);
    for _ in 0..ITERATIONS {
        let mut y = times_transposed(&q, w, rows, cols);
        orthonormalise(&mut y, rows);
        q = times(&y, w, rows, cols);
        orthonormalise(&mut q, cols);
    }
    // W q^T has the same leading singular values; its Gram matrix is small.
    let y = times_transposed(&q, w, rows, cols);
    let gram: Vec<f64> =
        (0..width * width).map(|i| dot(row(&y, i / width, rows), row(&y, i % width, rows))).collect();
    let (values, vectors) = symmetric_eigen(gram, width);
    let mut svd = Svd { sigma: Vec::new(), u: Vec::new(), v: Vec::new() };
    for (value, vector) in values.iter().zip(&vectors).take(rank) {
        let sigma = value.max(0.0).sqrt();
        let left = combine(vector, &y, rows);
        svd.sigma.push(sigma);
        svd.u.extend(left.iter().map(|x| if sigma > 0.0 { x / sigma } else { 0.0 }));
        svd.v.extend(combine(vector, &q, cols));
    }
    svd
}

fn row(matrix: &[f64], index: usize, len: usize) -> &[f64] {
    &matrix[index * len..(index + 1) * len]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn combine(weights: &[f64], rows: &[f64], len: usize) -> Vec<f64> {
    let mut sum = vec![0.0; len];
    for (weight, row) in weights.iter().zip(rows.chunks_exact(len)) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
    }
    sum
}

/// `q W^T`: `[width, rows]` from `[width, cols]`.
fn times_transposed(q: &[f64], w: &[f32], rows: usize, cols: usize) -> Vec<f64> {
    product(q, cols, Operand::k_inner(Values::F32(w), cols), rows)
}

/// `y W`: `[width, cols]` from `[width, rows]`.
fn times(y: &[f64], w: &[f32], rows: usize, cols: usize) -> Vec<f64> {
    product(y, rows, Operand::k_outer(Values::F32(w), cols), cols)
}

/// Rows of length `k` times a matrix with `n` columns.
fn product(left: &[f64], k: usize, right: Operand<'_>, n: usize) -> Vec<f64> {
    let (left, width): (Vec<f32>, usize) = (left.iter().map(|x| *x as f32).collect(), left.len() / k);
    let left = pack_left(&Operand::k_inner(Values::F32(&left), k), width, k, Precision::F32);
    let mut out = vec![0.0f32; width * n];
    let part = Part { a: &left, b: Right::Operand(right) };
    gemm(width, n, &[part], Output::F32(&mut out, n), Epilogue::default(), Precision::F32);
    out.into_iter().map(f64::from).collect()
}

/// Gram-Schmidt on rows, each pass made twice so that rounding does not leave them skewed. A row that is a
/// combination of those before becomes zero.
fn orthonormalise(rows: &mut [f64], len: usize) {
    for k in 0..rows.len() / len {
        let (done, rest) = rows.split_at_mut(k * len);
        let current = &mut rest[..len];
        let before = dot(current, current).sqrt();
        for _ in 0..2 {
            for other in done.chunks_exact(len) {
                let share = dot(other, current);
                current.iter_mut().zip(other).for_each(|(x, o)| *x -= share * o);
            }
        }
        let norm = dot(current, current).sqrt();
        let inverse = if norm > before * 1e-12 && norm > 0.0 { 1.0 / norm } else { 0.0 };
        current.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// Eigenvalues in descending order, with their vectors, by cyclic Jacobi rotations (Golub and Van Loan, section 8.5).
fn symmetric_eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut v: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    for _ in 0..MAX_SWEEPS {
        let largest = (0..n).map(|i| a[i * n + i].abs()).fold(0.0, f64::max);
        let is_left = |x: f64| x.abs() > JACOBI_TOLERANCE * largest;
        if !(0..n).any(|p| (p + 1..n).any(|q| is_left(a[p * n + q]))) {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]).then(i.cmp(&j)));
    let vectors = order.iter().map(|&k| (0..n).map(|i| v[i * n + k]).collect()).collect();
    (order.iter().map(|&k| a[k * n + k]).collect(), vectors)
}

/// Makes element `(p, q)` zero.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let apq = a[p * n + q];
    if apq == 0.0 {
        return;
    }
    let tau = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
    let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let c = 1.0 / (1.0 + t * t).sqrt();
    let s = t * c;
    let turn = |x: &mut f64, y: &mut f64| (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    for k in 0..n {
        let (mut x, mut y) = (a[k * n + p], a[k * n + q]);
        turn(&mut x, &mut y);
        (a[k * n + p], a[k * n + q]) = (x, y);
        let (mut x, mut y) = (v[k * n + p], v[k * n + q]);
        turn(&mut x, &mut y);
        (v[k * n + p], v[k * n + q]) = (x, y);
    }
    for k in 0..n {
        let (mut x, mut y) = (a[p * n + k], a[q * n + k]);
        turn(&mut x, &mut y);
        (a[p * n + k], a[q * n + k]) = (x, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Products with the matrix are `f32`: relative to the largest singular value, 1e-7 times a sum of dozens.
    const TOLERANCE: f64 = 1e-5;

    /// A matrix with known singular values: `sum_k sigma_k u_k v_k^T`.
    fn known(rows: usize, cols: usize, sigma: &[f64]) -> Vec<f32> {
        let basis = |len: usize, seed: u64| {
            let mut draws = Stream::new(seed, "svd test").at(0);
            let mut rows: Vec<f64> = (0..sigma.len() * len).map(|_| draws.normal()).collect();
            orthonormalise(&mut rows, len);
            rows
        };
        let (u, v) = (basis(rows, 1), basis(cols, 2));
        let value = |i: usize| {
            let sum: f64 =
                (0..sigma.len()).map(|k| sigma[k] * u[k * rows + i / cols] * v[k * cols + i % cols]).sum();
            sum as f32
        };
        (0..rows * cols).map(value).collect()
    }

    #[test]
    fn known_singular_values_and_their_vectors_are_found() {
        let sigma: Vec<f64> = (0..20).map(|k| 10.0 * 0.8f64.powi(k)).collect();
        for (rows, cols) in [(40, 24), (24, 40)] {
            let w = known(rows, cols, &sigma);
            let svd = leading(&w, rows, cols, 6, &Stream::new(0, "block"));
            for k in 0..6 {
                assert!(
                    (svd.sigma[k] - sigma[k]).abs() < TOLERANCE * sigma[0],
                    "{k}: {} and {}",
                    svd.sigma[k],
                    sigma[k]
                );
                for l in 0..6 {
                    let same = f64::from(u8::from(k == l));
                    assert!((dot(row(&svd.u, k, rows), row(&svd.u, l, rows)) - same).abs() < TOLERANCE);
                    assert!((dot(row(&svd.v, k, cols), row(&svd.v, l, cols)) - same).abs() < 1e-9);
                }
                // W v = sigma u.
                let wv = times_transposed(row(&svd.v, k, cols), &w, rows, cols);
                let gap = wv.iter().zip(row(&svd.u, k, rows)).map(|(x, u)| (x - svd.sigma[k] * u).abs());
                assert!(gap.fold(0.0, f64::max) < TOLERANCE * sigma[0]);
            }
        }
    }

    #[test]
    fn a_matrix_of_lower_rank_gives_zeros() {
        let svd = leading(&known(12, 9, &[3.0, 1.0]), 12, 9, 4, &Stream::new(0, "block"));
        assert!((svd.sigma[0] - 3.0).abs() < 1e-5 && svd.sigma[2] < 1e-5, "{:?}", svd.sigma);
        assert!(svd.u.iter().chain(&svd.v).all(|x| x.is_finite()));
        let zero = leading(&[0.0; 12], 3, 4, 2, &Stream::new(0, "block"));
        assert_eq!(zero.sigma, [0.0, 0.0]);
    }
}
