//! Work in another network namespace.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `<linux/sockios.h>`.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// Runs `f` with the calling thread in another network namespace: sockets that it opens are of that one, and stay so.
/// Should the kernel not let the thread return, which has no known cause, the process is aborted rather than left in the
/// wrong namespace.
pub fn within<T>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/net")?;
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(netns, network)?;
    let done = f();
    if move_into_link_name_space(own.as_fd(), network).is_err() {
        std::process::abort();
    }
    Ok(done)
}

/// The network namespace of a socket (Linux 4.10; needs CAP_NET_ADMIN in it).
pub fn of_socket(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: SIOCGSKNS takes no argument that is used; the descriptor is open.
    match unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS, 0) } {
        // SAFETY: the kernel answered with a new descriptor, which nobody else owns; it has CLOEXEC.
        fd if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
