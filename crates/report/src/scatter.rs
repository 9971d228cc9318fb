//! Points of two measures with their intervals, as SVG that is complete without a script.

use std::fmt::Write as _;

use crate::chart::{CHAR, spread_within, ticks_of, widened};
use crate::text::{NBSP, esc, number};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 270.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 38.0;
const RIGHT: f64 = WIDTH - 44.0;

/// A value with its interval, where there is one.
pub(crate) type Value = (f64, Option<(f64, f64)>);

/// One point.
pub(crate) struct Dot {
    pub(crate) label: String,
    pub(crate) x: Value,
    pub(crate) y: Value,
    /// Whether it is filled, and joined with the others that are.
    pub(crate) is_marked: bool,
}

/// What is drawn.
pub(crate) struct Scatter {
    pub(crate) title: String,
    pub(crate) note: String,
    /// What lies along x and y.
    pub(crate) axes: [String; 2],
    pub(crate) dots: Vec<Dot>,
}

/// Values to places.
struct Plane {
    left: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Plane {
    fn x(&self, value: f64) -> f64 {
        self.left + share(value, self.x) * (RIGHT - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - share(value, self.y) * (HEIGHT - BOTTOM - TOP)
    }
}

fn share(value: f64, (low, high): (f64, f64)) -> f64 {
    if high > low { (value - low) / (high - low) } else { 0.5 }
}

impl Scatter {
    /// The figure; nothing when no point has two finite values.
    pub(crate) fn to_html(&self) -> String {
        let dots: Vec<&Dot> =
            self.dots.iter().filter(|dot| dot.x.0.is_finite() && dot.y.0.is_finite()).collect();
        let Some(plane) = plane(&dots) else { return String::new() };
        let mut svg = String::new();
        self.draw_axes(&mut svg, &plane);
        draw_front(&mut svg, &plane, &dots);
        for dot in &dots {
            draw_dot(&mut svg, &plane, dot);
        }
        draw_labels(&mut svg, &plane, &dots);
        format!(
            "<figure class=\"chart\"><figcaption><b>{}</b> <span>{}</span></figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">{svg}</svg></figure>\n",
            esc(&self.title),
            esc(&self.note),
            esc(&self.summary(&dots)),
        )
    }

    /// The plot in a sentence, for those who cannot see it.
    fn summary(&self, dots: &[&Dot]) -> String {
        let one = |dot: &&Dot| {
            let mark = if dot.is_marked { ", on the front" } else { "" };
            format!("{} at {} and {}{mark}", dot.label, number(dot.x.0), number(dot.y.0))
        };
        format!("{}: {}", self.title, dots.iter().map(one).collect::<Vec<_>>().join("; "))
    }

    fn draw_axes(&self, svg: &mut String, plane: &Plane) {
        let base = HEIGHT - BOTTOM;
        for (value, text) in ticks_of(plane.y, 5) {
            let y = plane.y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{:.1}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                plane.left,
                plane.left - 5.0,
                y + 3.5
            );
        }
        for (value, text) in ticks_of(plane.x, 5) {
            let x = plane.x(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{base}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
                base + 14.0
            );
        }
        let [x, y] = &self.axes;
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\">{}{NBSP}→</text>\
             <text class=\"name\" x=\"0\" y=\"12\">↑{NBSP}{}</text>",
            HEIGHT - 6.0,
            esc(x),
            esc(y)
        );
    }
}

fn plane(dots: &[&Dot]) -> Option<Plane> {
    let bounds = |of: fn(&Dot) -> Value| {
        let values = dots.iter().flat_map(|dot| {
            let (value, interval) = of(dot);
            let (low, high) = interval.unwrap_or((value, value));
            [value, low, high]
        });
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let low = values.iter().copied().min_by(f64::total_cmp)?;
        Some(widened(low, values.iter().copied().max_by(f64::total_cmp)?))
    };
    let (x, y) = (bounds(|dot| dot.x)?, bounds(|dot| dot.y)?);
    let widest = ticks_of(y, 5).iter().map(|(_, text)| text.chars().count()).max().unwrap_or(1);
    Some(Plane { left: (widest as f64 * CHAR + 9.0).max(26.0), x, y })
}

/// The marked points, joined from left to right.
fn draw_front(svg: &mut String, plane: &Plane, dots: &[&Dot]) {
    let mut front: Vec<(f64, f64)> =
        dots.iter().filter(|dot| dot.is_marked).map(|dot| (plane.x(dot.x.0), plane.y(dot.y.0))).collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    if front.len() > 1 {
        let places: Vec<String> = front.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(svg, "<polyline class=\"line l1\" points=\"{}\"/>", places.join(" "));
    }
}

fn draw_dot(svg: &mut String, plane: &Plane, dot: &Dot) {
    let (x, y) = (plane.x(dot.x.0), plane.y(dot.y.0));
    let color = usize::from(dot.is_marked);
    if let Some((low, high)) = dot.x.1 {
        let _ = write!(
            svg,
            "<line class=\"l{color} faint\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            plane.x(low),
            plane.x(high)
        );
    }
    if let Some((low, high)) = dot.y.1 {
        let _ = write!(
            svg,
            "<line class=\"l{color} faint\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            plane.y(low),
            plane.y(high)
        );
    }
    let class = if dot.is_marked { "f1".to_owned() } else { "ring l0".to_owned() };
    let _ = write!(
        svg,
        "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\"><title>{}: {} and {}</title></circle>",
        esc(&dot.label),
        number(dot.x.0),
        number(dot.y.0)
    );
}

/// Names beside the points, those at one place apart: above those that are marked, below the others.
fn draw_labels(svg: &mut String, plane: &Plane, dots: &[&Dot]) {
    /// Points nearer than this, along x, share a column of labels.
    const COLUMN: f64 = 40.0;
    for is_marked in [true, false] {
        let mut order: Vec<usize> = (0..dots.len()).filter(|&i| dots[i].is_marked == is_marked).collect();
        order.sort_by(|&a, &b| dots[a].x.0.total_cmp(&dots[b].x.0));
        for column in order.chunk_by(|&a, &b| plane.x(dots[b].x.0) - plane.x(dots[a].x.0) < COLUMN) {
            let away = if is_marked { -6.0 } else { 13.0 };
            let mut places: Vec<(usize, f64)> =
                column.iter().map(|&i| (i, plane.y(dots[i].y.0) + away)).collect();
            places.sort_by(|a, b| a.1.total_cmp(&b.1));
            spread_within(&mut places, (TOP, HEIGHT - BOTTOM));
            for (i, y) in places {
                draw_label(svg, (plane.x(dots[i].x.0), y), dots[i]);
            }
        }
    }
}

/// To the right of its point; to the left where it would leave the figure, or the point is not marked.
fn draw_label(svg: &mut String, (x, y): (f64, f64), dot: &Dot) {
    let n = dot.label.chars().count() as f64 * CHAR;
    let (x, anchor) = match x + 6.0 + n > WIDTH || (!dot.is_marked && x > n) {
        true => (x - 6.0, "end"),
        false => (x + 6.0, "start"),
    };
    let class = if dot.is_marked { "end t1" } else { "tick" };
    let label = esc(&dot.label);
    let _ = write!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(points: &[(f64, f64)], n_circles: usize) -> String {
        let dots = points.iter().enumerate().map(|(i, (x, y))| Dot {
            label: format!("p{i}<"),
            x: (*x, Some((x - 0.1, x + 0.1))),
            y: (*y, None),
            is_marked: i % 2 == 0,
        });
        let scatter = Scatter {
            title: "T".to_owned(),
            note: String::new(),
            axes: ["x".to_owned(), "y".to_owned()],
            dots: dots.collect(),
        };
        let html = scatter.to_html();
        assert_eq!(html.matches("<circle").count(), n_circles, "{html}");
        assert!(!html.contains("NaN") && !html.contains("inf") && !html.contains("p0<"), "{html}");
        html
    }

    #[test]
    fn points_are_drawn_within_the_plane() {
        let html = check(&[(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)], 3);
        assert!(html.contains("p0&lt; at 0.1 and 0.9, on the front; p1&lt; at 0.5 and 0.5;"), "{html}");
        assert_eq!(html.matches("polyline").count(), 1);
        // What is no number is left out, one point alone has a place, and nothing is no figure.
        check(&[(f64::NAN, 0.5), (0.5, 0.5)], 1);
        check(&[(0.5, 0.5); 4], 4);
        assert_eq!(check(&[], 0), "");
    }
}
