//! The sockets of one microVM, in a directory of their own below its run directory.

use crate::boot::CONTROL_PORT;
use crate::client::{Client, ClientError};
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm::control::Timed;

/// Listens for the host's connections to the guest.
pub(super) const VSOCK: &str = "vsock";
/// How long the guest may take over one answer. One that is emulated beside many others needs seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

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
fn within<T>(dir: &Path, name: &str, f: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let (_open, path) = short(dir)?;
    f(path.join(name))
}

/// The directory, and a path by which this process reaches it as long as that is open, short enough for any address.
pub(super) fn short(dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    Ok((fd, path))
}

/// Lets a machine's own user reach the sockets in the directory, which nobody else can reach: the directories above are
/// root's alone.
pub(super) fn open_to_all(dir: &Path) -> Result<(), HullError> {
    use std::os::unix::fs::PermissionsExt;
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let open = || -> io::Result<()> {
        set(dir, 0o755)?;
        for entry in std::fs::read_dir(dir)? {
            set(&entry?.path(), 0o666)?;
        }
        Ok(())
    };
    open().step(|| format!("open the directory {} to the machine", dir.display()))
}

/// Listens on a socket of the directory.
pub(super) fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    within(dir, name, UnixListener::bind)
}

/// Listens for a machine's guest that connects to a port of its host; `run` is the sandbox's run directory. Neither the
/// listener nor what waits there of a supervisor before this one is in the way.
pub fn listen_for_guest(run: &Path, port: u32) -> io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    let name = format!("{VSOCK}_{port}");
    within(&run.join(super::DIR), &name, |path| {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        // The machine's own user connects; nobody else comes into the directory.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(listener.into())
    })
}

/// Connects to a socket of the directory.
pub(super) fn stream(dir: &Path, name: &str) -> io::Result<UnixStream> {
    within(dir, name, UnixStream::connect)
}

/// The same to a socket of the hypervisor's, who may be the guest: all that is said and heard there ends at an instant.
pub(super) fn timed(dir: &Path, name: &str, until: Instant) -> io::Result<Timed> {
    within(dir, name, |path| Timed::connect(&path, until))
}

/// Connects to the agent's control port.
pub(super) fn control(dir: &Path) -> Result<Client, ClientError> {
    let refused = |source| ClientError::Connect { path: dir.join(VSOCK).display().to_string(), source };
    let deadline = Instant::now() + PATIENCE;
    let socket = port(dir, CONTROL_PORT, deadline).map_err(refused)?;
    Ok(Client::over_until(socket, deadline))
}

/// Begins to connect to a port of the guest, and waits for nothing: the device's line is still to come.
pub(super) fn begin(dir: &Path, port: u32) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let mut socket = UnixStream::from(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?);
    within(dir, VSOCK, |path| Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?))?;
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    Ok(socket)
}

/// Connects to a port of the guest until an instant, whatever the guest and its machine do or leave undone.
pub(super) fn port(dir: &Path, port: u32, deadline: Instant) -> io::Result<UnixStream> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut socket = UnixStream::from(socket);
    // It limits connect(2), too: nobody may accept any more.
    socket.set_write_timeout(Some(left()?))?;
    within(dir, VSOCK, |path| Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?))?;
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // "OK 1073741824\n", byte by byte: what follows is the protocol's.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < 32 {
        let mut byte = [0];
        socket.set_read_timeout(Some(left()?))?;
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    if line.starts_with(b"OK ") { Ok(socket) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}
