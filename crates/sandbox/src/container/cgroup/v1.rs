//! Cgroup v1: one directory per hierarchy, each with its controllers (kernel: admin-guide/cgroup-v1).

mod limits;

use super::files::{self, gone, is};
use super::hierarchy::{Hierarchies, Hierarchy};
use super::{PATIENCE, explain};
use crate::container::step::Step;
use crate::host_only::{OnHost, on_host};
use crate::hull::{HullError, Stats};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, unlinkat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use types::oci::LinuxResources;

/// The group of one container in all hierarchies.
#[derive(Debug)]
pub(super) struct Group {
    members: Vec<Member>,
    /// A guest has version 2.
    _on_host: OnHost,
}

/// As the errors of cgroups are told.
fn proof() -> Result<OnHost, HullError> {
    on_host().step(|| "use version 1 of the cgroups".into())
}

#[derive(Debug)]
struct Member {
    hierarchy: &'static Hierarchy,
    dir: OwnedFd,
}

/// The hierarchies that a container gets a group in. Named ones only serve others, but for systemd's, which kills
/// what stays in the group of a unit that ends.
fn wanted(host: &'static Hierarchies) -> impl Iterator<Item = &'static Hierarchy> {
    let joins = |h: &&Hierarchy| {
        h.controllers.iter().any(|c| !c.starts_with("name=")) || (host.systemd && h.has("name=systemd"))
    };
    host.v1.iter().filter(joins).chain(host.v2.iter().filter(|_| host.systemd))
}

impl Group {
    pub fn create(
        host: &'static Hierarchies,
        path: &str,
        resources: &LinuxResources,
    ) -> Result<Self, HullError> {
        let mut group = Self { members: Vec::new(), _on_host: proof()? };
        let made = group.make(host, path).and_then(|()| group.apply(host, resources));
        match made {
            Ok(()) => Ok(group),
            Err(e) => {
                for member in &group.members {
                    // Nothing runs in a group that was just made.
                    let _ = unlinkat(&member.hierarchy.root, path, AtFlags::REMOVEDIR);
                }
                Err(e)
            }
        }
    }

    fn make(&mut self, host: &'static Hierarchies, path: &str) -> Result<(), HullError> {
        for hierarchy in wanted(host) {
            let dir = make_dir(&hierarchy.root, path).map_err(|source| {
                if is(&source, Errno::BUSY) {
                    return HullError::Invalid(format!(
                        "cgroup {}/{path} exists already and is in use; choose another parent or remove it",
                        hierarchy.mount_point
                    ));
                }
                let hint = if is(&source, Errno::ROFS) { " (is it mounted read-only?)" } else { "" };
                HullError::Step {
                    step: format!("make cgroup {}/{path}{hint}", hierarchy.mount_point),
                    source,
                }
            })?;
            let member = Member { hierarchy, dir };
            if hierarchy.has("cpuset") {
                // Without CPUs and memory nodes nothing may join.
                let inherited = inherit_cpuset(hierarchy, path, &member.dir);
                self.members.push(member);
                inherited.map_err(|source| HullError::Step {
                    step: format!("give cgroup {}/{path} the CPUs of its parent", hierarchy.mount_point),
                    source,
                })?;
            } else {
                self.members.push(member);
            }
        }
        Ok(())
    }

    pub fn open(host: &'static Hierarchies, path: &str) -> Result<Self, HullError> {
        let mut members = Vec::new();
        for hierarchy in wanted(host) {
            match files::open_dir(&hierarchy.root, path) {
                Ok(dir) => members.push(Member { hierarchy, dir }),
                Err(e) if gone(&e) => {}
                Err(source) => {
                    let step = format!("open cgroup {}/{path}", hierarchy.mount_point);
                    return Err(HullError::Step { step, source });
                }
            }
        }
        if members.is_empty() {
            return Err(HullError::Step { step: format!("open cgroup {path}"), source: Errno::NOENT.into() });
        }
        Ok(Self { members, _on_host: proof()? })
    }

    pub fn add(&self, pid: i32) -> Result<(), HullError> {
        self.each(|member| files::write(&member.dir, "cgroup.procs", &pid.to_string()))
            .map_err(|(place, e)| explain::joining(&format!("process {pid}"), &place, e))
    }

    pub fn join(&self) -> Result<(), HullError> {
        // `0` written to `tasks` moves the calling thread, and is the one way that does not wait for a grace period
        // of the kernel's cgroup_threadgroup_rwsem.
        let file = |m: &Member| if m.hierarchy.controllers.is_empty() { "cgroup.procs" } else { "tasks" };
        self.each(|member| files::write(&member.dir, file(member), "0"))
            .map_err(|(place, e)| explain::joining("a new process", &place, e))
    }

    fn each(&self, act: impl Fn(&Member) -> io::Result<()>) -> Result<(), (String, io::Error)> {
        for member in &self.members {
            act(member).map_err(|e| (member.hierarchy.mount_point.clone(), e))?;
        }
        Ok(())
    }

    pub fn update(
        &mut self,
        host: &'static Hierarchies,
        path: &str,
        resources: &LinuxResources,
    ) -> Result<(), HullError> {
        if self.members.is_empty() {
            *self = Self::open(host, path)?;
        }
        self.apply(host, resources)
    }

    fn apply(&self, host: &Hierarchies, resources: &LinuxResources) -> Result<(), HullError> {
        limits::Limits { group: self, host }.apply(resources)
    }

    /// The group's directory in the hierarchy of a controller.
    fn dir(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        self.members.iter().find(|m| m.hierarchy.has(controller)).map(|m| m.dir.as_fd())
    }

    /// The directory that tells all processes: of a controller that a workload has the least reason to nest in.
    pub fn any_dir(&self) -> Option<BorrowedFd<'_>> {
        self.dir("freezer")
            .or_else(|| self.dir("pids"))
            .or_else(|| self.members.first().map(|m| m.dir.as_fd()))
    }

    fn freezer(&self) -> Result<BorrowedFd<'_>, HullError> {
        self.dir("freezer").ok_or_else(|| {
            HullError::Unsupported(
                "pausing needs the freezer cgroup controller, which this host does not have".into(),
            )
        })
    }

    pub fn freeze(&self) -> Result<(), HullError> {
        let dir = self.freezer()?;
        let step = |source| HullError::Step { step: "freeze the cgroup".into(), source };
        let started = Instant::now();
        let mut pause = Duration::from_micros(20);
        loop {
            // Written again each time: a process that forks while it is frozen can leave the state at FREEZING.
            files::write(dir, "freezer.state", "FROZEN").map_err(step)?;
            if files::read(dir, "freezer.state").map_err(step)?.trim() == "FROZEN" {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                let _ = files::write(dir, "freezer.state", "THAWED");
                return Err(step(Errno::TIMEDOUT.into()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    pub fn thaw(&self) -> Result<(), HullError> {
        files::write(self.freezer()?, "freezer.state", "THAWED")
            .map_err(|source| HullError::Step { step: "thaw the cgroup".into(), source })
    }

    pub fn kill(&self) -> Result<(), HullError> {
        let Some(dir) = self.any_dir() else { return Ok(()) };
        let freezer = self.dir("freezer");
        files::kill_all(
            dir,
            || drop(freezer.map(|f| files::write(f, "freezer.state", "FROZEN"))),
            || freezer.map(thaw_tree).unwrap_or_default(),
        )
        .map_err(|source| HullError::Step { step: "kill the processes of the cgroup".into(), source })
    }

    pub fn stats(&self, stats: &mut Stats) {
        if let Some(dir) = self.dir("cpuacct") {
            stats.cpu_total_ns = files::read_u64(dir, "cpuacct.usage").unwrap_or(0);
            stats.cpu_user_ns = files::read_u64(dir, "cpuacct.usage_user").unwrap_or(0);
            stats.cpu_system_ns = files::read_u64(dir, "cpuacct.usage_sys").unwrap_or(0);
        }
        if let Some(text) = self.dir("cpu").and_then(|dir| files::read(dir, "cpu.stat").ok()) {
            stats.throttling = ["nr_periods", "nr_throttled", "throttled_time"]
                .map(|k| files::flat_value(&text, k).unwrap_or(0));
        }
        if let Some(dir) = self.dir("memory") {
            let number = |name| files::read_u64(dir, name).unwrap_or(0);
            stats.memory_usage = number("memory.usage_in_bytes");
            stats.memory_max_usage = number("memory.max_usage_in_bytes");
            stats.memory_limit = number("memory.limit_in_bytes");
            stats.memory_stat =
                files::read(dir, "memory.stat").map(|t| files::parse_flat(&t)).unwrap_or_default();
        }
        if let Some(dir) = self.dir("pids") {
            stats.pids = files::read_u64(dir, "pids.current").unwrap_or(0);
            stats.pids_limit = files::read_u64(dir, "pids.max").ok().filter(|n| *n != u64::MAX).unwrap_or(0);
        }
        if let Some(dir) = self.dir("blkio") {
            stats.blkio_bytes = [
                "blkio.throttle.io_service_bytes_recursive",
                "blkio.throttle.io_service_bytes",
                "blkio.bfq.io_service_bytes_recursive",
            ]
            .into_iter()
            .filter_map(|name| files::read(dir, name).ok())
            .map(|text| files::parse_blkio(&text))
            .find(|rows| !rows.is_empty())
            .unwrap_or_default();
        }
    }

    pub fn oom_kills(&self) -> u64 {
        self.dir("memory")
            .and_then(|dir| files::read(dir, "memory.oom_control").ok())
            .and_then(|text| files::flat_value(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// An eventfd that the memory controller counts up (cgroup-v1/memory.rst, "OOM Control").
    pub fn oom_notifier(&self) -> Option<OwnedFd> {
        use rustix::event::{EventfdFlags, eventfd};
        let dir = self.dir("memory")?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let control =
            rustix::fs::openat(dir, "memory.oom_control", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .ok()?;
        let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        files::write(dir, "cgroup.event_control", &line).ok()?;
        Some(event)
    }
}

/// Thaws a group and those below, which a workload may have frozen by itself.
fn thaw_tree(dir: BorrowedFd<'_>) {
    let _ = files::write(dir, "freezer.state", "THAWED");
    for name in files::children(dir).unwrap_or_default() {
        if let Ok(child) = files::open_dir(dir, &name) {
            thaw_tree(child.as_fd());
        }
    }
}

/// Makes the group and its missing parents. A left-over empty group is replaced, one in use is `EBUSY`.
fn make_dir(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o755);
    match mkdirat(root, path, mode) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            files::remove_tree(root, path)?;
            mkdirat(root, path, mode)?;
        }
        Err(Errno::NOENT) => {
            for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
                match mkdirat(root, path.get(..at).unwrap_or(path), mode) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Err(e) => return Err(e.into()),
    }
    files::open_dir(root, path)
}

/// Copies `cpuset.cpus` and `cpuset.mems` down from the nearest ancestor that has them.
fn inherit_cpuset(hierarchy: &Hierarchy, path: &str, dir: &OwnedFd) -> io::Result<()> {
    let parent = match path.rsplit_once('/') {
        Some((parent, _)) => &files::open_dir(&hierarchy.root, parent)?,
        None => &hierarchy.root,
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut value = files::read(parent, file)?;
        if value.trim().is_empty()
            && let Some((above, _)) = path.rsplit_once('/')
        {
            inherit_cpuset(hierarchy, above, parent)?;
            value = files::read(parent, file)?;
        }
        files::write(dir, file, value.trim())?;
    }
    Ok(())
}

/// Removes the group from every hierarchy; `EBUSY` where something still runs.
pub(super) fn remove(host: &'static Hierarchies, path: &str) -> io::Result<()> {
    let mut result = Ok(());
    for hierarchy in wanted(host) {
        if let Err(e) = files::remove_tree(&hierarchy.root, path) {
            result = Err(e);
        }
    }
    result
}
