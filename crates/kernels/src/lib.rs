//! CPU kernels: matrix products, attention, elementwise loops, quantised formats, buffers.
//!
//! Everything is a safe function of slices and shapes; `unsafe` stays inside. Three promises hold
//! for every kernel:
//!
//! 1. **Fixed order.** Each output element is a sum taken in one order that depends only on its own
//!    row: not on the other rows of the batch, nor on the number of threads, nor on how a batch was
//!    cut into micro-batches.
//! 2. **`f32` inside.** `bf16` is a storage format; sums are kept in `f32`.
//! 3. **Chosen at run time.** AVX512-BF16, AVX-512, AVX2 and portable code give results equal
//!    within rounding; within one of them results are equal bit for bit.

pub mod attention;
pub mod awake;
pub mod buffer;
pub mod elem;
pub mod gemm;
pub mod isa;
pub mod math;
pub mod noise;
pub mod quant;
