//! What a request knows of the connection that it came by: whether its client is still there, its place among the
//! connections, and the way to have the connection itself. Whose connections these are is [`crate::connection`]'s.

use hyper::body::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Cursor;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The socket below a connection, to see whether its other end has gone.
#[derive(Clone, Debug)]
pub(crate) struct Wire(Arc<OwnedFd>);

impl Wire {
    /// Of this socket.
    pub fn of(fd: impl AsFd) -> Option<Self> {
        fd.as_fd().try_clone_to_owned().ok().map(|fd| Self(Arc::new(fd)))
    }

    /// Whether the client hung up altogether: one that only ended its input is still there.
    pub fn is_cut(&self) -> bool {
        let mut fds = [PollFd::new(&*self.0, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && fds.iter().any(|f| f.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

/// One of the places that there are for connections. Whoever takes a connection over takes its place, too.
#[derive(Clone, Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

impl Place {
    /// This one.
    pub fn of(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

/// What a client sends.
pub(crate) type Input = Box<dyn AsyncRead + Send + Unpin>;
/// What it is sent.
pub(crate) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection that is no longer HTTP.
pub(crate) struct Raw {
    /// From the first byte after the request on.
    pub input: Input,
    /// From the first byte after the answer's head on.
    pub output: Output,
}

/// Who gets the connection when it has ended as one of HTTP, if anybody does.
#[derive(Clone, Default)]
pub(crate) struct Handover(Arc<Mutex<Option<oneshot::Sender<Raw>>>>);

impl Handover {
    /// Takes the connection, once the answer to this request is out: it must be the last. Fails if it never is.
    pub fn take(self) -> oneshot::Receiver<Raw> {
        let (to, raw) = oneshot::channel();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
        raw
    }

    /// Hands over what is left of a connection, with what was read of it already; or ends it.
    pub async fn conclude(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        early: Bytes,
    ) {
        let taker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match taker {
            None => drop(stream.shutdown().await),
            Some(taker) => {
                let (rest, output) = tokio::io::split(stream);
                let input = Box::new(Cursor::new(early).chain(rest));
                // If nobody is there any more, that is its end.
                let _ = taker.send(Raw { input, output: Box::new(output) });
            }
        }
    }
}
