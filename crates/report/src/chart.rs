//! Line charts of metrics over steps, as SVG that is complete without a script.
//!
//! A chart is 360 units wide and drawn at about that many pixels on every screen, so that its text has one size.

use std::fmt::Write as _;

use serde_json::json;

use crate::series::{MAX_POINTS, Point, Series};
use crate::text::{NBSP, esc, number};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 200.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 24.0;
/// Height of a line of text.
const LINE: f64 = 13.0;
/// Width of a character of a label, on average.
pub(crate) const CHAR: f64 = 5.9;

/// One line of a chart.
pub(crate) struct Line<'a> {
    pub(crate) label: String,
    pub(crate) series: &'a Series,
    /// Least and greatest values that are metrics of their own.
    pub(crate) band: Option<(&'a Series, &'a Series)>,
    /// Each value as a dot: what is measured seldom.
    pub(crate) has_dots: bool,
    /// Number of its colour, from 1.
    pub(crate) color: usize,
}

/// What is drawn.
pub(crate) struct Chart<'a> {
    pub(crate) title: String,
    /// What the numbers mean, in a few words.
    pub(crate) note: String,
    pub(crate) lines: Vec<Line<'a>>,
    /// A step to mark, with what it is.
    pub(crate) mark: Option<(u64, &'static str)>,
    /// Whether a logarithmic axis is sensible.
    pub(crate) may_be_log: bool,
}

/// Values to places.
struct Axes {
    left: f64,
    right: f64,
    steps: (f64, f64),
    values: (f64, f64),
    is_log: bool,
}

impl Axes {
    fn x(&self, step: f64) -> f64 {
        let (first, last) = self.steps;
        let share = if last > first { (step - first) / (last - first) } else { 0.5 };
        self.left + share * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.is_log { v.max(f64::MIN_POSITIVE).log10() } else { v };
        let (low, high) = (scale(self.values.0), scale(self.values.1));
        let share = if high > low { (scale(value) - low) / (high - low) } else { 0.5 };
        HEIGHT - BOTTOM - share.clamp(-0.1, 1.1) * (HEIGHT - BOTTOM - TOP)
    }
}

impl Chart<'_> {
    /// The figure; nothing when no line has a finite value.
    pub(crate) fn to_html(&self) -> String {
        let points: Vec<Vec<Point>> = self.lines.iter().map(|line| line.series.points(MAX_POINTS)).collect();
        let Some(axes) = self.axes(&points) else { return String::new() };
        let mut svg = String::new();
        draw_grid(&mut svg, &axes);
        self.draw_mark(&mut svg, &axes);
        for (line, points) in self.lines.iter().zip(&points) {
            draw_band(&mut svg, &axes, line, points);
        }
        for (line, points) in self.lines.iter().zip(&points) {
            draw_line(&mut svg, &axes, line, points);
        }
        self.draw_labels(&mut svg, &axes, &points);
        format!(
            "<figure class=\"chart\"><figcaption><b>{}</b> <span>{}</span></figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-chart=\"{}\">{svg}</svg></figure>\n",
            esc(&self.title),
            self.caption(axes.is_log),
            esc(&self.summary()),
            esc(&self.data(&axes, &points)),
        )
    }

    fn axes(&self, points: &[Vec<Point>]) -> Option<Axes> {
        let bands = self.lines.iter().filter_map(|line| line.band);
        let in_bands = bands.flat_map(|(low, high)| low.finite().chain(high.finite()).map(|v| v.1));
        let values: Vec<f64> = points.iter().flatten().flat_map(|p| [p.min, p.max]).chain(in_bands).collect();
        let steps: Vec<f64> = points.iter().flatten().map(|p| p.step).collect();
        let (low, high) = range(&values)?;
        let is_log = self.may_be_log && low > 0.0 && high / low > 100.0;
        let values = if is_log { (low * 0.8, high * 1.25) } else { widened(low, high) };
        let mut axes = Axes { left: 0.0, right: 0.0, steps: range(&steps)?, values, is_log };
        let widest = ticks(&axes).iter().map(|(_, text)| text.chars().count()).max().unwrap_or(1);
        axes.left = (widest as f64 * CHAR + 9.0).max(26.0);
        let label = self.end_labels().iter().map(|text| text.chars().count()).max().unwrap_or(1);
        axes.right = WIDTH - (label as f64 * CHAR + 9.0).min(140.0);
        Some(axes)
    }

    /// Name and last value, as they stand at the end of each line.
    fn end_labels(&self) -> Vec<String> {
        let label = |line: &Line<'_>| {
            let last = line.series.ends().map(|(_, last)| number(last.1)).unwrap_or_default();
            if self.lines.len() == 1 { last } else { format!("{} {last}", line.label) }
        };
        self.lines.iter().map(label).collect()
    }

    fn draw_labels(&self, svg: &mut String, axes: &Axes, points: &[Vec<Point>]) {
        let ends = points.iter().map(|points| points.last().map(|p| axes.y(p.mean)));
        let mut places: Vec<(usize, f64)> = ends.enumerate().filter_map(|(i, y)| Some((i, y?))).collect();
        places.sort_by(|a, b| a.1.total_cmp(&b.1));
        spread(&mut places);
        let labels = self.end_labels();
        for (i, y) in places {
            let x = axes.right + 6.0;
            let color = self.lines[i].color;
            let _ = write!(
                svg,
                "<text class=\"end t{color}\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                y + 4.0,
                esc(&labels[i])
            );
        }
    }

    fn draw_mark(&self, svg: &mut String, axes: &Axes) {
        let Some((step, what)) = self.mark.filter(|m| (axes.steps.0..=axes.steps.1).contains(&(m.0 as f64)))
        else {
            return;
        };
        let x = axes.x(step as f64);
        let anchor = if x > (axes.left + axes.right) / 2.0 { ("end", -4.0) } else { ("start", 4.0) };
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"{}\">{}</text>",
            HEIGHT - BOTTOM,
            x + anchor.1,
            TOP + 8.0,
            anchor.0,
            esc(what)
        );
    }

    /// What the numbers mean, and what a person must know to read the chart rightly.
    fn caption(&self, is_log: bool) -> String {
        let mut parts: Vec<String> =
            Some(esc(&self.note)).filter(|note| !note.is_empty()).into_iter().collect();
        if is_log {
            parts.push("logarithmic axis".to_owned());
        }
        let most = self.lines.iter().map(|line| line.series.finite().count()).max().unwrap_or(0);
        if most > MAX_POINTS {
            let n = most.div_ceil(MAX_POINTS);
            parts.push(format!("line: mean of about {n} values, band: least to greatest"));
        }
        let n_bad: usize = self.lines.iter().map(|line| line.series.n_not_finite()).sum();
        if n_bad > 0 {
            parts.push(format!("<strong>not finite, so not drawn: {n_bad}</strong>"));
        }
        parts.join("; ")
    }

    /// The chart in a sentence, for those who cannot see it.
    fn summary(&self) -> String {
        let line = |line: &Line<'_>| {
            let ((first_step, first), (last_step, last)) = line.series.ends()?;
            let name = if self.lines.len() == 1 { "" } else { &line.label };
            Some(format!(
                "{name} from {} at step {first_step} to {} at step {last_step}",
                number(first),
                number(last)
            ))
        };
        let lines: Vec<String> = self.lines.iter().filter_map(line).collect();
        format!("{} over steps: {}", self.title, lines.join("; "))
    }

    /// Points for the pointer's label: places of the axes, then names and values.
    fn data(&self, axes: &Axes, points: &[Vec<Point>]) -> String {
        let short = |x: f64| json!(format!("{x:.4e}").parse::<f64>().unwrap_or(x));
        let of_line = |(line, points): (&Line<'_>, &Vec<Point>)| {
            let values: Vec<_> = points.iter().flat_map(|p| [json!(p.step.round()), short(p.mean)]).collect();
            json!([line.label, line.color, values])
        };
        let lines: Vec<_> = self.lines.iter().zip(points).map(of_line).collect();
        json!([axes.left.round(), axes.right.round(), axes.steps.0, axes.steps.1, lines]).to_string()
    }
}

/// Moves labels apart so that none lies on another, from the top down, then back up from the bottom.
fn spread(places: &mut [(usize, f64)]) {
    spread_within(places, (TOP, HEIGHT - BOTTOM));
}

/// The same between other edges.
pub(crate) fn spread_within(places: &mut [(usize, f64)], (top, bottom): (f64, f64)) {
    let mut above = top - LINE;
    for (_, y) in places.iter_mut() {
        *y = y.max(above + LINE);
        above = *y;
    }
    let mut below = bottom + LINE;
    for (_, y) in places.iter_mut().rev() {
        *y = y.min(below - LINE);
        below = *y;
    }
}

fn range(values: &[f64]) -> Option<(f64, f64)> {
    let low = values.iter().copied().min_by(f64::total_cmp)?;
    Some((low, values.iter().copied().max_by(f64::total_cmp)?))
}

/// A little room, and zero where it is near.
pub(crate) fn widened(low: f64, high: f64) -> (f64, f64) {
    let room = if high > low { (high - low) * 0.06 } else { low.abs().max(1e-9) * 0.5 };
    match (low, high) {
        (low, high) if low >= 0.0 && low < 0.35 * high => (0.0, high + room),
        (low, high) if high <= 0.0 && high > 0.35 * low => (low - room, 0.0),
        _ => (low - room, high + room),
    }
}

/// Values to mark on the upright axis, with their text.
fn ticks(axes: &Axes) -> Vec<(f64, String)> {
    let (low, high) = axes.values;
    if axes.is_log {
        let exponents = low.log10().ceil() as i32..=high.log10().floor() as i32;
        let apart = (exponents.clone().count() / 4).max(1);
        return exponents.step_by(apart).map(|e| 10f64.powi(e)).map(|v| (v, number(v))).collect();
    }
    ticks_of((low, high), 5)
}

/// Round values between two, about `n` of them, with their text.
pub(crate) fn ticks_of((low, high): (f64, f64), n: usize) -> Vec<(f64, String)> {
    let values = round_values(low, high, n);
    let apart = values.get(1).map_or(1.0, |second| second - values[0]);
    // All with the decimals of the distance between them, unless that needs powers of ten.
    let decimals = (-(apart * 1.000_001).log10().floor()).max(0.0) as usize;
    let text = |v: f64| match decimals {
        1..=5 if v.abs() < 1000.0 => format!("{v:.decimals$}").replace('-', "−"),
        _ => number(v),
    };
    values.into_iter().map(|v| (v, if v == 0.0 { "0".to_owned() } else { text(v) })).collect()
}

/// Round numbers between two, about `n` of them.
fn round_values(low: f64, high: f64, n: usize) -> Vec<f64> {
    let rough = (high - low) / n as f64;
    if !rough.is_normal() || rough <= 0.0 {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn draw_grid(svg: &mut String, axes: &Axes) {
    let base = HEIGHT - BOTTOM;
    for (value, text) in ticks(axes) {
        let y = axes.y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            axes.left,
            axes.right,
            axes.left - 5.0,
            y + 3.5
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{base}\" y2=\"{base}\"/>",
        axes.left, axes.right
    );
    let mut steps = round_values(axes.steps.0, axes.steps.1, 4);
    steps.retain(|step| step.fract() == 0.0 && *step > 0.0);
    for step in steps {
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            axes.x(step),
            HEIGHT - 8.0,
            number(step)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">step</text>",
        WIDTH - 2.0,
        HEIGHT - 8.0
    );
}

fn draw_band(svg: &mut String, axes: &Axes, line: &Line<'_>, points: &[Point]) {
    type Edge = Vec<(f64, f64)>;
    let (low, high): (Edge, Edge) = match line.band {
        Some((low, high)) => {
            let of = |series: &Series, f: fn(&Point) -> f64| {
                series.points(MAX_POINTS).iter().map(|p| (p.step, f(p))).collect::<Edge>()
            };
            (of(low, |p| p.min), of(high, |p| p.max))
        }
        None if points.iter().all(|p| p.min == p.max) => return,
        None => (
            points.iter().map(|p| (p.step, p.min)).collect(),
            points.iter().map(|p| (p.step, p.max)).collect(),
        ),
    };
    let outline: Vec<String> = high
        .iter()
        .chain(low.iter().rev())
        .map(|(step, value)| format!("{:.1},{:.1}", axes.x(*step), axes.y(*value)))
        .collect();
    let _ = write!(svg, "<polygon class=\"band f{}\" points=\"{}\"/>", line.color, outline.join(" "));
}

fn draw_line(svg: &mut String, axes: &Axes, line: &Line<'_>, points: &[Point]) {
    let places: Vec<String> =
        points.iter().map(|p| format!("{:.1},{:.1}", axes.x(p.step), axes.y(p.mean))).collect();
    if places.len() > 1 {
        let _ = write!(svg, "<polyline class=\"line l{}\" points=\"{}\"/>", line.color, places.join(" "));
    }
    if (line.has_dots && places.len() <= 40) || places.len() == 1 {
        for p in points {
            let _ = write!(
                svg,
                "<circle class=\"f{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>step {}:{NBSP}{}</title></circle>",
                line.color,
                axes.x(p.step),
                axes.y(p.mean),
                p.step,
                number(p.mean)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series { values: values.iter().enumerate().map(|(i, v)| (i as u64 + 1, *v)).collect() }
    }

    fn check(values: &[f64], expected: &[&str], absent: &[&str]) {
        let series = series(values);
        let line = Line { label: "a<b".into(), series: &series, band: None, has_dots: false, color: 1 };
        let chart = Chart {
            title: "T&".into(),
            note: String::new(),
            lines: vec![line],
            mark: None,
            may_be_log: true,
        };
        let html = chart.to_html();
        for text in expected {
            assert!(html.contains(text), "no {text} in {html}");
        }
        for text in absent {
            assert!(!html.contains(text), "{text} in {html}");
        }
    }

    #[test]
    fn charts_say_what_they_show() {
        check(
            &[4.0, 2.0, 1.0],
            &["<b>T&amp;</b>", "T&amp; over steps:  from 4 at step 1 to 1 at step 3", "polyline"],
            &["NaN", "a<b"],
        );
        check(&[0.001, 10.0], &["logarithmic axis"], &[]);
        check(&[1.0, f64::NAN, 2.0], &["not finite, so not drawn: 1"], &["NaN"]);
        check(&[0.5], &["<circle"], &["polyline", "NaN"]);
        check(&[1.0; 3], &["polyline"], &["NaN"]);
        check(&vec![1.0; 1000], &["mean of about 5 values"], &["NaN"]);
        check(&[-1e300, 1e300], &["polyline"], &["NaN", "inf"]);
        let nothing = series(&[f64::NAN]);
        let line = Line { label: String::new(), series: &nothing, band: None, has_dots: false, color: 1 };
        let chart = Chart {
            title: String::new(),
            note: String::new(),
            lines: vec![line],
            mark: None,
            may_be_log: true,
        };
        assert_eq!(chart.to_html(), "");
    }

    #[test]
    fn labels_do_not_lie_on_each_other() {
        let mut places = [(0, 100.0), (1, 101.0), (2, 175.0), (3, 176.0)];
        spread(&mut places);
        assert!(places.windows(2).all(|pair| pair[1].1 - pair[0].1 >= LINE), "{places:?}");
        assert!(places.iter().all(|place| place.1 <= HEIGHT - BOTTOM));
    }

    #[test]
    fn marks_of_an_axis_have_the_same_decimals() {
        let axes = |values| Axes { left: 0.0, right: 1.0, steps: (0.0, 1.0), values, is_log: false };
        let cases = [
            ((0.0, 0.0021), vec!["0", "0.0005", "0.0010", "0.0015", "0.0020"]),
            ((-0.5, 1.0), vec!["−0.5", "0", "0.5", "1.0"]),
            ((2.0, 6.1), vec!["2", "3", "4", "5", "6"]),
            ((0.0, 4e-9), vec!["0", "1·10⁻⁹", "2·10⁻⁹", "3·10⁻⁹", "4·10⁻⁹"]),
        ];
        for (values, expected) in cases {
            let found: Vec<String> = ticks(&axes(values)).into_iter().map(|(_, text)| text).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn marks_are_round() {
        assert_eq!(round_values(0.0, 1.0, 4), [0.0, 0.5, 1.0]);
        assert_eq!(round_values(3.0, 41.0, 4), [10.0, 20.0, 30.0, 40.0]);
        assert_eq!(round_values(2.0, 2.0, 4), [2.0]);
    }
}
