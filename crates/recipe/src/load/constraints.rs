//! Checks of rewards that have a bound.

use super::Checks;
use crate::resolve::{MULTIPLIER_INIT, MULTIPLIER_MAX};
use crate::tree::Node;

impl Checks<'_, '_> {
    /// A reward has one bound or none; what belongs to a multiplier has no effect without one.
    pub(super) fn constraints(&mut self, stage: &str) {
        for i in 0..self.count(&format!("{stage}.reward")) {
            let key = |name: &str| format!("{stage}.reward.{i}.{name}");
            let [at_least, at_most] = ["at_least", "at_most"].map(|name| self.has(&key(name)));
            if at_least && at_most {
                let message =
                    "a reward has one bound; bound it the other way in a `[[stage.reward]]` of its own";
                self.at(&key("at_most"), &key("at_most"), message);
            }
            for name in ["multiplier_init", "multiplier_lr", "multiplier_max"] {
                if !at_least && !at_most && self.has(&key(name)) {
                    let message = "has no effect without a bound; give `at_least` or `at_most`, or remove it";
                    self.at(&key(name), &key(name), message);
                }
            }
            if (at_least || at_most) && self.has(&key("hidden")) {
                let message = "a reward with a bound is not only watched; remove `hidden` or the bound";
                self.at(&key("hidden"), &key("hidden"), message);
            }
            let number = |name: &str, default: f64| {
                self.root.find(&key(name)).and_then(Node::number).unwrap_or(default)
            };
            let (init, max) =
                (number("multiplier_init", MULTIPLIER_INIT), number("multiplier_max", MULTIPLIER_MAX));
            if (at_least || at_most) && init > max {
                let at = if self.has(&key("multiplier_init")) { "multiplier_init" } else { "multiplier_max" };
                let message =
                    format!("the multiplier begins at {init}, above `multiplier_max`, which is {max}");
                self.at(&key(at), &key(at), &message);
            }
        }
    }
}
