//! Names of the properties to which RocketMQ gives a meaning and that matter to a store.

/// Keys of the message, separated by spaces; the key index is built from them.
pub const KEYS: &str = "KEYS";
/// The tag that consumers filter by.
pub const TAGS: &str = "TAGS";
/// `false` on a message whose put does not wait for flush and replication.
pub const WAIT: &str = "WAIT";
/// The delay level of a message, as a number.
pub const DELAY: &str = "DELAY";
/// The id that the producer gave the message.
pub const UNIQ_KEY: &str = "UNIQ_KEY";
/// What a producer keeps in order: messages with the same go to the same queue.
pub const SHARDING_KEY: &str = "__SHARDINGKEY";
/// The topic to which a delayed or half message goes in the end.
pub const REAL_TOPIC: &str = "REAL_TOPIC";
/// The queue to which a delayed or half message goes in the end.
pub const REAL_QUEUE_ID: &str = "REAL_QID";
/// The topic of a message that is being retried.
pub const RETRY_TOPIC: &str = "RETRY_TOPIC";
/// The id of the first copy of a message that is being retried.
pub const ORIGIN_MESSAGE_ID: &str = "ORIGIN_MESSAGE_ID";
/// How often a message is retried before it becomes a dead letter.
pub const MAX_RECONSUME_TIMES: &str = "MAX_RECONSUME_TIMES";
/// The topic from which a dead letter comes.
pub const DLQ_ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
/// The id of the message that became a dead letter.
pub const DLQ_ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
/// `true` on half messages and on what became of them.
pub const TRANSACTION_PREPARED: &str = "TRAN_MSG";
/// The id of the transaction.
pub const TRANSACTION_ID: &str = "__transactionId__";
/// How often the producer was asked what became of a transaction.
pub const TRANSACTION_CHECK_TIMES: &str = "TRANSACTION_CHECK_TIMES";
/// The queue offset of the half message.
pub const TRANSACTION_PREPARED_QUEUE_OFFSET: &str = "TRAN_PREPARED_QUEUE_OFFSET";
/// Seconds in which the producer is not asked about a transaction.
pub const CHECK_IMMUNITY_TIME: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
/// The group of the producer.
pub const PRODUCER_GROUP: &str = "PGROUP";
/// Seconds until a message of the timer wheel is due.
pub const TIMER_DELAY_SEC: &str = "TIMER_DELAY_SEC";
/// Milliseconds until a message of the timer wheel is due.
pub const TIMER_DELAY_MS: &str = "TIMER_DELAY_MS";
/// When a message of the timer wheel is due.
pub const TIMER_DELIVER_MS: &str = "TIMER_DELIVER_MS";
/// When a message of the timer wheel is due, as RocketMQ's wheel counts: whole seconds.
pub const TIMER_OUT_MS: &str = "TIMER_OUT_MS";
/// Which message of the timer wheel is cancelled: its topic, `+` and its `UNIQ_KEY`.
pub const TIMER_DELETE_UNIQUE_KEY: &str = "TIMER_DEL_UNIQKEY";
/// Number of messages in a batch stored as one record.
pub const INNER_NUM: &str = "INNER_NUM";
/// Queue offset of the first message in a batch stored as one record.
pub const INNER_BASE: &str = "INNER_BASE";
/// Checksum of the whole record. Written by the store, never taken from a caller.
pub const RECORD_CRC: &str = "__CRC32#";
