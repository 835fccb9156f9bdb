//! Platforms, `os[/architecture[/variant]]`, normalised as containerd does.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An operating system, an architecture and, rarely, a variant of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's name of the architecture: `amd64`, `arm64`, ….
    pub architecture: String,
    /// `v7`, `v8`, …; absent where there is one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a string is no platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a platform (os/architecture[/variant], for example linux/amd64)")]
pub struct PlatformError(pub String);

impl Platform {
    /// The platform that this binary was built for.
    pub fn host() -> Self {
        Self::linux(std::env::consts::ARCH)
    }

    fn linux(arch: &str) -> Self {
        let (architecture, variant) = normalise(arch, None);
        Self { os: "linux".into(), architecture, variant }
    }

    /// Reads `linux/amd64`, `linux/arm/v7`, or an architecture alone.
    pub fn parse(s: &str) -> Result<Self, PlatformError> {
        let err = || PlatformError(s.chars().take(100).collect());
        let parts: Vec<&str> = s.split('/').collect();
        let sane = |p: &&str| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        if !parts.iter().all(sane) {
            return Err(err());
        }
        match parts[..] {
            ["linux"] => Ok(Self { os: "linux".into(), ..Self::host() }),
            [arch] => Ok(Self::linux(arch)),
            [os, arch] => {
                let (architecture, variant) = normalise(arch, None);
                Ok(Self { os: os.to_lowercase(), architecture, variant })
            }
            [os, arch, variant] => {
                let (architecture, variant) = normalise(arch, Some(variant));
                Ok(Self { os: os.to_lowercase(), architecture, variant })
            }
            _ => Err(err()),
        }
    }

    /// Whether an image for `image` runs where `self` was asked for.
    pub fn accepts(&self, image: &Platform) -> bool {
        let (arch, variant) = normalise(&image.architecture, image.variant.as_deref());
        self.os == image.os
            && self.architecture == arch
            && (self.variant.is_none() || variant.is_none() || self.variant == variant)
    }
}

fn normalise(arch: &str, variant: Option<&str>) -> (String, Option<String>) {
    let (arch, variant) = match (arch.to_lowercase().as_str(), variant) {
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64".into(), v.filter(|v| *v != "v1")),
        ("aarch64" | "arm64", v) => ("arm64".into(), v.filter(|v| *v != "8" && *v != "v8")),
        ("armhf", _) => ("arm".into(), Some("v7")),
        ("armel", _) => ("arm".into(), Some("v6")),
        ("i386" | "i686" | "x86", _) => ("386".into(), None),
        (other, v) => (other.to_owned(), v),
    };
    (arch, variant.map(str::to_owned))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (given, want) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("armhf", "linux/arm/v7"),
        ] {
            assert_eq!(Platform::parse(given).unwrap().to_string(), want);
        }
        for bad in ["", "/", "a/b/c/d", "linux/", "linux/am d"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }
}
