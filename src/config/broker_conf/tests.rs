use super::*;
use crate::error::Error;
use proptest::prelude::*;

const ROOT: &str = "storePathRootDir=/data/store\n";

fn read(text: &str) -> BrokerConf {
    StoreConfig::from_properties(&format!("{ROOT}{text}")).unwrap()
}

fn config(text: &str) -> StoreConfig {
    read(text).config
}

fn treatment(text: &str) -> Treatment {
    read(text).keys.last().unwrap().treatment
}

/// The field and the value that are refused.
fn refused_by(text: &str) -> (&'static str, String) {
    match StoreConfig::from_properties(text) {
        Err(Error::Config { field, value, .. }) => (field, value),
        other => panic!("{text:?}: {other:?}"),
    }
}

fn reason(text: &str) -> &'static str {
    match treatment(text) {
        Treatment::NotApplicable { reason } => reason,
        other => panic!("{text:?}: {other:?}"),
    }
}

#[test]
fn the_file_that_comes_with_rocketmq_is_read() {
    let conf = StoreConfig::new("/data/store")
        .with_properties(
            "brokerClusterName = DefaultCluster\n\
             brokerName = broker-a\n\
             brokerId = 0\n\
             deleteWhen = 04\n\
             fileReservedTime = 48\n\
             brokerRole = ASYNC_MASTER\n\
             flushDiskType = ASYNC_FLUSH\n",
        )
        .unwrap();
    assert_eq!(conf.config.flush_mode, FlushMode::rocketmq_async());
    let two_days = Duration::from_secs(48 * 3600);
    let retention = Retention::rocketmq().file_reserved_time(two_days);
    assert_eq!(conf.config.retention, Some(retention));
    assert_eq!(conf.config.log.dir, Path::new("/data/store"));
    let ignored: Vec<_> = conf.ignored().map(|key| key.name.as_str()).collect();
    assert_eq!(ignored, ["brokerClusterName", "brokerName"]);
    let lines: Vec<_> = conf.keys.iter().map(|key| key.line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn what_the_file_does_not_say_is_this_crates_own() {
    let (read, own) = (config(""), StoreConfig::new("/data/store"));
    assert_eq!(format!("{read:?}"), format!("{own:?}"));
    assert_eq!(read.retention, None);
}

#[test]
fn a_store_without_a_directory_is_refused() {
    assert_eq!(refused_by("").0, "storePathRootDir");
    assert_eq!(refused_by("storePathRootDir= # later\n").0, "storePathRootDir");
    let conf = StoreConfig::new("/other").with_properties(ROOT).unwrap();
    assert_eq!(conf.config.log.dir, Path::new("/data/store"));
}

#[test]
fn the_log_lies_where_a_store_has_it() {
    for dir in ["/data/store/commitlog", "/data//store/./commitlog/"] {
        assert_eq!(treatment(&format!("storePathCommitLog={dir}")), Treatment::Honoured);
    }
    for dir in ["/data/commitlog", "/data/store/commitlog,/disk2/commitlog", "commitlog", ""] {
        let refused = refused_by(&format!("storePathCommitLog={dir}\n{ROOT}"));
        assert_eq!(refused, ("storePathCommitLog", dir.to_owned()));
    }
}

#[test]
fn sizes_and_limits_are_taken_over() {
    let read = config(
        "mappedFileSizeCommitLog=4096\nmappedFileSizeConsumeQueue=400\nmaxMessageSize=65536\n\
         maxHashSlotNum=100\nmaxIndexNum=400\nmessageIndexEnable=false\n\
         enabledAppendPropCRC=false\nautoMessageVersionOnTopicLen=false\nreadUnCommitted=true\n\
         slaveTimeout=3000\nwriteWithoutMmap=true\nbrokerIP1=10.0.0.7\nlistenPort=10921",
    );
    assert_eq!(read.log.segment_size, 4096);
    assert_eq!(read.consume_queue_file_size, 400);
    assert_eq!(read.log.max_message_size, 65536);
    assert_eq!((read.index_slots, read.index_items, read.index_enable), (100, 400, false));
    assert!(!read.log.record_crc && !read.log.long_topics);
    assert_eq!(read.visibility, Visibility::Appended);
    assert_eq!(read.sync_replica_timeout, Duration::from_secs(3));
    assert_eq!(read.write_mode, Some(WriteMode::Pwrite));
    assert_eq!(read.log.store_host, "10.0.0.7:10921".parse().unwrap());
    assert_eq!(config("brokerIP1=::1").log.store_host, "[::1]:10911".parse().unwrap());
    assert!(reason("brokerIP1=broker.local").contains("store_host"));
    assert_eq!(config("mapedFileSizeCommitLog=8192").log.segment_size, 8192);
}

#[test]
fn a_queue_file_holds_whole_entries() {
    assert_eq!(treatment("mappedFileSizeConsumeQueue=401"), Treatment::Adjusted { to: 420 });
    assert_eq!(config("mappedFileSizeConsumeQueue=1").consume_queue_file_size, 20);
    assert_eq!(config("mappedFileSizeConsumeQueue=1073741820").consume_queue_file_size, 1073741820);
}

#[test]
fn sync_flush_has_its_timeout_and_no_intervals() {
    let conf = read("flushDiskType = SYNC_FLUSH   // sync\nsyncFlushTimeout=2000  # ms");
    assert_eq!(conf.config.flush_mode, FlushMode::Sync { timeout: Duration::from_secs(2) });
    assert_eq!(conf.ignored().count(), 0);
    // Sync flush is the default, too.
    assert_eq!(
        config("syncFlushTimeout=1").flush_mode,
        FlushMode::Sync { timeout: Duration::from_millis(1) }
    );
    let conf = read(
        "flushIntervalCommitLog=1000\nflushCommitLogLeastPages=0\n\
         flushCommitLogThoroughInterval=0\nflushDiskType=SYNC_FLUSH",
    );
    assert_eq!(conf.config.flush_mode, FlushMode::sync());
    assert_eq!(conf.ignored().count(), 3);
}

#[test]
fn async_flush_is_rocketmqs_unless_the_file_says_otherwise() {
    let thorough_interval = Duration::from_secs(10);
    let interval = Duration::from_millis(100);
    assert_eq!(
        config("flushIntervalCommitLog=100\nflushDiskType=ASYNC_FLUSH").flush_mode,
        FlushMode::Async { interval, least_pages: 4, thorough_interval }
    );
    assert_eq!(
        config(
            "flushDiskType=ASYNC_FLUSH\nflushCommitLogLeastPages=0\n\
             flushIntervalCommitLog=100\nflushCommitLogThoroughInterval=0"
        )
        .flush_mode,
        FlushMode::Async { interval, least_pages: 0, thorough_interval: Duration::from_millis(1) }
    );
    assert!(reason("flushDiskType=ASYNC_FLUSH\nsyncFlushTimeout=5000").contains("ASYNC_FLUSH"));
}

#[test]
fn retention_is_what_the_file_says_of_it() {
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(
        config(
            "fileReservedTime=24\ndeleteWhen=04; 16\ndiskMaxUsedSpaceRatio=70\n\
             diskSpaceWarningLevelRatio=88\ndiskSpaceCleanForciblyRatio=80\n\
             cleanResourceInterval=5000\ndeleteFileBatchMax=3"
        )
        .retention
        .unwrap(),
        Retention::rocketmq()
            .file_reserved_time(day)
            .delete_when([4, 16])
            .disk_max_used(Threshold::UsedPercent(70))
            .disk_warning(Threshold::UsedPercent(88))
            .disk_clean_forcibly(Threshold::UsedPercent(80))
            .check_interval(Duration::from_secs(5))
            .delete_batch_max(3)
    );
    let kept = read("deleteWhen=04\ncleanFileForciblyEnable=false\ndiskSpaceCleanForciblyRatio=80");
    assert_eq!(kept.config.retention.unwrap().disk_clean_forcibly, None);
    assert!(matches!(kept.keys[3].treatment, Treatment::NotApplicable { .. }));
}

#[test]
fn how_to_delete_does_not_mean_that_anything_is() {
    let conf =
        read("cleanResourceInterval=1000\ndeleteFileBatchMax=1\ncleanFileForciblyEnable=true");
    assert_eq!(conf.config.retention, None);
    assert_eq!(conf.ignored().count(), 3);
    let base = StoreConfig::new("d").retention(Retention::max_total_bytes(1 << 30));
    let retention = base.with_properties("deleteFileBatchMax=1").unwrap().config.retention;
    assert_eq!(retention, Some(Retention::max_total_bytes(1 << 30).delete_batch_max(1)));
}

#[test]
fn shares_of_the_disk_are_kept_within_rocketmqs_bounds() {
    for (key, low, high) in [
        ("diskMaxUsedSpaceRatio", 10, 95),
        ("diskSpaceWarningLevelRatio", 35, 90),
        ("diskSpaceCleanForciblyRatio", 30, 85),
    ] {
        for (value, to) in [(-1, low), (low - 1, low), (high + 1, high), (1000, high)] {
            let to = to as u64;
            assert_eq!(treatment(&format!("{key}={value}")), Treatment::Adjusted { to });
        }
        assert_eq!(treatment(&format!("{key}={low}")), Treatment::Honoured);
        assert_eq!(treatment(&format!("{key}={high}")), Treatment::Honoured);
    }
}

#[test]
fn what_happens_anyway_is_told_from_what_cannot_be() {
    for (key, anyway, never) in [
        ("transientStorePoolEnable", "false", "true"),
        ("checkCRCOnRecover", "TRUE", "false"),
        ("duplicationEnable", "false", "true"),
        ("totalReplicas", "1", "3"),
        ("storeType", "default", "defaultRocksDB"),
        ("brokerId", "0", "1"),
    ] {
        assert_eq!(treatment(&format!("{key}={anyway}")), Treatment::Inherent);
        assert!(!reason(&format!("{key}={never}")).is_empty());
    }
    assert!(reason("haFlowControlEnable=true").contains("PrimaryOptions"));
    assert!(reason("messageDelayLevel=1s 5s").contains("defaults"));
}

#[test]
fn nothing_is_dropped_without_a_word() {
    let conf = read("maxMessageSize=1\nnoSuchKey=x\nMAXMESSAGESIZE=2\nmaxMessageSize=3");
    let treatments: Vec<_> = conf.keys.iter().map(|key| key.treatment).collect();
    assert_eq!(
        treatments,
        [
            Treatment::Honoured,
            Treatment::Overridden { by_line: 5 },
            Treatment::Unknown,
            Treatment::Unknown,
            Treatment::Honoured,
        ]
    );
    assert_eq!(conf.config.log.max_message_size, 3);
    let said: Vec<_> = conf.keys.iter().map(BrokerKey::to_string).collect();
    assert_eq!(said[1], "line 2: maxMessageSize = 1: overridden by line 5");
    assert_eq!(said[2], "line 3: noSuchKey = x: unknown");
}

#[test]
fn a_value_that_cannot_be_is_refused_by_the_name_of_its_key() {
    for (key, value) in [
        ("mappedFileSizeCommitLog", "4097"),
        ("mappedFileSizeCommitLog", "2147483647"),
        ("mappedFileSizeConsumeQueue", "0"),
        ("mappedFileSizeConsumeQueue", "1073741821"),
        ("flushDiskType", "sync"),
        ("brokerRole", "MASTER"),
        ("syncFlushTimeout", "5s"),
        ("syncFlushTimeout", "0"),
        ("syncFlushTimeout", "3600001"),
        ("flushIntervalCommitLog", "0"),
        ("flushCommitLogLeastPages", "-1"),
        ("flushCommitLogThoroughInterval", "3600001"),
        ("slaveTimeout", ""),
        ("maxMessageSize", "0"),
        ("fileReservedTime", "0"),
        ("deleteWhen", "24"),
        ("deleteWhen", ""),
        ("deleteWhen", "04,16"),
        ("diskMaxUsedSpaceRatio", "75%"),
        ("cleanFileForciblyEnable", "yes"),
        ("deleteFileBatchMax", "0"),
        ("maxHashSlotNum", "0"),
        ("maxIndexNum", "1"),
        ("listenPort", "65536"),
        ("listenPort", "0"),
        ("haListenPort", "ha"),
        ("timerPrecisionMs", "99999999999"),
        ("transactionTimeOut", "6s"),
        ("logicalDiskSpaceCleanForciblyThreshold", "much"),
    ] {
        let text = format!("{ROOT}{key}={value}");
        assert_eq!(refused_by(&text), (key, format!("{value:?}")), "{text}");
    }
    let error = StoreConfig::from_properties("syncFlushTimeout=5s").unwrap_err();
    let expected = "syncFlushTimeout is \"5s\", but must be an integer of 32 bits";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn an_overridden_value_need_not_make_sense() {
    assert_eq!(config("maxMessageSize=huge\nmaxMessageSize=9").log.max_message_size, 9);
}

#[test]
fn index_files_too_large_for_java_are_refused() {
    assert_eq!(refused_by(&format!("{ROOT}maxIndexNum=2147483647")).0, "index_items");
}

proptest! {
    #[test]
    fn any_text_is_settings_or_an_error(
        lines in prop::collection::vec((0..broker_keys::names().count(), "\\PC{0,8}"), 0..8),
        noise in any::<String>(),
    ) {
        let names: Vec<_> = broker_keys::names().collect();
        let mut text = String::from(ROOT);
        for (name, value) in lines {
            text.push_str(&format!("{} = {value}\n", names[name]));
        }
        let _ = StoreConfig::from_properties(&text);
        let _ = StoreConfig::from_properties(&noise);
    }
}
