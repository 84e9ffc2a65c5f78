//! Proving that one knows the secret, without telling it.
//!
//! Each side sends a nonce and then an HMAC over both: nobody who does not know the secret can answer
//! a nonce of today, and a primary's proof is of no use to a replica. It says who is there, and protects
//! nothing of what follows: for that, bring TLS, as the example `replicated_tls` does.

use super::wire::{Nonce, Proof};
use crate::error::{IoContext, IoOp, Result};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// What all nodes of a cluster know, and nobody else. An empty one keeps nobody out.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// A secret of any length; 32 random bytes are as good as any.
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self(bytes.as_ref().into())
    }

    /// Whether it keeps nobody out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn prove(&self, who: Side, replica: &Nonce, primary: &Nonce) -> Proof {
        let mut mac = hmac_sha256::HMAC::new(&*self.0);
        mac.update(who.name());
        mac.update(replica);
        mac.update(primary);
        mac.finalize()
    }

    pub(crate) fn accepts(
        &self,
        proof: &Proof,
        who: Side,
        replica: &Nonce,
        primary: &Nonce,
    ) -> bool {
        let own = self.prove(who, replica, primary);
        // As long for a wrong first byte as for a wrong last one.
        own.iter().zip(proof).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Who proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Primary,
    Replica,
}

impl Side {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Primary => b"duralog primary 1",
            Self::Replica => b"duralog replica 1",
        }
    }
}

/// Bytes that nobody can foresee.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes).map_err(std::io::Error::other);
    filled.at(IoOp::Read, Path::new("random numbers")).map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_good_for_its_side_its_nonces_and_its_secret_alone() {
        let (secret, other) = (Secret::new("one"), Secret::new("two"));
        let (a, b) = ([1; 16], [2; 16]);
        let proof = secret.prove(Side::Replica, &a, &b);
        assert!(secret.accepts(&proof, Side::Replica, &a, &b));
        assert!(!secret.accepts(&proof, Side::Primary, &a, &b));
        assert!(!secret.accepts(&proof, Side::Replica, &b, &a));
        assert!(!other.accepts(&proof, Side::Replica, &a, &b));
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    #[test]
    fn random_bytes_differ() {
        let (a, b): ([u8; 16], [u8; 16]) = (random().unwrap(), random().unwrap());
        assert_ne!(a, b);
    }
}
