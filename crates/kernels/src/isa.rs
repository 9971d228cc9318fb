//! Instruction sets, chosen once at run time, and loops compiled for each of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set the kernels are compiled for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Isa {
    /// Whatever the target's baseline is (SSE2 on x86-64); multiplication and addition round separately.
    Portable = 1,
    /// AVX2 with FMA.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512 = 3,
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16 = 4,
}

impl Isa {
    /// All of them, weakest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The name shown by `doctor` and accepted by `--isa`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    fn from_tag(tag: u8) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| *isa as u8 == tag)
    }
}

/// The best instruction set of this machine.
pub fn best() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    *BEST.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("fma");
    if avx512 && is_x86_feature_detected!("avx512bf16") {
        Isa::Avx512Bf16
    } else if avx512 {
        Isa::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Isa::Avx2
    } else {
        Isa::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

static LIMIT: AtomicU8 = AtomicU8::new(0);

/// Restricts all kernels to `isa` or weaker, for comparisons between instruction sets; `None` lifts it.
///
/// Process-wide: results change between sets in the last bits, so call it before any work.
pub fn limit(isa: Option<Isa>) {
    LIMIT.store(isa.map_or(0, |isa| isa as u8), Ordering::Relaxed);
}

/// The instruction set in use.
#[inline]
pub fn current() -> Isa {
    match Isa::from_tag(LIMIT.load(Ordering::Relaxed)) {
        Some(limit) => best().min(limit),
        None => best(),
    }
}

/// A loop to be compiled for every instruction set; see [`kernel!`](crate::kernel).
pub trait IsaKernel {
    /// What it computes.
    type Output;
    /// The loop. `FMA` says whether [`fma`] is one instruction here.
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// `a * b + c`: fused where the instruction set has it, two roundings where it has not.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Asks for the cache lines of `values[first..first + n]`, as far as there are such.
#[inline(always)]
pub fn prefetch<E>(values: &[E], first: usize, n: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(values) = values.get(first..first + n) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for value in values.iter().step_by((64 / size_of::<E>()).max(1)).chain(values.last()) {
            // SAFETY: a prefetch of a valid reference; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, first, n);
}

/// Runs `kernel` compiled for [`current`].
#[inline]
pub fn dispatch<K: IsaKernel>(kernel: K) -> K::Output {
    match current() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `current` never exceeds what `detect` found, so the features are present.
        Isa::Avx512Bf16 | Isa::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run::<false>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run_avx512<K: IsaKernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: IsaKernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

/// Declares a function whose body is compiled for every instruction set and chosen at run time.
///
/// Inside the body the const `FMA` is in scope for [`fma::<FMA>`](crate::isa::fma). Functions it
/// calls in a hot loop must be `#[inline(always)]`, or they stay compiled for the baseline.
///
/// ```
/// pt_kernels::kernel! {
///     /// `y += s * x`.
///     pub fn axpy(['a] s: f32, x: &'a [f32], y: &'a mut [f32]) {
///         for (y, x) in y.iter_mut().zip(x) {
///             *y = pt_kernels::isa::fma::<FMA>(s, *x, *y);
///         }
///     }
/// }
/// let mut y = vec![1.0; 3];
/// axpy(2.0, &[1.0, 2.0, 3.0], &mut y);
/// assert_eq!(y, [3.0, 5.0, 7.0]);
/// ```
#[macro_export]
macro_rules! kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident ([$($life:lifetime),*] $($arg:ident : $ty:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name<$($life),*>($($arg: $ty),*) $(-> $out)? {
            struct Call<$($life),*>($($ty,)* std::marker::PhantomData<($(&$life (),)*)>);
            impl<$($life),*> $crate::isa::IsaKernel for Call<$($life),*> {
                type Output = $crate::kernel!(@out $($out)?);
                #[inline(always)]
                fn run<const FMA: bool>(self) -> Self::Output {
                    let Call($($arg,)* _) = self;
                    $body
                }
            }
            $crate::isa::dispatch(Call($($arg,)* std::marker::PhantomData))
        }
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident <$gen:ident : $bound:path> ([$($life:lifetime),*] $($arg:ident : $ty:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name<$($life,)* $gen: $bound>($($arg: $ty),*) $(-> $out)? {
            struct Call<$($life,)* $gen: $bound>($($ty,)* std::marker::PhantomData<($(&$life (),)* $gen)>);
            impl<$($life,)* $gen: $bound> $crate::isa::IsaKernel for Call<$($life,)* $gen> {
                type Output = $crate::kernel!(@out $($out)?);
                #[inline(always)]
                fn run<const FMA: bool>(self) -> Self::Output {
                    let Call($($arg,)* _) = self;
                    $body
                }
            }
            $crate::isa::dispatch(Call($($arg,)* std::marker::PhantomData))
        }
    };
    (@out) => { () };
    (@out $out:ty) => { $out };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_order_is_strength() {
        for pair in Isa::ALL.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].name() != pair[1].name());
        }
        assert_eq!(Isa::from_tag(0), None);
    }
}
