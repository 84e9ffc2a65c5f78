#![cfg(feature = "sim")]

use crate::clock::{Clock, ManualClock};
use crate::delivery::{DelayHandle, Delivery};
use crate::disk::SimDisk;
use crate::message::format::TIMER_TOPIC;
use crate::tables::{TopicConfig, TopicTable};
use crate::worker::Doorbell;
use crate::{Environment, Message, Next, Store, StoreConfig, StoreWorker};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

struct World {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    soon_max: usize,
    /// Whether anything may be put to a topic that nobody has created.
    any_topic: bool,
    store: Store,
}

impl World {
    fn new(soon_max: usize) -> Self {
        let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
        let store = Self::open(&disk, &clock, soon_max, true);
        Self { disk, clock, soon_max, any_topic: true, store }
    }

    fn open(disk: &SimDisk, clock: &Arc<ManualClock>, soon_max: usize, any_topic: bool) -> Store {
        let mut config = StoreConfig::new("/store").segment_size(64 << 10);
        config.index_enable = false;
        config.auto_create_topic = any_topic;
        let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
        let store = Store::open_in(config, environment).unwrap();
        Delivery::of(&store).unwrap().delay.keep_in_memory(soon_max);
        store
    }

    fn reopen(&mut self) {
        self.disk = self.disk.kill();
        self.store = Self::open(&self.disk, &self.clock, self.soon_max, self.any_topic);
    }

    fn work(&self) {
        for round in 0.. {
            assert!(round < 10_000, "delivery does not come to rest");
            for worker in [StoreWorker::Upkeep, StoreWorker::Flush, StoreWorker::Dispatch] {
                while self.store.step(worker) == Next::Now {}
            }
            let steps = [0, 1].map(|_| self.store.step(StoreWorker::Delivery));
            if steps != [Next::Now; 2] && !steps.contains(&Next::Now) {
                while self.store.step(StoreWorker::Offsets) == Next::Now {}
                let in_flight = self.store.stats().watermarks;
                if in_flight.durable == in_flight.appended {
                    return;
                }
            }
        }
    }

    fn now(&self) -> i64 {
        self.clock.unix_millis()
    }

    fn delivered(&self) -> Vec<usize> {
        self.delivered_to("orders")
    }

    fn delivered_to(&self, topic: &str) -> Vec<usize> {
        let number = |body: Vec<u8>| String::from_utf8(body).unwrap().parse::<usize>().unwrap();
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            let fetched = self.store.get(topic, 0, at, 1_000).unwrap();
            if fetched.messages.is_empty() {
                return found;
            }
            at = fetched.next_offset;
            found.extend(fetched.messages.into_iter().map(|message| number(message.body)));
        }
    }
}

struct Sent {
    due: i64,
    is_cancelled: bool,
    handle: DelayHandle,
}

#[derive(Debug, Clone)]
enum Step {
    Send(i64),
    Cancel(prop::sample::Index),
    Advance(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1..2_000i64).prop_map(Step::Send),
        // Many that are due at once.
        4 => (0..4i64).prop_map(|n| Step::Send(1 + n * 300)),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        3 => (0..250u64).prop_map(Step::Advance),
        1 => Just(Step::Reopen),
    ]
}

#[test]
fn nothing_is_sent_before_all_that_may_cancel_it_is_read_however_little_is_kept_in_memory() {
    let world = World::new(4);
    let due = world.now() + 60_000;
    let mut handles = Vec::new();
    for n in 0..150 {
        let message = Message::new("orders", n.to_string()).deliver_at(due);
        handles.extend(world.store.submit_delayed(message).unwrap().1);
        world.work();
    }
    for handle in handles.iter().rev() {
        drop(world.store.submit_cancel(handle).unwrap());
        world.work();
    }
    world.clock.advance(Duration::from_secs(60));
    world.work();
    assert_eq!(world.delivered(), Vec::<usize>::new());
    assert_eq!(world.store.delay_stats().unwrap().cancelled, 150);
}

#[test]
fn what_is_put_off_comes_when_it_can_however_little_is_kept_in_memory() {
    for soon_max in [2, 4, 8, 1 << 20] {
        let mut world = World::new(soon_max);
        let start = world.now();
        let send = |world: &World, topic: &str, n: usize, due: i64| {
            let message = Message::new(topic, n.to_string()).deliver_at(due);
            drop(world.store.submit_delayed(message).unwrap());
            world.work();
        };
        for n in 0..12 {
            send(&world, "lost", n, start + 1_000 + n as i64);
        }
        for n in 0..40 {
            send(&world, "orders", n, start + 2_000 + 250 * n as i64);
        }
        world.any_topic = false;
        world.store.create_topic("orders", TopicConfig::new(1)).unwrap();
        // Somebody deletes the other one.
        let tables = world.store.tables();
        let mut topics = tables.load::<TopicTable>().unwrap().table;
        topics.remove("lost").unwrap();
        tables.save(&mut topics).unwrap();
        world.reopen();
        world.work();
        for step in 0..160 {
            world.clock.advance(Duration::from_millis(100));
            world.work();
            if step % 10 == 0 {
                send(&world, "orders", 40 + step / 10, start + 17_000);
            }
        }
        assert_eq!(world.delivered(), Vec::from_iter(0..40), "{soon_max}: nothing is held up");
        let has_copies = world.store.max_offset(TIMER_TOPIC, 0).unwrap() > 12 + 56;
        assert_eq!(has_copies, soon_max < 12, "no more are kept in memory than may be");
        world.store.create_topic("lost", TopicConfig::new(1)).unwrap();
        for _ in 0..250 {
            world.clock.advance(Duration::from_millis(100));
            world.work();
        }
        assert_eq!(world.delivered().len(), 56);
        let mut found = world.delivered_to("lost");
        found.sort_unstable();
        assert_eq!(found, Vec::from_iter(0..12), "{soon_max}");
        assert_eq!(world.store.delay_stats().unwrap().undeliverable, 0);
    }
}

#[test]
fn who_delivers_is_woken_when_a_delayed_message_can_be_read_and_by_no_other() {
    let world = World::new(1 << 20);
    let (bell, heard) = Doorbell::new();
    Delivery::of(&world.store).unwrap().alarm.connect(bell);
    world.work();
    let put = |message: Message, wakes: bool| {
        drop(world.store.submit_delayed(message).unwrap());
        while world.store.step(StoreWorker::Flush) == Next::Now {}
        assert!(heard.try_recv().is_err(), "there is nothing to be read yet");
        while world.store.step(StoreWorker::Dispatch) == Next::Now {}
        assert_eq!(heard.try_recv().is_ok(), wakes);
        world.work();
        while heard.try_recv().is_ok() {}
    };
    put(Message::new("orders", "0"), false);
    put(Message::new("orders", "1").delay_level(1), true);
    put(Message::new("orders", "2").delay(Duration::from_secs(1)), true);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn what_is_put_off_comes_once_whatever_else_is_due(
        soon_max in 2..12usize,
        lost in proptest::collection::vec(1..20_000i64, 1..12),
        orders in proptest::collection::vec(1..20_000i64, 1..60),
        late in proptest::collection::vec(1..20_000i64, 1..60),
        steps in proptest::collection::vec(1..3_000u64, 1..30),
    ) {
        let mut world = World::new(soon_max);
        let start = world.now();
        let send = |world: &World, topic: &str, n: usize, due: i64| {
            let message = Message::new(topic, n.to_string()).deliver_at(start + due);
            drop(world.store.submit_delayed(message).unwrap());
        };
        for (topic, dues) in [("lost", &lost), ("orders", &orders)] {
            dues.iter().enumerate().for_each(|(n, due)| send(&world, topic, n, *due));
            world.work();
        }
        world.any_topic = false;
        world.store.create_topic("orders", TopicConfig::new(1)).unwrap();
        world.reopen();
        let mut late = late.into_iter().enumerate();
        for millis in steps {
            world.clock.advance(Duration::from_millis(millis));
            world.work();
            late.by_ref().take(3).for_each(|(n, due)| send(&world, "orders", orders.len() + n, due));
        }
        world.store.create_topic("lost", TopicConfig::new(1)).unwrap();
        late.by_ref().for_each(|(n, due)| send(&world, "orders", orders.len() + n, due));
        for _ in 0..120 {
            world.clock.advance(Duration::from_millis(500));
            world.work();
        }
        let mut found = world.delivered_to("lost");
        found.sort_unstable();
        prop_assert_eq!(found, Vec::from_iter(0..lost.len()));
        let found = world.delivered();
        let different = BTreeSet::from_iter(&found).len();
        prop_assert!(found.len() == different && found.len() >= orders.len(), "twice or never");
    }

    #[test]
    fn whatever_waits_comes_when_it_is_due_however_little_is_kept_in_memory(
        soon_max in prop_oneof![2..40usize, Just(1 << 20)],
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(soon_max);
        let mut sent: Vec<Sent> = Vec::new();
        let mut reopened = false;
        let end = [Step::Advance(3_000), Step::Advance(0)];
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Send(delay) => {
                    // Whole tens, so that many have the same time.
                    let due = (world.now() + delay + 9) / 10 * 10;
                    let message = Message::new("orders", sent.len().to_string()).deliver_at(due);
                    let (_, handle) = world.store.submit_delayed(message).unwrap();
                    sent.push(Sent { due, is_cancelled: false, handle: handle.unwrap() });
                }
                Step::Cancel(which) if !sent.is_empty() => {
                    let sent = which.get_mut(&mut sent);
                    sent.is_cancelled |= world.store.submit_cancel(&sent.handle).unwrap().is_some();
                }
                Step::Cancel(_) => {}
                Step::Advance(millis) => {
                    world.work();
                    world.clock.advance(Duration::from_millis(millis));
                }
                Step::Reopen => {
                    world.work();
                    reopened = true;
                    world.reopen();
                }
            }
            world.work();
            let now = world.now();
            let expected: BTreeSet<usize> = (0..sent.len())
                .filter(|&n| sent[n].due <= now && !sent[n].is_cancelled)
                .collect();
            let found = world.delivered();
            prop_assert!(reopened || found.len() == expected.len(), "twice: {found:?}");
            prop_assert_eq!(BTreeSet::from_iter(found), expected);
        }
        let stats = world.store.delay_stats().unwrap();
        prop_assert_eq!((stats.pending_timers, stats.undeliverable), (0, 0));
    }
}
