//! What a replica hears of how far consumer groups have come.

use crate::error::Error;
use crate::log::GroupOffset;
use crate::replication::ReplicatedLog;
use crate::replication::wire::STANDINGS_MAX;
use std::collections::BTreeMap;

/// How far the primary's consumer groups have come, as far as it is not taken over yet.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// What it is in the middle of saying, and how much is to come.
    heard: Option<(Standings, u32)>,
    /// What waits for the log to have come so far, the oldest first, and what has moved after that.
    waiting: [Option<Standings>; 2],
    /// They could not be taken over.
    failed: bool,
}

#[derive(Debug)]
struct Standings {
    end: u64,
    whole: bool,
    /// By group, topic and queue.
    offsets: BTreeMap<(String, String, i32), u64>,
}

impl Standings {
    /// Whether there is room for them.
    fn put(&mut self, offsets: impl IntoIterator<Item = GroupOffset>) -> bool {
        let row = |one: GroupOffset| ((one.group, one.topic, one.queue_id), one.next);
        self.offsets.extend(offsets.into_iter().map(row));
        self.offsets.len() <= STANDINGS_MAX
    }

    fn rows(&self) -> Vec<GroupOffset> {
        let rows = self.offsets.iter();
        rows.map(|((group, topic, id), next)| GroupOffset::new(group, topic, *id, *next)).collect()
    }
}

impl Groups {
    /// Hears the next part; whether it is one.
    pub(super) fn hear(
        &mut self,
        end: u64,
        whole: bool,
        left: u32,
        offsets: Vec<GroupOffset>,
    ) -> bool {
        let all = left as usize + offsets.len();
        let mut heard = match self.heard.take() {
            None if all <= STANDINGS_MAX => Standings { end, whole, offsets: BTreeMap::new() },
            Some((heard, due))
                if due as usize == all && (heard.end, heard.whole) == (end, whole) =>
            {
                heard
            }
            _ => return false,
        };
        if (left > 0 && offsets.is_empty()) || !heard.put(offsets) {
            return false;
        }
        if left > 0 {
            self.heard = Some((heard, left));
            return true;
        }
        let next = match &mut self.waiting {
            [first @ None, _] => first,
            [_, next] => next,
        };
        match next {
            Some(next) if !heard.whole => {
                next.end = next.end.max(heard.end);
                next.put(heard.rows())
            }
            next => {
                *next = Some(heard);
                true
            }
        }
    }

    /// What could not be taken over may be by now.
    pub(super) fn try_again(&mut self) {
        self.failed = false;
    }

    /// Takes over what the log has come to: a group must not pass over what a failover puts in the place of
    /// what it has seen.
    pub(super) fn settle(&mut self, log: &dyn ReplicatedLog) -> Result<(), Error> {
        while !self.failed
            && let [Some(first), next] = &mut self.waiting
            && first.end <= log.confirmed().min(log.durable())
        {
            match log.take_group_offsets(first.whole, &first.rows()) {
                // Records matter more: a group stays behind, and would get again what it has had.
                Err(Error::DiskFull { .. } | Error::Io { .. } | Error::Latched { .. }) => {
                    self.failed = true;
                }
                taken => {
                    taken?;
                    self.waiting = [next.take(), None];
                }
            }
        }
        Ok(())
    }
}
