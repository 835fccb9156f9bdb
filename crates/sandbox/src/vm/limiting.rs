//! Other limits for a running machine, set by a process of their own: a guest takes its time to give memory, and its hypervisor
//! may be stopped.

use super::{connect, limits};
use crate::container::cgroup::Cgroup;
use crate::container::running::Container;
use crate::container::step::Step;
use crate::container::wire::{Wire, Word};
use crate::hull::{HullError, Pending};
use crate::protocol::Response;
use crate::vm::pending::{Awaited, End};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use types::oci;

/// More than the process takes, who waits ten seconds at a time.
const WAIT: Duration = Duration::from_secs(60);

/// See the module. It goes no further than who waits for it.
#[derive(Debug)]
pub(super) struct Limiting {
    process: OwnedFd,
    done: Awaited,
}

impl Limiting {
    /// Begins to apply limits to the machine whose sockets lie in `dir`.
    pub(super) fn begin(
        dir: &Path,
        host: &Container,
        wanted: &oci::LinuxResources,
    ) -> Result<Self, HullError> {
        let (ours, theirs) = Wire::pair().step(|| "make a socket pair".into())?;
        let mut keep = Cgroup::roots()?;
        keep.push(theirs.as_fd());
        let child = sys::clone::spawn(0, None, || {
            if sys::process::close_all_but(&keep).is_err() {
                return 1;
            }
            sys::process::reset_signals();
            sys::process::ignore_broken_pipes();
            let told = match apply(dir, host, wanted) {
                Ok(()) => theirs.say(Word::Ready).is_ok(),
                Err(e) => {
                    theirs.say_failed(e);
                    false
                }
            };
            i32::from(!told)
        })
        .step(|| "create a process for the new limits".into())?;
        drop(keep);
        drop(theirs);
        let late = format!("the microVM did not take its new limits within {} s", WAIT.as_secs());
        let done = Awaited::new(ours, child.pidfd.as_fd(), End::Ready, WAIT, late);
        match done {
            Ok(done) => Ok(Self { process: child.pidfd, done }),
            Err(source) => {
                let _ = sys::process::pidfd_signal(&child.pidfd, 9);
                Err(HullError::Step { step: "duplicate a descriptor".into(), source })
            }
        }
    }
}

fn apply(dir: &Path, host: &Container, wanted: &oci::LinuxResources) -> Result<(), HullError> {
    limits::apply(dir, host, wanted)?;
    if wanted.pids().is_some() {
        let mut inside = oci::LinuxResources::default();
        inside.set_pids(*wanted.pids());
        connect::control(dir)?.update(Some(&inside), None)?;
    }
    Ok(())
}

impl Pending<Response> for Limiting {
    fn fd(&self) -> BorrowedFd<'_> {
        self.done.fd()
    }

    fn until(&self) -> Instant {
        self.done.until()
    }

    fn result(&mut self) -> Option<Result<Response, HullError>> {
        self.done.result().map(|done| done.map(|()| Response::Done))
    }
}

impl Drop for Limiting {
    fn drop(&mut self) {
        // Of one that has done its work nothing is left to kill.
        let _ = sys::process::pidfd_signal(&self.process, 9);
    }
}
