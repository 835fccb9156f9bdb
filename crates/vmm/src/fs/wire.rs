//! The FUSE protocol's messages: the driver's are read, ours are written, all in the machine's byte order, which is little
//! endian on all that this program runs on.
//!
//! Source: the kernel's include/uapi/linux/fuse.h, version 7.33.

use rustix::fs::{StatVfs, Statx};
use rustix::io::Errno;

/// The version that is spoken.
pub const MAJOR: u32 = 7;
/// See [`MAJOR`]; a driver that is newer uses no more than this.
pub const MINOR: u32 = 33;
/// Bytes of an answer's header.
pub const OUT_HEADER: usize = 16;
/// The root's node.
pub const ROOT: u64 = 1;

/// Numbers of requests.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
}

/// Flags of INIT.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const POSIX_LOCKS: u32 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const FLOCK_LOCKS: u32 = 1 << 10;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// What SETATTR sets.
pub mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const HANDLE: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// The header of a request.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
}

/// A request's bytes, read from the front. What is not there is EINVAL.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?))
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        let bytes = self.bytes(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?))
    }

    /// Text up to a NUL, which must be there; not empty.
    pub fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).filter(|end| *end > 0).ok_or(Errno::INVAL)?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        Ok(text)
    }

    /// The name of an entry of a directory: one component of a path that leads down.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        match self.text()? {
            b"." | b".." => Err(Errno::INVAL),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name if name.len() > 255 => Err(Errno::NAMETOOLONG),
            name => Ok(name),
        }
    }

    /// Passes over so many bytes.
    pub fn skip(&mut self, count: usize) -> Result<(), Errno> {
        self.bytes(count).map(drop)
    }

    /// The header, whose length must be that of the whole request.
    pub fn header(&mut self) -> Result<Header, Errno> {
        let total = self.0.len();
        let length = self.u32()?;
        let header = Header {
            opcode: self.u32()?,
            unique: self.u64()?,
            node: self.u64()?,
            uid: self.u32()?,
            gid: self.u32()?,
        };
        // The caller's pid, and what later versions have there.
        self.skip(8)?;
        if length as usize == total { Ok(header) } else { Err(Errno::INVAL) }
    }
}

/// An answer, written from the front; its header comes last.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An answer of no more than a header so far.
    pub fn new() -> Self {
        Self(vec![0; OUT_HEADER])
    }

    /// Bytes after the header.
    pub fn body(&self) -> usize {
        self.0.len().saturating_sub(OUT_HEADER)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// Makes room for `count` bytes, which `fill` fills as far as it says.
    pub fn fill(
        &mut self,
        count: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let start = self.0.len();
        self.zeros(count);
        let filled = fill(self.0.get_mut(start..).unwrap_or_default())?;
        self.0.truncate(start + filled.min(count));
        Ok(())
    }

    /// `struct fuse_attr`.
    pub fn attributes(&mut self, inode: u64, found: &Statx) -> &mut Self {
        let seconds = |time: &rustix::fs::StatxTimestamp| time.tv_sec as u64;
        self.u64(inode).u64(found.stx_size).u64(found.stx_blocks);
        self.u64(seconds(&found.stx_atime)).u64(seconds(&found.stx_mtime)).u64(seconds(&found.stx_ctime));
        self.u32(found.stx_atime.tv_nsec).u32(found.stx_mtime.tv_nsec).u32(found.stx_ctime.tv_nsec);
        self.u32(u32::from(found.stx_mode)).u32(found.stx_nlink).u32(found.stx_uid).u32(found.stx_gid);
        // The numbers of devices as the driver's new_decode_dev has them.
        let (major, minor) = (found.stx_rdev_major, found.stx_rdev_minor);
        self.u32(minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12);
        self.u32(found.stx_blksize).u32(0)
    }

    /// `struct fuse_kstatfs`.
    pub fn statfs(&mut self, found: &StatVfs) -> &mut Self {
        self.u64(found.f_blocks).u64(found.f_bfree).u64(found.f_bavail).u64(found.f_files).u64(found.f_ffree);
        self.u32(found.f_bsize as u32).u32(found.f_namemax as u32).u32(found.f_frsize as u32);
        self.u32(0).zeros(24)
    }

    /// The whole answer.
    pub fn finish(mut self, unique: u64) -> Vec<u8> {
        // Never more than the largest read and its entries.
        let length = self.0.len() as u32;
        let header = [&length.to_le_bytes()[..], &0u32.to_le_bytes(), &unique.to_le_bytes()].concat();
        self.0.splice(..OUT_HEADER, header);
        self.0
    }
}

/// An answer that says what went wrong.
pub fn refusal(unique: u64, error: Errno) -> Vec<u8> {
    let error = -error.raw_os_error();
    [&(OUT_HEADER as u32).to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat()
}
