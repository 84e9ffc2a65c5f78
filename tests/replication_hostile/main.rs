//! Peers that do what no node does, on plain sockets: to a primary that serves an honest replica
//! meanwhile, and to a replica that takes them for its primary. Each is refused by the right error, which
//! is told once; it learns nothing that it must not know, and disturbs nobody.

#[path = "../support/counting.rs"]
mod counting;
#[path = "../support/rng.rs"]
mod rng;
#[path = "../support/temp.rs"]
mod temp;
#[path = "../support/wire_peer.rs"]
mod wire_peer;

mod members;
mod primaries;
mod recoveries;
mod rocketmq;
mod scene;
mod strangers;
