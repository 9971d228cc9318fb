//! Blocks of 256 whose parts have scales of their own: `Q4_K`, `Q5_K`, `Q6_K`.
//!
//! Each part is fitted by weighted least squares: candidates for the scale give codes, the codes give the best scale (and
//! minimum) in closed form, and the candidate of least weighted error wins. Then the parts' scales are themselves
//! quantised against the block's, and the codes taken anew.

use super::{K_BLOCK, f16_at, put_f16};

/// Values of a part of `Q4_K` and `Q5_K`.
const PART: usize = 32;
const N_PARTS: usize = K_BLOCK / PART;
/// Values of a part of `Q6_K`.
const PART6: usize = 16;
/// Below this a part is all zeros.
const TINY: f32 = 1e-15;

/// Candidates for the scale of a part: largest code plus `from + i * step`, over the part's range.
struct Search {
    max_code: u8,
    from: f32,
    step: f32,
    n_steps: usize,
}

const SEARCH4: Search = Search { max_code: 15, from: -1.0, step: 0.1, n_steps: 20 };
const SEARCH5: Search = Search { max_code: 31, from: -0.5, step: 0.1, n_steps: 15 };

fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// Scale and (negated, so never negative) minimum of a part: `x ~ scale * code - minimum`, weights `rms + |x|`.
fn fit_with_minimum(x: &[f32], search: &Search) -> (f32, f32) {
    let max_code = f32::from(search.max_code);
    let sum_x2: f32 = x.iter().map(|v| v * v).sum();
    let rms = (sum_x2 / PART as f32).sqrt();
    let mut weights = [0.0f32; PART];
    weights.iter_mut().zip(x).for_each(|(w, v)| *w = rms + v.abs());
    let (mut low, mut high, mut sum_w, mut sum_x) = (x[0], x[0], weights[0], weights[0] * x[0]);
    for (v, w) in x.iter().zip(&weights).skip(1) {
        (low, high) = (low.min(*v), high.max(*v));
        sum_w += w;
        sum_x += w * v;
    }
    low = low.min(0.0);
    if high == low {
        return (0.0, -low);
    }
    let code =
        |v: f32, by: f32, low: f32| nearest(by * (v - low)).clamp(0, i32::from(search.max_code)) as f32;
    let error = |codes: &[f32; PART], scale: f32, low: f32| -> f32 {
        let one = |((q, v), w): ((&f32, &f32), &f32)| {
            let diff = scale * q + low - v;
            w * (diff * diff)
        };
        codes.iter().zip(x).zip(&weights).map(one).fold(0.0, |sum, e| sum + e)
    };
    let by = max_code / (high - low);
    let mut codes = [0.0f32; PART];
    codes.iter_mut().zip(x).for_each(|(q, v)| *q = code(*v, by, low));
    let mut best_scale = 1.0 / by;
    let mut best_error = error(&codes, best_scale, low);
    for i in 0..=search.n_steps {
        let by = (search.from + search.step * i as f32 + max_code) / (high - low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((q, v), w) in codes.iter_mut().zip(x).zip(&weights) {
            *q = code(*v, by, low);
            sum_l += w * *q;
            sum_l2 += w * *q * *q;
            sum_xl += w * *q * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if minimum > 0.0 {
                (minimum, scale) = (0.0, sum_xl / sum_l2);
            }
            let this = error(&codes, scale, minimum);
            if this < best_error {
                // Later candidates start from the minimum found, as in the reference.
                (best_error, best_scale, low) = (this, scale, minimum);
            }
        }
    }
    (best_scale, -low)
}

/// The 6-bit scale and minimum of each part, packed into twelve bytes: the first four of each whole in the low six bits of
/// bytes 0-3 and 4-7; of the others low halves in bytes 8-11, upper two bits on top of the first eight bytes.
fn put_six_bits(scales: [u8; N_PARTS], minima: [u8; N_PARTS], out: &mut [u8]) {
    for j in 0..4 {
        out[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        out[j + 4] = minima[j] | (minima[j + 4] >> 4) << 6;
        out[j + 8] = (scales[j + 4] & 15) | (minima[j + 4] & 15) << 4;
    }
}

fn six_bits(bytes: &[u8], part: usize) -> (f32, f32) {
    let (scale, minimum) = match part {
        0..4 => (bytes[part] & 63, bytes[part + 4] & 63),
        _ => {
            let halves = bytes[part + 4];
            ((halves & 15) | (bytes[part - 4] >> 6) << 4, (halves >> 4) | (bytes[part] >> 6) << 4)
        }
    };
    (f32::from(scale), f32::from(minimum))
}

/// Fits all parts, writes the header of sixteen bytes, and gives the codes.
fn pack_header(x: &[f32], search: &Search, out: &mut [u8]) -> [u8; K_BLOCK] {
    let fits: [(f32, f32); N_PARTS] =
        std::array::from_fn(|j| fit_with_minimum(&x[j * PART..(j + 1) * PART], search));
    let max_scale = fits.iter().fold(0.0f32, |a, fit| a.max(fit.0));
    let max_minimum = fits.iter().fold(0.0f32, |a, fit| a.max(fit.1));
    let by = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (by_scale, by_minimum) = (by(max_scale), by(max_minimum));
    // A negative scale cannot be stored; the reference's conversion wraps and then caps it.
    let six = |by: f32, v: f32| (nearest(by * v) as u8).min(63);
    let scales = fits.map(|fit| six(by_scale, fit.0));
    let minima = fits.map(|fit| six(by_minimum, fit.1));
    let d = put_f16(out, 0, max_scale / 63.0);
    let m = put_f16(out, 2, max_minimum / 63.0);
    put_six_bits(scales, minima, &mut out[4..16]);
    let mut codes = [0u8; K_BLOCK];
    for (j, part) in x.chunks_exact(PART).enumerate() {
        let (scale, minimum) = (d * f32::from(scales[j]), m * f32::from(minima[j]));
        // With a scale of zero the code does not matter.
        if scale != 0.0 {
            for (q, v) in codes[j * PART..].iter_mut().zip(part) {
                *q = nearest((v + minimum) / scale).clamp(0, i32::from(search.max_code)) as u8;
            }
        }
    }
    codes
}

/// Low four bits of parts `2j` and `2j + 1` side by side.
fn put_nibbles(codes: &[u8; K_BLOCK], out: &mut [u8]) {
    for (pair, out) in codes.chunks_exact(2 * PART).zip(out.chunks_exact_mut(PART)) {
        for l in 0..PART {
            out[l] = (pair[l] & 15) | (pair[l + PART] & 15) << 4;
        }
    }
}

fn unpack_parts(bytes: &[u8], out: &mut [f32], code: impl Fn(usize, usize) -> u8) {
    let (d, m) = (f16_at(bytes, 0), f16_at(bytes, 2));
    for (j, part) in out.chunks_exact_mut(PART).enumerate() {
        let (scale, minimum) = six_bits(&bytes[4..16], j);
        let (scale, minimum) = (d * scale, m * minimum);
        part.iter_mut().enumerate().for_each(|(l, x)| *x = scale * f32::from(code(j, l)) - minimum);
    }
}

fn nibble(bytes: &[u8], part: usize, l: usize) -> u8 {
    let pair = bytes[part / 2 * PART + l];
    if part.is_multiple_of(2) { pair & 15 } else { pair >> 4 }
}

pub(super) fn pack_q4_k(x: &[f32], out: &mut [u8]) {
    let codes = pack_header(x, &SEARCH4, out);
    put_nibbles(&codes, &mut out[16..]);
}

pub(super) fn unpack_q4_k(bytes: &[u8], out: &mut [f32]) {
    unpack_parts(bytes, out, |part, l| nibble(&bytes[16..], part, l));
}

pub(super) fn pack_q5_k(x: &[f32], out: &mut [u8]) {
    let codes = pack_header(x, &SEARCH5, out);
    put_nibbles(&codes, &mut out[48..]);
    for (i, q) in codes.iter().enumerate() {
        out[16 + i % PART] |= (q >> 4) << (i / PART);
    }
}

pub(super) fn unpack_q5_k(bytes: &[u8], out: &mut [f32]) {
    let fifth = |part: usize, l: usize| (bytes[16 + l] >> part & 1) << 4;
    unpack_parts(bytes, out, |part, l| nibble(&bytes[48..], part, l) | fifth(part, l));
}

/// The scale of a part of `Q6_K`: `x ~ scale * code`, codes from -32 to 31, weights `x^2`.
fn fit_symmetric(x: &[f32]) -> f32 {
    const N: f32 = 32.0;
    let extreme = x.iter().fold(0.0f32, |best, &v| if v.abs() > best.abs() { v } else { best });
    if extreme.abs() < TINY {
        return 0.0;
    }
    let sums = |by: f32| {
        let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
        for v in x {
            let q = nearest(by * v).clamp(-32, 31) as f32;
            let w = v * v;
            sum_xl += w * v * q;
            sum_l2 += w * q * q;
        }
        (sum_xl, sum_l2)
    };
    let (sum_xl, sum_l2) = sums(-N / extreme);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut best = scale * sum_xl;
    for i in (-9..=9).filter(|i| *i != 0) {
        let (sum_xl, sum_l2) = sums(-(N + 0.1 * i as f32) / extreme);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
        }
    }
    scale
}

pub(super) fn pack_q6_k(x: &[f32], out: &mut [u8]) {
    out.fill(0);
    let fits: [f32; K_BLOCK / PART6] = std::array::from_fn(|j| fit_symmetric(&x[j * PART6..(j + 1) * PART6]));
    let extreme = fits.iter().fold(0.0f32, |best, &v| if v.abs() > best.abs() { v } else { best });
    if extreme.abs() < TINY {
        return;
    }
    let by = -128.0 / extreme;
    let d = put_f16(out, 208, 1.0 / by);
    let scales = fits.map(|fit| nearest(by * fit).min(127) as i8);
    // Where a scale rounds to zero, the values are zero whatever the code.
    let mut codes = [0u8; K_BLOCK];
    for (j, part) in x.chunks_exact(PART6).enumerate() {
        out[192 + j] = scales[j] as u8;
        let scale = d * f32::from(scales[j]);
        if scale != 0.0 {
            for (q, v) in codes[j * PART6..].iter_mut().zip(part) {
                *q = (nearest(v / scale).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    for (half, codes) in codes.chunks_exact(K_BLOCK / 2).enumerate() {
        for l in 0..32 {
            let q = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
            out[half * 64 + l] = (q[0] & 15) | (q[2] & 15) << 4;
            out[half * 64 + 32 + l] = (q[1] & 15) | (q[3] & 15) << 4;
            out[128 + half * 32 + l] = q[0] >> 4 | (q[1] >> 4) << 2 | (q[2] >> 4) << 4 | (q[3] >> 4) << 6;
        }
    }
}

pub(super) fn unpack_q6_k(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 208);
    for (i, x) in out.iter_mut().enumerate() {
        let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
        let pair = bytes[half * 64 + quarter % 2 * 32 + l];
        let low = if quarter < 2 { pair & 15 } else { pair >> 4 };
        let high = bytes[128 + half * 32 + l] >> (2 * quarter) & 3;
        let q = i32::from(low | high << 4) - 32;
        *x = d * f32::from(bytes[192 + i / PART6] as i8) * q as f32;
    }
}
