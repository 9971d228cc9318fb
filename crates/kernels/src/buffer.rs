//! Aligned buffers that are recycled, so that a training step asks the system for no memory.
//!
//! A fresh multi-megabyte allocation costs a page fault per 4 KiB; a step makes hundreds. Dropped
//! buffers therefore go to a pool keyed by their rounded size, and the pool counts what is live:
//! that count is what `plan` predicts and what a run reports as its peak.
//!
//! Small buffers go back to the thread that drops them first: a panel that one thread packs and another thread's panel
//! is written over would travel between the cores' caches at every task.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use half::bf16;

const ALIGN: usize = 64;
/// The pool never holds more idle memory than this share of the live peak.
const IDLE_SHARE: f64 = 0.25;
const IDLE_FLOOR_BYTES: usize = 64 << 20;
/// What a thread keeps to itself: what is likely still in its second-level cache.
const OWN_BYTES: usize = 1 << 20;
/// Larger buffers are everybody's: one of them would be all that a thread keeps.
const OWN_LARGEST_BYTES: usize = OWN_BYTES / 4;

/// A type whose every bit pattern is a value, so that recycled memory may be read as it.
///
/// # Safety
/// All bit patterns of `Self` must be valid and its alignment at most 64.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers; every bit pattern is a value and alignment is at most 8.
unsafe impl Plain for f32 {}
// SAFETY: a transparent u16.
unsafe impl Plain for bf16 {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}

/// `len` elements of `T`, 64-byte aligned, from the pool.
pub struct Buffer<T: Plain> {
    memory: NonNull<T>,
    len: usize,
    class_bytes: usize,
}

// SAFETY: a Buffer owns its memory exclusively, as a Vec does.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: shared access gives only shared slices.
unsafe impl<T: Plain> Sync for Buffer<T> {}

struct Idle(NonNull<u8>);
// SAFETY: idle memory belongs to the pool alone.
unsafe impl Send for Idle {}

/// Idle memory of one size.
#[derive(Default)]
struct Shelf {
    idle: Vec<Idle>,
    /// When memory was last taken from or put on this shelf.
    used: u64,
}

#[derive(Default)]
struct Pool {
    shelves: HashMap<usize, Shelf>,
    idle_bytes: usize,
    clock: u64,
}

impl Pool {
    fn take(&mut self, class_bytes: usize) -> Option<Idle> {
        self.clock += 1;
        let shelf = self.shelves.get_mut(&class_bytes)?;
        shelf.used = self.clock;
        let found = shelf.idle.pop()?;
        self.idle_bytes -= class_bytes;
        Some(found)
    }

    /// Keeps `memory` within `limit` bytes: of other sizes, what was not asked for the longest goes first. Gives it back
    /// where that is not enough.
    fn put(&mut self, class_bytes: usize, memory: Idle, limit: usize) -> Result<(), Idle> {
        if class_bytes > limit {
            return Err(memory);
        }
        while self.idle_bytes + class_bytes > limit {
            let others =
                self.shelves.iter().filter(|(class, shelf)| **class != class_bytes && !shelf.idle.is_empty());
            let Some(oldest) = others.min_by_key(|(_, shelf)| shelf.used).map(|(class, _)| *class) else {
                return Err(memory);
            };
            if let Some(Idle(idle)) = self.shelves.get_mut(&oldest).and_then(|shelf| shelf.idle.pop()) {
                self.idle_bytes -= oldest;
                // SAFETY: allocated by `fresh` with this layout; only the pool held it.
                unsafe { dealloc(idle.as_ptr(), layout_of(oldest)) };
            }
        }
        self.clock += 1;
        self.idle_bytes += class_bytes;
        let shelf = self.shelves.entry(class_bytes).or_default();
        shelf.used = self.clock;
        shelf.idle.push(memory);
        Ok(())
    }

    fn release(&mut self) {
        for (class_bytes, shelf) in self.shelves.drain() {
            for idle in shelf.idle {
                // SAFETY: allocated by `fresh` with this layout; only the pool held it.
                unsafe { dealloc(idle.0.as_ptr(), layout_of(class_bytes)) };
            }
        }
        self.idle_bytes = 0;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.release();
    }
}

thread_local! {
    /// The last dropped buffers of this thread, at most [`OWN_BYTES`].
    static OWN: RefCell<Pool> = RefCell::new(Pool::default());
}

static POISON: AtomicBool = AtomicBool::new(false);
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

/// This thread's own pool, for memory small enough; a thread that ends has none any more.
fn own<R>(class_bytes: usize, use_it: impl FnOnce(&mut Pool) -> R) -> Option<R> {
    if class_bytes > OWN_LARGEST_BYTES {
        return None;
    }
    OWN.try_with(|own| use_it(&mut own.borrow_mut())).ok()
}

fn shared() -> MutexGuard<'static, Pool> {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| Mutex::new(Pool::default()));
    pool.lock().expect("the pool's lock is never poisoned: no code in it panics")
}

/// Sizes are rounded up to an eighth of their power of two, so that near sizes share memory.
fn class_of(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.next_power_of_two() / 16).max(ALIGN);
    bytes.div_ceil(step) * step
}

fn layout_of(class_bytes: usize) -> Layout {
    Layout::from_size_align(class_bytes, ALIGN).expect("a buffer size that fits the address space")
}

impl<T: Plain> Buffer<T> {
    /// `len` elements of unspecified (but initialised) content, for outputs that are written whole.
    pub fn dirty(len: usize) -> Self {
        // Checked by hand: this crate is compiled without overflow checks, and a wrapped size would be a short buffer.
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize / 2);
        let class_bytes =
            class_of(bytes.unwrap_or_else(|| panic!("a buffer of {len} elements has no address space")));
        let own = own(class_bytes, |pool| pool.take(class_bytes)).flatten();
        let memory =
            own.or_else(|| shared().take(class_bytes)).map_or_else(|| fresh(class_bytes), |idle| idle.0);
        let live = LIVE_BYTES.fetch_add(class_bytes, Ordering::Relaxed) + class_bytes;
        PEAK_BYTES.fetch_max(live, Ordering::Relaxed);
        if POISON.load(Ordering::Relaxed) {
            // SAFETY: the memory holds `class_bytes` bytes, and every bit pattern is a value of a Plain type.
            unsafe { std::ptr::write_bytes(memory.as_ptr(), 0xff, class_bytes) };
        }
        Buffer { memory: memory.cast(), len, class_bytes }
    }

    /// `len` elements, all zero bits.
    pub fn zeroed(len: usize) -> Self {
        let buffer = Self::dirty(len);
        // SAFETY: the buffer holds `len` elements and zero bits are a value of a Plain type.
        unsafe { std::ptr::write_bytes(buffer.memory.as_ptr(), 0, len) };
        buffer
    }

    /// A copy of `values`.
    pub fn copy_of(values: &[T]) -> Self {
        let mut buffer = Self::dirty(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

fn fresh(class_bytes: usize) -> NonNull<u8> {
    let layout = layout_of(class_bytes);
    // SAFETY: the layout has a non-zero size (class_of gives at least ALIGN).
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        LIVE_BYTES.fetch_sub(self.class_bytes, Ordering::Relaxed);
        let (memory, class_bytes) = (self.memory.cast(), self.class_bytes);
        let kept = own(class_bytes, |pool| pool.put(class_bytes, Idle(memory), OWN_BYTES).is_ok());
        if kept == Some(true) {
            return;
        }
        let limit = IDLE_FLOOR_BYTES.max((PEAK_BYTES.load(Ordering::Relaxed) as f64 * IDLE_SHARE) as usize);
        let Err(Idle(memory)) = shared().put(class_bytes, Idle(memory), limit) else { return };
        // SAFETY: allocated by `fresh` with this very layout, and in no pool.
        unsafe { dealloc(memory.as_ptr(), layout_of(class_bytes)) };
    }
}

impl<T: Plain> std::ops::Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the memory holds `len` initialised elements (zeroed when fresh, written since).
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in deref, and we hold the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl<T: Plain> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self::copy_of(self)
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} elements, first {:?})", self.len, &self[..self.len.min(8)])
    }
}

/// For tests: fills every dirty buffer with NaN, so that an element that is read before it is written shows. A result
/// must be the same bits with and without.
pub fn poison(on: bool) {
    POISON.store(on, Ordering::Relaxed);
}

/// Bytes in buffers now.
pub fn live_bytes() -> usize {
    LIVE_BYTES.load(Ordering::Relaxed)
}

/// The most bytes there ever were in buffers, since the start or the last [`reset_peak`].
pub fn peak_bytes() -> usize {
    PEAK_BYTES.load(Ordering::Relaxed)
}

/// Starts a new measurement of the peak.
pub fn reset_peak() {
    PEAK_BYTES.store(live_bytes(), Ordering::Relaxed);
}

/// Gives idle memory back to the system, as between two stages of different shape: all but what other threads keep to
/// themselves, which is little.
pub fn release_idle() {
    shared().release();
    OWN.with(|own| own.borrow_mut().release());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed_when_asked() {
        for len in [0, 1, 7, 100, 5000] {
            let mut dirty = Buffer::<f32>::dirty(len);
            dirty.fill(f32::NAN);
            drop(dirty);
            let buffer = Buffer::<f32>::zeroed(len);
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            assert!(buffer.iter().all(|v| *v == 0.0) && buffer.len() == len);
        }
    }

    #[test]
    #[should_panic(expected = "no address space")]
    fn a_length_that_would_wrap_is_refused() {
        let _ = Buffer::<f32>::dirty(1 << 62);
    }

    #[test]
    fn classes_waste_little() {
        for bytes in [1usize, 64, 65, 1000, 4097, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let class = class_of(bytes);
            assert!(class >= bytes && class.is_multiple_of(ALIGN));
            assert!(class <= bytes + (bytes / 8).max(ALIGN), "{bytes} -> {class}");
        }
    }

    fn put(pool: &mut Pool, class_bytes: usize, limit: usize) -> bool {
        pool.put(class_bytes, Idle(fresh(class_bytes)), limit)
            // SAFETY: allocated by `fresh` with this layout, and the pool gave it back.
            .map_err(|idle| unsafe { dealloc(idle.0.as_ptr(), layout_of(class_bytes)) })
            .is_ok()
    }

    #[test]
    fn a_full_pool_forgets_what_was_not_asked_for_the_longest() {
        let mut pool = Pool::default();
        let limit = 1024;
        assert!(put(&mut pool, 512, limit) && put(&mut pool, 256, limit) && put(&mut pool, 256, limit));
        assert!(!put(&mut pool, 2048, limit), "more than the pool may hold");
        assert_eq!(pool.idle_bytes, 1024, "and nothing goes for it");
        assert!(!put(&mut pool, 256, 512), "other sizes go, but this one fills the pool itself");
        let mut pool = Pool::default();
        assert!(put(&mut pool, 512, limit) && put(&mut pool, 256, limit));
        let taken = pool.take(512).expect("it was put there");
        assert!(pool.put(512, taken, limit).is_ok(), "there is room");
        assert!(put(&mut pool, 320, limit), "in the place of the 256 bytes, which came before");
        assert_eq!(pool.idle_bytes, 832);
        assert!(pool.take(256).is_none());
        let taken = pool.take(512).expect("it was used last");
        assert!(pool.put(512, taken, limit).is_ok());
    }

    #[test]
    fn a_thread_takes_its_own_memory_again() {
        let buffer = Buffer::<f32>::dirty(1000);
        let memory = buffer.as_ptr() as usize;
        drop(buffer);
        std::thread::spawn(|| drop(Buffer::<f32>::dirty(1000))).join().expect("no panic");
        assert_eq!(Buffer::<f32>::dirty(1000).as_ptr() as usize, memory);
    }
}
