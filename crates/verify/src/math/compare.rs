//! Whether two answers are the same.

use std::cell::Cell;

use pt_core::rng::Stream;

use super::complex::EvalError;
use super::eval::{Evaluator, Value};
use super::expr::{Constant, Expr, Function, Relation, Sign};
use super::lex;
use super::number::Rational;
use super::parse::is_order;

/// Work per verdict; see [`Evaluator::fuel`].
const FUEL: u64 = 300_000;

/// Points at which expressions with variables are compared.
const N_POINTS: usize = 12;

/// Fewer comparable points than this prove nothing.
const MIN_POINTS: usize = 3;

/// Bits of the first, quick comparison of constants.
const QUICK_BITS: u64 = 128;

/// Bits of the comparison that decides, beyond those that the written digits could imitate.
const BASE_BITS: u64 = 256;

/// Bits for each written decimal digit: more than log2(10), so that no decimal can be as close to an irrational number as
/// equality requires.
const BITS_PER_DIGIT: u64 = 8;

/// Items of a list that are compared with each other.
const MAX_ITEMS: usize = 64;

/// The denominator of random points: a prime, so that they hit no special value.
const POINT_DENOMINATOR: i64 = 997;

/// How a percentage compares with a number without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Percent {
    /// 25% is 25 and is 0.25.
    Either,
    /// 25% is 25.
    Number,
    /// 25% is 0.25.
    Fraction,
}

/// Rules of comparison, and what was noticed.
pub(super) struct Comparer<'a> {
    pub(super) percent: Percent,
    pub(super) tolerance: Option<&'a Rational>,
    pub(super) allows_unevaluated: bool,
    /// Whether a reply had the right value with arithmetic left undone.
    pub(super) saw_unevaluated: Cell<bool>,
    /// Whether a reply could not be computed.
    pub(super) problem: Cell<Option<EvalError>>,
    fuel: Cell<u64>,
}

/// An interval: bracket, ends, bracket.
struct Interval(char, Expr, Expr, char);

impl<'a> Comparer<'a> {
    pub(super) fn new(
        percent: Percent,
        tolerance: Option<&'a Rational>,
        allows_unevaluated: bool,
    ) -> Comparer<'a> {
        Comparer {
            percent,
            tolerance,
            allows_unevaluated,
            saw_unevaluated: Cell::new(false),
            problem: Cell::new(None),
            fuel: Cell::new(FUEL),
        }
    }

    /// Whether `reply` is the answer `gold`.
    pub(super) fn same(&self, gold: &Expr, reply: &Expr) -> bool {
        if let Some(same) = same_time(gold, reply) {
            return same;
        }
        if units_conflict(gold, reply) {
            return false;
        }
        let (gold, reply) = (gold.bare(), reply.bare());
        if let (Some(a), Some(b)) = (intervals(gold), intervals(reply)) {
            return self.unordered(&a, &b, |a, b| {
                a.0 == b.0 && a.3 == b.3 && self.same(&a.1, &b.1) && self.same(&a.2, &b.2)
            });
        }
        match (gold, reply) {
            (Expr::Sequence(a, xs, b), Expr::Sequence(c, ys, d)) => {
                // Two items may be an interval; more are a point however they are bracketed.
                (xs.len() > 2 || (a == c && b == d)) && self.ordered(xs, ys)
            }
            (Expr::Sequence('(', xs, ')'), Expr::List(ys))
            | (Expr::List(xs), Expr::Sequence('(', ys, ')')) => self.ordered(xs, ys),
            (Expr::Matrix(xs), Expr::Matrix(ys)) => {
                xs.len() == ys.len() && xs.iter().zip(ys).all(|(x, y)| self.ordered(x, y))
            }
            (Expr::Matrix(rows), Expr::Sequence('(', items, ')')) => {
                vector(rows).is_some_and(|vector| self.ordered(&vector, items))
            }
            (Expr::Sequence('(', items, ')'), Expr::Matrix(rows)) => {
                vector(rows).is_some_and(|vector| self.ordered(items, &vector))
            }
            (Expr::Chain(..), Expr::Chain(..)) => self.same_relation(gold, reply),
            (Expr::Chain(..), _) => {
                is_labelled(gold) && self.value_side(gold, false).is_some_and(|gold| self.same(gold, reply))
            }
            (_, Expr::Chain(..)) if several(gold).is_none() => {
                let is_decimal = matches!(gold, Expr::Number { decimals: Some(_), .. });
                self.value_side(reply, false).is_some_and(|reply| self.same(gold, reply))
                    || (is_decimal
                        && self.value_side(reply, true).is_some_and(|reply| self.same(gold, reply)))
            }
            (Expr::Text(a), Expr::Text(b)) => a.to_lowercase() == b.to_lowercase(),
            _ => match (several(gold), several(reply)) {
                (None, None) => self.same_scalar(gold, reply),
                (a, b) => {
                    let (a, b) = (a.unwrap_or(vec![gold.clone()]), b.unwrap_or(vec![reply.clone()]));
                    self.unordered(&a, &b, |a, b| self.same(a, b))
                }
            },
        }
    }

    fn ordered(&self, gold: &[Expr], reply: &[Expr]) -> bool {
        gold.len() == reply.len() && gold.iter().zip(reply).all(|(a, b)| self.same(a, b))
    }

    /// Whether the two hold the same things: everything in one is in the other.
    fn unordered<T>(&self, gold: &[T], reply: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
        if gold.len() > MAX_ITEMS || reply.len() > MAX_ITEMS || gold.is_empty() != reply.is_empty() {
            return false;
        }
        let mut is_found = vec![false; gold.len()];
        for item in reply {
            let Some(at) = gold.iter().position(|candidate| same(candidate, item)) else { return false };
            is_found[at] = true;
        }
        // An item that occurs twice in the gold answer needs to be said once.
        (0..gold.len()).all(|at| {
            is_found[at] || (0..gold.len()).any(|other| is_found[other] && same(&gold[other], &gold[at]))
        })
    }

    /// The side of `x = ... = value` that is the answer; what is constant in it must agree with it. `approximate` asks for
    /// what follows `≈`.
    fn value_side<'e>(&self, chain: &'e Expr, approximate: bool) -> Option<&'e Expr> {
        let Expr::Chain(first, rest) = chain else { return None };
        let at_approximation = rest.iter().position(|(relation, _)| *relation == Relation::Approximately);
        if approximate {
            let near = &rest.get(at_approximation?)?.1;
            let exact = if at_approximation == Some(0) { first } else { &rest[at_approximation? - 1].1 };
            // What is said to be near must be near.
            let loose = Comparer::new(self.percent, self.tolerance, true);
            let close = Rational::decimal("0", "01", "")?;
            let loose = Comparer { tolerance: Some(&close), ..loose };
            return (exact.has_variables() || loose.same_scalar(exact, near)).then_some(near);
        }
        let rest = &rest[..at_approximation.unwrap_or(rest.len())];
        if rest.iter().any(|(relation, _)| !matches!(relation, Relation::Equal | Relation::Member)) {
            return None;
        }
        let sides: Vec<&Expr> = std::iter::once(&**first).chain(rest.iter().map(|(_, side)| side)).collect();
        let value = match sides.as_slice() {
            [only] => return Some(only),
            [value, Expr::Variable(_)] if !value.has_variables() => *value,
            [.., last] => *last,
            [] => return None,
        };
        if !names_quantity(first) {
            return None;
        }
        let free = Comparer::new(self.percent, None, true);
        let agrees = |side: &&Expr| {
            std::ptr::eq::<Expr>(*side, value)
                || side.has_variables()
                || matches!(side.bare(), Expr::Text(_))
                || free.same(value, side)
        };
        sides.iter().all(agrees).then_some(value)
    }

    fn same_relation(&self, gold: &Expr, reply: &Expr) -> bool {
        let (Some((a, how, b)), Some((c, how_reply, d))) = (self.ends(gold), self.ends(reply)) else {
            return false;
        };
        if how == how_reply && self.same(a, c) && self.same(b, d) {
            return true;
        }
        // Both to one side, and equal up to a factor; which is positive where the order matters.
        let difference =
            |a: &Expr, b: &Expr| Expr::Sum(vec![(Sign::Plus, a.clone()), (Sign::Minus, b.clone())]);
        let gold = difference(a, b);
        match (how, how_reply) {
            (Relation::Equal, Relation::Equal) => self.same_up_to_factor(&gold, &difference(c, d), false),
            _ if how == how_reply && is_order(how) => self.same_up_to_factor(&gold, &difference(c, d), true),
            _ if how == how_reply.mirrored() && is_order(how) => {
                self.same_up_to_factor(&gold, &difference(d, c), true)
            }
            _ => false,
        }
    }

    /// The first side, the relation and the last side.
    fn ends<'e>(&self, chain: &'e Expr) -> Option<(&'e Expr, Relation, &'e Expr)> {
        let Expr::Chain(first, rest) = chain else { return None };
        match rest.as_slice() {
            [(relation, last)] => Some((first, *relation, last)),
            _ => Some((first, Relation::Equal, self.value_side(chain, false)?)),
        }
    }

    fn points(&self, names: &[String]) -> Vec<Vec<Rational>> {
        let stream = Stream::new(0, "math verifier points");
        let point = |index: usize| {
            let mut draws = stream.at(u64::try_from(index).unwrap_or(0));
            let mut coordinate = || {
                // Small, middling and large; the first four points positive.
                let (low, high) = [(50, 990), (1000, 9970), (10_000, 60_000)][index % 3];
                let size = draws.between(low, high);
                let is_negative = draws.below(2) == 1 && index >= 4;
                let value = if is_negative { -size } else { size };
                Rational::new(value.into(), POINT_DENOMINATOR.into()).unwrap_or_else(|| Rational::integer(1))
            };
            names.iter().map(|_| coordinate()).collect()
        };
        (0..N_POINTS).map(point).collect()
    }

    fn evaluator<'v>(&'v self, precision: u64, names: &'v [String], values: &'v [Rational]) -> Evaluator<'v> {
        Evaluator { precision, names, values, percent_is_fraction: false, fuel: &self.fuel }
    }

    fn same_scalar(&self, gold: &Expr, reply: &Expr) -> bool {
        if let (Some(a), Some(b)) = (infinity(gold), infinity(reply)) {
            return a == b;
        }
        if let Some(same) = same_base(gold, reply) {
            return same;
        }
        let is_percent = |e: &Expr| e.any(&|e| matches!(e, Expr::Percent(_)));
        let is_degree = |e: &Expr| matches!(e.bare(), Expr::Degree(_));
        let modes: &[bool] = match (self.percent, is_percent(gold) == is_percent(reply)) {
            (_, true) | (Percent::Number, _) => &[false],
            (Percent::Fraction, _) => &[true],
            (Percent::Either, _) => &[false, true],
        };
        let is_same = modes.iter().any(|mode| self.same_function(gold, reply, *mode));
        if is_same && !self.allows_unevaluated && gold.is_plain_number() && !reply.is_plain_number() {
            self.saw_unevaluated.set(true);
            return false;
        }
        if !is_same && is_degree(gold) != is_degree(reply) {
            return self.same_function(&radians(gold), &radians(reply), false);
        }
        is_same
    }

    /// Whether the two have the same value at every point where the gold answer is real.
    fn same_function(&self, gold: &Expr, reply: &Expr, percent_is_fraction: bool) -> bool {
        let mut names = Vec::new();
        gold.variables(&mut names);
        reply.variables(&mut names);
        let precision = BASE_BITS + BITS_PER_DIGIT * (gold.digits() + reply.digits());
        let compare = |precision, values: &[Rational], only_real: bool| {
            let at = Evaluator { percent_is_fraction, ..self.evaluator(precision, &names, values) };
            let expected = match at.value(gold) {
                Ok(value) if !only_real || at.is_real(&value) => value,
                // Nothing is said about points where the gold answer says nothing.
                Ok(_) | Err(EvalError::Undefined) => return None,
                Err(problem) => return self.no_value(problem),
            };
            match at.value(reply) {
                Ok(value) => Some(self.same_value(&at, &expected, &value)),
                Err(problem) => self.no_value(problem),
            }
        };
        if names.is_empty() {
            return compare(QUICK_BITS, &[], false) == Some(true)
                && compare(precision, &[], false) == Some(true);
        }
        let points = self.points(&names);
        for only_real in [true, false] {
            let mut n_same = 0;
            for values in &points {
                match compare(precision, values, only_real) {
                    Some(true) => n_same += 1,
                    Some(false) => return false,
                    None => {}
                }
            }
            if n_same >= MIN_POINTS {
                return true;
            }
        }
        false
    }

    #[allow(clippy::unnecessary_wraps, reason = "the value of a closure's arms that may be absent")]
    fn no_value(&self, problem: EvalError) -> Option<bool> {
        self.problem.set(Some(problem));
        Some(false)
    }

    fn same_value(&self, at: &Evaluator<'_>, gold: &Value, reply: &Value) -> bool {
        at.same(gold, reply) == Some(true)
            || self.tolerance.is_some_and(|tolerance| at.is_near(reply, gold, tolerance))
    }

    fn same_up_to_factor(&self, gold: &Expr, reply: &Expr, factor_is_positive: bool) -> bool {
        let mut names = Vec::new();
        gold.variables(&mut names);
        reply.variables(&mut names);
        if !gold.has_variables() || !reply.has_variables() {
            return false;
        }
        let precision = BASE_BITS + BITS_PER_DIGIT * (gold.digits() + reply.digits());
        let (mut factor, mut n_same): (Option<Value>, usize) = (None, 0);
        for values in self.points(&names) {
            let at = self.evaluator(precision, &names, &values);
            let (a, b) = match (at.value(gold), at.value(reply)) {
                (Ok(a), Ok(b)) if at.is_real(&a) => (a, b),
                (Ok(_), Ok(_)) | (Err(EvalError::Undefined), _) => continue,
                _ => return false,
            };
            let Ok(ratio) = at.ratio(&b, &a) else { continue };
            let is_positive = matches!(&ratio, Value::Exact(r) if !r.is_negative() && !r.is_zero());
            if matches!(&ratio, Value::Exact(r) if r.is_zero()) || (factor_is_positive && !is_positive) {
                return false;
            }
            match &factor {
                Some(factor) if at.same(factor, &ratio) != Some(true) => return false,
                Some(_) => n_same += 1,
                None => factor = Some(ratio),
            }
        }
        n_same >= MIN_POINTS
    }
}

/// The items of a list, a set, a union, or what `±` stands for.
fn several(expr: &Expr) -> Option<Vec<Expr>> {
    match expr {
        Expr::List(items) | Expr::Set(items) | Expr::Union(items) => Some(items.clone()),
        // Lists and tuples of ± would multiply; only a number or an equation is taken apart.
        _ if expr.any(&is_plus_minus) => Some(vec![with_sign(expr, false), with_sign(expr, true)]),
        _ => None,
    }
}

fn is_plus_minus(expr: &Expr) -> bool {
    matches!(expr, Expr::Sum(terms) if terms.iter().any(|(sign, _)| matches!(sign, Sign::PlusMinus | Sign::MinusPlus)))
}

/// The same with every `±` read as its upper (or lower) sign.
fn with_sign(expr: &Expr, lower: bool) -> Expr {
    let go = |e: &Expr| with_sign(e, lower);
    let each = |items: &[Expr]| items.iter().map(go).collect::<Vec<_>>();
    match expr {
        Expr::Sum(terms) => {
            let sign = |sign: Sign| match sign {
                Sign::PlusMinus if lower => Sign::Minus,
                Sign::PlusMinus => Sign::Plus,
                Sign::MinusPlus if lower => Sign::Plus,
                Sign::MinusPlus => Sign::Minus,
                plain => plain,
            };
            Expr::Sum(terms.iter().map(|(s, e)| (sign(*s), go(e))).collect())
        }
        Expr::Product(factors) => Expr::Product(factors.iter().map(|(d, e)| (*d, go(e))).collect()),
        Expr::Power(a, b) => Expr::Power(Box::new(go(a)), Box::new(go(b))),
        Expr::Call(function, items) => Expr::Call(*function, each(items)),
        Expr::Percent(e) => Expr::Percent(Box::new(go(e))),
        Expr::Degree(e) => Expr::Degree(Box::new(go(e))),
        Expr::Unit(e, unit) => Expr::Unit(Box::new(go(e)), unit.clone()),
        Expr::Group(e) => Expr::Group(Box::new(go(e))),
        Expr::Sequence(open, items, close) => Expr::Sequence(*open, each(items), *close),
        Expr::Chain(first, rest) => {
            Expr::Chain(Box::new(go(first)), rest.iter().map(|(r, e)| (*r, go(e))).collect())
        }
        other => other.clone(),
    }
}

/// A matrix of one row or one column, as its entries.
fn vector(rows: &[Vec<Expr>]) -> Option<Vec<Expr>> {
    match rows {
        [row] => Some(row.clone()),
        _ if rows.iter().all(|row| row.len() == 1) => Some(rows.concat()),
        _ => None,
    }
}

/// Whether the first side may name what is asked for, as `a + b` and `|AB|` do, and is no equation to be solved.
fn names_quantity(first: &Expr) -> bool {
    let computes = |e: &Expr| match e {
        Expr::Number { .. } => true,
        Expr::Call(function, _) => *function != Function::Abs,
        _ => false,
    };
    !first.has_variables() || is_label(first) || !first.any(&computes)
}

/// Whether the first side only names what is found: `x`, `f(x)`, `AB`, words.
fn is_labelled(chain: &Expr) -> bool {
    matches!(chain, Expr::Chain(first, _) if is_label(first))
}

fn is_label(side: &Expr) -> bool {
    match side.bare() {
        Expr::Variable(_) | Expr::Text(_) => true,
        Expr::Sequence(_, items, _) => items.iter().all(|item| matches!(item, Expr::Variable(_))),
        Expr::Product(factors) => {
            let is_name = |e: &Expr| matches!(e, Expr::Variable(_) | Expr::Group(_) | Expr::Sequence(..));
            let is_upper =
                |e: &Expr| matches!(e, Expr::Variable(name) if name.starts_with(char::is_uppercase));
            match factors.as_slice() {
                [(false, Expr::Variable(_)), (false, Expr::Group(_) | Expr::Sequence(..))] => true,
                _ => factors.iter().all(|(divides, e)| !divides && is_name(e) && is_upper(e)),
            }
        }
        _ => false,
    }
}

/// Intervals written as such, as a union, or as inequalities for one variable.
fn intervals(expr: &Expr) -> Option<Vec<Interval>> {
    match expr.bare() {
        Expr::Sequence(open, items, close) => match items.as_slice() {
            [a, b] => Some(vec![Interval(*open, a.clone(), b.clone(), *close)]),
            _ => None,
        },
        Expr::Union(parts) => {
            let parts: Option<Vec<_>> = parts.iter().map(intervals).collect();
            parts.map(|parts| parts.into_iter().flatten().collect())
        }
        Expr::List(parts) if parts.iter().all(|part| matches!(part, Expr::Chain(..))) => {
            let parts: Option<Vec<_>> = parts.iter().map(intervals).collect();
            parts.map(|parts| parts.into_iter().flatten().collect())
        }
        Expr::Chain(first, rest) => inequality(first, rest).map(|interval| vec![interval]),
        _ => None,
    }
}

fn inequality(first: &Expr, rest: &[(Relation, Expr)]) -> Option<Interval> {
    let infinity = Expr::Constant(Constant::Infinity);
    let minus_infinity = Expr::Sum(vec![(Sign::Minus, infinity.clone())]);
    let bracket = |relation, open| match relation {
        Relation::LessEqual | Relation::GreaterEqual => {
            if open {
                '['
            } else {
                ']'
            }
        }
        _ => {
            if open {
                '('
            } else {
                ')'
            }
        }
    };
    let below =
        |relation, end: &Expr| Interval('(', minus_infinity.clone(), end.clone(), bracket(relation, false));
    let above = |relation, end: &Expr| Interval(bracket(relation, true), end.clone(), infinity.clone(), ')');
    let is_less = |relation| matches!(relation, Relation::Less | Relation::LessEqual);
    match rest {
        [(Relation::Member, set)] if matches!(first.bare(), Expr::Variable(_)) => {
            intervals(set).and_then(|mut all| if all.len() == 1 { all.pop() } else { None })
        }
        [(relation, end)]
            if is_order(*relation) && matches!(first.bare(), Expr::Variable(_)) && !end.has_variables() =>
        {
            Some(if is_less(*relation) { below(*relation, end) } else { above(*relation, end) })
        }
        [(relation, Expr::Variable(_))] if is_order(*relation) && !first.has_variables() => {
            Some(if is_less(*relation) { above(*relation, first) } else { below(*relation, first) })
        }
        [(left, Expr::Variable(_)), (right, end)]
            if is_order(*left) && is_order(*right) && is_less(*left) == is_less(*right) =>
        {
            let (low, high) = (first.clone(), end.clone());
            Some(match is_less(*left) {
                true => Interval(bracket(*left, true), low, high, bracket(*right, false)),
                false => Interval(bracket(*right, true), high, low, bracket(*left, false)),
            })
        }
        _ => None,
    }
}

/// `Some(is_positive)` for plus or minus infinity.
fn infinity(expr: &Expr) -> Option<bool> {
    match expr.bare() {
        Expr::Constant(Constant::Infinity) => Some(true),
        Expr::Sum(terms) => match terms.as_slice() {
            [(Sign::Minus, e)] => infinity(e).map(|is_positive| !is_positive),
            _ => None,
        },
        _ => None,
    }
}

/// How numbers with a base compare: the base asked for is part of the answer, though it need not be said again.
fn same_base(gold: &Expr, reply: &Expr) -> Option<bool> {
    match (gold.bare(), reply.bare()) {
        (Expr::Based { value: a, base: x }, Expr::Based { value: b, base: y }) => Some(a == b && x == y),
        (Expr::Based { value, base }, Expr::Number { value: digits, .. }) => {
            Some(value.num().to_str_radix(*base) == digits.num().to_string() && digits.is_integer())
        }
        (_, Expr::Based { base, .. }) if *base != 10 => Some(false),
        _ => None,
    }
}

/// Degrees as radians, anything else as it is.
fn radians(expr: &Expr) -> Expr {
    match expr.bare() {
        Expr::Degree(e) => Expr::Product(vec![
            (false, (**e).clone()),
            (false, Expr::Constant(Constant::Pi)),
            (true, Expr::int(180)),
        ]),
        Expr::Sum(terms) => match terms.as_slice() {
            [(Sign::Minus, e)] => Expr::Sum(vec![(Sign::Minus, radians(e))]),
            _ => expr.clone(),
        },
        _ => expr.clone(),
    }
}

fn unit_of(expr: &Expr) -> &str {
    match expr {
        Expr::Unit(_, unit) => unit,
        Expr::Group(e) => unit_of(e),
        Expr::Sum(terms) => match terms.as_slice() {
            [(_, e)] => unit_of(e),
            _ => "",
        },
        Expr::Chain(_, rest) => rest.last().map_or("", |(_, e)| unit_of(e)),
        _ => "",
    }
}

/// Whether both have units, known ones, and different ones.
fn units_conflict(gold: &Expr, reply: &Expr) -> bool {
    let known = |expr| {
        let unit = unit_of(expr);
        (lex::is_known_unit(unit.split(' ').next().unwrap_or(""))).then_some(unit)
    };
    matches!((known(gold), known(reply)), (Some(a), Some(b)) if a != b)
}

/// Times of day and ratios; `None` where neither is one.
fn same_time(gold: &Expr, reply: &Expr) -> Option<bool> {
    let (a, b) = (time(gold), time(reply));
    if a.is_none() && b.is_none() {
        return None;
    }
    let (Some((a, half)), Some((b, half_reply))) = (a, b) else { return Some(false) };
    let minutes = |parts: &[i64], half: &str| {
        let hour = match (half, parts[0]) {
            ("am", 12) => 0,
            ("pm", hour) if hour < 12 => hour + 12,
            (_, hour) => hour,
        };
        let rest: Vec<i64> = (1..3).map(|k| parts.get(k).copied().unwrap_or(0)).collect();
        (hour, rest)
    };
    let is_half = |half: &str| matches!(half, "am" | "pm");
    Some(match (is_half(half), is_half(half_reply)) {
        (false, false) => a == b,
        (true, true) => minutes(&a, half) == minutes(&b, half_reply),
        // Half past four is not yet half past four in the afternoon; 16:30 is.
        (true, false) => (b[0] >= 13 || b[0] == 0) && minutes(&a, half) == minutes(&b, ""),
        (false, true) => (a[0] >= 13 || a[0] == 0) && minutes(&a, "") == minutes(&b, half_reply),
    })
}

/// The parts of `4:30` and the half of the day.
fn time(expr: &Expr) -> Option<(Vec<i64>, &str)> {
    let integer = |e: &Expr| match e.bare() {
        Expr::Number { value, .. } => value.to_i64(),
        _ => None,
    };
    let (inner, unit) = match expr {
        Expr::Unit(inner, unit) => (&**inner, unit.as_str()),
        Expr::Chain(_, rest) => return rest.last().and_then(|(_, last)| time(last)),
        other => (other, ""),
    };
    match inner {
        Expr::Colon(parts) => {
            let parts: Option<Vec<i64>> = parts.iter().map(integer).collect();
            parts.map(|parts| (parts, unit))
        }
        other if matches!(unit, "am" | "pm") => integer(other).map(|hour| (vec![hour], unit)),
        _ => None,
    }
}
