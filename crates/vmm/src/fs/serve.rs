//! The process that serves: a few threads, each with one request at a time.

use super::{LONGEST, Server, jail};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Requests at a time: who waits for the disk does not hold up all others.
const THREADS: usize = 4;
/// Descriptors beyond those of open files: the socket, the root, and what each thread opens for one request.
const OTHER_DESCRIPTORS: u64 = 64;

/// Why the service cannot begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct ServeError {
    /// What was to be done.
    action: &'static str,
    /// What the kernel said.
    source: io::Error,
}

/// Serves the directory `root`, which is the root of this process, to who is at the other end of `socket` (a
/// SOCK_SEQPACKET), until that hangs up. The process is shut in first; it must have but one thread, and have no other
/// descriptors that matter.
pub fn serve(socket: &OwnedFd, root: OwnedFd) -> Result<(), ServeError> {
    let failed = |action| move |source| ServeError { action, source };
    // An open file may have two: the guest's, and one by which its node is found though it has no name.
    let handles = (jail::descriptors().saturating_sub(OTHER_DESCRIPTORS) / 2) as usize;
    let server = Server::new(root, handles).map_err(failed("look at the shared directories"))?;
    let filter = jail::enter().map_err(failed("give up what a server of files does not need"))?;
    let work = || match filter.apply() {
        Ok(()) => converse(socket, &server),
        Err(e) => Err(e),
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS {
            let spawned =
                std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, || work().is_ok());
            spawned.map_err(failed("start a thread"))?;
        }
        work().map_err(failed("serve the guest's files"))
    })
}

/// Takes requests until nobody sends any more. Each has a number in front, which its answer gets, too.
fn converse(socket: &OwnedFd, server: &Server) -> io::Result<()> {
    let mut buffer = vec![0; NUMBER + LONGEST];
    loop {
        let received = rustix::net::recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty());
        let request = match received {
            Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(()),
            Ok((length, _)) => buffer.get(..length).unwrap_or_default(),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let Some((number, request)) = request.split_at_checked(NUMBER) else { continue };
        let Some(answer) = server.answer(request) else { continue };
        let answer = [number, &answer].concat();
        match rustix::net::send(socket.as_fd(), &answer, SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Bytes of the number in front of each message.
pub(crate) const NUMBER: usize = 8;
