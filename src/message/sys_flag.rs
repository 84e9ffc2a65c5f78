//! The bits of a record that RocketMQ itself reads.

use std::fmt;
use std::ops::BitOr;

/// The `sysFlag` of a record: how its body and hosts are encoded, and its part in a transaction.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SysFlag(pub i32);

/// A message's part in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transaction {
    /// No part in one.
    None,
    /// Half of a transaction that is not decided.
    Prepared,
    /// Of a transaction that was committed.
    Commit,
    /// Of a transaction that was rolled back.
    Rollback,
}

/// How a producer compressed a body. The store itself neither compresses nor decompresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// zlib; also what clients mean that know no other.
    Zlib,
    /// LZ4 in its frame format.
    Lz4,
    /// Zstandard.
    Zstd,
    /// A number that RocketMQ has not given a meaning.
    Unknown(u8),
}

impl SysFlag {
    /// The body is compressed.
    pub const COMPRESSED: Self = Self(0x001);
    /// The message has several tags.
    pub const MULTI_TAGS: Self = Self(0x002);
    /// Both bits of the transaction state.
    pub const TRANSACTION_MASK: Self = Self(0x00C);
    /// A half message.
    pub const PREPARED: Self = Self(0x004);
    /// A committed message.
    pub const COMMIT: Self = Self(0x008);
    /// A message rolled back.
    pub const ROLLBACK: Self = Self(0x00C);
    /// The born host is an IPv6 address.
    pub const BORN_HOST_V6: Self = Self(0x010);
    /// The store host is an IPv6 address.
    pub const STORE_HOST_V6: Self = Self(0x020);
    /// A consumer must split the body into its messages.
    pub const NEED_UNWRAP: Self = Self(0x040);
    /// The body is a batch stored as one record.
    pub const INNER_BATCH: Self = Self(0x080);
    /// The bits of the compression type.
    pub const COMPRESSION_MASK: Self = Self(0x700);
    /// Compression type LZ4.
    pub const COMPRESSION_LZ4: Self = Self(0x100);
    /// Compression type Zstandard.
    pub const COMPRESSION_ZSTD: Self = Self(0x200);
    /// Compression type zlib.
    pub const COMPRESSION_ZLIB: Self = Self(0x300);

    /// Whether every bit of `bits` is set.
    pub const fn contains(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// These bits and those of `bits`.
    #[must_use]
    pub const fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    /// These bits but for those of `bits`.
    #[must_use]
    pub const fn without(self, bits: Self) -> Self {
        Self(self.0 & !bits.0)
    }

    /// The message's part in a transaction.
    pub const fn transaction(self) -> Transaction {
        match Self(self.0 & Self::TRANSACTION_MASK.0) {
            Self::PREPARED => Transaction::Prepared,
            Self::COMMIT => Transaction::Commit,
            Self::ROLLBACK => Transaction::Rollback,
            _ => Transaction::None,
        }
    }

    /// Whether the message gets a queue offset and a queue entry: all do but half messages and
    /// those rolled back.
    pub const fn takes_queue_offset(self) -> bool {
        matches!(self.transaction(), Transaction::None | Transaction::Commit)
    }

    /// How the body is compressed, if it is.
    pub const fn compression(self) -> Option<Compression> {
        if !self.contains(Self::COMPRESSED) {
            return None;
        }
        Some(match (self.0 & Self::COMPRESSION_MASK.0) >> 8 {
            0 | 3 => Compression::Zlib,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            other => Compression::Unknown(other as u8),
        })
    }
}

impl BitOr for SysFlag {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl fmt::Debug for SysFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SysFlag({:#05x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_bits_are_a_number_not_two_flags() {
        assert_eq!(SysFlag(0x301).transaction(), Transaction::None);
        assert_eq!((SysFlag::PREPARED | SysFlag::COMPRESSED).transaction(), Transaction::Prepared);
        assert_eq!(SysFlag::COMMIT.transaction(), Transaction::Commit);
        assert_eq!((SysFlag::PREPARED | SysFlag::COMMIT).transaction(), Transaction::Rollback);
    }

    #[test]
    fn half_and_rolled_back_messages_take_no_queue_offset() {
        assert!(SysFlag::default().takes_queue_offset());
        assert!(SysFlag::COMMIT.takes_queue_offset());
        assert!(!SysFlag::PREPARED.takes_queue_offset());
        assert!(!SysFlag::ROLLBACK.takes_queue_offset());
    }

    #[test]
    fn compression_type_counts_only_when_compressed() {
        assert_eq!(SysFlag(0x300).compression(), None);
        assert_eq!(SysFlag(0x001).compression(), Some(Compression::Zlib));
        assert_eq!(SysFlag(0x101).compression(), Some(Compression::Lz4));
        assert_eq!(SysFlag(0x201).compression(), Some(Compression::Zstd));
        assert_eq!(SysFlag(0x301).compression(), Some(Compression::Zlib));
        assert_eq!(SysFlag(0x501).compression(), Some(Compression::Unknown(5)));
    }
}
