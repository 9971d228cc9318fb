//! Colours, or none.

/// Whether text is coloured (ECMA-48 codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// With colours or without.
    pub(crate) fn new(colours: bool) -> Style {
        Style { colours }
    }

    /// Whether there are colours.
    pub(crate) fn has_colours(self) -> bool {
        self.colours
    }

    /// A heading.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A name to be typed.
    pub(crate) fn name(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    /// What matters less.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// What is good.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What is doubtful.
    pub(crate) fn warning(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// What is wrong.
    pub(crate) fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}
