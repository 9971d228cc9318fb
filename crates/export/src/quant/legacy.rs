//! Blocks of 32 with one scale each: `Q4_0`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! The scale of the symmetric types takes the value of largest size to the end of the range that has one step more, so
//! its sign is that of `-value`. Codes of values `i` and `i + 16` share a byte.

use super::{f16_at, put_f16};

const HALF: usize = 16;

/// The value of largest size, the first of equals.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |best, &v| if v.abs() > best.abs() { v } else { best })
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `x * by + offset` cut to a whole number. In `f64`, where the product is exact: the reference leaves to the compiler
/// whether the product is rounded, and this is the result where it is not.
fn code(x: f32, by: f32, offset: f64, largest: u8) -> u8 {
    let code = f64::from(x) * f64::from(by) + offset;
    (code as u8).min(largest)
}

pub(super) fn pack_q4_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x) / -8.0;
    let by = inverse(d);
    put_f16(out, 0, d);
    for i in 0..HALF {
        out[2 + i] = code(x[i], by, 8.5, 15) | code(x[HALF + i], by, 8.5, 15) << 4;
    }
}

pub(super) fn unpack_q4_0(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    for i in 0..HALF {
        let pair = bytes[2 + i];
        out[i] = (f32::from(pair & 15) - 8.0) * d;
        out[HALF + i] = (f32::from(pair >> 4) - 8.0) * d;
    }
}

/// Low four bits in bytes, the fifth bits of all 32 codes in one word before them.
fn put_five_bits(codes: [u8; 32], out: &mut [u8]) {
    let (high, low) = out.split_at_mut(4);
    let mut word = 0u32;
    for i in 0..HALF {
        low[i] = (codes[i] & 15) | (codes[HALF + i] & 15) << 4;
        word |= u32::from(codes[i] >> 4) << i | u32::from(codes[HALF + i] >> 4) << (HALF + i);
    }
    high.copy_from_slice(&word.to_le_bytes());
}

fn five_bits(bytes: &[u8]) -> [u8; 32] {
    let word = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    std::array::from_fn(|i| {
        let pair = bytes[4 + i % HALF];
        let low = if i < HALF { pair & 15 } else { pair >> 4 };
        low | ((word >> i & 1) as u8) << 4
    })
}

pub(super) fn pack_q5_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x) / -16.0;
    let by = inverse(d);
    put_f16(out, 0, d);
    put_five_bits(std::array::from_fn(|i| code(x[i], by, 16.5, 31)), &mut out[2..]);
}

pub(super) fn unpack_q5_0(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    out.iter_mut().zip(five_bits(&bytes[2..])).for_each(|(x, q)| *x = (f32::from(q) - 16.0) * d);
}

pub(super) fn pack_q5_1(x: &[f32], out: &mut [u8]) {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (high - low) / 31.0;
    let by = inverse(d);
    put_f16(out, 0, d);
    put_f16(out, 2, low);
    put_five_bits(std::array::from_fn(|i| (((x[i] - low) * by + 0.5) as u8).min(31)), &mut out[4..]);
}

pub(super) fn unpack_q5_1(bytes: &[u8], out: &mut [f32]) {
    let (d, low) = (f16_at(bytes, 0), f16_at(bytes, 2));
    out.iter_mut().zip(five_bits(&bytes[4..])).for_each(|(x, q)| *x = f32::from(q) * d + low);
}

pub(super) fn pack_q8_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x).abs() / 127.0;
    let by = inverse(d);
    put_f16(out, 0, d);
    // Halves go away from zero.
    out[2..].iter_mut().zip(x).for_each(|(q, v)| *q = (v * by).round() as i8 as u8);
}

pub(super) fn unpack_q8_0(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    out.iter_mut().zip(&bytes[2..]).for_each(|(x, q)| *x = f32::from(*q as i8) * d);
}
