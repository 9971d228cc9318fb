//! The most frequent n-gram of a step's completions.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// An n-gram and how much of all it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NgramShare {
    /// Its token ids.
    pub ngram: Vec<u32>,
    /// Its occurrences, by those of all n-grams.
    pub share: f64,
    /// How many n-grams there are.
    pub n_total: usize,
}

/// The most frequent run of `n` tokens; the first one, by token ids, of several. `None` where no completion is that long.
pub fn top_ngram<'a>(completions: impl IntoIterator<Item = &'a [u32]>, n: usize) -> Option<NgramShare> {
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    let mut n_total = 0;
    for completion in completions {
        for ngram in completion.windows(n.max(1)) {
            *counts.entry(ngram).or_default() += 1;
            n_total += 1;
        }
    }
    let (ngram, count) = counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(a.0)))?;
    Some(NgramShare { ngram: ngram.to_vec(), share: count as f64 / n_total as f64, n_total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_is_found_and_ties_are_settled() {
        let check = |completions: &[&[u32]], n: usize, expected: Option<(&[u32], f64)>| {
            let found = top_ngram(completions.iter().copied(), n);
            assert_eq!(found.as_ref().map(|top| (top.ngram.as_slice(), top.share)), expected);
        };
        check(&[&[1, 2, 3], &[5, 2, 3]], 2, Some((&[2, 3], 0.5)));
        check(&[&[9, 9, 9, 9, 9]], 2, Some((&[9, 9], 1.0)));
        check(&[&[4, 5], &[1, 2]], 2, Some((&[1, 2], 0.5)));
        check(&[&[1], &[]], 2, None);
        check(&[], 4, None);
    }
}
