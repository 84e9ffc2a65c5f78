//! Consumers on a disk that loses power: nothing that was put is passed over, in order nothing overtakes, and
//! what was acknowledged does not come again after a kill.

#[path = "support/rng.rs"]
mod rng;

use duralog::clock::ManualClock;
use duralog::delivery::{Consumer, Received, Settled};
use duralog::disk::{Cut, CutMoment, SimDisk};
use duralog::{Environment, Message, Next, Store, StoreConfig, StoreWorker, TagFilter};
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;
const QUEUES: i32 = 3;

/// Where a message lies: queue and queue offset of `orders`.
type Place = (i32, u64);

#[derive(Default)]
struct Counts {
    put: usize,
    handled: usize,
    again: usize,
    crashes: usize,
    buried: usize,
    expired: usize,
    retried: usize,
    /// Came through the retry topic.
    late: usize,
    /// How often all that was held went back, and all of it had to come again.
    drained: usize,
}

struct World {
    seed: u64,
    rng: Rng,
    disk: SimDisk,
    clock: Arc<ManualClock>,
    store: Option<Store>,
    ordered: bool,
    max_span: usize,
    consumers: Vec<Consumer>,
    held: Vec<Received>,
    /// Put with `PutOk`.
    sure: BTreeMap<String, Place>,
    /// Acknowledged or rejected, and that counted.
    done: BTreeSet<String>,
    /// The call that was to settle it failed.
    unsure: BTreeSet<String>,
    /// Set aside, and not come again yet.
    aside: BTreeSet<String>,
    /// Came through the retry topic at least once.
    retried: BTreeSet<String>,
    by_place: BTreeMap<Place, String>,
    /// What was settled, as calls that returned said, and what had been before the last power cut.
    settled: BTreeMap<i32, (u64, BTreeSet<u64>)>,
    next_id: u64,
    counts: Counts,
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(16 << 10);
    config.consume_queue_file_size = 20 * 64;
    config.index_enable = false;
    config
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let ordered = rng.below(2) == 0;
        let max_span = rng.pick(&[3, 50]);
        let mut world = Self {
            seed,
            rng,
            disk: SimDisk::new(seed),
            clock: Arc::new(ManualClock::new(1_700_000_000_000)),
            store: None,
            ordered,
            max_span,
            consumers: Vec::new(),
            held: Vec::new(),
            sure: BTreeMap::new(),
            done: BTreeSet::new(),
            unsure: BTreeSet::new(),
            aside: BTreeSet::new(),
            retried: BTreeSet::new(),
            by_place: BTreeMap::new(),
            settled: BTreeMap::new(),
            next_id: 0,
            counts: Counts::default(),
        };
        world.open();
        world
    }

    /// Opens the store, however often the power fails meanwhile.
    fn open(&mut self) {
        while self.store.is_none() {
            let environment = Environment::on(self.disk.shared());
            match Store::open_in(config(), environment.clock(self.clock.clone()).stepped()) {
                Ok(store) => {
                    for queue in 0..QUEUES {
                        let committed = store.committed_offset("billing", "orders", queue);
                        let committed = committed.unwrap_or(0);
                        // After a kill, what the last life settled; after a power cut nothing is sure.
                        let (seed, prefix) = (self.seed, self.prefix(queue));
                        assert!(committed >= prefix, "seed {seed}: at {committed}, not {prefix}");
                        self.settled.insert(queue, (committed, BTreeSet::new()));
                    }
                    self.store = Some(store);
                }
                Err(error) => {
                    assert!(self.disk.is_down(), "seed {}: {error}", self.seed);
                    self.reboot();
                }
            }
        }
    }

    fn reboot(&mut self) {
        self.disk = self.disk.reboot(Cut::seeded(self.rng.next()));
        self.counts.crashes += 1;
        self.settled.clear();
        // They may be delivered anew.
        self.aside.extend(self.retried.iter().cloned());
    }

    /// Everything before it in a queue was settled, and that is sure.
    fn prefix(&self, queue: i32) -> u64 {
        let Some((before, settled)) = self.settled.get(&queue) else { return 0 };
        (*before..).find(|at| !settled.contains(at)).unwrap_or(0)
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open")
    }

    /// After a call failed: that may only be because the power did.
    fn failed(&mut self, error: &duralog::Error) {
        assert!(self.disk.is_down(), "seed {}: {error}", self.seed);
        self.forget();
        self.reboot();
        self.open();
    }

    fn forget(&mut self) {
        self.held.clear();
        self.consumers.clear();
        self.store = None;
    }

    fn kill(&mut self) {
        if self.disk.is_down() {
            // In a call that nobody waited for.
            self.forget();
            self.reboot();
            return self.open();
        }
        // The store is closed on a disk that does not hear of it any more.
        self.disk.disarm();
        let disk = self.disk.kill();
        self.forget();
        self.disk = disk;
        self.counts.crashes += 1;
        self.open();
    }

    fn put(&mut self) {
        let id = format!("m{}", self.next_id);
        self.next_id += 1;
        let queue = self.rng.below(QUEUES as u64) as i32;
        let put = (|| {
            while self.store().step(StoreWorker::Upkeep) == Next::Now {}
            let ticket = self.store().try_submit(Message::new("orders", &*id).queue(queue))?;
            for worker in [StoreWorker::Upkeep, StoreWorker::Flush, StoreWorker::Upkeep] {
                while self.store().step(worker) == Next::Now {}
            }
            ticket.wait()?.ok()
        })();
        match put {
            Ok(put) => {
                self.counts.put += 1;
                let place = (queue, put.queue_offset);
                self.by_place.insert(place, id.clone());
                self.sure.insert(id, place);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn consumer(&mut self) -> Option<Consumer> {
        if self.consumers.is_empty() || self.rng.below(10) == 0 {
            let builder = self.store().consumer("billing").subscribe("orders", TagFilter::any());
            let builder = builder.max_span(self.max_span);
            let builder = if self.ordered { builder.ordered() } else { builder };
            match builder.open() {
                Ok(consumer) => self.consumers.push(consumer),
                Err(error) => {
                    self.failed(&error);
                    return None;
                }
            }
        }
        let which = self.rng.below(self.consumers.len() as u64) as usize;
        Some(self.consumers[which].clone())
    }

    fn poll(&mut self) {
        let Some(consumer) = self.consumer() else { return };
        let max = 1 + self.rng.below(6) as usize;
        match consumer.poll_max(max, NOW) {
            Ok(batch) => {
                for message in &batch {
                    self.check(message);
                }
                self.held.extend(batch);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Notes that a message is done with in its queue.
    fn note(&mut self, message: &Received) {
        if message.view().topic() == "orders" {
            let (_, settled) = self.settled.entry(message.queue_id()).or_default();
            settled.insert(message.queue_offset());
        }
    }

    /// What may be given out at all.
    fn check(&mut self, message: &Received) {
        if message.view().topic() != "orders" {
            self.counts.late += 1;
            self.aside.remove(&id_of(message));
            self.retried.insert(id_of(message));
            return;
        }
        let (queue, offset) = (message.queue_id(), message.queue_offset());
        let seed = self.seed;
        let prefix = self.prefix(queue);
        assert!(
            offset >= prefix,
            "seed {seed}: {offset} of queue {queue} comes again, before {prefix}"
        );
        if self.done.contains(&id_of(message)) {
            self.counts.again += 1;
        }
        if self.ordered {
            // Those that were not sure may have got lost; those that were are all handled.
            let open = self.by_place.range((queue, 0)..(queue, offset)).find(|(place, id)| {
                let with_it = self.held.iter().any(|held| {
                    (held.queue_id(), held.queue_offset()) == **place && held.is_on_lease()
                });
                let open = !self.done.contains(*id) && !self.unsure.contains(*id);
                self.sure.contains_key(*id) && open && !with_it
            });
            // The batch that it comes with is handled in order.
            let open = open.filter(|((_, at), _)| at + 6 < offset);
            assert!(open.is_none(), "seed {seed}: {offset} of queue {queue} overtakes {open:?}");
        }
    }

    fn settle(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let which = if self.ordered { 0 } else { self.rng.below(self.held.len() as u64) as usize };
        let message = self.held.remove(which);
        let action = self.rng.below(12);
        let settled = match action {
            0 => message.reject(),
            1 => return drop(message),
            2 => message.retry_later(),
            _ => message.ack(),
        };
        if action > 2 {
            // Handled, whether the answer is lost or not.
            self.done.insert(id_of(&message));
        }
        match settled {
            Ok(Settled::Done) if action == 2 => {
                self.counts.retried += 1;
                if !self.ordered {
                    // Done with here.
                    self.note(&message);
                    self.aside.insert(id_of(&message));
                }
            }
            Ok(Settled::Done) => {
                self.counts.handled += 1;
                self.counts.buried += usize::from(action == 0);
                self.done.insert(id_of(&message));
                self.note(&message);
            }
            Ok(_) => {}
            Err(error) => {
                // It may be among the dead letters.
                self.unsure.insert(id_of(&message));
                drop(message);
                self.failed(&error);
            }
        }
    }

    /// Gives back all that is held, in one way or another: all that is open comes at once then, to whoever
    /// asks, and however few are asked for at a time.
    fn drain(&mut self) {
        match self.rng.below(3) {
            0 => {
                self.consumers.clear();
                // The group ends, and what it had beyond its offsets with it.
                for queue in 0..QUEUES {
                    self.settled.insert(queue, (self.prefix(queue), BTreeSet::new()));
                }
            }
            1 => self.clock.advance(Duration::from_secs(15 * 60)),
            _ => {
                while !self.held.is_empty() {
                    let which = self.rng.below(self.held.len() as u64) as usize;
                    drop(self.held.swap_remove(which));
                }
            }
        }
        if self.ordered {
            // For so long what failed holds up its queue.
            self.clock.advance(Duration::from_secs(1));
        }
        let due = |id: &String| {
            ![&self.done, &self.unsure, &self.aside].iter().any(|set| set.contains(id))
        };
        let mut missing: BTreeSet<_> = self.sure.keys().filter(|id| due(id)).cloned().collect();
        loop {
            let Some(consumer) = self.consumer() else { return };
            let batch = match consumer.poll_max(1 + self.rng.below(3) as usize, NOW) {
                Ok(batch) => batch,
                Err(error) => return self.failed(&error),
            };
            if batch.is_empty() {
                break;
            }
            for message in &batch {
                self.check(message);
                missing.remove(&id_of(message));
            }
            // Some of it goes back once more.
            let kept = batch.into_iter().filter(|_| self.rng.below(4) > 0).collect::<Vec<_>>();
            for message in kept {
                // Handled, whether the answer is lost or not.
                self.done.insert(id_of(&message));
                match message.ack() {
                    Ok(Settled::Done) => self.note(&message),
                    // In order, it went back with one before it.
                    Ok(_) => assert!(self.ordered, "seed {}: the lease was new", self.seed),
                    Err(error) => {
                        drop(message);
                        return self.failed(&error);
                    }
                }
            }
        }
        assert!(missing.is_empty(), "seed {}: {missing:?} went back and did not come", self.seed);
        self.counts.drained += 1;
    }

    /// Delivers what is due.
    fn deliver(&self) -> duralog::Result<()> {
        for worker in [StoreWorker::Upkeep, StoreWorker::Delivery, StoreWorker::Flush] {
            while self.store().step(worker) == Next::Now {}
        }
        while self.store().step(StoreWorker::Delivery) == Next::Now {}
        match self.store().health().latched {
            Some(first) => Err(duralog::Error::Latched { first }),
            None => Ok(()),
        }
    }

    fn step(&mut self) {
        match self.rng.below(40) {
            0 => self.kill(),
            1 => {
                let moment = self.rng.pick(&[CutMoment::Before, CutMoment::Middle]);
                match self.rng.below(3) {
                    0 => self.disk.kill_at(1 + self.rng.below(40), moment),
                    _ => self.disk.cut_at(1 + self.rng.below(40), moment),
                }
            }
            2 => {
                self.clock.advance(Duration::from_secs(15 * 60));
                self.counts.expired += self.held.len();
            }
            3 => {
                let flushed = self.store().flush_offsets();
                if let Err(error) = flushed {
                    self.failed(&error);
                }
            }
            15 | 16 => {
                self.clock.advance(Duration::from_secs(self.rng.below(20)));
                if let Err(error) = self.deliver() {
                    self.failed(&error);
                }
            }
            4 if self.consumers.len() > 1 => {
                self.consumers.pop();
            }
            5..15 => self.put(),
            17..25 => self.poll(),
            25 => self.drain(),
            _ => self.settle(),
        }
    }

    /// Handles what is left, and looks whether anything is missing.
    fn finish(mut self) -> Counts {
        self.forget();
        self.disk.disarm();
        if self.disk.is_down() {
            self.reboot();
        }
        self.open();
        let builder = self.store().consumer("billing").subscribe("orders", TagFilter::any());
        let builder = if self.ordered { builder.ordered() } else { builder };
        let consumer = builder.open().expect("a sound disk");
        let mut idle = 0;
        while idle < 2 * QUEUES {
            if idle == 0 {
                // Whatever is to come later comes now.
                self.clock.advance(Duration::from_secs(3 * 3600));
                self.deliver().expect("a sound disk");
            }
            let batch = consumer.poll(NOW).expect("a sound disk");
            idle = if batch.is_empty() { idle + 1 } else { 0 };
            for message in &batch {
                self.check(message);
                self.done.insert(id_of(message));
            }
            batch.ack().expect("a sound disk");
        }
        let dead = self.store().dead_letters("billing").list(10_000).expect("readable");
        let dead: BTreeSet<_> =
            dead.iter().map(|letter| String::from_utf8_lossy(letter.body()).into_owned()).collect();
        for id in self.sure.keys() {
            assert!(
                self.done.contains(id) || dead.contains(id),
                "seed {}: {id} was put and never handled",
                self.seed
            );
        }
        self.counts
    }
}

fn id_of(message: &Received) -> String {
    String::from_utf8_lossy(message.body()).into_owned()
}

#[test]
fn nothing_is_passed_over_whatever_crashes() {
    let only = std::env::var("DURALOG_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut total = Counts::default();
    for seed in only.map_or(0..150, |seed: u64| seed..seed + 1) {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        let counts = world.finish();
        total.put += counts.put;
        total.handled += counts.handled;
        total.again += counts.again;
        total.crashes += counts.crashes;
        total.buried += counts.buried;
        total.expired += counts.expired;
        total.retried += counts.retried;
        total.late += counts.late;
        total.drained += counts.drained;
    }
    println!(
        "{} put, {} handled, {} of them again, {} rejected, {} held too long, {} sent to be retried, \
         {} came from there, {} times all went back, {} crashes",
        total.put,
        total.handled,
        total.again,
        total.buried,
        total.expired,
        total.retried,
        total.late,
        total.drained,
        total.crashes
    );
    if only.is_none() {
        assert!(total.crashes > 1000 && total.again > 100);
        assert!(total.buried > 100 && total.expired > 100);
        assert!(total.retried > 100 && total.late > 100 && total.drained > 100);
    }
}
