//! The two tables are each other's model.

use super::*;
use proptest::prelude::*;
use rusqlite::Connection;

#[derive(Debug, Clone)]
enum Action {
    Record { lane: Option<u8>, commit: bool },
    Due { max: usize },
    Sent { ids: Vec<i64> },
    Failed { id: i64, attempts: u32, wait: Option<i64> },
    Rearm { id: i64 },
    Discard { id: i64 },
    Prune { age: i64, max: usize },
    MakeDue,
    Wait { time: i64 },
}

fn action() -> impl Strategy<Value = Action> {
    let id = || 1..14i64;
    prop_oneof![
        4 => (prop::option::of(0..3u8), prop::bool::weighted(0.8))
            .prop_map(|(lane, commit)| Action::Record { lane, commit }),
        4 => (1..8usize).prop_map(|max| Action::Due { max }),
        1 => prop::collection::vec(id(), 0..4).prop_map(|ids| Action::Sent { ids }),
        3 => (id(), 1..5u32, prop::option::weighted(0.7, 1..20i64))
            .prop_map(|(id, attempts, wait)| Action::Failed { id, attempts, wait }),
        2 => id().prop_map(|id| Action::Rearm { id }),
        1 => id().prop_map(|id| Action::Discard { id }),
        1 => (0..20i64, 1..4usize).prop_map(|(age, max)| Action::Prune { age, max }),
        1 => Just(Action::MakeDue),
        2 => (1..12i64).prop_map(|time| Action::Wait { time }),
    ]
}

fn body(bytes: &[u8]) -> Vec<u8> {
    SealedMessage::open(bytes).unwrap().body().to_vec()
}

/// Id, lane, attempts and body.
type Told = (i64, Option<String>, u32, Vec<u8>);

fn told(due: DueMessages) -> (Vec<Told>, Option<i64>) {
    let messages = due.messages.into_iter();
    let messages = messages.map(|it| (it.id, it.lane, it.attempts, body(&it.bytes)));
    (messages.collect(), due.next_ms)
}

fn dead(table: &mut impl OutboxTable) -> Vec<(i64, u32, String, Vec<u8>)> {
    let dead = table.dead(100).unwrap().into_iter();
    dead.map(|it| (it.id, it.attempts, it.error, body(&it.bytes))).collect()
}

proptest! {
    #[test]
    fn a_table_on_disk_and_one_in_memory_say_the_same(
        actions in prop::collection::vec(action(), 1..60),
    ) {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("file:outbox-{number}?mode=memory&cache=shared");
        let mut sqlite = SqliteOutbox::open(Connection::open(&name).unwrap()).unwrap();
        let mut application = Connection::open(&name).unwrap();
        let mut memory = MemoryOutbox::default();
        let mut now = 1_000;
        for (number, action) in actions.into_iter().enumerate() {
            match action {
                Action::Record { lane, commit } => {
                    let message = Message::new("orders", number.to_string());
                    let message = match lane {
                        Some(lane) => message.sharding_key(lane.to_string()),
                        None => message,
                    };
                    let transaction = application.transaction().unwrap();
                    let id = SqliteOutbox::record(&transaction, &message).unwrap();
                    if commit {
                        transaction.commit().unwrap();
                        prop_assert_eq!(memory.record([&message]).unwrap(), id);
                    }
                }
                Action::Due { max } => {
                    let found = told(sqlite.due(now, max).unwrap());
                    prop_assert_eq!(found, told(memory.due(now, max).unwrap()));
                }
                Action::Sent { ids } => {
                    sqlite.mark_sent(&ids, now).unwrap();
                    memory.mark_sent(&ids, now).unwrap();
                }
                Action::Failed { id, attempts, wait } => {
                    let next_ms = wait.map(|wait| now + wait);
                    let failure = SendFailure { attempts, next_ms, error: number.to_string() };
                    sqlite.mark_failed(id, &failure).unwrap();
                    memory.mark_failed(id, &failure).unwrap();
                }
                Action::Rearm { id } => {
                    prop_assert_eq!(sqlite.rearm(id).unwrap(), memory.rearm(id).unwrap());
                }
                Action::Discard { id } => {
                    prop_assert_eq!(sqlite.discard(id).unwrap(), memory.discard(id).unwrap());
                }
                Action::Prune { age, max } => {
                    let pruned = sqlite.prune(now - age, max).unwrap();
                    // Which of them is not said.
                    if pruned == max {
                        let rest = sqlite.prune(now - age, 100).unwrap();
                        prop_assert_eq!(memory.prune(now - age, 100).unwrap(), pruned + rest);
                    } else {
                        prop_assert_eq!(memory.prune(now - age, max).unwrap(), pruned);
                    }
                }
                Action::MakeDue => {
                    sqlite.make_due().unwrap();
                    memory.make_due().unwrap();
                }
                Action::Wait { time } => now += time,
            }
            prop_assert_eq!(sqlite.counts().unwrap(), memory.counts().unwrap());
            prop_assert_eq!(dead(&mut sqlite), dead(&mut memory));
        }
    }
}

#[test]
fn pauses_double_up_to_the_longest() {
    let options = Options {
        max_attempts: 1,
        pause: Duration::from_secs(1),
        pause_max: Duration::from_secs(10),
        keep_sent: Duration::ZERO,
        poll_interval: Duration::ZERO,
    };
    let seconds = [1, 2, 3, 4, 5, 40, u32::MAX].map(|it| options.pause_after(it).as_secs());
    assert_eq!(seconds, [1, 2, 4, 8, 10, 10, 10]);
}
