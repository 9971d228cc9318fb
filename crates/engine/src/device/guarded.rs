//! A device for tests: it computes what the CPU computes, in memory that nobody may touch.
//!
//! Its arrays hold their elements in this program's memory and open them while one of its kernels runs, and at no other time:
//! code above the seam that reads or writes elements itself panics here, as it would fault on a graphics card. What is copied to
//! the host and from it is counted, so that a test can say how much a step may copy.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Array, Device, DeviceRef, Host, Kernel, Memory, Storage};

/// See the module.
#[derive(Debug)]
pub struct Guarded {
    name: String,
    /// Kernels that run now.
    running: AtomicUsize,
    seen: Mutex<Traffic>,
}

/// What went over the border of a [`Guarded`] device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of each copy from the device to the host, in order.
    pub to_host: Vec<usize>,
    /// Bytes of each copy from the host to the device, in order.
    pub from_host: Vec<usize>,
    /// How often each kernel ran.
    pub kernels: BTreeMap<&'static str, usize>,
}

impl Guarded {
    /// A new device, which lives as long as the program.
    pub fn leak(name: &str) -> &'static Guarded {
        let (running, seen) = (AtomicUsize::new(0), Mutex::default());
        Box::leak(Box::new(Guarded { name: name.to_owned(), running, seen }))
    }

    /// A handle on it.
    pub fn device(&'static self) -> DeviceRef {
        DeviceRef::new(self)
    }

    /// What went over since the last call.
    pub fn take_traffic(&self) -> Traffic {
        std::mem::take(&mut *self.seen())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Traffic> {
        self.seen.lock().expect("counting does not panic")
    }

    fn is_open(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    fn array(&'static self, values: Host) -> Array {
        let (storage, len, bytes) = (values.storage(), values.len(), values.bytes());
        Array::of_memory(storage, len, bytes, Box::new(GuardedMemory { device: self, values }))
    }
}

impl Device for Guarded {
    fn name(&self) -> &str {
        &self.name
    }

    fn alloc(&'static self, storage: Storage, len: usize) -> Array {
        self.array(Host::dirty(storage, len))
    }

    fn place(&'static self, values: Host) -> Array {
        // What a kernel made is on the device already.
        if !self.is_open() {
            self.seen().from_host.push(values.bytes());
        }
        self.array(values)
    }

    fn run(&self, kernel: &mut dyn Kernel) {
        /// Closes the memory again, also if the kernel panics.
        struct Running<'a>(&'a AtomicUsize);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        *self.seen().kernels.entry(kernel.name()).or_default() += 1;
        self.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&self.running);
        kernel.cpu();
    }

    fn live_bytes(&self) -> usize {
        DeviceRef::cpu().live_bytes()
    }

    fn peak_bytes(&self) -> usize {
        DeviceRef::cpu().peak_bytes()
    }

    fn reset_peak(&self) {
        DeviceRef::cpu().reset_peak();
    }
}

#[derive(Debug)]
struct GuardedMemory {
    device: &'static Guarded,
    values: Host,
}

impl Memory for GuardedMemory {
    fn device(&self) -> DeviceRef {
        self.device.device()
    }

    fn to_host(&self) -> Host {
        self.device.seen().to_host.push(self.values.bytes());
        self.values.clone()
    }

    fn part_to_host(&self, range: Range<usize>) -> Host {
        let part = self.values.part(range);
        self.device.seen().to_host.push(part.bytes());
        part
    }

    fn write(&mut self, values: &Host) {
        self.device.seen().from_host.push(values.bytes());
        self.values.clone_from(values);
    }

    fn duplicate(&self) -> Box<dyn Memory> {
        Box::new(GuardedMemory { device: self.device, values: self.values.clone() })
    }

    fn open(&self) -> Option<&Host> {
        self.device.is_open().then_some(&self.values)
    }

    fn open_mut(&mut self) -> Option<&mut Host> {
        self.device.is_open().then_some(&mut self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_counted_and_values_survive_them() {
        let guarded = Guarded::leak("guarded");
        let values = [1.0, -2.0, 3.0];
        let mut array = Array::from_f32(&values).to_device(guarded.device());
        assert_eq!(array.clone().to_f32(), values);
        assert_eq!(array.widened().part_to_f32(1..3), [-2.0, 3.0]);
        array.write(Host::F32(pt_kernels::buffer::Buffer::copy_of(&[4.0, 5.0, 6.0])));
        assert_eq!(array.to_device(DeviceRef::cpu()).to_f32(), [4.0, 5.0, 6.0]);
        let Traffic { to_host, from_host, kernels } = guarded.take_traffic();
        assert_eq!((to_host, from_host), (vec![12, 8, 12], vec![12, 12]));
        assert_eq!(kernels, BTreeMap::from([("widen", 1)]));
        assert_eq!(guarded.take_traffic(), Traffic::default());
    }

    #[test]
    #[should_panic(expected = "memory of `guarded` is touched as host memory outside of a kernel")]
    fn memory_is_closed_between_kernels() {
        let array = Guarded::leak("guarded").device().zeros(Storage::F32, 3);
        let _ = array.open();
    }
}
