//! A process of Java's that is told line by line what to do: see `Conversation.java`.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::java::{Java, Process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};

/// Halts as if killed when it is dropped.
pub struct JavaSession {
    process: Process,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
}

impl JavaSession {
    /// With what it says at first.
    pub fn start(java: Java, command: &str, dir: &Path, args: &[&str]) -> (Self, Value) {
        let log = dir.with_extension("stderr");
        let mut child = java.command(command, dir, args);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = child.stderr(File::create(&log).expect("a file")).spawn().expect("java runs");
        let mut process = Process(child);
        let commands = process.0.stdin.take().expect("piped");
        let answers = BufReader::new(process.0.stdout.take().expect("piped"));
        let mut session = Self { process, commands, answers, log };
        let first = session.answer(command);
        (session, first)
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

    pub fn close(mut self) {
        self.ask("close");
        assert!(self.process.0.wait().expect("it ends").success());
    }
}
