//! Answers as trees.

use super::number::Rational;

/// A named constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Constant {
    Pi,
    Euler,
    Imaginary,
    Infinity,
}

/// How a summand enters a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Plus,
    Minus,
    PlusMinus,
    MinusPlus,
}

/// An elementary function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Exp,
    Ln,
    /// Argument, base.
    Log,
    /// Argument, degree.
    Root,
    Abs,
    Floor,
    Ceil,
    Factorial,
    /// n, k.
    Binomial,
}

/// A relation between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Approximately,
    Member,
}

impl Relation {
    /// The same relation read from right to left.
    pub(super) fn mirrored(self) -> Relation {
        match self {
            Relation::Less => Relation::Greater,
            Relation::LessEqual => Relation::GreaterEqual,
            Relation::Greater => Relation::Less,
            Relation::GreaterEqual => Relation::LessEqual,
            other => other,
        }
    }
}

/// An answer, or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    /// A number as written; `decimals` counts the digits after the point.
    Number {
        value: Rational,
        decimals: Option<u32>,
    },
    /// Digits with a base as subscript.
    Based {
        value: Rational,
        base: u32,
    },
    Constant(Constant),
    Variable(String),
    Sum(Vec<(Sign, Expr)>),
    /// Factors; `true` divides.
    Product(Vec<(bool, Expr)>),
    Power(Box<Expr>, Box<Expr>),
    Call(Function, Vec<Expr>),
    Percent(Box<Expr>),
    Degree(Box<Expr>),
    /// With words or a currency beside it.
    Unit(Box<Expr>, String),
    /// Something in round brackets.
    Group(Box<Expr>),
    /// A tuple, point or interval with its brackets.
    Sequence(char, Vec<Expr>, char),
    Set(Vec<Expr>),
    Union(Vec<Expr>),
    Matrix(Vec<Vec<Expr>>),
    /// Several answers.
    List(Vec<Expr>),
    /// `3:2` or a time of day.
    Colon(Vec<Expr>),
    Chain(Box<Expr>, Vec<(Relation, Expr)>),
    Text(String),
}

impl Expr {
    pub(super) fn number(value: Rational) -> Expr {
        Expr::Number { value, decimals: None }
    }

    pub(super) fn int(value: i64) -> Expr {
        Expr::number(Rational::integer(value))
    }

    /// The direct parts, in order.
    pub(super) fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::Number { .. }
            | Expr::Based { .. }
            | Expr::Constant(_)
            | Expr::Variable(_)
            | Expr::Text(_) => vec![],
            Expr::Sum(terms) => terms.iter().map(|(_, e)| e).collect(),
            Expr::Product(factors) => factors.iter().map(|(_, e)| e).collect(),
            Expr::Power(a, b) => vec![a, b],
            Expr::Percent(e) | Expr::Degree(e) | Expr::Unit(e, _) | Expr::Group(e) => vec![e],
            Expr::Call(_, items)
            | Expr::Sequence(_, items, _)
            | Expr::Set(items)
            | Expr::Union(items)
            | Expr::List(items)
            | Expr::Colon(items) => items.iter().collect(),
            Expr::Matrix(rows) => rows.iter().flatten().collect(),
            Expr::Chain(first, rest) => {
                std::iter::once(&**first).chain(rest.iter().map(|(_, e)| e)).collect()
            }
        }
    }

    /// Whether `test` holds for it or anything in it.
    pub(super) fn any(&self, test: &impl Fn(&Expr) -> bool) -> bool {
        test(self) || self.children().into_iter().any(|child| child.any(test))
    }

    /// The names of its variables, sorted, each once, added to `names`.
    pub(super) fn variables(&self, names: &mut Vec<String>) {
        if let Expr::Variable(name) = self
            && let Err(at) = names.binary_search(name)
        {
            names.insert(at, name.clone());
        }
        self.children().into_iter().for_each(|child| child.variables(names));
    }

    pub(super) fn has_variables(&self) -> bool {
        self.any(&|e| matches!(e, Expr::Variable(_)))
    }

    /// The digits written in it: what its length in digits allows it to approximate.
    pub(super) fn digits(&self) -> u64 {
        let own = match self {
            Expr::Number { value, .. } | Expr::Based { value, .. } => value.bits() / 3 + 1,
            _ => 0,
        };
        own + self.children().into_iter().map(Expr::digits).sum::<u64>()
    }

    /// Whether it is a number as one writes a result: an integer, decimal, fraction or mixed number, in scientific
    /// notation or not, with a sign, unit or percent sign, but with no arithmetic left to do.
    pub(super) fn is_plain_number(&self) -> bool {
        match self {
            Expr::Number { .. } | Expr::Based { .. } => true,
            Expr::Group(e) | Expr::Percent(e) | Expr::Degree(e) | Expr::Unit(e, _) => e.is_plain_number(),
            Expr::Sum(terms) => {
                matches!(terms.as_slice(), [(Sign::Plus | Sign::Minus, e)] if e.is_plain_number())
            }
            Expr::Product(factors) => match factors.as_slice() {
                [(false, a), (true, b)] => a.is_plain_number() && b.is_plain_number(),
                [(false, a), (false, b)] => a.is_plain_number() && b.is_power_of_ten(),
                _ => false,
            },
            Expr::Power(..) => self.is_power_of_ten(),
            _ => false,
        }
    }

    fn is_power_of_ten(&self) -> bool {
        match self {
            Expr::Power(base, exponent) => {
                matches!(&**base, Expr::Number { value, .. } if value.to_i64() == Some(10))
                    && exponent.is_plain_number()
            }
            Expr::Group(e) => e.is_power_of_ten(),
            _ => false,
        }
    }

    /// It without brackets, units and single plus signs around the whole.
    pub(super) fn bare(&self) -> &Expr {
        match self {
            Expr::Group(e) | Expr::Unit(e, _) => e.bare(),
            Expr::Sum(terms) => match terms.as_slice() {
                [(Sign::Plus, e)] => e.bare(),
                _ => self,
            },
            _ => self,
        }
    }

    /// How many operations it takes to compute it, for telling an answer from a question repeated.
    pub(super) fn n_operations(&self) -> usize {
        let own = match self {
            Expr::Sum(terms) => terms.len() - 1,
            Expr::Product(factors) => factors.len() - 1,
            Expr::Power(..) | Expr::Call(..) => 1,
            _ => 0,
        };
        own + self.children().into_iter().map(Expr::n_operations).sum::<usize>()
    }
}
