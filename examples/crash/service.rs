//! The process that `crash_delivery` kills: producers, transactions and two consumer groups on one store.

use super::Failure;
use super::crash;
use super::diary::{Diary, Judgement, Place, Queue, Said};
use super::plan::{self, Fate, Id, Plan, Trade, Way};
use duralog::delivery::{
    Consumer, Event, HalfMessageView, Handled, Listener, Producer, Received, TransactionOutcome,
    TransactionState, TransactionalProducer, Watch,
};
use duralog::message::format::{DELAY_GROUP, SCHEDULE_TOPIC};
use duralog::{FlushMode, MessageView, Store, StoreConfig, TagFilter};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longer than any disk takes that is not broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Messages that wait, beyond which producers do.
const BACKLOG: u64 = 200;
/// For so long there must be nothing to do before there never will be.
const QUIET: Duration = Duration::from_millis(1000);
const LOOK: Duration = Duration::from_millis(50);

/// What a process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Until it is killed.
    Work,
    /// It works for a while, and closes its store.
    Close(Duration),
    /// It sends nothing, and ends when all is handled.
    Drain,
}

pub struct Orders {
    pub seed: u64,
    pub life: u64,
    pub flush: FlushMode,
    pub task: Task,
}

/// The settings with which a store is always opened, but for the flush mode.
pub fn config(dir: &Path, seed: u64) -> StoreConfig {
    // Small, so that whatever happens at the end of a file happens often.
    let mut config = StoreConfig::new(dir.join("store")).segment_size(256 << 10);
    config.consume_queue_file_size = 20 * 1000;
    config.queue_checkpoint_bytes = 1 << 20;
    (config.index_slots, config.index_items) = (50_000, 200_000);
    // Whether a transaction was committed is looked for there, or elsewhere.
    config.index_enable = !seed.is_multiple_of(3);
    config.default_topic_queue_nums = plan::QUEUES;
    config.log.put_timeout = PATIENCE;
    config
}

pub fn run(dir: &Path, orders: &Orders) -> Result<(), Failure> {
    let diary = Arc::new(Diary::open(&dir.join("diary"), false)?);
    diary.say(&Said::Opening)?;
    let flush = match orders.flush {
        FlushMode::Sync { .. } => FlushMode::Sync { timeout: PATIENCE },
        other => other,
    };
    let store = Store::open(config(dir, orders.seed).flush_mode(flush))?;
    diary.say(&Said::Open(store.stats().watermarks.appended))?;
    for known in store.committed_offsets() {
        let of_ours = plan::GROUPS.iter().any(|(group, _)| *group == known.group);
        // How far dead letters were looked through is not said.
        if of_ours && !known.topic.starts_with("%DLQ%") {
            let queue = Queue { group: known.group, topic: known.topic, id: known.queue_id };
            diary.say(&Said::At(Place { queue, offset: known.next }))?;
        }
    }
    let service = Service {
        store,
        diary,
        seed: orders.seed,
        life: orders.life,
        stopping: Arc::new(AtomicBool::new(false)),
    };
    service.work(orders.task)
}

#[derive(Clone)]
struct Service {
    store: Store,
    diary: Arc<Diary>,
    seed: u64,
    life: u64,
    stopping: Arc<AtomicBool>,
}

impl Service {
    /// Says what happened. Nothing goes on that cannot be said.
    fn say(&self, said: Said) {
        if let Err(error) = self.diary.say(&said) {
            eprintln!("crash_delivery: {said}: {error}");
            std::process::abort();
        }
    }

    fn work(&self, task: Task) -> Result<(), Failure> {
        let watcher = self.clone();
        self.store.observe(Watch::new(move |event| watcher.watch(event)))?;
        let checker = self.clone();
        let trader = self
            .store
            .transactional_producer("traders", move |half| checker.check(half))
            .transaction_timeout(Duration::from_millis(150))
            .transaction_check_interval(Duration::from_millis(50))
            .transaction_check_max(plan::CHECKS)
            .open()?;
        let producer = self.store.producer("senders").send_timeout(PATIENCE).open()?;
        let workers = self.store.consumer(plan::WORKERS).subscribe(plan::JOBS, TagFilter::any());
        let workers = workers.consume_timeout(plan::TIMEOUT).max_reconsume_times(plan::RETRIES);
        let workers = workers.max_span(plan::SPAN).batch_max(plan::POLLED);
        let keepers = self.store.consumer(plan::KEEPERS).subscribe(plan::STEPS, TagFilter::any());
        let keepers = keepers.ordered().batch_max(plan::BATCH).max_reconsume_times(plan::RETRIES);
        let poller = workers.clone().open()?;
        let listeners = [self.listen(&workers.open()?)?, self.listen(&keepers.open()?)?];
        self.say(Said::Ready);

        std::thread::scope(|scope| {
            let polling = scope.spawn(|| self.poll(&poller));
            let threads = match task {
                Task::Drain => 0,
                _ => plan::PRODUCERS,
            };
            let producing: Vec<_> = (0..threads)
                .map(|thread| {
                    let (producer, trader) = (&producer, &trader);
                    scope.spawn(move || self.produce(thread, producer, trader))
                })
                .collect();
            let watched = self.attend(task, &listeners);
            self.stopping.store(true, Ordering::SeqCst);
            let threads = producing.into_iter().chain([polling]);
            let ended = threads.map(|thread| thread.join().map_err(|_| "a thread panicked")?);
            ended.chain([watched]).collect::<Result<(), Failure>>()
        })?;
        self.say(Said::Closing);
        for listener in listeners {
            listener.close()?;
        }
        Ok(self.store.close()?)
    }

    /// Waits until it is time to end.
    fn attend(&self, task: Task, listeners: &[Listener]) -> Result<(), Failure> {
        let started = Instant::now();
        if task == Task::Drain {
            self.wait_for_quiet()?;
        }
        while !self.is_stopping() {
            match task {
                Task::Work => std::thread::sleep(LOOK),
                Task::Close(after) if started.elapsed() < after => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Task::Close(_) | Task::Drain => break,
            }
            if let Some(trouble) = listeners.iter().find_map(Listener::trouble) {
                return Err(format!("a listener: {trouble}").into());
            }
        }
        Ok(())
    }
}

impl Service {
    /// Sends one message after the other, in a way that its id decides.
    fn produce(
        &self,
        thread: u64,
        producer: &Producer,
        trader: &TransactionalProducer,
    ) -> Result<(), Failure> {
        let _ends = Ends(&self.stopping);
        for ordinal in 0.. {
            if self.is_stopping() {
                break;
            }
            let id = Id { thread, seq: crash::first_seq(self.life) + ordinal };
            let plan = Plan::of(self.seed, id);
            self.wait_for_room(&plan);
            match plan.way {
                Way::Trade(trade) => self.trade(&plan, trade, trader)?,
                way => {
                    let sent = producer.send(plan.message(now()))?;
                    let put = (sent.put.queue_id, sent.put.queue_offset);
                    self.say(Said::Sent(id, (way == Way::Plain).then_some(put)));
                }
            }
            std::thread::sleep(Duration::from_millis(1 + id.seq % 5));
        }
        Ok(())
    }

    fn wait_for_room(&self, plan: &Plan) {
        let waiting =
            || self.store.lag(plan.group()).iter().map(|queue| queue.messages()).sum::<u64>();
        while !self.is_stopping() && waiting() > BACKLOG {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn trade(
        &self,
        plan: &Plan,
        trade: Trade,
        trader: &TransactionalProducer,
    ) -> Result<(), Failure> {
        let outcome = trader.send(plan.message(now()), |_| {
            self.say(Said::Half(plan.id));
            if trade.is_told { trade.outcome } else { TransactionState::Unknown }
        })?;
        match outcome {
            TransactionOutcome::Committed(put) => {
                self.say(Said::Committed(plan.id, put.queue_id, put.queue_offset));
            }
            TransactionOutcome::RolledBack => self.say(Said::RolledBack(plan.id)),
            _ => {}
        }
        Ok(())
    }

    fn check(&self, half: &HalfMessageView) -> TransactionState {
        let plan = half.keys().and_then(Id::parse).map(|id| Plan::of(self.seed, id));
        let Some(Plan { id, way: Way::Trade(trade), .. }) = plan else {
            return TransactionState::Unknown;
        };
        let state =
            if half.checks() < trade.doubts { TransactionState::Unknown } else { trade.outcome };
        self.say(Said::Checked(id, state));
        state
    }

    fn watch(&self, event: &Event<'_>) {
        match event {
            Event::Delivered { group, message } => {
                if let Some(id) = message.keys().and_then(Id::parse) {
                    self.say(Said::Given(place(group, message.view()), id, now()));
                }
            }
            Event::Settled { group, message, verdict, settled, .. } => {
                self.say(Said::Settled(place(group, message.view()), *verdict, *settled));
            }
            // In order, what fails stays in its queue until it has failed too often.
            Event::DeadLetter { group: group @ plan::KEEPERS, message } => {
                let id = message.record().keys().and_then(Id::parse);
                if id.is_some_and(|id| Plan::of(self.seed, id).fate == Fate::Hopeless) {
                    self.say(Said::Buried(place(group, message)));
                }
            }
            _ => {}
        }
    }

    fn listen(&self, consumer: &Consumer) -> Result<Listener, Failure> {
        let (service, group) = (self.clone(), consumer.group().to_owned());
        Ok(consumer.listen(plan::LISTENERS, move |message| service.handle(&group, message))?)
    }

    /// What the group `workers` does beside its listener: it takes many messages at a time.
    fn poll(&self, consumer: &Consumer) -> Result<(), Failure> {
        let _ends = Ends(&self.stopping);
        while !self.is_stopping() {
            let batch = consumer.poll(Duration::from_millis(20))?;
            for message in &batch {
                // This thread is not to end.
                let handle = std::panic::AssertUnwindSafe(|| self.handle(plan::WORKERS, message));
                match std::panic::catch_unwind(handle) {
                    Ok(Ok(Handled::Done)) => continue,
                    Ok(Ok(Handled::RetryAfter(delay))) => message.retry_after(delay)?,
                    Ok(Ok(Handled::Reject)) => message.reject()?,
                    _ => message.retry_later()?,
                };
            }
            batch.ack()?;
        }
        Ok(())
    }

    /// Handles a message as its id decides.
    fn handle(
        &self,
        group: &str,
        message: &Received,
    ) -> Result<Handled, Box<dyn std::error::Error>> {
        let place = place(group, message.view());
        let Some(id) = message.keys().and_then(Id::parse) else {
            self.say(Said::Altered(place));
            return Ok(Handled::Done);
        };
        let plan = Plan::of(self.seed, id);
        self.say(Said::Begun(place.clone(), id));
        if message.body() != plan.body() || message.topic() != plan.topic() {
            self.say(Said::Altered(place.clone()));
        }
        let (times, judged) = (message.reconsume_times(), |what| Said::Judged(place, id, what));
        let is_first = times == 0 && plan.fails_in(self.life);
        match plan.fate {
            Fate::FailsOnce | Fate::PanicsOnce if is_first => {
                self.say(judged(Judgement::Again));
                if plan.fate == Fate::FailsOnce {
                    return Err("it fails the first time".into());
                }
                // A panic, but for the message on standard error.
                std::panic::resume_unwind(Box::new(()));
            }
            Fate::Again(often) if times < often => {
                self.say(judged(Judgement::Again));
                Ok(Handled::RetryAfter(Duration::from_millis(1 + id.seq % 30)))
            }
            Fate::Hopeless => {
                self.say(judged(Judgement::Again));
                Ok(Handled::RetryAfter(Duration::from_millis(10)))
            }
            Fate::Rejected => {
                self.say(judged(Judgement::Rejected));
                Ok(Handled::Reject)
            }
            fate => {
                if fate == Fate::Slow && times == 0 {
                    std::thread::sleep(plan::SLOW);
                }
                self.say(judged(Judgement::Done));
                Ok(Handled::Done)
            }
        }
    }

    /// Waits until there is nothing to do for anybody, and will not be.
    fn wait_for_quiet(&self) -> Result<(), Failure> {
        let (started, mut since) = (Instant::now(), Instant::now());
        while since.elapsed() < QUIET {
            if self.is_stopping() {
                return Ok(());
            }
            if let Some(what) = self.unfinished()? {
                since = Instant::now();
                if started.elapsed() > 2 * PATIENCE {
                    return Err(format!("nothing comes of {what}").into());
                }
            }
            std::thread::sleep(LOOK);
        }
        self.say(Said::Drained);
        Ok(())
    }

    /// Something that is to be done.
    fn unfinished(&self) -> Result<Option<String>, Failure> {
        let open = self.store.transactions()?.stats().open;
        if open > 0 {
            return Ok(Some(format!("{open} transactions")));
        }
        let waiting = self.store.delay_stats()?.pending_timers;
        if waiting > 0 {
            return Ok(Some(format!("{waiting} timers")));
        }
        let topics: Vec<_> = self.store.topics();
        let retries = plan::GROUPS.map(|(group, _)| (group, format!("%RETRY%{group}")));
        let wanted = plan::GROUPS.iter().map(|(group, topic)| (*group, *topic));
        let wanted = wanted.chain(retries.iter().map(|(group, topic)| (*group, topic.as_str())));
        for (group, topic) in wanted.chain([(DELAY_GROUP, SCHEDULE_TOPIC)]) {
            for id in topics.iter().filter(|(name, _)| name == topic).flat_map(|(_, ids)| ids) {
                let next = self.store.committed_offset(group, topic, *id).unwrap_or(0);
                let end = self.store.max_offset(topic, *id).unwrap_or(0);
                if next < end {
                    return Ok(Some(format!("{topic} {id} for {group}: at {next} of {end}")));
                }
            }
        }
        Ok(None)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// Whoever ends, ends all.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn place(group: &str, view: &MessageView) -> Place {
    let record = view.record();
    let (topic, id) = (record.topic().to_owned(), record.queue_id());
    Place { queue: Queue { group: group.to_owned(), topic, id }, offset: view.queue_offset() }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
