//! Requests about what files and directories hold.

use super::nodes::{Identity, Kind, REGULAR};
use super::wire::{Header, Reader, Writer};
use super::{BENEATH, Done, MOST_DATA, Server, as_caller, as_plain, look};
use rustix::fs::{FallocateFlags, Mode, OFlags, RawDir, SeekFrom, openat2};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

/// FUSE_FSYNC_FDATASYNC: not the attributes.
const DATA_ONLY: u32 = 1;
/// FUSE_WRITE_CACHE: pages of a mapping, which belong where they are.
const FROM_CACHE: u32 = 1;
/// FUSE_WRITE_KILL_SUIDGID, FUSE_OPEN_KILL_SUIDGID: see [`as_plain`].
const PLAIN_WRITE: u32 = 1 << 2;
const PLAIN_OPEN: u32 = 1;
/// FOPEN_NOFLUSH: the driver does not tell when it is closed, which spares a request. Only for what has no mapping that was
/// written to; record locks of it are given back when nobody has it open any more.
const QUIET: u32 = 1 << 5;
/// Bytes of `struct fuse_entry_out`, and of `struct fuse_dirent` without its name.
const ENTRY: usize = 128;
const DIRENT: usize = 24;
/// What a directory is read in: at least an entry with the longest name, and no more than the guest asks for.
const LEAST_ENTRIES: usize = 1 << 10;
const MOST_ENTRIES: usize = 32 << 10;

/// Flags of the guest's open(2) that mean something here, and whether what is written goes to the end.
fn flags(guest: u32) -> (OFlags, bool) {
    let guest = OFlags::from_bits_retain(guest);
    (guest & (OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC), guest.contains(OFlags::APPEND))
}

impl Server {
    /// Opens a regular file, and nothing else, which might wait, or be a device.
    pub(super) fn open_regular(&self, node: u64, flags: OFlags) -> Done<OwnedFd> {
        let place = self.nodes().place(node)?;
        if place.identity.is(REGULAR) { self.open_at(&place, flags) } else { Err(Errno::INVAL) }
    }

    /// `struct fuse_open_out`.
    fn keep(&self, node: u64, fd: OwnedFd, kind: Kind, flags: u32, to: &mut Writer) -> Done {
        let handle = self.nodes().open(node, fd, kind)?;
        to.u64(handle).u32(flags).u32(0);
        Ok(())
    }

    pub(super) fn open(&self, node: u64, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let ((flags, append), plain) = (flags(from.u32()?), from.u32()? & PLAIN_OPEN != 0);
        // Emptied once it is known to be the file that is meant.
        let fd = self.open_regular(node, flags - OFlags::TRUNC)?;
        let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
        if flags.contains(OFlags::TRUNC) {
            let other = if reads { Some(self.open_regular(node, OFlags::WRONLY)?) } else { None };
            as_plain(plain, || rustix::fs::ftruncate(other.as_ref().unwrap_or(&fd), 0))?;
        }
        self.keep(node, fd, Kind::File { append }, if reads { QUIET } else { 0 }, to)
    }

    pub(super) fn create(&self, header: &Header, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let (guest, mode, _umask) = (from.u32()?, from.u32()?, from.u32()?);
        let plain = from.u32()? & PLAIN_OPEN != 0;
        let name = from.name()?;
        let directory = self.directory(header.node)?;
        let (flags, append) = flags(guest);
        let only_new = OFlags::from_bits_retain(guest) & OFlags::EXCL;
        // What unpacks, copies and checks out makes its files like this, each to be written once.
        let new = !only_new.is_empty() && flags & OFlags::RWMODE == OFlags::WRONLY;
        let quiet = if new { QUIET } else { 0 };
        // As for any open; what is there already may be anything.
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let flags = flags | only_new | careful | OFlags::CREATE;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let fd = as_plain(plain, || as_caller(header, || openat2(&directory, name, flags, mode, BENEATH)))?;
        let made = Identity::of(&look(&fd)?);
        if !made.is(REGULAR) {
            return Err(Errno::INVAL);
        }
        let node = self.entry(header.node, directory.as_fd(), name, to)?;
        let found = self.nodes().place(node)?.identity;
        let kept = match found == made {
            true => self.keep(node, fd, Kind::File { append }, quiet, to),
            false => Err(Errno::STALE),
        };
        kept.inspect_err(|_| self.nodes().forget(node, 1))
    }

    pub(super) fn read(&self, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let (handle, offset, size) = (from.u64()?, from.u64()?, from.u32()?);
        let file = self.nodes().file(handle)?;
        to.fill((size as usize).min(MOST_DATA), |buffer| rustix::io::pread(&file.fd, buffer, offset))
    }

    pub(super) fn write(&self, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let (handle, offset, size, flags) = (from.u64()?, from.u64()?, from.u32()?, from.u32()?);
        from.skip(16)?;
        let data = from.bytes(size as usize)?;
        let file = self.nodes().file(handle)?;
        let written = as_plain(flags & PLAIN_WRITE != 0, || match file.kind {
            Kind::File { append: true } if flags & FROM_CACHE == 0 => {
                rustix::io::pwritev2(&file.fd, &[IoSlice::new(data)], offset, ReadWriteFlags::APPEND)
            }
            _ => rustix::io::pwrite(&file.fd, data, offset),
        })?;
        // No more than `size`.
        to.u32(written as u32).u32(0);
        Ok(())
    }

    pub(super) fn sync(&self, from: &mut Reader<'_>, directory: bool) -> Done {
        let (handle, flags) = (from.u64()?, from.u32()?);
        let handle = match directory {
            true => self.nodes().directory(handle)?.0,
            false => self.nodes().file(handle)?,
        };
        match flags & DATA_ONLY {
            0 => rustix::fs::fsync(&handle.fd),
            _ => rustix::fs::fdatasync(&handle.fd),
        }
    }

    pub(super) fn allocate(&self, from: &mut Reader<'_>) -> Done {
        let (handle, offset, length, mode) = (from.u64()?, from.u64()?, from.u64()?, from.u32()?);
        let mode = FallocateFlags::from_bits_retain(mode);
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.nodes().file(handle)?;
        rustix::fs::fallocate(&file.fd, mode, offset, length)
    }

    /// The next data or hole; the guest keeps positions by itself.
    pub(super) fn seek(&self, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let (handle, offset, whence) = (from.u64()?, from.u64()?, from.u32()?);
        let offset = i64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let file = self.nodes().file(handle)?;
        let position = match whence {
            SEEK_DATA => SeekFrom::Data(offset as _),
            SEEK_HOLE => SeekFrom::Hole(offset as _),
            _ => return Err(Errno::INVAL),
        };
        to.u64(rustix::fs::seek(&file.fd, position)?);
        Ok(())
    }

    pub(super) fn open_directory(&self, node: u64, to: &mut Writer) -> Done {
        let fd = self.open_as(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.keep(node, fd, Kind::Directory, 0, to)
    }

    /// `struct fuse_dirent` for each entry; with `plus`, `struct fuse_direntplus`, which is a LOOKUP of it, too.
    pub(super) fn read_directory(&self, from: &mut Reader<'_>, to: &mut Writer, plus: bool) -> Done {
        let (handle, offset, size) = (from.u64()?, from.u64()?, from.u32()? as usize);
        let (handle, node) = self.nodes().directory(handle)?;
        let most = size.min(MOST_DATA);
        rustix::fs::seek(&handle.fd, SeekFrom::Start(offset))?;
        let mut buffer = Vec::with_capacity(most.clamp(LEAST_ENTRIES, MOST_ENTRIES));
        loop {
            let mut entries = RawDir::new(&handle.fd, buffer.spare_capacity_mut());
            let mut any = false;
            while let Some(entry) = entries.next() {
                let entry = entry?;
                any = true;
                let name = entry.file_name().to_bytes();
                let length = DIRENT + name.len().next_multiple_of(8) + if plus { ENTRY } else { 0 };
                if to.body() + length > most {
                    return Ok(());
                }
                if plus {
                    self.plus(node, &handle.fd, name, to);
                }
                to.u64(entry.ino().max(1)).u64(entry.next_entry_cookie()).u32(name.len() as u32);
                // DT_DIR and its kind: the upper bits of a mode.
                to.u32(entry.file_type().as_raw_mode() >> 12).bytes(name);
                to.zeros(name.len().next_multiple_of(8) - name.len());
                if entries.is_buffer_empty() {
                    break;
                }
            }
            if !any {
                return Ok(());
            }
        }
    }

    /// What LOOKUP would say, or that the guest shall ask when it wants to know: it knows itself what `.` and `..` are.
    fn plus(&self, node: u64, directory: &OwnedFd, name: &[u8], to: &mut Writer) {
        let start = to.body();
        if matches!(name, b"." | b"..") || self.entry(node, directory.as_fd(), name, to).is_err() {
            to.zeros(start + ENTRY - to.body());
        }
    }
}

/// lseek(2).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
