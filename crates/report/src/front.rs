//! The Pareto front: of several models, those that no other beats in everything.
//!
//! A point is beaten where another is at least as good in every measure and better in one. Intervals are shown and not looked at: a
//! point that is beaten by less than its interval may belong to the front as well.

/// One way of measuring.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// What it is called.
    pub name: String,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// A model in one measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// What was measured.
    pub value: f64,
    /// Its 95 % interval, where there is one.
    pub interval95: Option<(f64, f64)>,
}

/// A model in every measure.
#[derive(Clone, Debug, PartialEq)]
pub struct FrontPoint {
    /// What was varied: a weight, for instance.
    pub label: String,
    /// One for each measure.
    pub values: Vec<Measured>,
}

/// Models with what they were measured by.
#[derive(Clone, Debug, PartialEq)]
pub struct Front {
    /// What they are.
    pub title: String,
    /// What the labels say.
    pub varied: String,
    /// The measures, two or more.
    pub measures: Vec<Measure>,
    /// The models.
    pub points: Vec<FrontPoint>,
}

impl Front {
    /// Which points no other beats. Equal points do not beat each other; one with a value that is no number is never on the front.
    ///
    /// # Panics
    /// If a point has not one value for each measure.
    pub fn undominated(&self) -> Vec<bool> {
        let goods: Vec<Vec<f64>> = self.points.iter().map(|point| self.goods(point)).collect();
        let beats = |a: &[f64], b: &[f64]| {
            a.iter().zip(b).all(|(a, b)| a >= b) && a.iter().zip(b).any(|(a, b)| a > b)
        };
        let is_on = |own: &Vec<f64>| {
            !own.iter().any(|value| value.is_nan()) && !goods.iter().any(|other| beats(other, own))
        };
        goods.iter().map(is_on).collect()
    }

    /// A point's values, turned so that more is better.
    fn goods(&self, point: &FrontPoint) -> Vec<f64> {
        assert_eq!(point.values.len(), self.measures.len(), "a value for each measure of {}", point.label);
        let turned = |(measure, measured): (&Measure, &Measured)| {
            if measure.higher_is_better { measured.value } else { -measured.value }
        };
        self.measures.iter().zip(&point.values).map(turned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::front_page;

    fn front(rows: &[(&str, [f64; 2])], second_is_loss: bool) -> Front {
        let measured = |value| Measured { value, interval95: Some((value - 0.1, value + 0.1)) };
        Front {
            title: "a & b".to_owned(),
            varied: "weight of <b>".to_owned(),
            measures: vec![
                Measure { name: "sums".to_owned(), higher_is_better: true },
                Measure { name: "chat".to_owned(), higher_is_better: !second_is_loss },
            ],
            points: rows
                .iter()
                .map(|(label, values)| FrontPoint {
                    label: (*label).to_owned(),
                    values: values.map(measured).to_vec(),
                })
                .collect(),
        }
    }

    #[test]
    fn what_is_beaten_in_everything_is_not_on_the_front() {
        let rows = [
            ("0", [0.9, 0.1]),
            ("0.5", [0.7, 0.6]),
            ("0.6", [0.6, 0.5]),
            ("1", [0.2, 0.8]),
            ("twin", [0.2, 0.8]),
        ];
        assert_eq!(front(&rows, false).undominated(), [true, true, false, true, true]);
        // Where less of the second is better, the first beats all.
        assert_eq!(front(&rows, true).undominated(), [true, false, false, false, false]);
        assert_eq!(front(&[("x", [f64::NAN, 1.0]), ("y", [0.0, 0.0])], false).undominated(), [false, true]);
        // As good in one and better in the other is enough.
        assert_eq!(front(&[("x", [0.5, 0.5]), ("y", [0.5, 0.6])], false).undominated(), [false, true]);
    }

    #[test]
    fn the_page_shows_every_point_and_loads_nothing() {
        let rows = [("0", [0.9, 0.1]), ("0.5", [0.7, 0.6]), ("0.6", [0.6, 0.5]), ("1", [0.2, 0.8])];
        let html = front_page(&front(&rows, false));
        for text in [
            "<strong>3 of 4</strong>",
            "a &amp; b",
            "weight of &lt;b&gt;",
            "chat against sums",
            "0.5 to 0.7",
            "beaten",
        ] {
            assert!(html.contains(text), "no {text} in {html}");
        }
        assert_eq!(html.matches("<circle").count(), 4);
        for text in ["http://", "https://", "src=", "NaN"] {
            assert!(!html.contains(text), "{text} in the page");
        }
    }
}
