//! NF4: 4-bit weights, 16 levels per block, each block scaled by its largest magnitude.
//!
//! Source: Dettmers et al. 2023, "QLoRA" (arXiv:2305.14314), section 3 (4-bit NormalFloat, double
//! quantisation). Layout and arithmetic are bitsandbytes':
//!
//! - blocks run over the flattened row-major matrix and may straddle rows; the last may be short;
//! - `code = nearest level to x * (1 / absmax)` (in the short block `x / absmax`), ties to the lower;
//! - two codes per byte, the first element in the high nibble; an odd tensor ends in the code of 0;
//! - `value = level * absmax` in `f32`, rounded to nearest even where `bf16` is asked for;
//! - double quantisation stores `absmax - mean(absmax)` through the signed 8-bit map in blocks of 256.
//!
//! One difference: the mean is summed in `f64`, so the offset may differ from PyTorch's in its last bit.

use super::dynamic::{BLOCK as NESTED_BLOCK, DynamicMap, Quantised8, reciprocal};
use super::{QuantError, absmax, check_finite, check_length};
use crate::elem::Elem;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The 16 levels, ascending: quantiles of a normal distribution, scaled to `[-1, 1]`, with an exact 0.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Block sizes bitsandbytes accepts; 64 is its default.
pub const BLOCK_SIZES: &[usize] = &[32, 64, 128, 256, 512, 1024, 2048, 4096];

/// The block size of QLoRA.
pub const DEFAULT_BLOCK: usize = 64;

/// Values per unit of parallel work; a multiple of every block size.
const SPAN: usize = 1 << 16;

/// A matrix of NF4 codes with its scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4Matrix {
    rows: usize,
    cols: usize,
    block: usize,
    codes: Vec<u8>,
    scales: Scales,
}

/// The scale of every block: plain, or quantised once more.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// One `f32` per block.
    Plain(Vec<f32>),
    /// One byte per block: `scale = map[code] * nested_scale + offset`.
    Nested(Nested),
}

/// Double-quantised scales.
#[derive(Clone)]
pub struct Nested {
    /// A code per block, and a scale per 256 blocks.
    pub quantised: Quantised8,
    /// Added to every decoded scale: their mean.
    pub offset: f32,
    /// The codebook; bitsandbytes' signed dynamic map unless a file says otherwise.
    pub map: Arc<[f32; 256]>,
}

impl Nested {
    /// Quantises scales around `offset`.
    ///
    /// # Errors
    /// [`QuantError::NonFinite`].
    pub fn quantise(absmax: &[f32], offset: f32) -> Result<Nested, QuantError> {
        let map = DynamicMap::signed();
        let centred: Vec<f32> = absmax.iter().map(|a| a - offset).collect();
        Ok(Nested { quantised: map.quantise(&centred)?, offset, map: Arc::new(*map.values()) })
    }

    #[inline(always)]
    fn get(&self, block_idx: usize) -> f32 {
        let level = self.map[usize::from(self.quantised.codes[block_idx])];
        level * self.quantised.scales[block_idx / NESTED_BLOCK] + self.offset
    }
}

impl PartialEq for Nested {
    fn eq(&self, other: &Nested) -> bool {
        self.quantised == other.quantised && self.offset == other.offset && self.map == other.map
    }
}

impl std::fmt::Debug for Nested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nested({} blocks, offset {})", self.quantised.codes.len(), self.offset)
    }
}

impl Scales {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Scales::Plain(absmax) => absmax.len(),
            Scales::Nested(nested) => nested.quantised.codes.len(),
        }
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale of one block.
    #[inline(always)]
    pub fn get(&self, block_idx: usize) -> f32 {
        match self {
            Scales::Plain(absmax) => absmax[block_idx],
            Scales::Nested(nested) => nested.get(block_idx),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Scales::Plain(absmax) => 4 * absmax.len(),
            Scales::Nested(n) => n.quantised.codes.len() + 4 * n.quantised.scales.len() + 4 + 4 * 256,
        }
    }
}

impl Nf4Matrix {
    /// Quantises a row-major `[rows, cols]` matrix in blocks of `block`, with double quantisation
    /// of the scales if `double`.
    ///
    /// # Errors
    /// [`QuantError::Length`], [`QuantError::Block`], [`QuantError::NonFinite`].
    pub fn quantise(
        values: &[f32],
        rows: usize,
        cols: usize,
        block: usize,
        double: bool,
    ) -> Result<Nf4Matrix, QuantError> {
        check_length("the matrix to quantise", values.len(), rows * cols)?;
        check_block(block)?;
        check_finite(values)?;
        let mut codes = vec![0u8; values.len().div_ceil(2)];
        let mut absmax = vec![0.0f32; values.len().div_ceil(block)];
        (codes.par_chunks_mut(SPAN / 2), absmax.par_chunks_mut(SPAN / block), values.par_chunks(SPAN))
            .into_par_iter()
            .for_each(|(codes, absmax, values)| encode_span(values, block, absmax, codes));
        let scales = if double {
            let mean = absmax.iter().map(|&a| f64::from(a)).sum::<f64>() / absmax.len().max(1) as f64;
            Scales::Nested(Nested::quantise(&absmax, mean as f32)?)
        } else {
            Scales::Plain(absmax)
        };
        Ok(Nf4Matrix { rows, cols, block, codes, scales })
    }

    /// A matrix from its stored parts.
    ///
    /// # Errors
    /// [`QuantError::Length`] or [`QuantError::Block`] if the parts do not fit together,
    /// [`QuantError::NonFinite`] for a scale that is not finite.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        block: usize,
        codes: Vec<u8>,
        scales: Scales,
    ) -> Result<Nf4Matrix, QuantError> {
        check_block(block)?;
        check_length("the packed NF4 codes", codes.len(), (rows * cols).div_ceil(2))?;
        check_length("the NF4 block scales", scales.len(), (rows * cols).div_ceil(block))?;
        match &scales {
            Scales::Plain(absmax) => check_finite(absmax)?,
            Scales::Nested(n) => {
                let expected = scales.len().div_ceil(NESTED_BLOCK);
                check_length("the nested NF4 scales", n.quantised.scales.len(), expected)?;
                check_finite(&n.quantised.scales)?;
                check_finite(&n.map[..])?;
                check_finite(&[n.offset])?;
            }
        }
        Ok(Nf4Matrix { rows, cols, block, codes, scales })
    }

    /// Rows (output features).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (input features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements per scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Packed codes, two per byte, the first element in the high nibble.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The block scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    /// The whole matrix in `f32`, row-major.
    pub fn dequantise(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(SPAN).enumerate().for_each(|(i, out)| self.decode_span(i * SPAN, out));
        out
    }

    /// Columns `col0..col1` of row `row` in `f32`.
    ///
    /// # Panics
    /// If the range leaves the matrix or `out` is not `col1 - col0` long.
    pub fn decode_row_range(&self, row: usize, col0: usize, col1: usize, out: &mut [f32]) {
        assert_eq!(out.len(), col1 - col0, "output for columns {col0}..{col1}");
        self.decode_row(row, col0, out);
    }

    /// Columns `col0..col0 + out.len()` of row `row`, rounded to `bf16`.
    ///
    /// # Panics
    /// If the range leaves the matrix.
    pub fn decode_row_bf16(&self, row: usize, col0: usize, out: &mut [bf16]) {
        self.decode_row(row, col0, out);
    }

    fn decode_row<E: Nf4Elem>(&self, row: usize, col0: usize, out: &mut [E]) {
        let col1 = col0 + out.len();
        assert!(row < self.rows && col1 <= self.cols, "row {row}, columns {col0}..{col1}");
        self.decode_span(row * self.cols + col0, out);
    }

    /// Whole rows rounded to `bf16`.
    ///
    /// # Panics
    /// If the rows leave the matrix or `out` is not `rows.len() * cols` long.
    pub fn decode_rows_bf16(&self, rows: Range<usize>, out: &mut [bf16]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(out.len(), rows.len() * self.cols, "output for rows {rows:?}");
        self.decode_span(rows.start * self.cols, out);
    }

    /// Elements `start..start + out.len()` of the flattened matrix.
    fn decode_span<E: Nf4Elem>(&self, start: usize, out: &mut [E]) {
        match E::fast_decoder() {
            Some(decode) => decode(self, start, out),
            None => self.decode_span_slow(start, out),
        }
    }

    fn decode_span_slow<E: Elem>(&self, start: usize, out: &mut [E]) {
        self.for_each_piece(start, out, |scale, at, piece| {
            decode_slow(&LEVELS.map(|level| E::put(level * scale)), &self.codes, at, piece);
        });
    }

    /// Cuts a span at block boundaries: `f(scale, first element, outputs)`.
    #[inline(always)]
    fn for_each_piece<E>(&self, start: usize, out: &mut [E], mut f: impl FnMut(f32, usize, &mut [E])) {
        let (mut at, mut rest) = (start, out);
        let shift = self.block.trailing_zeros();
        while !rest.is_empty() {
            let block_idx = at >> shift;
            let (piece, tail) = rest.split_at_mut(rest.len().min(((block_idx + 1) << shift) - at));
            f(self.scales.get(block_idx), at, piece);
            at += piece.len();
            rest = tail;
        }
    }
}

fn check_block(block: usize) -> Result<(), QuantError> {
    if BLOCK_SIZES.contains(&block) {
        return Ok(());
    }
    Err(QuantError::Block { found: block, expected: BLOCK_SIZES })
}

crate::kernel! {
    /// Encodes whole blocks (the last may be short) of a span that starts at a block.
    fn encode_span(['a] values: &'a [f32], block: usize, scales: &'a mut [f32], codes: &'a mut [u8]) {
        for (i, values) in values.chunks(block).enumerate() {
            let largest = absmax(values);
            let codes = &mut codes[i * block / 2..][..values.len().div_ceil(2)];
            if values.len() == block {
                let inverse = reciprocal(largest);
                scales[i] = largest;
                encode_pairs(values, codes, |x| x * inverse);
            } else {
                let largest = largest.max(1e-38);
                scales[i] = largest;
                encode_pairs(values, codes, |x| x / largest);
            }
        }
    }
}

/// Values encoded at once, so that the comparisons run over lanes.
const GROUP: usize = 32;

#[inline(always)]
fn encode_pairs(values: &[f32], codes: &mut [u8], scale: impl Fn(f32) -> f32) {
    for (values, codes) in values.chunks(GROUP).zip(codes.chunks_mut(GROUP / 2)) {
        let mut scaled = [0.0; GROUP];
        for (scaled, &x) in scaled.iter_mut().zip(values) {
            *scaled = scale(x);
        }
        let levels = nearest_levels(&scaled);
        for (code, pair) in codes.iter_mut().zip(levels.as_chunks::<2>().0) {
            *code = (pair[0] << 4 | pair[1]) as u8;
        }
    }
}

/// The codes of the levels nearest to `x`: how many midpoints lie below. A missing value is 0 and gets
/// the code of 0, 7.
#[inline(always)]
fn nearest_levels(x: &[f32; GROUP]) -> [u32; GROUP] {
    let mut codes = [0; GROUP];
    for pair in LEVELS.windows(2) {
        let midpoint = (pair[0] + pair[1]) / 2.0;
        for (code, &x) in codes.iter_mut().zip(x) {
            // Not `+=`: its overflow check in debug builds would keep the loop from vectorising.
            *code = u32::wrapping_add(*code, u32::from(x > midpoint));
        }
    }
    codes
}

/// An element NF4 decodes to.
pub trait Nf4Elem: Elem {
    /// A faster decoder of this machine, if it has one.
    fn fast_decoder() -> Option<Decoder<Self>>;
}

/// Decodes elements `start..start + out.len()` of the flattened matrix.
pub type Decoder<E> = fn(matrix: &Nf4Matrix, start: usize, out: &mut [E]);

impl Nf4Elem for f32 {
    fn fast_decoder() -> Option<Decoder<f32>> {
        #[cfg(target_arch = "x86_64")]
        if crate::isa::current() >= crate::isa::Isa::Avx512 {
            return Some(x86::decode_f32);
        }
        None
    }
}

impl Nf4Elem for bf16 {
    fn fast_decoder() -> Option<Decoder<bf16>> {
        #[cfg(target_arch = "x86_64")]
        if crate::isa::current() >= crate::isa::Isa::Avx512 {
            return Some(x86::decode_bf16);
        }
        None
    }
}

/// Elements `start..` of `codes`, one table look-up each.
fn decode_slow<E: Elem>(table: &[E; 16], codes: &[u8], start: usize, out: &mut [E]) {
    let odd = start % 2;
    if let (1, Some(first)) = (odd, out.first_mut()) {
        *first = table[usize::from(codes[start / 2] & 15)];
    }
    let skip = odd.min(out.len());
    let out = &mut out[skip..];
    let codes = &codes[(start + odd) / 2..];
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (pair, &byte) in pairs.iter_mut().zip(codes) {
        *pair = [table[usize::from(byte >> 4)], table[usize::from(byte & 15)]];
    }
    if let [only] = last {
        *only = table[usize::from(codes[pairs.len()] >> 4)];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The same look-up, a register of codes at a time.

    use super::{Elem, LEVELS, Nf4Matrix, bf16, decode_slow};
    use std::arch::x86_64::*;

    pub(super) fn decode_f32(matrix: &Nf4Matrix, start: usize, out: &mut [f32]) {
        // SAFETY: handed out only where `isa::current` reports AVX-512 F, BW, DQ and VL.
        unsafe { decode_f32_avx512(matrix, start, out) }
    }

    pub(super) fn decode_bf16(matrix: &Nf4Matrix, start: usize, out: &mut [bf16]) {
        // SAFETY: as above.
        unsafe { decode_bf16_avx512(matrix, start, out) }
    }

    /// `LEVELS * scale` in one register.
    #[target_feature(enable = "avx512f")]
    fn scaled_levels(scale: f32) -> __m512 {
        // SAFETY: the array is 64 readable bytes.
        let levels = unsafe { _mm512_loadu_ps(LEVELS.as_ptr()) };
        _mm512_mul_ps(levels, _mm512_set1_ps(scale))
    }

    /// Eight bytes widen to eight 64-bit lanes; the high nibble moves to the lower half of its lane
    /// and the low nibble to the upper, which makes sixteen 32-bit indices in element order.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn decode_f32_avx512(matrix: &Nf4Matrix, start: usize, out: &mut [f32]) {
        let low = _mm512_set1_epi64(15);
        matrix.for_each_piece(start, out, |scale, at, piece| {
            let whole_bytes = at % 2 == 0;
            let (whole, rest) = if whole_bytes { piece.as_chunks_mut::<16>() } else { (&mut [][..], piece) };
            let done = 16 * whole.len();
            let levels = scaled_levels(scale);
            for (out, octet) in whole.iter_mut().zip(matrix.codes[at / 2..].as_chunks::<8>().0) {
                let wide = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*octet)));
                let index = _mm512_or_si512(
                    _mm512_srli_epi64::<4>(wide),
                    _mm512_slli_epi64::<32>(_mm512_and_si512(wide, low)),
                );
                // SAFETY: the chunk is 64 writable bytes.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(index, levels)) };
            }
            if !rest.is_empty() {
                decode_slow(&LEVELS.map(|level| level * scale), &matrix.codes, at + done, rest);
            }
        });
    }

    /// As above with sixteen bytes, 32-bit lanes and thirty-two 16-bit indices. Scales are finite, so
    /// rounding to nearest even needs no care for NaN.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn decode_bf16_avx512(matrix: &Nf4Matrix, start: usize, out: &mut [bf16]) {
        let (low, half, one) = (_mm512_set1_epi32(15), _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(1));
        matrix.for_each_piece(start, out, |scale, at, piece| {
            let whole_bytes = at % 2 == 0;
            let (whole, rest) = if whole_bytes { piece.as_chunks_mut::<32>() } else { (&mut [][..], piece) };
            let done = 32 * whole.len();
            let bits = _mm512_castps_si512(scaled_levels(scale));
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), one);
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_add_epi32(bits, half), odd));
            let levels = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(rounded));
            for (out, group) in whole.iter_mut().zip(matrix.codes[at / 2..].as_chunks::<16>().0) {
                // SAFETY: the group is 16 readable bytes.
                let wide = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(group.as_ptr().cast()) });
                let index = _mm512_or_si512(
                    _mm512_srli_epi32::<4>(wide),
                    _mm512_slli_epi32::<16>(_mm512_and_si512(wide, low)),
                );
                let values = _mm512_permutexvar_epi16(index, levels);
                // SAFETY: the chunk is 64 writable bytes (bf16 is a transparent u16).
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), values) };
            }
            if !rest.is_empty() {
                decode_slow(&LEVELS.map(|level| Elem::put(level * scale)), &matrix.codes, at + done, rest);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    fn normals(n: usize, seed: u64) -> Vec<f32> {
        let mut draws = Stream::new(seed, "nf4").at(0);
        (0..n).map(|_| draws.normal() as f32 * 0.02).collect()
    }

    const SHAPES: [(usize, usize); 7] = [(1, 1), (1, 63), (3, 43), (5, 64), (7, 65), (64, 129), (300, 512)];

    /// The codes from the definition, in f64.
    fn nearest_slow(x: f64) -> Vec<u8> {
        let distances = LEVELS.map(|l| (f64::from(l) - x).abs());
        let best = distances.iter().copied().fold(f64::INFINITY, f64::min);
        // Within f32 rounding of a midpoint either neighbour is right.
        (0..16).filter(|&c| distances[usize::from(c)] <= best + 2e-7).collect()
    }

    fn code_of(q: &Nf4Matrix, at: usize) -> u8 {
        if at.is_multiple_of(2) { q.codes()[at / 2] >> 4 } else { q.codes()[at / 2] & 15 }
    }

    #[test]
    fn codes_are_nearest_and_errors_bounded() {
        for (rows, cols) in SHAPES {
            for block in [32, 64, 4096] {
                let values = normals(rows * cols, 1);
                let q = Nf4Matrix::quantise(&values, rows, cols, block, false).unwrap();
                let back = q.dequantise();
                for (i, (&x, &y)) in values.iter().zip(&back).enumerate() {
                    let scale = q.scales().get(i / block);
                    assert!(nearest_slow(f64::from(x) / f64::from(scale)).contains(&code_of(&q, i)), "{i}");
                    // Half of the widest gap between levels, -1 to -0.696.
                    assert!((x - y).abs() <= scale * 0.15191, "{i}: {x} became {y}");
                }
                for (x, scale) in values.chunks(block).zip(0..) {
                    assert_eq!(q.scales().get(scale), absmax(x), "the scale is the largest magnitude");
                }
            }
        }
    }

    #[test]
    fn quantising_what_was_decoded_changes_nothing() {
        for (rows, cols) in SHAPES {
            let q = Nf4Matrix::quantise(&normals(rows * cols, 2), rows, cols, 64, false).unwrap();
            assert_eq!(Nf4Matrix::quantise(&q.dequantise(), rows, cols, 64, false).unwrap(), q);
        }
    }

    #[test]
    fn double_quantisation_moves_scales_by_less_than_a_code() {
        let values = normals(300 * 512, 3);
        let plain = Nf4Matrix::quantise(&values, 300, 512, 64, false).unwrap();
        let double = Nf4Matrix::quantise(&values, 300, 512, 64, true).unwrap();
        assert_eq!(plain.codes(), double.codes());
        let Scales::Nested(nested) = double.scales() else { panic!("asked for nested scales") };
        for block in 0..plain.scales().len() {
            let error = (plain.scales().get(block) - double.scales().get(block)).abs();
            // Half of the widest gap of the signed map, and the rounding of the offset.
            assert!(error <= nested.quantised.scales[block / 256] * 0.0071 + 1e-8, "block {block}: {error}");
        }
        assert!(double.bytes() * 8 < values.len() * 42 / 10, "about 4.13 bits per weight and the map");
    }

    #[test]
    fn zero_blocks_decode_to_zero_even_doubly_quantised() {
        for (rows, cols) in [(4, 64), (3, 33)] {
            for double in [false, true] {
                let mut values = normals(rows * cols, 4);
                values[64..].fill(0.0);
                let q = Nf4Matrix::quantise(&values, rows, cols, 64, double).unwrap();
                assert!(q.dequantise()[64..].iter().all(|&v| v == 0.0));
            }
        }
    }

    /// Every way to decode gives the bits of `level * absmax`, on every instruction set here.
    #[test]
    fn pieces_rows_and_bf16_agree_with_the_whole() {
        for (rows, cols) in SHAPES {
            let q = Nf4Matrix::quantise(&normals(rows * cols, 5), rows, cols, 32, true).unwrap();
            let expected: Vec<f32> = (0..rows * cols)
                .map(|i| LEVELS[usize::from(code_of(&q, i))] * q.scales().get(i / 32))
                .collect();
            assert_eq!(q.dequantise(), expected);
            let mut slow = vec![0.0; rows * cols];
            for (block, out) in slow.chunks_mut(32).enumerate() {
                let table = LEVELS.map(|l| l * q.scales().get(block));
                decode_slow(&table, q.codes(), block * 32, out);
            }
            assert_eq!(slow, expected);
            let (row, col0, col1) = (rows - 1, cols / 3, cols - cols / 4);
            let mut piece = vec![0.0; col1 - col0];
            q.decode_row_range(row, col0, col1, &mut piece);
            assert_eq!(piece, expected[row * cols + col0..row * cols + col1]);
            let first = rows / 2;
            let mut rounded = vec![bf16::ZERO; (rows - first) * cols];
            q.decode_rows_bf16(first..rows, &mut rounded);
            for (got, want) in rounded.iter().zip(&expected[first * cols..]) {
                assert_eq!(got.to_bits(), bf16::from_f32(*want).to_bits());
            }
        }
    }

    #[test]
    fn bad_input_is_an_error() {
        let quantise = |values: &[f32], block| Nf4Matrix::quantise(values, 1, 3, block, true);
        assert!(matches!(
            quantise(&[1.0, f32::INFINITY, 0.0], 64),
            Err(QuantError::NonFinite { index: 1, .. })
        ));
        assert!(matches!(quantise(&[1.0; 4], 64), Err(QuantError::Length { found: 4, expected: 3, .. })));
        assert!(matches!(quantise(&[1.0; 3], 48), Err(QuantError::Block { found: 48, .. })));
        let parts = |codes, scales| Nf4Matrix::from_parts(1, 3, 64, codes, Scales::Plain(scales));
        assert!(parts(vec![0; 2], vec![1.0]).is_ok());
        assert!(matches!(parts(vec![0; 1], vec![1.0]), Err(QuantError::Length { expected: 2, .. })));
        assert!(matches!(parts(vec![0; 2], vec![]), Err(QuantError::Length { expected: 1, .. })));
        assert!(matches!(parts(vec![0; 2], vec![f32::NAN]), Err(QuantError::NonFinite { .. })));
    }
}
