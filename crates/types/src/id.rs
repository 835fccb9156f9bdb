//! Container ids: 32 random bytes as 64 lower-case hexadecimal digits, as Docker's.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A container's full id.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// Why a string is no container id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a container id (64 lower-case hexadecimal digits)")]
pub struct IdError(pub String);

impl ContainerId {
    /// Makes an id of 32 bytes that the caller drew at random.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        use fmt::Write;
        let mut s = String::with_capacity(64);
        for b in bytes {
            let _ = write!(s, "{b:02x}");
        }
        Self(s)
    }

    /// Reads a full id.
    pub fn parse(s: &str) -> Result<Self, IdError> {
        let ok = s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if ok { Ok(Self(s.to_owned())) } else { Err(IdError(s.to_owned())) }
    }

    /// The full id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as commands print it.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        Self::parse(&s)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_become_hex() {
        let id = ContainerId::from_random([0xab; 32]);
        assert_eq!(id.as_str(), "ab".repeat(32));
        assert_eq!(id.short(), "abababababab");
        assert_eq!(ContainerId::parse(id.as_str()), Ok(id));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for bad in ["", "abc", "../../etc", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad}");
        }
    }
}
