//! An outbox whose store loses power, whose database fails and whose process ends between any two steps: what was
//! committed is sent, what was rolled back is not, and each lane stays in order.

#[path = "support/rng.rs"]
mod rng;
#[path = "support/temp.rs"]
mod temp;

use duralog::clock::ManualClock;
use duralog::delivery::outbox::{
    DeadMessage, DueMessages, Outbox, OutboxCounts, OutboxTable, SendFailure, SqliteOutbox,
};
use duralog::delivery::{Event, Watch};
use duralog::disk::{Cut, CutMoment, SimDisk};
use duralog::message::names;
use duralog::{Environment, Error, Message, Next, Result, Store, StoreConfig};
use rng::Rng;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use temp::TempDir;

#[derive(Default)]
struct Counts {
    committed: usize,
    rolled_back: usize,
    copies: usize,
    crashes: usize,
    failures: usize,
    died: usize,
}

/// When calls of the database fail.
#[derive(Default)]
struct Plan {
    /// So many calls on.
    countdown: AtomicU32,
    /// Although what was asked for is done.
    afterwards: AtomicBool,
    failed: AtomicU32,
}

impl Plan {
    fn call<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let left = self
            .countdown
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left != Ok(1) {
            return call();
        }
        self.failed.fetch_add(1, Ordering::SeqCst);
        if self.afterwards.load(Ordering::SeqCst) {
            call()?;
        }
        Err(Error::database("as planned"))
    }
}

struct Unreliable {
    table: SqliteOutbox,
    plan: Arc<Plan>,
}

impl OutboxTable for Unreliable {
    fn make_due(&mut self) -> Result<()> {
        self.plan.call(|| self.table.make_due())
    }
    fn due(&mut self, now_ms: i64, max: usize) -> Result<DueMessages> {
        self.plan.call(|| self.table.due(now_ms, max))
    }
    fn mark_sent(&mut self, ids: &[i64], now_ms: i64) -> Result<()> {
        self.plan.call(|| self.table.mark_sent(ids, now_ms))
    }
    fn mark_failed(&mut self, id: i64, failure: &SendFailure) -> Result<()> {
        self.plan.call(|| self.table.mark_failed(id, failure))
    }
    fn dead(&mut self, max: usize) -> Result<Vec<DeadMessage>> {
        self.plan.call(|| self.table.dead(max))
    }
    fn rearm(&mut self, id: i64) -> Result<bool> {
        self.plan.call(|| self.table.rearm(id))
    }
    fn discard(&mut self, id: i64) -> Result<bool> {
        self.plan.call(|| self.table.discard(id))
    }
    fn prune(&mut self, until_ms: i64, max: usize) -> Result<usize> {
        self.plan.call(|| self.table.prune(until_ms, max))
    }
    fn counts(&mut self) -> Result<OutboxCounts> {
        self.plan.call(|| self.table.counts())
    }
}

struct World {
    seed: u64,
    rng: Rng,
    _dir: TempDir,
    database: PathBuf,
    application: Connection,
    disk: SimDisk,
    clock: Arc<ManualClock>,
    running: Option<(Store, Outbox)>,
    plan: Arc<Plan>,
    /// Messages that cannot be sent for now, by their bodies.
    stubborn: Arc<Mutex<HashSet<String>>>,
    /// Ids of what was sent in this life of the outbox.
    sent: Arc<Mutex<BTreeMap<String, u32>>>,
    /// By body: the lane.
    committed: BTreeMap<u64, Option<u64>>,
    rolled_back: BTreeSet<u64>,
    /// Have been dead: no order holds for them.
    died: BTreeSet<u64>,
    counts: Counts,
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(16 << 10);
    config.consume_queue_file_size = 20 * 64;
    config.index_enable = false;
    config
}

fn connect(path: &PathBuf) -> Connection {
    let database = Connection::open(path).expect("a database");
    // The power of this machine does not fail.
    database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").expect("set");
    database
}

fn id_of(body: &[u8]) -> u64 {
    std::str::from_utf8(body).expect("text").parse().expect("a number")
}

impl World {
    fn new(seed: u64) -> Self {
        let dir = TempDir::in_memory();
        let database = dir.path().join("orders.db");
        let application = connect(&database);
        application.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)").expect("created");
        // Before anything is recorded.
        drop(SqliteOutbox::open(connect(&database)).expect("created"));
        let mut world = Self {
            seed,
            rng: Rng(seed),
            _dir: dir,
            database,
            application,
            disk: SimDisk::new(seed),
            clock: Arc::new(ManualClock::new(1_700_000_000_000)),
            running: None,
            plan: Arc::default(),
            stubborn: Arc::default(),
            sent: Arc::default(),
            committed: BTreeMap::new(),
            rolled_back: BTreeSet::new(),
            died: BTreeSet::new(),
            counts: Counts::default(),
        };
        world.open();
        world
    }

    /// Opens store and outbox, however often something fails meanwhile.
    fn open(&mut self) {
        while self.running.is_none() {
            match self.try_open() {
                Ok(running) => self.running = Some(running),
                Err(Error::Database { .. }) => {}
                Err(error) => {
                    assert!(self.disk.is_down(), "seed {}: {error}", self.seed);
                    self.reboot();
                }
            }
        }
    }

    fn try_open(&mut self) -> Result<(Store, Outbox)> {
        let environment = Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped();
        let store = Store::open_in(config(), environment)?;
        self.sent.lock().unwrap().clear();
        let sent = self.sent.clone();
        store.observe(Watch::new(move |event| {
            if let Event::Sent { sent: told } = event {
                *sent.lock().unwrap().entry(told.unique_key().to_owned()).or_default() += 1;
            }
        }))?;
        let stubborn = self.stubborn.clone();
        let producer = store.producer("orders-service").queue_selector(move |message, queues| {
            let body = String::from_utf8_lossy(message.body()).into_owned();
            let is_stubborn = stubborn.lock().unwrap_or_else(|it| it.into_inner()).contains(&body);
            assert!(!is_stubborn, "as planned");
            let lane: usize = message.get(names::SHARDING_KEY).map_or(0, |it| it.parse().unwrap());
            queues[lane % queues.len()]
        });
        let table = SqliteOutbox::open(connect(&self.database))?;
        let table = Unreliable { table, plan: self.plan.clone() };
        let builder = Outbox::builder(producer.open()?, table).max_attempts(5);
        Ok((store, builder.start()?))
    }

    fn reboot(&mut self) {
        self.disk = self.disk.reboot(Cut::seeded(self.rng.next()));
        self.counts.crashes += 1;
    }

    fn crash(&mut self) {
        self.check_life();
        if self.disk.is_down() {
            self.running = None;
            self.reboot();
        } else {
            // The store is closed on a disk that does not hear of it any more.
            self.disk.disarm();
            let disk = match self.rng.below(2) {
                0 => self.disk.kill(),
                _ => self.disk.cut_power(Cut::seeded(self.rng.next())),
            };
            self.running = None;
            self.disk = disk;
            self.counts.crashes += 1;
        }
        self.open();
    }

    /// Nothing is sent twice in a life.
    fn check_life(&self) {
        let twice =
            self.sent.lock().unwrap().iter().find(|(_, times)| **times > 1).map(|it| it.0.clone());
        assert_eq!(twice, None, "seed {}: sent twice without a crash", self.seed);
    }

    /// The application changes something and records a message about it.
    fn work(&mut self) {
        let next = self.committed.len() + self.rolled_back.len();
        let (mut ids, commits) = (Vec::new(), self.rng.below(4) > 0);
        let seed = self.rng.next();
        let mut rng = Rng(seed);
        let change = self.application.transaction().expect("a transaction");
        for number in 0..1 + rng.below(3) {
            let (id, lane) = (next as u64 + number, rng.below(5));
            let lane = (lane < 4).then_some(lane);
            change.execute("INSERT INTO orders VALUES (?1)", [id as i64]).expect("inserted");
            let mut message = Message::new("orders", id.to_string());
            if let Some(lane) = lane {
                message = message.sharding_key(lane.to_string());
            }
            SqliteOutbox::record(&change, &message).expect("recorded");
            ids.push((id, lane));
        }
        if commits {
            change.commit().expect("committed");
            self.committed.extend(ids);
            // Else it finds out by itself.
            if self.rng.below(2) == 0 {
                self.outbox().notify();
            }
        } else {
            drop(change);
            self.rolled_back.extend(ids.iter().map(|(id, _)| id));
        }
    }

    fn outbox(&self) -> &Outbox {
        &self.running.as_ref().expect("it runs").1
    }

    fn run(&mut self) {
        for _ in 0..1 + self.rng.below(4) {
            let next = self.outbox().step();
            if self.disk.is_down() {
                return self.crash();
            }
            match self.outbox().trouble() {
                None | Some(Error::Database { .. }) => {}
                Some(error) => panic!("seed {}: {error}", self.seed),
            }
            if let Next::At(_) = next {
                self.clock.advance(Duration::from_millis(self.rng.below(1500)));
            }
        }
        let dead = self.outbox().dead(1000).unwrap_or_default();
        for message in dead {
            let message = message.message().expect("whole");
            self.died.insert(id_of(message.body()));
        }
    }

    fn step(&mut self) {
        match self.rng.below(30) {
            0 => self.crash(),
            1 => {
                let moment = self.rng.pick(&[CutMoment::Before, CutMoment::Middle]);
                match self.rng.below(3) {
                    0 => self.disk.kill_at(1 + self.rng.below(40), moment),
                    _ => self.disk.cut_at(1 + self.rng.below(40), moment),
                }
            }
            2 | 3 => {
                let (calls, afterwards) = (1 + self.rng.below(12), self.rng.below(2) == 0);
                self.plan.countdown.store(calls as u32, Ordering::SeqCst);
                self.plan.afterwards.store(afterwards, Ordering::SeqCst);
            }
            4 | 5 => {
                let mut stubborn = self.stubborn.lock().unwrap_or_else(|it| it.into_inner());
                if stubborn.len() > 4 {
                    stubborn.clear();
                } else {
                    let id = self.rng.below(self.committed.len() as u64 + 10);
                    stubborn.insert(id.to_string());
                }
            }
            6 => {
                // It may fail.
                let _ = self.outbox().rearm_all();
            }
            7..16 => self.work(),
            _ => self.run(),
        }
    }

    /// Sends what is left, and looks what became of everything.
    fn finish(mut self) -> Counts {
        self.plan.countdown.store(0, Ordering::SeqCst);
        self.stubborn.lock().unwrap_or_else(|it| it.into_inner()).clear();
        self.crash();
        self.disk.disarm();
        self.outbox().rearm_all().expect("a sound database");
        self.outbox().retry_now().expect("a sound database");
        while self.outbox().step() == Next::Now {}
        self.check_life();
        let counts = self.outbox().counts().expect("a sound database");
        assert_eq!((counts.pending, counts.dead), (0, 0), "seed {}", self.seed);

        let (store, _) = self.running.as_ref().expect("it runs");
        let mut first = BTreeMap::new();
        let mut keys: BTreeMap<u64, String> = BTreeMap::new();
        let mut lanes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut stored = Vec::new();
        let queues = store.topics().into_iter().find(|(topic, _)| topic == "orders");
        for queue in queues.map_or(Vec::new(), |(_, queues)| queues) {
            stored.extend(store.get("orders", queue, 0, 100_000).expect("readable").messages);
        }
        stored.sort_by_key(|message| message.physical_offset);
        for message in stored {
            let id = id_of(&message.body);
            let key = message.unique_key().expect("a key").to_owned();
            assert!(self.committed.contains_key(&id), "seed {}: {id} was rolled back", self.seed);
            match keys.insert(id, key.clone()) {
                None => {
                    first.insert(id, message.physical_offset);
                    if let Some(lane) = self.committed[&id].filter(|_| !self.died.contains(&id)) {
                        lanes.entry(lane).or_default().push(id);
                    }
                }
                Some(before) => {
                    self.counts.copies += 1;
                    assert_eq!(before, key, "seed {}: a copy that is not to be told", self.seed);
                }
            }
        }
        for id in self.committed.keys() {
            assert!(first.contains_key(id), "seed {}: {id} is committed and not sent", self.seed);
        }
        for (lane, ids) in lanes {
            assert!(ids.is_sorted(), "seed {}: lane {lane} is {ids:?}", self.seed);
        }
        let mut rows = self.application.prepare("SELECT id FROM orders").expect("prepared");
        let rows = rows.query_map([], |row| row.get::<_, i64>(0)).expect("asked");
        let rows: BTreeSet<u64> = rows.map(|row| row.expect("a row") as u64).collect();
        assert_eq!(rows, self.committed.keys().copied().collect(), "seed {}", self.seed);
        self.counts.committed = self.committed.len();
        self.counts.rolled_back = self.rolled_back.len();
        self.counts.died = self.died.len();
        self.counts.failures = self.plan.failed.load(Ordering::SeqCst) as usize;
        self.counts
    }
}

#[test]
fn what_is_committed_is_sent_and_what_is_rolled_back_is_not_whatever_crashes() {
    let only = std::env::var("DURALOG_SEED").ok().and_then(|seed| seed.parse().ok());
    // Planned panics are not to be read about.
    std::panic::set_hook(Box::new({
        let usual = std::panic::take_hook();
        move |panic| {
            let text = panic.payload().downcast_ref::<&str>().copied().unwrap_or_default();
            if !text.contains("as planned") {
                usual(panic);
            }
        }
    }));
    let mut total = Counts::default();
    for seed in only.map_or(0..60, |seed: u64| seed..seed + 1) {
        let mut world = World::new(seed);
        for _ in 0..250 {
            world.step();
        }
        let counts = world.finish();
        total.committed += counts.committed;
        total.rolled_back += counts.rolled_back;
        total.copies += counts.copies;
        total.crashes += counts.crashes;
        total.failures += counts.failures;
        total.died += counts.died;
    }
    println!(
        "{} committed, {} copies of them, {} rolled back, {} dead for a while, {} crashes, {} failures of the \
         database",
        total.committed, total.copies, total.rolled_back, total.died, total.crashes, total.failures
    );
    if only.is_none() {
        assert!(total.crashes > 500 && total.failures > 300);
        assert!(total.copies > 20 && total.died > 20);
    }
}
