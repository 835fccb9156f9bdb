//! Where clients come in.

use rustix::net::sockopt::socket_peercred;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// See the module.
pub(super) enum Listener {
    /// A socket in the run directory.
    Unix(UnixListener),
    /// A port that the machine's host alone can reach.
    Vsock(OwnedFd),
}

impl Listener {
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Self::Vsock(fd) => Ok(UnixStream::from(sys::vsock::accept(fd)?)),
            Self::Unix(listener) => {
                let (socket, _) = listener.accept()?;
                // The directory keeps others out; this holds even where its mode was changed.
                let peer = socket_peercred(&socket)?;
                if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
                    return Ok(socket);
                }
                Err(io::ErrorKind::PermissionDenied.into())
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Vsock(fd) => fd.as_fd(),
        }
    }
}
