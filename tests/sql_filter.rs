//! SQL92 filters: what may be said, what it means, and that both are as Apache RocketMQ has them.

#[allow(unused_macros, reason = "one version is asked")]
#[path = "support/java.rs"]
mod java;

use duralog::message::PropertiesRef;
use duralog::{Error, InvalidFilter, SqlFilter};
use java::Java;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

type Message = Vec<(String, String)>;

const VERSION: &str = "5.3.3";
/// RocketMQ takes them; why they are not taken here, the documentation of the filter says.
const REFUSED_HERE: [&str; 57] = [
    // Something stands behind the end.
    "a > 1e",
    "a = 007",
    "a = 0L",
    "a = 1b",
    "a = 3 b",
    "a = 3 )",
    "a = 3)",
    "a = 3 -",
    "a = 3 ,",
    "a = ''x'",
    "a = 1.2.3",
    "a = 1..2",
    "a = 1.L",
    "a > 1e5L",
    "a = 3 nonsense AND FALSE",
    "a LIKE 'x'",
    "a LIKE 'x%'",
    "a + 1 = 4",
    "a-b = 3",
    "a- = 3",
    "a.5 = 3",
    // Two signs, or a comment.
    "a = --2",
    // A sign before what is no number.
    "a = -a",
    "-a = 3",
    "+a = 3",
    "-a IS NULL",
    "a > -'x'",
    "a = -TRUE",
    "a = -(2)",
    // TRUE and FALSE on the left.
    "TRUE = a",
    "FALSE <> a",
    // No limits.
    "a BETWEEN 5 AND -5",
    // A property as a condition.
    "a",
    "(a)",
    "NOT a",
    "a AND b",
    "a = 3 AND a",
    "a = 3 OR a",
    "NOT a = 3",
    "NOT (a) = 3",
    "NOT a IS NULL",
    "NOT a CONTAINS 'x'",
    // A condition as a value.
    "(a = 3) = TRUE",
    "(a = 3) = (b = 3)",
    "a = (b = 3)",
    "a = 3 = TRUE",
    "a = 3 = 4",
    "(a = 3) IS NULL",
    "a = 3 IS NULL",
    "a = b > 3",
    "a > 3 = TRUE",
    "a IS NULL IS NULL",
    "a IS NULL = TRUE",
    "a > 3 CONTAINS 'x'",
    "a = 3 AND NOT b",
    "NOT NOT a",
    "(NOT a) = 3",
];
const TAKEN_HERE: [&str; 2] = ["a > 0.0", "a > 0e0"];

fn bytes(message: &[(String, String)]) -> Vec<u8> {
    let entry = |(name, value): &(String, String)| format!("{name}\x01{value}\x02").into_bytes();
    message.iter().flat_map(entry).collect()
}

fn message(properties: &[(&str, &str)]) -> Message {
    properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn filter(expression: &str) -> SqlFilter {
    SqlFilter::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
}

/// What an expression says of messages: true, false, unknown or not comparable, as `TFU!`.
fn answers(expression: &str, messages: &[Message]) -> String {
    let is = filter(expression);
    let is_not = filter(&format!("NOT ({expression}\n)"));
    let can_tell = filter(&format!("({expression}\n) OR TRUE"));
    let answer = |message: &Message| {
        let bytes = bytes(message);
        let passes = |filter: &SqlFilter| filter.passes(PropertiesRef::new(&bytes));
        match (passes(&is), passes(&is_not), passes(&can_tell)) {
            (true, false, true) => 'T',
            (false, true, true) => 'F',
            (false, false, true) => 'U',
            (false, false, false) => '!',
            odd => panic!("{expression}: {odd:?}"),
        }
    };
    messages.iter().map(answer).collect()
}

fn answer(expression: &str, properties: &[(&str, &str)]) -> String {
    answers(expression, &[message(properties)])
}

/// What is wrong, and where.
fn wrong(expression: &str) -> (usize, String) {
    match SqlFilter::parse(expression) {
        Err(Error::InvalidFilter(InvalidFilter::Unexpected { at, found, .. })) => (at, found),
        other => panic!("{expression}: {other:?}"),
    }
}

/// Messages and what RocketMQ says of them.
struct Fixture {
    messages: Vec<Message>,
    /// None where RocketMQ does not take the expression.
    answers: Vec<(String, Option<String>)>,
}

fn messages_of(line: &str) -> Vec<Message> {
    let messages: Vec<Value> = serde_json::from_str(line).expect("a list");
    let properties = messages.iter().map(|message| message.as_object().expect("an object"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    properties
        .map(|all| all.iter().map(|(name, value)| (name.clone(), text(value))).collect())
        .collect()
}

fn answers_of<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, Option<String>)> {
    let answer = |line| {
        let line: Value = serde_json::from_str(line).expect("an object");
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        (text("expression").expect("an expression"), text("answers"))
    };
    lines.map(answer).collect()
}

fn fixture() -> Fixture {
    let name = format!("tests/fixtures/rocketmq/sql92-{VERSION}.jsonl");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = fs::read_to_string(path).expect("readable");
    let mut lines = text.lines();
    let messages = messages_of(lines.next().expect("the messages"));
    Fixture { messages, answers: answers_of(lines) }
}

#[test]
fn rocketmq_gives_the_same_answers() {
    let Fixture { messages, answers: theirs } = fixture();
    let (mut taken, mut refused) = (0, BTreeSet::new());
    for (expression, theirs) in &theirs {
        match (SqlFilter::parse(expression), theirs) {
            (Ok(_), Some(theirs)) => {
                assert_eq!(answers(expression, &messages), *theirs, "{expression}");
                taken += 1;
            }
            (Ok(_), None) => assert!(TAKEN_HERE.contains(&&**expression), "{expression}"),
            (Err(error), Some(_)) => {
                assert!(REFUSED_HERE.contains(&&**expression), "{expression}: {error}");
                refused.insert(&**expression);
            }
            (Err(_), None) => {}
        }
    }
    assert!(taken > 200, "only {taken}");
    assert_eq!(refused, BTreeSet::from(REFUSED_HERE));
}

#[test]
fn every_kind_of_condition_can_be_said() {
    let order = [("n", "3"), ("f", "2.5"), ("t", "it's"), ("yes", "True"), ("TAGS", "paid")];
    for expression in [
        "n = 3",
        "n<>4",
        "n > 2 AND n >= 3 AND n < 4 AND n <= 3",
        "3 = n AND 2 < n",
        "f = 2.5 AND f > 2. AND f < .25E1 or f = 2.5",
        "n > -1 AND n > - +1 AND n = - -3",
        "n BETWEEN 3 AND 5 AND n NOT BETWEEN 4 AND 5",
        "n = 3L AND n < 3000000000",
        "t = 'it''s' AND t <> 'its'",
        "yes = TRUE AND n = FALSE",
        "t IN ('x', 'it''s') AND t NOT IN ('x','y')",
        "n IN ('3')",
        "t CONTAINS 't''' AND t STARTSWITH 'it' AND t ENDSWITH 's'",
        "t NOT CONTAINS 'x' AND t NOT STARTSWITH 't' AND t NOT ENDSWITH 't'",
        "nobody IS NULL AND n IS NOT NULL",
        "TAGS = 'paid'",
        "tags IS NULL",
        "n = 4 OR n = 3 AND f > 2.0",
        "NOT (n = 4) AND NOT NOT (n = 3)",
        "((n) = (3))",
        "n = 3 -- and nothing else",
        "/* the order */ n /**/ = /* * / */ 3 -- of\n AND f > 2.0",
        "nOt (n = 4) aNd t iN ('it''s')",
        "\tn\r\n=\x0c3 ",
        "TRUE",
        "f > n OR n > f",
        "n = n",
    ] {
        assert_eq!(answer(expression, &order), "T", "{expression}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (expression, at, found) in [
        ("", 0, ""),
        ("  ", 2, ""),
        ("a", 0, "a"),
        ("NOT a = 3", 4, "a"),
        ("(b) AND a = 3", 0, "(b)"),
        ("a = 3 b", 6, "b"),
        ("a == 3", 3, "="),
        ("a ! 3", 2, "!"),
        ("a = \"x\"", 4, "\""),
        ("a = 'x", 6, ""),
        ("a = 'x''", 8, ""),
        ("a = 3 /* x", 10, ""),
        ("ü = 3", 0, "ü"),
        ("a = 'ü' ß", 9, "ß"),
        ("(a = 3", 6, ""),
        ("a = 3)", 5, ")"),
        ("a > 'x'", 4, "'x'"),
        ("a > NULL", 4, "NULL"),
        ("TRUE < a", 0, "TRUE"),
        ("a <> null", 5, "null"),
        ("true = a", 0, "true"),
        ("a = (b = 3)", 7, "="),
        ("(a = 3) = TRUE", 8, "="),
        ("a BETWEEN 3 AND 2.5", 16, "2.5"),
        ("a BETWEEN 3, 4", 11, ","),
        ("a IN (3)", 6, "3"),
        ("'a' IN ('b')", 0, "'a'"),
        ("a CONTAINS b", 11, "b"),
        ("a NOT = 3", 6, "="),
        ("a IS 3", 5, "3"),
        ("a = -b", 5, "b"),
        ("a = +'x'", 5, "'x'"),
        ("a = -NULL", 5, "NULL"),
        ("a = 9223372036854775808", 4, "9223372036854775808"),
        ("a = 1e999", 4, "1e999"),
        ("a = 1e-999", 4, "1e-999"),
        ("a = 012", 4, "012"),
        ("a = .", 4, "."),
        ("and = 3", 0, "and"),
    ] {
        assert_eq!(wrong(expression), (at, found.to_owned()), "{expression}");
        let said = SqlFilter::parse(expression).unwrap_err().to_string();
        assert!(said.starts_with(&format!("invalid filter: at byte {at}: ")), "{said}");
    }
    let long = "x".repeat(100);
    assert_eq!(wrong(&format!("a = 3 {long}")), (6, "x".repeat(40)), "it is shortened");
}

#[test]
fn unknown_is_neither_true_nor_false() {
    let word = |letter| match letter {
        'T' => "TRUE",
        'F' => "FALSE",
        // A comparison with what is not there.
        'U' => "nobody > 3",
        _ => "x > 3",
    };
    // Each line: left, right, AND, OR.
    for row in [
        "TTTT", "TFFT", "TUUT", "T!!T", "FTFT", "FFFF", "FUFU", "F!F!", "UTUT", "UFFU", "UUUU",
        "U!!!", "!T!!", "!F!!", "!U!!", "!!!!",
    ] {
        let letters: Vec<char> = row.chars().collect();
        let (left, right) = (word(letters[0]), word(letters[1]));
        let (and, or) = (format!("{left} AND {right}"), format!("{left} OR {right}"));
        assert_eq!(answer(&and, &[("x", "none")]), letters[2].to_string(), "{and}");
        assert_eq!(answer(&or, &[("x", "none")]), letters[3].to_string(), "{or}");
    }
    for (operand, not) in [('T', "F"), ('F', "T"), ('U', "U"), ('!', "!")] {
        let expression = format!("NOT ({})", word(operand));
        assert_eq!(answer(&expression, &[("x", "none")]), not, "{expression}");
    }
    assert_eq!(answer("NULL", &[]), "U");
    assert_eq!(answer("NULL AND FALSE", &[]), "F");
    assert_eq!(answer("NULL AND NULL AND FALSE", &[]), "F");
    assert_eq!(answer("NULL OR FALSE OR TRUE", &[]), "T");
}

#[test]
fn a_property_that_is_no_number_keeps_the_message_from_passing() {
    for (n, int, long, float) in [
        ("4", "T", "F", "T"),
        ("2", "F", "F", "F"),
        ("4.5", "!", "!", "T"),
        ("3000000001", "!", "T", "T"),
        ("four", "!", "!", "!"),
        (" 4 ", "!", "!", "T"),
        ("+4", "T", "F", "T"),
    ] {
        let answers = ["n > 3", "n > 3000000000", "n > 3.0"].map(|said| answer(said, &[("n", n)]));
        assert_eq!(answers, [int, long, float], "{n}");
    }
    let four = [("n", "four"), ("m", "4")];
    for expression in ["n = 3", "n <> 3", "n = 3 OR m = 4", "NOT (n = 3)", "m = 4 AND n = 3"] {
        assert_eq!(answer(expression, &four), "!", "{expression}");
    }
    assert_eq!(answer("m = 4 OR n = 3", &four), "T");
    assert_eq!(answer("m = 5 AND n = 3", &four), "F");
}

#[test]
fn properties_are_read_as_a_consumer_of_rocketmq_reads_them() {
    let passes = |expression: &str, properties: &[u8]| {
        filter(expression).passes(PropertiesRef::new(properties))
    };
    assert!(passes("a = 2", b"a\x011\x02a\x012\x02"), "of duplicates the last counts");
    assert!(passes("a IS NULL", b"a\x01\x02"), "one without a value is none");
    assert!(passes("a = 'x\u{FFFD}y'", b"a\x01x\xFFy\x02"), "what is no text is replaced");
    assert!(passes("a IS NOT NULL", b"a\x01\xFF\x02"));
    assert!(passes("a = 1", b"a\x011"), "the last need not be ended");
    assert!(!passes("a = 1", b""));
}

#[test]
fn filters_are_equal_if_their_texts_are() {
    assert_eq!(filter("a = 3"), filter("a = 3"));
    assert_ne!(filter("a = 3"), filter("a=3"));
    assert_eq!(filter("a = 3").as_str(), "a = 3");
    assert_eq!(filter("a = 3").to_string(), "a = 3");
    assert_eq!(format!("{:?}", filter("a = 3")), "SqlFilter(\"a = 3\")");
}

#[test]
fn an_expression_is_bounded() {
    let long = |len: usize| format!("a = '{}'", "x".repeat(len - 6));
    assert!(SqlFilter::parse(&long(16 * 1024)).is_ok());
    let too_long = SqlFilter::parse(&long(16 * 1024 + 1)).unwrap_err();
    let limits = InvalidFilter::TooLong { len: 16 * 1024 + 1, max: 16 * 1024 };
    assert!(matches!(&too_long, Error::InvalidFilter(why) if *why == limits), "{too_long}");

    let deep = |depth: usize| format!("{}a = 3{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(answer(&deep(63), &[("a", "3")]), "T");
    assert!(SqlFilter::parse(&deep(64)).is_ok());
    let wide = vec![deep(40); 100].join(" AND ");
    assert_eq!(answer(&wide, &[("a", "3")]), "T", "only those count that are in each other");
    let too_deep = SqlFilter::parse(&deep(65)).unwrap_err();
    let limits = InvalidFilter::TooDeep { at: 64, max: 64 };
    assert!(matches!(&too_deep, Error::InvalidFilter(why) if *why == limits), "{too_deep}");
    assert_eq!(
        too_deep.to_string(),
        "invalid filter: at byte 64: more than 64 parentheses in each other"
    );
    assert!(SqlFilter::parse(&"(".repeat(16 * 1024)).is_err());
}

#[test]
fn no_expression_takes_much_of_the_stack() {
    let on_a_small_stack = || {
        let mut deep = "a = 3".to_owned();
        for level in 0..64 {
            deep = match level % 3 {
                0 => format!("NOT NOT ({deep})"),
                1 => format!("b = 4 OR ({deep})"),
                _ => format!("a = 3 AND ({deep})"),
            };
        }
        assert!(answer_in_place(&deep, &[("a", "3"), ("b", "5")]));
        let wide = vec!["b = 4"; 1600].join(" OR ") + " OR a = 3";
        assert!(answer_in_place(&wide, &[("a", "3"), ("b", "5")]));
        let wide = vec!["a = 3"; 1600].join(" AND ");
        assert!(answer_in_place(&wide, &[("a", "3")]));
        assert!(answer_in_place(&format!("{}TRUE", "NOT ".repeat(4000)), &[]));
        assert!(answer_in_place(&format!("3 = {}3", "- ".repeat(8000)), &[]));
        for open in ["(", "NOT (", "a = (", "a IN (", "-(", "a BETWEEN (", "a = 3 AND ("] {
            let many = open.repeat(16 * 1024 / open.len());
            assert!(SqlFilter::parse(&many).is_err());
        }
    };
    let small = std::thread::Builder::new().stack_size(512 << 10).spawn(on_a_small_stack);
    small.expect("a thread").join().expect("it does not overflow");
}

fn answer_in_place(expression: &str, properties: &[(&str, &str)]) -> bool {
    let bytes = bytes(&message(properties));
    filter(expression).passes(PropertiesRef::new(&bytes))
}

/// An expression as simple as it can be said.
#[derive(Debug, Clone)]
enum Said {
    Word(&'static str),
    Not(Box<Said>),
    And(Box<Said>, Box<Said>),
    Or(Box<Said>, Box<Said>),
    Compare(Operand, &'static str, Operand),
    Between(Operand, bool, Operand, Operand),
    In(&'static str, bool, Vec<&'static str>),
    Has(Operand, bool, &'static str, &'static str),
    IsNull(Operand, bool),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operand {
    Property(&'static str),
    Number(&'static str),
    Text(&'static str),
    Truth(bool),
}

/// How an expression is written; nothing that matters.
struct Style {
    state: u64,
}

impl Style {
    fn pick(&mut self, count: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) % count
    }

    fn blank(&mut self) -> &'static str {
        ["", " ", "  ", "\n", "\t", "/* x */", " -- '(\n"][self.pick(7) as usize]
    }

    fn word(&mut self, word: &str) -> String {
        let letter = |c: char| {
            if self.pick(2) == 0 { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() }
        };
        word.chars().map(letter).collect()
    }

    fn write(&mut self, said: &Said) -> String {
        match said {
            Said::Word(word) => self.word(word),
            Said::Not(inner) => {
                let (not, inner) = (self.word("NOT"), self.write(inner));
                format!("{not}{}({inner}{})", self.blank(), self.blank())
            }
            Said::And(left, right) => {
                let loose = |side: &Said| matches!(side, Said::Or(..));
                let (left, right) = (
                    self.side(left, loose(left)),
                    // What is joined on the right is joined first only in parentheses.
                    self.side(right, loose(right) || matches!(**right, Said::And(..))),
                );
                format!("{left} {} {right}", self.word("AND"))
            }
            Said::Or(left, right) => {
                let left = self.side(left, false);
                let right = self.side(right, matches!(**right, Said::Or(..)));
                format!("{left} {} {right}", self.word("OR"))
            }
            Said::Compare(left, symbol, right) => {
                let (left, right) = (self.operand(left), self.operand(right));
                format!("{left}{}{symbol}{}{right}", self.blank(), self.blank())
            }
            Said::Between(value, not, low, high) => {
                let (value, low, high) =
                    (self.operand(value), self.operand(low), self.operand(high));
                let (not, between) = (self.not(*not), self.word("BETWEEN"));
                format!("{value} {not}{between} {low} {} {high}", self.word("AND"))
            }
            Said::In(name, not, texts) => {
                let mut list = String::new();
                for text in texts {
                    let comma = if list.is_empty() { "" } else { "," };
                    write!(list, "{comma}{}{}", self.blank(), quoted(text)).unwrap();
                }
                let (not, word) = (self.not(*not), self.word("IN"));
                format!("{name} {not}{word}{}({list}{})", self.blank(), self.blank())
            }
            Said::Has(value, not, word, text) => {
                let (value, not, word) = (self.operand(value), self.not(*not), self.word(word));
                format!("{value} {not}{word}{}{}", self.blank(), quoted(text))
            }
            Said::IsNull(value, not) => {
                let (value, is, not) = (self.operand(value), self.word("IS"), self.not(*not));
                format!("{value} {is} {not}{}", self.word("NULL"))
            }
        }
    }

    fn side(&mut self, said: &Said, parentheses: bool) -> String {
        let text = self.write(said);
        if parentheses || self.pick(4) == 0 { format!("({text}{})", self.blank()) } else { text }
    }

    fn not(&mut self, not: bool) -> String {
        if not { self.word("NOT") + " " } else { String::new() }
    }

    fn operand(&mut self, operand: &Operand) -> String {
        let text = match operand {
            Operand::Property(name) => (*name).to_owned(),
            Operand::Number(digits) => (*digits).to_owned(),
            Operand::Text(text) => quoted(text),
            Operand::Truth(truth) => self.word(if *truth { "TRUE" } else { "FALSE" }),
        };
        if self.pick(8) == 0 { format!("({}{text})", self.blank()) } else { text }
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What a simple reading of the rules says.
fn model(said: &Said, message: &Message) -> Result<Option<bool>, ()> {
    let text = |operand: &Operand| match operand {
        Operand::Property(name) => {
            message.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        }
        Operand::Number(digits) => Some((*digits).to_owned()),
        Operand::Text(text) => Some((*text).to_owned()),
        Operand::Truth(truth) => Some(truth.to_string()),
    };
    Ok(match said {
        Said::Word(word) => match *word {
            "TRUE" => Some(true),
            "FALSE" => Some(false),
            _ => None,
        },
        Said::Not(inner) => model(inner, message)?.map(|truth| !truth),
        Said::And(left, right) => match model(left, message)? {
            Some(false) => Some(false),
            Some(true) => model(right, message)?,
            None => model(right, message)?.filter(|truth| !truth),
        },
        Said::Or(left, right) => match model(left, message)? {
            Some(true) => Some(true),
            Some(false) => model(right, message)?,
            None => model(right, message)?.filter(|truth| *truth),
        },
        Said::Compare(left, "<>", right) => {
            let equal = Said::Compare(*left, "=", *right);
            model(&equal, message)?.map(|truth| !truth)
        }
        Said::Compare(left, symbol, right) => {
            let (left_text, right_text) = match (text(left), text(right)) {
                (None, None) if *symbol == "=" => return Ok(Some(true)),
                (Some(_), None) if *symbol == "=" => return Ok(Some(false)),
                (None, _) | (_, None) => return Ok(None),
                (Some(left), Some(right)) => (left, right),
            };
            let kind = |operand: &Operand| match operand {
                Operand::Property(_) | Operand::Text(_) => 't',
                Operand::Truth(_) => 'b',
                Operand::Number(digits) if digits.contains(['.', 'e']) => 'd',
                Operand::Number(digits) => {
                    // Its sign is not part of it.
                    let digits = digits.trim_start_matches('-').trim_end_matches('L');
                    if digits.parse::<i32>().is_ok() { 'i' } else { 'l' }
                }
            };
            let strip = |text: String, kind| match kind {
                't' => text,
                _ => text.trim_end_matches('L').to_owned(),
            };
            let (left_kind, right_kind) = (kind(left), kind(right));
            let (left, right) = (strip(left_text, left_kind), strip(right_text, right_kind));
            let order = match (left_kind, right_kind) {
                ('t', 't') if *symbol == "=" => return Ok(Some(left == right)),
                ('b', 'b') => left.cmp(&right),
                ('t', 'b') => {
                    let is_true = left.to_lowercase() == "true";
                    is_true.to_string().cmp(&right)
                }
                // A number and a truth value are never equal.
                (_, 'b') => return Ok(Some(false)),
                ('t', 'i') | ('i', 't') => {
                    let number = |text: &str| text.parse::<i32>().map_err(|_| ());
                    number(&left)?.cmp(&number(&right)?)
                }
                ('t', 'l') | ('l', 't') | ('i' | 'l', 'i' | 'l') => {
                    let number = |text: &str| text.parse::<i64>().map_err(|_| ());
                    number(&left)?.cmp(&number(&right)?)
                }
                _ => {
                    let number = |text: &str| text.trim().parse::<f64>().map_err(|_| ());
                    number(&left)?.total_cmp(&number(&right)?)
                }
            };
            Some(match *symbol {
                "=" => order.is_eq(),
                "<" => order.is_lt(),
                "<=" => order.is_le(),
                ">" => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        Said::Between(value, not, low, high) => {
            let above = Box::new(Said::Compare(*value, ">=", *low));
            let below = Box::new(Said::Compare(*value, "<=", *high));
            model(&Said::And(above, below), message)?.map(|truth| truth != *not)
        }
        Said::In(name, not, texts) => {
            text(&Operand::Property(name)).map(|value| texts.contains(&&*value) != *not)
        }
        Said::Has(value, not, word, part) => match (value, text(value)) {
            (Operand::Property(_) | Operand::Text(_), Some(value)) if !part.is_empty() => {
                let has = match *word {
                    "CONTAINS" => value.contains(part),
                    "STARTSWITH" => value.starts_with(part),
                    _ => value.ends_with(part),
                };
                Some(has != *not)
            }
            _ => Some(false),
        },
        Said::IsNull(value, not) => Some(text(value).is_none() != *not),
    })
}

const NAMES: [&str; 4] = ["a", "b", "_c$1", "nobody"];
const TEXTS: [&str; 9] = ["", "x", "xy", "it's", "3", "3.5", "true", "ü🚀", "-- /*"];
const NUMBERS: [&str; 14] = [
    "0",
    "3",
    "-2",
    "3L",
    "4",
    "3.5",
    "-.5",
    "3.",
    "1e2",
    "3000000000",
    "-2147483648",
    "2147483647",
    "9223372036854775807",
    "-3000000000L",
];
const VALUES: [&str; 18] = [
    "3",
    "3.0",
    "3.5",
    "-2",
    "0",
    "100",
    " 3 ",
    "x",
    "xyz",
    "it's",
    "true",
    "FALSE",
    "NaN",
    "3000000000",
    "2147483648",
    "9223372036854775808",
    "ü🚀",
    "-",
];

fn property_or_number() -> impl Strategy<Value = Operand> {
    prop_oneof![
        3 => prop::sample::select(&NAMES[..]).prop_map(Operand::Property),
        2 => prop::sample::select(&NUMBERS[..]).prop_map(Operand::Number),
    ]
}

fn operand() -> impl Strategy<Value = Operand> {
    prop_oneof![
        4 => property_or_number(),
        1 => prop::sample::select(&TEXTS[..]).prop_map(Operand::Text),
        1 => any::<bool>().prop_map(Operand::Truth),
    ]
}

/// The limits the right way round, where they are numbers.
fn limits(low: Operand, high: Operand) -> (Operand, Operand) {
    let is_less = Said::Compare(high, "<", low);
    let is_less = model(&is_less, &Vec::new()) == Ok(Some(true));
    if is_less { (high, low) } else { (low, high) }
}

fn expression() -> impl Strategy<Value = Said> {
    let ordered = prop::sample::select(&["<", "<=", ">", ">="][..]);
    let equal = prop::sample::select(&["=", "<>"][..]);
    let has = prop::sample::select(&["CONTAINS", "STARTSWITH", "ENDSWITH"][..]);
    let texts = || prop::sample::select(&TEXTS[..]);
    let leaf = prop_oneof![
        1 => prop::sample::select(&["TRUE", "FALSE", "NULL"][..]).prop_map(Said::Word),
        6 => (property_or_number(), ordered, property_or_number())
            .prop_map(|(left, symbol, right)| Said::Compare(left, symbol, right)),
        6 => (operand(), equal, operand()).prop_map(|(left, symbol, right)| {
            // A truth value stands on the right.
            match left {
                Operand::Truth(_) => Said::Compare(right, symbol, left),
                _ => Said::Compare(left, symbol, right),
            }
        }),
        2 => (property_or_number(), any::<bool>(), property_or_number(), property_or_number())
            .prop_map(|(value, not, low, high)| {
                let (low, high) = limits(low, high);
                Said::Between(value, not, low, high)
            }),
        2 => (prop::sample::select(&NAMES[..]), any::<bool>(), prop::collection::vec(texts(), 1..7))
            .prop_map(|(name, not, texts)| Said::In(name, not, texts)),
        2 => (operand(), any::<bool>(), has, texts())
            .prop_map(|(value, not, word, text)| Said::Has(value, not, word, text)),
        1 => (operand(), any::<bool>()).prop_map(|(value, not)| Said::IsNull(value, not)),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            inner.prop_map(|inner| Said::Not(Box::new(inner))),
            two.clone().prop_map(|(left, right)| Said::And(Box::new(left), Box::new(right))),
            two.prop_map(|(left, right)| Said::Or(Box::new(left), Box::new(right))),
        ]
    })
}

fn a_message() -> impl Strategy<Value = Message> {
    let value = || prop::option::of(prop::sample::select(&VALUES[..]));
    [value(), value(), value()].prop_map(|values| {
        let named = NAMES.into_iter().zip(values);
        named.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
    })
}

fn letter(truth: Result<Option<bool>, ()>) -> char {
    match truth {
        Ok(Some(true)) => 'T',
        Ok(Some(false)) => 'F',
        Ok(None) => 'U',
        Err(()) => '!',
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_expression_means_what_it_says(
        said in expression(),
        messages in prop::collection::vec(a_message(), 1..4),
        state in any::<u64>(),
    ) {
        let text = Style { state }.write(&said);
        let expected: String =
            messages.iter().map(|message| letter(model(&said, message))).collect();
        prop_assert_eq!(answers(&text, &messages), expected, "{}", text);
    }

    #[test]
    fn no_text_is_too_odd(text in any::<String>(), properties in any::<Vec<u8>>()) {
        if let Ok(filter) = SqlFilter::parse(&text) {
            filter.passes(PropertiesRef::new(&properties));
        }
    }

    #[test]
    fn no_row_of_words_is_too_odd(
        words in prop::collection::vec(prop::sample::select(&[
            "(", ")", "a", "b", "3", "-", "+", "3.5", "1e", "1e9", "0", ".", "'x'", "'", "''", "=",
            "<", ">", "<>", "<=", ",", "NOT", "AND", "OR", "IN", "IS", "NULL", "TRUE", "BETWEEN",
            "CONTAINS", "ENDSWITH", "--", "/*", "*/", "\n", "ü", "9223372036854775808",
        ][..]), 0..40),
        glue in prop::sample::select(&["", " "][..]),
        messages in prop::collection::vec(a_message(), 1..4),
    ) {
        let text = words.join(glue);
        match SqlFilter::parse(&text) {
            Ok(filter) => {
                for message in &messages {
                    filter.passes(PropertiesRef::new(&bytes(message)));
                }
            }
            Err(Error::InvalidFilter(InvalidFilter::Unexpected { at, found, .. })) => {
                prop_assert!(text.get(at..).is_some_and(|rest| rest.starts_with(&found)));
                prop_assert_eq!(found.is_empty(), at == text.len());
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// What RocketMQ says of messages and expressions.
fn ask_rocketmq(messages: &[Message], expressions: &[String]) -> Vec<(String, Option<String>)> {
    let object = |message: &Message| {
        let entries = message.iter().map(|(name, value)| (name.clone(), json!(value)));
        Value::Object(entries.collect())
    };
    let mut input = Value::Array(messages.iter().map(object).collect()).to_string();
    for expression in expressions {
        input += &format!("\n{}", json!({ "expression": expression }));
    }
    let mut java = Java(VERSION).class("Filter");
    let mut java = java.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("java runs");
    let mut stdin = java.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = java.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads");
    assert!(output.status.success(), "{}", output.status);
    let lines = String::from_utf8(output.stdout).expect("text");
    answers_of(lines.lines())
}

#[test]
#[ignore = "needs a JVM; .ci/interop runs it"]
fn rocketmq_itself_gives_the_same_answers() {
    let Fixture { messages, answers: kept } = fixture();
    let expressions: Vec<String> = kept.iter().map(|(expression, _)| expression.clone()).collect();
    assert!(ask_rocketmq(&messages, &expressions) == kept, "the fixture says something else");

    let mut runner = TestRunner::deterministic();
    let mut make = |count| -> Vec<String> {
        let strategy = (expression(), any::<u64>());
        let tree = |_| strategy.new_tree(&mut runner).expect("one").current();
        (0..count).map(tree).map(|(said, state)| Style { state }.write(&said)).collect()
    };
    let expressions = make(20_000);
    let mut runner = TestRunner::deterministic();
    let message = |_| a_message().new_tree(&mut runner).expect("one").current();
    let messages: Vec<Message> = (0..60).map(message).collect();
    let theirs = ask_rocketmq(&messages, &expressions);
    assert_eq!(theirs.len(), expressions.len());
    let mut seen = [0u64; 4];
    for (expression, theirs) in &theirs {
        let theirs = theirs.as_deref().unwrap_or_else(|| panic!("{expression}: RocketMQ refuses"));
        assert_eq!(answers(expression, &messages), theirs, "{expression}");
        for (count, letter) in seen.iter_mut().zip("TFU!".chars()) {
            *count += theirs.matches(letter).count() as u64;
        }
    }
    assert!(seen.iter().all(|count| *count > 10_000), "{seen:?}");
}
