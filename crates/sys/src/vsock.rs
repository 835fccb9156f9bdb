//! Sockets between a virtual machine and its host, vsock(7).

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The host's context id.
pub const HOST: u32 = libc::VMADDR_CID_HOST;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: a sockaddr_vm of zeros is valid: integers only.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket() -> io::Result<OwnedFd> {
    let family = AddressFamily::from_raw(libc::AF_VSOCK as u16);
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// Connects to a port of the machine with this context id; waits until that accepts or refuses.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let (socket, address) = (socket()?, address(cid, port));
    // SAFETY: the address lives through the call and has the length that is given.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Listens on a port, for whoever may reach this machine.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let (socket, address) = (socket()?, address(libc::VMADDR_CID_ANY, port));
    // SAFETY: as in `connect`.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) } != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// Accepts a connection; whose it is, is not told, as only the host can reach a guest's ports.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let (fd, null) = (listener.as_fd().as_raw_fd(), std::ptr::null_mut());
    // SAFETY: accept4(2) allows a null address; the descriptor it returns is nobody else's.
    unsafe {
        match libc::accept4(fd, null, std::ptr::null_mut(), libc::SOCK_CLOEXEC) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
