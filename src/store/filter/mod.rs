//! Which messages a reader wants.

#[cfg(feature = "sql92")]
mod sql;

#[cfg(feature = "sql92")]
pub use sql::SqlFilter;

use crate::message::{RecordRef, java_string_hash};
use std::collections::BTreeSet;

/// What a fetch asks about a message.
pub(super) trait Passes {
    /// Whether it is worth reading, as far as its queue entry tells.
    fn may_pass(&self, tags_code: i64) -> bool;

    /// Whether it is wanted.
    fn passes(&self, record: &RecordRef<'_>) -> bool;
}

/// Which messages of a topic a consumer wants: those with certain tags, or those whose properties satisfy an
/// expression.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filter {
    /// By tag. What does not pass is rarely read.
    Tags(TagFilter),
    /// By properties. Every message is read to tell.
    #[cfg(feature = "sql92")]
    Sql(SqlFilter),
}

impl Filter {
    /// Everything.
    pub(crate) fn any() -> Self {
        Self::Tags(TagFilter::any())
    }

    /// Whether messages are read that do not pass.
    pub(crate) fn reads_all(&self) -> bool {
        match self {
            Self::Tags(_) => false,
            #[cfg(feature = "sql92")]
            Self::Sql(_) => true,
        }
    }
}

impl From<TagFilter> for Filter {
    fn from(filter: TagFilter) -> Self {
        Self::Tags(filter)
    }
}

#[cfg(feature = "sql92")]
impl From<SqlFilter> for Filter {
    fn from(filter: SqlFilter) -> Self {
        Self::Sql(filter)
    }
}

impl Passes for Filter {
    fn may_pass(&self, tags_code: i64) -> bool {
        match self {
            Self::Tags(filter) => filter.may_pass(tags_code),
            #[cfg(feature = "sql92")]
            Self::Sql(_) => true,
        }
    }

    fn passes(&self, record: &RecordRef<'_>) -> bool {
        match self {
            Self::Tags(filter) => filter.passes(record),
            #[cfg(feature = "sql92")]
            Self::Sql(filter) => filter.passes(record.properties()),
        }
    }
}

/// Which tags a reader wants: by hash in the queue, then by the string in the message.
///
/// A filter without tags lets everything pass: the default, [`any`](Self::any), and also an empty
/// list given to [`of`](Self::of) or an empty expression given to [`parse`](Self::parse).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagFilter {
    /// Empty: everything.
    tags: Vec<(i64, String)>,
}

impl TagFilter {
    /// Everything.
    pub fn any() -> Self {
        Self::default()
    }

    /// RocketMQ's subscription expression: `*` or nothing for everything, or tags separated by `||`.
    pub fn parse(expression: &str) -> Self {
        let tags = expression.split("||").map(str::trim).filter(|tag| !tag.is_empty());
        if expression.trim() == "*" { Self::any() } else { Self::of(tags) }
    }

    /// Messages with one of these tags. No tags at all means everything, not nothing.
    pub fn of<'a>(tags: impl IntoIterator<Item = &'a str>) -> Self {
        let tags = tags.into_iter().map(|tag| (i64::from(java_string_hash(tag)), tag.to_owned()));
        // The same tags are the same filter.
        let tags: BTreeSet<_> = tags.collect();
        Self { tags: tags.into_iter().collect() }
    }
}

impl Passes for TagFilter {
    fn may_pass(&self, tags_code: i64) -> bool {
        self.tags.is_empty() || self.tags.iter().any(|(code, _)| *code == tags_code)
    }

    fn passes(&self, record: &RecordRef<'_>) -> bool {
        self.tags.is_empty() || self.tags.iter().any(|(_, tag)| record.tags() == Some(tag))
    }
}
