//! Drivers of volumes, and what each can be told: Docker's `-d` and `-o`.

use crate::machine::disk::{DEFAULT_SIZE, Use, parse_size};
use crate::spec::invalid;
use crate::{EngineError, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What carries a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A directory, or what mount(8) can mount.
    Local,
    /// A sparse file with a filesystem and a size of its own.
    Disk,
}

impl Driver {
    /// By its name; empty is the default.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "" | "local" => Ok(Self::Local),
            "disk" => Ok(Self::Disk),
            other => Err(EngineError::Unsupported(format!(
                "there is no volume driver {other:?}: use local or disk"
            ))),
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Disk => "disk",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Options = BTreeMap<String, String>;

/// A disk whose filesystem a guest has written may be mounted by this host's kernel.
pub(crate) const TRUST: &str = "trust-guest";

/// Refuses what a driver does not know.
pub(crate) fn check(driver: Driver, options: &Options) -> Result<()> {
    match driver {
        Driver::Disk => {
            let known = |key: &String| matches!(key.as_str(), "size" | "fs" | "journal" | TRUST);
            if let Some(key) = options.keys().find(|key| !known(key)) {
                return Err(invalid(format!(
                    "invalid option {key:?} of the volume driver disk: size, fs, journal and {TRUST} are known"
                )));
            }
            if let Some(fs) = options.get("fs").filter(|fs| *fs != "ext4") {
                return Err(EngineError::Unsupported(format!(
                    "a disk volume has the filesystem ext4, not {fs:?}"
                )));
            }
            trusts_guest(options)?;
            kind(options)?;
            size(options).map(drop)
        }
        Driver::Local => check_local(options),
    }
}

/// Docker's driver `local`: all of `type`, `device` and, if need be, `o`.
fn check_local(options: &Options) -> Result<()> {
    let known = |key: &String| matches!(key.as_str(), "type" | "o" | "device" | "size");
    if let Some(key) = options.keys().find(|key| !known(key)) {
        return Err(invalid(format!("invalid option: {key:?} (the driver local knows type, o and device)")));
    }
    if options.contains_key("size") {
        return Err(EngineError::Unsupported(
            "a size for a directory is a quota, which this driver does not set: use the driver disk (-d disk -o size=10g)"
                .into(),
        ));
    }
    if options.is_empty() {
        return Ok(());
    }
    for needed in ["type", "device"] {
        if options.get(needed).is_none_or(String::is_empty) {
            return Err(invalid(format!("missing required option: {needed:?}")));
        }
    }
    let (kind, device, words) = mount_of(options);
    match kind.as_str() {
        "none" if !words.iter().any(|w| w == "bind" || w == "rbind") => {
            Err(invalid("a volume of the type none is a binding: add -o o=bind".to_owned()))
        }
        "none" if !Path::new(&device).is_absolute() => {
            Err(invalid(format!("the device of a binding is an absolute path, not {device:?}")))
        }
        "none" | "tmpfs" => Ok(()),
        "nfs" | "nfs4" if !words.iter().any(|w| address(w).is_some()) => Err(invalid(
            "an NFS volume needs its server's address in numbers: -o o=addr=192.0.2.1,rw".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn address(word: &str) -> Option<std::net::IpAddr> {
    word.strip_prefix("addr=")?.parse().ok()
}

/// Type, device and words of a volume of the driver `local`.
pub(crate) fn mount_of(options: &Options) -> (String, String, Vec<String>) {
    let get = |key: &str| options.get(key).cloned().unwrap_or_default();
    let words = get("o").split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect();
    (get("type"), get("device"), words)
}

/// What kind of filesystem a disk is made with.
pub(crate) fn kind(options: &Options) -> Result<Use> {
    match options.get("journal").map(String::as_str) {
        None | Some("full") => Ok(Use::Volume),
        Some("fast") => Ok(Use::FastVolume),
        Some(other) => {
            Err(invalid(format!("invalid value {other:?} of the option journal: use full or fast")))
        }
    }
}

/// The size of a disk.
pub(crate) fn size(options: &Options) -> Result<u64> {
    options.get("size").map_or(Ok(DEFAULT_SIZE), |text| parse_size(text, "a disk volume"))
}

/// Whether containers may mount what a guest has written.
pub(crate) fn trusts_guest(options: &Options) -> Result<bool> {
    match options.get(TRUST).map(String::as_str) {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(other) => {
            Err(invalid(format!("invalid value {other:?} of the option {TRUST}: use true or false")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        words.iter().filter_map(|w| w.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn each_driver_knows_its_options() {
        for (driver, good) in [
            (Driver::Disk, &["size=64m"][..]),
            (Driver::Disk, &["fs=ext4", "trust-guest=true", "journal=fast"]),
            (Driver::Local, &[]),
            (Driver::Local, &["type=tmpfs", "device=tmpfs", "o=size=1m,uid=7"]),
            (Driver::Local, &["type=none", "device=/srv", "o=bind"]),
            (Driver::Local, &["type=nfs", "device=:/export", "o=addr=192.0.2.1,rw"]),
        ] {
            check(driver, &options(good)).unwrap();
        }
        for (driver, bad) in [
            (Driver::Disk, &["size=1k"][..]),
            (Driver::Disk, &["size=much"]),
            (Driver::Disk, &["journal=none"]),
            (Driver::Disk, &["fs=btrfs"]),
            (Driver::Disk, &["device=/dev/sda"]),
            (Driver::Disk, &["trust-guest=perhaps"]),
            (Driver::Local, &["size=1g"]),
            (Driver::Local, &["type=tmpfs"]),
            (Driver::Local, &["device=/srv"]),
            (Driver::Local, &["colour=red"]),
            (Driver::Local, &["type=none", "device=/srv"]),
            (Driver::Local, &["type=none", "device=srv", "o=bind"]),
            (Driver::Local, &["type=nfs", "device=:/x", "o=addr=server"]),
        ] {
            assert!(check(driver, &options(bad)).is_err(), "{bad:?}");
        }
        assert!(Driver::parse("rexray").is_err());
    }
}
