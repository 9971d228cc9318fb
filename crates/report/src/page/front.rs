//! Models measured in several ways, and which of them no other beats in all: a page with a table and a plot of every two measures.

use std::fmt::Write as _;

use super::{document, section, table};
use crate::front::{Front, Measure};
use crate::scatter::{Dot, Scatter};
use crate::text::{esc, number};

/// The page of a front: one file of HTML that loads nothing.
pub fn front_page(front: &Front) -> String {
    let on_front = front.undominated();
    let n_front = on_front.iter().filter(|is_on| **is_on).count();
    let lead = format!(
        "<strong>{n_front} of {}</strong> are on the front: of these, none is beaten by another in every measure at once.",
        front.points.len()
    );
    let body = format!(
        "<header class=\"top\"><p class=\"kicker\">posttrain</p><h1>{}</h1><p class=\"lead\">{lead}</p></header>\n<main>\n{}{}</main>\n\
         <footer>Written by <b>posttrain</b>. This page loads nothing.</footer>\n",
        esc(&front.title),
        section("front", "The front", &plots(front, &on_front)),
        section("all", "All of them", &all(front, &on_front)),
    );
    document(&front.title, &body)
}

fn heading(measure: &Measure) -> String {
    let less = if measure.higher_is_better { "" } else { " (less is better)" };
    format!("{}{less}", measure.name)
}

fn plots(front: &Front, on_front: &[bool]) -> String {
    let mut html = String::from("<div class=\"grid\">\n");
    let n = front.measures.len();
    for (x, y) in (0..n).flat_map(|x| (x + 1..n).map(move |y| (x, y))) {
        let dot = |(point, is_on): (&crate::front::FrontPoint, &bool)| Dot {
            label: point.label.clone(),
            x: (point.values[x].value, point.values[x].interval95),
            y: (point.values[y].value, point.values[y].interval95),
            is_marked: *is_on,
        };
        let scatter = Scatter {
            title: format!("{} against {}", front.measures[y].name, front.measures[x].name),
            note: "bars: 95 % intervals; joined and filled: the front".to_owned(),
            axes: [heading(&front.measures[x]), heading(&front.measures[y])],
            dots: front.points.iter().zip(on_front).map(dot).collect(),
        };
        html += &scatter.to_html();
    }
    html += "</div>\n";
    if n > 2 {
        html += "<p class=\"meta\">The front is that of all measures together: in a plot of two of them, a marked point may lie behind another.</p>\n";
    }
    html
}

fn all(front: &Front, on_front: &[bool]) -> String {
    let mut heads = vec![esc(&front.varied), "front".to_owned()];
    heads.extend(front.measures.iter().map(|measure| esc(&heading(measure))));
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = front
        .points
        .iter()
        .zip(on_front)
        .map(|(point, is_on)| {
            let mut cells = vec![esc(&point.label)];
            cells.push(
                if *is_on {
                    "<span class=\"good\">on it</span>"
                } else {
                    "<span class=\"soft\">beaten</span>"
                }
                .to_owned(),
            );
            for measured in &point.values {
                let mut cell = number(measured.value);
                if let Some((low, high)) = measured.interval95 {
                    let _ = write!(cell, "<small>{} to {}</small>", number(low), number(high));
                }
                cells.push(cell);
            }
            cells
        })
        .collect();
    table("with 95 % intervals", &heads, 2, &rows)
}
