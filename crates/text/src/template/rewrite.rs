//! What is rewritten in a template's source before the engine sees it.
//!
//! - Line ends: Jinja reads `\r\n` and `\r` as `\n`.
//! - `{% generation %}`, which transformers adds to Jinja, becomes a `{% filter %}` block, which has the
//!   same whitespace rules. When spans are wanted the filter brackets its body with two characters
//!   that occur nowhere in the plain rendering; their places in the output are the spans.
//! - `{% for x in xs %}` becomes `{% for x in pt_iterable(xs) %}`: Python refuses to iterate over `None`,
//!   the engine does not, and a template that loses its tools in silence must fail instead.

use std::ops::Range;

/// The filter that stands for the tag.
pub(super) const FILTER: &str = "pt_generation";
/// The template variable that holds the two marker characters, when spans are wanted.
pub(super) const MARKERS: &str = "pt_generation_markers";

/// The function that refuses what Python cannot iterate over.
pub(super) const ITERABLE: &str = "pt_iterable";

/// The source to compile, and whether it had a `{% generation %}` tag.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let source = &source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut marks_generation = false;
    let mut in_raw = false;
    let mut pos = 0;
    while let Some(found) = source[pos..].find('{') {
        let start = pos + found;
        out.push_str(&source[pos..start]);
        let rest = &source[start..];
        let len = match rest.as_bytes().get(1) {
            Some(b'#') if !in_raw => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') if !in_raw => end_of_code(rest, "}}"),
            Some(b'%') => end_of_code(rest, "%}"),
            _ => 1,
        };
        pos = start + len;
        let code = &rest[..len];
        if !code.starts_with("{%") {
            out.push_str(code);
            continue;
        }
        match tag_of(code) {
            "endraw" => in_raw = false,
            // Inside raw text only the end of it is code.
            _ if in_raw => pos = start + 1,
            "raw" => in_raw = true,
            "generation" => marks_generation = true,
            _ => {}
        }
        out.push_str(&rewrite_tag(&source[start..pos]));
    }
    out.push_str(&source[pos..]);
    (out, marks_generation)
}

/// The first word of a `{% ... %}`.
fn tag_of(code: &str) -> &str {
    let inner = code[2..].trim_start_matches(['-', '+']).trim_start();
    &inner[..inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len())]
}

fn rewrite_tag(code: &str) -> String {
    if !code.starts_with("{%") {
        return code.to_owned();
    }
    match tag_of(code) {
        "generation" => code.replacen("generation", &format!("filter {FILTER}"), 1),
        "endgeneration" => code.replacen("endgeneration", "endfilter", 1),
        "for" => match iterated_range(code) {
            Some(r) => format!("{}{ITERABLE}({}){}", &code[..r.start], &code[r.clone()], &code[r.end..]),
            None => code.to_owned(),
        },
        _ => code.to_owned(),
    }
}

/// Where the iterated expression of a `{% for ... in EXPRESSION [if ...] [recursive] %}` lies.
fn iterated_range(code: &str) -> Option<Range<usize>> {
    let close = code.len() - code.ends_with("%}").then_some(2)?;
    let close = close - usize::from(code[..close].ends_with(['-', '+']));
    let words = top_level_words(&code[..close]);
    let start = words.iter().find(|r| &code[(*r).clone()] == "in")?.end;
    let end = words.iter().find(|r| r.start > start && matches!(&code[(*r).clone()], "if" | "recursive"));
    let end = end.map_or(close, |r| r.start);
    let expression = &code[start..end];
    let start = start + (expression.len() - expression.trim_start().len());
    Some(start..start + expression.trim().len())
}

/// The words outside strings and brackets.
fn top_level_words(code: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut quote = None;
    let mut escaped = false;
    let mut depth = 0usize;
    for (i, c) in code.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if matches!(c, '(' | '[') => depth += 1,
            None if matches!(c, ')' | ']') => depth = depth.saturating_sub(1),
            None if depth == 0 && (c.is_alphanumeric() || c == '_') => match words.last_mut() {
                Some(word) if word.end == i => word.end += c.len_utf8(),
                _ => words.push(i..i + c.len_utf8()),
            },
            None => {}
        }
    }
    words
}

/// The end of a `{{ ... }}` or `{% ... %}` that starts `text`, minding quoted strings.
fn end_of_code(text: &str, close: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if text[i..].starts_with(close) => return i + close.len(),
            None => {}
        }
    }
    text.len()
}

/// Two characters that do not occur in `text`, from Unicode's noncharacters.
pub(super) fn markers_absent_from(text: &str) -> Option<[char; 2]> {
    let mut absent = ('\u{FDD0}'..='\u{FDEF}').filter(|c| !text.contains(*c));
    Some([absent.next()?, absent.next()?])
}

/// Removes the markers from `marked` and returns the text and the byte ranges they enclosed.
pub(super) fn take_spans(marked: &str, markers: [char; 2]) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut open = Vec::new();
    for c in marked.chars() {
        if c == markers[0] {
            open.push(text.len());
        } else if c == markers[1] {
            if let Some(start) = open.pop() {
                spans.push(start..text.len());
            }
        } else {
            text.push(c);
        }
    }
    (text, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_rewritten_where_they_are_tags_and_nowhere_else() {
        let cases = [
            ("a{%- generation -%}b{% endgeneration %}", "a{%- filter pt_generation -%}b{% endfilter %}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{% raw %}{% generation %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}"),
            ("{% set x = '%}{% generation %}' %}", "{% set x = '%}{% generation %}' %}"),
            ("{%generation%}é{%endgeneration%}", "{%filter pt_generation%}é{%endfilter%}"),
            ("no tags { here", "no tags { here"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{% raw %}{{ '{% endraw %}", "{% raw %}{{ '{% endraw %}"),
            ("{%- for m in ms -%}", "{%- for m in pt_iterable(ms) -%}"),
            (
                "{% for k, v in d.items() if v in xs recursive %}",
                "{% for k, v in pt_iterable(d.items()) if v in xs recursive %}",
            ),
            ("{% for x in [1 if a else 2] %}", "{% for x in pt_iterable([1 if a else 2]) %}"),
            ("{% for c in ' if ' %}", "{% for c in pt_iterable(' if ') %}"),
            ("{% for m in ms[1:]|list\n if x%}", "{% for m in pt_iterable(ms[1:]|list)\n if x%}"),
        ];
        for (source, expected) in cases {
            let (rewritten, any) = rewrite(source);
            assert_eq!(rewritten, expected);
            assert_eq!(any, expected.contains("filter pt_generation"), "{source}");
        }
    }
}
