//! The process that carries the machine, whichever it is.

use crate::container::running;
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A hypervisor's process; a child of the monitor.
pub(super) enum Carrier {
    /// QEMU.
    Qemu(std::process::Child, OwnedFd),
    /// Our own.
    Vmm(sys::clone::Child),
}

impl Carrier {
    pub(super) fn qemu(child: std::process::Child) -> Result<Self, HullError> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| HullError::Invalid("the hypervisor has no pid".into()))?;
        let end = pidfd_open(pid, PidfdFlags::empty()).step(|| "watch the hypervisor".into())?;
        Ok(Self::Qemu(child, end))
    }

    /// Readable when it has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Qemu(_, end) => end.as_fd(),
            Self::Vmm(child) => child.pidfd.as_fd(),
        }
    }

    /// Ends it at once. One that has ended is no error.
    pub(super) fn kill(&mut self) {
        let _ = sys::process::pidfd_signal(self.pidfd(), 9);
    }

    /// Waits for its end, and says how it was.
    pub(super) fn wait(&mut self) -> String {
        match self {
            Self::Qemu(child, _) => child.wait().map_or_else(|e| e.to_string(), |s| s.to_string()),
            Self::Vmm(child) => match running::reap(&child.pidfd) {
                Ok(status) => format!("exit code {}", status.code()),
                Err(e) => e.to_string(),
            },
        }
    }
}
