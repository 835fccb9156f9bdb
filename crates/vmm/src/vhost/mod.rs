//! vhost-user: the virtual socket and the file system beside QEMU, where the host has no KVM that could be used.
//!
//! QEMU sends the guest's memory and queues over a Unix socket (`-chardev socket,id=vsock,path=…
//! -device vhost-user-vsock-device,chardev=vsock`, with memory that can be shared: `-object
//! memory-backend-memfd,id=mem,size=…,share=on -machine memory-backend=mem`) and keeps only the configuration of the
//! device to itself. One thread serves both QEMU's requests and the device.
//!
//! Source: <https://www.qemu.org/docs/master/interop/vhost-user.html>.

mod backend;

use crate::virtio::{Device, DeviceError, Interest};
use backend::Backend;
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error as Protocol};

/// Why the service of a device ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket.
    #[error("cannot serve QEMU on its vhost-user socket: {0}")]
    Socket(#[source] io::Error),
    /// QEMU spoke another language.
    #[error("QEMU's vhost-user request failed: {0}")]
    Protocol(#[source] Protocol),
    /// The device stopped.
    #[error("the device stopped: {0}")]
    Device(#[source] DeviceError),
}

/// Waits for QEMU on `listener` and serves it the device, until it disconnects.
pub fn serve(listener: &UnixListener, device: Box<dyn Device>) -> Result<(), ServeError> {
    let (stream, _) = listener.accept().map_err(ServeError::Socket)?;
    let socket = stream.as_raw_fd();
    let backend = Arc::new(Mutex::new(Backend::new(device)));
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&backend));
    loop {
        let interests = lock(&backend).interests();
        let mut fds = vec![poll_fd(&Interest { fd: socket, events: 1, token: 0 })];
        fds.extend(interests.iter().map(poll_fd));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(ServeError::Socket(e.into())),
            Ok(_) => {}
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let asked = ready.next().unwrap_or(false);
        for (interest, _) in interests.iter().zip(ready).filter(|(_, ready)| *ready) {
            lock(&backend).device.ready(interest.token, interest.events).map_err(ServeError::Device)?;
        }
        // Last, as a request may close what was waited for.
        if asked {
            match requests.handle_request() {
                Ok(()) => {}
                Err(Protocol::Disconnected | Protocol::PartialMessage | Protocol::SocketBroken(_)) => {
                    return Ok(());
                }
                Err(e) => return Err(ServeError::Protocol(e)),
            }
            lock(&backend).settle().map_err(ServeError::Device)?;
        }
    }
}

/// The only thread that takes this lock is ours.
fn lock(backend: &Mutex<Backend>) -> std::sync::MutexGuard<'_, Backend> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}

fn poll_fd(interest: &Interest) -> PollFd<'static> {
    let flags = PollFlags::from_bits_truncate(interest.events as u16);
    // SAFETY: the device and the handler of requests own these descriptors and live as long as the poll; neither is
    // called meanwhile.
    PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(interest.fd) }, flags)
}
