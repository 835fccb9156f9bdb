//! Control groups: where the processes of a container are counted, limited, frozen and found.
//!
//! [`Cgroup`] is one group, named by a path that is the same in each hierarchy (`/dhow/<id>`), taken beneath the
//! host's own cgroup mounts. Both versions stand behind it: v1, where each controller is a hierarchy of its own, also
//! when a unified hierarchy without controllers stands beside (hybrid); and v2. The systemd driver is not here: a
//! systemd slice is only a path.
//!
//! ```text
//! create ──► limits written ──join / add──► processes in it ──freeze/thaw/update/stats──► kill ──► destroy
//! ```
//!
//! Sources: cgroups(7), the kernel's admin-guide/cgroup-v1 and cgroup-v2.rst, and for the conversion of v1's values
//! the OCI runtime specification's config-linux.md.

mod convert;
mod devices;
mod explain;
mod files;
mod hierarchy;
mod info;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use crate::hull::{HullError, Stats};
use hierarchy::Hierarchies;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use types::oci::LinuxResources;

pub use info::{Info, Version, host_memory, info};

/// How long [`Cgroup::destroy`] and [`Cgroup::freeze`] wait for the kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// One control group.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    inner: Inner,
    notifier: OnceLock<Option<OwnedFd>>,
}

#[derive(Debug)]
enum Inner {
    V1(v1::Group),
    V2(v2::Group),
}

impl Cgroup {
    /// Makes the group and writes its limits. On failure nothing of it remains. What the host cannot limit for lack
    /// of a kernel option is left out ([`Cgroup::unsupported`] tells it); for lack of a controller it is an error.
    pub fn create(path: &str, resources: &LinuxResources) -> Result<Self, HullError> {
        let host = Hierarchies::get()?;
        let path = relative(path)?;
        let inner = if host.unified() {
            Inner::V2(v2::Group::create(host, path, resources)?)
        } else {
            Inner::V1(v1::Group::create(host, path, resources)?)
        };
        Ok(Self { path: path.to_owned(), inner, notifier: OnceLock::new() })
    }

    /// Opens a group that exists.
    pub fn open(path: &str) -> Result<Self, HullError> {
        let host = Hierarchies::get()?;
        let path = relative(path)?;
        let inner = if host.unified() {
            Inner::V2(v2::Group::open(host, path)?)
        } else {
            Inner::V1(v1::Group::open(host, path)?)
        };
        Ok(Self { path: path.to_owned(), inner, notifier: OnceLock::new() })
    }

    /// Puts a process, with all its threads, into the group. On v1 each hierarchy costs a grace period of the
    /// kernel, so a new child should [`join`](Self::join) by itself instead.
    pub fn add(&self, pid: i32) -> Result<(), HullError> {
        match &self.inner {
            Inner::V1(group) => group.add(pid),
            Inner::V2(group) => group.add(pid),
        }
    }

    /// Puts the calling thread into the group: for a single-threaded child that was not cloned into it
    /// ([`fd`](Self::fd)). Needs only the descriptors held here, so it works in any mount namespace; call it before
    /// `unshare(CLONE_NEWCGROUP)` (the root of the new cgroup namespace is the group of that moment), before privileges
    /// are dropped, and before `/sys/fs/cgroup` is needed. Does nothing where the process is there already.
    pub fn join(&self) -> Result<(), HullError> {
        match &self.inner {
            Inner::V1(group) => group.join(),
            Inner::V2(group) => group.join(),
        }
    }

    /// The directory for `CLONE_INTO_CGROUP`; none on v1, where the child has to [`join`](Self::join).
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.inner {
            Inner::V1(_) => None,
            Inner::V2(group) => Some(group.dir.as_fd()),
        }
    }

    /// What this process must not close to reach groups.
    #[cfg(feature = "vm")]
    pub fn roots() -> Result<Vec<BorrowedFd<'static>>, HullError> {
        let host = Hierarchies::get()?;
        Ok(host.v1.iter().chain(&host.v2).map(|hierarchy| hierarchy.root.as_fd()).collect())
    }

    /// Changes limits at once; absent ones stay as they are.
    pub fn update(&mut self, resources: &LinuxResources) -> Result<(), HullError> {
        match &mut self.inner {
            Inner::V1(group) => group.update(Hierarchies::get()?, &self.path, resources),
            Inner::V2(group) => group.apply(resources),
        }
    }

    /// Stops every process of the group, and returns when they are stopped.
    pub fn freeze(&self) -> Result<(), HullError> {
        match &self.inner {
            Inner::V1(group) => group.freeze(),
            Inner::V2(group) => group.freeze(true),
        }
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<(), HullError> {
        match &self.inner {
            Inner::V1(group) => group.thaw(),
            Inner::V2(group) => group.freeze(false),
        }
    }

    /// Sends SIGKILL to every process of the group and of those below, also to frozen ones and to those that are
    /// being forked. Does not wait until they are gone.
    pub fn kill(&self) -> Result<(), HullError> {
        match &self.inner {
            Inner::V1(group) => group.kill(),
            Inner::V2(group) => group.kill(),
        }
    }

    /// Pids of all processes of the group and of those below, ascending.
    pub fn processes(&self) -> Result<Vec<i32>, HullError> {
        let dir = match &self.inner {
            Inner::V1(group) => group.any_dir(),
            Inner::V2(group) => Some(group.dir.as_fd()),
        };
        match dir.map(files::processes) {
            Some(Ok(pids)) => Ok(pids),
            Some(Err(e)) if !files::gone(&e) => Err(HullError::Step {
                step: format!("list the processes of cgroup {}", self.path),
                source: e,
            }),
            _ => Ok(Vec::new()),
        }
    }

    /// Figures as of now, but for the network's.
    pub fn stats(&self) -> Result<Stats, HullError> {
        let mut stats = Stats { read_ns: sys::host::now_ns(), ..Stats::default() };
        (stats.host_cpu_ns, stats.online_cpus) = info::host_cpu();
        match &self.inner {
            Inner::V1(group) => group.stats(&mut stats),
            Inner::V2(group) => group.stats(&mut stats),
        }
        stats.memory_limit = stats.memory_limit.min(host_memory());
        Ok(stats)
    }

    /// How many processes the OOM killer has ended here; 0 where the host does not count them.
    pub fn oom_kills(&self) -> u64 {
        match &self.inner {
            Inner::V1(group) => group.oom_kills(),
            Inner::V2(group) => group.oom_kills(),
        }
    }

    /// A descriptor that becomes readable when memory runs out in the group (and, on v1, when it is removed); none
    /// where the host cannot tell. It does not block; drain it with reads of 4 KiB, then look at
    /// [`oom_kills`](Self::oom_kills): not each wake-up is a kill.
    pub fn oom_notifier(&self) -> Option<BorrowedFd<'_>> {
        let make = || match &self.inner {
            Inner::V1(group) => group.oom_notifier(),
            Inner::V2(group) => group.oom_notifier(),
        };
        self.notifier.get_or_init(make).as_ref().map(AsFd::as_fd)
    }

    /// Kills what is left in the group and removes it with those below. Right in every state; may be repeated.
    pub fn destroy(&self) -> Result<(), HullError> {
        let host = Hierarchies::get()?;
        let started = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            let busy = match &self.inner {
                Inner::V1(_) => v1::remove(host, &self.path),
                Inner::V2(_) => v2::remove(host, &self.path),
            };
            match busy {
                Ok(()) => return Ok(()),
                Err(e) if !files::is(&e, rustix::io::Errno::BUSY) || started.elapsed() > PATIENCE => {
                    let step = format!("remove cgroup {}", self.path);
                    return Err(HullError::Step { step, source: e });
                }
                Err(_) => {}
            }
            // Either something runs here, or the last process is half way out: the kernel empties the group only
            // after the parent could see the exit.
            self.kill()?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    /// Kills and removes whatever exists under the path. Nothing there is no error.
    pub fn clean(path: &str) -> Result<(), HullError> {
        let host = Hierarchies::get()?;
        let relative = relative(path)?;
        // The common case: nothing is there, or empty groups.
        let removed = if host.unified() { v2::remove(host, relative) } else { v1::remove(host, relative) };
        if removed.is_ok() {
            return Ok(());
        }
        Self::open(path)?.destroy()
    }

    /// Sentences for the user about what `resources` asks and this kernel lacks, and [`create`](Self::create) and
    /// [`update`](Self::update) therefore leave out.
    pub fn unsupported(resources: &LinuxResources) -> Vec<String> {
        Hierarchies::get().map(|host| info::unsupported(host, resources)).unwrap_or_default()
    }
}

/// The path without its leading slash; it may not be empty nor lead elsewhere.
fn relative(path: &str) -> Result<&str, HullError> {
    let relative = path.trim_matches('/');
    let sound = !relative.is_empty()
        && relative.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\n', '\0']));
    if sound {
        Ok(relative)
    } else {
        Err(HullError::Invalid(format!(
            "cgroup path {path:?} is not usable: name a group below the root, without `.`, `..` or empty parts"
        )))
    }
}
