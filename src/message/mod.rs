//! Messages and the records they are stored as.
//!
//! A put goes [`Message`] → [`Draft`] → bytes: the draft is validated and checksummed before the
//! append lock is taken, and inside it only gets its [`Stamp`]. A read goes bytes → [`frame`] →
//! [`RecordRef`], which borrows, → [`StoredMessage`], which owns.
//!
//! The bytes are those of Apache RocketMQ 4.9 and 5. Everything here is total: any bytes decode to
//! a value or a [`Corruption`](crate::Corruption), and what decodes encodes to the same bytes.

mod batch;
mod compression;
mod crc;
mod draft;
mod filler;
pub mod format;
mod frame;
mod header;
mod host;
mod ids;
#[expect(clippy::module_inception, reason = "one noun, one file")]
mod message;
mod properties;
mod record;
mod stored;
mod sys_flag;
mod tags;
#[cfg(test)]
mod testing;
mod wire;

pub use batch::{BatchEntry, decode_batch, encode_batch};
pub(crate) use draft::check_topic;
pub use draft::{Draft, RecordLayout, Stamp};
pub(crate) use filler::{filler, is_filler};
pub use frame::{Frame, blank, frame};
pub(crate) use frame::{candidates, verified_frame, whole_body_end};
pub use header::RecordVersion;
pub use host::Host;
pub use ids::{OffsetMessageId, UniqueKey};
pub use message::Message;
pub use properties::{Properties, PropertiesRef, names};
pub(crate) use record::{Parts, queue_offset};
pub use record::{RecordCheck, RecordRef};
pub use stored::StoredMessage;
pub use sys_flag::{Compression, SysFlag, Transaction};
pub(crate) use tags::index_hash;
pub use tags::java_string_hash;
pub use wire::Sink;
