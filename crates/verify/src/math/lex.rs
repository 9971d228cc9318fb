//! LaTeX and plain text to tokens.

use super::expr::{Function, Relation};

/// Answers with more tokens are compared as texts only.
const MAX_TOKENS: usize = 1500;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Digits with at most one point, then the digits that repeat for ever.
    Number {
        digits: String,
        repeating: String,
    },
    /// A variable, Greek ones by name.
    Letter(String),
    /// A word in plain text.
    Word(String),
    /// The inside of `\text{...}`.
    Text(String),
    /// `\sin`, `sqrt`.
    Function(Function),
    /// `\frac` and its kin, and `\binom`.
    Frac,
    Binomial,
    Relation(Relation),
    /// `\pi`, `\infty`, `e` and `i`.
    Pi,
    Infinity,
    /// `\begin{...matrix}` and its end.
    MatrixBegin,
    MatrixEnd,
    /// `\\`.
    NewRow,
    Cup,
    PlusMinus,
    MinusPlus,
    /// `\$` and its kin.
    Currency(&'static str),
    Percent,
    Degree,
    /// "and", "or", a comma, a semicolon.
    Separator,
    /// `\{` and `\}`, as opposed to the braces that only group.
    SetOpen,
    SetClose,
    FloorOpen,
    FloorClose,
    CeilOpen,
    CeilClose,
    EmptySet,
    Reals,
    /// Space, kept where it tells a mixed number from digits.
    Space,
    /// Anything else, by itself.
    Symbol(char),
}

/// Words that are units in plain text, with the name they are compared by.
#[rustfmt::skip]
const UNITS: &[(&str, &str)] = &[
    ("mm", "mm"), ("cm", "cm"), ("km", "km"), ("ft", "foot"), ("feet", "foot"), ("foot", "foot"), ("in", "inch"),
    ("inch", "inch"), ("inches", "inch"), ("yd", "yard"), ("yards", "yard"), ("yard", "yard"), ("mile", "mile"),
    ("miles", "mile"), ("m", "metre"), ("meter", "metre"), ("meters", "metre"), ("metre", "metre"), ("metres", "metre"),
    ("centimeters", "cm"), ("centimeter", "cm"), ("centimetres", "cm"), ("kilometers", "km"), ("kilometres", "km"),
    ("millimeters", "mm"), ("kg", "kg"), ("kilograms", "kg"), ("mg", "mg"), ("g", "gram"), ("grams", "gram"),
    ("gram", "gram"), ("lb", "pound"), ("lbs", "pound"), ("pounds", "pound"), ("pound", "pound"), ("oz", "ounce"),
    ("ounces", "ounce"), ("ounce", "ounce"), ("s", "second"), ("sec", "second"), ("seconds", "second"),
    ("second", "second"), ("min", "minute"), ("mins", "minute"), ("minutes", "minute"), ("minute", "minute"),
    ("h", "hour"), ("hr", "hour"), ("hrs", "hour"), ("hours", "hour"), ("hour", "hour"), ("day", "day"), ("days", "day"),
    ("week", "week"), ("weeks", "week"), ("month", "month"), ("months", "month"), ("year", "year"), ("years", "year"),
    ("dollar", "dollar"), ("dollars", "dollar"), ("usd", "dollar"), ("cent", "cent"), ("cents", "cent"),
    ("euro", "euro"), ("euros", "euro"), ("ml", "ml"), ("liter", "litre"), ("liters", "litre"), ("litres", "litre"),
    ("mph", "mph"), ("kmh", "kmh"), ("degree", "degree"), ("degrees", "degree"), ("am", "am"), ("pm", "pm"),
];

/// The name a unit is compared by; `None` for words that are no known unit.
pub(super) fn unit(word: &str) -> Option<&'static str> {
    UNITS.iter().find(|(name, _)| *name == word).map(|(_, unit)| *unit)
}

#[rustfmt::skip]
const FUNCTIONS: &[(&str, Function)] = &[
    ("sin", Function::Sin), ("cos", Function::Cos), ("tan", Function::Tan), ("cot", Function::Cot), ("sec", Function::Sec),
    ("csc", Function::Csc), ("arcsin", Function::Arcsin), ("arccos", Function::Arccos), ("arctan", Function::Arctan),
    ("asin", Function::Arcsin), ("acos", Function::Arccos), ("atan", Function::Arctan), ("sinh", Function::Sinh),
    ("cosh", Function::Cosh), ("tanh", Function::Tanh), ("exp", Function::Exp), ("ln", Function::Ln), ("log", Function::Log),
    ("lg", Function::Log), ("sqrt", Function::Root), ("abs", Function::Abs),
];

#[rustfmt::skip]
const GREEK: &[&str] = &[
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "kappa", "lambda",
    "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta",
    "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar",
];

/// Commands that only change how things look.
#[rustfmt::skip]
const INVISIBLE: &[&str] = &[
    "left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "displaystyle",
    "textstyle", "limits", "rm", "bf", "it", "boldsymbol", "mathbf", "mathit", "mathcal", "hline", "vec", "hat", "hfill",
    "nonumber", "middle", "boxed",
];

/// Commands that are space.
const SPACES: &[&str] =
    &["quad", "qquad", "enspace", "thinspace", "hspace", "space", ",", ";", ":", " ", ">", "\n"];

/// Characters beyond ASCII, as the LaTeX they stand for.
#[rustfmt::skip]
const UNICODE: &[(char, &str)] = &[
    ('−', "-"), ('–', "-"), ('—', "-"), ('×', "\\times "), ('·', "\\cdot "), ('⋅', "\\cdot "), ('∙', "\\cdot "),
    ('÷', "/"), ('∕', "/"), ('π', "\\pi "), ('∞', "\\infty "), ('≤', "\\le "), ('≥', "\\ge "), ('≠', "\\ne "),
    ('≈', "\\approx "), ('∪', "\\cup "), ('∈', "\\in "), ('±', "\\pm "), ('∓', "\\mp "), ('°', "^\\circ "), ('√', "\\sqrt "),
    ('∅', "\\emptyset "), ('ℝ', "\\mathbb{R}"), ('½', "\\frac12 "), ('¼', "\\frac14 "), ('¾', "\\frac34 "),
    ('⅓', "\\frac13 "), ('⅔', "\\frac23 "), ('⁰', "^0"), ('¹', "^1"), ('²', "^2"), ('³', "^3"), ('⁴', "^4"), ('⁵', "^5"),
    ('⁶', "^6"), ('⁷', "^7"), ('⁸', "^8"), ('⁹', "^9"), ('€', "\\euro "), ('£', "\\pounds "), ('θ', "\\theta "),
    ('α', "\\alpha "), ('β', "\\beta "), ('λ', "\\lambda "), ('μ', "\\mu "), ('σ', "\\sigma "), ('φ', "\\phi "),
    ('ω', "\\omega "), ('\u{a0}', " "), ('\u{202f}', " "), ('，', ","), ('（', "("), ('）', ")"), ('％', "\\%"), ('＝', "="),
];

/// The tokens of an answer; an error says what could not be read.
///
/// # Errors
/// An unknown command, or an answer of too many tokens.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut latex = String::with_capacity(text.len());
    for c in text.chars() {
        match UNICODE.iter().find(|(from, _)| *from == c) {
            Some((_, to)) => latex.push_str(to),
            None => latex.push(c),
        }
    }
    let chars: Vec<char> = latex.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, brackets: 0, out: Vec::new() };
    while lexer.at < chars.len() {
        lexer.step()?;
        if lexer.out.len() > MAX_TOKENS {
            return Err(format!("it has more than {MAX_TOKENS} symbols"));
        }
    }
    Ok(lexer.out)
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    /// How many brackets are open: inside them a comma separates, and outside it may mark thousands.
    brackets: usize,
    out: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(k, c)| self.peek(k) == Some(c))
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(&keep) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn push(&mut self, token: Token, n_chars: usize) {
        self.out.push(token);
        self.at += n_chars;
    }

    fn step(&mut self) -> Result<(), String> {
        let c = self.chars[self.at];
        let next_is_digit = self.peek(1).is_some_and(|c| c.is_ascii_digit());
        match c {
            '\\' => return self.command(),
            '0'..='9' => self.number(),
            '.' if next_is_digit => self.number(),
            'a'..='z' | 'A'..='Z' => self.letters(),
            c if c.is_whitespace() || c == '~' => {
                self.take_while(|c| c.is_whitespace() || c == '~');
                self.out.push(Token::Space);
            }
            '$' => self.push(Token::Currency("dollar"), 1),
            '%' => self.push(Token::Percent, 1),
            '<' if self.peek(1) == Some('=') => self.push(Token::Relation(Relation::LessEqual), 2),
            '>' if self.peek(1) == Some('=') => self.push(Token::Relation(Relation::GreaterEqual), 2),
            '!' if self.peek(1) == Some('=') => self.push(Token::Relation(Relation::NotEqual), 2),
            '<' => self.push(Token::Relation(Relation::Less), 1),
            '>' => self.push(Token::Relation(Relation::Greater), 1),
            '=' => self.push(Token::Relation(Relation::Equal), if self.peek(1) == Some('=') { 2 } else { 1 }),
            '*' if self.peek(1) == Some('*') => self.push(Token::Symbol('^'), 2),
            ',' | ';' => self.push(Token::Separator, 1),
            c => {
                match c {
                    '(' | '[' => self.brackets += 1,
                    ')' | ']' => self.brackets = self.brackets.saturating_sub(1),
                    _ => {}
                }
                self.push(Token::Symbol(c), 1);
            }
        }
        Ok(())
    }

    /// Digits, groups of thousands, a point, repeating digits.
    fn number(&mut self) {
        let mut digits = self.take_while(|c| c.is_ascii_digit());
        while let Some(n) = self.thousands_mark(digits.len()) {
            self.at += n;
            digits.push_str(&self.take_while(|c| c.is_ascii_digit()));
        }
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit() || c == '\\') {
            self.at += 1;
            digits.push('.');
            digits.push_str(&self.take_while(|c| c.is_ascii_digit()));
        } else if self.peek(0) == Some('.') && !self.peek(1).is_some_and(char::is_alphanumeric) {
            self.at += 1;
        }
        let repeating = if digits.contains('.') { self.repeating() } else { String::new() };
        self.out.push(Token::Number { digits, repeating });
        self.scientific();
    }

    /// The `e-5` of `1e-5`, as what it stands for.
    fn scientific(&mut self) {
        let n_sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        let is_digit = |k: usize| self.peek(k).is_some_and(|c| c.is_ascii_digit());
        if !matches!(self.peek(0), Some('e' | 'E')) || !is_digit(1 + n_sign) {
            return;
        }
        let is_negative = self.peek(1) == Some('-');
        self.at += 1 + n_sign;
        let digits = self.take_while(|c| c.is_ascii_digit());
        let number = |digits: &str| Token::Number { digits: digits.to_owned(), repeating: String::new() };
        self.out.extend([Token::Symbol('*'), number("10"), Token::Symbol('^')]);
        if is_negative {
            self.out.push(Token::Symbol('-'));
        }
        self.out.push(number(&digits));
    }

    /// The length of a mark between groups of three digits here: `,` only before exactly three digits, `{,}` and `,\!`.
    fn thousands_mark(&self, n_before: usize) -> Option<usize> {
        let mark = ["{,}", ",\\!", ","].into_iter().find(|mark| self.starts_with(mark))?.len();
        if mark == 1 && self.brackets > 0 {
            return None;
        }
        let n_digits = (0..4).take_while(|k| self.peek(mark + k).is_some_and(|c| c.is_ascii_digit())).count();
        (n_digits == 3 && n_before > 0 && (n_before <= 3 || self.after_mark())).then_some(mark)
    }

    /// Whether the three digits just read follow a mark themselves.
    fn after_mark(&self) -> bool {
        self.at >= 4 && matches!(self.chars[self.at - 4], ',' | '}' | '!')
    }

    fn repeating(&mut self) -> String {
        let Some(open) = ["\\overline{", "\\bar{"].into_iter().find(|open| self.starts_with(open)) else {
            return String::new();
        };
        let start = self.at;
        self.at += open.len();
        let digits = self.take_while(|c| c.is_ascii_digit());
        if self.peek(0) == Some('}') && !digits.is_empty() {
            self.at += 1;
            return digits;
        }
        self.at = start;
        String::new()
    }

    /// Letters of plain text: a function, a constant, a word, or a product of variables.
    fn letters(&mut self) {
        let start = self.at;
        let run = self.take_while(|c| c.is_ascii_alphabetic());
        let lower = run.to_ascii_lowercase();
        if let Some((_, function)) = FUNCTIONS.iter().find(|(name, _)| *name == run) {
            return self.out.push(Token::Function(*function));
        }
        match lower.as_str() {
            "pi" => return self.out.push(Token::Pi),
            "and" | "or" => return self.out.push(Token::Separator),
            "infinity" | "inf" | "oo" => return self.out.push(Token::Infinity),
            "percent" => return self.out.push(Token::Percent),
            _ => {}
        }
        // "p.m." is one word.
        if matches!(lower.as_str(), "a" | "p") && (self.starts_with(".m") || self.starts_with(". m")) {
            self.take_while(|c| matches!(c, '.' | ' ' | 'm'));
            return self.out.push(Token::Word(format!("{lower}m")));
        }
        let is_known_unit = run.len() > 1 && unit(&lower).is_some();
        if run.len() >= 4 || is_known_unit || is_short_word(&run) {
            return self.out.push(Token::Word(lower));
        }
        self.at = start;
        for c in run.chars() {
            self.push(Token::Letter(c.to_string()), 1);
        }
    }

    /// The inside of the braces that open here, balanced; moves behind them. Nothing where none open.
    fn braces(&mut self) -> Result<String, String> {
        self.take_while(char::is_whitespace);
        if self.peek(0) != Some('{') {
            return Ok(String::new());
        }
        let (start, mut depth) = (self.at + 1, 0usize);
        while let Some(c) = self.peek(0) {
            self.at += 1;
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(self.chars[start..self.at - 1].iter().collect());
            }
        }
        Err("a brace is not closed".to_owned())
    }

    fn command(&mut self) -> Result<(), String> {
        self.at += 1;
        let mut name = self.take_while(|c| c.is_ascii_alphabetic());
        if name.is_empty() {
            name = self.peek(0).map_or(String::new(), String::from);
            self.at += name.chars().count();
        }
        if let Some(token) = simple_command(&name) {
            match token {
                Token::SetOpen => self.brackets += 1,
                Token::SetClose => self.brackets = self.brackets.saturating_sub(1),
                _ => {}
            }
            self.out.push(token);
            return Ok(());
        }
        match name.as_str() {
            "text" | "mathrm" | "textbf" | "textrm" | "mbox" | "operatorname" | "textit" | "mathsf"
            | "texttt" | "mathbb" => {
                let inside = self.braces()?;
                self.text(&name, &inside);
            }
            "begin" | "end" => {
                let inside = self.braces()?;
                let token = if name == "begin" { Token::MatrixBegin } else { Token::MatrixEnd };
                match inside.as_str() {
                    "pmatrix" | "bmatrix" | "matrix" | "Bmatrix" | "smallmatrix" => self.out.push(token),
                    "array" => {
                        if name == "begin" {
                            self.braces()?;
                        }
                        self.out.push(token);
                    }
                    other => return Err(format!("the environment `{other}` is not known")),
                }
            }
            "phantom" | "hphantom" | "vspace" => drop(self.braces()?),
            other => return Err(format!("the command `\\{other}` is not known")),
        }
        Ok(())
    }

    fn text(&mut self, command: &str, inside: &str) {
        let word = inside.trim();
        if command == "mathbb" && word == "R" {
            return self.out.push(Token::Reals);
        }
        if let Some((_, function)) = FUNCTIONS.iter().find(|(name, _)| *name == word) {
            return self.out.push(Token::Function(*function));
        }
        match word.trim_matches(',').trim() {
            "and" | "or" => self.out.push(Token::Separator),
            "" => self.out.push(Token::Space),
            "%" | "percent" | "\\%" => self.out.push(Token::Percent),
            // Upright letters are names unless a unit has that name.
            word if command == "mathbb" || (word.len() == 1 && unit(word).is_none()) => {
                self.out.push(Token::Letter(word.to_owned()));
            }
            word => self.out.push(Token::Text(word.to_owned())),
        }
    }
}

/// Whether three letters are a word and no product: it has a vowel, and products are written in the order of the alphabet.
fn is_short_word(run: &str) -> bool {
    let bytes = run.as_bytes();
    let is_ordered = bytes.is_sorted() || bytes.iter().all(u8::is_ascii_uppercase);
    run.len() == 3 && !is_ordered && run.to_ascii_lowercase().contains(['a', 'e', 'i', 'o', 'u'])
}

/// A command that is a token by itself.
fn simple_command(name: &str) -> Option<Token> {
    let relation = |relation| Some(Token::Relation(relation));
    if let Some((_, function)) = FUNCTIONS.iter().find(|(known, _)| *known == name) {
        return Some(Token::Function(*function));
    }
    if GREEK.contains(&name) {
        return Some(Token::Letter(format!("\\{name}")));
    }
    if SPACES.contains(&name) || INVISIBLE.contains(&name) {
        return Some(Token::Space);
    }
    Some(match name {
        "frac" | "dfrac" | "tfrac" | "cfrac" => Token::Frac,
        "binom" | "dbinom" | "tbinom" => Token::Binomial,
        "pi" => Token::Pi,
        "infty" => Token::Infinity,
        "cup" => Token::Cup,
        "pm" => Token::PlusMinus,
        "mp" => Token::MinusPlus,
        "cdot" | "times" | "ast" => Token::Symbol('*'),
        "div" => Token::Symbol('/'),
        "le" | "leq" | "leqslant" => return relation(Relation::LessEqual),
        "ge" | "geq" | "geqslant" => return relation(Relation::GreaterEqual),
        "lt" => return relation(Relation::Less),
        "gt" => return relation(Relation::Greater),
        "ne" | "neq" => return relation(Relation::NotEqual),
        "approx" | "simeq" => return relation(Relation::Approximately),
        "in" => return relation(Relation::Member),
        "equiv" => return relation(Relation::Equal),
        "lvert" | "rvert" | "vert" | "mid" | "|" | "lVert" | "rVert" => Token::Symbol('|'),
        "lfloor" => Token::FloorOpen,
        "rfloor" => Token::FloorClose,
        "lceil" => Token::CeilOpen,
        "rceil" => Token::CeilClose,
        "langle" | "lparen" => Token::Symbol('('),
        "rangle" | "rparen" => Token::Symbol(')'),
        "lbrack" => Token::Symbol('['),
        "rbrack" => Token::Symbol(']'),
        "{" | "lbrace" => Token::SetOpen,
        "}" | "rbrace" => Token::SetClose,
        "emptyset" | "varnothing" => Token::EmptySet,
        "circ" | "degree" => Token::Degree,
        "angle" | "triangle" => Token::Space,
        "$" => Token::Currency("dollar"),
        "pounds" => Token::Currency("pound sterling"),
        "euro" => Token::Currency("euro"),
        "%" => Token::Percent,
        "\\" | "cr" => Token::NewRow,
        "!" => Token::Space,
        "lor" | "vee" => Token::Separator,
        "prime" => Token::Symbol('\''),
        "_" => Token::Symbol('_'),
        "&" => Token::Symbol('&'),
        _ => return None,
    })
}

/// Whether `name` is one units are compared by.
pub(super) fn is_known_unit(name: &str) -> bool {
    UNITS.iter().any(|(_, unit)| *unit == name) || name == "pound sterling"
}
