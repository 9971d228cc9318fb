//! Random bits by the million, for stochastic rounding.
//!
//! The numbers are those of [`pt_core::rng::Stream::words`], computed eight counters at a time where there are vector
//! instructions; the bits are the same everywhere.

use pt_core::rng::Stream;
#[cfg(target_arch = "x86_64")]
use pt_core::rng::{MULTIPLIERS, ROUNDS, WEYL};

/// Elements whose noise is drawn at once: two from each of four words of eight counters.
pub const GROUP: usize = 64;

/// Sixteen random bits for each of the elements `first ..` of an array: group `g` of elements takes the words at
/// indices `8 g .. 8 g + 8` of `block`, word by word, low halves first.
///
/// # Panics
/// If `first` is not a multiple of [`GROUP`].
pub fn fill(stream: &Stream, first: usize, block: u64, out: &mut [u16]) {
    assert!(first.is_multiple_of(GROUP), "noise of element {first} is inside a group");
    let group = (first / GROUP) as u64;
    let (whole, rest) = out.as_chunks_mut::<GROUP>();
    groups(stream, group, block, whole);
    if !rest.is_empty() {
        let mut last = [[0; GROUP]];
        groups(stream, group + whole.len() as u64, block, &mut last);
        rest.copy_from_slice(&last[0][..rest.len()]);
    }
}

fn groups(stream: &Stream, first: u64, block: u64, out: &mut [[u16; GROUP]]) {
    #[cfg(target_arch = "x86_64")]
    if crate::isa::current() >= crate::isa::Isa::Avx512 {
        // SAFETY: AVX-512 is present.
        unsafe { groups_avx512(stream.key(), first, block, out) };
        return;
    }
    groups_portable(stream, first, block, out);
}

fn groups_portable(stream: &Stream, first: u64, block: u64, out: &mut [[u16; GROUP]]) {
    for (g, out) in out.iter_mut().enumerate() {
        for i in 0..8 {
            let words = stream.words((first + g as u64) * 8 + i as u64, block);
            for (w, word) in words.into_iter().enumerate() {
                out[16 * w + i] = word as u16;
                out[16 * w + 8 + i] = (word >> 16) as u16;
            }
        }
    }
}

/// Philox in 64-bit lanes whose upper halves are left to grow: the widening multiplication reads only the lower ones,
/// so neither shuffles nor masks are needed between rounds. Two groups at once hide its latency.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn groups_avx512(key: [u32; 2], first: u64, block: u64, out: &mut [[u16; GROUP]]) {
    use std::arch::x86_64::*;
    let lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    let multipliers = MULTIPLIERS.map(|m| _mm512_set1_epi64(i64::from(m)));
    let blocks = [block, block >> 32].map(|word| _mm512_set1_epi64(word as i64));
    for (pair, out) in out.chunks_mut(2).enumerate() {
        let counters = |g: u64| {
            let base = (first + 2 * pair as u64 + g).wrapping_mul(8);
            let index = _mm512_add_epi64(_mm512_set1_epi64(base as i64), lanes);
            [index, _mm512_srli_epi64::<32>(index), blocks[0], blocks[1]]
        };
        let mut states = [counters(0), counters(1)];
        let mut key = key;
        for _ in 0..ROUNDS {
            let keys = key.map(|word| _mm512_set1_epi64(i64::from(word)));
            for state in &mut states {
                let [a, b, c, d] = *state;
                let (p0, p1) = (_mm512_mul_epu32(a, multipliers[0]), _mm512_mul_epu32(c, multipliers[1]));
                *state = [
                    _mm512_ternarylogic_epi64::<0x96>(_mm512_srli_epi64::<32>(p1), b, keys[0]),
                    p1,
                    _mm512_ternarylogic_epi64::<0x96>(_mm512_srli_epi64::<32>(p0), d, keys[1]),
                    p0,
                ];
            }
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        for (out, state) in out.iter_mut().zip(states) {
            let (parts, _) = out.as_chunks_mut::<8>();
            for (parts, word) in parts.chunks_exact_mut(2).zip(state) {
                let low = _mm512_cvtepi64_epi16(word);
                let high = _mm512_cvtepi64_epi16(_mm512_srli_epi64::<16>(word));
                // SAFETY: each part is eight u16, 128 bits.
                unsafe {
                    _mm_storeu_si128(parts[0].as_mut_ptr().cast(), low);
                    _mm_storeu_si128(parts[1].as_mut_ptr().cast(), high);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_draws_the_same_and_cuts_do_not_matter() {
        let stream = Stream::new(5, "noise");
        for (first, block) in [(0, 0), (7 * GROUP, 3), ((1 << 33) + GROUP, u64::MAX - 1)] {
            let mut truth = [[0; GROUP]; 5];
            groups_portable(&stream, (first / GROUP) as u64, block, &mut truth);
            let truth = truth.as_flattened();
            for (skip, len) in [(0, 5 * GROUP), (0, GROUP), (GROUP, 3 * GROUP + 13), (2 * GROUP, 7)] {
                let mut ours = vec![0; len];
                fill(&stream, first + skip, block, &mut ours);
                assert_eq!(ours, truth[skip..skip + len], "{first} + {skip}");
            }
        }
    }
}
