//! A [`Replicator`] of one's own: it ships the log to a directory, on another disk perhaps. A put is `PutOk`
//! once its message is safe there, too, and the copy opens as a store like any other.
//!
//! Run it again with the same `DIR`: it goes on where it was.

use duralog::replication::{
    Admission, Confirmation, Epoch, NodeId, Refusal, ReplicatedLog, Replicator, StartPoint,
};
use duralog::{Environment, Error, IoOp, Message, Result, Store, StoreConfig};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What could not be shipped is tried again after so long.
const RETRY: Duration = Duration::from_secs(1);

/// What the store talks to. It stands in the path of every put and must not block there: all it does is
/// ring for a thread of its own, which does the work.
#[derive(Debug)]
struct Shipper {
    to: PathBuf,
    epoch: OnceLock<Epoch>,
    working: Mutex<Option<(SyncSender<()>, JoinHandle<()>)>>,
}

impl Replicator for Shipper {
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64> {
        let dir = self.to.join("commitlog");
        let begun = resume(&dir, &*log).map_err(|source| {
            let (op, path, source) = (IoOp::Open, dir.clone(), Arc::new(source));
            Error::Io { op, path, offset: None, source }
        })?;
        // Before a put: what is given out from here on is this epoch's, newer than any that the log knows of.
        let epoch = Epoch(at.epoch.max(at.begun).max(at.promised).0 + 1);
        log.begin_epoch(epoch, NodeId(1))?;
        self.epoch.get_or_init(|| epoch);
        let (bell, rung) = sync_channel(1);
        // There may be something to ship already.
        let _ = bell.try_send(());
        let work = move || {
            let (mut shipped, mut closing) = (begun, false);
            while !closing {
                // Once more when the store is closing: it made everything durable before.
                closing = rung.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected);
                if let Err(error) = ship(&dir, &*log, epoch, &mut shipped) {
                    // Nothing is lost: puts wait, and all of it is written again. A sync that failed may
                    // have dropped what it should have made durable.
                    eprintln!("nothing was shipped from offset {shipped} on: {error}");
                }
            }
        };
        *self.working.lock().unwrap() = Some((bell, thread::spawn(work)));
        // What lies behind is confirmed when the thread has shipped it.
        Ok(begun)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        let epoch = *self.epoch.get().ok_or(Refusal::Stopped)?;
        Ok(Admission { epoch, confirmation: Confirmation::Awaited })
    }

    /// A power cut may yet take this from the log. The copy must not have it then: the next record at that
    /// offset is another one.
    fn on_written(&self, _end: u64) {}

    fn on_durable(&self, _end: u64) {
        if let Some((bell, _)) = &*self.working.lock().unwrap() {
            // Full: it was rung already.
            let _ = bell.try_send(());
        }
    }

    fn stop(&self) {
        let working = self.working.lock().unwrap().take();
        if let Some((bell, thread)) = working {
            drop(bell);
            // If it panicked, puts were not confirmed, and standard error says why.
            let _ = thread.join();
        }
    }
}

/// Where to go on: with the last segment that is there. It may lack any part, those before are whole.
fn resume(dir: &Path, log: &dyn ReplicatedLog) -> io::Result<u64> {
    fs::create_dir_all(dir)?;
    File::open(dir.join(".."))?.sync_all()?;
    let mut segments = Vec::<u64>::new();
    for entry in fs::read_dir(dir)? {
        segments.push(entry?.file_name().to_string_lossy().parse().map_err(io::Error::other)?);
    }
    let last = segments.into_iter().max().unwrap_or(log.min_offset());
    let kept = log.min_offset()..=log.end();
    kept.contains(&last).then_some(last).ok_or_else(|| io::Error::other("the copy of another log"))
}

/// Copies everything durable behind `shipped`, segment by segment, into files of the same names.
fn ship(
    dir: &Path,
    log: &dyn ReplicatedLog,
    epoch: Epoch,
    shipped: &mut u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let (durable, segment_size) = (log.durable(), log.segment_size());
    while *shipped < durable {
        // As much as there is, of one segment: many puts share a sync.
        let slice = log.read(*shipped, durable - *shipped)?;
        if slice.bytes().is_empty() {
            return Err("the log no longer keeps what comes next".into());
        }
        let within = *shipped % segment_size;
        let path = dir.join(format!("{:020}", *shipped - within));
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        if within == 0 {
            // A segment has its full size from the start, and its name must be as safe as its bytes.
            file.set_len(segment_size)?;
            File::open(dir)?.sync_all()?;
        }
        file.write_all_at(slice.bytes(), within)?;
        file.sync_all()?;
        *shipped += slice.bytes().len() as u64;
        // Now it is true, and not before.
        log.confirm(*shipped, epoch)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let dir = match args.as_slice() {
        [] => std::env::temp_dir().join("duralog-shipped"),
        [dir] if !dir.as_encoded_bytes().starts_with(b"-") => dir.into(),
        _ => {
            eprintln!("usage: ship_segments [DIR]");
            std::process::exit(2);
        }
    };
    let config = |name| StoreConfig::new(dir.join(name)).segment_size(64 << 10);
    let (epoch, working) = (OnceLock::new(), Mutex::new(None));
    let shipper = Arc::new(Shipper { to: dir.join("copy"), epoch, working });
    let store = Store::open_replicated(config("store"), Environment::default(), shipper)?;
    for n in 0..1000 {
        // `PutOk`, which `ok` insists on: it is in both.
        store.put(Message::new("orders", format!("order {n}")))?.ok()?;
    }
    store.close()?;
    let copy = Store::open(config("copy").read_only(true))?;
    let messages = copy.get("orders", 0, 0, 1_000_000)?.messages;
    println!("The copy in {} holds {} messages", dir.join("copy").display(), messages.len());
    copy.close()
}
