//! What a replica is told of how far consumer groups have come.

use super::session::Hub;
use crate::error::Error;
use crate::log::GroupOffset;
use crate::replication::GroupStandings;
use crate::replication::wire::{self, Frame, OFFSETS_MAX};
use std::time::{Duration, Instant};

/// How often a replica is told of consumer groups that move.
const GROUPS_INTERVAL: Duration = Duration::from_secs(1);

/// What a replica was told of consumer groups.
#[derive(Debug)]
pub(super) struct Groups {
    /// Nothing before the first time, when it is told of all.
    told: Option<GroupStandings>,
    /// What is to be said of it yet.
    news: Vec<GroupOffset>,
    is_whole: bool,
    is_open: bool,
    /// When to look whether there is more.
    due: Instant,
}

impl Groups {
    pub(super) fn new(now: Instant) -> Self {
        Self { told: None, news: Vec::new(), is_whole: true, is_open: false, due: now }
    }

    /// Whether anything has moved since.
    fn is_behind(&self, hub: &Hub) -> bool {
        self.told.as_ref().is_none_or(|told| told.moves != hub.log.group_moves())
    }

    /// When there is something to say, or to look for.
    pub(super) fn due(&self, at_once: Instant) -> Instant {
        if self.is_open { at_once } else { self.due }
    }

    /// The next of it.
    pub(super) fn next(
        &mut self,
        hub: &Hub,
        now: Instant,
    ) -> Result<Option<Frame<'static>>, Error> {
        if !self.is_open {
            if now < self.due {
                return Ok(None);
            }
            // Nobody rings when a group moves.
            self.due = now + GROUPS_INTERVAL;
            if !self.is_behind(hub) {
                return Ok(None);
            }
            let now_there = hub.standings()?;
            (self.is_whole, self.news) = match &self.told {
                Some(told) => moved(&told.offsets, &now_there.offsets),
                None => (true, now_there.offsets.to_vec()),
            };
            self.news.retain(wire::is_plausible);
            // The last ones are told first.
            self.is_open = self.is_whole || !self.news.is_empty();
            self.told = Some(now_there);
        }
        let Some(told) = self.told.as_ref().filter(|_| self.is_open) else { return Ok(None) };
        let left = self.news.len().saturating_sub(OFFSETS_MAX);
        let offsets = self.news.split_off(left);
        self.is_open = left > 0;
        let (end, whole, left) = (told.end, self.is_whole, left as u32);
        Ok(Some(Frame::Offsets { end, whole, left, offsets }))
    }
}

/// What is to be said of where groups are `now`, and whether it is all of it: also where one of before is
/// gone.
fn moved(before: &[GroupOffset], now: &[GroupOffset]) -> (bool, Vec<GroupOffset>) {
    fn of(one: &GroupOffset) -> (&str, &str, i32) {
        (&one.group, &one.topic, one.queue_id)
    }
    let mut before = before.iter().peekable();
    let mut moved = Vec::new();
    for one in now {
        match before.next_if(|known| of(known) <= of(one)) {
            Some(known) if of(known) < of(one) => return (true, now.to_vec()),
            Some(known) if known.next == one.next => {}
            _ => moved.push(one.clone()),
        }
    }
    if before.next().is_some() { (true, now.to_vec()) } else { (false, moved) }
}
