//! Tensors, parameters, segment tables and the tape of fused operations.
//!
//! The engine is small on purpose. A [`Tensor`] is a row-major matrix in one storage type; there are no
//! strides, no broadcasting and no lazy graph. A [`Tape`] records about a dozen coarse operations,
//! each in one file under `ops/` with its formula, its forward, its backward and its tests. A model
//! writes only its forward pass.
//!
//! The tape computes gradients only for what trains: an operation whose inputs and parameters need
//! none is not recorded at all, so a forward pass without gradients saves nothing.
//!
//! Where elements lie and kernels run is behind one seam, [`device`]: nothing above it sees a pointer, a
//! slice of device memory or a stream. Host copies are explicit ([`Tensor::to_f32`], [`Array::to_host`],
//! [`Array::write`]).

mod batch;
mod cache;
pub mod device;
mod linear;
pub mod ops;
mod params;
mod profile;
mod segments;
mod tape;
mod tensor;

pub use batch::{Batch, CachedSpan};
pub use cache::KvCache;
pub use device::{Array, Device, DeviceRef, Host, Kernel, Memory, Storage};
pub use linear::{Linear, Lora};
pub use ops::attention::AttentionShape;
pub use ops::gated::Activation;
pub use ops::linear_divergence::{DivergenceOptions, Teacher};
pub use ops::linear_logprob::{LogprobGrad, LogprobOptions, Logprobs};
pub use ops::rope::Angles;
pub use ops::score_head::ScoreWeights;
pub use params::{Grads, Param, ParamId, Params, Weight};
pub use profile::Profile;
pub use segments::{Segment, SegmentError, SegmentTable};
pub use tape::{Seed, Tape, Var};
pub use tensor::{Dtype, Tensor};
