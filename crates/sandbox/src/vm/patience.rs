//! A stream of the guest's whose other end may be silent: each read and write ends at an instant, with the machine, or with
//! those who wanted it.

use crate::container::wire::Wire;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// See the module.
pub(super) struct Patience<'a> {
    pub(super) stream: &'a UnixStream,
    /// Readable when the machine has ended.
    pub(super) machine: BorrowedFd<'a>,
    /// Who waits for the answer; says nothing meanwhile.
    pub(super) waiting: Option<&'a Wire>,
    pub(super) until: Instant,
}

impl Patience<'_> {
    /// Waits until the stream is ready.
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut fds =
            vec![PollFd::new(self.stream, flags), PollFd::from_borrowed_fd(self.machine, PollFlags::IN)];
        fds.extend(self.waiting.map(|wire| PollFd::new(wire, PollFlags::IN)));
        if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&left)))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time"));
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        match [ready.next(), ready.next(), ready.next()] {
            [Some(true), ..] => Ok(()),
            [_, Some(true), _] => Err(io::Error::other("the microVM ended")),
            _ => Err(io::Error::other("the microVM's supervisor has ended")),
        }
    }

    fn retry(
        &self,
        flags: PollFlags,
        mut work: impl FnMut() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            self.wait(flags)?;
            match work() {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }
}

impl Read for Patience<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::IN, || recv(self.stream, &mut *buffer, RecvFlags::DONTWAIT).map(|(n, _)| n))
    }
}

impl Write for Patience<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::OUT, || send(self.stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn silence_has_an_end() {
        let (stream, _guest) = UnixStream::pair().unwrap();
        let (machine, ends) = UnixStream::pair().unwrap();
        let (wire, supervisor) = Wire::pair().unwrap();
        let of = |seconds| Patience {
            stream: &stream,
            machine: machine.as_fd(),
            waiting: Some(&wire),
            until: Instant::now() + Duration::from_secs(seconds),
        };
        let mut none = [0; 4];
        assert_eq!(of(0).read(&mut none).unwrap_err().kind(), io::ErrorKind::TimedOut);
        // It reads nothing either.
        assert_eq!(of(1).write_all(&vec![0; 8 << 20]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(supervisor);
        assert!(of(600).read(&mut none).unwrap_err().to_string().contains("supervisor has ended"));
        drop(ends);
        assert!(of(600).read(&mut none).unwrap_err().to_string().contains("the microVM ended"));
    }

    #[test]
    fn what_is_said_arrives_even_when_the_machine_has_ended() {
        let (stream, mut guest) = UnixStream::pair().unwrap();
        let (machine, _) = UnixStream::pair().unwrap();
        guest.write_all(b"end").unwrap();
        drop(guest);
        let until = Instant::now() + Duration::from_secs(600);
        let mut said = String::new();
        let mut patience = Patience { stream: &stream, machine: machine.as_fd(), waiting: None, until };
        patience.read_to_string(&mut said).unwrap();
        assert_eq!(said, "end");
    }
}
