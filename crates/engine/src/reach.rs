//! What a running sandbox can reach of this host: system calls of its kernel, and files.
//!
//! A container's processes reach the host's kernel by themselves, through their seccomp filters. A microVM's reach none
//! of it: what stands behind that wall is its hypervisor, a process of this host, and what that can reach counts once a
//! guest has broken out into it. Both are measured, not taken from a policy: the filters are read back from the kernel and
//! run, the files are counted where the process sees them (`/proc/PID/root`).

use crate::footprint::members;
use crate::recover::Liveness;
use crate::{Engine, EngineError, Result};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// No more files are counted.
pub const MOST_FILES: u64 = 100_000;
/// Filesystems that are the sandbox's own.
const OWN: [&str; 5] = ["overlay", "tmpfs", "devpts", "mqueue", "ramfs"];

/// What is within reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// System calls of this host's kernel; none where the kernel does not tell.
    pub calls: Option<u64>,
    /// Files of this host; at most [`MOST_FILES`].
    pub files: u64,
}

impl Engine {
    /// For the workload itself, and for who has broken out of it into its hypervisor, if it has one.
    pub fn reach(&self, name: &str) -> Result<(Reach, Option<Reach>)> {
        let container = self.find(name)?;
        let Liveness::Supervised(state) = self.liveness(&container)? else {
            return Err(EngineError::NotRunning(container.id.to_string()));
        };
        if !container.is_vm() {
            return Ok((Reach { calls: calls(state.pid), files: visible(state.pid) }, None));
        }
        let members = members(container.id.as_str(), state.supervisor);
        let hypervisor = members.into_iter().find(|pid| is_hypervisor(*pid));
        let behind = hypervisor.map(|pid| Reach { calls: calls(pid), files: all(pid) });
        Ok((Reach { calls: Some(0), files: 0 }, behind))
    }
}

/// QEMU, or a process with threads that are virtual CPUs.
fn is_hypervisor(pid: i32) -> bool {
    let names =
        |thread: i32| fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm")).unwrap_or_default();
    threads(pid).into_iter().map(names).any(|name| name.starts_with("qemu-") || name.starts_with("vcpu"))
}

fn threads(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The calls that at least one thread of a process can make.
fn calls(pid: i32) -> Option<u64> {
    let mut all = BTreeSet::new();
    for thread in threads(pid) {
        all.extend(process::seccomp::reachable(&sys::inspect::seccomp_filters(thread).ok()?));
    }
    (!all.is_empty()).then_some(all.len() as u64)
}

/// Files of this host's kernel and disks among what a container's process sees: all that lies on no filesystem of its own.
fn visible(pid: i32) -> u64 {
    let root = format!("/proc/{pid}/root");
    let mut count = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default().lines() {
        // `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`, proc_pid_mountinfo(5)
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let (Some(at), Some(kind)) = (head.split(' ').nth(4), tail.split(' ').next()) else { continue };
        // A device's node that stands over a masked file shows nothing.
        if !OWN.contains(&kind) && kind != "devtmpfs" {
            count_files(Path::new(&format!("{root}{at}")), kind == "proc", &mut count);
        }
    }
    count
}

/// All files that a process sees.
fn all(pid: i32) -> u64 {
    let mut count = 0;
    count_files(Path::new(&format!("/proc/{pid}/root/")), false, &mut count);
    count
}

/// Counts what is no directory, on one filesystem. The directories of processes are the sandbox's own.
fn count_files(top: &Path, is_proc: bool, count: &mut u64) {
    let Ok(begin) = fs::metadata(top) else { return };
    if !begin.is_dir() {
        *count += 1;
        return;
    }
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if *count >= MOST_FILES {
                return;
            }
            let name = entry.file_name();
            let is_process = || name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
            match entry.metadata() {
                Ok(meta) if meta.dev() != begin.dev() || is_proc && dir == top && is_process() => {}
                Ok(meta) if meta.is_dir() => waiting.push(entry.path()),
                Ok(_) => *count += 1,
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_and_processes_are_not() {
        let dir = tempfile::TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for name in ["x", "a/y", "a/b/z"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("42")).unwrap();
        fs::write(dir.path().join("42/status"), "").unwrap();
        let counted = |is_proc| {
            let mut count = 0;
            count_files(dir.path(), is_proc, &mut count);
            count
        };
        assert_eq!((counted(false), counted(true)), (4, 3));
        assert!(!is_hypervisor(std::process::id() as i32));
    }
}
