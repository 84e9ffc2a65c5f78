//! What a broker knows besides messages: topics, consumer groups, and how far each has consumed.
//!
//! RocketMQ keeps it as JSON in `config/` below the store's root. [`Tables`] reads and writes these
//! files: what nobody here knows in them is kept and written back, what fastjson writes in place of
//! JSON is read, and a crash in the middle of saving leaves the old table or the new one.
//!
//! ```no_run
//! use duralog::tables::{ConsumerOffsets, Tables};
//!
//! let tables = Tables::new("/data/store");
//! let mut offsets = tables.load::<ConsumerOffsets>()?.table;
//! println!("{:?}", offsets.get("orders", "billing", 0));
//! offsets.set("orders", "billing", 0, 42)?;
//! tables.save(&mut offsets)?;
//! # Ok::<(), duralog::Error>(())
//! ```

mod consumer_offsets;
mod data_version;
mod delay_offsets;
mod file;
mod json;
mod subscription_groups;
mod topics;

pub use consumer_offsets::{ConsumerOffsets, QueueProgress};
pub use data_version::DataVersion;
pub use delay_offsets::DelayOffsets;
pub use file::{Loaded, Source, Tables, Unusable};
pub use subscription_groups::{SubscriptionGroup, SubscriptionGroups};
pub use topics::{TopicConfig, TopicTable};

/// One of RocketMQ's tables.
pub trait Table: codec::Codec {
    /// Counts the saves.
    fn data_version(&self) -> &DataVersion;
}

/// How a table becomes JSON and back. Out of sight, so that there are no others.
mod codec {
    use super::DataVersion;
    use super::json::Object;

    pub trait Codec: Default {
        /// The name of its file.
        const FILE: &'static str;

        /// The table, or what is wrong with the JSON.
        fn decode(object: Object) -> Result<Self, String>;
        fn encode(&self) -> Object;
        fn data_version_mut(&mut self) -> &mut DataVersion;
    }
}
