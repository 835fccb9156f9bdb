//! What a running sandbox takes from this host: the memory of all its processes, and its own directory.
//!
//! Memory is the proportional set size (`Pss` of `/proc/PID/smaps_rollup`, proc_pid_smaps(5)): what processes share is
//! divided among them. The kernel's own memory (page tables, sockets, namespaces) is not in it.

use crate::recover::Liveness;
use crate::{Engine, EngineError, Result};

/// Bytes that one sandbox takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Of its supervisor.
    pub supervisor: u64,
    /// Of the processes in its cgroup: the workload's own, or those that carry the microVM with all that is in it.
    pub processes: u64,
    /// Of the workload alone: its processes, or what the guest's cgroup counts, where the guest told.
    pub workload: Option<u64>,
    /// On the disk, without the image's layers.
    pub disk: u64,
}

impl Engine {
    /// Measures a running sandbox.
    pub fn footprint(&self, name: &str) -> Result<Footprint> {
        let container = self.find(name)?;
        let Liveness::Supervised(state) = self.liveness(&container)? else {
            return Err(EngineError::NotRunning(container.id.to_string()));
        };
        let supervisor = pss(state.supervisor).unwrap_or(0);
        let members = members(container.id.as_str(), state.supervisor);
        let sizes: Vec<u64> = members.iter().filter_map(|pid| pss(*pid)).collect();
        if sizes.is_empty() || supervisor == 0 {
            return Err(EngineError::NotRunning(container.id.to_string()));
        }
        let processes = sizes.iter().sum();
        let workload = match container.is_vm() {
            true => self.stats(name)?.memory_stats.and_then(|m| m.usage).filter(|u| *u > 0 && *u < processes),
            false => Some(processes),
        };
        let disk = rootfs::usage(&self.paths.sandbox(&container.id))?;
        Ok(Footprint { supervisor, processes, workload, disk })
    }
}

/// Pids of the processes in the cgroup that bears this id (`/proc/PID/cgroup`, cgroups(7)).
pub(crate) fn members(id: &str, supervisor: i32) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != supervisor)
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|t| t.contains(id)))
        .collect()
}

fn pss(pid: i32) -> Option<u64> {
    parse_pss(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read() {
        let text =
            "00400000-7ffe ---p 00000000 00:00 0  [rollup]\nRss:  2000 kB\nPss:  12 kB\nPss_Dirty: 4 kB\n";
        assert_eq!(parse_pss(text), Some(12 << 10));
        assert_eq!(parse_pss("Rss: 1 kB\n"), None);
        assert!(pss(std::process::id() as i32).is_some_and(|b| b > 0));
    }
}
