//! A master or a slave of RocketMQ's own, told line by line what to do: see `Replica.java`.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::java::{Java, Process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};

/// The topics and queues that a Java master puts into.
pub const TOPICS: [&str; 3] = ["orders", "payments", "%RETRY%billing"];
pub const QUEUES: i32 = 4;

/// Halts as if killed when it is dropped.
pub struct JavaReplica {
    process: Process,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
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
        let log = dir.with_extension("stderr");
        let mut child = java.command(command, dir, &[&[place], settings].concat());
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = child.stderr(File::create(&log).expect("a file")).spawn().expect("java runs");
        let mut process = Process(child);
        let commands = process.0.stdin.take().expect("piped");
        let answers = BufReader::new(process.0.stdout.take().expect("piped"));
        let mut replica = Self { process, commands, answers, log, port: 0 };
        let port = replica.answer(command)["port"].as_u64().expect("a number");
        replica.port = port.try_into().expect("a port");
        replica
    }

    pub fn ask(&mut self, command: &str) -> Value {
        writeln!(self.commands, "{command}").expect("it listens");
        self.answer(command)
    }

    fn answer(&mut self, command: &str) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("UTF-8");
        let answer: Value = serde_json::from_str(&line).unwrap_or_default();
        if !answer.is_object() || answer.get("error").is_some() {
            let said = fs::read(&self.log).unwrap_or_default();
            panic!("{command}: {line}\n{}", String::from_utf8_lossy(&said));
        }
        answer
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

    pub fn close(mut self) {
        self.ask("close");
        assert!(self.process.0.wait().expect("it ends").success());
    }
}
