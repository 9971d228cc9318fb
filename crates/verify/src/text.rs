//! Small things that several verifiers do with text.

/// At most `n_chars` characters, for reasons.
pub(crate) fn shortened(text: &str, n_chars: usize) -> String {
    match text.char_indices().nth(n_chars) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// What comes after the last `</think>`; the whole text if there is none.
pub(crate) fn after_thinking(text: &str) -> &str {
    text.rsplit_once("</think>").map_or(text, |(_, answer)| answer)
}

/// The insides of Markdown code fences, in order; one that is never closed goes to the end.
pub(crate) fn fenced(text: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, opened)) = rest.split_once("```") {
        let (block, after) = opened.split_once("```").unwrap_or((opened, ""));
        // What stands on the line of the fence names the language.
        let is_language = |line: &str| line.trim().chars().all(|c| c.is_alphanumeric() || "+-_.".contains(c));
        let inside = match block.split_once('\n') {
            Some((line, inside)) if is_language(line) => inside,
            _ => block,
        };
        blocks.push(inside.trim());
        rest = after;
    }
    blocks
}
