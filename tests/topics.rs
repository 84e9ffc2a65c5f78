//! Topics and their queues: what is known, what is created, and what is refused.

use duralog::delivery::TransactionState;
use duralog::disk::{Cut, SimDisk};
use duralog::tables::{Tables, TopicConfig, TopicTable};
use duralog::{Environment, Error, InvalidMessage, Message, Store, StoreConfig, TagFilter};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

const DIR: &str = "/store";

fn open(disk: &SimDisk, auto_create: bool) -> Store {
    let mut config = StoreConfig::new(DIR).segment_size(64 << 10);
    config.index_enable = false;
    config.auto_create_topic = auto_create;
    Store::open_in(config, Environment::on(disk.shared())).unwrap()
}

fn queues(store: &Store, topic: &str) -> Option<(i32, i32)> {
    let config = store.topic(topic).unwrap();
    config.map(|topic| (topic.write_queue_nums, topic.read_queue_nums))
}

#[test]
fn a_created_topic_survives_a_power_cut_and_is_in_the_table_of_brokers() {
    let disk = SimDisk::new(1);
    let store = open(&disk, true);
    assert_eq!(queues(&store, "orders"), None);
    store.create_topic("orders", TopicConfig::new(8)).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    let store = open(&disk, true);
    assert_eq!(queues(&store, "orders"), Some((8, 8)));
    let table = Tables::new_in(DIR, Environment::on(disk.shared())).load::<TopicTable>().unwrap();
    assert_eq!(table.table.get("orders"), Some(&TopicConfig::new(8)));
    store.create_topic("orders", TopicConfig::new(2)).unwrap();
    assert_eq!(queues(&store, "orders"), Some((2, 2)));
}

#[test]
fn queues_that_hold_something_are_read_whatever_the_table_says() {
    let disk = SimDisk::new(1);
    let store = open(&disk, true);
    store.put(Message::new("orders", "x").queue(5)).unwrap().ok().unwrap();
    assert_eq!(queues(&store, "orders"), Some((1, 6)));
    store.create_topic("orders", TopicConfig::new(2)).unwrap();
    assert_eq!(queues(&store, "orders"), Some((2, 6)));
}

#[test]
fn a_put_to_an_unknown_topic_is_refused_where_topics_must_be_created() {
    let disk = SimDisk::new(1);
    let store = open(&disk, true);
    store.put(Message::new("old", "x").queue(1)).unwrap().ok().unwrap();
    store.close().unwrap();
    let store = open(&disk, false);
    let end = store.stats().watermarks.appended;
    let refused = store.put(Message::new("orders", "x"));
    assert!(matches!(&refused, Err(Error::UnknownTopic { topic }) if topic == "orders"));
    let message = refused.unwrap_err().to_string();
    assert_eq!(message, "there is no topic \"orders\", and topics are not created by puts here");
    assert_eq!(store.stats().watermarks.appended, end, "nothing was stored");

    store.put(Message::new("old", "y").queue(1)).unwrap().ok().unwrap();
    for own in ["%RETRY%billing", "%DLQ%billing", "SCHEDULE_TOPIC_XXXX", "rmq_sys_wheel_timer"] {
        store.put(Message::new(own, "x")).unwrap().ok().unwrap();
    }
    store.create_topic("orders", TopicConfig::new(2)).unwrap();
    store.put(Message::new("orders", "x").queue(1)).unwrap().ok().unwrap();
    assert!(matches!(
        store.put(Message::new("orders", "x").queue(2)),
        Err(Error::InvalidMessage(InvalidMessage::QueueId { queue_id: 2, limit: 2 }))
    ));
}

#[test]
fn what_no_topic_can_be_is_refused_and_nothing_is_noted() {
    let disk = SimDisk::new(1);
    let store = open(&disk, true);
    assert!(matches!(
        store.create_topic("no/topic", TopicConfig::new(1)),
        Err(Error::InvalidMessage(InvalidMessage::TopicCharacter { found: '/' }))
    ));
    for nums in [0, -1, 65_537] {
        assert!(matches!(
            store.create_topic("orders", TopicConfig::new(nums)),
            Err(Error::Config { field: "write_queue_nums", .. })
        ));
    }
    assert_eq!(queues(&store, "orders"), None);
    store.close().unwrap();
    assert!(matches!(store.create_topic("orders", TopicConfig::new(1)), Err(Error::Closed)));
}

#[test]
fn a_table_that_cannot_be_read_refuses_to_be_replaced() {
    let disk = SimDisk::new(1);
    let store = open(&disk, true);
    store.create_topic("orders", TopicConfig::new(8)).unwrap();
    store.close().unwrap();
    disk.put_file("/store/config/topics.json", b"{\"topicConfigTable\":").unwrap();
    let store = open(&disk, true);
    assert!(matches!(
        store.create_topic("payments", TopicConfig::new(1)),
        Err(Error::Corrupt { .. })
    ));
    store.put(Message::new("orders", "x")).unwrap().ok().unwrap();
}

#[test]
fn a_topic_that_only_puts_have_made_is_noted_with_as_many_queues_as_a_new_one() {
    let disk = SimDisk::new(1);
    let store = open(&disk, true);
    for (topic, queue) in [("few", 1), ("many", 9)] {
        store.put(Message::new(topic, "x").queue(queue)).unwrap().ok().unwrap();
    }
    let producer = store.producer("shop").open().unwrap();
    producer.send(Message::new("few", "y")).unwrap();
    producer.send(Message::new("many", "y")).unwrap();
    assert_eq!(queues(&store, "few"), Some((4, 4)));
    assert_eq!(queues(&store, "many"), Some((10, 10)));
}

#[test]
fn a_topic_that_is_created_while_somebody_sends_to_it_is_what_it_was_created_as() {
    let store = open(&SimDisk::new(1), true);
    let producer = store.producer("shop").open().unwrap();
    for n in 0..150 {
        let (topic, meet) = (format!("orders-{n}"), Barrier::new(2));
        let sent = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                meet.wait();
                producer.send(Message::new(&*topic, "x"))
            });
            meet.wait();
            store.create_topic(&topic, TopicConfig::new(8)).unwrap();
            sending.join().unwrap()
        });
        sent.unwrap();
        assert_eq!(queues(&store, &topic), Some((8, 8)), "{n}");
    }
}

/// For brokers: they give out nothing of a topic that is not in their table.
#[test]
fn whatever_names_a_topic_notes_it_but_for_a_put() {
    let disk = SimDisk::new(1);
    let store = open(&disk, true);
    for topic in ["held", "put"] {
        store.put(Message::new(topic, "x").queue(6)).unwrap().ok().unwrap();
    }
    let consumer = store.consumer("billing").subscribe("read", TagFilter::any());
    let consumer =
        consumer.subscribe("held", TagFilter::any()).subscribe("%DLQ%x", TagFilter::any());
    consumer.open().unwrap();
    let shop = store.transactional_producer("shop", |_| TransactionState::Unknown).open().unwrap();
    let _open = shop.begin(Message::new("transacted", "x")).unwrap();
    let later = Message::new("later", "x").delay(Duration::from_secs(3600));
    let (ticket, _) = store.submit_delayed(later).unwrap();
    ticket.wait().unwrap().ok().unwrap();
    store.submit_delayed(Message::new("now", "x")).unwrap().0.wait().unwrap().ok().unwrap();
    store.producer("p").open().unwrap().send(Message::new("sent", "x")).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    let table = Tables::new_in(DIR, Environment::on(disk.shared())).load::<TopicTable>().unwrap();
    let noted: Vec<_> =
        table.table.iter().map(|(name, topic)| (name, topic.write_queue_nums)).collect();
    assert_eq!(
        noted,
        [
            ("%DLQ%billing", 1),
            ("%DLQ%x", 1),
            ("%RETRY%billing", 1),
            ("held", 7),
            ("later", 4),
            ("read", 4),
            ("sent", 4),
            ("transacted", 4),
        ]
    );
}

#[test]
fn where_topics_must_be_created_nothing_else_creates_them() {
    let disk = SimDisk::new(1);
    let store = open(&disk, false);
    let unknown =
        |refused| matches!(refused, Err(Error::UnknownTopic { topic }) if topic == "orders");
    let consumer = store.consumer("billing").subscribe("orders", TagFilter::any());
    assert!(unknown(consumer.open().map(drop)));
    let shop = store.transactional_producer("shop", |_| TransactionState::Unknown).open().unwrap();
    assert!(unknown(shop.begin(Message::new("orders", "x")).map(drop)));
    let later = Message::new("orders", "x").delay(Duration::from_secs(3600));
    assert!(unknown(store.submit_delayed(later).map(drop)));
    assert_eq!(queues(&store, "orders"), None);
}
