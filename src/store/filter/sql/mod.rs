//! RocketMQ's SQL92 filter: an expression over the properties of a message.

mod condition;
mod lexer;
mod parser;

use crate::error::{Error, InvalidFilter, Result};
use crate::message::PropertiesRef;
use condition::Condition;
use parser::Parser;
use std::fmt;
use std::sync::Arc;

/// How long an expression may be, in bytes.
const LEN_MAX: usize = 16 * 1024;

/// Which messages a consumer wants, by their properties: RocketMQ's `SQL92` expressions. Feature `sql92`.
///
/// # What may be said
/// | | |
/// |---|---|
/// | a property | its name: letters, digits, `_` and `$`, no digit first; `TAGS` and `KEYS` are properties, too |
/// | literals | `3`, `-3`, `3.14`, `1e9`, `'text'`, `'it''s'`, `TRUE`, `FALSE`, `NULL` |
/// | compare numbers | `a > 3`, `>=`, `<`, `<=`, `a BETWEEN 3 AND 5`, `a NOT BETWEEN 3 AND 5` |
/// | compare | `a = 3`, `a <> 3`, `a = 'text'`, `a = TRUE`, `a = b` |
/// | look into texts | `a IN ('x', 'y')`, `a NOT IN ('x')`, `a CONTAINS 'x'`, `STARTSWITH`, `ENDSWITH`, each also with `NOT` before it |
/// | ask whether it is there | `a IS NULL`, `a IS NOT NULL` |
/// | combine | `NOT (a = 3)`, `AND`, `OR`, parentheses; AND binds closer than OR |
///
/// Case matters in names and texts, and not in words such as `AND`. `-- to the end of the line` and `/* this */`
/// are comments. An expression has at most 16 KiB, and at most 64 parentheses in each other.
///
/// # What it means
/// What it means to RocketMQ 5.3:
///
/// * The value of a property is a text. What it is compared with says how it is read: a literal without a point
///   as an integer, of 32 bits if the literal without its sign is one, else of 64; a literal with a point or an
///   exponent, or another property by `<`, as a 64-bit float. `TRUE` and `FALSE`: it is true if it says so in any case, or
///   else false. With a text, and with another property by `=`, it is compared as a text.
/// * **A property that is read as a number and is none keeps the message from passing**, whatever else the
///   expression says of it: `n = 3 OR m = 4` and `n <> 3` let no message pass with an `n` of `three`. Nor does
///   `n > 3` with an `n` of `3.5`, which is no integer, or of `3000000000`, which has more than 32 bits: write
///   `n > 3.0`. Only what is looked at counts: AND and OR look from left to right until the answer is clear, so
///   `m = 4 OR n = 3` lets that message pass if its `m` is `4`.
/// * With a property that is not there a comparison is neither true nor false, and so are `IN` and `NOT IN`. NOT
///   leaves that as it is, AND makes it false if the other side is false, OR makes it true if the other side is
///   true. A message passes if the whole is true. But a comparison by `=` with one that is there, on the left of
///   it, is false, and by `=` with another one that is not there, true; and `CONTAINS`, `STARTSWITH` and
///   `ENDSWITH` are false, with or without a NOT before them, as they are for an empty text.
///
/// RocketMQ takes more than is taken here, though no message can ever pass that, or others than it seems: text
/// behind the end of the expression; a property as a condition of its own, `a` or `NOT a`, so that `NOT a = 3`
/// is `(NOT a) = 3` there; a condition as a value, `(a = 3) = TRUE`; `TRUE = a`, which is never true, turned
/// round; a sign before anything but a number; a `BETWEEN` with its limits the wrong way round. All that is an
/// error here. `0.0` is a number here, and an error there. Here hexadecimal floats are no numbers.
///
/// Two filters are equal if their texts are.
///
/// # Examples
/// ```
/// # use duralog::{Message, Store, StoreConfig};
/// use duralog::SqlFilter;
/// use std::time::Duration;
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-sql-{}", std::process::id()));
/// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// for (order, amount, region) in [("1", "250", "eu"), ("2", "12", "eu"), ("3", "900", "us")] {
///     let message = Message::new("orders", order).property("amount", amount);
///     store.put(message.property("region", region))?.ok()?;
/// }
/// let large = SqlFilter::parse("amount > 100 AND region IN ('eu', 'uk')")?;
/// let consumer = store.consumer("audit").subscribe("orders", large).open()?;
/// let batch = consumer.poll(Duration::from_secs(1))?;
/// assert_eq!(batch.iter().map(|order| order.body()).collect::<Vec<_>>(), [b"1"]);
/// batch.ack()?;
/// # drop((batch, consumer));
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Clone)]
pub struct SqlFilter {
    text: Arc<str>,
    condition: Arc<Condition>,
}

impl SqlFilter {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`], with the byte at which the trouble begins.
    ///
    /// # Examples
    /// ```
    /// use duralog::SqlFilter;
    ///
    /// let error = SqlFilter::parse("amount > 'much'").unwrap_err();
    /// let said = "invalid filter: at byte 9: \"'much'\" stands where a property or a number must stand";
    /// assert_eq!(error.to_string(), said);
    /// ```
    pub fn parse(expression: &str) -> Result<Self> {
        let len = expression.len();
        if len > LEN_MAX {
            return Err(Error::InvalidFilter(InvalidFilter::TooLong { len, max: LEN_MAX }));
        }
        let condition = Parser::parse(expression).map_err(|why| Error::InvalidFilter(*why))?;
        Ok(Self { text: expression.into(), condition: Arc::new(condition) })
    }

    /// The expression.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a message with these properties passes. For whoever reads without a consumer: of what
    /// [`Store::get_view`](crate::Store::get_view) returns, `view.record().properties()`.
    pub fn passes(&self, properties: PropertiesRef<'_>) -> bool {
        matches!(self.condition.truth(properties), Ok(Some(true)))
    }
}

impl PartialEq for SqlFilter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SqlFilter {}

impl fmt::Debug for SqlFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqlFilter").field(&self.text).finish()
    }
}

impl fmt::Display for SqlFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
