//! One score of a reply from those of its steps.

use serde::{Deserialize, Serialize};

/// How the probabilities that each step is right become one score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// The least: a chain is as good as its weakest step (Wang et al. 2023, Math-Shepherd, arXiv:2312.08935, section 3.4).
    #[default]
    Min,
    /// The product: the probability that all are right, were they independent (Lightman et al. 2023, arXiv:2305.20050, section 2.6).
    Product,
    /// The last one's: the whole solution, seen from its end (Snell et al. 2024, arXiv:2408.03314, section 5.1).
    Last,
    /// The mean.
    Mean,
}

impl Aggregate {
    /// All of them, by name.
    pub const ALL: [(&str, Aggregate); 4] = [
        ("min", Aggregate::Min),
        ("product", Aggregate::Product),
        ("last", Aggregate::Last),
        ("mean", Aggregate::Mean),
    ];

    /// The score; `None` of no steps.
    pub fn of(self, steps: &[f64]) -> Option<f64> {
        let last = *steps.last()?;
        Some(match self {
            Aggregate::Min => steps.iter().copied().fold(f64::INFINITY, f64::min),
            Aggregate::Product => steps.iter().product(),
            Aggregate::Last => last,
            Aggregate::Mean => steps.iter().sum::<f64>() / steps.len() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_definitions() {
        for (name, expected) in [("min", 0.25), ("product", 0.125 * 0.75), ("last", 0.75), ("mean", 0.5)] {
            let aggregate = Aggregate::ALL.iter().find(|(n, _)| *n == name).unwrap().1;
            assert_eq!(aggregate.of(&[0.5, 0.25, 0.75]), Some(expected), "{name}");
            assert_eq!(aggregate.of(&[]), None);
        }
    }
}
