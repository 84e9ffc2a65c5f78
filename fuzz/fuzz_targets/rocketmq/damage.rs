//! From bytes to damage.
//!
//! An edit is ten bytes: what to do, to which file, where (two bytes and one for the last few bytes),
//! how many bytes (two bytes), a value, a number and another file. In a segment, half of the places are
//! told from the beginning of a record. None of the edits writes bytes of the input's choice beyond a
//! number, so that no edit can compose a valid record. With `DURALOG_TELL` set the edits are printed,
//! for a look at an input that fails.

use crate::check::{Damage, Sample};
use crate::image::Image;

const EDITS_MAX: usize = 8;
const EDIT_LEN: usize = 10;
/// Names that a file can be given besides those that are there.
const NAMES: [&str; 16] = [
    "commitlog/00000000000000000000",
    "commitlog/00000000000000065536",
    "commitlog/00000000000000262144",
    "commitlog/00000000000000000100",
    "commitlog/09223372036854710272",
    "commitlog/garbage",
    "consumequeue/KillTopic0/0/00000000000000001000",
    "consumequeue/KillTopic0/7/00000000000000000000",
    "consumequeue/invented/0/00000000000000000000",
    "index/00000000000000001",
    "index/99999999999999999",
    "index/garbage",
    "abort",
    "checkpoint",
    "lock",
    "duralog/cut.tmp",
];
/// Numbers that lengths, offsets, times and counts may be mistaken about.
const NUMBERS: [i64; 12] = [
    0,
    1,
    -1,
    i64::MAX,
    i64::MIN,
    0x7fff_ffff,
    0xffff_ffff,
    0x8000_0000,
    91,
    65_536,
    1 << 40,
    i64::MAX - 1,
];

pub fn inflict(sample: &Sample, edits: &[u8]) -> Damage {
    let mut image = sample.image.clone();
    let mut forged = false;
    let tells = std::env::var_os("DURALOG_TELL").is_some();
    for edit in edits.chunks_exact(EDIT_LEN).take(EDITS_MAX) {
        let mut edit = Edit::new(edit, sample, &image);
        if tells {
            println!("{edit:?}");
        }
        forged |= edit.apply(&mut image, &sample.earlier);
    }
    Damage::new(sample, image, forged)
}

#[derive(Debug)]
struct Edit {
    what: u8,
    file: String,
    other: String,
    at: usize,
    len: usize,
    value: u8,
    number: u8,
}

impl Edit {
    fn new(bytes: &[u8], sample: &Sample, image: &Image) -> Self {
        let names: Vec<_> = image.0.keys().map(String::as_str).chain(["nothing"]).collect();
        let name = |index: u8| names[usize::from(index) % names.len()].to_owned();
        let file = name(bytes[1]);
        let room = image.0.get(&file).map_or(0, Vec::len);
        let place = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        let record = (place >= 0x8000).then(|| record_in(sample, &file, place & 0x7fff)).flatten();
        let start = record.unwrap_or((place & 0x7fff) * room / 0x8000);
        Self {
            what: bytes[0] % 15,
            other: name(bytes[9]),
            at: (start + usize::from(bytes[4])) % (room + 1),
            len: usize::from(u16::from_be_bytes([bytes[5], bytes[6]])),
            value: bytes[7],
            number: bytes[8],
            file,
        }
    }

    /// Edits `image`; true if a file has been made to vouch for something it did not say before.
    fn apply(&mut self, image: &mut Image, earlier: &Image) -> bool {
        let Some(mut bytes) = image.0.remove(&self.file) else { return false };
        let (at, end) = (self.at, (self.at + self.len).min(bytes.len()));
        match self.what {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= self.value.max(1);
                }
            }
            2 => bytes[at..end].fill(self.value),
            3 => self.copy_from_other(&mut bytes, image),
            4 => {
                let garbage = self.garbage();
                std::iter::zip(&mut bytes[at..end], garbage).for_each(|(byte, new)| *byte = new);
            }
            5 => bytes.truncate(at),
            6 => return false,
            7 => bytes.resize(bytes.len() + self.len % 8192, 0),
            8 => bytes.extend(self.garbage().take(self.len % 8192)),
            9 => drop(image.0.insert(self.new_name(), bytes.clone())),
            10 => {
                if let Some(other) = image.0.get_mut(&self.other) {
                    std::mem::swap(other, &mut bytes);
                }
            }
            11 => match earlier.0.get(&self.file) {
                Some(old) => bytes.clone_from(old),
                None => return false,
            },
            12 => {
                let before = bytes.clone();
                seal(&self.file, &mut bytes);
                let changed = bytes != before;
                image.0.insert(self.file.clone(), bytes);
                return changed;
            }
            13 => {
                let number = NUMBERS[usize::from(self.number) % NUMBERS.len()];
                let number = number.wrapping_add(i64::from(self.value.cast_signed()));
                let wide = number.to_be_bytes();
                let number = if self.len.is_multiple_of(2) { &wide[..] } else { &wide[4..] };
                let place = bytes.iter_mut().skip(at);
                std::iter::zip(place, number).for_each(|(byte, new)| *byte = *new);
            }
            _ => {
                image.0.insert(self.new_name(), bytes);
                return false;
            }
        }
        image.0.insert(self.file.clone(), bytes);
        false
    }

    fn new_name(&self) -> String {
        NAMES[usize::from(self.number) % NAMES.len()].to_owned()
    }

    fn copy_from_other(&self, bytes: &mut [u8], image: &Image) {
        let Some(other) = image.0.get(&self.other) else { return };
        let from = usize::from(self.value) * 20 % (other.len() + 1);
        let copied = std::iter::zip(&mut bytes[self.at..], &other[from..]);
        copied.take(self.len % 2048).for_each(|(byte, new)| *byte = *new);
    }

    fn garbage(&self) -> impl Iterator<Item = u8> + use<> {
        let mut state = u64::from(self.value) << 8 | u64::from(self.number);
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (state >> 40) as u8
        })
    }
}

/// Where one of the messages begins that lie in a segment.
fn record_in(sample: &Sample, file: &str, which: usize) -> Option<usize> {
    let base: u64 = file.strip_prefix("commitlog/")?.parse().ok()?;
    let size = sample.image.0.get(file)?.len() as u64;
    let offsets = sample.messages.values().map(|known| known.physical_offset);
    let mut here: Vec<u64> =
        offsets.filter(|at| (base..base.checked_add(size).unwrap_or(base)).contains(at)).collect();
    here.sort_unstable();
    let at = here.get(which.checked_rem(here.len())?)?;
    Some((at - base) as usize)
}

/// Makes the checksums of duralog's own files match what they say.
fn seal(name: &str, bytes: &mut [u8]) {
    let pieces = match name {
        "duralog/checkpoint" => bytes.chunks_exact_mut(512),
        "duralog/queues" | "duralog/index" if !bytes.is_empty() => {
            bytes.chunks_exact_mut(bytes.len())
        }
        _ => return,
    };
    for piece in pieces {
        if let Some((fields, checksum)) = piece.split_last_chunk_mut::<4>() {
            *checksum = crc32fast::hash(fields).to_be_bytes();
        }
    }
}
