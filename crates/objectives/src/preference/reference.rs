//! The check before the first step: the policy is its reference.

use crate::{ObjectiveError, TokenBatch};

/// Checks that policy and reference give every trained token the same log-probability, exactly.
///
/// Before the first step both are the same model on the same tokens, so every log-ratio is 0, every margin is 0, and the
/// sigmoid loss is ln 2. Anything else is an error in set-up that would silently shift every reward of the run.
///
/// # Errors
/// [`ObjectiveError::ReferenceDiffers`] with how many tokens differ and by how much; [`ObjectiveError::Missing`] without a
/// reference, and the errors of a batch whose arrays do not fit.
pub fn expect_equal_reference(batch: &TokenBatch<'_>) -> Result<(), ObjectiveError> {
    const NAME: &str = "step 0 check";
    batch.check(NAME, crate::Needs { reference_logp: true, ..Default::default() })?;
    let Some(reference) = batch.reference_logp else {
        return Err(ObjectiveError::Missing { name: NAME, what: "the reference log-probability" });
    };
    let difference = |i: usize| (f64::from(batch.logp[i]) - f64::from(reference[i])).abs();
    let differing = batch.trained().map(|(i, _)| i).filter(|&i| batch.logp[i] != reference[i]);
    let (mut n_different, mut worst) = (0, None::<usize>);
    for i in differing {
        n_different += 1;
        worst = worst.filter(|&w| difference(w) >= difference(i)).or(Some(i));
    }
    let Some(index) = worst else { return Ok(()) };
    Err(ObjectiveError::ReferenceDiffers {
        n_different,
        n_trained: batch.trained().count(),
        difference: difference(index),
        index,
        policy: batch.logp[index],
        reference: reference[index],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_off_its_reference_is_an_error_with_the_largest_difference() {
        let check = |reference: &[f32]| {
            let (logp, weights) = ([-1.0, -2.0, -3.0], [1.0, 0.0, 1.0]);
            let batch = TokenBatch {
                logp: &logp,
                weights: &weights,
                reference_logp: Some(reference),
                ..TokenBatch::default()
            };
            expect_equal_reference(&batch).map_err(|e| e.to_string())
        };
        assert_eq!(check(&[-1.0, -9.0, -3.0]), Ok(()), "untrained tokens are not compared");
        let message = check(&[-1.0 - f32::EPSILON, -2.0, -3.5]).unwrap_err();
        for expected in ["2 of 2 trained", "up to 0.5", "token 2: policy -3, reference -3.5", "dropout"] {
            assert!(message.contains(expected), "{message} should mention {expected}");
        }
        assert!(check(&[-1.0, -2.0]).unwrap_err().contains("has 2 tokens, expected 3"));
        assert!(check(&[f32::NAN, -2.0, -3.0]).unwrap_err().contains("NaN"));
    }
}
