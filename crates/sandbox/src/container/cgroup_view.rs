//! A container's view of the cgroup hierarchies: its own part of each, and nothing above it.
//!
//! With a unified host that is a cgroup2 mount in the cgroup namespace; with v1 (or both) a tmpfs with one bind per
//! hierarchy of the directory that the container's first process is in. `release_agent` exists only in the root of a
//! v1 hierarchy, which therefore never shows (CVE-2022-0492).

use super::step::Step;
use crate::hull::HullError;
use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use sys::mount::{Change, attach, attr, clone_path, new_filesystem, propagation, set_attributes};

/// Where everybody mounts the hierarchies.
const HOST: &str = "/sys/fs/cgroup";

/// Where the calling process's group is on the host's mount of each hierarchy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// The host is not a unified one.
    v1: bool,
    /// Name of the directory in the container, and the host's path of the group.
    hierarchies: Vec<(String, PathBuf)>,
}

impl View {
    /// To be asked before the process enters a cgroup namespace, which would hide the paths.
    pub(super) fn of_this_process() -> Result<Self, HullError> {
        let text = std::fs::read_to_string("/proc/self/cgroup").step(|| "read /proc/self/cgroup".into())?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let v1 = text.lines().any(|line| !line.starts_with("0::"));
        let hierarchies: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (_, name, path) = (fields.next()?, fields.next()?, fields.next()?);
                // Of a hierarchy in which the container has no group of its own nothing is shown: it would be all.
                if path == "/" {
                    return None;
                }
                let name = name.strip_prefix("name=").unwrap_or(name);
                let name = if name.is_empty() { "unified" } else { name };
                Some((name.to_owned(), PathBuf::from(format!("{HOST}/{name}{path}"))))
            })
            .collect();
        Self { v1, hierarchies: if v1 { hierarchies } else { Vec::new() } }
    }

    /// Attaches the view on `target` with these mount attributes.
    pub(super) fn mount(&self, target: OwnedFd, attributes: u64) -> Result<(), HullError> {
        let named = || "mount the cgroup hierarchies".to_owned();
        if !self.v1 {
            let mount = new_filesystem("cgroup2", Some("cgroup"), [], attributes).step(named)?;
            return attach(mount, target).step(named);
        }
        let base =
            new_filesystem("tmpfs", Some("tmpfs"), ["mode=755"], attributes & !attr::RDONLY).step(named)?;
        attach(&base, target).step(named)?;
        for (name, source) in &self.hierarchies {
            // A hierarchy that the host does not mount where everybody does cannot be shown.
            let Ok(tree) = clone_path(source, false) else { continue };
            let change = Change { set: attributes, clear: 0, propagation: propagation::PRIVATE };
            set_attributes(&tree, false, change).step(named)?;
            mkdirat(&base, name.as_str(), Mode::from_raw_mode(0o755)).step(named)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let at = openat(&base, name.as_str(), flags, Mode::empty()).step(named)?;
            attach(tree, at).step(named)?;
            for alias in name.split(',').filter(|_| name.contains(',')) {
                symlinkat(name.as_str(), &base, alias).step(named)?;
            }
        }
        if attributes & attr::RDONLY != 0 {
            set_attributes(&base, false, Change::set(attr::RDONLY)).step(named)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memberships_become_paths() {
        let view = View::parse("9:name=systemd:/a\n5:pids:/\n4:cpu,cpuacct:/d/x\n0::/d/x\n");
        let at = |name: &str, path: &str| (name.to_owned(), PathBuf::from(path));
        assert_eq!(
            view.hierarchies,
            [
                at("systemd", "/sys/fs/cgroup/systemd/a"),
                at("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/d/x"),
                at("unified", "/sys/fs/cgroup/unified/d/x"),
            ]
        );
        assert_eq!(View::parse("0::/d/x\n"), View::default());
        assert!(View::parse("1:cpu:/\n0::/\n").v1);
    }
}
