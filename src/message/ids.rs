//! Message ids. RocketMQ has two: one tells where a record lies, the other is the producer's own.

use super::host::Host;
use super::wire::{Reader, Sink, StackBuffer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an id with an IPv4 address, of either kind; its text has twice as many characters.
const ID_V4_SIZE: usize = 16;
/// Bytes of an id with an IPv6 address, of either kind.
const ID_V6_SIZE: usize = 28;

/// Where a record lies: store host and physical offset, RocketMQ's `offsetMsgId`.
///
/// Its text is what `Display` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetMessageId {
    /// The store host of the record.
    pub host: Host,
    /// The physical offset of the record.
    pub physical_offset: i64,
}

impl OffsetMessageId {
    /// Reads the 32 (IPv4) or 56 (IPv6) hexadecimal digits of an id, of either case.
    pub fn parse(text: &str) -> Option<Self> {
        with_bytes(text, |mut reader, v6| {
            let host = if v6 { Host::read_v6(&mut reader) } else { Host::read_v4(&mut reader) }?;
            Some(Self { host, physical_offset: reader.i64()? })
        })
    }
}

impl fmt::Display for OffsetMessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = StackBuffer::<ID_V6_SIZE>::new();
        self.host.write(&mut bytes);
        bytes.write(&self.physical_offset.to_be_bytes());
        write_hex(bytes.filled(), f)
    }
}

/// The parts of the id that RocketMQ's clients give their messages, the `UNIQ_KEY` property.
///
/// Producers may put anything else there, so a key that does not parse is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniqueKey {
    /// The address of the client.
    pub ip: IpAddr,
    /// The lower half of its process id.
    pub pid: u16,
    /// A number that tells clients in one process apart.
    pub class_loader_hash: u32,
    /// Milliseconds since the month began in the client's time zone.
    pub millis_of_month: u32,
    /// Counts the client's messages and wraps.
    pub counter: u16,
}

impl UniqueKey {
    /// Reads the 32 (IPv4) or 56 (IPv6) hexadecimal digits of a key, of either case.
    pub fn parse(text: &str) -> Option<Self> {
        with_bytes(text, |mut reader, v6| {
            let ip = if v6 {
                Ipv6Addr::from(reader.array::<16>()?).into()
            } else {
                Ipv4Addr::from(reader.array::<4>()?).into()
            };
            Some(Self {
                ip,
                pid: reader.u16()?,
                class_loader_hash: reader.u32()?,
                millis_of_month: reader.u32()?,
                counter: reader.u16()?,
            })
        })
    }
}

impl fmt::Display for UniqueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = StackBuffer::<ID_V6_SIZE>::new();
        match self.ip {
            IpAddr::V4(ip) => bytes.write(&ip.octets()),
            IpAddr::V6(ip) => bytes.write(&ip.octets()),
        }
        bytes.write(&self.pid.to_be_bytes());
        bytes.write(&self.class_loader_hash.to_be_bytes());
        bytes.write(&self.millis_of_month.to_be_bytes());
        bytes.write(&self.counter.to_be_bytes());
        write_hex(bytes.filled(), f)
    }
}

/// Parses hexadecimal digits to bytes and hands them on, with whether they hold an IPv6 address.
fn with_bytes<T>(text: &str, read: impl FnOnce(Reader<'_>, bool) -> Option<T>) -> Option<T> {
    if text.len() != 2 * ID_V4_SIZE && text.len() != 2 * ID_V6_SIZE {
        return None;
    }
    let mut bytes = StackBuffer::<ID_V6_SIZE>::new();
    for pair in text.as_bytes().chunks_exact(2) {
        let [high, low] = pair.try_into().ok()?;
        bytes.write(&[hex_digit(high)? << 4 | hex_digit(low)?]);
    }
    let bytes = bytes.filled();
    read(Reader::new(bytes), bytes.len() == ID_V6_SIZE)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn offset_ids_of_the_format_page() {
        let v4 = OffsetMessageId { host: Host::new([127, 0, 0, 1], 10911), physical_offset: 104 };
        let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let v6 = OffsetMessageId { host: Host::new(v6, 10911), physical_offset: 104 };
        for (id, text) in [
            (v4, "7F00000100002A9F0000000000000068"),
            (v6, "20010DB800000000000000000000000100002A9F0000000000000068"),
        ] {
            assert_eq!(id.to_string(), text);
            assert_eq!(OffsetMessageId::parse(text), Some(id));
            assert_eq!(OffsetMessageId::parse(&text.to_lowercase()), Some(id));
        }
    }

    #[test]
    fn unique_key_of_the_format_page() {
        let key = UniqueKey {
            ip: [192, 168, 1, 2].into(),
            pid: 4660,
            class_loader_hash: 0x18B4_AAC2,
            millis_of_month: 123_456_789,
            counter: 1,
        };
        assert_eq!(key.to_string(), "C0A80102123418B4AAC2075BCD150001");
        assert_eq!(UniqueKey::parse("C0A80102123418B4AAC2075BCD150001"), Some(key));
        let v6 = UniqueKey { ip: Ipv6Addr::LOCALHOST.into(), ..key };
        assert_eq!(v6.to_string().len(), 56);
        assert_eq!(UniqueKey::parse(&v6.to_string()), Some(v6));
    }

    #[test]
    fn other_texts_are_no_ids() {
        for text in
            ["", "7F", "7F00000100002A9F000000000000006", "7F00000100002A9F00000000000000680"]
        {
            assert_eq!(OffsetMessageId::parse(text), None);
        }
        assert_eq!(UniqueKey::parse("C0A80102123418B4AAC2075BCD15000G"), None);
        assert_eq!(UniqueKey::parse("C0A80102123418B4AAC2075BCD1500+1"), None);
        assert_eq!(UniqueKey::parse("\u{20AC}A80102123418B4AAC2075BCD15001"), None);
    }

    proptest! {
        #[test]
        fn parsing_is_total(text in ".{0,60}|[0-9A-F]{32}|[0-9a-f]{56}") {
            if let Some(id) = OffsetMessageId::parse(&text) {
                prop_assert_eq!(id.to_string(), text.to_uppercase());
            }
            if let Some(key) = UniqueKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text.to_uppercase());
            }
        }
    }
}
