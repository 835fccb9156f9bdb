//! What is behind a virtual disk: a file, or files as the partitions of a table that is nowhere written.
//!
//! Data moves between guest memory and the files without a copy.

use crate::gpt::{Layout, SECTOR};
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::iter;
use std::ops::Range;
use std::os::fd::AsRawFd;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// A virtual disk's content.
pub enum Storage {
    /// A raw file or block device; the guest's sectors are its own.
    Raw {
        /// It.
        file: File,
        /// Its size in bytes when it was opened, or looked at last, rounded down to whole sectors.
        size: u64,
    },
    /// Read-only files behind a partition table.
    Partitions {
        /// Where they lie.
        layout: Layout,
        /// They.
        files: Vec<File>,
    },
}

/// A stretch of a disk of partitions.
enum Extent<'a> {
    Bytes(&'a [u8]),
    File(&'a File, u64),
    Zeros,
}

impl Storage {
    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw { size, .. } => *size,
            Self::Partitions { layout, .. } => layout.size,
        }
    }

    /// Takes the size anew from a file that has become longer; false if it is not one file. It never becomes shorter.
    pub fn take_size(&mut self) -> io::Result<bool> {
        let Self::Raw { file, size } = self else { return Ok(false) };
        let now = file.seek(SeekFrom::End(0))?;
        *size = (*size).max(now - now % SECTOR);
        Ok(true)
    }

    /// Reads from the disk into guest memory.
    pub fn read<'m>(&self, into: impl Iterator<Item = VolatileSlice<'m>>, offset: u64) -> io::Result<()> {
        match self {
            Self::Raw { file, .. } => transfer(file, into, offset, Direction::ToGuest),
            Self::Partitions { layout, files } => read_partitions(layout, files, into, offset),
        }
    }

    /// Writes guest memory to the disk.
    pub fn write<'m>(&self, from: impl Iterator<Item = VolatileSlice<'m>>, offset: u64) -> io::Result<()> {
        transfer(self.raw()?, from, offset, Direction::ToFile)
    }

    /// Has what was written survive a loss of power.
    pub fn flush(&self) -> io::Result<()> {
        match self {
            Self::Raw { file, .. } => file.sync_data(),
            Self::Partitions { .. } => Ok(()),
        }
    }

    /// The content of this range is no longer needed: gives its room back to the host where it can.
    pub fn discard(&self, range: Range<u64>) -> io::Result<()> {
        match punch(self.raw()?, &range) {
            Err(e) if unsupported(&e) => Ok(()),
            other => other,
        }
    }

    /// Has this range read as zeros; `unmap` allows to give its room back.
    pub fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        let file = self.raw()?;
        let zeroed = match unmap {
            true => punch(file, &range),
            false => fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, &range),
        };
        match zeroed {
            Err(e) if unsupported(&e) => write_zeros(file, range),
            other => other,
        }
    }

    fn raw(&self) -> io::Result<&File> {
        match self {
            Self::Raw { file, .. } => Ok(file),
            Self::Partitions { .. } => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }
}

fn unsupported(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EOPNOTSUPP)
}

fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
}

fn fallocate(file: &File, flags: FallocateFlags, range: &Range<u64>) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, flags, range.start, range.end.saturating_sub(range.start))?)
}

fn write_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let now = (range.end - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..now as usize], at)?;
        at += now;
    }
    Ok(())
}

fn read_partitions<'m>(
    layout: &Layout,
    files: &[File],
    slices: impl Iterator<Item = VolatileSlice<'m>>,
    mut offset: u64,
) -> io::Result<()> {
    for mut slice in slices {
        while !slice.is_empty() {
            let (extent, left) = extent(layout, files, offset);
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(slice.len());
            let part = slice.subslice(0, now).map_err(io::Error::other)?;
            match extent {
                Extent::Bytes(bytes) => part.copy_from(&bytes[..now]),
                Extent::Zeros => fill_zero(&part),
                Extent::File(file, at) => transfer(file, iter::once(part), at, Direction::ToGuest)?,
            }
            slice = slice.offset(now).map_err(io::Error::other)?;
            offset += now as u64;
        }
    }
    Ok(())
}

/// What lies at this offset, and how many bytes of it follow (at least 1).
fn extent<'a>(layout: &'a Layout, files: &'a [File], offset: u64) -> (Extent<'a>, u64) {
    if let Some(bytes) = layout.head.get(offset as usize..).filter(|bytes| !bytes.is_empty()) {
        return (Extent::Bytes(bytes), bytes.len() as u64);
    }
    if let Some(into) = offset.checked_sub(layout.tail_offset()) {
        return match layout.tail.get(into as usize..).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => (Extent::Bytes(bytes), bytes.len() as u64),
            None => (Extent::Zeros, u64::MAX),
        };
    }
    // the last partition that begins at or before the offset
    let following = layout.partitions.partition_point(|partition| partition.offset <= offset);
    if let Some(index) = following.checked_sub(1) {
        let partition = layout.partitions[index];
        let into = offset - partition.offset;
        if let (true, Some(file)) = (into < partition.size, files.get(index)) {
            return (Extent::File(file, into), partition.size - into);
        }
    }
    let next = layout.partitions.get(following).map_or(layout.tail_offset(), |partition| partition.offset);
    (Extent::Zeros, next - offset)
}

fn fill_zero<B: BitmapSlice>(slice: &VolatileSlice<B>) {
    let mut at = 0;
    static ZEROS: [u8; 4096] = [0; 4096];
    while let Ok(rest) = slice.offset(at)
        && !rest.is_empty()
    {
        let now = rest.len().min(ZEROS.len());
        rest.copy_from(&ZEROS[..now]);
        at += now;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToGuest,
    ToFile,
}

/// Most that one call takes (limits.h).
const IOV_MAX: usize = 1024;

/// Moves all bytes. The end of the file before them is an error: the file shrank.
fn transfer<'m>(
    file: &File,
    slices: impl Iterator<Item = VolatileSlice<'m>>,
    mut offset: u64,
    direction: Direction,
) -> io::Result<()> {
    let mut vectors: Vec<libc::iovec> = slices
        .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
        .collect();
    let mut rest = &mut vectors[..];
    while !rest.is_empty() {
        let count = rest.len().min(IOV_MAX) as libc::c_int;
        let at = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the vectors describe guest memory, which stays mapped during 'm. That other
        // threads and the guest may access it at the same time is the kernel's business: it copies bytes.
        let done = unsafe {
            match direction {
                Direction::ToGuest => libc::preadv(file.as_raw_fd(), rest.as_ptr(), count, at),
                Direction::ToFile => libc::pwritev(file.as_raw_fd(), rest.as_ptr(), count, at),
            }
        };
        match done {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n if n < 0 => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            },
            n => {
                offset += n as u64;
                rest = advance(rest, n as usize);
            }
        }
    }
    Ok(())
}

/// What is left of vectors after `done` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let [first, ..] = vectors
        && first.iov_len <= done
    {
        done -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    if let Some(first) = vectors.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(done);
        first.iov_len -= done;
    }
    vectors
}
