//! Figures of results: accuracy from stage to stage, kinds of problems before and after, what became of each problem.

use std::fmt::Write as _;

use crate::text::{bytes, cut, esc, percent};

const WIDTH: f64 = 360.0;
/// Numbers of the colours of parts that have no meaning of their own.
pub(crate) const COLORS: &[usize] = &[1, 2, 3, 4, 5, 6];

/// A measurement of one task at one moment of the run.
pub(crate) struct Measured {
    /// Which moment, counted from 0, the base.
    pub(crate) moment: usize,
    pub(crate) share: f64,
    pub(crate) interval95: (f64, f64),
}

/// A task's measurements over the run.
pub(crate) struct Track {
    pub(crate) name: String,
    pub(crate) measured: Vec<Measured>,
}

/// Accuracy of one task over the moments of a run: a dot for each, its 95 % interval as a bar.
///
/// Moments before the task's first measurement and after its last are left out.
pub(crate) fn accuracy_over_stages(moments: &[String], track: &Track) -> String {
    const HEIGHT: f64 = 210.0;
    const BASE: f64 = HEIGHT - 32.0;
    let (Some(first), Some(last)) = (track.measured.first(), track.measured.last()) else {
        return String::new();
    };
    let shown = moments.get(first.moment..=last.moment).unwrap_or_default();
    let width = WIDTH.max(80.0 * shown.len() as f64);
    let (left, right) = (58.0, width - 64.0);
    let highest = track.measured.iter().map(|m| m.interval95.1.max(m.share)).fold(0.0, f64::max);
    let step = [0.01, 0.02, 0.05, 0.1, 0.25].into_iter().find(|step| highest / step <= 4.6).unwrap_or(0.25);
    let top = (highest / step).ceil().max(1.0) * step;
    let x = |moment: usize| {
        left + (right - left) * (moment - first.moment) as f64 / (shown.len().max(2) - 1) as f64
    };
    let y = |share: f64| BASE - share / top * (BASE - 16.0);
    let mut svg = String::new();
    for i in 0..=(top / step).round() as usize {
        let (share, y) = (i as f64 * step, y(i as f64 * step));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"34\" x2=\"{width:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" x=\"28\" y=\"{:.1}\" text-anchor=\"end\">{:.0}</text>",
            y + 3.5,
            share * 100.0
        );
    }
    for (i, moment) in shown.iter().enumerate() {
        let (x, name) = (x(first.moment + i), esc(cut(moment, 13).0));
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>",
            HEIGHT - 10.0
        );
    }
    draw_track(&mut svg, track, &x, &y);
    format!(
        "<figure class=\"chart\"><figcaption><b>Accuracy: {}</b> <span>percent of held-out problems solved; bars are 95&nbsp;% \
         intervals</span></figcaption><svg viewBox=\"0 0 {width} {HEIGHT}\" role=\"img\" aria-label=\"{}\">{svg}</svg></figure>\n",
        esc(&track.name),
        esc(&said(track, moments))
    )
}

fn draw_track(svg: &mut String, track: &Track, x: &dyn Fn(usize) -> f64, y: &dyn Fn(f64) -> f64) {
    let place = |m: &Measured| (x(m.moment), y(m.share));
    let line: Vec<String> = track.measured.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(svg, "<polyline class=\"line faint l1\" points=\"{}\"/>", line.join(" "));
    for (i, m) in track.measured.iter().enumerate() {
        let ((x, y_dot), (low, high)) = (place(m), m.interval95);
        // Beside the line that goes on from here, not on it; nor on the names beneath the axis.
        let (dx, dy, anchor) = match track.measured.get(i + 1) {
            Some(next) if next.share > m.share && y_dot + 18.0 > y(0.0) => {
                (4.0, y(high) - y_dot - 7.0, "end")
            }
            Some(next) if next.share > m.share => (9.0, 15.0, "start"),
            Some(_) => (9.0, -7.0, "start"),
            None => (9.0, 4.0, "start"),
        };
        let _ = write!(
            svg,
            "<line class=\"bar l1\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle class=\"f1\" cx=\"{x:.1}\" cy=\"{y_dot:.1}\" r=\"4.5\"><title>{}</title></circle>\
             <text class=\"end t1\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            y(low),
            y(high),
            esc(&format!("{} ({} to {})", percent(m.share), percent(low), percent(high))),
            x + dx,
            y_dot + dy,
            percent(m.share),
        );
    }
}

fn said(track: &Track, moments: &[String]) -> String {
    let one =
        |m: &Measured| format!("{} {}", moments.get(m.moment).map_or("", String::as_str), percent(m.share));
    let all: Vec<String> = track.measured.iter().map(one).collect();
    format!("{}: {}", track.name, all.join(", "))
}

/// A kind of problem before and after.
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) n: usize,
    pub(crate) before: f64,
    pub(crate) after: f64,
    /// Whether the change is more than chance.
    pub(crate) is_significant: bool,
}

/// Kinds of problems, one a row: a ring before, a dot after, a line between.
pub(crate) fn before_and_after(title: &str, note: &str, pairs: &[Pair]) -> String {
    const ROW: f64 = 26.0;
    let height = 26.0 + ROW * pairs.len() as f64;
    let (left, right) = (96.0, WIDTH - 16.0);
    let x = |share: f64| left + (right - left) * share;
    let mut svg = String::new();
    for i in 0..=4 {
        let (share, base) = (f64::from(i) / 4.0, height - 20.0);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"4\" y2=\"{base}\"/>\
             <text class=\"tick\" x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\">{2:.0}</text>",
            x(share),
            height - 6.0,
            share * 100.0
        );
    }
    for (i, pair) in pairs.iter().enumerate() {
        draw_pair(&mut svg, pair, 18.0 + ROW * i as f64, (x(pair.before), x(pair.after)));
    }
    let said: Vec<String> =
        pairs.iter().map(|p| format!("{}: {} to {}", p.name, percent(p.before), percent(p.after))).collect();
    format!(
        "<figure class=\"chart\"><figcaption><b>{}</b> <span>{}</span></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">{svg}</svg></figure>\n",
        esc(title),
        esc(note),
        esc(&said.join("; "))
    )
}

fn draw_pair(svg: &mut String, pair: &Pair, y: f64, (before, after): (f64, f64)) {
    let color = if !pair.is_significant {
        0
    } else if pair.after >= pair.before {
        1
    } else {
        2
    };
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"4\" y=\"{:.1}\">{}</text>\
         <g><title>{}</title><line class=\"bar l{color}\" x1=\"{before:.1}\" x2=\"{after:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <circle class=\"ring l{color}\" cx=\"{before:.1}\" cy=\"{y:.1}\" r=\"4\"/>\
         <circle class=\"f{color}\" cx=\"{after:.1}\" cy=\"{y:.1}\" r=\"4.5\"/></g>",
        y + 4.0,
        esc(cut(&pair.name, 14).0),
        esc(&format!(
            "{}, {} problems: {} before, {} after",
            pair.name,
            pair.n,
            percent(pair.before),
            percent(pair.after)
        )),
    );
}

/// A bar cut into parts, with what each is written beneath.
///
/// Colours go by number from `colors`, again from the start where there are more parts.
pub(crate) fn parts_bar(what: &str, parts: &[(&str, f64, String)], colors: &[usize]) -> String {
    let total: f64 = parts.iter().map(|part| part.1).sum();
    if total <= 0.0 {
        return String::new();
    }
    let (mut x, mut svg, mut key) = (0.0, String::new(), String::new());
    for (i, (name, size, text)) in parts.iter().enumerate() {
        let width = size / total * WIDTH;
        let color = colors[i % colors.len()];
        let _ = write!(
            svg,
            "<rect class=\"f{color}\" x=\"{x:.2}\" y=\"0\" width=\"{:.2}\" height=\"14\"><title>{}</title></rect>",
            (width - 1.0).max(if *size > 0.0 { 0.6 } else { 0.0 }),
            esc(&format!("{name}: {text}"))
        );
        let _ = write!(key, "<li><i class=\"b{color}\"></i>{} <b>{}</b></li>", esc(name), esc(text));
        x += width;
    }
    let said: Vec<String> = parts.iter().map(|(name, _, text)| format!("{name} {text}")).collect();
    format!(
        "<div class=\"parts\"><svg viewBox=\"0 0 {WIDTH} 14\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">{svg}</svg>\
         <ul class=\"key\">{key}</ul></div>\n",
        esc(&format!("{what}: {}", said.join(", ")))
    )
}

/// Planned memory, part by part.
pub(crate) fn memory_bar(parts: &[(String, f64)]) -> String {
    let parts: Vec<(&str, f64, String)> =
        parts.iter().map(|(name, n)| (name.as_str(), *n, bytes(*n))).collect();
    parts_bar("planned memory", &parts, COLORS)
}
