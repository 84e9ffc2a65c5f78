//! RocketMQ's grammar, but that conditions are no values and values no conditions.
//!
//! RocketMQ lets them stand for each other, and then compares what is never equal, or asks whether a property
//! is there: `NOT a = 3` is `(NOT a) = 3` to it, which no message satisfies. Here that is refused.

use super::condition::{Comparison, Condition, Operand, Place, Test, Value};
use super::lexer::{Lexer, Result, Token};
use crate::error::InvalidFilter;
use std::ops::Range;

/// How deep parentheses may be: as deep goes the recursion, here and where messages are looked at.
pub(super) const DEPTH_MAX: usize = 64;

enum Kind {
    Value(Operand),
    Condition(Condition),
}

/// A part of the expression, and where it stands.
struct Term {
    kind: Kind,
    span: Range<usize>,
}

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next one, and where it stands.
    token: Token<'a>,
    span: Range<usize>,
    /// Where the one before it ends.
    end: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Condition> {
        let mut lexer = Lexer::new(text);
        let (token, span) = lexer.next()?;
        let mut parser = Self { lexer, token, span, end: 0, depth: 0 };
        let whole = parser.any()?;
        match (parser.token, &whole.kind) {
            (Token::End, _) => parser.condition(whole),
            // RocketMQ takes no notice of what comes behind.
            (_, Kind::Condition(_)) => Err(parser.unexpected("AND, OR or the end")),
            (_, Kind::Value(_)) => Err(parser.unexpected("an operator")),
        }
    }

    fn any(&mut self) -> Result<Term> {
        let first = self.all()?;
        self.joined(first, "OR", Self::all, Condition::Any)
    }

    fn all(&mut self) -> Result<Term> {
        let first = self.comparison()?;
        self.joined(first, "AND", Self::comparison, Condition::All)
    }

    /// What `word` joins to `first`, if it does.
    fn joined(
        &mut self,
        first: Term,
        word: &'static str,
        next: impl Fn(&mut Self) -> Result<Term>,
        join: impl Fn(Vec<Condition>) -> Condition,
    ) -> Result<Term> {
        if self.token != Token::Fixed(word) {
            return Ok(first);
        }
        let start = first.span.start;
        let mut conditions = vec![self.condition(first)?];
        while self.takes(word)? {
            let term = next(self)?;
            conditions.push(self.condition(term)?);
        }
        Ok(self.made(join(conditions), start))
    }

    /// A term, or what is said of it.
    fn comparison(&mut self) -> Result<Term> {
        let left = self.term()?;
        match left.kind {
            Kind::Condition(_) => Ok(left),
            Kind::Value(operand) => self.said_of(operand, left.span),
        }
    }

    fn said_of(&mut self, left: Operand, span: Range<usize>) -> Result<Term> {
        let start = span.start;
        let negated = self.takes("NOT")?;
        let Token::Fixed(word) = self.token else {
            return if negated {
                self.not_negated()
            } else {
                Ok(Term { kind: Kind::Value(left), span })
            };
        };
        let condition = match word {
            "CONTAINS" | "STARTSWITH" | "ENDSWITH" => {
                self.advance()?;
                let place = match word {
                    "CONTAINS" => Place::Anywhere,
                    "STARTSWITH" => Place::Start,
                    _ => Place::End,
                };
                Condition::Test(Test::Has { operand: left, place, text: self.text()?, negated })
            }
            "BETWEEN" => not_if(negated, self.between(left, span, negated)?),
            "IN" => not_if(negated, self.one_of(left, span)?),
            _ if negated => return self.not_negated(),
            "IS" => {
                self.advance()?;
                let not = self.takes("NOT")?;
                self.expect("NULL")?;
                not_if(not, Condition::Test(Test::IsNull(left)))
            }
            "=" | "<>" => not_if(word == "<>", self.equal(left, span)?),
            "<" | "<=" | ">" | ">=" => {
                self.advance()?;
                let comparison = match word {
                    "<" => Comparison::Less,
                    "<=" => Comparison::LessOrEqual,
                    ">" => Comparison::Greater,
                    _ => Comparison::GreaterOrEqual,
                };
                let left = self.ordered(left, span)?;
                let (right, span) = self.operand()?;
                let right = self.ordered(right, span)?;
                Condition::Test(Test::Compare(left, comparison, right))
            }
            _ => return Ok(Term { kind: Kind::Value(left), span }),
        };
        Ok(self.made(condition, start))
    }

    fn not_negated(&self) -> Result<Term> {
        Err(self.unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH"))
    }

    fn equal(&mut self, left: Operand, left_at: Range<usize>) -> Result<Condition> {
        self.advance()?;
        let (right, right_at) = self.operand()?;
        for (operand, at) in [(&left, &left_at), (&right, &right_at)] {
            if let Operand::Literal(None) = operand {
                let expected = "a value other than NULL, for which there is IS NULL,";
                return Err(self.lexer.unexpected(at.clone(), expected));
            }
        }
        let is_truth = |operand: &_| matches!(operand, Operand::Literal(Some(Value::Bool(_))));
        if is_truth(&left) && !is_truth(&right) {
            // RocketMQ fails to cast it, every time.
            let expected = "what is compared with TRUE or FALSE, which go to the right,";
            return Err(self.lexer.unexpected(left_at, expected));
        }
        Ok(Condition::Test(Test::Equal(left, right)))
    }

    fn between(&mut self, value: Operand, span: Range<usize>, negated: bool) -> Result<Condition> {
        self.advance()?;
        let value = self.ordered(value, span)?;
        let (low, span) = self.operand()?;
        let low = self.ordered(low, span)?;
        self.expect("AND")?;
        let (high, span) = self.operand()?;
        let high = self.ordered(high, span.clone())?;
        if let (false, Operand::Literal(Some(low)), Operand::Literal(Some(high))) =
            (negated, &low, &high)
            && low.compare(high).is_ok_and(|order| order.is_gt())
        {
            let expected = "a number that is not below the first one";
            return Err(self.lexer.unexpected(span, expected));
        }
        let from = Test::Compare(value.clone(), Comparison::GreaterOrEqual, low);
        let to = Test::Compare(value, Comparison::LessOrEqual, high);
        Ok(Condition::All(vec![Condition::Test(from), Condition::Test(to)]))
    }

    fn one_of(&mut self, operand: Operand, span: Range<usize>) -> Result<Condition> {
        self.advance()?;
        if let Operand::Literal(_) = operand {
            return Err(self.lexer.unexpected(span, "a property before IN"));
        }
        self.expect("(")?;
        let mut texts = vec![self.text()?];
        while self.takes(",")? {
            texts.push(self.text()?);
        }
        self.expect(")")?;
        texts.sort_unstable();
        Ok(Condition::Test(Test::In(operand, texts.into())))
    }

    /// What a comparison begins with, or a condition, with the NOTs before it: they hold closer than any
    /// operator.
    fn term(&mut self) -> Result<Term> {
        let start = self.span.start;
        let (mut found, mut negated) = (false, false);
        while self.takes("NOT")? {
            (found, negated) = (true, !negated);
        }
        let term = if self.token == Token::Fixed("(") {
            self.in_parentheses()?
        } else {
            let at = self.span.start;
            Term { kind: Kind::Value(self.bare_operand()?), span: at..self.end }
        };
        if !found {
            return Ok(term);
        }
        let condition = self.condition(term)?;
        Ok(self.made(not_if(negated, condition), start))
    }

    fn in_parentheses(&mut self) -> Result<Term> {
        let start = self.span.start;
        if self.depth == DEPTH_MAX {
            return Err(Box::new(InvalidFilter::TooDeep { at: start, max: DEPTH_MAX }));
        }
        self.advance()?;
        self.depth += 1;
        let inner = self.any()?;
        self.depth -= 1;
        self.expect(")")?;
        Ok(Term { kind: inner.kind, span: start..self.end })
    }

    /// What something is compared with: no condition, whatever parentheses it is in.
    fn operand(&mut self) -> Result<(Operand, Range<usize>)> {
        let start = self.span.start;
        let mut open = 0;
        while self.takes("(")? {
            open += 1;
        }
        let operand = self.bare_operand()?;
        for _ in 0..open {
            self.expect(")")?;
        }
        Ok((operand, start..self.end))
    }

    fn bare_operand(&mut self) -> Result<Operand> {
        let (mut signed, mut negative) = (false, false);
        while let Token::Fixed(sign @ ("+" | "-")) = self.token {
            (signed, negative) = (true, negative != (sign == "-"));
            self.advance()?;
        }
        let operand = match self.token {
            Token::Name(name) => Operand::Property(name.into()),
            Token::Text(text) => Operand::Literal(Some(Value::Text(undoubled(text).into()))),
            Token::Integer(digits) => Operand::Literal(Some(self.integer(digits)?)),
            Token::Float(digits) => Operand::Literal(Some(self.float(digits)?)),
            Token::Fixed("TRUE") => Operand::Literal(Some(Value::Bool(true))),
            Token::Fixed("FALSE") => Operand::Literal(Some(Value::Bool(false))),
            Token::Fixed("NULL") => Operand::Literal(None),
            _ => return Err(self.unexpected("a property, a literal or a parenthesis")),
        };
        let operand = match operand {
            Operand::Literal(Some(number)) if signed => number.with_sign(negative),
            _ if signed => None,
            unsigned => {
                self.advance()?;
                return Ok(unsigned);
            }
        };
        let Some(number) = operand else {
            return Err(self.unexpected("a number behind the sign"));
        };
        self.advance()?;
        Ok(Operand::Literal(Some(number)))
    }

    /// Java's `Integer` if it is one, else a `Long`, as also where the `L` says nothing else.
    fn integer(&self, digits: &str) -> Result<Value<'static>> {
        let digits = digits.trim_end_matches(['l', 'L']);
        let value = match digits.parse::<i64>() {
            Ok(value) if value == 0 || !digits.starts_with('0') => value,
            Ok(_) => return Err(self.unexpected("a number without zeros before it")),
            Err(_) => return Err(self.unexpected("an integer up to 9223372036854775807")),
        };
        Ok(i32::try_from(value).map_or(Value::Long(value), Value::Int))
    }

    fn float(&self, digits: &str) -> Result<Value<'static>> {
        let mantissa = digits.split(['e', 'E']).next().unwrap_or_default();
        let is_zero = !mantissa.contains(|c: char| c.is_ascii_digit() && c != '0');
        match digits.parse::<f64>() {
            Ok(value) if value.is_finite() && (value != 0.0 || is_zero) => Ok(Value::Double(value)),
            _ => Err(self.unexpected("a number that a 64-bit float can hold")),
        }
    }

    /// A text where nothing else may stand.
    fn text(&mut self) -> Result<Box<str>> {
        let Token::Text(text) = self.token else {
            return Err(self.unexpected("a text in single quotes"));
        };
        self.advance()?;
        Ok(undoubled(text).into())
    }

    fn condition(&self, term: Term) -> Result<Condition> {
        match term.kind {
            Kind::Condition(condition) => Ok(condition),
            Kind::Value(Operand::Literal(None)) => Ok(Condition::Constant(None)),
            Kind::Value(Operand::Literal(Some(Value::Bool(truth)))) => {
                Ok(Condition::Constant(Some(truth)))
            }
            Kind::Value(_) => {
                let expected = "a condition such as `a = 3`, behind NOT in parentheses,";
                Err(self.lexer.unexpected(term.span, expected))
            }
        }
    }

    /// An operand that may be lesser or greater than another.
    fn ordered(&self, operand: Operand, span: Range<usize>) -> Result<Operand> {
        match operand {
            Operand::Literal(None | Some(Value::Text(_) | Value::Bool(_))) => {
                Err(self.lexer.unexpected(span, "a property or a number"))
            }
            operand => Ok(operand),
        }
    }

    fn made(&self, condition: Condition, start: usize) -> Term {
        Term { kind: Kind::Condition(condition), span: start..self.end }
    }

    /// Says that something else must stand where the next token stands.
    fn unexpected(&self, expected: &'static str) -> Box<InvalidFilter> {
        self.lexer.unexpected(self.span.clone(), expected)
    }

    fn advance(&mut self) -> Result<()> {
        self.end = self.span.end;
        (self.token, self.span) = self.lexer.next()?;
        Ok(())
    }

    /// Goes on if this comes next; whether it does.
    fn takes(&mut self, fixed: &'static str) -> Result<bool> {
        let is_next = self.token == Token::Fixed(fixed);
        if is_next {
            self.advance()?;
        }
        Ok(is_next)
    }

    fn expect(&mut self, fixed: &'static str) -> Result<()> {
        if self.takes(fixed)? { Ok(()) } else { Err(self.unexpected(fixed)) }
    }
}

fn not_if(negated: bool, condition: Condition) -> Condition {
    if negated { Condition::Not(Box::new(condition)) } else { condition }
}

/// A text whose quotes were doubled.
fn undoubled(text: &str) -> String {
    text.replace("''", "'")
}
