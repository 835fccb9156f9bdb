//! What a service manager hands to a server (`sd_listen_fds(3)`, `sd_notify(3)`), and how little memory one may waste.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where inherited sockets begin.
const FIRST: RawFd = 3;

/// The sockets that systemd opened for this very process. To be called once, before anything else opens a descriptor.
pub fn listen_fds() -> Vec<OwnedFd> {
    let variable = |name: &str| std::env::var(name).ok();
    let ours = variable("LISTEN_PID").and_then(|p| p.parse().ok()) == Some(std::process::id());
    let count = variable("LISTEN_FDS").and_then(|n| n.parse::<RawFd>().ok()).unwrap_or(0);
    if !ours || !(0..=64).contains(&count) {
        return Vec::new();
    }
    (FIRST..FIRST + count)
        .filter(|fd| {
            // SAFETY: FD_CLOEXEC on a number; where it is no descriptor, the call fails and it is left out.
            unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) == 0 }
        })
        // SAFETY: the protocol says that these are ours, LISTEN_PID that they are meant for us; nothing else owns them, as
        // this is called once and first.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect()
}

/// Tells the service manager a state such as `READY=1`, if there is one.
pub fn notify(state: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|p| !p.is_empty()) else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}
