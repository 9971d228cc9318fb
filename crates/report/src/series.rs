//! A metric over steps, and how many of its points a chart can honestly show.

/// What a chart shows at one place: a value, or the mean, least and greatest of the values that fell together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Step; the middle of those that fell together.
    pub step: f64,
    /// Mean.
    pub mean: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
}

/// The values of one metric, in order of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Step and value. A value may be NaN or infinite.
    pub values: Vec<(u64, f64)>,
}

/// Most points of a line: a chart is about as many pixels wide.
pub(crate) const MAX_POINTS: usize = 240;

impl Series {
    /// The finite values.
    pub fn finite(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        self.values.iter().copied().filter(|(_, value)| value.is_finite())
    }

    /// How many values are not finite.
    pub fn n_not_finite(&self) -> usize {
        self.values.len() - self.finite().count()
    }

    /// The first and last finite values.
    pub fn ends(&self) -> Option<((u64, f64), (u64, f64))> {
        Some((self.finite().next()?, self.finite().last()?))
    }

    /// The least and greatest finite values with their steps.
    pub fn extremes(&self) -> Option<((u64, f64), (u64, f64))> {
        let by_value = |a: &(u64, f64), b: &(u64, f64)| a.1.total_cmp(&b.1);
        Some((self.finite().min_by(by_value)?, self.finite().max_by(by_value)?))
    }

    /// Whether there is nothing to draw: no or one value, or always the same.
    pub fn is_constant(&self) -> bool {
        self.extremes().is_none_or(|(low, high)| low.1 == high.1)
    }

    /// At most `n` points: every finite value if there are no more, else the range of steps in `n` equal parts, each
    /// with the mean, least and greatest of what fell into it, so that no spike is lost.
    pub fn points(&self, n: usize) -> Vec<Point> {
        let finite: Vec<(u64, f64)> = self.finite().collect();
        if finite.len() <= n {
            return finite
                .iter()
                .map(|&(step, v)| Point { step: step as f64, mean: v, min: v, max: v })
                .collect();
        }
        let (first, last) = (finite[0].0, finite[finite.len() - 1].0);
        let width = ((last - first) as f64 + 1.0) / n as f64;
        let part = |step: u64| (((step - first) as f64 / width) as usize).min(n - 1);
        finite.chunk_by(|a, b| part(a.0) == part(b.0)).map(together).collect()
    }
}

fn together(values: &[(u64, f64)]) -> Point {
    let n = values.len() as f64;
    let of = |f: fn(f64, f64) -> f64, start: f64| values.iter().map(|v| v.1).fold(start, f);
    Point {
        step: values.iter().map(|v| v.0 as f64).sum::<f64>() / n,
        mean: values.iter().map(|v| v.1).sum::<f64>() / n,
        min: of(f64::min, f64::INFINITY),
        max: of(f64::max, f64::NEG_INFINITY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_values_are_kept_as_they_are() {
        let series = Series { values: vec![(1, 2.0), (2, f64::NAN), (3, -1.0)] };
        let point = |step: f64, v: f64| Point { step, mean: v, min: v, max: v };
        assert_eq!(series.points(10), [point(1.0, 2.0), point(3.0, -1.0)]);
        assert_eq!(series.n_not_finite(), 1);
    }

    #[test]
    fn many_values_keep_every_spike_and_the_mean() {
        let value = |step: u64| if step == 77_777 { 1000.0 } else { (step % 10) as f64 };
        let series = Series { values: (1..=100_000).map(|step| (step, value(step))).collect() };
        let points = series.points(MAX_POINTS);
        assert_eq!(points.len(), MAX_POINTS);
        assert_eq!(points.iter().map(|p| p.max).fold(0.0, f64::max), 1000.0);
        assert_eq!(points.iter().map(|p| p.min).fold(9.0, f64::min), 0.0);
        assert!(points.iter().all(|p| p.min <= p.mean && p.mean <= p.max));
        assert!(points.windows(2).all(|pair| pair[0].step < pair[1].step));
        let usual = points.iter().filter(|p| p.max < 10.0).map(|p| (p.mean - 4.5).abs()).fold(0.0, f64::max);
        assert!(usual < 0.1, "a part's mean is {usual} from that of all");
    }

    #[test]
    fn nothing_is_constant() {
        assert!(Series::default().is_constant());
        assert!(Series { values: vec![(1, 0.5), (2, 0.5)] }.is_constant());
        assert!(!Series { values: vec![(1, 0.5), (2, 0.6)] }.is_constant());
    }
}
