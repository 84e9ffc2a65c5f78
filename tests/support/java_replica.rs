//! A master or a slave of RocketMQ's own, told line by line what to do: see `Replica.java`.
#![allow(dead_code, reason = "each test binary uses a part of it")]

#[path = "java_session.rs"]
mod java_session;

use crate::java::Java;
use java_session::JavaSession;
use serde_json::Value;
use std::path::Path;

/// The topics and queues that a Java master puts into.
pub const TOPICS: [&str; 3] = ["orders", "payments", "%RETRY%billing"];
pub const QUEUES: i32 = 4;

/// Halts as if killed when it is dropped.
pub struct JavaReplica {
    session: JavaSession,
    /// Where it listens for slaves.
    pub port: u16,
}

impl JavaReplica {
    /// Listens on `port`, or on any if that is 0.
    pub fn master(java: Java, dir: &Path, port: u16, settings: &[&str]) -> Self {
        Self::start(java, "ha-master", dir, &port.to_string(), settings)
    }

    /// Connects to the master that listens on `port`.
    pub fn slave(java: Java, dir: &Path, port: u16, settings: &[&str]) -> Self {
        Self::start(java, "ha-slave", dir, &format!("127.0.0.1:{port}"), settings)
    }

    fn start(java: Java, command: &str, dir: &Path, place: &str, settings: &[&str]) -> Self {
        let (session, first) =
            JavaSession::start(java, command, dir, &[&[place], settings].concat());
        let port = first["port"].as_u64().expect("a number").try_into().expect("a port");
        Self { session, port }
    }

    pub fn ask(&mut self, command: &str) -> Value {
        self.session.ask(command)
    }

    /// Puts messages; where the log ends then, and how many were answered with which status.
    pub fn put_any(&mut self, count: u64, size: u64) -> (u64, Value) {
        let mut answer = self.ask(&format!("put {count} {size}"));
        (answer["end"].as_u64().expect("a number"), answer["statuses"].take())
    }

    /// Puts messages, each with success; where the log ends then.
    pub fn put(&mut self, count: u64, size: u64) -> u64 {
        let (end, statuses) = self.put_any(count, size);
        assert_eq!(statuses, serde_json::json!({ "PUT_OK": count }));
        end
    }

    /// Waits until the log ends there and all of it is in the queues.
    pub fn reach(&mut self, end: u64) {
        let answer = self.ask(&format!("offset {end}"));
        assert_eq!(answer["max"], end);
    }

    pub fn wake(&mut self) {
        self.ask("wake");
    }

    /// Every message of the queues that it has of these.
    pub fn messages(&mut self, topics: &[&str], queues: i32) -> Vec<Value> {
        let mut messages = Vec::new();
        for topic in topics {
            for queue in 0..queues {
                let mut answer = self.ask(&format!("get {topic} {queue} 0 1000000"));
                let Value::Array(found) = answer["messages"].take() else { panic!("{answer}") };
                assert_eq!(answer["max"], found.len(), "{topic} {queue}");
                messages.extend(found);
            }
        }
        messages
    }

    pub fn close(self) {
        self.session.close();
    }
}
