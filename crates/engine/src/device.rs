//! The device seam: where arrays lie, and what runs on them.
//!
//! | what | is |
//! | --- | --- |
//! | [`Device`] | allocates arrays, places host values in them, runs kernels |
//! | [`Array`] | elements of one storage type on one device; all that tensors, parameters, gradients, caches and optimisers hold |
//! | [`Memory`] | the elements of an array that lies elsewhere than in host memory |
//! | [`Kernel`] | one piece of work on arrays, with its implementation for each kind of device |
//! | [`Host`] | values in host memory, as they are read, written and computed with by the CPU |
//!
//! Nothing but a kernel touches elements. Everything else holds handles, and asks for copies where values leave or enter
//! ([`Array::to_host`], [`Array::write`], [`DeviceRef::place`]): loading, saving, merging, reading what a pass computed.
//! The CPU is the specification, and a device like any other whose arrays happen to be host memory: there, a copy to the host is
//! a reference and placing moves, so the seam costs one virtual call for each kernel.
//!
//! Tests use [`Guarded`], a device whose memory opens for kernels alone and which counts copies: it proves that nothing above the
//! seam takes an array for host memory.
//!
//! A kernel is a struct of what it reads and writes, in the file of its operation or optimiser. Arguments that are not
//! arrays (token ids, row indices, spans) have a size in the order of the batch's rows; a device copies them with the launch.

mod array;
mod guarded;
mod kernels;

use pt_kernels::buffer;

pub use array::{Array, Host, Memory, Storage};
pub use guarded::{Guarded, Traffic};
pub(crate) use kernels::{copy_columns, copy_prefix, copy_within, fill_zeros, widen};

/// Something with memory that kernels run on. Devices live as long as the program.
pub trait Device: std::fmt::Debug + Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// An array of unspecified content, to be written whole; of numbers, not quantised.
    fn alloc(&'static self, storage: Storage, len: usize) -> Array;

    /// An array of these values.
    fn place(&'static self, values: Host) -> Array;

    /// Runs a kernel on arrays of this device. When it returns, reading an array gives what the kernel wrote.
    fn run(&self, kernel: &mut dyn Kernel);

    /// Bytes in its arrays and kernels' scratch now.
    fn live_bytes(&self) -> usize;

    /// The most there ever were, since the start or the last [`Device::reset_peak`].
    fn peak_bytes(&self) -> usize;

    /// Starts a new measurement of the peak.
    fn reset_peak(&self);
}

/// One piece of work on arrays.
///
/// Another kind of device adds its method here, without a default: the compiler then lists what is to be written.
pub trait Kernel {
    /// For profiles and messages.
    fn name(&self) -> &'static str;

    /// Does the work in host memory.
    fn cpu(&mut self);
}

/// A device in use.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRef(&'static dyn Device);

impl Default for DeviceRef {
    fn default() -> Self {
        DeviceRef::cpu()
    }
}

impl PartialEq for DeviceRef {
    fn eq(&self, other: &DeviceRef) -> bool {
        std::ptr::addr_eq(self.0, other.0)
    }
}

impl Eq for DeviceRef {}

impl DeviceRef {
    /// A handle on a device.
    pub fn new(device: &'static dyn Device) -> DeviceRef {
        DeviceRef(device)
    }

    /// The processor this program runs on.
    pub fn cpu() -> DeviceRef {
        DeviceRef(&CPU)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// An array of zeros.
    pub fn zeros(self, storage: Storage, len: usize) -> Array {
        let mut array = self.alloc(storage, len);
        fill_zeros(&mut array);
        array
    }

    /// An array of unspecified content, to be written whole.
    pub fn alloc(self, storage: Storage, len: usize) -> Array {
        self.0.alloc(storage, len)
    }

    /// An array of these values.
    pub fn place(self, values: Host) -> Array {
        self.0.place(values)
    }

    /// Runs a kernel on arrays of this device.
    pub fn run(self, kernel: &mut dyn Kernel) {
        self.0.run(kernel);
    }

    /// Bytes in its arrays and kernels' scratch now.
    pub fn live_bytes(self) -> usize {
        self.0.live_bytes()
    }

    /// The most there ever were, since the start or the last [`DeviceRef::reset_peak`].
    pub fn peak_bytes(self) -> usize {
        self.0.peak_bytes()
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(self) {
        self.0.reset_peak();
    }
}

/// The processor: its arrays are host memory.
#[derive(Debug)]
struct Cpu {
    name: &'static str,
}

static CPU: Cpu = Cpu { name: "cpu" };

impl Device for Cpu {
    fn name(&self) -> &str {
        self.name
    }

    fn alloc(&'static self, storage: Storage, len: usize) -> Array {
        Host::dirty(storage, len).into()
    }

    fn place(&'static self, values: Host) -> Array {
        values.into()
    }

    fn run(&self, kernel: &mut dyn Kernel) {
        kernel.cpu();
    }

    fn live_bytes(&self) -> usize {
        buffer::live_bytes()
    }

    fn peak_bytes(&self) -> usize {
        buffer::peak_bytes()
    }

    fn reset_peak(&self) {
        buffer::reset_peak();
    }
}
