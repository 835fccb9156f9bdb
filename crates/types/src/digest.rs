//! Content digests (OCI image-spec, `descriptor.md`): `sha256:` and 64 lower-case hexadecimal digits.
//!
//! Only SHA-256 is accepted: it is what registries use, and a second algorithm would be a second way in.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Why a string is no digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a digest (\"sha256:\" and 64 lower-case hexadecimal digits)")]
pub struct DigestError(pub String);

impl Digest {
    /// Wraps a finished SHA-256 sum.
    pub const fn from_sha256(sum: [u8; 32]) -> Self {
        Self(sum)
    }

    /// Reads `sha256:<hex>`.
    pub fn parse(s: &str) -> Result<Self, DigestError> {
        let err = || DigestError(s.chars().take(100).collect());
        Self::parse_hex(s.strip_prefix("sha256:").ok_or_else(err)?).ok_or_else(err)
    }

    /// Reads the 64 hexadecimal digits without the algorithm.
    pub fn parse_hex(hex: &str) -> Option<Self> {
        let hex = hex.as_bytes();
        if hex.len() != 64 {
            return None;
        }
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut out = [0; 32];
        for (i, pair) in hex.chunks_exact(2).enumerate() {
            out[i] = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(out))
    }

    /// The 64 hexadecimal digits, as file names have them.
    pub fn hex(&self) -> String {
        use fmt::Write;
        let mut s = String::with_capacity(64);
        for b in self.0 {
            let _ = write!(s, "{b:02x}");
        }
        s
    }

    /// The first twelve hexadecimal digits, as commands print image ids.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// The raw sum.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = DigestError;
    fn from_str(s: &str) -> Result<Self, DigestError> {
        Self::parse(s)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(s: String) -> Result<Self, DigestError> {
        Self::parse(&s)
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> Self {
        d.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let s = format!("sha256:{}", "0f".repeat(32));
        let d = Digest::parse(&s).unwrap();
        assert_eq!(d.to_string(), s);
        assert_eq!(d.short(), "0f0f0f0f0f0f");
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in ["", "sha256:", "sha512:00", "sha256:zz", &format!("sha256:{}", "AB".repeat(32))] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
