//! Checksums of bodies and of whole records.
//!
//! A record's checksum covers fields that are known only inside the append lock, and they stand at
//! its front. CRC-32 is linear, so `crc(a ++ b) = crc(a) * x^(8 * b.len()) + crc(b)` over the
//! polynomials modulo P: the rest of the record, and the power of x for its length, are computed
//! before the lock; inside it the header is checksummed and one product formed.

use super::format::{CRC_MASK, NAME_END, RECORD_CRC_SIZE, VALUE_END};
use super::properties::names;
use super::wire::Sink;

/// P of CRC-32, bit-reversed, without its leading term: as everywhere here bit 31 is x^0.
const POLYNOMIAL: u32 = 0xEDB8_8320;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// The polynomial x^8: one byte further.
const BYTE: u32 = ONE >> 8;

/// The product of two polynomials modulo P, bit by bit: for the tables below.
const fn multiply_slowly(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut a = a;
    // The terms of `a` leave at the top as `b` is multiplied by x again and again; once none is
    // left the product is complete.
    while a != 0 {
        product ^= b & 0u32.wrapping_sub(a >> 31);
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
        a <<= 1;
    }
    product
}

/// The product of two polynomials modulo P.
#[expect(clippy::indexing_slicing, reason = "a byte indexes 256 entries")]
fn multmodp(a: u32, b: u32) -> u32 {
    // 63 bits, the last of them x^0: one more, and the upper half is what needs no reduction.
    let product = carryless(a, b) << 1;
    let [b7, b6, b5, b4, b3, b2, b1, b0] = product.to_be_bytes();
    u32::from_be_bytes([b7, b6, b5, b4])
        ^ REDUCED[0][usize::from(b0)]
        ^ REDUCED[1][usize::from(b1)]
        ^ REDUCED[2][usize::from(b2)]
        ^ REDUCED[3][usize::from(b3)]
}

/// The product of two polynomials with all its 63 terms.
///
/// By ordinary multiplication of numbers in which only every fourth bit is used: at most eight of
/// them meet in one place, which the three bits between have room for.
fn carryless(a: u32, b: u32) -> u64 {
    const EVERY_FOURTH: u64 = 0x1111_1111_1111_1111;
    let spread = |n: u32| [0, 1, 2, 3].map(|shift| u64::from(n) & (EVERY_FOURTH << shift));
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (spread(a), spread(b));
    let sums = [
        (a0 * b0) ^ (a1 * b3) ^ (a2 * b2) ^ (a3 * b1),
        (a0 * b1) ^ (a1 * b0) ^ (a2 * b3) ^ (a3 * b2),
        (a0 * b2) ^ (a1 * b1) ^ (a2 * b0) ^ (a3 * b3),
        (a0 * b3) ^ (a1 * b2) ^ (a2 * b1) ^ (a3 * b0),
    ];
    let [s0, s1, s2, s3] = sums;
    (s0 & EVERY_FOURTH)
        | (s1 & (EVERY_FOURTH << 1))
        | (s2 & (EVERY_FOURTH << 2))
        | (s3 & (EVERY_FOURTH << 3))
}

/// `REDUCED[i][d]` is `d * x^32` modulo P, for `d` in the i-th byte from the end of 32 bits.
static REDUCED: [[u32; 256]; 4] = {
    /// The polynomial x^32 modulo P.
    const X32: u32 = POLYNOMIAL;
    let mut tables = [[0; 256]; 4];
    let mut i = 0;
    while i < 4 {
        let mut d = 0u32;
        while d < 256 {
            tables[i][d as usize] = multiply_slowly(X32, d << (8 * i));
            d += 1;
        }
        i += 1;
    }
    tables
};

/// `X2N[i][d]` is x^(8 * d * 256^i): one table for each byte of a length.
///
/// Four kilobytes of which one call reads four words: cheaper than squaring its way up, and with
/// nothing to share between threads.
static X2N: [[u32; 256]; 4] = {
    let mut tables = [[ONE; 256]; 4];
    let mut base = BYTE;
    let mut i = 0;
    while i < 4 {
        let mut d = 1;
        while d < 256 {
            tables[i][d] = multiply_slowly(tables[i][d - 1], base);
            d += 1;
        }
        base = multiply_slowly(tables[i][255], base);
        i += 1;
    }
    tables
};

/// x^(8 * len): what a checksum is multiplied by when `len` bytes follow.
#[expect(clippy::indexing_slicing, reason = "a byte indexes 256 entries")]
fn x2nmodp(len: u32) -> u32 {
    let [b3, b2, b1, b0] = len.to_be_bytes();
    let mut factor = X2N[0][usize::from(b0)];
    for (table, digit) in [(&X2N[1], b1), (&X2N[2], b2), (&X2N[3], b3)] {
        if digit != 0 {
            factor = multmodp(table[usize::from(digit)], factor);
        }
    }
    factor
}

/// The checksum of bytes whose beginning is not known yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Suffix {
    crc: u32,
    factor: u32,
}

impl Suffix {
    /// `crc` is the checksum of the `len` bytes by themselves.
    pub(crate) fn new(crc: u32, len: u32) -> Self {
        Self { crc, factor: x2nmodp(len) }
    }

    /// The checksum of the whole, given its beginning.
    #[inline]
    pub(crate) fn after(self, prefix: &[u8]) -> u32 {
        multmodp(crc32fast::hash(prefix), self.factor) ^ self.crc
    }
}

/// A running checksum.
#[derive(Clone, Default)]
pub(crate) struct Checksum(crc32fast::Hasher);

impl Checksum {
    /// The checksum of what was written so far.
    pub(crate) fn value(&self) -> u32 {
        self.0.clone().finalize()
    }
}

impl Sink for Checksum {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// The checksum of a body or a record as RocketMQ stores it: CRC-32 without its top bit.
pub(crate) fn stored_crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes) & CRC_MASK
}

/// The `__CRC32#` property that ends a record: ten decimal digits, the least significant first.
pub(crate) fn record_crc_property(crc: u32) -> [u8; RECORD_CRC_SIZE] {
    let mut property = *b"__CRC32#\x010000000000\x02";
    let mut left = crc & CRC_MASK;
    for digit in property.iter_mut().skip(names::RECORD_CRC.len() + 1).take(10) {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    property
}

/// Splits the property string of a record into its properties and the record checksum behind them.
///
/// Only what [`record_crc_property`] writes counts, and only where a property can begin; anything
/// else of that name is a property like the others.
#[inline]
pub(crate) fn split_record_crc(properties: &[u8]) -> (&[u8], Option<u32>) {
    let split = || {
        let (before, property) = properties.split_last_chunk::<RECORD_CRC_SIZE>()?;
        let starts_here = before.last().is_none_or(|&last| last == VALUE_END);
        let digits = property
            .strip_prefix(names::RECORD_CRC.as_bytes())?
            .strip_prefix(&[NAME_END])?
            .strip_suffix(&[VALUE_END])?;
        let crc = parse_reversed(digits)?;
        (starts_here && crc <= CRC_MASK).then_some((before, crc))
    };
    match split() {
        Some((before, crc)) => (before, Some(crc)),
        None => (properties, None),
    }
}

/// The number of ten digits, the least significant first. Without a branch per digit: every record that
/// is read comes by here.
fn parse_reversed(digits: &[u8]) -> Option<u32> {
    let digits: &[u8; 10] = digits.try_into().ok()?;
    let (value, worst) = digits.iter().rev().fold((0u64, 0u8), |(value, worst), digit| {
        let digit = digit.wrapping_sub(b'0');
        (value * 10 + u64::from(digit), worst.max(digit))
    });
    u32::try_from(value).ok().filter(|_| worst <= 9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn body_checksums_of_the_format_page() {
        assert_eq!(stored_crc(b"hello"), 907_060_870);
        assert_eq!(stored_crc(b"123456789"), 1_274_296_614);
        assert_eq!(stored_crc(b"a"), 1_756_872_259);
        assert_eq!(stored_crc(b""), 0);
    }

    #[test]
    fn multiplying_by_one_changes_nothing() {
        assert_eq!(x2nmodp(0), ONE);
        assert_eq!(multmodp(ONE, 0x1234_5678), 0x1234_5678);
        assert_eq!(multmodp(0x1234_5678, ONE), 0x1234_5678);
    }

    #[test]
    fn products_of_single_terms_agree_with_the_slow_way() {
        for a in 0..32 {
            for b in 0..32 {
                let (a, b) = (1 << a, 1 << b);
                assert_eq!(multmodp(a, b), multiply_slowly(a, b));
                assert_eq!(multmodp(!a, !b), multiply_slowly(!a, !b));
            }
        }
    }

    #[test]
    fn powers_of_any_length_agree_with_repeated_squaring() {
        for len in [1, 2, 255, 256, 257, 65_535, 65_536, 16_777_216, 123_456_789, u32::MAX] {
            let mut expected = ONE;
            for bit in (0..32).rev() {
                expected = multiply_slowly(expected, expected);
                if len >> bit & 1 == 1 {
                    expected = multiply_slowly(expected, BYTE);
                }
            }
            assert_eq!(x2nmodp(len), expected, "{len}");
        }
    }

    #[test]
    fn digits_are_reversed_and_filled_with_zeros() {
        assert_eq!(&record_crc_property(1_109_840_760), b"__CRC32#\x010670489011\x02");
        assert_eq!(&record_crc_property(0), b"__CRC32#\x010000000000\x02");
        assert_eq!(&record_crc_property(7), b"__CRC32#\x017000000000\x02");
    }

    #[test]
    fn only_a_property_of_the_exact_form_is_a_record_checksum() {
        assert_eq!(split_record_crc(b"__CRC32#\x010000000000\x02"), (&b""[..], Some(0)));
        assert_eq!(
            split_record_crc(b"a\x01b\x02__CRC32#\x017463847412\x02"),
            (&b"a\x01b\x02"[..], Some(2_147_483_647))
        );
        for other in [
            &b"a\x01b__CRC32#\x010000000000\x02"[..], // inside a value
            b"__CRC32#\x018463847412\x02",            // over 31 bits
            b"__CRC32#\x019999999999\x02",            // over 32 bits
            b"__CRC32#\x01000000000\x02",             // nine digits
            b"__CRC32#\x0100000 0000\x02",
            b"__CRC32#\x010000000000",
            b"",
        ] {
            assert_eq!(split_record_crc(other), (other, None));
        }
    }

    proptest! {
        #[test]
        fn products_agree_with_the_slow_way(a in any::<u32>(), b in any::<u32>()) {
            prop_assert_eq!(multmodp(a, b), multiply_slowly(a, b));
        }

        #[test]
        fn joining_agrees_with_one_pass(bytes in prop::collection::vec(any::<u8>(), 0..5000), at in any::<prop::sample::Index>()) {
            let (prefix, rest) = bytes.split_at(at.index(bytes.len() + 1));
            let suffix = Suffix::new(crc32fast::hash(rest), rest.len() as u32);
            prop_assert_eq!(suffix.after(prefix), crc32fast::hash(&bytes));
        }

        #[test]
        fn record_checksum_round_trips(crc in 0..=CRC_MASK) {
            let property = record_crc_property(crc);
            prop_assert_eq!(split_record_crc(&property), (&b""[..], Some(crc)));
        }
    }
}
