//! Matrix products against `f64`, on every instruction set (a binary of its own: the limit is process-wide).

use half::bf16;
use pt_core::rng::Stream;

use pt_kernels::elem::Elem;
use pt_kernels::gemm::*;
use pt_kernels::isa::{self, Isa};

/// Values that a bf16 holds exactly, so that both precisions multiply the same numbers.
fn matrix(name: &str, rows: usize, cols: usize) -> Vec<f32> {
    let stream = Stream::new(11, name);
    (0..rows * cols).map(|i| Elem::get(<bf16 as Elem>::put(stream.at(i as u64).normal() as f32))).collect()
}

fn to_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|v| Elem::put(*v)).collect()
}

fn reference(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k).map(|l| f64::from(a(i, l)) * f64::from(b(l, j))).sum();
        }
    }
    c
}

/// f32 sums of up to 200 products of unit normals: error about sqrt(k) * 2^-24 * |terms|, with room to spare.
const SUM_TOLERANCE: f64 = 2e-5;

fn assert_close(ours: &[f32], truth: &[f64], what: &str) {
    let scale = truth.iter().fold(0.0f64, |s, t| s.max(t.abs())).max(1.0);
    for (i, (o, t)) in ours.iter().zip(truth).enumerate() {
        assert!(
            (f64::from(*o) - t).abs() <= SUM_TOLERANCE * scale,
            "{what}: element {i} is {o}, expected {t}"
        );
    }
}

const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 5, 7), (14, 32, 64), (15, 33, 65), (1, 100, 128), (61, 70, 33), (40, 17, 200)];

fn check_layouts(precision: Precision) {
    for (m, n, k) in SHAPES {
        for a_axis in [KAxis::Inner, KAxis::Outer] {
            for b_axis in [KAxis::Inner, KAxis::Outer] {
                let (a, b) = (matrix("a", m, k), matrix("b", n, k));
                let ld = |axis, outer| if axis == KAxis::Inner { k } else { outer };
                let at = |axis, ld: usize, outer: usize, l: usize| {
                    if axis == KAxis::Inner { outer * ld + l } else { l * ld + outer }
                };
                let truth = reference(
                    m,
                    n,
                    k,
                    |i, l| a[at(a_axis, ld(a_axis, m), i, l)],
                    |l, j| b[at(b_axis, ld(b_axis, n), j, l)],
                );
                let (a16, b16) = (to_bf16(&a), to_bf16(&b));
                for (av, bv) in [
                    (Values::F32(&a), Values::F32(&b)),
                    (Values::Bf16(&a16), Values::Bf16(&b16)),
                    (Values::Bf16(&a16), Values::F32(&b)),
                ] {
                    let a_op = Operand { values: av, ld: ld(a_axis, m), k_axis: a_axis };
                    let b_op = Operand { values: bv, ld: ld(b_axis, n), k_axis: b_axis };
                    let packed = pack_left(&a_op, m, k, precision);
                    let mut c = vec![0.0; m * n];
                    let part = Part { a: &packed, b: Right::Operand(b_op) };
                    gemm(m, n, &[part], Output::F32(&mut c, n), Epilogue::default(), precision);
                    assert_close(&c, &truth, &format!("{precision:?} {m}x{n}x{k} {a_axis:?} {b_axis:?}"));
                    let b_packed = pack_right(&b_op, n, k, precision);
                    let mut again = vec![0.0; m * n];
                    let part = Part { a: &packed, b: Right::Packed(&b_packed) };
                    gemm(m, n, &[part], Output::F32(&mut again, n), Epilogue::default(), precision);
                    assert_eq!(c, again, "packing before changes nothing");
                }
            }
        }
    }
}

/// One test walks the instruction sets, since the limit is process-wide.
#[test]
fn every_layout_shape_and_instruction_set_agrees_with_f64() {
    for isa in Isa::ALL {
        isa::limit(Some(isa));
        check_layouts(Precision::F32);
        check_layouts(Precision::Bf16);
        rows_do_not_depend_on_company(Precision::F32);
        rows_do_not_depend_on_company(Precision::Bf16);
        accumulation_continues_the_chain(Precision::F32);
        accumulation_continues_the_chain(Precision::Bf16);
        epilogues_add_what_they_say();
    }
    isa::limit(None);
}

/// A sum of two products: weights in `bf16`, read where they lie when rows are few and packed when they are many, and an
/// adapter in `f32`, always packed.
fn rows_do_not_depend_on_company(precision: Precision) {
    let (m, n, k, rank) = (80, 100, 130, 6);
    let (a, b) = (to_bf16(&matrix("a", m, k)), to_bf16(&matrix("b", n, k)));
    let (h, lora) = (matrix("h", m, rank), matrix("lora", n, rank));
    let product = |rows: std::ops::Range<usize>, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let left = |values, ld| pack_left(&Operand::k_inner(values, ld), rows.len(), ld, precision);
            let (x, h) = (
                left(Values::Bf16(&a[rows.start * k..]), k),
                left(Values::F32(&h[rows.start * rank..]), rank),
            );
            let mut c = vec![0.0; rows.len() * n];
            let parts = [
                Part { a: &x, b: Right::Operand(Operand::k_inner(Values::Bf16(&b), k)) },
                Part { a: &h, b: Right::Operand(Operand::k_inner(Values::F32(&lora), rank)) },
            ];
            gemm(rows.len(), n, &parts, Output::F32(&mut c, n), Epilogue::default(), precision);
            c
        })
    };
    let whole = product(0..m, 2);
    assert_eq!(whole, product(0..m, 1), "thread count changes nothing");
    for row in 0..m {
        assert_eq!(whole[row * n..(row + 1) * n], product(row..row + 1, 2), "row {row} alone");
    }
    for rows in [5..8, 5..13, 5..21, 5..23, 3..60, 16..80] {
        assert_eq!(whole[rows.start * n..rows.end * n], product(rows.clone(), 2), "rows {rows:?}");
    }
}

fn accumulation_continues_the_chain(precision: Precision) {
    let (m, n, k) = (30, 40, 64);
    let (a, b) = (matrix("a", k, m), matrix("b", k, n));
    let run = |cuts: &[usize]| {
        let mut c = vec![0.0; m * n];
        for window in cuts.windows(2) {
            let (from, len) = (window[0], window[1] - window[0]);
            let packed = pack_left(&Operand::k_outer(Values::F32(&a[from * m..]), m), m, len, precision);
            let part =
                Part { a: &packed, b: Right::Operand(Operand::k_outer(Values::F32(&b[from * n..]), n)) };
            gemm(
                m,
                n,
                &[part],
                Output::F32(&mut c, n),
                Epilogue { accumulate: true, ..Default::default() },
                precision,
            );
        }
        c
    };
    let whole = run(&[0, k]);
    assert_eq!(whole, run(&[0, 10, 24, 64]), "even cuts of the reduction change nothing");
    if precision == Precision::F32 {
        assert_eq!(whole, run(&[0, 1, 8, 33, 64]), "in f32 any cut changes nothing");
    }
}

fn epilogues_add_what_they_say() {
    let (m, n, k, r) = (20, 50, 24, 4);
    let (x, w) = (matrix("x", m, k), matrix("w", n, k));
    let (xa, lora) = (matrix("xa", m, r), matrix("lora", n, r));
    let (bias, residual) = (matrix("bias", 1, n), matrix("residual", m, n));
    let truth: Vec<f64> = (0..m * n)
        .map(|at| {
            let (i, j) = (at / n, at % n);
            let base: f64 = (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l])).sum();
            let update: f64 = (0..r).map(|l| f64::from(xa[i * r + l]) * f64::from(lora[j * r + l])).sum();
            0.5 * (base + update) + f64::from(bias[j]) + f64::from(residual[at])
        })
        .collect();
    let precision = Precision::F32;
    let left = pack_left(&Operand::k_inner(Values::F32(&x), k), m, k, precision);
    let left_lora = pack_left(&Operand::k_inner(Values::F32(&xa), r), m, r, precision);
    let parts = [
        Part { a: &left, b: Right::Operand(Operand::k_inner(Values::F32(&w), k)) },
        Part { a: &left_lora, b: Right::Operand(Operand::k_inner(Values::F32(&lora), r)) },
    ];
    let epilogue = Epilogue {
        accumulate: false,
        bias: Some(&bias),
        residual: Some(Residual::F32(&residual, n)),
        scale: Some(0.5),
        col_scale: None,
    };
    let mut c = vec![f32::NAN; m * n];
    gemm(m, n, &parts, Output::F32(&mut c, n), epilogue, precision);
    assert_close(&c, &truth, "epilogue");
    let mut c16 = vec![bf16::NAN; m * n];
    gemm(m, n, &parts, Output::Bf16(&mut c16, n), epilogue, precision);
    assert_eq!(c16, to_bf16(&c), "a bf16 output is the rounded f32 one");
}
