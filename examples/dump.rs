//! Prints every message of a store, one JSON object a line, in the order in which they lie in the
//! log. Reads only: nothing on the disk changes, and another process may be writing to the store.
//! Whatever is complete is printed, whether or not the store was closed in order.

use duralog::log::CommitLog;
use duralog::message::format::RECORD_CRC_SIZE;
use duralog::message::{Host, PropertiesRef, RecordRef};
use duralog::{LogConfig, MessageView};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::process::ExitCode;

/// Bodies up to this length are printed, of longer ones the SHA-256.
pub const BODY_PRINTED: usize = 256;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let dir = match args.as_slice() {
        [dir] if !dir.as_encoded_bytes().starts_with(b"-") => Path::new(dir),
        _ => {
            eprintln!("usage: dump DIR");
            return ExitCode::from(2);
        }
    };
    match dump(dir, &mut BufWriter::new(io::stdout().lock())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let reader_left =
                error.downcast_ref().map(io::Error::kind) == Some(ErrorKind::BrokenPipe);
            if reader_left {
                return ExitCode::SUCCESS;
            }
            eprintln!("dump: {error}");
            ExitCode::FAILURE
        }
    }
}

pub fn dump(dir: &Path, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut config = LogConfig::new(dir);
    config.read_only = true;
    let log = CommitLog::open(config)?;
    for message in log.records(log.min_offset()) {
        match message {
            Ok(message) => writeln!(out, "{}", json(&message))?,
            Err(damage) => {
                out.flush()?;
                return Err(damage.into());
            }
        }
    }
    out.flush()?;
    let Some(cut) = &log.recovery().cut else { return Ok(()) };
    match cut.next_valid {
        // A writer may be at work, or was killed in the middle of it.
        None => eprintln!("dump: no complete message at {}: {}", cut.offset, cut.what),
        Some(next) => {
            let (at, what) = (cut.offset, &cut.what);
            return Err(format!("damaged at {at}, but a message follows at {next}: {what}").into());
        }
    }
    Ok(())
}

pub fn json(message: &MessageView) -> String {
    let record = message.record();
    let properties = properties_as_stored(&record);
    let parsed = parse(properties);
    let queued = record.sys_flag().takes_queue_offset();
    let mut object = Object::default();
    object.number("physicalOffset", message.physical_offset());
    object.number("size", message.size());
    object.string("topic", record.topic());
    object.number("queueId", record.queue_id());
    object.number("queueOffset", record.queue_offset());
    object.number("flag", record.flag());
    object.number("sysFlag", record.sys_flag().0);
    object.number("bornTimestamp", record.born_timestamp());
    object.number("storeTimestamp", record.store_timestamp());
    object.string("bornHost", &java_host(record.born_host()));
    object.string("storeHost", &java_host(record.store_host()));
    object.number("reconsumeTimes", record.reconsume_times());
    object.number("preparedTransactionOffset", record.prepared_transaction_offset());
    object.number("bodyCRC", record.body_crc().cast_signed());
    object.number("bodyLength", record.body().len());
    if record.body().len() <= BODY_PRINTED {
        object.string("bodyHex", &hex(record.body()));
    } else {
        object.string("bodySha256", &hex(&sha256(record.body())));
    }
    object.or_null("tags", parsed.get("TAGS").map(|tags| quoted(tags)));
    object.or_null("keys", parsed.get("KEYS").map(|keys| quoted(keys)));
    object.strings("properties", &parsed);
    object.string("propertiesHex", &hex(properties));
    // Half messages and those rolled back are in no queue.
    object.or_null("tagsCode", queued.then(|| record.tags_code().to_string()));
    object.finish()
}

/// The property string as it lies in the record, with the checksum that a `RecordRef` sets apart.
fn properties_as_stored<'a>(record: &RecordRef<'a>) -> &'a [u8] {
    let crc = if record.record_crc().is_some() { RECORD_CRC_SIZE } else { 0 };
    let length = record.properties().as_bytes().len() + crc;
    let bytes = record.bytes();
    &bytes[bytes.len() - length..]
}

/// Properties as RocketMQ reads them: of equal names the last one counts.
fn parse(properties: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    PropertiesRef::new(properties)
        .iter_raw()
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

/// An address as Java prints it: no zeros of an IPv6 address left out, an IPv4 address inside of one
/// alone.
pub fn java_host(host: Host) -> String {
    match host.ip {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none() => {
            format!("[{}]:{}", java_ipv6(ip), host.port)
        }
        ip => format!("{}:{}", ip.to_canonical(), host.port),
    }
}

fn java_ipv6(ip: Ipv6Addr) -> String {
    ip.segments().map(|segment| format!("{segment:x}")).join(":")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A JSON object in the making.
#[derive(Default)]
struct Object {
    text: String,
}

impl Object {
    fn value(&mut self, key: &str, value: &str) {
        self.text.push(if self.text.is_empty() { '{' } else { ',' });
        self.text.push_str(&format!("{}:{value}", quoted(key)));
    }

    fn number(&mut self, key: &str, value: impl ToString) {
        self.value(key, &value.to_string());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.value(key, &quoted(value));
    }

    fn or_null(&mut self, key: &str, value: Option<String>) {
        self.value(key, value.as_deref().unwrap_or("null"));
    }

    fn strings(&mut self, key: &str, strings: &BTreeMap<String, String>) {
        let mut object = Self::default();
        strings.iter().for_each(|(key, value)| object.string(key, value));
        self.value(key, &object.finish());
    }

    fn finish(self) -> String {
        if self.text.is_empty() { "{}".into() } else { self.text + "}" }
    }
}

/// A JSON string, of ASCII characters only.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte @ (b'"' | b'\\')) => quoted.extend(['\\', char::from(byte)]),
            Ok(byte @ b' '..=b'~') => quoted.push(char::from(byte)),
            Ok(b'\n') => quoted.push_str("\\n"),
            Ok(b'\r') => quoted.push_str("\\r"),
            Ok(b'\t') => quoted.push_str("\\t"),
            _ => quoted.push_str(&format!("\\u{unit:04x}")),
        }
    }
    quoted.push('"');
    quoted
}

/// SHA-256 of FIPS 180-4.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut state: [u32; 8] = [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
        0x5be0cd19,
    ];
    // A one bit, zeros, and the length in bits bring the input to whole blocks.
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    padded.resize((bytes.len() + 9).next_multiple_of(64), 0);
    let length_at = padded.len() - 8;
    padded[length_at..].copy_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        sha256_block(&mut state, block);
    }
    let mut digest = [0; 32];
    for (to, word) in digest.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn sha256_block(state: &mut [u32; 8], block: &[u8]) {
    let mut words = [0_u32; 64];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    for t in 16..64 {
        let (early, late) = (words[t - 15], words[t - 2]);
        let sigma0 = early.rotate_right(7) ^ early.rotate_right(18) ^ early >> 3;
        let sigma1 = late.rotate_right(17) ^ late.rotate_right(19) ^ late >> 10;
        words[t] =
            [words[t - 16], sigma0, words[t - 7], sigma1].into_iter().fold(0, u32::wrapping_add);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (word, constant) in words.into_iter().zip(SHA256_CONSTANTS) {
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let temp1 = [h, sum1, choice, constant, word].into_iter().fold(0, u32::wrapping_add);
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let temp2 = sum0.wrapping_add(majority);
        (h, g, f, e) = (g, f, e, d.wrapping_add(temp1));
        (d, c, b, a) = (c, b, a, temp1.wrapping_add(temp2));
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

const SHA256_CONSTANTS: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_the_known_vectors() {
        for (input, digest) in [
            (&b""[..], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (
                &[b'a'; 1_000_000],
                "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
            ),
        ] {
            assert_eq!(hex(&sha256(input)), digest);
        }
    }

    #[test]
    fn hosts_as_java_prints_them() {
        let host = |ip: &str| java_host(Host::new(ip.parse::<IpAddr>().unwrap(), 10911));
        assert_eq!(host("10.0.0.1"), "10.0.0.1:10911");
        assert_eq!(host("::1"), "[0:0:0:0:0:0:0:1]:10911");
        assert_eq!(host("2001:DB8::a0"), "[2001:db8:0:0:0:0:0:a0]:10911");
        assert_eq!(host("::ffff:10.0.0.1"), "10.0.0.1:10911");
    }

    #[test]
    fn strings_as_json() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\n""#);
        assert_eq!(quoted("\u{1}\u{7f}é订🚀"), r#""\u0001\u007f\u00e9\u8ba2\ud83d\ude80""#);
    }
}
