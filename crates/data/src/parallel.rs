//! Mapping rows on all cores, in order.
//!
//! The output is the same whatever the number of threads: items keep their order, and the first error *by
//! row order* is the one reported, not the first to happen.

use rayon::prelude::*;

/// Items handed to the threads at once; bounds memory, and the work done past an error.
const CHUNK: usize = 4096;

/// Maps `items` with `f` on rayon's threads, lazily by chunks, keeping the order.
///
/// `collect::<Result<Vec<_>, _>>()` gives the first error by order.
pub fn map_ordered<I, T, U, F>(items: I, f: F) -> impl Iterator<Item = U>
where
    I: IntoIterator<Item = T>,
    T: Send,
    U: Send,
    F: Fn(T) -> U + Sync,
{
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = items.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            return None;
        }
        let mapped: Vec<U> = chunk.into_par_iter().map(&f).collect();
        Some(mapped)
    })
    .flatten()
}

/// Maps all `items` with a step that can fail.
///
/// # Errors
/// The first error by the order of the items.
pub fn try_map_ordered<I, T, U, E, F>(items: I, f: F) -> Result<Vec<U>, E>
where
    I: IntoIterator<Item = T>,
    T: Send,
    U: Send,
    E: Send,
    F: Fn(T) -> Result<U, E> + Sync,
{
    map_ordered(items, f).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_across_chunks() {
        let mapped: Vec<usize> = map_ordered(0..3 * CHUNK + 5, |i| i * 2).collect();
        assert_eq!(mapped, (0..3 * CHUNK + 5).map(|i| i * 2).collect::<Vec<_>>());
        assert_eq!(map_ordered(Vec::<usize>::new(), |i| i).count(), 0);
    }

    #[test]
    fn the_first_error_by_order_wins() {
        // The late item fails at once, the early one after work: whichever thread is first, 100 is reported.
        let result = try_map_ordered(0..5000u64, |i| match i {
            100 => Err(i * (0..200_000u64).map(std::hint::black_box).filter(|b| *b == 1).count() as u64),
            101.. if i % 1000 == 0 => Err(i),
            _ => Ok(i),
        });
        assert_eq!(result, Err(100));
    }
}
