//! The address of a producer or broker, as a record keeps it.

use super::wire::{Reader, Sink};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address as RocketMQ stores it. The port takes four bytes and is not checked by anyone, so it
/// may be a number that no socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Host {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: i32,
}

impl Host {
    /// The host at `ip` and `port`.
    pub fn new(ip: impl Into<IpAddr>, port: i32) -> Self {
        Self { ip: ip.into(), port }
    }

    pub(crate) fn read_v4(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self::new(Ipv4Addr::from(reader.array::<4>()?), reader.i32()?))
    }

    pub(crate) fn read_v6(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self::new(Ipv6Addr::from(reader.array::<16>()?), reader.i32()?))
    }

    #[inline]
    pub(crate) fn write(&self, sink: &mut impl Sink) {
        match self.ip {
            IpAddr::V4(ip) => sink.write(&ip.octets()),
            IpAddr::V6(ip) => sink.write(&ip.octets()),
        }
        sink.write(&self.port.to_be_bytes());
    }
}

impl From<SocketAddr> for Host {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), i32::from(address.port()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_like_a_socket_address() {
        for text in ["127.0.0.1:10911", "[2001:db8::1]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Host::from(address).to_string(), text);
        }
        assert_eq!(Host::new([10, 0, 0, 1], -1).to_string(), "10.0.0.1:-1");
    }
}
