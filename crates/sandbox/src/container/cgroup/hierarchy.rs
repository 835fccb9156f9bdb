//! Which cgroup hierarchies this host mounts and where: read once per process from `/proc/self/mountinfo`
//! (cgroups(7)). Each hierarchy is kept as an open directory, so that a later change of the mount namespace does not
//! matter.

use super::files;
use crate::hull::HullError;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// One mounted hierarchy.
#[derive(Debug)]
pub(super) struct Hierarchy {
    /// Its v1 controllers, `name=…` for a named one; empty for the unified one.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: String,
    /// That directory.
    pub root: OwnedFd,
}

impl Hierarchy {
    /// Whether this v1 hierarchy has the controller.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// All hierarchies of the host.
#[derive(Debug)]
pub(super) struct Hierarchies {
    /// The v1 ones.
    pub v1: Vec<Hierarchy>,
    /// The unified one.
    pub v2: Option<Hierarchy>,
    /// The host is managed by systemd (sd_booted(3)), which kills what stays in the cgroup of a unit that ends.
    pub systemd: bool,
}

impl Hierarchies {
    /// The host's, read on first use.
    pub fn get() -> Result<&'static Self, HullError> {
        static HOST: OnceLock<Hierarchies> = OnceLock::new();
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let step = |step: &str| {
            let step = step.to_owned();
            move |source| HullError::Step { step, source }
        };
        let text =
            std::fs::read_to_string("/proc/self/mountinfo").map_err(step("read /proc/self/mountinfo"))?;
        let mut host =
            Self { v1: Vec::new(), v2: None, systemd: std::path::Path::new("/run/systemd/system").is_dir() };
        for mount in parse_mountinfo(&text) {
            let root = match files::open_dir(rustix::fs::CWD, &mount.mount_point) {
                Ok(root) => root,
                // Covered by another mount, or out of reach.
                Err(_) => continue,
            };
            let hierarchy =
                Hierarchy { controllers: mount.controllers, mount_point: mount.mount_point, root };
            if mount.unified {
                host.v2.get_or_insert(hierarchy);
            } else if !host.v1.iter().any(|h| h.controllers == hierarchy.controllers) {
                host.v1.push(hierarchy);
            }
        }
        if host.v1.is_empty() && host.v2.is_none() {
            return Err(HullError::Unsupported(
                "no cgroup hierarchy is mounted; mount one, for example with `mount -t cgroup2 cgroup2 /sys/fs/cgroup`".into(),
            ));
        }
        Ok(HOST.get_or_init(|| host))
    }

    /// Whether limits go through the unified hierarchy: there is no v1 controller.
    pub fn unified(&self) -> bool {
        self.v2.is_some() && self.v1.iter().all(|h| h.controllers.iter().all(|c| c.starts_with("name=")))
    }

    /// The v1 hierarchy of a controller.
    pub fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|h| h.has(controller))
    }
}

/// A cgroup mount as `/proc/self/mountinfo` tells it.
#[derive(Debug, PartialEq)]
pub(super) struct CgroupMount {
    pub unified: bool,
    pub controllers: Vec<String>,
    pub mount_point: String,
}

/// The cgroup mounts in the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)); lines of any other kind and
/// damaged ones are passed over.
pub(super) fn parse_mountinfo(text: &str) -> Vec<CgroupMount> {
    text.lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let mut back = back.split(' ');
            let unified = match back.next()? {
                "cgroup2" => true,
                "cgroup" => false,
                _ => return None,
            };
            let options = back.nth(1)?;
            let mount_point = unescape(front.split(' ').nth(4)?);
            const FLAGS: [&str; 10] = [
                "rw",
                "ro",
                "xattr",
                "noprefix",
                "clone_children",
                "cpuset_v2_mode",
                "all",
                "none",
                "favordynmods",
                "nofavordynmods",
            ];
            let mut controllers: Vec<String> = options
                .split(',')
                .filter(|o| !unified && !FLAGS.contains(o) && !o.starts_with("release_agent="))
                .map(str::to_owned)
                .collect();
            controllers.sort_unstable();
            (unified || !controllers.is_empty()).then_some(CgroupMount { unified, controllers, mount_point })
        })
        .collect()
}

/// Undoes the octal escapes of mountinfo: `\040` is a space.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = bytes
            .get(at + 1..at + 4)
            .filter(|d| byte == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)))
            .map(|d| d.iter().fold(0u32, |n, c| n * 8 + u32::from(c - b'0')) as u8);
        out.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hybrid() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                    32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
                    40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                    41 31 0:38 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw,nsdelegate\n\
                    broken\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(mounts[1].controllers, ["name=systemd"]);
        assert!(mounts[2].unified && mounts[2].mount_point == "/sys/fs/cgroup/a b");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            parse_mountinfo(&text);
            unescape(&text);
        }
    }
}
