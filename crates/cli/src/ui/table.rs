//! Aligned text.

use crate::environment::Environment;
use crate::ui::Style;

/// The width where there is no terminal and `COLUMNS` does not say.
const DEFAULT_WIDTH: usize = 100;
/// Narrower than this, text is not wrapped any further.
const LEAST_WIDTH: usize = 40;

/// How many columns there are.
pub(crate) fn screen_width(environment: &Environment) -> usize {
    let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    environment.columns.or_else(terminal).unwrap_or(DEFAULT_WIDTH).max(LEAST_WIDTH)
}

/// Words in lines of at most `width` characters; a longer word has a line of its own.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Names on the left, wrapped text on the right.
pub(crate) struct Table {
    rows: Vec<(String, String)>,
    indent: usize,
}

impl Table {
    /// An empty table, `indent` columns from the left.
    pub(crate) fn new(indent: usize) -> Table {
        Table { rows: Vec::new(), indent }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.rows.push((name.into(), text.into()));
    }

    /// The table as text, each line ended.
    pub(crate) fn render(&self, width: usize, style: Style) -> String {
        let left = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let right = width.saturating_sub(self.indent + left + 2).max(LEAST_WIDTH / 2);
        let mut out = String::new();
        for (name, text) in &self.rows {
            for (i, line) in wrap(text, right).iter().enumerate() {
                let padding = " ".repeat(left - if i == 0 { name.chars().count() } else { 0 });
                let name = if i == 0 { style.name(name) } else { String::new() };
                let line = format!("{}{name}{padding}  {line}", " ".repeat(self.indent));
                out += line.trim_end();
                out.push('\n');
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_text_wraps() {
        let mut table = Table::new(2);
        table.row("a", "one two three four five six seven eight nine ten");
        table.row("long", "x");
        let expected = "  a     one two three four five six seven\n        eight nine ten\n  long  x\n";
        assert_eq!(table.render(42, Style::new(false)), expected);
        assert_eq!(wrap("", 10), [""]);
        assert_eq!(wrap("abcdefghijkl mn", 5), ["abcdefghijkl", "mn"]);
    }
}
