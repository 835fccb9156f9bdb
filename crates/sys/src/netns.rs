//! Work in another network namespace.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

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
