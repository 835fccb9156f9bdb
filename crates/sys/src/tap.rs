//! Tap devices: Ethernet interfaces whose other end is a descriptor. Source: the kernel's networking/tuntap.rst.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Length of the header before each packet: `struct virtio_net_hdr` of virtio 1.0, with `num_buffers`.
static HEADER: libc::c_int = 12;

/// Makes a tap device in this network namespace; it is gone when its descriptor is. Each packet comes with a virtio
/// header, so that segmentation and checksums can be left to whoever is last (`IFF_VNET_HDR`).
pub fn open(name: &str) -> io::Result<OwnedFd> {
    // SAFETY: zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= libc::IFNAMSIZ || name.as_bytes().contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = openat(CWD, "/dev/net/tun", flags, Mode::empty())?;
    set_up(tap, request)
}

/// Sets the device of a macvtap link up in the same way.
pub fn adopt(tap: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    set_up(tap, request)
}

fn set_up(tap: OwnedFd, mut request: libc::ifreq) -> io::Result<OwnedFd> {
    // SAFETY: TUNSETIFF reads and writes an ifreq, TUNSETVNETHDRSZ reads an int; both live through the calls.
    unsafe {
        if libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) < 0
            || libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as libc::Ioctl, &raw const HEADER) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(tap)
}
