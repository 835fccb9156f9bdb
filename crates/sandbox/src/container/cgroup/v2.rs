//! Cgroup v2: one directory in the unified hierarchy (kernel: admin-guide/cgroup-v2.rst).

mod limits;

use super::files::{self, gone, is};
use super::hierarchy::{Hierarchies, Hierarchy};
use super::{PATIENCE, explain};
use crate::hull::{HullError, Stats};
use rustix::fs::{AtFlags, Mode, inotify, mkdirat, unlinkat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use types::oci::LinuxResources;

/// Controllers that containers use, where the host has them.
const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"];

/// The group of a container.
#[derive(Debug)]
pub(super) struct Group {
    pub dir: OwnedFd,
    hierarchy: &'static Hierarchy,
}

fn hierarchy(host: &'static Hierarchies) -> Result<&'static Hierarchy, HullError> {
    host.v2.as_ref().ok_or_else(|| HullError::Unsupported("no cgroup v2 hierarchy is mounted".into()))
}

impl Group {
    pub fn create(
        host: &'static Hierarchies,
        path: &str,
        resources: &LinuxResources,
    ) -> Result<Self, HullError> {
        let hierarchy = hierarchy(host)?;
        let dir = make(hierarchy, path)?;
        let group = Self { dir, hierarchy };
        group.apply(resources).inspect_err(|_| {
            // Nothing runs in a group that was just made.
            let _ = unlinkat(&hierarchy.root, path, AtFlags::REMOVEDIR);
        })?;
        Ok(group)
    }

    pub fn open(host: &'static Hierarchies, path: &str) -> Result<Self, HullError> {
        let hierarchy = hierarchy(host)?;
        let dir = files::open_dir(&hierarchy.root, path).map_err(|source| HullError::Step {
            step: format!("open cgroup {}/{path}", hierarchy.mount_point),
            source,
        })?;
        Ok(Self { dir, hierarchy })
    }

    pub fn apply(&self, resources: &LinuxResources) -> Result<(), HullError> {
        limits::Limits { group: self }.apply(resources)
    }

    pub fn add(&self, pid: i32) -> Result<(), HullError> {
        files::write(&self.dir, "cgroup.procs", &pid.to_string())
            .map_err(|e| explain::joining(&format!("process {pid}"), &self.hierarchy.mount_point, e))
    }

    pub fn join(&self) -> Result<(), HullError> {
        // A process cloned into the group is there already, and a move costs a grace period.
        let me = rustix::process::getpid().as_raw_nonzero().get().to_string();
        let here =
            files::read(&self.dir, "cgroup.procs").is_ok_and(|listed| listed.lines().any(|line| line == me));
        if here {
            return Ok(());
        }
        files::write(&self.dir, "cgroup.procs", "0")
            .map_err(|e| explain::joining("a new process", &self.hierarchy.mount_point, e))
    }

    pub fn freeze(&self, freeze: bool) -> Result<(), HullError> {
        let (step, value, reached) =
            if freeze { ("freeze the cgroup", "1", 1) } else { ("thaw the cgroup", "0", 0) };
        let failed = |source| HullError::Step { step: step.into(), source };
        files::write(&self.dir, "cgroup.freeze", value).map_err(failed)?;
        let started = Instant::now();
        let mut pause = Duration::from_micros(20);
        loop {
            let events = files::read(&self.dir, "cgroup.events").map_err(failed)?;
            if files::flat_value(&events, "frozen") == Some(reached) || freeze && self.stands_still() {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                if freeze {
                    let _ = files::write(&self.dir, "cgroup.freeze", "0");
                }
                return Err(failed(Errno::TIMEDOUT.into()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Whether nothing moves but a thread of the kernel's, which is never frozen, so that the kernel never calls its group
    /// so: before Linux 6.13 KVM puts one into the cgroup of whoever makes a virtual machine.
    fn stands_still(&self) -> bool {
        let tids = files::read(&self.dir, "cgroup.threads").unwrap_or_default();
        let threads: Vec<_> = tids.lines().filter_map(|tid| tid.parse().ok().and_then(thread)).collect();
        threads.iter().any(|t| t.kernel) && threads.iter().all(|t| t.kernel || !t.moves)
    }

    pub fn kill(&self) -> Result<(), HullError> {
        match files::write(&self.dir, "cgroup.kill", "1") {
            Ok(()) => return Ok(()),
            Err(e) if is(&e, Errno::NODEV) => return Ok(()),
            // Kernels before 5.14; or the group is gone.
            Err(_) => {}
        }
        files::kill_all(
            self.dir.as_fd(),
            || drop(files::write(&self.dir, "cgroup.freeze", "1")),
            || drop(files::write(&self.dir, "cgroup.freeze", "0")),
        )
        .map_err(|source| HullError::Step { step: "kill the processes of the cgroup".into(), source })
    }

    pub fn stats(&self, stats: &mut Stats) {
        let dir = self.dir.as_fd();
        if let Ok(text) = files::read(dir, "cpu.stat") {
            let micros = |key| files::flat_value(&text, key).unwrap_or(0).saturating_mul(1000);
            stats.cpu_total_ns = micros("usage_usec");
            stats.cpu_user_ns = micros("user_usec");
            stats.cpu_system_ns = micros("system_usec");
            let count = |key| files::flat_value(&text, key).unwrap_or(0);
            stats.throttling = [count("nr_periods"), count("nr_throttled"), micros("throttled_usec")];
        }
        let number = |name| files::read_u64(dir, name).ok();
        stats.memory_usage = number("memory.current").unwrap_or(0);
        stats.memory_max_usage = number("memory.peak").unwrap_or(0);
        stats.memory_limit = number("memory.max").unwrap_or(u64::MAX);
        stats.memory_stat =
            files::read(dir, "memory.stat").map(|t| files::parse_flat(&t)).unwrap_or_default();
        stats.pids = number("pids.current").unwrap_or(0);
        stats.pids_limit = number("pids.max").filter(|n| *n != u64::MAX).unwrap_or(0);
        stats.blkio_bytes = files::read(dir, "io.stat").map(|t| files::parse_io_stat(&t)).unwrap_or_default();
    }

    pub fn oom_kills(&self) -> u64 {
        files::read(&self.dir, "memory.events")
            .ok()
            .and_then(|text| files::flat_value(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// An inotify descriptor on `memory.events`, which the kernel marks modified at each event.
    pub fn oom_notifier(&self) -> Option<OwnedFd> {
        if !files::exists(&self.dir, "memory.events") {
            return None;
        }
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        let path = format!("/proc/self/fd/{}/memory.events", self.dir.as_raw_fd());
        inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY).ok()?;
        Some(watch)
    }
}

/// Makes the group, with every controller that the host can give.
fn make(hierarchy: &Hierarchy, path: &str) -> Result<OwnedFd, HullError> {
    let step = |doing: &str, place: &str| {
        let step = format!("{doing} {}/{place}", hierarchy.mount_point);
        move |source: io::Error| {
            let hint = if is(&source, Errno::ROFS) { " (is it mounted read-only?)" } else { "" };
            HullError::Step { step: format!("{step}{hint}"), source }
        }
    };
    let root = &hierarchy.root;
    let mode = Mode::from_raw_mode(0o755);
    let available =
        files::read(root, "cgroup.controllers").map_err(step("read cgroup.controllers of", ""))?;
    let wanted: Vec<&str> = available.split_whitespace().filter(|c| CONTROLLERS.contains(c)).collect();
    enable(root, &wanted, true).map_err(step("enable controllers in cgroup", ""))?;
    for (at, _) in path.match_indices('/') {
        let place = path.get(..at).unwrap_or(path);
        match mkdirat(root, place, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(step("make cgroup", place)(e.into())),
        }
        let parent = files::open_dir(root, place).map_err(step("open cgroup", place))?;
        enable(&parent, &wanted, false).map_err(|source| {
            if is(&source, Errno::BUSY) {
                return HullError::Invalid(format!(
                    "the cgroup {}/{place} cannot be a parent: processes run in it itself, which cgroup v2 forbids; choose another parent",
                    hierarchy.mount_point
                ));
            }
            step("enable controllers in cgroup", place)(source)
        })?;
    }
    match mkdirat(root, path, mode) {
        Ok(()) => {}
        // Left over and empty, it is replaced.
        Err(Errno::EXIST) => {
            files::remove_tree(root, path).map_err(|source| {
                if is(&source, Errno::BUSY) {
                    return HullError::Invalid(format!(
                        "cgroup {}/{path} exists already and is in use; choose another parent or remove it",
                        hierarchy.mount_point
                    ));
                }
                step("remove the old cgroup", path)(source)
            })?;
            mkdirat(root, path, mode).map_err(|e| step("make cgroup", path)(e.into()))?;
        }
        Err(e) => return Err(step("make cgroup", path)(e.into())),
    }
    files::open_dir(root, path).map_err(step("open cgroup", path))
}

/// Enables the controllers for the children of a group. Those that it refuses one by one (the CPU controller with
/// real-time processes about) are left out: a limit that needs one says so later.
fn enable(dir: &OwnedFd, wanted: &[&str], may_evacuate: bool) -> io::Result<()> {
    let enabled = files::read(dir, "cgroup.subtree_control")?;
    let missing: Vec<&str> =
        wanted.iter().filter(|c| !enabled.split_whitespace().any(|e| e == **c)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let all = missing.iter().map(|c| format!("+{c}")).collect::<Vec<_>>().join(" ");
    match files::write(dir, "cgroup.subtree_control", &all) {
        Ok(()) => return Ok(()),
        Err(e) if is(&e, Errno::BUSY) && may_evacuate => {
            evacuate(dir)?;
            return files::write(dir, "cgroup.subtree_control", &all);
        }
        Err(e) if is(&e, Errno::BUSY) || is(&e, Errno::ROFS) || is(&e, Errno::ACCESS) => return Err(e),
        Err(_) => {}
    }
    for controller in missing {
        match files::write(dir, "cgroup.subtree_control", &format!("+{controller}")) {
            Err(e) if is(&e, Errno::BUSY) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Moves the processes of a root that is not the host's own (we run in a container ourselves) into a leaf, as
/// cgroup v2 lets no group have both processes and controllers for its children.
fn evacuate(root: &OwnedFd) -> io::Result<()> {
    const LEAF: &str = "init";
    match mkdirat(root, LEAF, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let leaf = files::open_dir(root, LEAF)?;
    // Processes fork meanwhile: again until none is left.
    for _ in 0..16 {
        let listed = files::read(root, "cgroup.procs")?;
        if listed.trim().is_empty() {
            break;
        }
        for pid in listed.lines() {
            match files::write(&leaf, "cgroup.procs", pid) {
                Err(e) if !is(&e, Errno::SRCH) && !is(&e, Errno::INVAL) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether groups have a limit of swap. The root has none, so any other group is looked at.
pub(super) fn swap_accounting(host: &'static Hierarchies) -> bool {
    let Some(v2) = &host.v2 else { return false };
    let mut any = false;
    for name in files::children(&v2.root).unwrap_or_default() {
        if files::exists(&v2.root, &format!("{name}/memory.current")) {
            if files::exists(&v2.root, &format!("{name}/memory.swap.max")) {
                return true;
            }
            any = true;
        }
    }
    !any && std::path::Path::new("/proc/swaps").exists()
}

/// Removes the group; `EBUSY` where something still runs.
pub(super) fn remove(host: &'static Hierarchies, path: &str) -> io::Result<()> {
    match &host.v2 {
        Some(v2) => match files::remove_tree(&v2.root, path) {
            Err(e) if gone(&e) => Ok(()),
            done => done,
        },
        None => Ok(()),
    }
}

/// What `/proc/TID/stat` says of a thread (proc_pid_stat(5)).
struct Thread {
    /// It is one of the kernel's.
    kernel: bool,
    /// It runs, or will run without being woken.
    moves: bool,
}

/// None if it has ended.
fn thread(tid: i32) -> Option<Thread> {
    const PF_KTHREAD: u64 = 0x20_0000;
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    Some(Thread { kernel: flags & PF_KTHREAD != 0, moves: matches!(*fields.first()?, "R" | "D") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_threads_are_told_from_others() {
        assert!(thread(std::process::id() as i32).is_some_and(|t| !t.kernel));
        // kthreadd, unless this is a PID namespace.
        if std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
            assert!(thread(2).is_some_and(|t| t.kernel));
        }
    }
}
