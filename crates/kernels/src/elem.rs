//! The two activation element types and their conversions.

use half::bf16;

/// A storage element that is computed with in `f32`.
pub trait Elem: Copy + Send + Sync + Default + 'static {
    /// The value in `f32`, exactly.
    fn get(self) -> f32;
    /// The nearest storable value (ties to even).
    fn put(value: f32) -> Self;
}

impl Elem for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        value
    }
}

impl Elem for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // A NaN whose payload would round away must stay a NaN.
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }
}

crate::kernel! {
    /// Converts elementwise through `f32`.
    pub fn widen<E: Elem>(['a] from: &'a [E], to: &'a mut [f32]) {
        assert_eq!(from.len(), to.len());
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.get();
        }
    }
}

crate::kernel! {
    /// Rounds elementwise from `f32`.
    pub fn narrow<E: Elem>(['a] from: &'a [f32], to: &'a mut [E]) {
        assert_eq!(from.len(), to.len());
        for (to, from) in to.iter_mut().zip(from) {
            *to = E::put(*from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        let mut draws = pt_core::rng::Stream::new(1, "bf16").at(0);
        for _ in 0..100_000 {
            let value = f32::from_bits(draws.next_u32());
            let ours = <bf16 as Elem>::put(value);
            if value.is_nan() {
                assert!(ours.is_nan());
            } else {
                assert_eq!(ours.to_bits(), bf16::from_f32(value).to_bits(), "{value}");
                assert_eq!(Elem::get(ours).to_bits(), ours.to_f32().to_bits());
            }
        }
    }
}
