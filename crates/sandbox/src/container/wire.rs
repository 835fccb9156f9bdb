//! What the hull and the process that it is building say to each other, over a pair of sequenced-packet sockets.
//!
//! ```text
//! hull ── Mapped ──► child     its user namespace has its mappings        (only with a user namespace)
//! hull ── Go ──────► child     the network is there, hooks are done            (not to exec)
//! hull ◄── Born ──── child     the pid of the one that becomes the command     (only from exec)
//! hull ◄── Ready ─── child     all is built; carries the console's master  (or Failed)
//! hull ── Start ───► child
//! hull ◄── closed ── child     execve succeeded, which closed the socket   (or Failed)
//! ```

use crate::hull::HullError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Word {
    Mapped = b'M',
    Go = b'G',
    Born = b'B',
    Ready = b'R',
    Start = b'S',
    Failed = b'F',
}

/// How often a silent process is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Longest message; a longer failure text is cut.
const MAX: usize = 8192;

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct Wire(OwnedFd);

/// What the hull heard.
pub(crate) enum Heard {
    Ready(Option<OwnedFd>),
    Born(i32),
    Failed(HullError),
    /// Nothing, and the process that should speak is stopped or traced: who shares its PID namespace can do that.
    Stopped,
    /// The other end is closed: executed, or dead.
    Closed,
}

impl Heard {
    /// The error for [`Self::Stopped`].
    pub(super) fn stopped() -> HullError {
        HullError::Invalid(
            "the new process was stopped by a process of the container before it could begin".into(),
        )
    }
}

impl Wire {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// The same end once more.
    #[cfg(feature = "vm")]
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    pub(crate) fn say(&self, word: Word) -> io::Result<()> {
        send(&self.0, &[word as u8], SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The pid of the process that goes on in the place of this one.
    pub(crate) fn say_born(&self, pid: i32) -> io::Result<()> {
        let [a, b, c, d] = pid.to_ne_bytes();
        send(&self.0, &[Word::Born as u8, a, b, c, d], SendFlags::NOSIGNAL)?;
        Ok(())
    }

    pub(crate) fn say_ready(&self, console: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(console) = console else { return self.say(Word::Ready) };
        let fds = [console];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.0, &[IoSlice::new(&[Word::Ready as u8])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Tells why the child gives up. Nobody listening is no reason to fail on top.
    pub(crate) fn say_failed(&self, error: HullError) {
        let mut message = vec![Word::Failed as u8];
        message.extend(serde_json::to_vec(&Failure::from(error)).unwrap_or_default());
        let _ = send(&self.0, &message[..message.len().min(MAX)], SendFlags::NOSIGNAL);
    }

    /// Says that nothing more comes, as `execve` does by closing.
    #[cfg(feature = "vm")]
    pub(crate) fn shut(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }

    /// The child waits for a word; the hull's death ends it.
    pub(crate) fn await_word(&self, word: Word) -> io::Result<()> {
        let (message, _) = self.receive()?;
        match message.first() {
            Some(b) if *b == word as u8 => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// The hull listens to a process that others may stop, until an instant (`TimedOut`) or, without one, for ever.
    pub(crate) fn hear_from(&self, pid: Option<i32>, until: Option<Instant>) -> io::Result<Heard> {
        loop {
            let left = until.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            let wait = Timespec::try_from(left).unwrap_or_default();
            if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&wait)))? > 0 {
                return self.hear();
            }
            if pid.is_some_and(sys::host::is_stopped) {
                return Ok(Heard::Stopped);
            }
            if until.is_some_and(|at| at <= Instant::now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// The hull listens.
    pub(crate) fn hear(&self) -> io::Result<Heard> {
        // Who closes with a word of ours unread resets the connection; what it said before that still waits.
        let (message, fd) = match self.receive() {
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.receive()?,
            done => done?,
        };
        Ok(match message.split_first() {
            None => Heard::Closed,
            Some((b, _)) if *b == Word::Ready as u8 => Heard::Ready(fd),
            Some((b, rest)) if *b == Word::Born as u8 => {
                let pid = rest.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                Heard::Born(i32::from_ne_bytes(pid))
            }
            Some((b, rest)) if *b == Word::Failed as u8 => Heard::Failed(
                serde_json::from_slice::<Failure>(rest)
                    .map(HullError::from)
                    .unwrap_or_else(|_| HullError::Invalid("the new process failed".into())),
            ),
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        })
    }

    fn receive(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut bytes = vec![0; MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let n = loop {
            let mut into = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => continue,
                done => break done?.bytes,
            }
        };
        bytes.truncate(n);
        let fd = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((bytes, fd))
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A [`HullError`] in transit.
#[derive(Debug, Serialize, Deserialize)]
enum Failure {
    NotFound(String),
    NotExecutable(String, Cause),
    Invalid(String),
    Unsupported(String),
    Step(String, Cause),
    Network(String),
    Guest(crate::protocol::Failure),
}

/// An [`io::Error`] in transit: its number, or its text where it has none.
#[derive(Debug, Serialize, Deserialize)]
enum Cause {
    Errno(i32),
    Text(String),
}

impl From<io::Error> for Cause {
    fn from(e: io::Error) -> Self {
        e.raw_os_error().map_or_else(|| Self::Text(e.to_string()), Self::Errno)
    }
}

impl From<Cause> for io::Error {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Errno(n) => Self::from_raw_os_error(n),
            Cause::Text(text) => Self::other(text),
        }
    }
}

/// Keeps a text within what one message holds, JSON's escapes included.
fn cut(mut text: String) -> String {
    let mut end = text.len().min(1000);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

impl From<HullError> for Failure {
    fn from(e: HullError) -> Self {
        match e {
            HullError::CommandNotFound { command } => Self::NotFound(cut(command)),
            HullError::CommandNotExecutable { command, source } => {
                Self::NotExecutable(cut(command), source.into())
            }
            HullError::Invalid(text) => Self::Invalid(cut(text)),
            HullError::Unsupported(text) => Self::Unsupported(cut(text)),
            HullError::Step { step, source } => Self::Step(cut(step), source.into()),
            HullError::Network(text) => Self::Network(cut(text)),
            HullError::Hook(e) => Self::Network(cut(e.message)),
            HullError::Guest(mut failure) => {
                failure.message = cut(failure.message);
                Self::Guest(failure)
            }
        }
    }
}

impl From<Failure> for HullError {
    fn from(f: Failure) -> Self {
        match f {
            Failure::NotFound(command) => Self::CommandNotFound { command },
            Failure::NotExecutable(command, cause) => {
                Self::CommandNotExecutable { command, source: cause.into() }
            }
            Failure::Invalid(text) => Self::Invalid(text),
            Failure::Unsupported(text) => Self::Unsupported(text),
            Failure::Step(step, cause) => Self::Step { step, source: cause.into() },
            Failure::Network(text) => Self::Network(text),
            Failure::Guest(failure) => Self::Guest(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_arrive_as_they_were_sent() {
        let (a, b) = Wire::pair().unwrap();
        let source = || io::Error::from_raw_os_error(13);
        let long = "\u{1}".repeat(5000);
        for error in [
            HullError::CommandNotFound { command: "x".into() },
            HullError::CommandNotExecutable { command: "x".into(), source: source() },
            HullError::Step { step: "mount /proc".into(), source: source() },
            HullError::Network("down".into()),
            HullError::Invalid(long[..1000].into()),
        ] {
            let said = format!("{error:?}");
            a.say_failed(error);
            let Heard::Failed(heard) = b.hear().unwrap() else { panic!("not a failure") };
            assert_eq!(format!("{heard:?}"), said);
        }
        // Ours is still unread when the other side goes.
        b.say(Word::Go).unwrap();
        a.say_failed(HullError::Invalid(long));
        drop(a);
        assert!(matches!(b.hear().unwrap(), Heard::Failed(_)));
        assert!(matches!(b.hear().unwrap(), Heard::Closed));
    }
}
