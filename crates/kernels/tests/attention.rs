//! Attention against its definition in `f64`, on every instruction set, and the promises about bits
//! (a binary of its own: the limit on instruction sets is process-wide).

use std::ops::Range;

use half::bf16;
use pt_core::rng::Stream;
use pt_kernels::attention::{self, AttentionShape, Columns, Rows, RowsMut, Span, reference};
use pt_kernels::elem::Elem;
use pt_kernels::isa::{self, Isa};

/// Largest error in `f32`, relative to the largest value: sums of up to 300 terms, and exponentials of
/// scores with error 2^-24 times their size.
const F32_TOLERANCE: f64 = 1e-5;
/// The same in `bf16`: probabilities, their gradients, inputs and outputs carry 8 bits each (2^-9 = 2e-3).
const BF16_TOLERANCE: f64 = 2e-2;

/// Where gradients cancel to 0 what is left is the rounding of terms of this order, not of the sum.
const SMALLEST_SIZE: f64 = 1.0;

/// `(length, parent)`; a segment's rows follow those of the segment before it.
type Tree = Vec<(usize, Option<usize>)>;

/// Owned spans of a batch of trees.
#[derive(Clone)]
struct Layout {
    spans: Vec<(usize, usize, Vec<u32>)>,
    groups: Vec<Range<usize>>,
    rows: usize,
}

impl Layout {
    fn new(trees: &[Tree]) -> Layout {
        let (mut spans, mut groups, mut row) = (Vec::<(usize, usize, Vec<u32>)>::new(), Vec::new(), 0);
        for tree in trees {
            let first = spans.len();
            for &(len, parent) in tree {
                let mut context = parent.map_or(Vec::new(), |parent| spans[first + parent].2.clone());
                context.extend(row as u32..(row + len) as u32);
                spans.push((row, len, context));
                row += len;
            }
            groups.push(first..spans.len());
        }
        Layout { spans, groups, rows: row }
    }

    fn spans(&self) -> Vec<Span<'_>> {
        self.spans
            .iter()
            .map(|(q_row, q_len, context)| Span { q_row: *q_row, q_len: *q_len, context })
            .collect()
    }
}

/// Activations of one type.
#[derive(Clone, PartialEq, Debug)]
enum Matrix {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Matrix {
    fn new(half: bool, values: &[f32]) -> Matrix {
        if half {
            Matrix::Bf16(values.iter().map(|v| Elem::put(*v)).collect())
        } else {
            Matrix::F32(values.to_vec())
        }
    }

    fn random(half: bool, name: &str, len: usize) -> Matrix {
        let stream = Stream::new(5, name);
        Matrix::new(half, &(0..len).map(|i| stream.at(i as u64).normal() as f32).collect::<Vec<_>>())
    }

    fn rows(&self, col: usize, ld: usize) -> Rows<'_> {
        match self {
            Matrix::F32(v) => Rows::F32(&v[col..], ld),
            Matrix::Bf16(v) => Rows::Bf16(&v[col..], ld),
        }
    }

    fn rows_mut(&mut self, ld: usize) -> RowsMut<'_> {
        match self {
            Matrix::F32(v) => RowsMut::F32(v, ld),
            Matrix::Bf16(v) => RowsMut::Bf16(v, ld),
        }
    }

    /// Row `row` of `width` columns, as numbers.
    fn row(&self, row: usize, width: usize) -> Vec<f32> {
        match self {
            Matrix::F32(v) => v[row * width..][..width].to_vec(),
            Matrix::Bf16(v) => v[row * width..][..width].iter().map(|v| v.get()).collect(),
        }
    }

    /// The rows listed, in that order.
    fn select(&self, rows: &[usize], width: usize) -> Matrix {
        match self {
            Matrix::F32(v) => {
                Matrix::F32(rows.iter().flat_map(|r| &v[r * width..][..width]).copied().collect())
            }
            Matrix::Bf16(v) => {
                Matrix::Bf16(rows.iter().flat_map(|r| &v[r * width..][..width]).copied().collect())
            }
        }
    }
}

fn widths(shape: &AttentionShape) -> (usize, Columns) {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    (q + 2 * kv, Columns { q: 0, k: q, v: q + kv })
}

/// Outputs and log-sum-exps for queries, keys and values in one matrix.
fn forward(shape: &AttentionShape, qkv: &Matrix, spans: &[Span<'_>], q_rows: usize) -> (Matrix, Vec<f32>) {
    let (ld, columns) = widths(shape);
    let width = shape.heads * shape.head_dim;
    let half = matches!(qkv, Matrix::Bf16(_));
    let mut out = Matrix::new(half, &vec![f32::NAN; q_rows * width]);
    let mut lse = vec![f32::NAN; q_rows * shape.heads];
    let [q, k, v] = [columns.q, columns.k, columns.v].map(|col| qkv.rows(col, ld));
    attention::forward(shape, q, k, v, spans, out.rows_mut(width), &mut lse);
    (out, lse)
}

/// The gradient of all three, in one matrix.
fn backward(shape: &AttentionShape, qkv: &Matrix, d_out: &Matrix, layout: &Layout) -> Matrix {
    let (ld, columns) = widths(shape);
    let width = shape.heads * shape.head_dim;
    let (out, lse) = forward(shape, qkv, &layout.spans(), layout.rows);
    let [q, k, v] = [columns.q, columns.k, columns.v].map(|col| qkv.rows(col, ld));
    let half = matches!(qkv, Matrix::Bf16(_));
    let mut d_qkv = Matrix::new(half, &vec![f32::NAN; layout.rows * ld]);
    attention::backward(
        shape,
        q,
        k,
        v,
        out.rows(0, width),
        &lse,
        d_out.rows(0, width),
        &layout.spans(),
        &layout.groups,
        d_qkv.rows_mut(ld),
        columns,
    );
    d_qkv
}

fn assert_close(what: &str, tolerance: f64, ours: impl Fn(usize, usize) -> f64, truth: &[f64], width: usize) {
    let size = truth.iter().fold(0.0f64, |m, t| m.max(t.abs())).max(SMALLEST_SIZE);
    for (at, t) in truth.iter().enumerate() {
        let o = ours(at / width, at % width);
        let error = (o - t).abs() / size;
        assert!(
            error <= tolerance,
            "{what} row {} column {}: {o}, expected {t} ({error:.1e})",
            at / width,
            at % width
        );
    }
}

/// Compares one case with its definition on every instruction set.
fn check(shape: &AttentionShape, trees: &[Tree], half: bool) {
    let layout = Layout::new(trees);
    let (ld, columns) = widths(shape);
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let qkv = Matrix::random(half, "qkv", layout.rows * ld);
    let d_out = Matrix::random(half, "d_out", layout.rows * width);
    let [q, k, v] = [columns.q, columns.k, columns.v].map(|col| qkv.rows(col, ld));
    let truth = reference::forward(shape, q, k, v, &layout.spans(), layout.rows);
    let slope = reference::backward(shape, q, k, v, d_out.rows(0, width), &layout.spans(), layout.rows);

    let tolerance = if half { BF16_TOLERANCE } else { F32_TOLERANCE };
    for isa in isas() {
        isa::limit(Some(isa));
        let what = format!("{isa:?} {} {shape:?} {trees:?}", if half { "bf16" } else { "f32" });
        let (out, lse) = forward(shape, &qkv, &layout.spans(), layout.rows);
        assert_close(
            &format!("out {what}"),
            tolerance,
            |r, c| out.rows(0, width).at(r, c),
            &truth.out,
            width,
        );
        let lse_at = |r: usize, c: usize| f64::from(lse[r * shape.heads + c]);
        assert_close(&format!("lse {what}"), F32_TOLERANCE, lse_at, &truth.lse, shape.heads);
        let ours = backward(shape, &qkv, &d_out, &layout);
        for (name, truth, col, width) in [
            ("dq", &slope.dq, columns.q, width),
            ("dk", &slope.dk, columns.k, kv_width),
            ("dv", &slope.dv, columns.v, kv_width),
        ] {
            assert_close(
                &format!("{name} {what}"),
                tolerance,
                |r, c| ours.rows(col, ld).at(r, c),
                truth,
                width,
            );
        }
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| *isa <= isa::best())
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
        window: None,
        softcap: None,
    }
}

fn cases() -> Vec<(AttentionShape, Vec<Tree>)> {
    let plain = |lens: &[usize]| lens.iter().map(|len| vec![(*len, None)]).collect::<Vec<Tree>>();
    let pair: Tree = vec![(37, None), (50, Some(0)), (1, Some(0))];
    let deep: Tree = vec![(70, None), (3, Some(0)), (65, Some(0)), (10, Some(1)), (64, Some(3))];
    let mut cases = vec![
        (shape(1, 1, 16), plain(&[1])),
        (shape(3, 1, 64), plain(&[64, 1, 65])),
        (shape(6, 2, 64), vec![pair.clone(), deep.clone()]),
        (shape(2, 2, 24), vec![pair.clone()]),
        (shape(4, 1, 80), plain(&[90])),
        (shape(2, 1, 96), vec![deep.clone()]),
        (shape(1, 1, 256), plain(&[70])),
        (shape(9, 1, 17), plain(&[40])),
    ];
    for window in [1, 2, 30, 64, 100] {
        cases.push((
            AttentionShape { window: Some(window), ..shape(2, 1, 32) },
            vec![deep.clone(), vec![(150, None)]],
        ));
    }
    // Scores beyond the cap, and large scores without one.
    cases.push((AttentionShape { softcap: Some(2.0), scale: 0.5, ..shape(2, 1, 32) }, vec![deep.clone()]));
    cases.push((AttentionShape { softcap: Some(50.0), window: Some(40), ..shape(4, 2, 48) }, vec![pair]));
    cases.push((AttentionShape { scale: 1.0, ..shape(2, 1, 32) }, vec![deep]));
    cases
}

fn random_case(index: u64) -> (AttentionShape, Vec<Tree>) {
    let mut draws = Stream::new(9, "attention cases").at(index);
    let kv_heads = 1 + draws.below(2);
    let mut shape = shape(kv_heads * (1 + draws.below(4)), kv_heads, 16 + draws.below(40));
    shape.window = (draws.below(2) == 0).then(|| 1 + draws.below(150));
    shape.softcap = (draws.below(3) == 0).then(|| 5.0 + draws.below(30) as f32);
    let trees = (0..1 + draws.below(3))
        .map(|_| {
            (0..1 + draws.below(4))
                .map(|i| (1 + draws.below(90), if i == 0 { None } else { Some(draws.below(i)) }))
                .collect()
        })
        .collect();
    (shape, trees)
}

/// One test walks the instruction sets, since the limit is process-wide.
#[test]
fn attention_agrees_with_f64_and_does_not_depend_on_company() {
    for half in [false, true] {
        for (shape, trees) in cases().into_iter().chain((0..6).map(random_case)) {
            check(&shape, &trees, half);
        }
        for isa in isas() {
            isa::limit(Some(isa));
            for shape in bit_shapes() {
                decoding_equals_prefill(&shape, half);
                shared_prompt_equals_repeated(&shape, half);
                threads_and_rows_do_not_matter(&shape, half);
                groups_do_not_depend_on_others(&shape, half);
            }
        }
    }
    isa::limit(None);
}

fn bit_shapes() -> [AttentionShape; 4] {
    [
        shape(3, 1, 64),
        AttentionShape { window: Some(50), ..shape(4, 2, 24) },
        AttentionShape { softcap: Some(3.0), window: Some(130), ..shape(2, 1, 80) },
        AttentionShape { scale: 4.0, ..shape(5, 1, 16) },
    ]
}

fn decoding_equals_prefill(shape: &AttentionShape, half: bool) {
    let n = 200;
    let qkv = Matrix::random(half, "decode", n * widths(shape).0);
    let context: Vec<u32> = (0..n as u32).collect();
    let whole = forward(shape, &qkv, &[Span { q_row: 0, q_len: n, context: &context }], n);
    for cuts in [(0..=n).collect::<Vec<_>>(), vec![0, 3, 64, 65, 130, n], vec![0, 128, 199, n]] {
        let spans: Vec<Span<'_>> = cuts
            .windows(2)
            .map(|c| Span { q_row: c[0], q_len: c[1] - c[0], context: &context[..c[1]] })
            .collect();
        assert!(whole == forward(shape, &qkv, &spans, n), "{shape:?} in {} pieces", spans.len());
        // And pieces in calls of their own.
        let width = shape.heads * shape.head_dim;
        for span in spans.iter().step_by(spans.len().div_ceil(8)) {
            let (out, lse) = forward(shape, &qkv, &[*span], n);
            for row in span.q_row..span.q_row + span.q_len {
                assert_eq!(out.row(row, width), whole.0.row(row, width), "{shape:?} row {row} alone");
                let at = row * shape.heads..(row + 1) * shape.heads;
                assert_eq!(lse[at.clone()], whole.1[at]);
            }
        }
    }
}

fn shared_prompt_equals_repeated(shape: &AttentionShape, half: bool) {
    let (prompt, children) = (77, [30, 64, 1]);
    let mut tree: Tree = vec![(prompt, None)];
    tree.extend(children.map(|len| (len, Some(0))));
    let shared = Layout::new(&[tree]);
    let ld = widths(shape).0;
    let qkv = Matrix::random(half, "tree", shared.rows * ld);
    let (out, lse) = forward(shape, &qkv, &shared.spans(), shared.rows);
    let width = shape.heads * shape.head_dim;
    for (child, len) in children.into_iter().enumerate() {
        let rows: Vec<usize> = shared.spans[1 + child].2.iter().map(|row| *row as usize).collect();
        let alone = Layout::new(&[vec![(prompt + len, None)]]);
        let (alone_out, alone_lse) = forward(shape, &qkv.select(&rows, ld), &alone.spans(), alone.rows);
        assert!(alone_out == out.select(&rows, width), "{shape:?} child {child}");
        assert!(Matrix::F32(alone_lse) == Matrix::F32(lse.clone()).select(&rows, shape.heads));
    }
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

fn threads_and_rows_do_not_matter(shape: &AttentionShape, half: bool) {
    let (ld, columns) = widths(shape);
    let width = shape.heads * shape.head_dim;
    let layout = Layout::new(&[vec![(130, None), (70, Some(0)), (20, Some(0))], vec![(90, None)]]);
    let n = layout.rows;
    let qkv = Matrix::random(half, "threads", n * ld);
    let d_out = Matrix::random(half, "threads d_out", n * width);
    let one = on_threads(1, || forward(shape, &qkv, &layout.spans(), n));
    assert!(
        one == on_threads(2, || forward(shape, &qkv, &layout.spans(), n)),
        "{shape:?} forward on 2 threads"
    );
    let one_back = on_threads(1, || backward(shape, &qkv, &d_out, &layout));
    assert!(
        one_back == on_threads(2, || backward(shape, &qkv, &d_out, &layout)),
        "{shape:?} backward on 2 threads"
    );

    // Keys and values elsewhere: row r of the cache holds what row order[r] held.
    let mut order: Vec<usize> = (0..n).collect();
    Stream::new(3, "order").at(0).shuffle(&mut order);
    let cache = qkv.select(&order, ld);
    let mut place = vec![0; n];
    order.iter().enumerate().for_each(|(to, from)| place[*from] = to as u32);
    let mut moved = layout.clone();
    moved.spans.iter_mut().for_each(|span| span.2.iter_mut().for_each(|row| *row = place[*row as usize]));
    let mut out = Matrix::new(half, &vec![f32::NAN; n * width]);
    let mut lse = vec![f32::NAN; n * shape.heads];
    let (q, k, v) = (qkv.rows(columns.q, ld), cache.rows(columns.k, ld), cache.rows(columns.v, ld));
    attention::forward(shape, q, k, v, &moved.spans(), out.rows_mut(width), &mut lse);
    assert!(one == (out, lse), "{shape:?} scattered keys");
}

fn groups_do_not_depend_on_others(shape: &AttentionShape, half: bool) {
    let ld = widths(shape).0;
    let width = shape.heads * shape.head_dim;
    let trees: [Tree; 3] =
        [vec![(33, None)], vec![(100, None), (40, Some(0)), (70, Some(0))], vec![(65, None)]];
    let batch = Layout::new(&trees);
    let qkv = Matrix::random(half, "groups", batch.rows * ld);
    let d_out = Matrix::random(half, "groups d_out", batch.rows * width);
    let whole = backward(shape, &qkv, &d_out, &batch);
    let mut first = 0;
    for tree in trees {
        let alone = Layout::new(std::slice::from_ref(&tree));
        let rows: Vec<usize> = (first..first + alone.rows).collect();
        let ours = backward(shape, &qkv.select(&rows, ld), &d_out.select(&rows, width), &alone);
        assert!(ours == whole.select(&rows, ld), "{shape:?} {tree:?} alone");
        first += alone.rows;
    }
}

/// Rows in no context have no gradient, and nothing is left unwritten.
#[test]
fn rows_outside_all_spans_get_zero_gradients() {
    let shape = shape(2, 1, 32);
    let (ld, _) = widths(&shape);
    let mut layout = Layout::new(&[vec![(5, None)], vec![(7, None)]]);
    layout.spans.remove(0);
    layout.groups.pop();
    let qkv = Matrix::random(false, "outside", layout.rows * ld);
    let d_out = Matrix::random(false, "outside d_out", layout.rows * 64);
    let ours = backward(&shape, &qkv, &d_out, &layout);
    for row in 0..5 {
        assert!(ours.row(row, ld).iter().all(|v| v.to_bits() == 0), "row {row}");
    }
    assert!(ours.row(5, ld).iter().any(|v| *v != 0.0));
}

#[test]
#[should_panic(expected = "share key row 3")]
fn groups_that_share_a_key_are_refused() {
    let shape = shape(1, 1, 16);
    let mut layout = Layout::new(&[vec![(4, None)], vec![(3, None)]]);
    layout.spans[1].2.insert(0, 3);
    let qkv = Matrix::random(false, "refused", layout.rows * widths(&shape).0);
    backward(&shape, &qkv, &Matrix::random(false, "refused", layout.rows * 16), &layout);
}
