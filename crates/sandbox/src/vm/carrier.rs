//! The process that carries the machine, whichever it is.

use crate::container::running;
use std::os::fd::{AsFd, BorrowedFd};

/// A hypervisor's process; a child of the monitor.
pub(super) struct Carrier(pub(super) sys::clone::Child);

impl Carrier {
    /// Readable when it has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.pidfd.as_fd()
    }

    /// Ends it at once. One that has ended is no error.
    pub(super) fn kill(&mut self) {
        let _ = sys::process::pidfd_signal(self.pidfd(), 9);
    }

    /// Waits for its end, and says how it was.
    pub(super) fn wait(&mut self) -> String {
        match running::reap(&self.0.pidfd) {
            Ok(status) => format!("exit code {}", status.code()),
            Err(e) => e.to_string(),
        }
    }
}
