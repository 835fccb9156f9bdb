//! Loop devices (`loop(4)`): for kernels that mount EROFS from block devices only (before 6.12), and for disks that are
//! files.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of `<linux/loop.h>`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `<linux/loop.h>`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// A loop device that shows one file. It frees itself when its last user, this handle or a mount, is gone
/// (`LO_FLAGS_AUTOCLEAR`), and until then it keeps the file's open description: a `flock(2)` on that is held as long.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: OwnedFd,
}

impl LoopDevice {
    /// Attaches a free device to `backing`, read-only, past the page cache where the file system allows.
    pub fn attach(backing: impl AsFd) -> io::Result<Self> {
        Self::attach_as(backing, false)
    }

    /// The same; with `writable` what is written goes to the file, which must be open for that.
    pub fn attach_as(backing: impl AsFd, writable: bool) -> io::Result<Self> {
        let backing = backing.as_fd();
        let read_only = if writable { 0 } else { LO_FLAGS_READ_ONLY };
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty())?;
        // Between asking for a free device and configuring it another process may take it: EBUSY.
        for _ in 0..256 {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
            let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let device = rustix::fs::open(&path, flags, Mode::empty())?;
            let direct = read_only | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
            let outcome = match configure(&device, backing.as_raw_fd() as u32, direct) {
                Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    configure(&device, backing.as_raw_fd() as u32, direct & !LO_FLAGS_DIRECT_IO)
                }
                other => other,
            };
            match outcome {
                Ok(()) => {
                    buffer_if_needed(&device);
                    return Ok(Self { path, device });
                }
                Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => continue,
                Err(e) => return Err(e),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// The device with this number that is attached already: `/dev/loop<minor>`.
    pub fn of(minor: u32) -> io::Result<Self> {
        let path = PathBuf::from(format!("/dev/loop{minor}"));
        let device =
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { path, device })
    }

    /// Takes the size anew from a file that has grown.
    pub fn take_size(&self) -> io::Result<()> {
        // SAFETY: LOOP_SET_CAPACITY takes no argument that is used; the descriptor is open.
        match unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_CAPACITY, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Bytes that it has.
    pub fn size(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.device, rustix::fs::SeekFrom::End(0))?)
    }

    /// The device node, to be mounted while this handle lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Some file systems take direct I/O and then fail each read (overlayfs, before Linux 6.6 or so): those are read through
/// the page cache.
fn buffer_if_needed(device: &OwnedFd) {
    let mut first = [0; 4096];
    if rustix::io::pread(device, &mut first, 0).is_err() {
        // SAFETY: LOOP_SET_DIRECT_IO takes a number; the descriptor is open. What it cannot do, the mount will tell.
        let _ = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_DIRECT_IO, 0) };
    }
}

fn configure(device: &OwnedFd, fd: u32, flags: u32) -> io::Result<()> {
    let info = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: `config` has the layout the kernel reads and outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
