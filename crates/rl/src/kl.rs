//! The coefficient of the divergence, fixed or following a target.

use serde::{Deserialize, Serialize};

use crate::RlError;

/// By how much one update may take the error into account.
const ERROR_LIMIT: f64 = 0.2;

/// The coefficient of the divergence from the reference policy; its state is the value itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum KlController {
    /// Always the same.
    Fixed {
        /// The coefficient.
        coef: f64,
    },
    /// Follows a target: `coef ← coef · (1 + clip(kl / target − 1, ±0.2) · n / horizon)`.
    ///
    /// Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, as InstructGPT's predecessors used it.
    Adaptive {
        /// The coefficient now.
        coef: f64,
        /// The divergence it aims at, in the unit it is fed with.
        target: f64,
        /// The number of samples over which a constant error of 100 % would double it, were errors not limited.
        horizon: f64,
    },
}

impl KlController {
    /// Refuses values out of range.
    ///
    /// # Errors
    /// [`RlError::Option`].
    pub fn check(&self) -> Result<(), RlError> {
        let checked = |option, value: f64, is_right: bool, expected: &str| match is_right {
            true => Ok(()),
            false => Err(RlError::Option { option, value: value.to_string(), expected: expected.to_owned() }),
        };
        let coef = self.coef();
        checked("coef", coef, coef >= 0.0 && coef.is_finite(), "a number of at least 0")?;
        if let KlController::Adaptive { target, horizon, .. } = *self {
            checked("target", target, target > 0.0 && target.is_finite(), "a number above 0")?;
            checked("horizon", horizon, horizon > 0.0 && horizon.is_finite(), "a number above 0")?;
        }
        Ok(())
    }

    /// The coefficient now.
    pub fn coef(&self) -> f64 {
        match *self {
            KlController::Fixed { coef } | KlController::Adaptive { coef, .. } => coef,
        }
    }

    /// Takes in the divergence measured on `n_samples`; one that is not finite changes nothing.
    pub fn update(&mut self, kl: f64, n_samples: usize) {
        if let KlController::Adaptive { coef, target, horizon } = self
            && kl.is_finite()
        {
            let error = (kl / *target - 1.0).clamp(-ERROR_LIMIT, ERROR_LIMIT);
            *coef = (*coef * (1.0 + error * n_samples as f64 / *horizon)).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coefficient_follows_the_target() {
        let check = |kl: f64, expected: f64| {
            let mut controller = KlController::Adaptive { coef: 0.1, target: 6.0, horizon: 1000.0 };
            controller.update(kl, 100);
            assert!((controller.coef() - expected).abs() < 1e-12, "{kl}: {}", controller.coef());
        };
        check(6.0, 0.1);
        check(6.6, 0.1 * 1.01);
        check(600.0, 0.1 * 1.02);
        check(0.0, 0.1 * 0.98);
        check(f64::NAN, 0.1);
        let mut fixed = KlController::Fixed { coef: 0.05 };
        fixed.update(100.0, 1000);
        assert_eq!(fixed.coef(), 0.05);
        let error = KlController::Adaptive { coef: 0.1, target: 0.0, horizon: 1.0 }.check().unwrap_err();
        assert!(error.to_string().contains("target is 0, expected a number above 0"));
    }

    #[test]
    fn state_is_the_controller_itself() {
        let mut controller = KlController::Adaptive { coef: 0.1, target: 6.0, horizon: 1000.0 };
        controller.update(7.3, 13);
        let text = serde_json::to_string(&controller).unwrap();
        assert_eq!(serde_json::from_str::<KlController>(&text).unwrap(), controller);
    }
}
