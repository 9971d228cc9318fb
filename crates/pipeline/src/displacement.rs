//! The alarm of stages on pairs: chosen replies grow less likely while the margin grows.

use pt_objectives::preference::{Displacement, DisplacementAlarm};
use pt_train::{Alarm, AlarmAction, StepStats};
use serde_json::{Value, json};

/// Steps on each side of the comparison.
const HALF_WINDOW: usize = 10;

/// Watches the steps and warns when displacement begins; again only after it has ended.
pub(crate) struct DisplacementWatch {
    alarm: DisplacementAlarm,
    is_ringing: bool,
}

impl Default for DisplacementWatch {
    fn default() -> DisplacementWatch {
        DisplacementWatch { alarm: DisplacementAlarm::new(HALF_WINDOW), is_ringing: false }
    }
}

impl DisplacementWatch {
    /// Takes in step `step_idx`, from 0.
    pub(crate) fn observe(&mut self, step_idx: u64, stats: &StepStats) -> Option<Alarm> {
        let value = |name: &str| Some(stats.metrics.iter().find(|(key, _)| key == name)?.1);
        let seen = self.alarm.observe_means(value("rewards/chosen")?, value("rewards/margins")?);
        let was_ringing = std::mem::replace(&mut self.is_ringing, seen.is_some());
        seen.filter(|_| !was_ringing).map(|seen| Alarm {
            action: AlarmAction::Warn,
            since_step: (step_idx + 1).saturating_sub(HALF_WINDOW as u64),
            reason: reason(seen),
        })
    }

    /// What a checkpoint keeps.
    pub(crate) fn state(&self) -> Value {
        json!({"steps": self.alarm.window(), "is_ringing": self.is_ringing})
    }

    /// Puts back what [`DisplacementWatch::state`] gave; anything else starts the window anew.
    pub(crate) fn restore(&mut self, state: &Value) {
        *self = DisplacementWatch::default();
        let steps: Vec<(f64, f64)> = serde_json::from_value(state["steps"].clone()).unwrap_or_default();
        for (chosen, margin) in steps {
            self.alarm.observe_means(chosen, margin);
        }
        self.is_ringing = state["is_ringing"].as_bool().unwrap_or(false);
    }
}

fn reason(seen: Displacement) -> String {
    format!(
        "chosen replies grow less likely while the margin grows: rewards/chosen went from {:.4} to {:.4}, rewards/margins from \
         {:.4} to {:.4}, means over {HALF_WINDOW} steps each. The probability goes to replies in neither list; add a likelihood term \
         (the loss `sft` beside `sigmoid`, or cpo), lower the learning rate, or raise beta",
        seen.chosen.0, seen.chosen.1, seen.margin.0, seen.margin.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_warns_once_and_goes_on_where_it_was() {
        let stats = |chosen: f64, margin: f64| StepStats {
            metrics: vec![("rewards/chosen".to_owned(), chosen), ("rewards/margins".to_owned(), margin)],
            ..StepStats::default()
        };
        let mut watch = DisplacementWatch::default();
        let mut warned = Vec::new();
        for step in 0..40 {
            let x = step as f64;
            if let Some(alarm) = watch.observe(step, &stats(-x, x)) {
                assert!(alarm.reason.contains("less likely"), "{}", alarm.reason);
                warned.push(step);
            }
            if step == 10 {
                let state = watch.state();
                watch = DisplacementWatch::default();
                watch.restore(&state);
            }
        }
        assert_eq!(warned, [19]);
        assert!(watch.observe(40, &StepStats::default()).is_none());
    }
}
