//! What lies between the nodes, and can be cut in either direction.

use super::Failure;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub const NODES: usize = 3;

pub enum Network {
    /// Each node has a network namespace of its own, all of them on one bridge.
    Namespaces,
    /// All are on loopback, and reach each other by way of this process.
    Proxy(Proxy),
}

impl Network {
    /// Makes the namespaces, in a network namespace and a mount namespace that are this process's alone.
    pub fn namespaces() -> Result<Self, Failure> {
        ip("link set lo up")?;
        ip("link add crash0 type bridge")?;
        ip("link set crash0 up")?;
        for node in 0..NODES {
            let (inside, outside) = (name(node), format!("crash0-{node}"));
            ip(&format!("netns add {inside}"))?;
            ip(&format!("link add {outside} type veth peer name eth0 netns {inside}"))?;
            ip(&format!("link set {outside} master crash0 up"))?;
            ip(&format!("-n {inside} addr add {}/24 dev eth0", address(node)))?;
            ip(&format!("-n {inside} link set eth0 up"))?;
            ip(&format!("-n {inside} link set lo up"))?;
            // A packet is not dropped because there is no way back.
            for interface in ["all", "eth0"] {
                let filter = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
                let mut command = inside_of(node, Path::new("sh"));
                succeed(command.args(["-c", &format!("echo 0 > {filter}")]))?;
            }
        }
        Ok(Self::Namespaces)
    }

    pub fn proxy() -> Result<Self, Failure> {
        Ok(Self::Proxy(Proxy::start()?))
    }

    /// The program, to be run where the node is.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        match self {
            Self::Namespaces => inside_of(node, program),
            Self::Proxy(_) => Command::new(program),
        }
    }

    /// Where a node listens.
    pub fn ip(&self, node: usize) -> String {
        match self {
            Self::Namespaces => address(node),
            Self::Proxy(_) => "127.0.0.1".to_owned(),
        }
    }

    /// How one node reaches another that listens at `address`.
    pub fn way(&self, from: usize, to: usize, address: &str) -> String {
        match self {
            Self::Namespaces => address.to_owned(),
            Self::Proxy(proxy) => proxy.way(from, to, address),
        }
    }

    /// Holds what one node sends to another.
    pub fn cut(&self, from: usize, to: usize) -> Result<(), Failure> {
        match self {
            // The kernel sends it again later.
            Self::Namespaces => change_route("replace", from, to)?,
            Self::Proxy(proxy) => proxy.gates.set(from, to, true),
        }
        Ok(())
    }

    /// Lets everything through again, what was held first of all.
    pub fn heal(&self, from: usize, to: usize) -> Result<(), Failure> {
        match self {
            Self::Namespaces => change_route("delete", from, to)?,
            Self::Proxy(proxy) => proxy.gates.set(from, to, false),
        }
        Ok(())
    }
}

fn change_route(change: &str, from: usize, to: usize) -> Result<(), Failure> {
    ip(&format!("-n {} route {change} blackhole {}/32", name(from), address(to)))
}

fn name(node: usize) -> String {
    format!("crash-{node}")
}

fn address(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

fn inside_of(node: usize, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &name(node)]).arg(program);
    command
}

fn ip(args: &str) -> Result<(), Failure> {
    succeed(Command::new("ip").args(args.split(' ')))
}

fn succeed(command: &mut Command) -> Result<(), Failure> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Which directions are cut.
#[derive(Default)]
struct Gates {
    cut: Mutex<[[bool; NODES]; NODES]>,
    healed: Condvar,
}

impl Gates {
    fn lock(&self) -> MutexGuard<'_, [[bool; NODES]; NODES]> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, from: usize, to: usize, cut: bool) {
        self.lock()[from][to] = cut;
        self.healed.notify_all();
    }

    fn wait(&self, from: usize, to: usize) {
        let held = self.healed.wait_while(self.lock(), |cut| cut[from][to]);
        drop(held.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Where a node leads who connects, and whose connections they are.
type Target = Arc<Mutex<Option<(usize, String)>>>;

/// Takes bytes from one node to another, or holds them.
pub struct Proxy {
    gates: Arc<Gates>,
    /// By the node that connects.
    entries: Vec<(String, Target)>,
}

impl Proxy {
    fn start() -> Result<Self, Failure> {
        let gates = Arc::<Gates>::default();
        let mut entries = Vec::new();
        for from in 0..NODES {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let (address, target) = (listener.local_addr()?.to_string(), Target::default());
            entries.push((address, target.clone()));
            let gates = gates.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let target = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let (gates, target) = (gates.clone(), target.clone());
                    std::thread::spawn(move || carry(&gates, from, stream, target));
                }
            });
        }
        Ok(Self { gates, entries })
    }

    fn way(&self, from: usize, to: usize, address: &str) -> String {
        let (entry, target) = &self.entries[from];
        *target.lock().unwrap_or_else(PoisonError::into_inner) = Some((to, address.to_owned()));
        entry.clone()
    }
}

/// Carries what is said on a connection in both directions.
fn carry(gates: &Arc<Gates>, from: usize, near: TcpStream, target: Option<(usize, String)>) {
    let Some((to, address)) = target else { return };
    gates.wait(from, to);
    gates.wait(to, from);
    let Ok(far) = TcpStream::connect(address) else { return };
    let clones = (near.try_clone(), far.try_clone());
    let (Ok(near_again), Ok(far_again)) = clones else { return };
    let back = gates.clone();
    std::thread::spawn(move || pump(&back, (to, from), far_again, near_again));
    pump(gates, (from, to), near, far);
}

fn pump(gates: &Gates, (from, to): (usize, usize), mut source: TcpStream, mut sink: TcpStream) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = source.read(&mut bytes).unwrap_or(0);
        // An end, too, is not noticed on the other side of a cut.
        gates.wait(from, to);
        if read == 0 || sink.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    // Either may be gone already.
    let _ = source.shutdown(Shutdown::Both);
    let _ = sink.shutdown(Shutdown::Both);
}
