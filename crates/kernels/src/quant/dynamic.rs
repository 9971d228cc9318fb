//! The dynamic 8-bit codebook and block-wise quantisation with it.
//!
//! A code is a sign (signed map only), a decimal exponent in unary and a linear fraction, so that
//! small magnitudes keep a relative error of a few per cent over seven decades. Source: Dettmers
//! 2016, "8-bit approximations for parallelism in deep learning" (arXiv:1511.04561), section 3;
//! block-wise use: Dettmers et al. 2022, "8-bit optimizers via block-wise quantization"
//! (arXiv:2110.02861), section 2.1. The tables equal bitsandbytes' `create_dynamic_map` bit for bit.
//!
//! A value is stored as the code nearest to `x / absmax(block)`, ties to the lower code, which is
//! what bitsandbytes does on CUDA. Its CPU kernel (0.50) instead looks the value up in 65536 equal
//! bins, so that near zero it can be several codes off and stores 0 as 2e-5 absmax; we do not copy that.

use super::{QuantError, absmax, check_finite, check_length};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Elements that share one scale, in optimiser states and nested scales.
pub const BLOCK: usize = 256;

/// Blocks handed to a thread at once; a block's result never depends on it.
const BLOCKS_PER_TASK: usize = 64;

/// Decades of the map: magnitudes from 5.5e-7 (signed) or 3.25e-7 (unsigned) to 1.
const DECADES: i32 = 7;

/// An ascending codebook of 256 values in `[-1, 1]` and what finding the nearest one takes.
pub struct DynamicMap {
    values: [f32; 256],
    /// `midpoints[i]` separates codes `i` and `i + 1`; the last is infinite.
    midpoints: [f32; 256],
    /// The code of the smallest value in each bucket of [`bucket`]; the bucket's other values have
    /// that code or the next.
    lowest: Box<[u8; 2 * SIGN]>,
}

/// Magnitudes at or below this share a bucket: 2^-23, below half of the smallest code.
const SMALLEST: u32 = 0x3400_0000;
/// 1.0, the largest magnitude after scaling.
const LARGEST: u32 = 0x3f80_0000;
/// Buckets are 256 to a power of two: relative width 0.4 %, under the finest code spacing of 0.7 %.
const BUCKET_SHIFT: u32 = 15;
const BUCKETS_PER_SIGN: usize = ((LARGEST - SMALLEST) >> BUCKET_SHIFT) as usize + 1;

/// Where the buckets of negative values start: a power of two, so that an index needs no check.
const SIGN: usize = 8192;

/// The bucket of a value in `[-1, 1]`: its sign and the leading bits of its magnitude.
#[inline(always)]
fn bucket(x: f32) -> usize {
    let bits = x.to_bits();
    // Wrapping, because overflow checks of debug builds would cost more than the look-up.
    let magnitude = (bits & 0x7fff_ffff).clamp(SMALLEST, LARGEST).wrapping_sub(SMALLEST);
    (magnitude >> BUCKET_SHIFT | bits >> 31 << SIGN.trailing_zeros()) as usize & (2 * SIGN - 1)
}

impl DynamicMap {
    /// The map for values of both signs (weights' scales, first moments). It has 1 but not -1.
    pub fn signed() -> &'static DynamicMap {
        static MAP: OnceLock<DynamicMap> = OnceLock::new();
        MAP.get_or_init(|| DynamicMap::new(create(true)).expect("the signed map is a valid codebook"))
    }

    /// The map for values in `[0, 1]` (second moments).
    pub fn unsigned() -> &'static DynamicMap {
        static MAP: OnceLock<DynamicMap> = OnceLock::new();
        MAP.get_or_init(|| DynamicMap::new(create(false)).expect("the unsigned map is a valid codebook"))
    }

    /// A codebook read from a file. `None` unless it is ascending, finite, within `[-1, 1]`, and at
    /// most as fine as the dynamic maps (no two midpoints within 0.4 % of each other).
    pub fn new(values: [f32; 256]) -> Option<DynamicMap> {
        let sound = values.iter().all(|v| v.abs() <= 1.0) && values.windows(2).all(|w| w[0] < w[1]);
        if !sound {
            return None;
        }
        let mut midpoints = [f32::INFINITY; 256];
        for i in 0..255 {
            midpoints[i] = (values[i] + values[i + 1]) / 2.0;
        }
        let exact = |x: f32| midpoints.partition_point(|&m| m < x);
        let mut lowest = Box::new([0u8; 2 * SIGN]);
        for index in 0..BUCKETS_PER_SIGN {
            let near = if index == 0 { 0 } else { SMALLEST + ((index as u32) << BUCKET_SHIFT) };
            let far = (SMALLEST + ((index as u32 + 1) << BUCKET_SHIFT) - 1).min(LARGEST);
            let (near, far) = (f32::from_bits(near), f32::from_bits(far));
            if exact(far) > exact(near) + 1 || exact(-near) > exact(-far) + 1 {
                return None;
            }
            lowest[index] = exact(near) as u8;
            lowest[index + SIGN] = exact(-far) as u8;
        }
        Some(DynamicMap { values, midpoints, lowest })
    }

    /// The codebook, ascending.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The code nearest to `x`, ties to the lower; `x` outside `[-1, 1]` gets an end.
    #[inline(always)]
    pub fn nearest(&self, x: f32) -> u8 {
        let low = self.lowest[bucket(x)];
        low.wrapping_add(u8::from(x > self.midpoints[usize::from(low)]))
    }

    /// Encodes one block of finite values and returns its scale, `max |x|`.
    ///
    /// A block of zeros has scale 0 and decodes to zeros.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline(always)]
    pub fn encode_block(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        assert_eq!(values.len(), codes.len());
        let scale = absmax(values);
        let inverse = reciprocal(scale);
        for (code, &value) in codes.iter_mut().zip(values) {
            *code = self.nearest(value * inverse);
        }
        scale
    }

    /// `map[code] * scale` for one block.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline(always)]
    pub fn decode_block(&self, codes: &[u8], scale: f32, out: &mut [f32]) {
        assert_eq!(codes.len(), out.len());
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = self.values[usize::from(code)] * scale;
        }
    }

    /// Quantises `values` in blocks of [`BLOCK`] (the last may be shorter).
    ///
    /// # Errors
    /// [`QuantError::NonFinite`].
    pub fn quantise(&self, values: &[f32]) -> Result<Quantised8, QuantError> {
        check_finite(values)?;
        let mut codes = vec![0; values.len()];
        let mut scales = vec![0.0; values.len().div_ceil(BLOCK)];
        let span = BLOCK * BLOCKS_PER_TASK;
        (codes.par_chunks_mut(span), scales.par_chunks_mut(BLOCKS_PER_TASK), values.par_chunks(span))
            .into_par_iter()
            .for_each(|(codes, scales, values)| {
                let blocks = codes.chunks_mut(BLOCK).zip(values.chunks(BLOCK));
                for (scale, (codes, values)) in scales.iter_mut().zip(blocks) {
                    *scale = self.encode_block(values, codes);
                }
            });
        Ok(Quantised8 { codes, scales })
    }

    /// The values of `quantised`.
    ///
    /// # Errors
    /// [`QuantError::Length`] if there is not one scale per block.
    pub fn dequantise(&self, quantised: &Quantised8) -> Result<Vec<f32>, QuantError> {
        let Quantised8 { codes, scales } = quantised;
        check_length("scales", scales.len(), codes.len().div_ceil(BLOCK))?;
        let mut out = vec![0.0; codes.len()];
        for ((codes, out), &scale) in codes.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(scales) {
            self.decode_block(codes, scale, out);
        }
        Ok(out)
    }
}

/// One byte per element and one scale per [`BLOCK`] elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised8 {
    /// Codes.
    pub codes: Vec<u8>,
    /// Largest magnitude of each block.
    pub scales: Vec<f32>,
}

/// `1 / scale`, and for a scale too small to invert the reciprocal of 1e-38, so that zeros stay zeros.
#[inline(always)]
pub(crate) fn reciprocal(scale: f32) -> f32 {
    1.0 / scale.max(1e-38)
}

/// The 256 values: per decade the centres of equal parts of `[0.1, 1]`, twice as many in each decade
/// as in the one below, plus 0 and 1. Signed maps mirror the centres.
fn create(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let parts = 1usize << (decade + i32::from(!signed));
        let scale = 10f64.powi(decade - DECADES + 1) as f32;
        for part in 0..parts {
            let centre = (boundary(part, parts) + boundary(part + 1, parts)) / 2.0;
            values.push(scale * centre);
            if signed {
                values.push(-scale * centre);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("2 + 2 * 127 or 2 + 254 values")
}

/// Boundary `i` of `parts` equal parts of `[0.1, 1]`, counted from the nearer end and with one
/// rounding, as torch.linspace does.
fn boundary(i: usize, parts: usize) -> f32 {
    let step = (1.0f32 - 0.1) / parts as f32;
    if i < parts.div_ceil(2) { step.mul_add(i as f32, 0.1) } else { step.mul_add(-((parts - i) as f32), 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    fn nearest_slow(map: &DynamicMap, x: f32) -> u8 {
        let distance = |code: usize| (f64::from(map.values[code]) - f64::from(x)).abs();
        (0..256).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap() as u8
    }

    #[test]
    fn maps_have_the_published_shape() {
        let signed = DynamicMap::signed().values();
        let unsigned = DynamicMap::unsigned().values();
        assert_eq!((signed[127], signed[255], unsigned[0], unsigned[255]), (0.0, 1.0, 0.0, 1.0));
        // The extremes of `create_dynamic_map(True)` and `(False)`.
        assert_eq!((signed[0], signed[128]), (-0.992_968_74, 5.500_000_4e-7));
        assert_eq!((unsigned[1], unsigned[254]), (3.250_000_2e-7, 0.996_484_4));
    }

    /// The bucket table against a scan of all codes in f64, on values of every magnitude and on all
    /// midpoints and their neighbours.
    #[test]
    fn nearest_is_nearest() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            let mut draws = Stream::new(1, "dynamic").at(0);
            let mut values: Vec<f32> = (0..20_000)
                .map(|_| (draws.uniform() * 2.0 - 1.0) as f32 * 10f32.powi(-(draws.below(9) as i32)))
                .collect();
            for &m in &map.midpoints[..255] {
                values.extend([m, m.next_up(), m.next_down()]);
            }
            values.extend([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, f32::MIN_POSITIVE]);
            for x in values {
                let (fast, slow) = (map.nearest(x), nearest_slow(map, x));
                // At a midpoint rounded to f32 both neighbours are as near as f32 can tell.
                let tie = map.midpoints.contains(&x) && fast + 1 == slow;
                assert!(fast == slow || tie, "{x:e}: {fast} against {slow}");
            }
        }
    }

    #[test]
    fn errors_are_bounded_and_codes_are_fixed_points() {
        for (map, signed) in [(DynamicMap::signed(), true), (DynamicMap::unsigned(), false)] {
            for n in [1, 255, 256, 257, 40_000] {
                let mut draws = Stream::new(2, "blocks").at(n as u64);
                let values: Vec<f32> = (0..n)
                    .map(|_| if signed { draws.normal() } else { draws.normal().powi(2) } as f32 * 1e-3)
                    .collect();
                let q = map.quantise(&values).unwrap();
                let back = map.dequantise(&q).unwrap();
                for (i, (a, b)) in values.iter().zip(&back).enumerate() {
                    // Half of the widest gap between codes (near +-1 for the signed map).
                    let bound = q.scales[i / BLOCK] * if signed { 0.0071 } else { 0.0036 };
                    assert!((a - b).abs() <= bound, "{i}: {a} became {b}");
                }
                // A signed block may lose its scale (there is no code for -1), an unsigned one cannot.
                if !signed {
                    assert_eq!(map.quantise(&back).unwrap(), q);
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zero_and_bad_input_is_an_error() {
        let map = DynamicMap::signed();
        let q = map.quantise(&[0.0; 300]).unwrap();
        assert!(map.dequantise(&q).unwrap().iter().all(|&v| v == 0.0));
        let mut bad = vec![1.0; 300];
        bad[299] = f32::NAN;
        assert!(matches!(map.quantise(&bad), Err(QuantError::NonFinite { index: 299, .. })));
        let short = Quantised8 { scales: vec![1.0], ..q };
        assert!(matches!(map.dequantise(&short), Err(QuantError::Length { found: 1, expected: 2, .. })));
        assert!(DynamicMap::new([0.0; 256]).is_none(), "not ascending");
    }
}
