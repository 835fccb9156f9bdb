//! The host's end of a network interface: a tap, read and written by packets straight from and to guest memory.
//!
//! Source: Linux, Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use vm_memory::VolatileSlice;

/// `struct virtio_net_hdr_v1`, before every packet in both directions (VIRTIO 1.2, 5.1.6).
pub const HEADER: usize = 12;

/// `_IOW('T', 208, unsigned int)`, include/uapi/linux/if_tun.h.
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
/// `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8_u32 as libc::Ioctl;

/// Packets may come without a checksum.
pub const OFFLOAD_CSUM: u32 = 1;
/// Segments of TCP over IPv4 may come joined.
pub const OFFLOAD_TSO4: u32 = 2;
/// The same over IPv6.
pub const OFFLOAD_TSO6: u32 = 4;

/// Pieces of one packet.
#[derive(Default)]
pub struct Pieces(Vec<libc::iovec>);

// SAFETY: the pointers are used only in the call that follows their collection; between calls the list is empty.
unsafe impl Send for Pieces {}

impl Pieces {
    /// Adds guest memory; the guest may change it at any time, and the kernel copies it once.
    pub fn add(&mut self, slice: &VolatileSlice) {
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        self.0.push(libc::iovec { iov_base, iov_len: slice.len() });
    }

    /// Adds a buffer of ours.
    pub fn add_own(&mut self, buffer: &mut [u8]) {
        self.0.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
    }
}

/// The tap.
pub struct Tap {
    fd: OwnedFd,
    offloads: bool,
}

impl Tap {
    /// A tap that was opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let size = HEADER as libc::c_int;
        // SAFETY: the kernel reads an int.
        if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, offloads: true })
    }

    /// A datagram socket in place of a tap: each datagram is a packet with its header. There is nobody at its other end
    /// who could be told which offloads the guest takes; for tests.
    pub fn datagrams(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, offloads: false })
    }

    /// What the guest takes ([`OFFLOAD_CSUM`] and others).
    pub fn offload(&self, flags: u32) -> io::Result<()> {
        if !self.offloads {
            return Ok(());
        }
        // SAFETY: the kernel takes the flags by value.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads a packet; its length, which is cut off where the pieces end. Empties the list.
    ///
    /// # Safety
    ///
    /// What the pieces point to must still be mapped, and nobody may hold a reference to it.
    pub unsafe fn read(&self, pieces: &mut Pieces) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        let n = unsafe { libc::readv(self.fd.as_raw_fd(), pieces.0.as_ptr(), count(&pieces.0)) };
        pieces.0.clear();
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes a packet. Empties the list.
    ///
    /// # Safety
    ///
    /// What the pieces point to must still be mapped.
    pub unsafe fn write(&self, pieces: &mut Pieces) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        let n = unsafe { libc::writev(self.fd.as_raw_fd(), pieces.0.as_ptr(), count(&pieces.0)) };
        pieces.0.clear();
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}

/// More than IOV_MAX the kernel refuses with EINVAL, and the packet is lost.
fn count(pieces: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX)
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
