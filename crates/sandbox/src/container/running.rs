//! A created or running container, seen from the host.

use super::cgroup::Cgroup;
use super::step::Step;
use super::wire::{Heard, Wire, Word};
use super::{exec, hooks};
use crate::hull::{
    AdoptRequest, ExecChild, ExecRequest, ExitStatus, HullError, Pending, Sandbox, Stats, Wiring,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::clone::Child;
use types::{Attachment, oci};

const SIGKILL: i32 = 9;

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    spec: oci::Spec,
    pid: i32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    cgroup_path: String,
    /// Until it has started.
    wire: Option<Wire>,
    /// Not our child: it outlived the supervisor that made it.
    adopted: bool,
    /// We killed it: what its status is if nobody can tell it.
    killed: Cell<bool>,
    ended: Option<ExitStatus>,
    destroyed: bool,
}

impl Container {
    pub(crate) fn new(
        id: &str,
        spec: oci::Spec,
        child: Child,
        (cgroup, path): (Cgroup, &str),
        wire: Option<Wire>,
    ) -> Self {
        let (id, Child { pid, pidfd }) = (id.to_owned(), child);
        let cgroup_path = path.to_owned();
        Self {
            id,
            spec,
            pid,
            pidfd,
            cgroup,
            cgroup_path,
            wire,
            adopted: false,
            killed: Cell::new(false),
            ended: None,
            destroyed: false,
        }
    }

    /// Path of its cgroup.
    #[cfg(feature = "vm")]
    pub(crate) fn cgroup_path(&self) -> &str {
        &self.cgroup_path
    }

    pub(crate) fn adopt(request: &AdoptRequest<'_>) -> Result<Self, HullError> {
        let gone =
            || HullError::Invalid(format!("the main process {} of the container has ended", request.pid));
        let pid = Pid::from_raw(request.pid).filter(|p| p.as_raw_pid() > 0).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // Asked with the pidfd in hand: the pid cannot have been reused since.
        if !sys::host::is_running(request.pid, request.pid_start) {
            return Err(gone());
        }
        let child = Child { pid: request.pid, pidfd };
        let cgroup = Cgroup::open(request.cgroup)?;
        let mut adopted = Self::new(request.id, request.spec.clone(), child, (cgroup, request.cgroup), None);
        adopted.adopted = true;
        Ok(adopted)
    }
}

impl Container {
    /// Its network namespace.
    fn network(&self) -> Result<OwnedFd, HullError> {
        let path = format!("/proc/{}/ns/net", self.pid);
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let netns = opened.step(|| "open the network namespace".into())?;
        // Not one of a process that got the pid since.
        if has_ended(&self.pidfd) {
            return Err(HullError::Invalid("the container's main process has ended".into()));
        }
        Ok(netns)
    }

    /// The conversation with the process that waits for its start: once.
    pub(crate) fn take_wire(&mut self) -> Result<Wire, HullError> {
        self.wire.take().ok_or_else(|| HullError::Invalid("the container has been started already".into()))
    }

    fn execute(&mut self) -> Result<(), HullError> {
        let wire = self.take_wire()?;
        let said = wire.say(Word::Start);
        match wire.hear_from(Some(self.pid), None).step(|| "listen to the container's process".into())? {
            Heard::Failed(e) => Err(e),
            Heard::Stopped => Err(Heard::stopped()),
            Heard::Closed if said.is_ok() => {
                hooks::poststart(&self.spec, &self.id, self.pid);
                Ok(())
            }
            Heard::Closed | Heard::Ready(_) | Heard::Born(_) => Err(ended_early(&self.pidfd)),
        }
    }
}

impl Sandbox for Container {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn start(&mut self) -> Result<Option<Box<dyn Pending>>, HullError> {
        self.execute().map(|()| None)
    }

    fn signal(&self, signal: i32) -> Result<(), HullError> {
        if signal == SIGKILL {
            self.killed.set(true);
        }
        match sys::process::pidfd_signal(&self.pidfd, signal) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
            done => done.step(|| format!("send signal {signal}")),
        }
    }

    fn kill_all(&self) -> Result<(), HullError> {
        self.killed.set(true);
        self.cgroup.kill()
    }

    fn pause(&self) -> Result<(), HullError> {
        self.cgroup.freeze()
    }

    fn resume(&self) -> Result<(), HullError> {
        self.cgroup.thaw()
    }

    fn update(&self, resources: &oci::LinuxResources) -> Result<(), HullError> {
        // Through handles of its own, as the contract lets many look on at once.
        Cgroup::open(&self.cgroup_path)?.update(resources)
    }

    fn connect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        Ok(wiring.connect(attachment, Some(self.network()?.as_fd()))?)
    }

    fn reconfigure(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        Ok(wiring.configure(attachment, self.network()?.as_fd())?)
    }

    fn disconnect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        Ok(wiring.disconnect(attachment, Some(self.network()?.as_fd()))?)
    }

    fn stats(&self) -> Result<Stats, HullError> {
        let mut stats = self.cgroup.stats()?;
        super::counters::add(&mut stats, &self.spec, self.pid);
        Ok(stats)
    }

    fn processes(&self) -> Result<Vec<i32>, HullError> {
        self.cgroup.processes()
    }

    fn exec(&mut self, request: ExecRequest<'_>) -> Result<ExecChild, HullError> {
        let seccomp = super::seccomp(&self.spec)?;
        exec::exec(&self.spec, self.pidfd.as_fd(), self.pid, &self.cgroup, seccomp, &request)
    }

    fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }

    fn oom_notifier(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.oom_notifier()
    }

    fn wait(&mut self) -> Result<ExitStatus, HullError> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        let known = if self.adopted { wait_for_stranger(&self.pidfd, self.pid) } else { reap(&self.pidfd) }?;
        let status = match known {
            ExitStatus::Unknown if self.killed.get() => ExitStatus::Signaled(SIGKILL),
            known => known,
        };
        Ok(*self.ended.insert(status))
    }

    fn destroy(&mut self) -> Result<(), HullError> {
        self.wire = None;
        if !has_ended(&self.pidfd) {
            let _ = sys::process::pidfd_signal(&self.pidfd, SIGKILL);
        }
        self.cgroup.kill()?;
        if !self.adopted && self.ended.is_none() {
            self.ended = Some(reap(&self.pidfd)?);
        }
        self.cgroup.destroy()?;
        if !std::mem::replace(&mut self.destroyed, true) {
            hooks::poststop(&self.spec, &self.id);
        }
        Ok(())
    }
}

impl Drop for Container {
    /// A container that was never started has nothing to live for.
    fn drop(&mut self) {
        if self.wire.is_some() {
            let _ = self.destroy();
        }
    }
}

/// What `wait(2)` encodes.
pub(crate) fn exit_status(raw: i32) -> ExitStatus {
    match raw & 0x7f {
        0 => ExitStatus::Exited((raw >> 8) & 0xff),
        signal => ExitStatus::Signaled(signal),
    }
}

/// Waits for a child and takes its status.
pub(crate) fn reap(pidfd: &OwnedFd) -> Result<ExitStatus, HullError> {
    let ended = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED));
    let Some(status) = ended.step(|| "wait for the process".into())? else { return Ok(ExitStatus::Unknown) };
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Exited(code),
        (_, Some(signal)) => ExitStatus::Signaled(signal),
        _ => ExitStatus::Unknown,
    })
}

/// The status of a process that somebody else reaps, as far as the kernel tells.
fn wait_for_stranger(pidfd: &OwnedFd, pid: i32) -> Result<ExitStatus, HullError> {
    // Until its parent (the host's init) reaps it, which may take seconds, its zombie tells. That a signal still
    // reaches it afterwards says that the pid was its own all the time.
    if let Some(raw) = sys::host::zombie_status(pid)
        && sys::process::pidfd_signal(pidfd, 0).is_ok()
    {
        return Ok(exit_status(raw));
    }
    // After that the kernel tells, where it keeps the status.
    for pause_ms in [0, 1, 2, 5, 10, 20, 50, 100] {
        if let Some(raw) = sys::clone::exit_info(pidfd).step(|| "ask how the process ended".into())? {
            return Ok(exit_status(raw));
        }
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
    }
    Ok(ExitStatus::Unknown)
}

/// Whether the process behind a pidfd has ended.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
}

/// The error for a process that ended without a word.
pub(crate) fn ended_early(pidfd: &OwnedFd) -> HullError {
    // Left for `wait` to reap.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let how = match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (_, Some(signal)) => format!("killed by signal {signal}"),
            (code, _) => format!("exit code {}", code.unwrap_or(255)),
        },
        _ => "unknown reason".into(),
    };
    HullError::Step {
        step: "start the container's process".into(),
        source: std::io::Error::other(format!("it ended before it was ready ({how})")),
    }
}
