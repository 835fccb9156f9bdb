//! Devices that are served beside QEMU, each on a thread of the monitor, by vhost-user.

use super::connect;
use super::monitor::GUEST_CID;
use crate::boot::SHARES_TAG;
use crate::container::step::Step;
use crate::hull::HullError;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use vmm::devices::fs::Fs;
use vmm::devices::vsock::Vsock;
use vmm::virtio::Device;

/// A device that waits for QEMU.
pub(super) struct Beside {
    name: &'static str,
    listener: UnixListener,
    device: Box<dyn Device>,
    /// Stays open as long.
    open: Option<OwnedFd>,
}

impl Beside {
    /// The virtual socket of a machine; QEMU's end of its connection comes with it.
    pub(super) fn vsock(dir: &Path) -> Result<(OwnedFd, Self), HullError> {
        let listener = connect::listen(dir, connect::VSOCK).step(|| "listen for the host".into())?;
        let (open, short) = connect::short(dir).step(|| "open the machine's directory".into())?;
        let device = Vsock::new(GUEST_CID, listener, short.join(connect::VSOCK));
        Self::new(dir, "vhost-vsock", Box::new(device.step(|| "make the vsock device".into())?), Some(open))
    }

    /// The host's directories, behind the socket of their server.
    pub(super) fn shares(dir: &Path, socket: OwnedFd) -> Result<(OwnedFd, Self), HullError> {
        let device =
            Fs::new(socket, SHARES_TAG).step(|| "make the device of the host's directories".into())?;
        Self::new(dir, "vhost-shares", Box::new(device), None)
    }

    fn new(
        dir: &Path,
        name: &'static str,
        device: Box<dyn Device>,
        open: Option<OwnedFd>,
    ) -> Result<(OwnedFd, Self), HullError> {
        let listener = connect::listen(dir, name).step(|| "listen for the hypervisor".into())?;
        let stream = connect::stream(dir, name).step(|| "connect to a device".into())?;
        Ok((stream.into(), Self { name, listener, device, open }))
    }

    /// Serves it until QEMU ends, which is waited for elsewhere.
    pub(super) fn serve(self) -> Result<(), HullError> {
        let Self { name, listener, device, open } = self;
        let serve = move || {
            let _open = open;
            let _ = vmm::vhost::serve(&listener, device);
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(serve);
        thread.map(drop).step(|| "start a thread".into())
    }
}
