//! Arithmetic in texts: equations `expression = number` found, and computed again.
//!
//! Found are GSM8K's calculator marks `<<48/2=24>>` and plain equations of numbers (`48 + 24 = 72`, `12 / 60 = $0.2`).
//! Expressions have + - * x × / ÷ ^, brackets, thousands commas, percent signs and dollar signs.

use std::sync::LazyLock;

use regex::Regex;

/// An equation of a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Equation {
    /// As it is written.
    pub(crate) text: String,
    /// The numbers of the left side.
    pub(crate) operands: Vec<f64>,
    /// What the left side is; `None` where it cannot be computed (division by zero, a single number).
    pub(crate) computed: Option<f64>,
    /// What the text says it is.
    pub(crate) said: f64,
    /// Decimals of the right side as written.
    pub(crate) n_decimals: usize,
}

static MARK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<<([^<>=]+)=([^<>=]+)>>").expect("the pattern is constant and right"));
/// A left side of at least two numbers; what stands before it must not be part of a longer expression.
static PLAIN: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"\$?\d(?:[\d,]*\d)?(?:\.\d+)?%?";
    let operator = r"[-+*/x×÷^]";
    Regex::new(&format!(r"(?:^|[^\w.)*/+×÷^=%-]\s*)(\(*{number}(?:\s*\)*\s*{operator}\s*\(*\s*{number})+\s*\)*)\s*=\s*(-?{number})"))
        .expect("the pattern is constant and right")
});

/// The equations of a text: its calculator marks, or where there are none its plain equations.
pub(crate) fn equations(text: &str) -> Vec<Equation> {
    if !text.contains('=') {
        return Vec::new();
    }
    let is_marked = text.contains("<<");
    let pattern: &Regex = if is_marked { &MARK } else { &PLAIN };
    let found = pattern.captures_iter(text).filter(|found| {
        let end = found.get(0).map_or(0, |whole| whole.end());
        let start = found.get(1).map_or(0, |left| left.start());
        // `2 + 1 1/2 = 3 1/2` has mixed numbers, whose parts are no equation.
        let is_mixed = text[..start].trim_end_matches(' ').ends_with(|c: char| c.is_ascii_digit());
        is_marked || (!is_mixed && is_whole(&text[end..]) && !begins_with_zeros(&found[1]))
    });
    found.filter_map(|found| equation(&found[1], &found[2])).collect()
}

/// Whether a right side ends where the pattern ended: `= 4/12`, `= 1.2Y` and `= 26 cents` (of dollars) do not.
fn is_whole(after: &str) -> bool {
    let next = after.trim_start_matches(' ');
    let joins =
        after.starts_with(|c: char| c.is_alphanumeric()) || next.starts_with(|c: char| c.is_ascii_digit());
    let goes_on = next.starts_with(['/', '*', '+', '-', '^', '×', '÷', '(', '%', '¢']);
    let is_product = next.starts_with("x ") || next.starts_with("cent");
    !(joins || goes_on || is_product)
}

/// `000 x 2` is the end of `80, 000 x 2`.
fn begins_with_zeros(left: &str) -> bool {
    let digits = left.trim_start_matches(['(', '$', ' ']);
    digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit())
}

fn equation(left: &str, right: &str) -> Option<Equation> {
    let (said, n_decimals) = number(right.trim())?;
    let tokens = tokens(left)?;
    let operands = tokens.iter().filter_map(|token| match token {
        Token::Number(value) => Some(*value),
        Token::Sign(_) => None,
    });
    let operands: Vec<f64> = operands.collect();
    let computed = match operands.len() {
        0 | 1 => None,
        _ => Parser { tokens: &tokens, at: 0 }.whole(),
    };
    Some(Equation { text: format!("{}={}", left.trim(), right.trim()), operands, computed, said, n_decimals })
}

impl Equation {
    /// Whether the two sides differ by more than rounding to the decimals written.
    pub(crate) fn is_wrong(&self) -> bool {
        self.computed.is_some_and(|computed| {
            let unit = 10f64.powi(-(self.n_decimals as i32));
            let in_units = computed / unit;
            // What fits into the decimals written must be there; otherwise it may be rounded, cut, or rounded up.
            let fits = (in_units - in_units.round()).abs() < 1e-6;
            let allowed = if fits { 0.0 } else { unit };
            (computed - self.said).abs() > allowed + 1e-6 * unit + 1e-9 * computed.abs()
        })
    }
}

/// The longest chain of equations each of which uses the result of one before: how many inferences depend on each other.
pub(crate) fn depth(equations: &[Equation]) -> usize {
    let mut depths: Vec<usize> = Vec::with_capacity(equations.len());
    for (i, equation) in equations.iter().enumerate() {
        let uses =
            |j: &usize| equation.operands.iter().any(|operand| (operand - equations[*j].said).abs() < 1e-9);
        let before = (0..i).filter(uses).map(|j| depths[j]).max().unwrap_or(0);
        depths.push(before + 1);
    }
    depths.into_iter().max().unwrap_or(0)
}

#[derive(Clone, Copy, PartialEq)]
enum Token {
    Number(f64),
    Sign(char),
}

/// `$1,234.50` as a number with its decimals; `5%` is 0.05 with two more.
fn number(text: &str) -> Option<(f64, usize)> {
    let plain: String = text.chars().filter(|c| !matches!(c, '$' | ',' | ' ')).collect();
    let (digits, percent) = match plain.strip_suffix('%') {
        Some(digits) => (digits.to_owned(), true),
        None => (plain, false),
    };
    let value: f64 = digits.parse().ok().filter(|value: &f64| value.is_finite())?;
    let n_decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    Some(if percent { (value / 100.0, n_decimals + 2) } else { (value, n_decimals) })
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim();
    while let Some(c) = rest.chars().next() {
        let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '$');
        if is_number(c) {
            let mut end = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
            if rest[end..].starts_with('%') {
                end += 1;
            }
            tokens.push(Token::Number(number(&rest[..end])?.0));
            rest = &rest[end..];
        } else {
            match c {
                '+' | '-' | '*' | '/' | '^' | '(' | ')' => tokens.push(Token::Sign(c)),
                'x' | 'X' | '×' => tokens.push(Token::Sign('*')),
                '÷' => tokens.push(Token::Sign('/')),
                c if c.is_whitespace() => {}
                _ => return None,
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    Some(tokens)
}

/// Recursive descent: sums of products of powers of numbers and brackets.
struct Parser<'t> {
    tokens: &'t [Token],
    at: usize,
}

/// Brackets within brackets beyond this are no arithmetic of a text, and would end the stack.
const DEEPEST: usize = 64;

impl Parser<'_> {
    fn whole(mut self) -> Option<f64> {
        let value = self.sum(0)?;
        (self.at == self.tokens.len() && value.is_finite()).then_some(value)
    }

    fn sign(&mut self, any: &[char]) -> Option<char> {
        match self.tokens.get(self.at) {
            Some(Token::Sign(c)) if any.contains(c) => {
                self.at += 1;
                Some(*c)
            }
            _ => None,
        }
    }

    fn sum(&mut self, depth: usize) -> Option<f64> {
        let mut value = self.product(depth)?;
        while let Some(sign) = self.sign(&['+', '-']) {
            let right = self.product(depth)?;
            value = if sign == '+' { value + right } else { value - right };
        }
        Some(value)
    }

    fn product(&mut self, depth: usize) -> Option<f64> {
        let mut value = self.power(depth)?;
        while let Some(sign) = self.sign(&['*', '/']) {
            let right = self.power(depth)?;
            value = if sign == '*' { value * right } else { value / right };
        }
        Some(value)
    }

    fn power(&mut self, depth: usize) -> Option<f64> {
        if depth > DEEPEST {
            return None;
        }
        if self.sign(&['-']).is_some() {
            return Some(-self.power(depth + 1)?);
        }
        let base = self.atom(depth)?;
        match self.sign(&['^']) {
            Some(_) => Some(base.powf(self.power(depth + 1)?)),
            None => Some(base),
        }
    }

    fn atom(&mut self, depth: usize) -> Option<f64> {
        if self.sign(&['(']).is_some() {
            let value = self.sum(depth + 1)?;
            return self.sign(&[')']).map(|_| value);
        }
        match self.tokens.get(self.at) {
            Some(Token::Number(value)) => {
                self.at += 1;
                Some(*value)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_are_found_and_computed() {
        let cases: &[(&str, &[(f64, bool)])] = &[
            ("48/2 = <<48/2=24>>24 clips", &[(24.0, false)]),
            ("<<(3+4)*2=15>>15", &[(14.0, true)]),
            ("so 48 + 24 = 72, and 72 - 2 = 71.", &[(72.0, false), (70.0, true)]),
            ("10 / 3 = 3.33", &[(10.0 / 3.0, false)]),
            ("1,200 x 2 = $2,400", &[(2400.0, false)]),
            ("<<50*10%=5>>", &[(5.0, false)]),
            ("2^3^2 = 512", &[(512.0, false)]),
            ("x + 2 = 5 and f(2) = 3", &[]),
            ("7 = 7", &[]),
            ("192 / 1.2 = 1.2Y / 1.2", &[]),
            ("1/3 + 1/4 = 4/12 + 3/12", &[]),
            ("$80, 000 x 2 = $160, 000", &[]),
            ("$2.50 - $2.24 = 26 cents", &[]),
            ("eat 2 - 1/2 = 1 1/2 cups, and 2 + 1 1/2 = 3", &[]),
            ("100% - 30% = 70%, 40% * 25% = 10%", &[(0.7, false), (0.1, false)]),
            ("3 + 4 = 8 apples", &[(7.0, true)]),
        ];
        for (text, expected) in cases {
            let found = equations(text);
            let got: Vec<(f64, bool)> = found.iter().map(|e| (e.computed.unwrap(), e.is_wrong())).collect();
            assert_eq!(got, *expected, "{text}: {found:?}");
        }
        assert_eq!(equations("<<5=5>>")[0].computed, None);
        assert_eq!(equations("<<5/0=5>>")[0].computed, None);
        assert_eq!(
            equations(&format!("<<{}1=5>>", "(".repeat(100_000))).first().and_then(|e| e.computed),
            None
        );
        assert_eq!(equations(&format!("<<{}1+1=5>>", "-".repeat(100_000)))[0].computed, None);
    }

    #[test]
    fn depth_follows_results_into_operands() {
        assert_eq!(depth(&equations("<<1+1=2>> <<2+3=5>> <<5*2=10>>")), 3);
        assert_eq!(depth(&equations("<<1+1=2>> <<3+4=7>> <<8*9=72>>")), 1);
        assert_eq!(depth(&[]), 0);
    }

    #[test]
    fn gsm8k_is_right_nearly_always() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        let read = |path: &str| {
            let options = pt_data::read::ReadOptions::default();
            pt_data::read::read_all(&data.join(path).display().to_string(), &options).unwrap()
        };
        let found = |text: &str| {
            let all = equations(text);
            (all.len(), all.iter().filter(|e| e.is_wrong()).count(), all)
        };
        let (mut n, mut n_wrong) = (0, 0);
        for row in read("gsm8k/train.jsonl.gz") {
            let (all, wrong, _) = found(row.value["answer"].as_str().unwrap());
            (n, n_wrong) = (n + all, n_wrong + wrong);
        }
        // People wrote these marks with a calculator.
        assert!(n > 20_000 && n_wrong * 500 < n, "{n_wrong} of {n}");
        // Rows without marks have plain equations; all finds were read: one row, which divides
        // by 75% where it means 75, is wrong as written.
        let unmarked = read("gsm8k/train.jsonl.gz").into_iter().filter(|row| {
            let answer = row.value["answer"].as_str().unwrap();
            !answer.contains("<<") && found(answer).1 > 0
        });
        assert!(unmarked.count() <= 1);
        let (mut right, mut wrong) = ((0, 0), (0, 0));
        for row in read("gsm8k/example_model_solutions.jsonl.gz") {
            for (_, sample) in row.value.iter().filter(|(_, value)| value.is_object()) {
                let (_, n_wrong, _) = found(sample["solution"].as_str().unwrap_or_default());
                let counts = if sample["is_correct"] == true { &mut right } else { &mut wrong };
                *counts = (counts.0 + 1, counts.1 + usize::from(n_wrong > 0));
            }
        }
        assert!(right.0 > 500 && wrong.0 > 500, "{right:?} {wrong:?}");
    }
}
