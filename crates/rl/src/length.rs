//! What becomes of long completions: DAPO's soft punishment, and masking of those that were cut.

use serde::{Deserialize, Serialize};

use crate::RlError;

/// DAPO's soft overlong punishment (Yu et al. 2025, arXiv:2503.14476, equation 13).
///
/// ```text
/// 0                        up to L − C tokens
/// ((L − C) − n) / C        up to L
/// −1                       beyond
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftOverlong {
    /// L: the greatest length that is not fully punished.
    pub max_completion_len: usize,
    /// C: how far before L punishment begins.
    pub soft_punish_cache: usize,
}

impl SoftOverlong {
    /// Refuses a cache of nothing, or longer than the completion.
    ///
    /// # Errors
    /// [`RlError::Option`].
    pub fn check(&self) -> Result<(), RlError> {
        let (option, max) = ("soft_punish_cache", self.max_completion_len);
        if (1..=max).contains(&self.soft_punish_cache) {
            return Ok(());
        }
        let expected = format!("1 to max_completion_len, which is {max}");
        Err(RlError::Option { option, value: self.soft_punish_cache.to_string(), expected })
    }

    /// The reward of a completion of `n_tokens`: -1 to 0.
    pub fn reward(&self, n_tokens: usize) -> f64 {
        let free = self.max_completion_len.saturating_sub(self.soft_punish_cache);
        let over = n_tokens.saturating_sub(free) as f64;
        -(over / self.soft_punish_cache as f64).min(1.0)
    }
}

/// Sets the loss weights of completions that were cut at the limit to 0 (DAPO's overlong filtering, TRL's
/// `mask_truncated_completions`). They still count where an objective divides by the number of completions.
pub fn mask_truncated<'a>(completions: impl Iterator<Item = (&'a mut [f32], bool)>) {
    for (weights, is_truncated) in completions {
        if is_truncated {
            weights.fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punishment_grows_linearly_over_the_cache() {
        let punishment = SoftOverlong { max_completion_len: 100, soft_punish_cache: 20 };
        for (n, expected) in
            [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (5000, -1.0)]
        {
            assert!((punishment.reward(n) - expected).abs() < 1e-12, "{n}: {}", punishment.reward(n));
        }
        for cache in [0, 101] {
            let error =
                SoftOverlong { soft_punish_cache: cache, ..punishment }.check().unwrap_err().to_string();
            assert!(error.contains("expected 1 to max_completion_len, which is 100"), "{error}");
        }
    }

    #[test]
    fn only_what_was_cut_is_masked() {
        let (mut cut, mut whole) = (vec![1.0_f32; 3], vec![1.0_f32; 2]);
        mask_truncated([(&mut cut[..], true), (&mut whole[..], false)].into_iter());
        assert_eq!((cut, whole), (vec![0.0; 3], vec![1.0; 2]));
    }
}
