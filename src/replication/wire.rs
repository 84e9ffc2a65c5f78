//! What nodes of this crate say to each other, byte for byte.
//!
//! ```text
//! frame:  kind u8, zero u8, zero u16, length u32, crc32 u32, then `length` bytes
//! ```
//!
//! The checksum covers everything of the frame but itself, and but for the bytes of the log in `Records`:
//! whoever appends them verifies the checksums that they carry. All integers are big endian. A length is checked
//! against what the state of the session allows before a byte of it is read.
//!
//! | kind | from | bytes |
//! |---|---|---|
//! | 1 `Hello` | replica | magic "DURALOGR", version u32, nonce 16 |
//! | 2 `Challenge` | primary | nonce 16 |
//! | 3 `Proof` | replica | HMAC-SHA256 32 |
//! | 4 `Proven` | primary | HMAC-SHA256 32 |
//! | 5 `Join` | replica | cluster u64, node u64, instance u64, segment size u64, log u64, min u64, end u64, confirmed u64, promised u64, epochs |
//! | 6 `Welcome` | primary | log u64, epoch 28, plan u32, plan's offset u64 |
//! | 7 `Refuse` | either | code u32, two u64 |
//! | 8 `Begin` | replica | from u64, length u64 (at most 4096), crc32 u32: of the log before `from` |
//! | 9 `Data` | primary, or the replica that lends | epoch 28, offset u64, confirmed u64, then bytes of the log; none is a heartbeat |
//! | 10 `Ack` | replica | epoch u64, written u64, durable u64 |
//! | 11 `Lend` | primary | from u64: it asks for `Data` of what it lost itself |
//! | 12 `Queues` | primary | left u32, then per queue: topic length u8, topic, queue id i32, queue offset u64 |
//! | 13 `Offsets` | primary | end u64, whole u32, left u32, then per queue of a group: topic length u8, group length u8, queue id i32, queue offset u64, topic, group |
//! | 14 `Records` | as `Data` | as `Data`, where the epoch's records carry `__CRC32#` and there is nothing else |
//!
//! Where the plan is to begin anew, `Queues` follow the `Welcome`: where each queue goes on there, but for
//! those that go on with 0; `left` queues come in further frames.
//!
//! `Offsets` say how far consumer groups have come: all of them, if it is the whole, or what has moved. They
//! count once the replica holds durably what lies before `end`, and that is confirmed.
//!
//! A log is its id, 0 in a `Join` where it has none. An epoch is epoch u64, start u64, node u64, flags u32; flag 1: its records carry `__CRC32#`.

use super::history::{History, Plan};
use super::inbox::Inbox;
use super::{Epoch, EpochStart, LogId, NodeId, QueueStart};
use crate::log::queue_starts::{ROW_MAX, put_row, take_row};
use crate::log::{GroupOffset, OFFSET_NAMES_MAX, QUEUE_OFFSET_MAX, check_offset_names};
use std::fmt;

pub(crate) const MAGIC: [u8; 8] = *b"DURALOGR";
pub(crate) const VERSION: u32 = 1;
const HEAD: usize = 12;
const EPOCH: usize = 28;
const DATA_FIELDS: usize = EPOCH + 16;
const DATA: u8 = 9;
const RECORDS: u8 = 14;
/// Most bytes of the log in one frame.
pub(crate) const DATA_MAX: u64 = 1 << 20;
/// Most bytes of a frame from someone who has proved nothing.
pub(crate) const STRANGER_MAX: u32 = 64;
/// Most epochs that a node tells of: the newest.
pub(crate) const EPOCHS_MAX: usize = 1024;
/// Most bytes before its end by which a replica shows that it has the same log.
pub(crate) const CHECKED_MAX: u64 = 4096;
/// Most bytes of a frame without bytes of the log.
pub(crate) const CONTROL_MAX: u32 = (9 * 8 + EPOCHS_MAX * EPOCH) as u32;
/// Queues in one frame.
pub(crate) const QUEUES_MAX: usize = 100;
const _: () = assert!(4 + QUEUES_MAX * ROW_MAX <= CONTROL_MAX as usize);
/// Offsets of groups in one frame.
pub(crate) const OFFSETS_MAX: usize = 50;
const _: () = assert!(16 + OFFSETS_MAX * (14 + OFFSET_NAMES_MAX) <= CONTROL_MAX as usize);
/// Offsets of groups that are taken over at a time: as many as a table holds.
pub(crate) const STANDINGS_MAX: usize = 1 << 21;
/// Most bytes of any frame.
pub(crate) const FRAME_MAX: u32 = DATA_FIELDS as u32 + DATA_MAX as u32;

pub(crate) type Nonce = [u8; 16];
pub(crate) type Proof = [u8; 32];

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Hello {
        version: u32,
        nonce: Nonce,
    },
    Challenge {
        nonce: Nonce,
    },
    Proof(Proof),
    Proven(Proof),
    Join(Join),
    Welcome {
        log: LogId,
        epoch: EpochStart,
        plan: Plan,
    },
    Refuse {
        code: u32,
        details: [u64; 2],
    },
    Begin {
        from: u64,
        len: u64,
        crc: u32,
    },
    /// `are_records`: of the bytes, each lies in a record that carries a checksum of its own.
    Data {
        epoch: EpochStart,
        offset: u64,
        confirmed: u64,
        bytes: &'a [u8],
        are_records: bool,
    },
    Ack {
        epoch: Epoch,
        written: u64,
        durable: u64,
    },
    Lend {
        from: u64,
    },
    Queues {
        left: u32,
        queues: Vec<QueueStart>,
    },
    Offsets {
        end: u64,
        whole: bool,
        left: u32,
        offsets: Vec<GroupOffset>,
    },
}

/// Who a replica is, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) cluster: u64,
    pub(crate) node: NodeId,
    /// Another one each time the replica is opened.
    pub(crate) instance: u64,
    pub(crate) segment_size: u64,
    pub(crate) promised: Epoch,
    pub(crate) history: History,
}

/// What is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireError {
    TooLong { len: u32, max: u32 },
    Checksum,
    Malformed,
}

/// The fields of one frame, put next to each other.
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn offset(&mut self, one: &GroupOffset) {
        self.0.extend_from_slice(&[one.topic.len() as u8, one.group.len() as u8]);
        self.u32(one.queue_id.cast_unsigned());
        self.u64(one.next);
        self.0.extend_from_slice(one.topic.as_bytes());
        self.0.extend_from_slice(one.group.as_bytes());
    }

    fn epoch(&mut self, one: &EpochStart) {
        self.u64(one.epoch.0);
        self.u64(one.start);
        self.u64(one.node.0);
        self.u32(u32::from(one.record_crc));
    }
}

impl Frame<'_> {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Challenge { .. } => "Challenge",
            Self::Proof(_) => "Proof",
            Self::Proven(_) => "Proven",
            Self::Join(_) => "Join",
            Self::Welcome { .. } => "Welcome",
            Self::Refuse { .. } => "Refuse",
            Self::Begin { .. } => "Begin",
            Self::Data { are_records: false, .. } => "Data",
            Self::Data { are_records: true, .. } => "Records",
            Self::Ack { .. } => "Ack",
            Self::Lend { .. } => "Lend",
            Self::Queues { .. } => "Queues",
            Self::Offsets { .. } => "Offsets",
        }
    }

    /// The frame without the bytes of the log, which follow it as they are.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(HEAD + DATA_FIELDS));
        out.0.extend_from_slice(&[0; HEAD]);
        let (kind, body): (u8, &[u8]) = match self {
            Self::Hello { version, nonce } => {
                out.0.extend_from_slice(&MAGIC);
                out.u32(*version);
                out.0.extend_from_slice(nonce);
                (1, &[])
            }
            Self::Challenge { nonce } => {
                out.0.extend_from_slice(nonce);
                (2, &[])
            }
            Self::Proof(proof) => {
                out.0.extend_from_slice(proof);
                (3, &[])
            }
            Self::Proven(proof) => {
                out.0.extend_from_slice(proof);
                (4, &[])
            }
            Self::Join(join) => {
                let History { id, epochs, min, end, confirmed } = &join.history;
                let who = [join.cluster, join.node.0, join.instance, join.segment_size];
                let what = [LogId::number(*id), *min, *end, *confirmed, join.promised.0];
                who.iter().chain(&what).for_each(|field| out.u64(*field));
                let skipped = epochs.len().saturating_sub(EPOCHS_MAX);
                epochs.iter().skip(skipped).for_each(|one| out.epoch(one));
                (5, &[])
            }
            Self::Welcome { log, epoch, plan } => {
                out.u64(LogId::number(Some(*log)));
                out.epoch(epoch);
                let (code, offset) = match plan {
                    Plan::Follow(at) => (0, *at),
                    Plan::Truncate(at) => (1, *at),
                    Plan::Restart(at) => (2, *at),
                    Plan::Diverged => (3, 0),
                };
                out.u32(code);
                out.u64(offset);
                (6, &[])
            }
            Self::Refuse { code, details: [first, second] } => {
                out.u32(*code);
                out.u64(*first);
                out.u64(*second);
                (7, &[])
            }
            Self::Begin { from, len, crc } => {
                out.u64(*from);
                out.u64(*len);
                out.u32(*crc);
                (8, &[])
            }
            Self::Data { epoch, offset, confirmed, bytes, are_records } => {
                out.epoch(epoch);
                out.u64(*offset);
                out.u64(*confirmed);
                (if *are_records { RECORDS } else { DATA }, bytes)
            }
            Self::Ack { epoch, written, durable } => {
                [epoch.0, *written, *durable].iter().for_each(|field| out.u64(*field));
                (10, &[])
            }
            Self::Lend { from } => {
                out.u64(*from);
                (11, &[])
            }
            Self::Queues { left, queues } => {
                out.u32(*left);
                queues.iter().for_each(|start| put_row(start, &mut out.0));
                (12, &[])
            }
            Self::Offsets { end, whole, left, offsets } => {
                out.u64(*end);
                out.u32((*whole).into());
                out.u32(*left);
                offsets.iter().for_each(|offset| out.offset(offset));
                (13, &[])
            }
        };
        let mut frame = out.0;
        let len = (frame.len() - HEAD + body.len()) as u32;
        if let Some((head, fields)) = frame.split_first_chunk_mut::<HEAD>() {
            head[0] = kind;
            head[4..8].copy_from_slice(&len.to_be_bytes());
            let crc = checksum(head, fields, if kind == RECORDS { &[] } else { body });
            head[8..].copy_from_slice(&crc.to_be_bytes());
        }
        frame
    }

    /// The whole frame.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut frame = self.head();
        if let Self::Data { bytes, .. } = self {
            frame.extend_from_slice(bytes);
        }
        frame
    }
}

/// Whether a group can be there: others are not told of, and not believed.
pub(crate) fn is_plausible(one: &GroupOffset) -> bool {
    let GroupOffset { group, topic, queue_id, next } = one;
    check_offset_names(group, topic, *queue_id).is_ok() && *next <= QUEUE_OFFSET_MAX
}

fn checksum(head: &[u8; HEAD], fields: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..8]);
    hasher.update(fields);
    hasher.update(body);
    hasher.finalize()
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn name(&mut self, len: u8) -> Option<String> {
        let (name, rest) = self.0.split_at_checked(len.into())?;
        self.0 = rest;
        Some(str::from_utf8(name).ok()?.to_owned())
    }

    fn offset(&mut self) -> Option<GroupOffset> {
        let [topic_len, group_len] = self.array()?;
        let (queue_id, next) = (self.u32()?.cast_signed(), self.u64()?);
        let (topic, group) = (self.name(topic_len)?, self.name(group_len)?);
        Some(GroupOffset { group, topic, queue_id, next }).filter(is_plausible)
    }

    /// The last number of all is nobody's: no primary could follow.
    fn reign(&mut self) -> Option<Epoch> {
        self.u64().map(Epoch).filter(|epoch| *epoch < epoch.next())
    }

    fn epoch(&mut self) -> Option<EpochStart> {
        let (epoch, start, node) = (self.reign()?, self.u64()?, NodeId(self.u64()?));
        let record_crc = match self.u32()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(EpochStart { epoch, start, node, record_crc })
    }

    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

fn decode(kind: u8, payload: &[u8]) -> Option<Frame<'_>> {
    let mut fields = Reader(payload);
    let frame = match kind {
        1 => {
            if fields.array()? != MAGIC {
                return None;
            }
            Frame::Hello { version: fields.u32()?, nonce: fields.array()? }
        }
        2 => Frame::Challenge { nonce: fields.array()? },
        3 => Frame::Proof(fields.array()?),
        4 => Frame::Proven(fields.array()?),
        5 => Frame::Join(decode_join(&mut fields)?),
        6 => {
            let log = LogId::new(fields.u64()?)?;
            let (epoch, code, offset) = (fields.epoch()?, fields.u32()?, fields.u64()?);
            let plan = match code {
                0 => Plan::Follow(offset),
                1 => Plan::Truncate(offset),
                2 => Plan::Restart(offset),
                3 => Plan::Diverged,
                _ => return None,
            };
            Frame::Welcome { log, epoch, plan }
        }
        7 => Frame::Refuse { code: fields.u32()?, details: [fields.u64()?, fields.u64()?] },
        8 => Frame::Begin { from: fields.u64()?, len: fields.u64()?, crc: fields.u32()? },
        DATA | RECORDS => {
            let are_records = kind == RECORDS;
            let epoch = fields.epoch().filter(|epoch| epoch.record_crc || !are_records)?;
            let (offset, confirmed) = (fields.u64()?, fields.u64()?);
            Frame::Data { epoch, offset, confirmed, bytes: fields.rest(), are_records }
        }
        10 => {
            let (epoch, written, durable) = (fields.reign()?, fields.u64()?, fields.u64()?);
            Frame::Ack { epoch, written, durable }
        }
        11 => Frame::Lend { from: fields.u64()? },
        12 => {
            let (left, mut queues) = (fields.u32()?, Vec::new());
            while !fields.0.is_empty() {
                queues.push(take_row(&mut fields.0)?);
            }
            Frame::Queues { left, queues }
        }
        13 => {
            let (end, whole, left) = (fields.u64()?, fields.u32()?, fields.u32()?);
            let mut offsets = Vec::new();
            while !fields.0.is_empty() {
                offsets.push(fields.offset()?);
            }
            let whole = match whole {
                0 => false,
                1 => true,
                _ => return None,
            };
            Frame::Offsets { end, whole, left, offsets }
        }
        _ => return None,
    };
    fields.end()?;
    Some(frame)
}

fn decode_join(fields: &mut Reader<'_>) -> Option<Join> {
    let (cluster, node, instance) = (fields.u64()?, NodeId(fields.u64()?), fields.u64()?);
    let (segment_size, id) = (fields.u64()?, LogId::new(fields.u64()?));
    let (min, end, confirmed) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let promised = fields.reign()?;
    let mut epochs = Vec::with_capacity(fields.0.len() / EPOCH);
    while !fields.0.is_empty() {
        epochs.push(fields.epoch()?);
    }
    let ordered = epochs.is_sorted_by(|a, b| a.epoch < b.epoch && a.start < b.start);
    let history = History { id, epochs, min, end, confirmed };
    let sound = ordered && min <= end && history.epochs.last().is_none_or(|last| last.start <= end);
    sound.then_some(Join { cluster, node, instance, segment_size, promised, history })
}

/// The frame at the front of `inbox`, if all of it is there; its payload may be `max` bytes long.
pub(crate) fn next_frame(inbox: &mut Inbox, max: u32) -> Result<Option<Frame<'_>>, WireError> {
    let Some(head) = inbox.bytes().first_chunk::<HEAD>() else { return Ok(None) };
    let [kind, zeros @ .., a, b, c, d, e, f, g, h] = *head;
    let (len, crc) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    if len > max {
        return Err(WireError::TooLong { len, max });
    }
    if zeros != [0; 3] {
        return Err(WireError::Malformed);
    }
    let Some(frame) = inbox.take(HEAD + len as usize) else { return Ok(None) };
    let Some((head, payload)) = frame.split_first_chunk::<HEAD>() else { return Ok(None) };
    let covered = match payload.get(..DATA_FIELDS) {
        Some(fields) if kind == RECORDS => fields,
        _ => payload,
    };
    if checksum(head, covered, &[]) != crc {
        return Err(WireError::Checksum);
    }
    decode(kind, payload).map(Some).ok_or(WireError::Malformed)
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { len, max } => {
                write!(f, "a frame of {len} bytes, over the limit of {max}")
            }
            Self::Checksum => f.write_str("a frame whose checksum does not match"),
            Self::Malformed => f.write_str("bytes that are no frame"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inbox::READ_AHEAD;
    use super::*;
    use proptest::prelude::*;
    use std::io::{self, Read};
    use std::num::NonZeroU64;

    fn epochs() -> impl Strategy<Value = Vec<EpochStart>> {
        prop::collection::vec((1u64..9, 1u64..99, any::<u64>(), any::<bool>()), 0..5).prop_map(
            |steps| {
                let (mut epoch, mut start) = (0, 0);
                let next = |(more, grown, node, record_crc)| {
                    (epoch, start) = (epoch + more, start + grown);
                    EpochStart { epoch: Epoch(epoch), start, node: NodeId(node), record_crc }
                };
                steps.into_iter().map(next).collect()
            },
        )
    }

    fn join() -> impl Strategy<Value = Frame<'static>> {
        (epochs(), any::<[u64; 7]>(), 0u64..500).prop_map(|(epochs, numbers, behind)| {
            let [cluster, node, instance, segment_size, promised, id, confirmed] = numbers;
            let (id, end) =
                (LogId::new(id % 9), epochs.last().map_or(0, |last| last.start) + behind);
            let history = History { id, epochs, min: end / 2, end, confirmed };
            let (node, promised) = (NodeId(node), Epoch(promised >> 1));
            Frame::Join(Join { cluster, node, instance, segment_size, promised, history })
        })
    }

    fn frames() -> impl Strategy<Value = Frame<'static>> {
        let epoch =
            (any::<[u64; 3]>(), any::<bool>()).prop_map(|([epoch, start, node], record_crc)| {
                let epoch = Epoch(epoch >> 1);
                EpochStart { epoch, start, node: NodeId(node), record_crc }
            });
        let plan = prop_oneof![
            any::<u64>().prop_map(Plan::Follow),
            any::<u64>().prop_map(Plan::Truncate),
            any::<u64>().prop_map(Plan::Restart),
            Just(Plan::Diverged),
        ];
        prop_oneof![
            (any::<u32>(), any::<Nonce>())
                .prop_map(|(version, nonce)| Frame::Hello { version, nonce }),
            any::<Nonce>().prop_map(|nonce| Frame::Challenge { nonce }),
            any::<Proof>().prop_map(Frame::Proof),
            any::<Proof>().prop_map(Frame::Proven),
            join(),
            (any::<NonZeroU64>(), epoch.clone(), plan)
                .prop_map(|(log, epoch, plan)| Frame::Welcome { log: LogId(log), epoch, plan }),
            any::<(u32, [u64; 2])>().prop_map(|(code, details)| Frame::Refuse { code, details }),
            any::<(u64, u64, u32)>().prop_map(|(from, len, crc)| Frame::Begin { from, len, crc }),
            (epoch, any::<(u64, u64, bool)>(), 0usize..300).prop_map(
                |(epoch, (offset, confirmed, are_records), len)| {
                    let (bytes, are_records) = (&[7; 300][..len], epoch.record_crc && are_records);
                    Frame::Data { epoch, offset, confirmed, bytes, are_records }
                }
            ),
            any::<(u64, u64, u64)>().prop_map(|(epoch, written, durable)| {
                Frame::Ack { epoch: Epoch(epoch >> 1), written, durable }
            }),
            any::<u64>().prop_map(|from| Frame::Lend { from }),
            (any::<u32>(), prop::collection::vec(("[a-z%_]{1,40}", 0i32.., 0u64..1 << 40), 0..9))
                .prop_map(|(left, rows)| {
                    let start = |(topic, queue_id, offset)| QueueStart { topic, queue_id, offset };
                    Frame::Queues { left, queues: rows.into_iter().map(start).collect() }
                }),
            (
                any::<(u64, bool, u32)>(),
                prop::collection::vec(
                    ("[a-z_]{1,40}", "[a-z%_]{1,40}", 0i32.., 0u64..1 << 40),
                    0..9
                )
            )
                .prop_map(|((end, whole, left), rows)| {
                    let row = |(group, topic, id, next)| GroupOffset::new(group, topic, id, next);
                    Frame::Offsets {
                        end,
                        whole,
                        left,
                        offsets: rows.into_iter().map(row).collect(),
                    }
                }),
        ]
    }

    /// Gives away a few bytes at a time.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(buf.len()).min(self.0.len());
            let (given, rest) = self.0.split_at(len);
            buf[..len].copy_from_slice(given);
            self.0 = rest;
            Ok(len)
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            sent in prop::collection::vec(frames(), 1..8), drop in 1usize..200
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
            let (mut inbox, mut from, mut received) = (Inbox::default(), Drops(&bytes, drop), 0);
            while received < sent.len() {
                match next_frame(&mut inbox, FRAME_MAX).expect("they are sound") {
                    Some(frame) => {
                        prop_assert_eq!(&frame, &sent[received]);
                        received += 1;
                    }
                    None => prop_assert!(inbox.fill(&mut from).expect("a slice can be read") > 0),
                }
            }
        }

        #[test]
        fn a_flipped_bit_is_never_a_frame(sent in frames(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = sent.encode();
            let verified = if bytes[0] == RECORDS { HEAD + DATA_FIELDS } else { bytes.len() };
            let at = at.index(verified);
            bytes[at] ^= 1u8 << bit;
            let (mut inbox, mut from) = (Inbox::default(), &bytes[..]);
            while inbox.fill(&mut from).expect("readable") > 0 {}
            prop_assert!(!matches!(next_frame(&mut inbox, FRAME_MAX), Ok(Some(_))));
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (mut inbox, mut from) = (Inbox::default(), &bytes[..]);
            loop {
                match next_frame(&mut inbox, STRANGER_MAX) {
                    Ok(Some(_)) => {}
                    Ok(None) => if inbox.fill(&mut from).expect("readable") == 0 { break },
                    Err(_) => break,
                }
            }
            prop_assert!(inbox.capacity() <= READ_AHEAD);
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_allocated() {
        let mut bytes = Frame::Challenge { nonce: [0; 16] }.encode();
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut inbox = Inbox::default();
        inbox.fill(&mut &bytes[..]).expect("readable");
        let refused = WireError::TooLong { len: u32::MAX, max: STRANGER_MAX };
        assert_eq!(next_frame(&mut inbox, STRANGER_MAX), Err(refused));
        assert!(inbox.capacity() <= READ_AHEAD);
    }

    #[test]
    fn an_epoch_that_none_can_follow_is_malformed() {
        for (epoch, answer) in [(u64::MAX - 1, Ok(true)), (u64::MAX, Err(WireError::Malformed))] {
            let frame = Frame::Ack { epoch: Epoch(epoch), written: 0, durable: 0 }.encode();
            let mut inbox = Inbox::default();
            inbox.fill(&mut &frame[..]).expect("readable");
            let heard = next_frame(&mut inbox, FRAME_MAX).map(|frame| frame.is_some());
            assert_eq!(heard, answer, "epoch {epoch}");
        }
    }
}
