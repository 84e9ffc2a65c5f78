//! Holds what lies in a store against what was said while it was filled, and tells what is wrong.
//!
//! Of each queue of each group, with `B` for the offset that was committed when a process opened the store, and
//! `C` for the one that is when the next process does:
//!
//! 1. Where the settling of all messages from `B` up to some place had returned, `C` is behind that place.
//! 2. Nothing below `C` is ever given out again. A handler had come to an end with all of it; and of what lies
//!    from `B` up to `C`, no more had not returned from its settling than can be in hand at a time.
//! 3. Nothing that was ever given out lies at `C + span` or behind it.
//! 4. In one life, one settling of a message counts.
//!
//! So what comes again after a kill although its settling had returned was in flight: less than `span` messages of a
//! queue, behind one that was open. Settling is `ack`, `reject` or, where that makes a copy, a retry; `span` is
//! `max_span`, and one batch in order.

use super::Failure;
use super::diary::{Judgement, Place, Queue, Said};
use super::plan::{self, DUE, GROUPS, Id, Plan, Way};
use duralog::delivery::{Settled, TransactionState, Verdict as How};
use duralog::{Store, StoreConfig, TagFilter};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// More problems than this are counted but not described.
const DESCRIBED: usize = 1000;
const FETCH: usize = 256;

/// What came out.
#[derive(Debug, Default)]
pub struct Verdict {
    pub problems: usize,
    counts: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |what| self.counted(what);
        writeln!(
            f,
            "{} sent, {} transactions: {} committed, {} rolled back, {} decided by the checker, {} parked",
            n("sent"),
            n("begun"),
            n("committed"),
            n("rolled back"),
            n("checked"),
            n("parked")
        )?;
        writeln!(
            f,
            "{} handled, {} dead letters; of {} times given out {} again; again handled {}, dead {}, delayed {}",
            n("handled"),
            n("dead"),
            n("given"),
            n("given again"),
            n("handled again"),
            n("dead again"),
            n("delayed again")
        )?;
        write!(
            f,
            "{} settled, {} came again that had been in flight, {} of a queue at most, {} unsaid; {} kills, {} \
             orderly ends: {} problems",
            n("settled"),
            n("in flight"),
            n("in flight of a queue"),
            n("settled unsaid"),
            n("kills"),
            n("closed"),
            self.problems
        )
    }
}

impl Verdict {
    fn wrong(&mut self, what: impl fmt::Display) {
        if self.problems < DESCRIBED {
            eprintln!("crash_delivery: {what}");
        }
        self.problems += 1;
    }

    fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    fn add(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    fn most(&mut self, what: &'static str, count: u64) {
        let most = self.counts.entry(what).or_default();
        *most = count.max(*most);
    }

    /// How often something happened.
    pub fn counted(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }
}

/// A message as it lies in its topic.
struct Copy {
    id: Id,
    physical_offset: u64,
    queue_id: i32,
    queue_offset: u64,
}

/// What is known of a message.
#[derive(Default)]
struct Known {
    is_sent: bool,
    is_begun: bool,
    was_put_at: Option<(i32, u64)>,
    is_rolled_back: bool,
    copies: u64,
    is_given: bool,
    handled: u64,
    letters: u64,
    is_parked: bool,
}

/// What is known of a queue of a group.
#[derive(Default)]
struct Progress {
    /// Everything before was settled.
    run: u64,
    /// What was settled behind.
    settled: BTreeSet<u64>,
    /// A handler came to an end with it.
    judged: HashSet<u64>,
    /// Where the group was when this life began.
    committed: u64,
    /// Whether that was said.
    is_told: bool,
    /// Behind the last one that was given out.
    given: u64,
    given_at: HashSet<u64>,
    /// Settled in this life.
    now: HashSet<u64>,
}

impl Progress {
    fn is_settled(&self, offset: u64) -> bool {
        offset < self.run || self.settled.contains(&offset)
    }

    fn settle(&mut self, offset: u64) {
        if offset >= self.run {
            self.settled.insert(offset);
        }
        while self.settled.remove(&self.run) {
            self.run += 1;
        }
    }
}

/// The messages of a sharding key, in order.
#[derive(Default)]
struct Line {
    begun: BTreeSet<Id>,
    /// The last one that was begun in this life.
    last: Option<Id>,
}

struct Judge<'a> {
    store: &'a Store,
    seed: u64,
    verdict: Verdict,
    known: BTreeMap<Id, Known>,
    /// What lies where in the topics that groups read.
    places: HashMap<(String, i32), BTreeMap<u64, Id>>,
    due: HashMap<Id, u64>,
    progress: BTreeMap<Queue, Progress>,
    lines: HashMap<(u64, u64), Line>,
    /// A handler had come to an end with them, and not to come again.
    over: HashSet<Id>,
    /// Ends of the log at which lives began.
    ends: Vec<u64>,
    /// Those of them before which a life had closed its store.
    closed: Vec<u64>,
}

/// Judges a store that nobody has open, and that was drained.
pub fn judge(config: StoreConfig, seed: u64, said: &[Said]) -> Result<Verdict, Failure> {
    let store = Store::open(config)?;
    let mut judge = Judge {
        store: &store,
        seed,
        verdict: Verdict::default(),
        known: BTreeMap::new(),
        places: HashMap::new(),
        due: HashMap::new(),
        progress: BTreeMap::new(),
        lines: HashMap::new(),
        over: HashSet::new(),
        ends: Vec::new(),
        closed: Vec::new(),
    };
    judge.read_topics(said)?;
    judge.read_letters()?;
    judge.read_parked()?;
    said.iter().for_each(|said| judge.hear(said));
    judge.conclude();
    for damage in store.verify()?.damage {
        judge.verdict.wrong(damage);
    }
    let verdict = judge.verdict;
    store.close()?;
    Ok(verdict)
}

impl Judge<'_> {
    fn plan(&self, id: Id) -> Plan {
        Plan::of(self.seed, id)
    }

    fn known(&mut self, id: Id) -> &mut Known {
        self.known.entry(id).or_default()
    }

    fn read_topics(&mut self, said: &[Said]) -> Result<(), Failure> {
        let mut is_closed = false;
        for said in said {
            match said {
                Said::Ended => is_closed = true,
                Said::Open(end) => {
                    self.ends.push(*end);
                    if std::mem::take(&mut is_closed) {
                        self.closed.push(*end);
                    }
                }
                _ => {}
            }
        }
        for (group, topic) in GROUPS {
            let mut copies = HashMap::<Id, Vec<Copy>>::new();
            self.read(topic, true, |copy| copies.entry(copy.id).or_default().push(copy))?;
            self.read(&format!("%RETRY%{group}"), false, |_| {})?;
            for (id, copies) in copies {
                self.judge_copies(id, &copies);
            }
        }
        Ok(())
    }

    /// Reads a topic, and checks each message as far as that can be done alone.
    fn read(
        &mut self,
        topic: &str,
        is_first: bool,
        mut show: impl FnMut(Copy),
    ) -> Result<(), Failure> {
        let topics = self.store.topics();
        for queue_id in topics.into_iter().filter(|(name, _)| name == topic).flat_map(|it| it.1) {
            let end = self.store.max_offset(topic, queue_id).unwrap_or(0);
            let mut next = 0;
            while next < end {
                let found = self.store.get_view(topic, queue_id, next, FETCH, &TagFilter::any())?;
                for view in &found.messages {
                    let record = view.record();
                    let queue_offset = view.queue_offset();
                    let Some(id) = record.keys().and_then(Id::parse) else {
                        self.verdict.wrong(format!("{topic} {queue_id} {queue_offset}: nobody's"));
                        continue;
                    };
                    let plan = self.plan(id);
                    if view.body() != plan.body() || is_first && topic != plan.topic() {
                        self.verdict.wrong(format!("{id}: altered in {topic}"));
                    }
                    if is_first {
                        let due = record.properties().get(DUE).and_then(|due| due.parse().ok());
                        if let Some(due) = due {
                            self.due.insert(id, due);
                            let stored = record.store_timestamp().cast_unsigned();
                            if stored < due {
                                let early = due - stored;
                                self.verdict.wrong(format!("{id}: delivered {early} ms early"));
                            }
                        }
                        if due.is_some() != plan.may_be_copied() {
                            self.verdict.wrong(format!("{id}: due at {due:?}"));
                        }
                    }
                    let place = (topic.to_owned(), queue_id);
                    self.places.entry(place).or_default().insert(queue_offset, id);
                    let physical_offset = view.physical_offset();
                    show(Copy { id, physical_offset, queue_id, queue_offset });
                }
                if found.next_offset <= next {
                    self.verdict.wrong(format!("{topic} {queue_id}: nothing at {next}"));
                    break;
                }
                next = found.next_offset;
            }
        }
        Ok(())
    }

    /// A message lies in its topic once, and not if it was rolled back; one that was delayed may have been
    /// delivered again by another life, but for lives that began after an orderly end.
    fn judge_copies(&mut self, id: Id, copies: &[Copy]) {
        let plan = self.plan(id);
        if !plan.appears() {
            self.verdict.wrong(format!("{id}: delivered, though never committed"));
        }
        let lives: HashSet<_> = copies
            .iter()
            .map(|copy| self.ends.iter().filter(|end| **end <= copy.physical_offset).count())
            .collect();
        if copies.len() > 1 && (!plan.may_be_copied() || lives.len() < copies.len()) {
            let (often, lives) = (copies.len(), lives.len());
            self.verdict.wrong(format!("{id}: put {often} times in {lives} lives"));
        }
        let spans = |end: &u64| {
            copies.iter().any(|copy| copy.physical_offset < *end)
                && copies.iter().any(|copy| copy.physical_offset >= *end)
        };
        if let Some(end) = self.closed.iter().find(|end| spans(end)) {
            let end = *end;
            self.verdict.wrong(format!("{id}: put again after the store was closed at {end}"));
        }
        self.verdict.add("delayed again", copies.len() as u64 - 1);
        let first = (copies[0].queue_id, copies[0].queue_offset);
        let known = self.known(id);
        (known.copies, known.was_put_at) = (copies.len() as u64, Some(first));
    }

    fn read_letters(&mut self) -> Result<(), Failure> {
        for (group, topic) in GROUPS {
            let letters = self.store.dead_letters(group);
            let count = letters.count();
            let found = letters.list(usize::try_from(count)?)?;
            if found.len() as u64 != count {
                self.verdict.wrong(format!("{} of {count} dead letters of {group}", found.len()));
            }
            for view in found {
                let record = view.record();
                let Some(id) = record.keys().and_then(Id::parse) else {
                    self.verdict.wrong(format!("a dead letter of {group} that is nobody's"));
                    continue;
                };
                let plan = self.plan(id);
                let origin = record.properties().get("DLQ_ORIGIN_TOPIC").map(str::to_owned);
                if plan.topic() != topic || origin.as_deref() != Some(topic) {
                    self.verdict.wrong(format!("{id}: a dead letter of {group} from {origin:?}"));
                }
                if view.body() != plan.body() {
                    self.verdict.wrong(format!("{id}: altered among the dead letters"));
                }
                self.known(id).letters += 1;
            }
        }
        Ok(())
    }

    fn read_parked(&mut self) -> Result<(), Failure> {
        let transactions = self.store.transactions()?;
        let stats = transactions.stats();
        if stats.open > 0 || stats.unreadable > 0 {
            self.verdict.wrong(format!("{stats:?}"));
        }
        for half in transactions.parked() {
            let half = half.read()?;
            match half.keys().and_then(Id::parse) {
                Some(id) if half.body() == self.plan(id).body() => {
                    if std::mem::replace(&mut self.known(id).is_parked, true) {
                        self.verdict.wrong(format!("{id}: parked twice"));
                    }
                }
                _ => self.verdict.wrong("something is parked that is nobody's"),
            }
        }
        Ok(())
    }

    fn hear(&mut self, said: &Said) {
        match said {
            Said::Killed => self.verdict.count("kills"),
            Said::Ended => self.verdict.count("closed"),
            Said::Opening => {
                self.progress.values_mut().for_each(|queue| queue.is_told = false);
                self.lines.values_mut().for_each(|line| line.last = None);
            }
            Said::At(place) => self.begin(&place.queue, place.offset),
            // One of which nothing was said has nothing committed.
            Said::Ready => {
                let silent = self.progress.iter().filter(|(_, queue)| !queue.is_told);
                let silent: Vec<_> = silent.map(|(queue, _)| queue.clone()).collect();
                silent.iter().for_each(|queue| self.begin(queue, 0));
            }
            Said::Sent(id, place) => {
                self.verdict.count("sent");
                self.known(*id).is_sent = true;
                self.check_put(*id, *place);
            }
            Said::Half(id) => {
                self.verdict.count("begun");
                self.known(*id).is_begun = true;
            }
            Said::Committed(id, queue, offset) => {
                self.verdict.count("committed");
                self.check_put(*id, Some((*queue, *offset)));
            }
            Said::RolledBack(id) => {
                self.verdict.count("rolled back");
                self.known(*id).is_rolled_back = true;
            }
            Said::Checked(_, state) if *state != TransactionState::Unknown => {
                self.verdict.count("checked");
            }
            Said::Given(place, id, now) => self.given(place, *id, *now),
            Said::Begun(place, id) => self.begun(place, *id),
            Said::Judged(place, id, what) => {
                self.progress.entry(place.queue.clone()).or_default().judged.insert(place.offset);
                if *what != Judgement::Again {
                    self.over.insert(*id);
                }
                if *what == Judgement::Done {
                    self.known(*id).handled += 1;
                }
            }
            Said::Settled(place, how, Settled::Done) => self.settled(place, *how),
            Said::Buried(place) => self.settled(place, How::Rejected),
            Said::Altered(place) => self.verdict.wrong(format!("{place}: altered")),
            _ => {}
        }
    }

    /// Rules 1 to 3.
    fn begin(&mut self, queue: &Queue, committed: u64) {
        let is_last = self.ends.len();
        let (span, in_hand) = match queue.group.as_str() {
            plan::KEEPERS => (plan::BATCH, plan::LISTENERS),
            _ => (plan::SPAN, plan::LISTENERS + plan::POLLED),
        };
        let place = (queue.topic.clone(), queue.id);
        let (places, known) = (self.places.get(&place), &self.known);
        let letter = |offset| {
            let id = places.and_then(|places| places.get(&offset));
            id.and_then(|id| known.get(id)).is_some_and(|known| known.letters > 0)
        };
        let progress = self.progress.entry(queue.clone()).or_default();
        progress.is_told = true;
        let mut wrong = Vec::new();
        let (before, run, given) = (progress.committed, progress.run, progress.given);
        if committed < run {
            wrong.push(format!("at {committed}, though all before {run} was settled"));
        }
        if given > committed + span as u64 {
            wrong.push(format!("at {committed}, though {} had been given out", given - 1));
        }
        let unsaid: Vec<u64> = (before.max(run)..committed)
            .filter(|offset| !progress.is_settled(*offset) && !letter(*offset))
            .collect();
        if unsaid.len() > in_hand {
            wrong.push(format!("at {committed}, and {unsaid:?} were not settled"));
        }
        let never = |offset: &u64| !progress.judged.contains(offset) && !letter(*offset);
        for offset in (before..committed).filter(never) {
            wrong.push(format!("at {committed}, and nobody was done with {offset}"));
        }
        self.verdict.add("settled unsaid", unsaid.len() as u64);
        let again = progress.settled.range(committed..).count() as u64;
        let progress = self.progress.entry(queue.clone()).or_default();
        // What was committed was settled, said or not.
        (progress.run..committed).for_each(|offset| progress.settle(offset));
        progress.committed = committed;
        progress.now.clear();
        // What lies behind comes again, and is settled again.
        progress.settled.clear();
        self.verdict.add("in flight", again);
        self.verdict.most("in flight of a queue", again);
        for what in wrong {
            self.verdict.wrong(format!("life {is_last}: {queue}: {what}"));
        }
    }

    fn given(&mut self, place: &Place, id: Id, now: u64) {
        self.verdict.count("given");
        let progress = self.progress.entry(place.queue.clone()).or_default();
        progress.given = progress.given.max(place.offset + 1);
        let is_again = !progress.given_at.insert(place.offset);
        // Rule 2.
        let below = place.offset < progress.committed;
        if is_again {
            self.verdict.count("given again");
        }
        if below {
            self.verdict.wrong(format!("{place}: {id} came back"));
        }
        if self.due.get(&id).is_some_and(|due| now < *due) {
            self.verdict.wrong(format!("{place}: {id} was given early"));
        }
        let lies = self.places.get(&(place.queue.topic.clone(), place.queue.id));
        if lies.and_then(|places| places.get(&place.offset)) != Some(&id) {
            self.verdict.wrong(format!("{place}: {id} does not lie there"));
        }
        self.known(id).is_given = true;
    }

    /// In order, the first deliveries of a key are in order, and each begins when the one before is over; in
    /// one life nothing goes back.
    fn begun(&mut self, place: &Place, id: Id) {
        let Some(key) = self.plan(id).sharding_key() else { return };
        let line = self.lines.entry(key).or_default();
        let (is_new, newest) = (line.begun.insert(id), line.begun.last().copied());
        let before = line.begun.range(..id).next_back().copied();
        let last = line.last.replace(id);
        if is_new && newest != Some(id) {
            self.verdict.wrong(format!("{place}: {id} came first after {newest:?}"));
        }
        if last > Some(id) {
            self.verdict.wrong(format!("{place}: {id} came after {last:?}"));
        }
        let is_over = |before: Id| {
            let known = self.known.get(&before);
            self.over.contains(&before) || known.is_some_and(|known| known.letters > 0)
        };
        if let Some(before) = before.filter(|before| !is_over(*before)) {
            self.verdict.wrong(format!("{place}: {id} was begun before {before} was over"));
        }
    }

    fn settled(&mut self, place: &Place, how: How) {
        if place.queue.group == plan::KEEPERS && how == How::RetriedLater {
            // It stays where it is.
            return;
        }
        self.verdict.count("settled");
        let progress = self.progress.entry(place.queue.clone()).or_default();
        progress.settle(place.offset);
        let is_judged = progress.judged.contains(&place.offset);
        // Rule 4.
        if !progress.now.insert(place.offset) {
            self.verdict.wrong(format!("{place}: settled twice"));
        }
        if !is_judged {
            self.verdict.wrong(format!("{place}: settled before a handler was done with it"));
        }
    }

    /// What was put lies where that was said.
    fn check_put(&mut self, id: Id, place: Option<(i32, u64)>) {
        let Some(said) = place else { return };
        let found = self.known(id).was_put_at;
        if found != Some(said) {
            self.verdict.wrong(format!("{id}: put at {said:?}, found at {found:?}"));
        }
    }

    /// What must have become of everything when nothing is left to do.
    fn conclude(&mut self) {
        let topics = self.store.topics();
        let ends: Vec<(Queue, u64)> = GROUPS
            .iter()
            .flat_map(|(group, topic)| {
                [(*group, (*topic).to_owned()), (*group, format!("%RETRY%{group}"))]
            })
            .flat_map(|(group, topic)| {
                let ids = topics.iter().filter(|(name, _)| *name == topic).flat_map(|it| &it.1);
                let queue = |id: &i32| Queue { group: group.into(), topic: topic.clone(), id: *id };
                ids.map(queue).collect::<Vec<_>>()
            })
            .map(|queue| {
                let end = self.store.max_offset(&queue.topic, queue.id).unwrap_or(0);
                (queue, end)
            })
            .collect();
        for (queue, end) in ends {
            let committed = self.store.committed_offset(&queue.group, &queue.topic, queue.id);
            self.begin(&queue, committed.unwrap_or(0));
            if committed.unwrap_or(0) != end {
                self.verdict.wrong(format!("{queue}: at {committed:?} of {end} in the end"));
            }
        }
        for (id, known) in std::mem::take(&mut self.known) {
            self.judge_message(id, &known);
        }
    }

    fn judge_message(&mut self, id: Id, known: &Known) {
        let plan = self.plan(id);
        let (is_sure, appears) = (known.is_sent || known.is_begun, plan.appears());
        let mut wrong = |what: &str| self.verdict.wrong(format!("{id}: {what} ({plan:?})"));
        if is_sure && appears && known.copies == 0 {
            wrong("lost");
        }
        if !appears && known.is_given {
            wrong("given, though never committed");
        }
        let Way::Trade(trade) = plan.way else {
            if known.is_begun || known.is_rolled_back || known.is_parked {
                wrong("no transaction");
            }
            return self.judge_handling(&plan, known);
        };
        let never = trade.outcome == TransactionState::Unknown;
        if known.is_parked != never && (known.is_parked || known.is_begun) {
            wrong("parked, or not");
        }
        if known.is_rolled_back && trade.outcome != TransactionState::Rollback {
            wrong("rolled back");
        }
        if known.is_parked {
            self.verdict.count("parked");
        }
        self.judge_handling(&plan, known);
    }

    fn judge_handling(&mut self, plan: &Plan, known: &Known) {
        let is_death = plan.fate.is_death();
        if known.copies > 0 && is_death && known.letters == 0 {
            self.verdict.wrong(format!("{}: no dead letter ({plan:?})", plan.id));
        }
        if known.copies > 0 && !is_death && known.handled == 0 {
            self.verdict.wrong(format!("{}: never handled ({plan:?})", plan.id));
        }
        if known.letters > 0 && !is_death || known.handled > 0 && is_death {
            self.verdict.wrong(format!("{}: not what was meant ({plan:?})", plan.id));
        }
        if known.handled + known.letters > 0 && known.copies == 0 {
            self.verdict.wrong(format!("{}: invented ({plan:?})", plan.id));
        }
        self.verdict.add("handled", u64::from(known.handled > 0));
        self.verdict.add("handled again", known.handled.saturating_sub(1));
        self.verdict.add("dead", u64::from(known.letters > 0));
        self.verdict.add("dead again", known.letters.saturating_sub(1));
    }
}
