//! The mini-language: a subset of Python on whole numbers, parsed and run here.
//!
//! Nothing a model writes is ever given to another interpreter: this evaluator knows numbers,
//! names and arithmetic, and has no way to reach a file, a process or memory it did not make.
//! Every run is bounded in steps ([`MAX_STEPS`]) and nesting ([`MAX_DEPTH`]).
//!
//! ```text
//! program   := line+
//! line      := "def" name "(" name "):" "return" expr
//!            | "for" name "in range(" expr "):" simple
//!            | "if" expr ":" simple
//!            | simple
//! simple    := name "=" expr | "print(" expr ")"
//! expr      := compare [ "if" compare "else" expr ]
//! compare   := sum [ ("<" | ">" | "<=" | ">=" | "==" | "!=") sum ]
//! sum       := term { ("+" | "-") term }
//! term      := factor { ("*" | "//" | "%") factor }
//! factor    := "-" factor | number | name | name "(" expr { "," expr } ")" | "(" expr ")"
//! ```
//!
//! `//` and `%` round towards minus infinity as Python's do. The built-in functions are `abs`,
//! `min` and `max`. Differences from Python: numbers are 64-bit and overflow is an error; a
//! comparison is 1 or 0; only one comparison at a time; bodies are one statement on the same line.

use std::collections::HashMap;

/// The most evaluation steps of one run.
pub const MAX_STEPS: usize = 20_000;
/// The deepest nesting of an expression or of calls.
pub const MAX_DEPTH: usize = 40;
/// The longest source, in bytes.
pub const MAX_SOURCE_BYTES: usize = 2_000;

/// Why a program could not be parsed or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MiniError {
    /// The source does not follow the grammar.
    #[error("line {line}: expected {expected}, found {found}")]
    Syntax {
        /// Line number from 1.
        line: usize,
        /// What the grammar allows there.
        expected: &'static str,
        /// What stood there.
        found: String,
    },
    /// A name was used before it was given a value.
    #[error("`{name}` has no value; assign it first")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// `//` or `%` by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// A result does not fit 64 bits.
    #[error("a number is too large for 64 bits")]
    Overflow,
    /// A bound on steps, nesting or length was reached.
    #[error("the program is over the limit on {what} ({limit})")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

type Result<T> = std::result::Result<T, MiniError>;

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Run {
    /// The numbers it printed.
    pub printed: Vec<i64>,
    /// Its assignments in order, as `name = value`, and its calls as `f(3) = 7`.
    pub trace: Vec<String>,
}

/// Runs a whole program.
///
/// # Errors
/// See [`MiniError`].
pub fn run(source: &str) -> Result<Run> {
    let mut machine = Machine::new();
    for (line_idx, line) in limited(source)?.lines().enumerate() {
        if !line.trim().is_empty() {
            let mut parser = Parser::new(line, line_idx + 1)?;
            let statement = parser.statement(true)?;
            parser.end()?;
            machine.execute(&statement)?;
        }
    }
    Ok(machine.done)
}

/// A function of one variable, parsed once and evaluated on many inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    parameter: String,
    body: Expr,
}

impl Function {
    /// The function a reply defines: `def f(x): return EXPR`, `lambda x: EXPR`, or a bare `EXPR` in `x`.
    ///
    /// # Errors
    /// If no line of the reply holds an expression of the mini-language.
    pub fn parse(reply: &str) -> Result<Function> {
        let reply = limited(reply)?.trim();
        let (parameter, text) = match reply.find("return") {
            Some(at) => (parameter_of(&reply[..at], "(", ")"), &reply[at + "return".len()..]),
            None => match reply.find("lambda") {
                Some(at) => {
                    let rest = &reply[at + "lambda".len()..];
                    let colon = rest.find(':').unwrap_or(rest.len());
                    (Some(rest[..colon].trim().to_string()), rest.get(colon + 1..).unwrap_or(""))
                }
                None => (None, reply),
            },
        };
        let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
        let mut parser = Parser::new(line.trim().trim_end_matches(['.', '`']), 1)?;
        let body = parser.expr(0)?;
        parser.end()?;
        Ok(Function { parameter: parameter.unwrap_or_else(|| "x".to_string()), body })
    }

    /// The value at `x`.
    ///
    /// # Errors
    /// See [`MiniError`].
    pub fn at(&self, x: i64) -> Result<i64> {
        let mut machine = Machine::new();
        machine.values.insert(self.parameter.clone(), x);
        machine.eval(&self.body, 0)
    }
}

fn limited(source: &str) -> Result<&str> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(MiniError::Limit { what: "source bytes", limit: MAX_SOURCE_BYTES });
    }
    Ok(source)
}

/// The text between the last `open` and the `close` after it.
fn parameter_of(head: &str, open: &str, close: &str) -> Option<String> {
    let start = head.rfind(open)? + open.len();
    let length = head[start..].find(close)?;
    Some(head[start..start + length].trim().to_string())
}

#[derive(Debug, Clone, PartialEq)]
enum Expr {
    Number(i64),
    Name(String),
    Negative(Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    Call(String, Vec<Expr>),
    /// condition, then, otherwise
    Choose(Box<Expr>, Box<Expr>, Box<Expr>),
}

#[derive(Debug, Clone, PartialEq)]
enum Statement {
    Assign(String, Expr),
    Print(Expr),
    Define(String, Function),
    For(String, Expr, Box<Statement>),
    If(Expr, Box<Statement>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Number(i64),
    Word(String),
    Symbol(&'static str),
}

/// Longest first, so that `<=` is not read as `<`.
const SYMBOLS: &[&str] =
    &["//", "<=", ">=", "==", "!=", "+", "-", "*", "%", "<", ">", "=", "(", ")", ":", ","];
const COMPARISONS: &[&str] = &["<=", ">=", "==", "!=", "<", ">"];

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    line: usize,
}

impl Parser {
    fn new(text: &str, line: usize) -> Result<Parser> {
        let mut tokens = Vec::new();
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let length;
            if first.is_ascii_digit() {
                length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                tokens.push(Token::Number(rest[..length].parse().map_err(|_| MiniError::Overflow)?));
            } else if first.is_ascii_alphabetic() || first == '_' {
                length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..length].to_string()));
            } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
                length = symbol.len();
                tokens.push(Token::Symbol(symbol));
            } else {
                return Err(MiniError::Syntax {
                    line,
                    expected: "a number, name or operator",
                    found: format!("`{first}`"),
                });
            }
            rest = rest[length..].trim_start();
        }
        Ok(Parser { tokens, at: 0, line })
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Symbol(s)) if *s == symbol);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(w)) if w == word);
        self.at += usize::from(found);
        found
    }

    fn take_any(&mut self, symbols: &[&'static str]) -> Option<&'static str> {
        symbols.iter().find(|symbol| self.take(symbol)).copied()
    }

    fn fail<T>(&self, expected: &'static str) -> Result<T> {
        let found = match self.tokens.get(self.at) {
            None => "the end".to_string(),
            Some(Token::Number(n)) => format!("`{n}`"),
            Some(Token::Word(w)) => format!("`{w}`"),
            Some(Token::Symbol(s)) => format!("`{s}`"),
        };
        Err(MiniError::Syntax { line: self.line, expected, found })
    }

    fn need(&mut self, symbol: &str, expected: &'static str) -> Result<()> {
        if self.take(symbol) { Ok(()) } else { self.fail(expected) }
    }

    fn end(&self) -> Result<()> {
        if self.at == self.tokens.len() { Ok(()) } else { self.fail("the end of the line") }
    }

    fn name(&mut self) -> Result<String> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word.clone())
            }
            _ => self.fail("a name"),
        }
    }

    /// A statement; only a `simple` one where `compound` is false.
    fn statement(&mut self, compound: bool) -> Result<Statement> {
        if compound && self.take_word("def") {
            return self.definition();
        }
        if compound && self.take_word("for") {
            let name = self.name()?;
            if !(self.take_word("in") && self.take_word("range")) {
                return self.fail("`in range(...)`");
            }
            self.need("(", "`(`")?;
            let count = self.expr(0)?;
            self.need(")", "`)`")?;
            self.need(":", "`:`")?;
            return Ok(Statement::For(name, count, Box::new(self.statement(false)?)));
        }
        if compound && self.take_word("if") {
            let condition = self.compare(0)?;
            self.need(":", "`:`")?;
            return Ok(Statement::If(condition, Box::new(self.statement(false)?)));
        }
        if self.take_word("print") {
            self.need("(", "`(`")?;
            let value = self.expr(0)?;
            self.need(")", "`)`")?;
            return Ok(Statement::Print(value));
        }
        let name = self.name()?;
        self.need("=", "`=`")?;
        Ok(Statement::Assign(name, self.expr(0)?))
    }

    fn definition(&mut self) -> Result<Statement> {
        let name = self.name()?;
        self.need("(", "`(`")?;
        let parameter = self.name()?;
        self.need(")", "`)`")?;
        self.need(":", "`:`")?;
        if !self.take_word("return") {
            return self.fail("`return`");
        }
        let body = self.expr(0)?;
        Ok(Statement::Define(name, Function { parameter, body }))
    }

    fn expr(&mut self, depth: usize) -> Result<Expr> {
        if depth > MAX_DEPTH {
            return Err(MiniError::Limit { what: "nesting", limit: MAX_DEPTH });
        }
        let value = self.compare(depth)?;
        if !self.take_word("if") {
            return Ok(value);
        }
        let condition = self.compare(depth)?;
        if !self.take_word("else") {
            return self.fail("`else`");
        }
        let otherwise = self.expr(depth + 1)?;
        Ok(Expr::Choose(Box::new(condition), Box::new(value), Box::new(otherwise)))
    }

    fn compare(&mut self, depth: usize) -> Result<Expr> {
        let left = self.chain(depth, &["+", "-"], |p, d| p.chain(d, &["*", "//", "%"], Parser::factor))?;
        let Some(symbol) = self.take_any(COMPARISONS) else { return Ok(left) };
        let right = self.chain(depth, &["+", "-"], |p, d| p.chain(d, &["*", "//", "%"], Parser::factor))?;
        Ok(Expr::Binary(symbol, Box::new(left), Box::new(right)))
    }

    /// Left-associative operators of one precedence. The chain nests to the left, so its length
    /// counts as depth.
    fn chain(
        &mut self,
        depth: usize,
        symbols: &[&'static str],
        next: fn(&mut Parser, usize) -> Result<Expr>,
    ) -> Result<Expr> {
        let mut left = next(self, depth)?;
        let mut n_links = 0;
        while let Some(symbol) = self.take_any(symbols) {
            n_links += 1;
            if n_links > MAX_DEPTH {
                return Err(MiniError::Limit { what: "nesting", limit: MAX_DEPTH });
            }
            left = Expr::Binary(symbol, Box::new(left), Box::new(next(self, depth)?));
        }
        Ok(left)
    }

    fn factor(&mut self, depth: usize) -> Result<Expr> {
        if depth > MAX_DEPTH {
            return Err(MiniError::Limit { what: "nesting", limit: MAX_DEPTH });
        }
        if self.take("-") {
            return Ok(Expr::Negative(Box::new(self.factor(depth + 1)?)));
        }
        if self.take("(") {
            let inner = self.expr(depth + 1)?;
            self.need(")", "`)`")?;
            return Ok(inner);
        }
        if let Some(Token::Number(n)) = self.tokens.get(self.at) {
            let n = *n;
            self.at += 1;
            return Ok(Expr::Number(n));
        }
        let name = match self.name() {
            Ok(name) => name,
            Err(_) => return self.fail("a number, a name or `(`"),
        };
        if !self.take("(") {
            return Ok(Expr::Name(name));
        }
        let mut arguments = vec![self.expr(depth + 1)?];
        while self.take(",") {
            arguments.push(self.expr(depth + 1)?);
        }
        self.need(")", "`)`")?;
        Ok(Expr::Call(name, arguments))
    }
}

struct Machine {
    values: HashMap<String, i64>,
    functions: HashMap<String, Function>,
    done: Run,
    n_steps: usize,
}

impl Machine {
    fn new() -> Machine {
        Machine { values: HashMap::new(), functions: HashMap::new(), done: Run::default(), n_steps: 0 }
    }

    fn step(&mut self) -> Result<()> {
        self.n_steps += 1;
        if self.n_steps > MAX_STEPS {
            return Err(MiniError::Limit { what: "steps", limit: MAX_STEPS });
        }
        Ok(())
    }

    fn execute(&mut self, statement: &Statement) -> Result<()> {
        self.step()?;
        match statement {
            Statement::Assign(name, value) => {
                let value = self.eval(value, 0)?;
                self.values.insert(name.clone(), value);
                self.done.trace.push(format!("{name} = {value}"));
            }
            Statement::Print(value) => {
                let value = self.eval(value, 0)?;
                self.done.printed.push(value);
            }
            Statement::Define(name, function) => {
                self.functions.insert(name.clone(), function.clone());
            }
            Statement::If(condition, body) => {
                if self.eval(condition, 0)? != 0 {
                    self.execute(body)?;
                }
            }
            Statement::For(name, count, body) => {
                for i in 0..self.eval(count, 0)? {
                    self.values.insert(name.clone(), i);
                    self.execute(body)?;
                }
            }
        }
        Ok(())
    }

    fn eval(&mut self, expr: &Expr, depth: usize) -> Result<i64> {
        self.step()?;
        match expr {
            Expr::Number(n) => Ok(*n),
            Expr::Name(name) => {
                self.values.get(name).copied().ok_or_else(|| MiniError::UnknownName { name: name.clone() })
            }
            Expr::Negative(inner) => self.eval(inner, depth)?.checked_neg().ok_or(MiniError::Overflow),
            Expr::Binary(symbol, left, right) => {
                let (left, right) = (self.eval(left, depth)?, self.eval(right, depth)?);
                binary(symbol, left, right)
            }
            Expr::Choose(condition, then, otherwise) => {
                let taken = if self.eval(condition, depth)? != 0 { then } else { otherwise };
                self.eval(taken, depth)
            }
            Expr::Call(name, arguments) => {
                let values: Result<Vec<i64>> = arguments.iter().map(|a| self.eval(a, depth)).collect();
                self.call(name, &values?, depth)
            }
        }
    }

    fn call(&mut self, name: &str, values: &[i64], depth: usize) -> Result<i64> {
        match (name, values) {
            ("abs", [x]) => return x.checked_abs().ok_or(MiniError::Overflow),
            ("min", [x, y]) => return Ok(*x.min(y)),
            ("max", [x, y]) => return Ok(*x.max(y)),
            _ => {}
        }
        // A recursive definition ends at the depth limit, before this process's stack does.
        if depth >= MAX_DEPTH {
            return Err(MiniError::Limit { what: "nesting", limit: MAX_DEPTH });
        }
        let (Some(function), [x]) = (self.functions.get(name).cloned(), values) else {
            return Err(MiniError::UnknownName { name: format!("{name}({} values)", values.len()) });
        };
        let shadowed = self.values.insert(function.parameter.clone(), *x);
        let value = self.eval(&function.body, depth + 1)?;
        match shadowed {
            Some(old) => self.values.insert(function.parameter, old),
            None => self.values.remove(&function.parameter),
        };
        self.done.trace.push(format!("{name}({x}) = {value}"));
        Ok(value)
    }
}

fn binary(symbol: &str, a: i64, b: i64) -> Result<i64> {
    let value = match symbol {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "//" | "%" if b == 0 => return Err(MiniError::DivisionByZero),
        // Rust rounds towards zero and Python towards minus infinity; they differ when signs do.
        "//" => a.checked_div(b).map(|q| q - i64::from(a % b != 0 && (a < 0) != (b < 0))),
        "%" => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        "<" => Some(i64::from(a < b)),
        ">" => Some(i64::from(a > b)),
        "<=" => Some(i64::from(a <= b)),
        ">=" => Some(i64::from(a >= b)),
        "==" => Some(i64::from(a == b)),
        "!=" => Some(i64::from(a != b)),
        _ => unreachable!("the parser makes no operator `{symbol}`"),
    };
    value.ok_or(MiniError::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_print_what_python_prints() {
        // Expected values written down from CPython 3.
        for (source, printed) in [
            ("x = 3\ny = x + 4\nprint(y)", vec![7]),
            ("print(2 + 3 * 4)", vec![14]),
            ("print((2 + 3) * 4)", vec![20]),
            ("print(10 - 4 - 3)", vec![3]),
            ("print(-7 // 2)\nprint(-7 % 2)\nprint(7 // -2)\nprint(7 % -2)", vec![-4, 1, -4, -1]),
            ("def f(x): return 2 * x + 1\nprint(f(f(3)))", vec![15]),
            ("x = 1\nfor i in range(4): x = x + i\nprint(x)", vec![7]),
            ("x = 5\nif x > 3: x = x - 1\nprint(x)", vec![4]),
            ("print(1 if 2 > 3 else 0)", vec![0]),
            ("print(max(2, abs(-9)) - min(4, 3))", vec![6]),
            ("x = 2\ndef f(x): return x * 10\nprint(f(5) + x)", vec![52]),
            ("for i in range(-3): print(i)", vec![]),
        ] {
            assert_eq!(run(source).map(|done| done.printed), Ok(printed), "{source}");
        }
    }

    #[test]
    fn bad_programs_are_errors_that_say_what_is_wrong() {
        let deep = format!("print({}1{})", "(".repeat(300), ")".repeat(300));
        let long_chain = format!("print(1{})", " + 1".repeat(200));
        for (source, message) in [
            ("print(y)", "`y` has no value; assign it first"),
            ("x = ", "line 1: expected a number, a name or `(`, found the end"),
            ("x = 1\nprint(x", "line 2: expected `)`, found the end"),
            ("print(1 // 0)", "division by zero"),
            ("print(9223372036854775807 + 1)", "a number is too large for 64 bits"),
            ("print(99999999999999999999)", "a number is too large for 64 bits"),
            ("import os", "line 1: expected `=`, found `os`"),
            ("x = 'a'", "line 1: expected a number, name or operator, found `'`"),
            ("x = 0\nfor i in range(9999999): x = x + 1", "the program is over the limit on steps (20000)"),
            ("def f(x): return f(x)\nprint(f(1))", "the program is over the limit on nesting (40)"),
            (&deep, "the program is over the limit on nesting (40)"),
            (&long_chain, "the program is over the limit on nesting (40)"),
            ("print(f(1))", "`f(1 values)` has no value; assign it first"),
        ] {
            assert_eq!(run(source).unwrap_err().to_string(), message, "{source}");
        }
    }

    #[test]
    fn functions_are_found_in_their_usual_spellings() {
        for (reply, at_5) in [
            ("def f(x): return 2 * x + 1", Some(11)),
            ("def f(n):\n    return n - 7\n", Some(-2)),
            ("lambda y: y * y", Some(25)),
            ("x + 3", Some(8)),
            ("x if x > 3 else 0", Some(5)),
            ("return", None),
            ("I do not know", None),
            ("def f(x): return y", None),
            ("", None),
        ] {
            let value = Function::parse(reply).and_then(|f| f.at(5)).ok();
            assert_eq!(value, at_5, "{reply}");
        }
    }

    #[test]
    fn the_trace_lists_assignments_and_calls() {
        let done = run("x = 2\ndef f(n): return n + 1\nfor i in range(2): x = f(x)\nprint(x)").unwrap();
        assert_eq!(done.trace, ["x = 2", "f(2) = 3", "x = 3", "f(3) = 4", "x = 4"]);
    }
}
