//! What a process gives out that was forked. A binary of its own: nothing else runs in it.
#![cfg(unix)]
#![allow(unsafe_code, reason = "the standard library forks no process")]

#[path = "support/temp.rs"]
mod temp;

use duralog::Message;
use duralog::delivery::outbox::SealedMessage;
use std::collections::HashSet;
use std::fs;
use temp::TempDir;

fn ids() -> Vec<String> {
    let message = Message::new("orders", "x");
    let sealed = (0..20_000).map(|_| SealedMessage::seal(&message).expect("it is sealed"));
    sealed.map(|sealed| sealed.unique_key().to_owned()).collect()
}

#[test]
fn a_process_that_is_forked_seals_with_other_ids() {
    let dir = TempDir::new();
    let told = dir.path().join("ids");
    // What the child inherits.
    let mut all: HashSet<_> = ids().into_iter().collect();
    // SAFETY: the child gives out ids, writes a file and ends; no other thread holds a lock that it takes, as
    // there is one test.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "it was forked");
    let own = ids();
    if pid == 0 {
        let written = fs::write(&told, own.join("\n"));
        // SAFETY: ends the child without running what the parent is to run.
        unsafe { libc::_exit(i32::from(written.is_err())) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    let theirs = fs::read_to_string(&told).expect("the child has told");
    let count = all.len();
    all.extend(own);
    all.extend(theirs.lines().map(str::to_owned));
    assert_eq!((count, all.len()), (20_000, 60_000));
}
