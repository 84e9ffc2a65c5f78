//! What a parsed expression says of the properties of a message, by the rules of RocketMQ's expressions.

use crate::message::PropertiesRef;
use std::borrow::Cow;
use std::cmp::Ordering;

/// A property is not what it is compared with. RocketMQ throws then, and the message does not pass, whatever
/// the rest of the expression says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotComparable;

/// `None` is unknown.
pub(super) type Truth = Result<Option<bool>, NotComparable>;

/// A value that is not NULL.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    /// Java's `Integer`: a text that is compared with it must be one, too.
    Int(i32),
    /// Java's `Long`, the same for those that are no `Integer`.
    Long(i64),
    Double(f64),
    Bool(bool),
}

#[derive(Debug, Clone)]
pub(super) enum Operand {
    Property(Box<str>),
    /// `None` is NULL.
    Literal(Option<Value<'static>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Where a text is looked for in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Anywhere,
    Start,
    End,
}

#[derive(Debug, Clone)]
pub(super) enum Condition {
    Constant(Option<bool>),
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Test(Test),
}

/// What is asked about operands.
#[derive(Debug, Clone)]
pub(super) enum Test {
    Equal(Operand, Operand),
    Compare(Operand, Comparison, Operand),
    IsNull(Operand),
    /// It is one of these, which are sorted.
    In(Operand, Box<[Box<str>]>),
    Has {
        operand: Operand,
        place: Place,
        text: Box<str>,
        /// Not the same as a `Not` around it: what is no text neither has another nor lacks it.
        negated: bool,
    },
}

impl Condition {
    /// Looks at operands from left to right, and at none once the answer is clear: one that cannot be compared
    /// matters only where it is come to.
    pub(super) fn truth(&self, properties: PropertiesRef<'_>) -> Truth {
        match self {
            Self::Constant(truth) => Ok(*truth),
            Self::Not(condition) => Ok(condition.truth(properties)?.map(|truth| !truth)),
            Self::All(conditions) => unless(conditions, false, properties),
            Self::Any(conditions) => unless(conditions, true, properties),
            Self::Test(test) => test.truth(properties),
        }
    }
}

impl Test {
    fn truth(&self, properties: PropertiesRef<'_>) -> Truth {
        Ok(match self {
            Self::Equal(left, right) => {
                match (left.value(properties), right.value(properties)) {
                    (Some(Value::Text(left)), Some(Value::Text(right))) => Some(left == right),
                    (Some(left), Some(right)) => Some(left.compare(&right)?.is_eq()),
                    // As RocketMQ has it: what is NULL on the left is unknown, but for the same on the right.
                    (None, None) => Some(true),
                    (None, Some(_)) => None,
                    (Some(_), None) => Some(false),
                }
            }
            Self::Compare(left, comparison, right) => {
                let Some(left) = left.value(properties) else { return Ok(None) };
                let Some(right) = right.value(properties) else { return Ok(None) };
                let order = left.compare(&right)?;
                Some(match comparison {
                    Comparison::Less => order.is_lt(),
                    Comparison::LessOrEqual => order.is_le(),
                    Comparison::Greater => order.is_gt(),
                    Comparison::GreaterOrEqual => order.is_ge(),
                })
            }
            Self::IsNull(operand) => Some(operand.value(properties).is_none()),
            Self::In(operand, texts) => match operand.value(properties) {
                Some(Value::Text(value)) => {
                    Some(texts.binary_search_by(|text| (**text).cmp(&value)).is_ok())
                }
                _ => None,
            },
            Self::Has { operand, place, text, negated } => {
                let Some(Value::Text(value)) = operand.value(properties) else {
                    return Ok(Some(false));
                };
                let has = match place {
                    Place::Anywhere => value.contains(&**text),
                    Place::Start => value.starts_with(&**text),
                    Place::End => value.ends_with(&**text),
                };
                Some(!text.is_empty() && has != *negated)
            }
        })
    }
}

/// AND and OR: `end` as soon as one says so; otherwise unknown if one is, or else the opposite.
fn unless(conditions: &[Condition], end: bool, properties: PropertiesRef<'_>) -> Truth {
    let mut truth = Some(!end);
    for condition in conditions {
        match condition.truth(properties)? {
            Some(answer) if answer == end => return Ok(Some(end)),
            Some(_) => {}
            None => truth = None,
        }
    }
    Ok(truth)
}

impl Operand {
    /// `None` is NULL: also a property that the message does not have.
    pub(super) fn value<'a>(&'a self, properties: PropertiesRef<'a>) -> Option<Value<'a>> {
        match self {
            Self::Property(name) => {
                let value = properties.get_raw(name.as_bytes())?;
                Some(Value::Text(String::from_utf8_lossy(value)))
            }
            Self::Literal(Some(Value::Text(text))) => Some(Value::Text(Cow::Borrowed(text))),
            Self::Literal(value) => value.clone(),
        }
    }
}

impl Value<'_> {
    /// A number, or its negative; `None` for anything else.
    pub(super) fn with_sign(self, negative: bool) -> Option<Value<'static>> {
        // RocketMQ's integers wrap around, too.
        Some(match self {
            Self::Int(value) => Value::Int(if negative { value.wrapping_neg() } else { value }),
            Self::Long(value) => Value::Long(if negative { value.wrapping_neg() } else { value }),
            Self::Double(value) => Value::Double(if negative { -value } else { value }),
            Self::Text(_) | Self::Bool(_) => return None,
        })
    }

    /// How this value stands to the other one.
    pub(super) fn compare(&self, other: &Value<'_>) -> Result<Ordering, NotComparable> {
        Ok(match (self.as_kind_of(other)?, other.as_kind_of(self)?) {
            (Value::Bool(left), Value::Bool(right)) => left.cmp(&right),
            (left, right) => match (left.integer(), right.integer()) {
                (Some(left), Some(right)) => left.cmp(&right),
                _ => match (left.double(), right.double()) {
                    (Some(left), Some(right)) => left.total_cmp(&right),
                    // A truth value and a number: RocketMQ calls whatever stands left the lesser.
                    _ => Ordering::Less,
                },
            },
        })
    }

    /// A text read as what the other one is, or as a number if that is a text, too; anything else as it is.
    fn as_kind_of(&self, other: &Value<'_>) -> Result<Value<'static>, NotComparable> {
        Ok(match (self, other) {
            (Value::Text(text), Value::Int(_)) => {
                Value::Int(text.parse().map_err(|_| NotComparable)?)
            }
            (Value::Text(text), Value::Long(_)) => {
                Value::Long(text.parse().map_err(|_| NotComparable)?)
            }
            (Value::Text(text), Value::Double(_) | Value::Text(_)) => {
                Value::Double(java_double(text).ok_or(NotComparable)?)
            }
            (Value::Text(text), Value::Bool(_)) => Value::Bool(text.eq_ignore_ascii_case("true")),
            (&Value::Int(value), _) => Value::Int(value),
            (&Value::Long(value), _) => Value::Long(value),
            (&Value::Double(value), _) => Value::Double(value),
            (&Value::Bool(value), _) => Value::Bool(value),
        })
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(i64::from(*value)),
            Self::Long(value) => Some(*value),
            _ => None,
        }
    }

    fn double(&self) -> Option<f64> {
        match self {
            Self::Double(value) => Some(*value),
            _ => self.integer().map(|value| value as f64),
        }
    }
}

/// What Java's `Double.valueOf` makes of a text, but for hexadecimal numbers; `None` if it throws.
fn java_double(text: &str) -> Option<f64> {
    let text = text.trim_matches(|c| c <= ' ');
    let magnitude = text.strip_prefix(['+', '-']).unwrap_or(text);
    let value = match magnitude {
        // One NaN, above everything, whatever its sign.
        "NaN" => return Some(f64::NAN),
        "Infinity" => f64::INFINITY,
        number if number.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
            number.strip_suffix(['f', 'F', 'd', 'D']).unwrap_or(number).parse().ok()?
        }
        _ => return None,
    };
    Some(if text.starts_with('-') { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_read_as_java_reads_them() {
        for (text, value) in [
            ("3", 3.0),
            ("+3.", 3.0),
            ("-.5", -0.5),
            (" \t3e2\n", 300.0),
            ("1E+2", 100.0),
            ("1.5f", 1.5),
            ("1D", 1.0),
            ("1e400", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(java_double(text), Some(value), "{text:?}");
        }
        for text in ["NaN", "-NaN", "+NaN"] {
            let value = java_double(text).expect(text);
            assert!(value.is_nan() && value.is_sign_positive(), "{text:?}");
        }
        assert_eq!(java_double("-0").map(f64::to_bits), Some((-0.0f64).to_bits()));
        let none = ["", " ", ".", "+", "e5", "nan", "inf", "infinity", "Infinityf", "NaNd", "1ff"];
        for text in none.into_iter().chain(["1 2", "--1", "+-1", "1e", "0x10", "1_0", "\u{a0}1"]) {
            assert_eq!(java_double(text), None, "{text:?}");
        }
    }
}
