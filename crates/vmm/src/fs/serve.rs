//! The process that serves: a few threads, each with one request at a time.

use super::{LONGEST, Server, jail};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::Scope;

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
    let wait = || {
        // Else nobody gets a lock who has to wait for it.
        if filter.apply().is_ok() {
            server.wait_for_locks(|number, answer| {
                // Where nobody hears it any more, the others end, too.
                let _ = say(socket, &number.to_le_bytes(), &answer);
            });
        }
    };
    std::thread::scope(|scope| {
        let started = (1..THREADS).try_for_each(|_| spawn(scope, || drop(work())));
        let started = started.and_then(|()| spawn(scope, wait)).map_err(failed("start a thread"));
        let served = started.and_then(|()| work().map_err(failed("serve the guest's files")));
        server.end();
        served
    })
}

fn spawn<'a>(scope: &'a Scope<'a, '_>, body: impl FnOnce() + Send + 'a) -> io::Result<()> {
    std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, body).map(drop)
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
        let Some((number, request)) = request.split_first_chunk::<NUMBER>() else { continue };
        let answer = server.answer_numbered(u64::from_le_bytes(*number), request);
        match answer.map_or(Ok(()), |answer| say(socket, number, &answer)) {
            Ok(()) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn say(socket: &OwnedFd, number: &[u8], answer: &[u8]) -> rustix::io::Result<()> {
    let message = [number, answer].concat();
    match rustix::net::send(socket.as_fd(), &message, SendFlags::NOSIGNAL) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Bytes of the number in front of each message.
pub(crate) const NUMBER: usize = 8;
