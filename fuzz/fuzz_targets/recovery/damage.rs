//! From bytes to damage.
//!
//! An edit is eight bytes: what to do, to which file, where (two bytes), how many bytes (two bytes),
//! and two numbers that it may use. None of them writes bytes of the input's choice beyond one value,
//! so that no edit can compose a valid record. With `DURALOG_TELL` set the edits are printed, for a
//! look at an input that fails.

use crate::check::{Damage, Sample};
use crate::image::Image;

const EDITS_MAX: usize = 8;
const EDIT_LEN: usize = 8;
const CHECKPOINT: &str = "duralog/checkpoint";
const QUEUES: &str = "duralog/queues";
/// Names that a file can be given besides those that are there.
const NAMES: [&str; 12] = [
    "commitlog/00000000000000000000",
    "commitlog/00000000000000004096",
    "commitlog/00000000000000012288",
    "commitlog/00000000000000024576",
    "commitlog/00000000000000000100",
    "commitlog/garbage",
    "consumequeue/orders/0/00000000000000000400",
    "consumequeue/orders/7/00000000000000000000",
    "consumequeue/invented/0/00000000000000000000",
    "consumequeue/or ders/x/y",
    "duralog/queues",
    "duralog/abort.tmp",
];

pub fn inflict(sample: &Sample, edits: &[u8]) -> Damage {
    let mut image = sample.image.clone();
    let mut forged = false;
    let tells = std::env::var_os("DURALOG_TELL").is_some();
    for edit in edits.chunks_exact(EDIT_LEN).take(EDITS_MAX) {
        let mut edit = Edit::new(edit, &image);
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
    fn new(bytes: &[u8], image: &Image) -> Self {
        let name = |index: u8| {
            let names = image.0.keys().map(String::as_str).chain(["commitlog/garbage"]);
            let names: Vec<_> = names.collect();
            names[usize::from(index) % names.len()].to_owned()
        };
        let file = name(bytes[1]);
        let room = image.0.get(&file).map_or(0, Vec::len) + 1;
        Self {
            what: bytes[0] % 13,
            other: name(bytes[7]),
            at: usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) % room,
            len: usize::from(u16::from_be_bytes([bytes[4], bytes[5]])),
            value: bytes[6],
            number: bytes[7],
            file,
        }
    }

    /// Edits `image`; true if a file has been made to vouch for something it did not say before.
    fn apply(&mut self, image: &mut Image, earlier: &Image) -> bool {
        let Some(mut bytes) = image.0.remove(&self.file) else { return false };
        let (at, end) = (self.at, (self.at + self.len).min(bytes.len()));
        match self.what {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= self.value.max(1);
                }
            }
            1 => bytes[at..end].fill(self.value),
            2 => self.copy_from_other(&mut bytes, image),
            3 => {
                let garbage = self.garbage();
                std::iter::zip(&mut bytes[at..end], garbage).for_each(|(byte, new)| *byte = new);
            }
            4 => bytes.truncate(at),
            5 => return false,
            6 => bytes.resize(bytes.len() + self.len % 8192, 0),
            7 => bytes.extend(self.garbage().take(self.len % 8192)),
            8 => drop(image.0.insert(self.new_name(), bytes.clone())),
            9 => {
                if let Some(other) = image.0.get_mut(&self.other) {
                    std::mem::swap(other, &mut bytes);
                }
            }
            10 => match earlier.0.get(&self.file) {
                Some(old) => bytes.clone_from(old),
                None => return false,
            },
            11 => {
                let before = bytes.clone();
                seal(&self.file, &mut bytes);
                let changed = bytes != before;
                image.0.insert(self.file.clone(), bytes);
                return changed;
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
        let from = usize::from(self.value) * 16 % (other.len() + 1);
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

/// Makes the checksums of duralog's own files match what they say.
fn seal(name: &str, bytes: &mut [u8]) {
    let pieces = match name {
        CHECKPOINT => bytes.chunks_exact_mut(512),
        QUEUES if !bytes.is_empty() => bytes.chunks_exact_mut(bytes.len()),
        _ => return,
    };
    for piece in pieces {
        if let Some((fields, checksum)) = piece.split_last_chunk_mut::<4>() {
            *checksum = crc32fast::hash(fields).to_be_bytes();
        }
    }
}
