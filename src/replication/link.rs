//! A session on a stream: one thread reads, one writes.

use super::NodeId;
use super::inbox::Inbox;
use super::net::{Stream, StreamWriter};
use super::session::{Order, Outgoing, Session, SessionError};
use crate::clock::Clock;
use crate::sync::AtomicBool;
use crate::worker::{Alarm, Next};
use parking_lot::{Condvar, Mutex};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Fewer bytes are copied sooner than the system is told where they lie.
const UNCOPIED_MIN: usize = 64 << 10;

/// How a session ended.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    Order(Order),
    Error(SessionError),
}

#[derive(Default)]
struct End {
    how: Option<Ended>,
    /// The peer was told, as far as it is.
    is_said: bool,
}

/// What the two threads of a session share.
pub(crate) struct Link {
    session: Mutex<Box<dyn Session>>,
    clock: Arc<dyn Clock>,
    /// Rung when there may be something to send.
    alarm: Arc<Alarm>,
    end: Mutex<End>,
    /// Rung when the last word is said.
    said: Condvar,
    over: AtomicBool,
    introduced: AtomicBool,
    streaming: AtomicBool,
    hang_up: Box<dyn Fn() + Send + Sync>,
    pub(crate) peer: String,
    /// Until when the peer has to introduce itself.
    pub(crate) introduced_by: Instant,
    /// How long the sender rests, rather than be rung for each put.
    rest: Option<Duration>,
}

impl Link {
    pub(crate) fn new(
        session: Box<dyn Session>,
        clock: Arc<dyn Clock>,
        stream: Stream,
        alarm: Arc<Alarm>,
        handshake: Duration,
        rest: Option<Duration>,
    ) -> (Arc<Self>, Reading, Writing) {
        let Stream { reader, writer, hang_up, peer } = stream;
        let introduced_by = clock.now() + handshake;
        let link = Self {
            session: Mutex::new(session),
            clock,
            alarm,
            end: Mutex::default(),
            said: Condvar::new(),
            over: AtomicBool::new(false),
            introduced: AtomicBool::new(false),
            streaming: AtomicBool::new(false),
            hang_up,
            peer,
            introduced_by,
            rest,
        };
        let reading = Reading { reader, inbox: Inbox::default() };
        (Arc::new(link), reading, Writing { writer, worked: false })
    }

    /// How it ended, once it has.
    pub(crate) fn ended(&self) -> Option<Ended> {
        if self.is_over() { self.end.lock().how.clone() } else { None }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Whether the greeting is over.
    pub(crate) fn is_introduced(&self) -> bool {
        self.introduced.load(Ordering::SeqCst)
    }

    /// The replica at the other end, once it was accepted.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.session.lock().node()
    }

    /// Whether the log goes from one to the other.
    pub(crate) fn is_streaming(&self) -> bool {
        !self.is_over() && self.streaming.load(Ordering::SeqCst)
    }

    /// Whether it has ended, and the peer was told.
    pub(crate) fn is_said(&self) -> bool {
        self.is_over() && self.end.lock().is_said
    }

    /// Waits until the peer was told of the end, at most `patience`.
    pub(crate) fn wait_said(&self, patience: Duration) {
        self.said.wait_while_for(&mut self.end.lock(), |end| !end.is_said, patience);
    }

    /// The last word is said, or will never be.
    pub(crate) fn set_said(&self) {
        self.end.lock().is_said = true;
        self.said.notify_all();
        self.hang_up();
    }

    /// Ends the session: nothing is taken from the peer any more, and nothing new is said to it.
    pub(crate) fn end(&self, how: Ended) {
        self.end_holding(&mut self.session.lock(), how);
    }

    /// The same, but does not wait longer than `patience` for what the session does with the disk.
    pub(crate) fn end_within(&self, how: Ended, patience: Duration) {
        let mut session = self.session.try_lock_for(patience);
        self.end_with(session.as_deref_mut(), how);
    }

    fn end_holding(&self, session: &mut Box<dyn Session>, how: Ended) {
        self.end_with(Some(session), how);
    }

    fn end_with(&self, session: Option<&mut Box<dyn Session>>, how: Ended) {
        let mut end = self.end.lock();
        if end.how.is_none() {
            end.how = Some(how);
            self.over.store(true, Ordering::SeqCst);
            if let Some(session) = session {
                session.leave();
            }
        }
        drop(end);
        self.alarm.ring();
    }

    /// Ends the connection itself.
    pub(crate) fn hang_up(&self) {
        (self.hang_up)();
    }

    /// Reads once, and takes what came.
    pub(crate) fn receive_step(&self, reading: &mut Reading) -> Next {
        if self.is_over() {
            return Next::Idle;
        }
        let Reading { reader, inbox } = reading;
        let filled = inbox.fill(&mut **reader);
        let mut session = self.session.lock();
        // Whoever ended it meanwhile counts on that nothing more is taken.
        if self.is_over() {
            return Next::Idle;
        }
        let now = self.clock.now();
        let received = match filled {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(_) => session.receive(inbox, now),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error.into()),
        };
        match received {
            Ok(None) if !session.is_introduced() && now > self.introduced_by => {
                self.end_holding(&mut session, Ended::Error(SessionError::Silent));
            }
            Ok(None) => {
                self.introduced.store(session.is_introduced(), Ordering::SeqCst);
                self.streaming.store(session.is_streaming(), Ordering::SeqCst);
                drop(session);
                self.alarm.ring();
                return Next::Now;
            }
            Ok(Some(order)) => self.end_holding(&mut session, Ended::Order(order)),
            Err(error) => self.end_holding(&mut session, Ended::Error(error)),
        }
        Next::Idle
    }

    /// Sends what there is, or sleeps until there may be something.
    pub(crate) fn send_step(&self, writing: &mut Writing) -> Next {
        let mut session = self.session.lock();
        if self.is_over() {
            let ended = self.end.lock().how.clone();
            let farewell = match &ended {
                Some(Ended::Error(error)) => session.farewell(error),
                _ => None,
            };
            drop(session);
            if let Some(farewell) = farewell {
                // The peer may have gone first.
                let _ = writing.writer.write_all(&farewell).and_then(|()| writing.writer.flush());
            }
            self.set_said();
            return Next::Idle;
        }
        let now = self.clock.now();
        match session.poll(now) {
            Ok(Some(outgoing)) => {
                drop(session);
                writing.worked = true;
                if let Err(error) = write(&mut writing.writer, &outgoing) {
                    self.end(Ended::Error(error.into()));
                }
                Next::Now
            }
            Ok(None) => {
                drop(session);
                if let Some(rest) = self.rest.filter(|_| std::mem::take(&mut writing.worked)) {
                    return Next::At(now + rest);
                }
                // Asked once whoever brings news rings: what came before that would be slept over.
                let mut due = None;
                let is_called = || {
                    let session = self.session.lock();
                    due = session.due();
                    self.is_over() || session.is_ready(now)
                };
                match self.alarm.sleep_unless(is_called) {
                    Next::Now => Next::Now,
                    _ => due.map_or(Next::Idle, Next::At),
                }
            }
            Err(error) => {
                self.end_holding(&mut session, Ended::Error(error));
                Next::Now
            }
        }
    }
}

/// What the reading thread has for itself.
pub(crate) struct Reading {
    reader: Box<dyn Read + Send>,
    inbox: Inbox,
}

/// What the writing thread has for itself.
pub(crate) struct Writing {
    writer: StreamWriter,
    worked: bool,
}

/// Both parts: with one call of the system where that will do, and without a copy where that pays.
fn write(writer: &mut StreamWriter, outgoing: &Outgoing) -> io::Result<()> {
    let (mut head, mut body) = (&outgoing.head[..], outgoing.body());
    if body.len() >= UNCOPIED_MIN
        && let (StreamWriter::Tcp(socket), Some(slice)) = (&mut *writer, &outgoing.body)
    {
        socket.write_all(head)?;
        let sent = slice.send(socket.as_fd())?;
        return socket.write_all(body.get(sent..).unwrap_or_default());
    }
    while !head.is_empty() {
        let written = match writer.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let of_head = written.min(head.len());
        head = head.get(of_head..).unwrap_or_default();
        body = body.get(written - of_head..).unwrap_or_default();
    }
    writer.write_all(body)?;
    writer.flush()
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::disk::{Allocation, Disk, HostDisk, MapAccess, SimDisk};
    use crate::replication::LogSlice;
    use crate::worker::Doorbell;
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;

    /// What arrives of a head and a body of so many bytes, which lie somewhere in a file of `disk`, and how
    /// many of the body the system takes from there.
    fn arrives(disk: &dyn Disk, path: PathBuf, len: usize, is_open: bool) -> usize {
        let file = disk.create(&path, 1 << 20, Allocation::Reserved).unwrap();
        disk.remove(&path).unwrap();
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let region = file.map(MapAccess::Read).unwrap();
        file.write_at(&bytes, 777).unwrap();
        let end = 777 + len as u64;
        region.publish(end);
        let body = LogSlice::new(region, is_open.then_some(file), 777..end, 0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut there, _) = listener.accept().unwrap();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            there.read_to_end(&mut got).map(|_| got)
        });
        let taken = body.send(here.as_fd()).unwrap();
        let outgoing = Outgoing { head: b"head".to_vec(), body: Some(body) };
        write(&mut StreamWriter::Tcp(here), &outgoing).unwrap();
        let got = reading.join().unwrap().unwrap();
        assert_eq!(got.get(..taken), bytes.get(..taken));
        assert_eq!(got.get(taken..taken + 4), Some(&b"head"[..]));
        assert_eq!(got.get(taken + 4..), Some(&bytes[..]));
        taken
    }

    #[test]
    fn the_peer_gets_the_log_whether_the_system_copies_it_or_not() {
        let path = || std::env::temp_dir().join(format!("duralog-link-{}", std::process::id()));
        for len in [1, UNCOPIED_MIN - 1, UNCOPIED_MIN, 1_000_000] {
            assert_eq!(arrives(&HostDisk, path(), len, true), len);
            assert_eq!(arrives(&HostDisk, path(), len, false), 0);
            assert_eq!(arrives(&SimDisk::new(1), "/file".into(), len, true), 0);
        }
    }

    /// A session that is to send something sooner than it has just said: another thread brings it.
    struct Hastened {
        due: Mutex<Instant>,
        soon: Instant,
        alarm: Arc<Alarm>,
    }

    impl Session for Hastened {
        fn receive(&mut self, _: &mut Inbox, _: Instant) -> Result<Option<Order>, SessionError> {
            Ok(None)
        }

        fn poll(&mut self, _: Instant) -> Result<Option<Outgoing>, SessionError> {
            Ok(None)
        }

        fn is_ready(&self, now: Instant) -> bool {
            *self.due.lock() <= now
        }

        fn leave(&mut self) {}

        fn due(&self) -> Option<Instant> {
            let due = std::mem::replace(&mut *self.due.lock(), self.soon);
            self.alarm.ring();
            Some(due)
        }

        fn farewell(&self, _: &SessionError) -> Option<Vec<u8>> {
            None
        }

        fn is_introduced(&self) -> bool {
            true
        }

        fn is_streaming(&self) -> bool {
            true
        }
    }

    #[test]
    fn what_becomes_due_while_the_sender_falls_asleep_is_not_slept_over() {
        let clock = Arc::new(ManualClock::new(0));
        let soon = clock.now() + Duration::from_millis(5);
        let due = Mutex::new(clock.now() + Duration::from_secs(3600));
        let (bell, heard) = Doorbell::new();
        let alarm = Arc::new(Alarm::default());
        assert!(alarm.connect(bell));
        // The sender has heard the last ring, and is awake.
        alarm.ring();
        heard.try_recv().unwrap();
        let session = Hastened { due, soon, alarm: alarm.clone() };
        let stream = Stream {
            reader: Box::new(io::empty()),
            writer: StreamWriter::other(io::sink()),
            hang_up: Box::new(|| {}),
            peer: String::new(),
        };
        let handshake = Duration::from_secs(5);
        let (link, _reading, mut writing) =
            Link::new(Box::new(session), clock, stream, alarm, handshake, None);
        let next = link.send_step(&mut writing);
        let is_woken = heard.try_recv().is_ok();
        let comes_back = matches!(next, Next::Now) || matches!(next, Next::At(at) if at <= soon);
        assert!(is_woken || comes_back, "{next:?}");
    }
}
