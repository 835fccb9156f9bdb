//! What a process of the microVM hull has under way: to boot a machine, to have a workload or a command executed in it. The
//! process says on its wire how that went. A guest that never answers costs its own start or session, and nobody else's time.

use crate::container::running;
use crate::container::wire::{Heard, Wire};
use crate::hull::{HullError, Pending};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// By what the end of it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The process says that it is ready.
    Ready,
    /// It closes its wire, as `execve` does.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Awaited {
    wire: Wire,
    /// The process.
    pidfd: OwnedFd,
    end: End,
    until: Instant,
    /// The sentence for one that says nothing.
    late: String,
}

impl Awaited {
    pub(super) fn new(
        wire: Wire,
        pidfd: BorrowedFd<'_>,
        end: End,
        limit: Duration,
        late: String,
    ) -> io::Result<Self> {
        Ok(Self { wire, pidfd: pidfd.try_clone_to_owned()?, end, until: Instant::now() + limit, late })
    }

    /// Whether the process says something, within a time.
    fn is_heard(&self, within: Duration) -> bool {
        let mut fds = [PollFd::new(&self.wire, PollFlags::IN)];
        let within = Timespec::try_from(within).unwrap_or_default();
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&within))).is_ok_and(|n| n > 0)
    }

    fn heard(&self) -> Result<(), HullError> {
        match self.wire.hear() {
            Ok(Heard::Ready(_)) if self.end == End::Ready => Ok(()),
            Ok(Heard::Closed) if self.end == End::Closed => Ok(()),
            Ok(Heard::Failed(e)) => Err(e),
            Ok(_) => Err(running::ended_early(&self.pidfd)),
            Err(source) => Err(HullError::Step { step: "listen to a process of the microVM".into(), source }),
        }
    }

    /// For who has nothing else to do.
    pub(super) fn wait(mut self) -> Result<(), HullError> {
        loop {
            if let Some(result) = self.result() {
                return result;
            }
            self.is_heard(self.until.saturating_duration_since(Instant::now()));
        }
    }
}

impl Pending for Awaited {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }

    fn until(&self) -> Instant {
        self.until
    }

    fn result(&mut self) -> Option<Result<(), HullError>> {
        if self.is_heard(Duration::ZERO) {
            return Some(self.heard());
        }
        let late = self.until <= Instant::now();
        late.then(|| Err(HullError::Unsupported(self.late.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::wire::Word;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    fn awaited(end: End, limit: Duration) -> (Awaited, Wire) {
        let (ours, theirs) = Wire::pair().unwrap();
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        (Awaited::new(ours, pidfd.as_fd(), end, limit, "it is late".into()).unwrap(), theirs)
    }

    #[test]
    fn it_goes_on_until_something_is_said_or_time_is_up() {
        let hour = Duration::from_secs(3600);
        let (mut boot, process) = awaited(End::Ready, hour);
        assert!(boot.result().is_none());
        process.say(Word::Ready).unwrap();
        assert!(boot.result().unwrap().is_ok());

        let (mut start, process) = awaited(End::Closed, hour);
        process.shut();
        assert!(start.result().unwrap().is_ok());

        let (mut exec, process) = awaited(End::Ready, hour);
        process.say_failed(HullError::Invalid("no such thing".into()));
        assert!(exec.result().unwrap().unwrap_err().to_string().contains("no such thing"));
        let (exec, process) = awaited(End::Ready, hour);
        drop(process);
        assert!(exec.wait().unwrap_err().to_string().contains("before it was ready"));

        let (silent, _process) = awaited(End::Ready, Duration::from_millis(10));
        assert_eq!(silent.wait().unwrap_err().to_string(), "it is late");
    }
}
