//! The sockets of one microVM, in a directory of their own below its run directory.

use crate::boot::CONTROL_PORT;
use crate::client::{Client, ClientError};
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::fs::{Mode, OFlags};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// Listens for the host's connections to the guest.
pub(super) const VSOCK: &str = "vsock";
/// How long the guest may take over one answer: the supervisor does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the directory, empty.
pub(super) fn fresh_dir(dir: &Path) -> Result<(), HullError> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => std::fs::DirBuilder::new().mode(0o700).create(dir),
    }
    .step(|| format!("make the directory {}", dir.display()))
}

/// An address has 108 bytes (unix(7)): the directory is reached by its descriptor.
fn within<T>(dir: &Path, name: &str, f: impl FnOnce(String) -> io::Result<T>) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    f(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()))
}

/// Listens on a socket of the directory.
pub(super) fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    within(dir, name, UnixListener::bind)
}

/// Connects to the agent's control port.
pub(super) fn control(dir: &Path) -> Result<Client, ClientError> {
    let refused = |source| ClientError::Connect { path: dir.join(VSOCK).display().to_string(), source };
    port(dir, CONTROL_PORT, PATIENCE).map(Client::over).map_err(refused)
}

/// Connects to a port of the guest; `patience` is that of each later wait, too.
pub(super) fn port(dir: &Path, port: u32, patience: Duration) -> io::Result<UnixStream> {
    let mut socket = within(dir, VSOCK, UnixStream::connect)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // "OK 1073741824\n", byte by byte: what follows is the protocol's.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < 32 {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    if line.starts_with(b"OK ") { Ok(socket) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}
