//! A broker's configuration file as settings of a store, with an account of every key in it.

use super::broker_keys;
use super::properties::{self, flag};
use super::{FlushMode, Retention, StoreConfig, Threshold, Visibility, WriteMode, refused};
use crate::error::Result;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// What came of a key in a broker's configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Treatment {
    /// The settings say so now.
    Honoured,
    /// The settings say so now, with another number, as RocketMQ has it: it rounds up the size of a
    /// queue file and keeps shares of the disk within bounds.
    Adjusted {
        /// The number.
        to: u64,
    },
    /// It says how the store is replicated: [`BrokerConf::replication`] has it, a store alone does not look
    /// at it.
    Replication,
    /// What the value asks for is what this crate does in any case.
    Inherent,
    /// RocketMQ knows the key; it, or this value of it, changes nothing here.
    NotApplicable {
        /// Why not.
        reason: &'static str,
    },
    /// A later line has the same key, and counts.
    Overridden {
        /// That line, from 1.
        by_line: usize,
    },
    /// RocketMQ does not know the key either.
    Unknown,
}

/// A key of a broker's configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerKey {
    /// The line it stands on, from 1.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// Its value, without the comment after it.
    pub value: String,
    /// What came of it.
    pub treatment: Treatment,
}

/// A broker's configuration file, read by [`StoreConfig::from_properties`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BrokerConf {
    /// The settings of the store.
    pub config: StoreConfig,
    /// How it is replicated, for `PrimaryOptions` and `ReplicaOptions` of the feature `replication`.
    pub replication: BrokerReplication,
    /// What came of every key, in the order of the file.
    pub keys: Vec<BrokerKey>,
}

/// What a broker is among those that hold the same messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BrokerRole {
    /// Puts do not wait for slaves. RocketMQ's default.
    #[default]
    AsyncMaster,
    /// Puts wait for slaves.
    SyncMaster,
    /// It follows a master.
    Slave,
}

/// What a broker's configuration file says of replication; `None` where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BrokerReplication {
    /// `brokerRole`.
    pub role: Option<BrokerRole>,
    /// `haListenPort`.
    pub listen_port: Option<u16>,
    /// `haMasterAddress`.
    pub master_address: Option<String>,
    /// `haSendHeartbeatInterval`.
    pub heartbeat_interval: Option<Duration>,
    /// `haHousekeepingInterval`.
    pub housekeeping_interval: Option<Duration>,
    /// `haMaxGapNotInSync`, or `haSlaveFallbehindMax` as 4.9 calls it, in bytes.
    pub max_lag: Option<u64>,
    /// `inSyncReplicas`, the master among them.
    pub in_sync_replicas: Option<u32>,
}

impl BrokerConf {
    /// The keys that changed nothing though their value asks for something: those not applicable and
    /// those unknown. Worth a line in a log each.
    pub fn ignored(&self) -> impl Iterator<Item = &BrokerKey> {
        self.keys.iter().filter(|key| {
            matches!(key.treatment, Treatment::NotApplicable { .. } | Treatment::Unknown)
        })
    }
}

impl fmt::Display for BrokerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, name, value, treatment } = self;
        write!(f, "line {line}: {name} = {value}: {treatment}")
    }
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Honoured => f.write_str("honoured"),
            Self::Adjusted { to } => write!(f, "honoured, as {to}"),
            Self::Replication => f.write_str("in `BrokerConf::replication`"),
            Self::Inherent => f.write_str("so in any case"),
            Self::NotApplicable { reason } => write!(f, "not applicable: {reason}"),
            Self::Overridden { by_line } => write!(f, "overridden by line {by_line}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Settings from a broker's configuration file.
impl StoreConfig {
    /// The settings that a broker's configuration file, a `broker.conf`, asks for.
    ///
    /// Every key is accounted for in [`BrokerConf::keys`]; those that RocketMQ 4.0 to 5.3 knows are
    /// known here. The format is Java's `.properties`, and a comment may stand after a value: `#` or
    /// `//` with white space before it.
    ///
    /// What the file does not say has the default of this crate, not RocketMQ's, which is weaker: the
    /// store flushes synchronously and deletes nothing. `flushDiskType = ASYNC_FLUSH` is RocketMQ's
    /// own ([`FlushMode::rocketmq_async`]), so that a few pages may stay unsynced for 10 s unless
    /// `flushCommitLogThoroughInterval` says otherwise. `fileReservedTime`, `deleteWhen` and the shares
    /// of the disk switch on [`Retention::rocketmq`].
    ///
    /// ```
    /// use duralog::{FlushMode, StoreConfig};
    /// use std::time::Duration;
    ///
    /// let conf = StoreConfig::from_properties(
    ///     "storePathRootDir = /data/store
    ///      flushDiskType = SYNC_FLUSH   // sync
    ///      syncFlushTimeout=3000  # ms
    ///      sendMessageThreadPoolNums = 16",
    /// )?;
    /// assert_eq!(conf.config.flush_mode, FlushMode::Sync { timeout: Duration::from_secs(3) });
    /// for key in conf.ignored() {
    ///     println!("{key}");
    /// }
    /// # assert_eq!(conf.ignored().count(), 1);
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) where a value cannot be what it should be, or asks for
    /// what a store here cannot have, and where `storePathRootDir` is missing: RocketMQ's `~/store` is
    /// not guessed, see [`with_properties`](Self::with_properties).
    pub fn from_properties(text: &str) -> Result<BrokerConf> {
        let conf = Self::new("").with_properties(text)?;
        if conf.config.log.dir.as_os_str().is_empty() {
            return refused("storePathRootDir", "missing", "the directory of the store");
        }
        Ok(conf)
    }

    /// These settings with what a broker's configuration file asks for in their place. As
    /// [`from_properties`](Self::from_properties), but what the file does not say stays, the directory
    /// too.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) where a value cannot be what it should be.
    pub fn with_properties(self, text: &str) -> Result<BrokerConf> {
        let entries = properties::parse(text)?;
        let last: HashMap<_, _> =
            entries.iter().map(|entry| (entry.key.clone(), entry.line)).collect();
        let mut wanted = Wanted::new(self);
        let mut keys = Vec::with_capacity(entries.len());
        for properties::Entry { line, key: name, value } in entries {
            let treatment = match last.get(&name) {
                Some(&by_line) if by_line != line => Treatment::Overridden { by_line },
                _ => wanted.apply(&name, &value)?,
            };
            keys.push(BrokerKey { line, name, value, treatment });
        }
        let replication = std::mem::take(&mut wanted.replication);
        let config = wanted.settle(&mut keys)?;
        config.validate()?;
        Ok(BrokerConf { config, replication, keys })
    }
}

/// What to do about a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// A setting follows from it.
    Set(Setter),
    /// This value is what happens anyway; no other is possible, and why.
    Only(&'static str, &'static str),
    /// Nothing, and why.
    No(&'static str),
}

pub(super) type Setter = fn(&mut Wanted, Given<'_>) -> Result<Treatment>;

/// The value of a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    key: &'static str,
    text: &'a str,
}

impl Given<'_> {
    fn refused<T>(self, allowed: &'static str) -> Result<T> {
        refused(self.key, format!("{:?}", self.text), allowed)
    }

    fn integer(self, range: RangeInclusive<u32>, allowed: &'static str) -> Result<u32> {
        match self.text.parse() {
            Ok(value) if range.contains(&value) => Ok(value),
            _ => self.refused(allowed),
        }
    }

    fn millis(self) -> Result<Duration> {
        let value = self.integer(1..=3_600_000, "1 to 3600000 milliseconds")?;
        Ok(Duration::from_millis(value.into()))
    }

    fn flag(self) -> Result<bool> {
        flag(self.text).map_or_else(|| self.refused("true or false"), Ok)
    }

    /// A share of the disk in percent; RocketMQ takes what is outside `range` for its end.
    fn percent(self, range: RangeInclusive<u8>) -> Result<(Threshold, Treatment)> {
        let Ok(asked) = self.text.parse::<i32>() else { return self.refused("a share in percent") };
        let clamped = asked.clamp((*range.start()).into(), (*range.end()).into());
        let percent = u8::try_from(clamped).unwrap_or(*range.end());
        let treatment = match clamped == asked {
            true => Treatment::Honoured,
            false => Treatment::Adjusted { to: percent.into() },
        };
        Ok((Threshold::UsedPercent(percent), treatment))
    }
}

const HONOURED: Result<Treatment> = Ok(Treatment::Honoured);

/// Settings under way, and what can only be settled when the whole file is read.
#[derive(Debug)]
pub(super) struct Wanted {
    config: StoreConfig,
    replication: BrokerReplication,
    retention: Retention,
    retention_asked: bool,
    clean_forcibly: bool,
    commit_log_dir: Option<String>,
    flush_type: Option<FlushMode>,
    sync_timeout: Option<Duration>,
    interval: Option<Duration>,
    least_pages: Option<u32>,
    thorough_interval: Option<Duration>,
}

impl Wanted {
    fn new(config: StoreConfig) -> Self {
        Self {
            retention: config.retention.clone().unwrap_or_else(Retention::rocketmq),
            retention_asked: config.retention.is_some(),
            config,
            replication: BrokerReplication::default(),
            clean_forcibly: true,
            commit_log_dir: None,
            flush_type: None,
            sync_timeout: None,
            interval: None,
            least_pages: None,
            thorough_interval: None,
        }
    }

    fn apply(&mut self, name: &str, text: &str) -> Result<Treatment> {
        let Some((key, kind, rule)) = broker_keys::find(name) else {
            return Ok(Treatment::Unknown);
        };
        kind.check(key, text)?;
        match rule {
            Rule::Set(set) => set(self, Given { key, text }),
            Rule::Only(value, _) if text.eq_ignore_ascii_case(value) => Ok(Treatment::Inherent),
            Rule::Only(_, reason) | Rule::No(reason) => Ok(Treatment::NotApplicable { reason }),
        }
    }

    /// Puts together what several keys say, and takes back what others leave without meaning.
    fn settle(self, keys: &mut [BrokerKey]) -> Result<StoreConfig> {
        let mut moot = |names: &[&str], reason| {
            for key in keys.iter_mut().filter(|key| names.contains(&key.name.as_str())) {
                if matches!(key.treatment, Treatment::Honoured | Treatment::Adjusted { .. }) {
                    key.treatment = Treatment::NotApplicable { reason };
                }
            }
        };
        let Self { mut config, mut retention, .. } = self;
        if let Some(dir) = self.commit_log_dir {
            // Components, so that a slash at the end or two in the middle make no difference.
            let only = config.log.dir.join("commitlog");
            if !Path::new(&dir).components().eq(only.components()) {
                return refused("storePathCommitLog", dir, "`commitlog` in storePathRootDir");
            }
        }
        config.flush_mode = match self.flush_type.unwrap_or(config.flush_mode) {
            FlushMode::Sync { timeout } => {
                moot(&ASYNC_ONLY, "puts wait for their own sync: flushDiskType is not ASYNC_FLUSH");
                FlushMode::Sync { timeout: self.sync_timeout.unwrap_or(timeout) }
            }
            FlushMode::Async { interval, least_pages, thorough_interval } => {
                moot(
                    &["syncFlushTimeout"],
                    "no put waits for a sync: flushDiskType is ASYNC_FLUSH",
                );
                FlushMode::Async {
                    interval: self.interval.unwrap_or(interval),
                    least_pages: self.least_pages.unwrap_or(least_pages),
                    thorough_interval: self.thorough_interval.unwrap_or(thorough_interval),
                }
            }
        };
        if !self.clean_forcibly {
            moot(&["diskSpaceCleanForciblyRatio"], "cleanFileForciblyEnable is false");
            retention.disk_clean_forcibly = None;
        }
        if self.retention_asked {
            config.retention = Some(retention);
        } else {
            moot(&RETENTION_ONLY, "nothing is deleted: no key says what is, or when");
        }
        Ok(config)
    }
}

/// Keys without a meaning under sync flush.
const ASYNC_ONLY: [&str; 3] =
    ["flushIntervalCommitLog", "flushCommitLogLeastPages", "flushCommitLogThoroughInterval"];

/// Keys that say how is deleted, not what.
const RETENTION_ONLY: [&str; 3] =
    ["cleanFileForciblyEnable", "cleanResourceInterval", "deleteFileBatchMax"];

pub(super) fn root_dir(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    if given.text.is_empty() {
        return given.refused("the directory of the store");
    }
    wanted.config.log.dir = given.text.into();
    HONOURED
}

pub(super) fn commit_log_dir(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.commit_log_dir = Some(given.text.to_owned());
    HONOURED
}

pub(super) fn segment_size(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let allowed = "a multiple of 4096 from 4096 to 1073741824";
    let size = given.integer(4096..=1 << 30, allowed)?;
    if !size.is_multiple_of(4096) {
        return given.refused(allowed);
    }
    wanted.config.log.segment_size = size.into();
    HONOURED
}

pub(super) fn queue_file_size(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let asked = given.integer(1..=1_073_741_820, "1 to 1073741820")?;
    let size = asked.next_multiple_of(20);
    wanted.config.consume_queue_file_size = size.into();
    match size == asked {
        true => HONOURED,
        false => Ok(Treatment::Adjusted { to: size.into() }),
    }
}

pub(super) fn flush_type(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.flush_type = Some(match given.text {
        "SYNC_FLUSH" => FlushMode::sync(),
        "ASYNC_FLUSH" => FlushMode::rocketmq_async(),
        _ => return given.refused("SYNC_FLUSH or ASYNC_FLUSH"),
    });
    HONOURED
}

pub(super) fn sync_timeout(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.sync_timeout = Some(given.millis()?);
    HONOURED
}

pub(super) fn interval(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.interval = Some(given.millis()?);
    HONOURED
}

pub(super) fn least_pages(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.least_pages = Some(given.integer(0..=i32::MAX as u32, "a number of pages")?);
    HONOURED
}

pub(super) fn thorough_interval(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let value = given.integer(0..=3_600_000, "0 to 3600000 milliseconds")?;
    // Every pass is thorough at 0, as it is at anything below the interval.
    wanted.thorough_interval = Some(Duration::from_millis(value.max(1).into()));
    HONOURED
}

pub(super) fn write_without_mmap(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    if !given.flag()? {
        let reason = "the faster way is chosen by the flush mode, see `write_mode`";
        return Ok(Treatment::NotApplicable { reason });
    }
    wanted.config.write_mode = Some(WriteMode::Pwrite);
    HONOURED
}

pub(super) fn max_message_size(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.log.max_message_size = given.integer(1..=512 << 20, "1 to 536870912")? as usize;
    HONOURED
}

const REPLICATION: Result<Treatment> = Ok(Treatment::Replication);

pub(super) fn role(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.replication.role = Some(match given.text {
        "ASYNC_MASTER" => BrokerRole::AsyncMaster,
        "SYNC_MASTER" => BrokerRole::SyncMaster,
        "SLAVE" => BrokerRole::Slave,
        _ => return given.refused("ASYNC_MASTER, SYNC_MASTER or SLAVE"),
    });
    REPLICATION
}

pub(super) fn ha_port(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    // What is not positive leaves the choice to the broker.
    wanted.replication.listen_port = match given.text.parse::<i32>() {
        Ok(port) if port <= 0 => None,
        Ok(port) => match u16::try_from(port) {
            Ok(port) => Some(port),
            Err(_) => return given.refused("0 to 65535"),
        },
        Err(_) => return given.refused("0 to 65535"),
    };
    REPLICATION
}

pub(super) fn ha_master(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.replication.master_address = Some(given.text.to_owned()).filter(|to| !to.is_empty());
    REPLICATION
}

pub(super) fn ha_heartbeat(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.replication.heartbeat_interval = Some(given.millis()?);
    REPLICATION
}

pub(super) fn ha_housekeeping(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.replication.housekeeping_interval = Some(given.millis()?);
    REPLICATION
}

pub(super) fn ha_max_gap(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let gap = given.integer(0..=i32::MAX as u32, "a number of bytes")?;
    wanted.replication.max_lag = Some(gap.into());
    REPLICATION
}

pub(super) fn in_sync_replicas(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.replication.in_sync_replicas = Some(given.integer(0..=64, "0 to 64")?);
    REPLICATION
}

pub(super) fn replica_timeout(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.sync_replica_timeout = given.millis()?;
    HONOURED
}

pub(super) fn offset_interval(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.consumer_offset_interval = given.millis()?;
    HONOURED
}

pub(super) fn auto_create_topic(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.auto_create_topic = given.flag()?;
    HONOURED
}

pub(super) fn topic_queue_nums(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let most = wanted.config.max_queues_per_topic.unsigned_abs();
    wanted.config.default_topic_queue_nums =
        given.integer(1..=most, "1 to max_queues_per_topic")?.cast_signed();
    HONOURED
}

pub(super) fn reserved_time(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let hours = given.integer(1..=i32::MAX as u32, "at least 1 hour")?;
    wanted.retention.file_reserved_time = Some(Duration::from_secs(u64::from(hours) * 3600));
    wanted.retention_asked = true;
    HONOURED
}

pub(super) fn delete_when(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let hour = |text: &str| text.trim().parse().ok().filter(|hour: &u8| *hour < 24);
    match given.text.split_terminator(';').map(hour).collect::<Option<Vec<_>>>() {
        // No hour at all would mean any hour.
        Some(hours) if !hours.is_empty() => wanted.retention.delete_when = hours,
        _ => return given.refused("hours from 00 to 23 with `;` between them"),
    }
    wanted.retention_asked = true;
    HONOURED
}

pub(super) fn max_used(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let (threshold, treatment) = given.percent(10..=95)?;
    wanted.retention.disk_max_used = Some(threshold);
    wanted.retention_asked = true;
    Ok(treatment)
}

pub(super) fn warning(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let (threshold, treatment) = given.percent(35..=90)?;
    wanted.retention.disk_warning = Some(threshold);
    wanted.retention_asked = true;
    Ok(treatment)
}

pub(super) fn clean_forcibly_ratio(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let (threshold, treatment) = given.percent(30..=85)?;
    wanted.retention.disk_clean_forcibly = Some(threshold);
    wanted.retention_asked = true;
    Ok(treatment)
}

pub(super) fn clean_forcibly(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.clean_forcibly = given.flag()?;
    HONOURED
}

pub(super) fn check_interval(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.retention.check_interval = given.millis()?;
    HONOURED
}

pub(super) fn delete_batch(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let files = given.integer(1..=i32::MAX as u32, "at least 1 file")?;
    wanted.retention.delete_batch_max = files as usize;
    HONOURED
}

pub(super) fn index_slots(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.index_slots = given.integer(1..=i32::MAX as u32, "at least 1")?;
    HONOURED
}

pub(super) fn index_items(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.index_items = given.integer(2..=i32::MAX as u32, "at least 2")?;
    HONOURED
}

pub(super) fn index_enable(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.index_enable = given.flag()?;
    HONOURED
}

pub(super) fn record_crc(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.log.record_crc = given.flag()?;
    HONOURED
}

pub(super) fn long_topics(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.log.long_topics = given.flag()?;
    HONOURED
}

pub(super) fn visibility(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    wanted.config.visibility = if given.flag()? { Visibility::Appended } else { Visibility::Safe };
    HONOURED
}

pub(super) fn store_ip(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    let Ok(ip) = given.text.parse::<IpAddr>() else {
        let reason = "records hold addresses, and host names are not looked up, see `store_host`";
        return Ok(Treatment::NotApplicable { reason });
    };
    wanted.config.log.store_host.set_ip(ip);
    HONOURED
}

pub(super) fn store_port(wanted: &mut Wanted, given: Given<'_>) -> Result<Treatment> {
    match given.text.parse() {
        Ok(port) if port > 0 => wanted.config.log.store_host.set_port(port),
        _ => return given.refused("1 to 65535"),
    }
    HONOURED
}

#[cfg(test)]
mod tests;
