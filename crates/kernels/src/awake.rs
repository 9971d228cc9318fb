//! Short parallel loops, one after another, without putting threads to sleep between them.
//!
//! A pass over a decoder for a few rows is a hundred loops of some ten microseconds, with serial work between. Rayon's
//! workers look for work a few times and go to sleep; to wake one takes as long as such a loop. [`awake`] keeps them
//! looking until the pass is done.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// How long the caller waits for the other workers to come: busy ones are not waited for.
const GATHERING: Duration = Duration::from_micros(30);
/// A worker that found nothing for so long goes back to sleep: the serial parts of a pass are shorter.
const PATIENCE: Duration = Duration::from_millis(1);

/// Whether somebody keeps the workers awake: two could wait for each other.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

struct Gate {
    /// Twice the number of workers that are in, and [`CLOSED`].
    state: AtomicUsize,
    is_done: AtomicBool,
}

const CLOSED: usize = 1;

/// Runs `f` on a worker of the current pool, the other workers meanwhile looking for its parallel loops without sleeping.
///
/// Workers that are busy elsewhere are left alone, and so are all where another call is under way: then `f` just runs.
/// What a waiting worker was in the middle of goes on when `f` is done.
pub fn awake<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| {
        let _awake = Awake::begin();
        f()
    })
}

/// Workers are kept awake until this is dropped, also by a panic.
struct Awake(Option<Arc<Gate>>);

impl Awake {
    fn begin() -> Self {
        let others = rayon::current_num_threads() - 1;
        if others == 0 || IS_TAKEN.swap(true, Ordering::Acquire) {
            return Awake(None);
        }
        let gate = Arc::new(Gate { state: AtomicUsize::new(0), is_done: AtomicBool::new(false) });
        let (owner, theirs) = (rayon::current_thread_index(), gate.clone());
        rayon::spawn_broadcast(move |context| {
            if Some(context.index()) != owner {
                theirs.wait();
            }
        });
        let start = Instant::now();
        while gate.state.load(Ordering::Relaxed) < 2 * others && start.elapsed() < GATHERING {
            spin_loop();
        }
        // Whoever comes later may be in the middle of a loop of `f`, which would then wait for itself.
        gate.state.fetch_or(CLOSED, Ordering::SeqCst);
        Awake(Some(gate))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.is_done.store(true, Ordering::Release);
            IS_TAKEN.store(false, Ordering::Release);
        }
    }
}

impl Gate {
    fn wait(&self) {
        let enter = |state| (state & CLOSED == 0).then_some(state + 2);
        if self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter).is_err() {
            return;
        }
        let mut since = Instant::now();
        while !self.is_done.load(Ordering::Acquire) {
            if rayon::yield_now() == Some(Yield::Executed) {
                since = Instant::now();
            } else if since.elapsed() > PATIENCE {
                return;
            } else {
                spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn sum(n: usize) -> usize {
        (0..n)
            .into_par_iter()
            .map(|i| (0..n).into_par_iter().with_max_len(1).map(|j| i ^ j).sum::<usize>())
            .sum()
    }

    #[test]
    fn calls_from_many_threads_and_from_within_each_other_all_end() {
        let expected = sum(40);
        let nested = || awake(|| (sum(40), awake(|| sum(40))));
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..50).map(|_| nested()).collect::<Vec<_>>())).collect();
            for thread in threads {
                let results = thread.join().expect("no call panics");
                assert!(results.iter().all(|result| *result == (expected, expected)));
            }
        });
        // As parts of a parallel loop, whose workers then are the ones to be kept awake.
        let inside: Vec<usize> = (0..50).into_par_iter().map(|_| awake(|| sum(40))).collect();
        assert!(inside.iter().all(|found| *found == expected));
    }

    #[test]
    fn a_panic_passes_and_lets_the_workers_go() {
        let result = std::panic::catch_unwind(|| awake(|| panic!("on purpose")));
        assert!(result.is_err());
        assert_eq!(awake(|| sum(10)), sum(10));
    }
}
