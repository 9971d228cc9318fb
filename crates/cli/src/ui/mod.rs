//! What people see: colours, errors, progress, tables, and files that appear whole.

mod output;
mod progress;
mod style;
mod table;
mod training;

pub(crate) use output::{JsonLines, check_target, write_json_lines};
pub(crate) use progress::Progress;
pub(crate) use style::Style;
pub(crate) use table::{Table, screen_width, wrap};
pub(crate) use training::TrainingView;

/// Prints a line to standard error. That this fails cannot be told to anyone.
pub(crate) fn note(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// An error with all its causes. A cause that the line above it quotes already is left out.
pub(crate) fn describe(error: &anyhow::Error, style: Style) -> String {
    let mut text = format!("{} {error}", style.error("error:"));
    let mut above = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !above.contains(&cause) {
            text += &format!("\n  {} {cause}", style.dim("because:"));
            above = cause;
        }
    }
    text
}

/// A whole number with its thousands set apart: `12,345`.
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 row`, `12,345 rows`.
pub(crate) fn counted(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_nouns_agree() {
        let cases = [(0, "0 rows"), (1, "1 row"), (999, "999 rows"), (1_234_567, "1,234,567 rows")];
        for (n, expected) in cases {
            assert_eq!(counted(n, "row"), expected);
        }
    }

    #[test]
    fn a_cause_is_shown_once() {
        let error =
            anyhow::anyhow!("disk full").context("cannot write x: disk full").context("while scoring");
        let expected = "error: while scoring\n  because: cannot write x: disk full";
        assert_eq!(describe(&error, Style::new(false)), expected);
    }
}
