//! The topics of a store and how many queues they have: `topics.json`.

use super::{Shared, Store};
use crate::environment::Environment;
use crate::error::{Error, InvalidMessage, Result};
use crate::message::check_topic;
use crate::message::format::{DEAD_LETTER_TOPIC_PREFIX, RETRY_TOPIC_PREFIX, is_system_topic};
use crate::tables::{Tables, TopicConfig, TopicTable};
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What `topics.json` says, read when someone first asks: who only puts and gets does not need it.
#[derive(Debug)]
pub(super) struct Topics {
    tables: Tables,
    known: RwLock<Option<TopicTable>>,
    /// Held by whoever notes one, while the disk takes its time: everyone else reads meanwhile.
    noting: Mutex<()>,
    /// How often one was noted, for those who remember what they have read.
    noted: AtomicU64,
}

impl Topics {
    pub(super) fn new(root: &Path, environment: Environment) -> Self {
        Self {
            tables: Tables::new_in(root, environment),
            known: RwLock::new(None),
            noting: Mutex::new(()),
            noted: AtomicU64::new(0),
        }
    }

    fn read(&self) -> Result<MappedRwLockReadGuard<'_, TopicTable>> {
        loop {
            let known = RwLockReadGuard::try_map(self.known.read(), Option::as_ref);
            if let Ok(known) = known {
                return Ok(known);
            }
            drop(known);
            self.load(&mut self.known.write())?;
        }
    }

    fn load<'a>(&self, known: &'a mut Option<TopicTable>) -> Result<&'a mut TopicTable> {
        let table = match known.take() {
            Some(table) => table,
            None => self.tables.load::<TopicTable>()?.table,
        };
        Ok(known.insert(table))
    }

    /// Notes a topic, durably, unless `decide` finds that there is nothing to note.
    fn note(
        &self,
        topic: &str,
        decide: impl FnOnce(Option<&TopicConfig>) -> Option<TopicConfig>,
    ) -> Result<()> {
        let _alone = self.noting.lock();
        let mut changed = self.read()?.clone();
        let Some(config) = decide(changed.get(topic)) else { return Ok(()) };
        changed.set(topic, config);
        // What is not durable is not known either.
        self.tables.save(&mut changed)?;
        *self.known.write() = Some(changed);
        self.noted.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

impl Store {
    /// What is known of a topic: what `topics.json` says of it, with at least the queues that hold
    /// something. `None` for a topic that is neither there nor has a queue.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `topics.json` cannot be read and has no backup; [`Error::Io`].
    pub fn topic(&self, topic: &str) -> Result<Option<TopicConfig>> {
        self.shared().topic(topic)
    }

    /// Creates a topic, or changes what is known of it, durably: RocketMQ's
    /// `updateAndCreateTopic`. Queues that hold something stay, whatever `config` says.
    ///
    /// A topic need not be created before something is put, unless
    /// [`auto_create_topic`](crate::StoreConfig::auto_create_topic) is off.
    ///
    /// # Errors
    /// [`Error::InvalidMessage`] and [`Error::TooLarge`] for a name that a topic cannot have;
    /// [`Error::Config`] for fewer than 1 queue, or more than
    /// [`max_queues_per_topic`](crate::StoreConfig::max_queues_per_topic); [`Error::Corrupt`] as
    /// [`topic`](Self::topic); [`Error::DiskFull`]; [`Error::Io`]; [`Error::ReadOnly`];
    /// [`Error::Closed`].
    ///
    /// # Examples
    /// ```
    /// use duralog::tables::TopicConfig;
    /// # use duralog::{Store, StoreConfig};
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-topic-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// store.create_topic("orders", TopicConfig::new(8))?;
    /// assert_eq!(store.topic("orders")?.map(|topic| topic.write_queue_nums), Some(8));
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn create_topic(&self, topic: &str, config: TopicConfig) -> Result<()> {
        let shared = self.shared();
        shared.check_topic_config(topic, &config)?;
        shared.topics.note(topic, |known| (known != Some(&config)).then_some(config))
    }

    /// Refuses a topic that nobody has created, where that must be done first.
    pub(crate) fn check_known(&self, topic: &str) -> Result<()> {
        let shared = self.shared();
        check_topic(topic, shared.config.log.long_topics)?;
        if shared.may_create(topic) || shared.topic(topic)?.is_some() {
            return Ok(());
        }
        Err(Error::UnknownTopic { topic: topic.to_owned() })
    }

    /// What is known of a topic that something is to be put to or consumed from; an unknown one is
    /// created with `queues` queues, if that is allowed.
    pub(crate) fn require_topic(&self, topic: &str, queues: i32) -> Result<TopicConfig> {
        let shared = self.shared();
        if let Some(config) = shared.topics.read()?.get(topic) {
            return Ok(shared.with_queues(topic, config.clone()));
        }
        check_topic(topic, shared.config.log.long_topics)?;
        let there = shared.topic(topic)?;
        if there.is_none() && !shared.may_create(topic) {
            return Err(Error::UnknownTopic { topic: topic.to_owned() });
        }
        // One that nobody has noted has the queues that hold something, and what a new one would have.
        let held = there.map_or(0, |topic| topic.read_queue_nums);
        let max = shared.config.max_queues_per_topic;
        let config = TopicConfig::new(queues.max(held).min(max));
        if shared.config.log.read_only {
            return Ok(config);
        }
        shared.check_topic_config(topic, &config)?;
        let mut noted = config.clone();
        shared.topics.note(topic, |known| match known {
            None => Some(config),
            // Somebody has created it meanwhile, and has said what it is.
            Some(known) => {
                noted = known.clone();
                None
            }
        })?;
        Ok(shared.with_queues(topic, noted))
    }

    /// A number that grows whenever a topic is created or changed.
    pub(crate) fn topics_version(&self) -> u64 {
        self.shared().topics.noted.load(Ordering::Acquire)
    }

    /// The ids of a topic's queues that hold or held something, sorted.
    pub(crate) fn queue_ids(&self, topic: &str) -> Vec<i32> {
        self.shared().catch_up();
        self.shared().queues.ids(topic)
    }
}

impl Shared {
    fn topic(&self, topic: &str) -> Result<Option<TopicConfig>> {
        if let Some(config) = self.topics.read()?.get(topic) {
            return Ok(Some(self.with_queues(topic, config.clone())));
        }
        self.catch_up();
        let there = !self.queues.ids(topic).is_empty();
        Ok(there.then(|| self.with_queues(topic, TopicConfig::new(1))))
    }

    /// Refuses what cannot be noted of a topic.
    fn check_topic_config(&self, topic: &str, config: &TopicConfig) -> Result<()> {
        self.check_open()?;
        if self.config.log.read_only {
            return Err(Error::ReadOnly);
        }
        check_topic(topic, self.config.log.long_topics)?;
        let nums = [
            ("write_queue_nums", config.write_queue_nums),
            ("read_queue_nums", config.read_queue_nums),
        ];
        for (field, value) in nums {
            if !(1..=self.config.max_queues_per_topic).contains(&value) {
                let allowed = "1 to max_queues_per_topic";
                return Err(Error::Config { field, value: value.to_string(), allowed });
            }
        }
        Ok(())
    }

    fn with_queues(&self, topic: &str, mut config: TopicConfig) -> TopicConfig {
        let queues = self.queues.ids(topic).last().map_or(0, |last| last.saturating_add(1));
        config.read_queue_nums = config.read_queue_nums.max(queues);
        config
    }

    fn may_create(&self, topic: &str) -> bool {
        // Those come from consumers and from the store itself, not from who puts.
        self.config.auto_create_topic
            || topic.starts_with(RETRY_TOPIC_PREFIX)
            || topic.starts_with(DEAD_LETTER_TOPIC_PREFIX)
            || is_system_topic(topic)
    }

    /// Refuses a put to a topic that nobody has created, where that must be done first.
    pub(super) fn check_topic(&self, topic: &str, queue_id: i32) -> Result<()> {
        if self.may_create(topic) || self.queues.get(topic, queue_id).is_some() {
            return Ok(());
        }
        match self.topic(topic)? {
            None => Err(Error::UnknownTopic { topic: topic.to_owned() }),
            Some(config) if queue_id >= config.write_queue_nums => {
                let limit = config.write_queue_nums;
                Err(Error::InvalidMessage(InvalidMessage::QueueId { queue_id, limit }))
            }
            Some(_) => Ok(()),
        }
    }
}
