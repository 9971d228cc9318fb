//! Arrays that are stored in some type and updated in `f32`, a tile at a time.
//!
//! A [`Store`] is cut into [`Piece`]s of [`PIECE`] elements, the units of parallel work; a piece is
//! updated in tiles of [`TILE`] elements that fit the first-level cache.

use crate::OptimError;
use crate::state::{Saved, StateTensor};
use half::bf16;
use pt_core::rng::Stream;
use pt_engine::{Array, DeviceRef, Host, Storage};
use pt_kernels::buffer::Buffer;
use pt_kernels::elem::Elem;
use pt_kernels::noise::{self, GROUP};
use pt_kernels::quant::dynamic::{BLOCK, DynamicMap};

/// Elements a thread takes at once.
pub(crate) const PIECE: usize = 1 << 15;
/// Elements widened to `f32` at once; a multiple of the 8-bit block and of the noise's group.
pub(crate) const TILE: usize = 4 * BLOCK;
const _: () = assert!(TILE.is_multiple_of(GROUP) && PIECE.is_multiple_of(TILE));

/// How a state array is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    Bf16,
    /// Blocks of 256 in the dynamic map for both signs, or for one.
    Dynamic8 {
        signed: bool,
    },
}

impl Kind {
    /// Bytes for `n` elements.
    pub(crate) fn bytes(self, n: usize) -> usize {
        match self {
            Kind::F32 => 4 * n,
            Kind::Bf16 => 2 * n,
            Kind::Dynamic8 { .. } => n + 4 * n.div_ceil(BLOCK),
        }
    }
}

/// An array of state, on the parameter's device.
pub(crate) enum Store {
    Plain(Array),
    Dynamic8 { map: &'static DynamicMap, codes: Array, scales: Array },
}

impl Store {
    /// `n` zeros.
    pub(crate) fn zeros(device: DeviceRef, kind: Kind, n: usize) -> Store {
        match kind {
            Kind::F32 => Store::Plain(device.zeros(Storage::F32, n)),
            Kind::Bf16 => Store::Plain(device.zeros(Storage::Bf16, n)),
            Kind::Dynamic8 { signed } => {
                let map = if signed { DynamicMap::signed() } else { DynamicMap::unsigned() };
                let mut codes = Buffer::dirty(n);
                codes.fill(map.nearest(0.0));
                let scales = device.zeros(Storage::F32, n.div_ceil(BLOCK));
                Store::Dynamic8 { map, codes: device.place(Host::U8(codes)), scales }
            }
        }
    }

    /// The elements in pieces, for kernels on the CPU.
    pub(crate) fn pieces(&mut self) -> Vec<Piece<'_>> {
        match self {
            Store::Plain(array) => Piece::of_array(array),
            Store::Dynamic8 { map, codes, scales } => {
                let map: &'static DynamicMap = map;
                let Host::U8(codes) = codes.open_mut() else { unreachable!("codes are bytes") };
                let scales = scales.open_mut().f32s_mut().chunks_mut(PIECE / BLOCK);
                let parts = codes.chunks_mut(PIECE).zip(scales);
                parts.map(|(codes, scales)| Piece::Dynamic8 { map, codes, scales }).collect()
            }
        }
    }

    /// The elements of an `f32` array, for kernels on the CPU.
    pub(crate) fn f32s_mut(&mut self) -> &mut [f32] {
        match self {
            Store::Plain(array) => array.open_mut().f32s_mut(),
            Store::Dynamic8 { .. } => panic!("values in 8 bits have no f32 elements"),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Store::Plain(array) => array.bytes(),
            Store::Dynamic8 { codes, scales, .. } => codes.bytes() + scales.bytes(),
        }
    }

    /// The names [`Store::export`] gives.
    pub(crate) fn names(&self, name: &str) -> Vec<String> {
        match self {
            Store::Plain(_) => vec![name.to_owned()],
            Store::Dynamic8 { .. } => vec![name.to_owned(), scale_name(name)],
        }
    }

    pub(crate) fn export(&self, name: &str, out: &mut Vec<StateTensor>) {
        match self {
            Store::Plain(array) => out.push(StateTensor::of(name.to_owned(), array)),
            Store::Dynamic8 { codes, scales, .. } => {
                out.push(StateTensor::of(name.to_owned(), codes));
                out.push(StateTensor::of(scale_name(name), scales));
            }
        }
    }

    pub(crate) fn import(&mut self, name: &str, saved: &Saved<'_>) -> Result<(), OptimError> {
        match self {
            Store::Plain(array) => saved.read(name, array),
            Store::Dynamic8 { codes, scales, .. } => {
                saved.read(name, codes)?;
                saved.read(&scale_name(name), scales)
            }
        }
    }
}

/// The name under which the scales of an 8-bit array are saved.
fn scale_name(name: &str) -> String {
    format!("{name}_scale")
}

/// At most [`PIECE`] consecutive elements of a store or of a parameter.
pub(crate) enum Piece<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    Dynamic8 { map: &'static DynamicMap, codes: &'a mut [u8], scales: &'a mut [f32] },
}

impl<'a> Piece<'a> {
    /// An array of numbers in pieces, for kernels on the CPU.
    pub(crate) fn of_array(array: &'a mut Array) -> Vec<Piece<'a>> {
        match array.open_mut() {
            Host::F32(v) => v.chunks_mut(PIECE).map(Piece::F32).collect(),
            Host::Bf16(v) => v.chunks_mut(PIECE).map(Piece::Bf16).collect(),
            other => panic!("{} values cannot be updated", other.storage().name()),
        }
    }

    /// Elements `at..at + out.len()` in `f32`.
    #[inline(always)]
    pub(crate) fn load(&self, at: usize, out: &mut [f32]) {
        match self {
            Piece::F32(v) => out.copy_from_slice(&v[at..at + out.len()]),
            Piece::Bf16(v) => {
                for (out, v) in out.iter_mut().zip(&v[at..]) {
                    *out = v.get();
                }
            }
            Piece::Dynamic8 { map, codes, scales } => {
                let codes = codes[at..at + out.len()].chunks(BLOCK);
                for ((out, codes), &scale) in out.chunks_mut(BLOCK).zip(codes).zip(&scales[at / BLOCK..]) {
                    map.decode_block(codes, scale, out);
                }
            }
        }
    }

    /// Stores elements `at..`; `noise` makes `bf16` rounding stochastic.
    #[inline(always)]
    pub(crate) fn save(&mut self, at: usize, values: &[f32], noise: Option<&[u16]>) {
        match self {
            Piece::F32(v) => v[at..at + values.len()].copy_from_slice(values),
            Piece::Bf16(v) => {
                let v = &mut v[at..at + values.len()];
                match noise {
                    None => v.iter_mut().zip(values).for_each(|(v, x)| *v = Elem::put(*x)),
                    Some(noise) => {
                        for ((v, &x), &r) in v.iter_mut().zip(values).zip(noise) {
                            *v = round_stochastically(x, r);
                        }
                    }
                }
            }
            Piece::Dynamic8 { map, codes, scales } => {
                let codes = codes[at..at + values.len()].chunks_mut(BLOCK);
                let scales = &mut scales[at / BLOCK..];
                for ((values, codes), scale) in values.chunks(BLOCK).zip(codes).zip(scales) {
                    *scale = map.encode_block(values, codes);
                }
            }
        }
    }

    pub(crate) fn is_bf16(&self) -> bool {
        matches!(self, Piece::Bf16(_))
    }
}

/// `x` rounded up with the probability that makes the mean exact: `noise` is uniform in 0..65536.
#[inline(always)]
fn round_stochastically(x: f32, noise: u16) -> bf16 {
    bf16::from_bits((x.to_bits().wrapping_add(u32::from(noise)) >> 16) as u16)
}

/// The random numbers of one array in one step.
#[derive(Clone, Copy)]
pub(crate) struct Noise {
    stream: Stream,
    block: u64,
}

/// Arrays that may need noise in the same step: the parameter and the second moment.
const ARRAYS: u64 = 2;

impl Noise {
    /// Noise of array `array` (below 2) of the parameter `name` in step `t`.
    pub(crate) fn new(seed: u64, name: &str, t: u64, array: u64) -> Noise {
        assert!(array < ARRAYS, "array {array}");
        Noise { stream: Stream::new(seed, &format!("round/{name}")), block: t * ARRAYS + array }
    }

    /// Noise of elements `first..`; `first` is a multiple of [`GROUP`].
    pub(crate) fn fill(&self, first: usize, out: &mut [u16]) {
        noise::fill(&self.stream, first, self.block, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stochastic_rounding_is_unbiased_and_keeps_what_fits() {
        for x in [1.0f32, -0.375, 0.0, -0.0, 1024.0] {
            for noise in [0, 1, u16::MAX] {
                assert_eq!(round_stochastically(x, noise).to_f32().to_bits(), x.to_bits());
            }
        }
        let (n, x) = (1 << 16, 1.001_234_5f32);
        let sum: f64 = (0..n).map(|r| f64::from(round_stochastically(x, r as u16).to_f32())).sum();
        // Over all noise values the mean is x up to the f32 bits below the noise: none here.
        assert!((sum / f64::from(n) - f64::from(x)).abs() < 1e-12);
    }

    #[test]
    fn noise_depends_on_the_element_not_on_the_cut() {
        let noise = Noise::new(1, "w", 3, 0);
        let mut whole = [0; 300];
        noise.fill(0, &mut whole);
        let mut part = [0; 13];
        noise.fill(GROUP, &mut part);
        assert_eq!(part, whole[GROUP..GROUP + 13]);
        let mut other = [0; 300];
        Noise::new(1, "w", 4, 0).fill(0, &mut other);
        assert_ne!(other, whole);
    }

    #[test]
    fn every_kind_round_trips_through_bytes() {
        for kind in [Kind::F32, Kind::Bf16, Kind::Dynamic8 { signed: true }] {
            let n = PIECE + 300;
            let mut store = Store::zeros(DeviceRef::cpu(), kind, n);
            assert_eq!(store.bytes(), kind.bytes(n));
            let values: Vec<f32> = (0..TILE).map(|i| (i as f32).sin()).collect();
            store.pieces()[0].save(TILE, &values, None);
            store.pieces()[1].save(256, &values[..44], None);
            let mut tensors = Vec::new();
            store.export("m", &mut tensors);
            let mut back = Store::zeros(DeviceRef::cpu(), kind, n);
            back.import("m", &Saved { param: "p", tensors: &tensors }).unwrap();
            let mut again = Vec::new();
            back.export("m", &mut again);
            assert_eq!(tensors, again);
            let mut loaded = [0.0; 44];
            back.pieces()[1].load(256, &mut loaded);
            assert!(loaded.iter().zip(&values).all(|(a, b)| (a - b).abs() < 0.01), "{kind:?}");
        }
    }
}
