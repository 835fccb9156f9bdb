//! Orders to a mounted file system, by any descriptor in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `FIFREEZE` and `FITHAW` of `<linux/fs.h>`, `EXT4_IOC_RESIZE_FS` of fs/ext4/ext4.h.
const FIFREEZE: libc::Ioctl = ior_w(b'X', 119, 4);
const FITHAW: libc::Ioctl = ior_w(b'X', 120, 4);
const EXT4_IOC_RESIZE_FS: libc::Ioctl = iow(b'f', 16, 8);

/// `_IOWR` of `<asm-generic/ioctl.h>`.
const fn ior_w(kind: u8, number: u8, size: u32) -> libc::Ioctl {
    ((3 << 30) | (size << 16) | ((kind as u32) << 8) | number as u32) as libc::Ioctl
}

/// `_IOW` of the same.
const fn iow(kind: u8, number: u8, size: u32) -> libc::Ioctl {
    ((1 << 30) | (size << 16) | ((kind as u32) << 8) | number as u32) as libc::Ioctl
}

/// Writes everything out and holds back whoever writes, until [`thaw`]. `EBUSY` if it is frozen already.
pub fn freeze(file: impl AsFd) -> io::Result<()> {
    number(file, FIFREEZE)
}

/// Lets writers go on. `EINVAL` if it was not frozen.
pub fn thaw(file: impl AsFd) -> io::Result<()> {
    number(file, FITHAW)
}

/// Lets a mounted ext4 grow to so many blocks of its own block size, while it is used.
pub fn grow_ext4(file: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the ioctl reads a 64-bit number that outlives the call; the descriptor is open.
    match unsafe { libc::ioctl(file.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn number(file: impl AsFd, what: libc::Ioctl) -> io::Result<()> {
    // SAFETY: both take an argument that the kernel does not use; the descriptor is open.
    match unsafe { libc::ioctl(file.as_fd().as_raw_fd(), what, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_kernels() {
        assert_eq!(FIFREEZE as u32, 0xC004_5877);
        assert_eq!(FITHAW as u32, 0xC004_5878);
        assert_eq!(EXT4_IOC_RESIZE_FS as u32, 0x4008_6610);
    }
}
