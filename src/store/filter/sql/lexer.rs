//! From text to the words of RocketMQ's `SelectorParser.jj`.

use crate::error::InvalidFilter;
use std::ops::Range;

/// What is wrong stands elsewhere: a result is on the stack as often as parentheses are in each other.
pub(super) type Result<T> = std::result::Result<T, Box<InvalidFilter>>;

/// Characters of what is wrong that an error repeats.
const FOUND_MAX: usize = 40;

const WORDS: [&str; 12] = [
    "NOT",
    "AND",
    "OR",
    "BETWEEN",
    "IN",
    "TRUE",
    "FALSE",
    "NULL",
    "IS",
    "CONTAINS",
    "STARTSWITH",
    "ENDSWITH",
];
/// None comes before one that begins with it.
const SYMBOLS: [&str; 11] = ["<>", ">=", "<=", ">", "<", "=", "(", ")", ",", "+", "-"];

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token<'a> {
    /// A reserved word, in capitals, or a symbol.
    Fixed(&'static str),
    /// Of a property.
    Name(&'a str),
    /// What stands between the quotes, those within it still doubled.
    Text(&'a str),
    /// Digits, and perhaps an `L`.
    Integer(&'a str),
    Float(&'a str),
    End,
}

pub(super) struct Lexer<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, rest: text }
    }

    /// Says what is wrong with a part of the text.
    pub(super) fn unexpected(
        &self,
        span: Range<usize>,
        expected: &'static str,
    ) -> Box<InvalidFilter> {
        let found = self.text.get(span.clone()).unwrap_or_default();
        let found = found.chars().take(FOUND_MAX).collect();
        Box::new(InvalidFilter::Unexpected { at: span.start, found, expected })
    }

    fn at(&self) -> usize {
        self.text.len() - self.rest.len()
    }

    /// Where the text ends.
    fn end(&self) -> Range<usize> {
        self.text.len()..self.text.len()
    }

    /// The next word and where it stands; again and again the end, once that is reached.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, Range<usize>)> {
        self.skip_blanks()?;
        let start = self.at();
        let token = match self.rest.bytes().next() {
            None => Token::End,
            Some(b'\'') => self.quoted()?,
            Some(b'0'..=b'9' | b'.') => self.number()?,
            Some(b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$') => {
                let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
                let name = self.take(self.rest.find(|c| !part(c)).unwrap_or(self.rest.len()));
                let word = WORDS.into_iter().find(|word| word.eq_ignore_ascii_case(name));
                word.map_or(Token::Name(name), Token::Fixed)
            }
            Some(_) => {
                let symbol = SYMBOLS.into_iter().find(|symbol| self.rest.starts_with(symbol));
                let Some(symbol) = symbol else { return Err(self.unknown()) };
                self.take(symbol.len());
                Token::Fixed(symbol)
            }
        };
        Ok((token, start..self.at()))
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    fn unknown(&self) -> Box<InvalidFilter> {
        let len = self.rest.chars().next().map_or(0, char::len_utf8);
        let expected = "a property, a number, a text in single quotes or an operator";
        self.unexpected(self.at()..self.at() + len, expected)
    }

    /// Over white space and comments.
    fn skip_blanks(&mut self) -> Result<()> {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0C']);
            if self.rest.starts_with("--") {
                self.take(self.rest.find(['\n', '\r']).unwrap_or(self.rest.len()));
            } else if let Some(comment) = self.rest.strip_prefix("/*") {
                let Some((_, rest)) = comment.split_once("*/") else {
                    return Err(self.unexpected(self.end(), "the end of the comment, `*/`,"));
                };
                self.rest = rest;
            } else {
                return Ok(());
            }
        }
    }

    /// A text; a quote in it is doubled.
    fn quoted(&mut self) -> Result<Token<'a>> {
        self.take(1);
        let mut rest = self.rest;
        while let Some((_, behind)) = rest.split_once('\'') {
            match behind.strip_prefix('\'') {
                Some(more) => rest = more,
                None => {
                    let text = self.take(self.rest.len() - behind.len() - 1);
                    self.take(1);
                    return Ok(Token::Text(text));
                }
            }
        }
        Err(self.unexpected(self.end(), "the quote that ends the text"))
    }

    fn number(&mut self) -> Result<Token<'a>> {
        let digits = |from: usize| {
            let bytes = self.rest.bytes().skip(from);
            bytes.take_while(u8::is_ascii_digit).count()
        };
        let byte = |at: usize| self.rest.as_bytes().get(at).copied();
        let whole = digits(0);
        let (mut len, mut is_float) = (whole, false);
        if byte(whole) == Some(b'.') {
            let fraction = digits(whole + 1);
            if whole + fraction == 0 {
                return Err(self.unknown());
            }
            (len, is_float) = (whole + 1 + fraction, true);
        }
        if let Some(b'e' | b'E') = byte(len) {
            let sign = usize::from(matches!(byte(len + 1), Some(b'+' | b'-')));
            let exponent = digits(len + 1 + sign);
            if exponent > 0 {
                (len, is_float) = (len + 1 + sign + exponent, true);
            }
        }
        if is_float {
            return Ok(Token::Float(self.take(len)));
        }
        if byte(0) != Some(b'0') && matches!(byte(len), Some(b'l' | b'L')) {
            len += 1;
        }
        Ok(Token::Integer(self.take(len)))
    }
}
