//! The protocol of RocketMQ's classic HA service (`DefaultHAService`), 4.9 and 5.
//!
//! ```text
//! slave -> master: offset i64                    where it wants to go on, then what it holds
//! master -> slave: offset i64, size i32, bytes   size 0 is a heartbeat
//! ```
//!
//! All integers are big endian. There is no greeting and no checksum; who is at the other end, and
//! whether it has the same log, nobody knows. What can be checked is checked: a master here gives nothing
//! outside of its log, and believes no acknowledgement of what it has not sent; a slave here takes over
//! records that are whole and sound, at its end, and nothing else. It asks first for some of what it has,
//! and compares: a master that lost its tail, or another one, sends other bytes or none.

mod master;
mod slave;

pub(crate) use master::MasterSession;
pub(crate) use slave::SlaveSession;

/// The length of a slave's report.
const REPORT: usize = 8;
/// What stands before the bytes of the log.
const HEAD: usize = 12;
/// Most bytes that a master sends at once, RocketMQ's `haTransferBatchSize`. A RocketMQ slave has room for
/// 4 MiB, head included.
const BATCH_MAX: u64 = 32 << 10;
/// Most bytes that a slave here accepts at once.
const FRAME_MAX: usize = 4 << 20;
