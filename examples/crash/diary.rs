//! What is said while it happens. A line is one `write` to a file, and survives whoever said it.

use super::plan::Id;
use duralog::delivery::{Settled, TransactionState, Verdict};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Where a message lies, as a group sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub queue: Queue,
    pub offset: u64,
}

/// A queue, as a group sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue {
    pub group: String,
    pub topic: String,
    pub id: i32,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.group, self.topic, self.id)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.queue, self.offset)
    }
}

/// What a handler made of a message, for good or for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Done,
    Again,
    Rejected,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// By the one who kills: all begins.
    Seed(u64),
    /// A process is started.
    Life(u64),
    Killed,
    /// It ended by itself, as it was meant to.
    Ended,
    /// By the process: it opens the store, has opened it, and with which end of the log.
    Opening,
    Open(u64),
    /// How far a group is.
    At(Place),
    /// Work begins.
    Ready,
    Closing,
    /// There is nothing left to do.
    Drained,
    /// `send` returned, and where the message lies unless that is not for long.
    Sent(Id, Option<(i32, u64)>),
    /// `begin` returned.
    Half(Id),
    /// `commit` returned, and where the message lies.
    Committed(Id, i32, u64),
    /// `rollback` returned.
    RolledBack(Id),
    /// The checker was asked.
    Checked(Id, TransactionState),
    /// A consumer was given a message, at that time.
    Given(Place, Id, u64),
    /// A handler begins with it, and is about to return.
    Begun(Place, Id),
    Judged(Place, Id, Judgement),
    /// The call that settles it returned.
    Settled(Place, Verdict, Settled),
    /// It was set aside because it had failed too often, and that was all.
    Buried(Place),
    /// It is not what was sent.
    Altered(Place),
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(seed) => write!(f, "SEED {seed}"),
            Self::Life(life) => write!(f, "LIFE {life}"),
            Self::Killed => write!(f, "KILLED"),
            Self::Ended => write!(f, "ENDED"),
            Self::Opening => write!(f, "OPENING"),
            Self::Open(end) => write!(f, "OPEN {end}"),
            Self::At(place) => write!(f, "AT {place}"),
            Self::Ready => write!(f, "READY"),
            Self::Closing => write!(f, "CLOSING"),
            Self::Drained => write!(f, "DRAINED"),
            Self::Sent(id, None) => write!(f, "SENT {id}"),
            Self::Sent(id, Some((queue, offset))) => write!(f, "SENT {id} {queue} {offset}"),
            Self::Half(id) => write!(f, "HALF {id}"),
            Self::Committed(id, queue, offset) => write!(f, "COMMITTED {id} {queue} {offset}"),
            Self::RolledBack(id) => write!(f, "ROLLEDBACK {id}"),
            Self::Checked(id, state) => write!(f, "CHECKED {id} {state:?}"),
            Self::Given(place, id, now) => write!(f, "GIVEN {place} {id} {now}"),
            Self::Begun(place, id) => write!(f, "BEGUN {place} {id}"),
            Self::Judged(place, id, what) => write!(f, "JUDGED {place} {id} {what:?}"),
            Self::Settled(place, verdict, settled) => {
                write!(f, "SETTLED {place} {verdict:?} {settled:?}")
            }
            Self::Buried(place) => write!(f, "BURIED {place}"),
            Self::Altered(place) => write!(f, "ALTERED {place}"),
        }
    }
}

impl Said {
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let said = Self::read(&mut words)?;
        words.next().is_none().then_some(said)
    }

    fn read<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let what = words.next()?;
        let mut word = || words.next();
        Some(match what {
            "SEED" => Self::Seed(word()?.parse().ok()?),
            "LIFE" => Self::Life(word()?.parse().ok()?),
            "KILLED" => Self::Killed,
            "ENDED" => Self::Ended,
            "OPENING" => Self::Opening,
            "OPEN" => Self::Open(word()?.parse().ok()?),
            "AT" => Self::At(place(&mut word)?),
            "READY" => Self::Ready,
            "CLOSING" => Self::Closing,
            "DRAINED" => Self::Drained,
            "SENT" => {
                let id = Id::parse(word()?)?;
                let place = match word() {
                    None => None,
                    Some(queue) => Some((queue.parse().ok()?, word()?.parse().ok()?)),
                };
                Self::Sent(id, place)
            }
            "HALF" => Self::Half(Id::parse(word()?)?),
            "COMMITTED" => {
                Self::Committed(Id::parse(word()?)?, word()?.parse().ok()?, word()?.parse().ok()?)
            }
            "ROLLEDBACK" => Self::RolledBack(Id::parse(word()?)?),
            "CHECKED" => {
                let (id, state) = (Id::parse(word()?)?, word()?);
                use TransactionState::{Commit, Rollback, Unknown};
                Self::Checked(id, one_of(&[Commit, Rollback, Unknown], state)?)
            }
            "GIVEN" => Self::Given(place(&mut word)?, Id::parse(word()?)?, word()?.parse().ok()?),
            "BEGUN" => Self::Begun(place(&mut word)?, Id::parse(word()?)?),
            "JUDGED" => {
                use Judgement::{Again, Done, Rejected};
                let (place, id) = (place(&mut word)?, Id::parse(word()?)?);
                Self::Judged(place, id, one_of(&[Done, Again, Rejected], word()?)?)
            }
            "SETTLED" => {
                let place = place(&mut word)?;
                let verdicts = [Verdict::Acked, Verdict::RetriedLater, Verdict::Rejected];
                let verdict = one_of(&verdicts, word()?)?;
                let settled = one_of(&[Settled::Done, Settled::LeaseLost], word()?)?;
                Self::Settled(place, verdict, settled)
            }
            "BURIED" => Self::Buried(place(&mut word)?),
            "ALTERED" => Self::Altered(place(&mut word)?),
            _ => return None,
        })
    }
}

fn place<'a>(word: &mut impl FnMut() -> Option<&'a str>) -> Option<Place> {
    let (group, topic) = (word()?.to_owned(), word()?.to_owned());
    let queue = Queue { group, topic, id: word()?.parse().ok()? };
    Some(Place { queue, offset: word()?.parse().ok()? })
}

fn one_of<T: Copy + fmt::Debug>(all: &[T], name: &str) -> Option<T> {
    all.iter().copied().find(|one| format!("{one:?}") == name)
}

/// Where it is written down.
pub struct Diary(File);

impl Diary {
    pub fn open(path: &Path, begin: bool) -> io::Result<Self> {
        let mut options = File::options();
        options.append(true).read(true).create_new(begin);
        Ok(Self(options.open(path)?))
    }

    /// A line is whole, or its end is missing and [`mend`](Self::mend) takes away the rest.
    pub fn say(&self, said: &Said) -> io::Result<()> {
        (&self.0).write_all(format!("{said}\n").as_bytes())
    }

    /// How long it is.
    pub fn end(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// What was said since it was so long; a last line that nobody lived to finish is taken away.
    pub fn mend(&mut self, from: u64) -> io::Result<Vec<Said>> {
        self.0.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        self.0.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.0.set_len(from + whole as u64)?;
        text.truncate(whole);
        let text = String::from_utf8(text).map_err(io::Error::other)?;
        read(&text)
    }
}

/// All lines.
pub fn read(text: &str) -> io::Result<Vec<Said>> {
    let lines = text.lines().enumerate();
    let parse = |(number, line)| {
        Said::parse(line)
            .ok_or_else(|| io::Error::other(format!("line {}: nobody says {line:?}", number + 1)))
    };
    lines.map(parse).collect()
}
