//! Tokens to trees, by recursive descent.
//!
//! ```text
//! list    = chain (separator chain)*
//! chain   = side (relation side)*
//! side    = sum ("∪" sum)* (":" sum)* unit?
//! sum     = sign? product (sign product)*
//! product = power (("*" | "/" | nothing) power)*
//! power   = primary ("!" | "%" | "°" | "_" base | "^" power)*
//! ```
//!
//! Multiplication that is not written binds as one that is: `1/2x` is `(1/2)x`.

use super::expr::{Constant, Expr, Function, Relation, Sign};
use super::lex::{Token, tokens, unit};
use super::number::Rational;

/// Brackets, exponents and the like inside one another.
const MAX_DEPTH: usize = 48;

/// Digits of one number.
const MAX_DIGITS: usize = 1000;

type Parsed = Result<Expr, String>;

/// The tree of an answer.
///
/// # Errors
/// What could not be read.
pub(super) fn parse(text: &str) -> Parsed {
    let mut parser =
        Parser { tokens: without_spaces(tokens(text)?), at: 0, depth: 0, bars: 0, pending: None };
    if let [Token::Text(inside)] = parser.tokens.as_slice()
        && !inside.contains('\\')
        && inside.contains(|c: char| c.is_ascii_digit())
    {
        parser.tokens = without_spaces(tokens(&inside.clone())?);
    }
    let expr = parser.list()?;
    while parser.eat_symbol('.') {}
    match parser.peek() {
        None => Ok(expr),
        Some(token) => Err(format!("{token:?} was not expected")),
    }
}

/// Drops spaces but those between numbers, and joins groups of thousands written with spaces.
fn without_spaces(tokens: Vec<Token>) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    for token in tokens {
        match (&token, out.as_mut_slice()) {
            (Token::Space, [.., Token::Number { .. }]) => out.push(Token::Space),
            (Token::Space, _) => {}
            (
                Token::Number { digits, repeating },
                [.., Token::Number { digits: before, .. }, Token::Space],
            ) => {
                let is_group = digits.split('.').next().is_some_and(|whole| whole.len() == 3);
                if is_group && !before.contains('.') && !before.starts_with('0') {
                    let (digits, repeating) = (format!("{before}{digits}"), repeating.clone());
                    out.truncate(out.len() - 2);
                    out.push(Token::Number { digits, repeating });
                } else {
                    out.push(token);
                }
            }
            (_, [.., Token::Space]) => {
                out.pop();
                out.push(token);
            }
            _ => out.push(token),
        }
    }
    if out.last() == Some(&Token::Space) {
        out.pop();
    }
    out
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    /// How many `|` are open.
    bars: usize,
    /// A fraction read behind a number to see whether the two are a mixed number, which they are not.
    pending: Option<Expr>,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, token: &Token) -> bool {
        let is_here = self.peek() == Some(token);
        self.at += usize::from(is_here);
        is_here
    }

    fn eat_symbol(&mut self, symbol: char) -> bool {
        self.eat(&Token::Symbol(symbol))
    }

    fn expect(&mut self, token: &Token) -> Result<(), String> {
        match self.eat(token) {
            true => Ok(()),
            false => Err(format!("{token:?} was expected, {:?} was found", self.peek())),
        }
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Parser) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        let parsed = match self.depth > MAX_DEPTH {
            true => Err(format!("it is nested deeper than {MAX_DEPTH} levels")),
            false => parse(self),
        };
        self.depth -= 1;
        parsed
    }

    /// Items between separators; stray separators at the ends are dropped.
    fn items(&mut self) -> Result<Vec<Expr>, String> {
        let mut items = Vec::new();
        loop {
            while self.eat(&Token::Separator) {}
            if self.peek().is_none_or(is_closing)
                || (items.is_empty() && self.peek() == Some(&Token::Symbol('.')))
            {
                return Ok(items);
            }
            items.push(self.nested(Parser::chain)?);
            if self.peek() != Some(&Token::Separator) {
                return Ok(items);
            }
        }
    }

    fn list(&mut self) -> Parsed {
        let mut items = self.items()?;
        match items.len() {
            0 => Err("it is empty".to_owned()),
            1 => Ok(items.remove(0)),
            _ => Ok(Expr::List(items)),
        }
    }

    fn chain(&mut self) -> Parsed {
        let first = self.side()?;
        let mut rest = Vec::new();
        while let Some(&Token::Relation(relation)) = self.peek() {
            self.at += 1;
            rest.push((relation, self.side()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Chain(Box::new(first), rest) })
    }

    fn side(&mut self) -> Parsed {
        let mut side = self.sum()?;
        if self.peek() == Some(&Token::Cup) {
            let mut parts = vec![side];
            while self.eat(&Token::Cup) {
                parts.push(self.sum()?);
            }
            side = Expr::Union(parts);
        }
        if self.peek() == Some(&Token::Symbol(':')) {
            let mut parts = vec![side];
            while self.eat_symbol(':') {
                parts.push(self.sum()?);
            }
            side = Expr::Colon(parts);
        }
        let words = self.unit()?;
        Ok(if words.is_empty() { side } else { Expr::Unit(Box::new(side), words) })
    }

    /// The words after a number, by the names units are compared by.
    fn unit(&mut self) -> Result<String, String> {
        let mut words: Vec<String> = Vec::new();
        loop {
            match self.peek() {
                Some(Token::Text(text) | Token::Word(text)) => {
                    if hedges(text) {
                        return Err(format!("`{text}` is no unit"));
                    }
                    let text = text.trim_matches(|c: char| c == '.' || c.is_whitespace()).to_lowercase();
                    let text = text.replace(['.', ' '], if text.starts_with(['a', 'p']) { "" } else { " " });
                    words.push(unit(&text).map_or(text.clone(), str::to_owned));
                    self.at += 1;
                }
                Some(Token::Currency(name)) => {
                    words.push((*name).to_owned());
                    self.at += 1;
                }
                Some(Token::Symbol('^')) if !words.is_empty() => {
                    self.at += 1;
                    match self.argument()? {
                        Expr::Number { value, .. } if value.to_i64().is_some() => {
                            words.push(format!("^{}", value.num()));
                        }
                        Expr::Sum(_) => {}
                        other => return Err(format!("{other:?} is no power of a unit")),
                    }
                }
                Some(Token::Symbol('/' | '*')) if !words.is_empty() => {
                    words.push("/".to_owned());
                    self.at += 1;
                }
                Some(Token::Symbol('.')) if !words.is_empty() => self.at += 1,
                _ => return Ok(words.join(" ")),
            }
        }
    }

    fn sign(&mut self) -> Option<Sign> {
        let sign = match self.peek()? {
            Token::Symbol('+') => Sign::Plus,
            Token::Symbol('-') => Sign::Minus,
            Token::PlusMinus => Sign::PlusMinus,
            Token::MinusPlus => Sign::MinusPlus,
            _ => return None,
        };
        self.at += 1;
        Some(sign)
    }

    /// Signs before a summand, as one.
    fn signs(&mut self) -> Option<Sign> {
        let mut sign = self.sign()?;
        while let Some(next) = self.sign() {
            sign = match (sign, next) {
                (sign, Sign::Plus) | (Sign::Plus, sign) => sign,
                (Sign::Minus, Sign::Minus) => Sign::Plus,
                (Sign::Minus, Sign::PlusMinus) | (Sign::PlusMinus, Sign::Minus) => Sign::MinusPlus,
                _ => Sign::PlusMinus,
            };
        }
        Some(sign)
    }

    fn sum(&mut self) -> Parsed {
        let first_sign = self.signs();
        let first = self.product()?;
        let mut terms = vec![(first_sign.unwrap_or(Sign::Plus), first)];
        while let Some(sign) = self.signs() {
            terms.push((sign, self.product()?));
        }
        match terms.as_slice() {
            [(Sign::Plus, _)] => Ok(terms.remove(0).1),
            _ => Ok(Expr::Sum(terms)),
        }
    }

    fn product(&mut self) -> Parsed {
        let mut factors = vec![(false, self.power()?)];
        loop {
            let divides = match self.peek() {
                Some(Token::Symbol('*')) if self.pending.is_none() => Some(false),
                Some(Token::Symbol('/')) if self.pending.is_none() => Some(true),
                _ => None,
            };
            if let Some(divides) = divides {
                self.at += 1;
                let sign = self.signs();
                let factor = self.power()?;
                let factor = sign.map_or(factor.clone(), |sign| Expr::Sum(vec![(sign, factor)]));
                factors.push((divides, factor));
            } else if self.starts_factor() {
                factors.push((false, self.power()?));
            } else {
                break;
            }
        }
        Ok(if factors.len() == 1 { factors.remove(0).1 } else { Expr::Product(factors) })
    }

    /// Whether a factor without a sign of multiplication begins here.
    fn starts_factor(&self) -> bool {
        if self.pending.is_some() {
            return true;
        }
        match self.peek() {
            Some(Token::Number { .. }) => {
                !matches!(self.tokens.get(self.at.wrapping_sub(1)), Some(Token::Number { .. }))
            }
            Some(Token::Symbol('|')) => self.bars == 0,
            Some(
                Token::Letter(_)
                | Token::Function(_)
                | Token::Frac
                | Token::Binomial
                | Token::Pi
                | Token::Infinity
                | Token::MatrixBegin
                | Token::FloorOpen
                | Token::CeilOpen
                | Token::Symbol('(' | '{' | '['),
            ) => true,
            _ => false,
        }
    }

    fn power(&mut self) -> Parsed {
        let mut base = match self.peek().cloned() {
            Some(Token::Number { digits, repeating }) if self.pending.is_none() => {
                self.at += 1;
                self.number_or_mixed(&digits, &repeating)?
            }
            _ => self.primary()?,
        };
        let mut n_postfix = 0;
        while self.pending.is_none() {
            n_postfix += 1;
            if n_postfix > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} signs follow one another"));
            }
            base = match self.peek() {
                Some(Token::Symbol('!')) => {
                    self.at += 1;
                    Expr::Call(Function::Factorial, vec![base])
                }
                Some(Token::Percent) => {
                    self.at += 1;
                    Expr::Percent(Box::new(base))
                }
                Some(Token::Degree) => {
                    self.at += 1;
                    Expr::Degree(Box::new(base))
                }
                Some(Token::Symbol('\'')) => {
                    self.at += 1;
                    match base {
                        Expr::Variable(name) => Expr::Variable(format!("{name}'")),
                        other => other,
                    }
                }
                Some(Token::Symbol('_')) => {
                    self.at += 1;
                    self.subscript(base)?
                }
                Some(Token::Symbol('^')) => {
                    self.at += 1;
                    if self.degree_exponent() {
                        Expr::Degree(Box::new(base))
                    } else {
                        let exponent = self.nested(Parser::exponent)?;
                        Expr::Power(Box::new(base), Box::new(exponent))
                    }
                }
                _ => break,
            };
        }
        Ok(base)
    }

    /// Whether `\circ` or `{\circ}` is here, which is read.
    fn degree_exponent(&mut self) -> bool {
        let braced = [Token::Symbol('{'), Token::Degree, Token::Symbol('}')];
        if self.tokens[self.at..].starts_with(&braced) {
            self.at += 3;
            return true;
        }
        self.eat(&Token::Degree)
    }

    /// What stands raised: with its own sign and its own exponent.
    fn exponent(&mut self) -> Parsed {
        let sign = self.signs();
        let mut value = self.argument()?;
        if self.eat_symbol('^') {
            value = Expr::Power(Box::new(value), Box::new(self.nested(Parser::exponent)?));
        }
        Ok(sign.map_or(value.clone(), |sign| Expr::Sum(vec![(sign, value)])))
    }

    fn subscript(&mut self, base: Expr) -> Parsed {
        let start = self.at;
        if self.eat_symbol('{') {
            let mut depth = 1;
            while depth > 0 {
                match self.peek() {
                    Some(Token::Symbol('{')) => depth += 1,
                    Some(Token::Symbol('}')) => depth -= 1,
                    None => return Err("a subscript is not closed".to_owned()),
                    _ => {}
                }
                self.at += 1;
            }
        } else {
            self.at += 1;
        }
        let inside = self.tokens.get(start..self.at).ok_or("a subscript is missing")?;
        let inside: Vec<&Token> =
            inside.iter().filter(|token| !matches!(token, Token::Symbol('{' | '}'))).collect();
        match base {
            Expr::Variable(name) => Ok(Expr::Variable(format!("{name}_{}", plain(&inside)))),
            Expr::Number { value, decimals: None } => {
                let base = match inside.as_slice() {
                    [Token::Number { digits, .. }] => digits.parse().ok(),
                    [Token::Text(word) | Token::Word(word)] => base_name(word),
                    _ => None,
                };
                let base = base
                    .filter(|base| (2..=10).contains(base))
                    .ok_or("the base is no number from 2 to 10")?;
                in_base(&value, base)
            }
            other => Err(format!("{other:?} has a subscript")),
        }
    }

    /// One thing: braces, one digit, one letter, a fraction. What LaTeX takes as the argument of a command, but that a
    /// number is read to its end.
    fn argument(&mut self) -> Parsed {
        self.nested(Parser::primary)
    }

    /// An argument of `\frac`, of which a number is one digit.
    fn digit_argument(&mut self) -> Parsed {
        if let Some(Token::Number { digits, repeating }) = self.peek()
            && digits.len() > 1
            && repeating.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
        {
            let (first, rest) = digits.split_at(1);
            let (first, rest) = (first.to_owned(), rest.to_owned());
            self.tokens[self.at] = Token::Number { digits: rest, repeating: String::new() };
            return number(&first, "");
        }
        self.argument()
    }

    fn primary(&mut self) -> Parsed {
        if let Some(pending) = self.pending.take() {
            return Ok(pending);
        }
        let token = self.peek().cloned().ok_or("it ends too early")?;
        self.at += 1;
        match token {
            Token::Number { digits, repeating } => number(&digits, &repeating),
            Token::Letter(name) => Ok(match name.as_str() {
                "e" => Expr::Constant(Constant::Euler),
                "i" => Expr::Constant(Constant::Imaginary),
                _ => Expr::Variable(name),
            }),
            Token::Pi => Ok(Expr::Constant(Constant::Pi)),
            Token::Infinity => Ok(Expr::Constant(Constant::Infinity)),
            Token::EmptySet => Ok(Expr::Set(vec![])),
            Token::Reals => {
                let infinity = Expr::Constant(Constant::Infinity);
                Ok(Expr::Sequence('(', vec![Expr::Sum(vec![(Sign::Minus, infinity.clone())]), infinity], ')'))
            }
            Token::Frac => {
                let above = self.digit_argument()?;
                let below = self.digit_argument()?;
                Ok(Expr::Group(Box::new(Expr::Product(vec![(false, above), (true, below)]))))
            }
            Token::Binomial => {
                Ok(Expr::Call(Function::Binomial, vec![self.digit_argument()?, self.digit_argument()?]))
            }
            Token::Function(function) => self.nested(|parser| parser.call(function)),
            Token::Symbol(open @ ('(' | '[')) => self.nested(|parser| parser.brackets(open)),
            Token::Symbol('{') => self.nested(|parser| {
                let mut items = parser.items()?;
                parser.expect(&Token::Symbol('}'))?;
                Ok(if items.len() == 1 { items.remove(0) } else { Expr::Set(items) })
            }),
            Token::SetOpen => self.nested(|parser| {
                let items = parser.items()?;
                parser.expect(&Token::SetClose)?;
                Ok(Expr::Set(items))
            }),
            Token::Symbol('|') => self.nested(|parser| {
                parser.bars += 1;
                let inside = parser.sum()?;
                parser.bars -= 1;
                parser.expect(&Token::Symbol('|'))?;
                Ok(Expr::Call(Function::Abs, vec![inside]))
            }),
            Token::FloorOpen => self.enclosed(Function::Floor, &Token::FloorClose),
            Token::CeilOpen => self.enclosed(Function::Ceil, &Token::CeilClose),
            Token::MatrixBegin => self.nested(Parser::matrix),
            Token::Currency(name) => Ok(Expr::Unit(Box::new(self.nested(Parser::power)?), name.to_owned())),
            Token::Text(text) | Token::Word(text) => Ok(self.text(text)),
            other => Err(format!("{other:?} was not expected")),
        }
    }

    fn enclosed(&mut self, function: Function, close: &Token) -> Parsed {
        self.nested(|parser| {
            let inside = parser.sum()?;
            parser.expect(close)?;
            Ok(Expr::Call(function, vec![inside]))
        })
    }

    /// Words up to something that is none.
    fn text(&mut self, first: String) -> Expr {
        let mut words = vec![first];
        while let Some(Token::Text(word) | Token::Word(word) | Token::Letter(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        Expr::Text(words.join(" "))
    }

    fn number_or_mixed(&mut self, digits: &str, repeating: &str) -> Parsed {
        let whole = number(digits, repeating)?;
        let Expr::Number { value, decimals: None } = &whole else { return Ok(whole) };
        let part = match &self.tokens[self.at..] {
            [Token::Frac, ..] => self.argument()?,
            [
                Token::Space,
                Token::Number { digits: a, .. },
                Token::Symbol('/'),
                Token::Number { digits: b, .. },
                ..,
            ] => {
                let part = Expr::Product(vec![(false, number(a, "")?), (true, number(b, "")?)]);
                self.at += 4;
                part
            }
            _ => return Ok(whole),
        };
        if let Some(part) = proper_fraction(&part) {
            return Ok(Expr::number(value.add(&part)));
        }
        self.pending = Some(part);
        Ok(whole)
    }

    fn brackets(&mut self, open: char) -> Parsed {
        let bars = std::mem::take(&mut self.bars);
        let mut items = self.items()?;
        self.bars = bars;
        let close = match self.peek() {
            Some(Token::Symbol(close @ (')' | ']'))) => *close,
            other => return Err(format!("a bracket is not closed: {other:?}")),
        };
        self.at += 1;
        match (items.len(), open, close) {
            (0, ..) => Err("the brackets are empty".to_owned()),
            (1, '(', ')') | (1, '[', ']') => Ok(Expr::Group(Box::new(items.remove(0)))),
            (1, ..) => Err("the brackets do not match".to_owned()),
            _ => Ok(Expr::Sequence(open, items, close)),
        }
    }

    fn matrix(&mut self) -> Parsed {
        let (mut rows, mut row) = (Vec::new(), Vec::new());
        loop {
            match self.peek() {
                Some(Token::MatrixEnd) => {
                    self.at += 1;
                    if !row.is_empty() {
                        rows.push(row);
                    }
                    return Ok(Expr::Matrix(rows));
                }
                Some(Token::NewRow) => {
                    self.at += 1;
                    rows.push(std::mem::take(&mut row));
                }
                Some(Token::Symbol('&')) => self.at += 1,
                Some(_) => row.push(self.side()?),
                None => return Err("a matrix is not closed".to_owned()),
            }
        }
    }

    fn call(&mut self, function: Function) -> Parsed {
        let mut parameter = None;
        if function == Function::Root && self.eat_symbol('[') {
            parameter = Some(self.sum()?);
            self.expect(&Token::Symbol(']'))?;
        }
        let mut exponent = None;
        for _ in 0..2 {
            if self.eat_symbol('_') {
                parameter = Some(self.argument()?);
            } else if self.eat_symbol('^') {
                exponent = Some(self.exponent()?);
            }
        }
        self.eat(&Token::Space);
        let argument = self.call_argument(function)?;
        let (function, argument) = match (function, exponent.as_ref().and_then(minus_one)) {
            (Function::Sin, Some(())) => (Function::Arcsin, argument),
            (Function::Cos, Some(())) => (Function::Arccos, argument),
            (Function::Tan, Some(())) => (Function::Arctan, argument),
            _ => {
                let default = if function == Function::Root { 2 } else { 10 };
                let mut arguments = vec![argument];
                if matches!(function, Function::Root | Function::Log) {
                    arguments.push(parameter.unwrap_or_else(|| Expr::int(default)));
                }
                let call = Expr::Call(function, arguments);
                return Ok(match exponent {
                    Some(exponent) => Expr::Power(Box::new(call), Box::new(exponent)),
                    None => call,
                });
            }
        };
        Ok(Expr::Call(function, vec![argument]))
    }

    /// Brackets, or for all but roots the factors up to the next sign or function.
    fn call_argument(&mut self, function: Function) -> Parsed {
        let is_enclosed = matches!(self.peek(), Some(Token::Symbol('(' | '{' | '[' | '|')));
        if function == Function::Root || is_enclosed {
            return self.argument();
        }
        let mut factors = vec![(false, self.power()?)];
        while self.starts_factor() && !matches!(self.peek(), Some(Token::Function(_) | Token::Symbol('('))) {
            factors.push((false, self.power()?));
        }
        Ok(if factors.len() == 1 { factors.remove(0).1 } else { Expr::Product(factors) })
    }
}

/// Whether words beside a number say more than its unit: another number, or that there may be one.
fn hedges(words: &str) -> bool {
    let is_hedge =
        |word: &str| matches!(word, "or" | "and" | "not" | "but" | "maybe" | "perhaps" | "possibly");
    let mut parts = words.split(|c: char| !c.is_alphanumeric());
    words.contains(|c: char| c.is_ascii_digit()) || parts.any(|word| is_hedge(&word.to_lowercase()))
}

fn is_closing(token: &Token) -> bool {
    matches!(token, Token::Symbol(')' | ']' | '}') | Token::SetClose)
}

fn minus_one(exponent: &Expr) -> Option<()> {
    match exponent {
        Expr::Sum(terms) => match terms.as_slice() {
            [(Sign::Minus, Expr::Number { value, .. })] if value.to_i64() == Some(1) => Some(()),
            _ => None,
        },
        _ => None,
    }
}

fn number(digits: &str, repeating: &str) -> Parsed {
    if digits.len() + repeating.len() > MAX_DIGITS {
        return Err(format!("a number has more than {MAX_DIGITS} digits"));
    }
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let value = Rational::decimal(whole, decimals, repeating).ok_or("a number is not digits")?;
    let n_decimals = u32::try_from(decimals.len()).unwrap_or(0);
    let is_finite_decimal = digits.contains('.') && repeating.is_empty();
    Ok(Expr::Number { value, decimals: is_finite_decimal.then_some(n_decimals) })
}

/// A proper fraction of whole numbers, as `\frac` or `/` gives it.
fn proper_fraction(part: &Expr) -> Option<Rational> {
    let Expr::Product(factors) = part.bare() else { return None };
    match factors.as_slice() {
        [
            (false, Expr::Number { value: a, decimals: None }),
            (true, Expr::Number { value: b, decimals: None }),
        ] => a.div(b).filter(|part| *part < Rational::integer(1)),
        _ => None,
    }
}

fn in_base(digits: &Rational, base: u32) -> Parsed {
    let text = digits.num().to_string();
    let value = num_bigint::BigInt::parse_bytes(text.as_bytes(), base);
    let value = value.ok_or_else(|| format!("{text} has digits that base {base} lacks"))?;
    Ok(Expr::Based { value: Rational::integer(value), base })
}

fn base_name(word: &str) -> Option<u32> {
    let names = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
    let at = names.iter().position(|name| *name == word.trim())?;
    u32::try_from(at + 2).ok()
}

fn plain(tokens: &[&Token]) -> String {
    let text = |token: &&Token| match token {
        Token::Number { digits, .. } => digits.clone(),
        Token::Letter(name) | Token::Text(name) | Token::Word(name) => name.clone(),
        other => format!("{other:?}"),
    };
    tokens.iter().map(text).collect()
}

/// Whether the relation is one of order.
pub(super) fn is_order(relation: Relation) -> bool {
    matches!(relation, Relation::Less | Relation::LessEqual | Relation::Greater | Relation::GreaterEqual)
}
