//! What the host's engine does around a container, in a guest: next to nothing.

use sandbox::hull::Wiring;
use sandbox::supervisor::{HookError, Hooks};
use std::os::fd::{BorrowedFd, OwnedFd};
use types::{Attachment, Bundle, ErrorKind, PortBinding, RunState};

pub struct GuestHooks {
    /// The mounted root, until it is taken.
    pub root: Option<OwnedFd>,
}

/// The workload has the network namespace of the guest itself, and the devices in it are what the machine was made with.
impl Wiring for GuestHooks {
    fn connect(&mut self, attachment: &Attachment, netns: Option<BorrowedFd<'_>>) -> Result<(), HookError> {
        netns.map_or(Ok(()), |netns| self.configure(attachment, netns))
    }

    fn is_connected(&self, _: &Attachment) -> bool {
        true
    }

    fn configure(&mut self, attachment: &Attachment, _: BorrowedFd<'_>) -> Result<(), HookError> {
        net::machine::configure(attachment).map_err(|e| HookError::new(&e))
    }

    fn disconnect(&mut self, attachment: &Attachment, _: Option<BorrowedFd<'_>>) -> Result<(), HookError> {
        net::machine::rest(attachment).map_err(|e| HookError::new(&e))
    }
}

impl Hooks for GuestHooks {
    fn rootfs(&mut self, _bundle: &Bundle) -> Result<OwnedFd, HookError> {
        let gone = || HookError { kind: ErrorKind::Internal, message: "the workload ran already".into() };
        self.root.take().ok_or_else(gone)
    }

    fn network_outside(&mut self, _: &Bundle, _: BorrowedFd<'_>) -> Result<Vec<PortBinding>, HookError> {
        Ok(Vec::new())
    }

    fn taps(&mut self, _: &Bundle) -> Result<(Vec<OwnedFd>, Vec<PortBinding>), HookError> {
        Ok((Vec::new(), Vec::new()))
    }

    fn network_inside(&self, _: &Bundle) -> Result<(), HookError> {
        Ok(())
    }

    fn networks_changed(&mut self, _: &Bundle) -> Result<Vec<PortBinding>, HookError> {
        Ok(Vec::new())
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn serve(&mut self) {}

    /// Whoever is told of the end may pull the plug.
    fn ended(&mut self, bundle: &Bundle) {
        // Nobody reads the disks of one that is removed now.
        if !bundle.auto_remove {
            rustix::fs::sync();
        }
    }

    fn event(&mut self, _: &Bundle, _: &str, _: &[(&str, String)]) {}

    fn finished(&mut self, _: &Bundle, _: &RunState) {}
}
