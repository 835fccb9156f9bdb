//! Reading a disk image in the format qcow2 of which nothing is believed: no other file is opened for it, no number in it is
//! used unchecked, and each of its clusters is read once. It knows nothing of volumes.
//!
//! Source: docs/interop/qcow2.txt of QEMU. All numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How an image begins.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// In an entry: the offset, the cluster is compressed, it is all zeros.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Features that an image may have been left with, and no other: it was not closed.
const DIRTY: u64 = 1;

/// What is wrong with an image.
fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// An image that is read.
pub struct Image<'a> {
    file: &'a File,
    length: u64,
    /// Bytes of the disk in it.
    pub size: u64,
    cluster: u64,
    l1: u64,
    l1_entries: u64,
    version: u64,
}

impl<'a> Image<'a> {
    /// Reads the header. An image that would lead to another file (a backing file, one with the data) is refused.
    pub fn open(file: &'a File, most: u64) -> io::Result<Self> {
        let mut header = [0; 104];
        let length = file.metadata()?.len();
        file.read_exact_at(header.get_mut(..72).unwrap_or_default(), 0)?;
        let number = |header: &[u8; 104], at: usize, bytes: usize| {
            header.get(at..at + bytes).into_iter().flatten().fold(0u64, |n, b| n << 8 | u64::from(*b))
        };
        let version = number(&header, 4, 4);
        if header.get(..4) != Some(&MAGIC[..]) || !(2..=3).contains(&version) {
            return Err(wrong("this is no qcow2 image of version 2 or 3"));
        }
        if version == 3 {
            file.read_exact_at(&mut header, 0)?;
        }
        if number(&header, 8, 8) != 0 {
            return Err(wrong("the image has a backing file, and no other file is read for an image"));
        }
        if number(&header, 32, 4) != 0 {
            return Err(wrong("the image is encrypted"));
        }
        if version == 3 && number(&header, 72, 8) & !DIRTY != 0 {
            return Err(wrong(
                "the image has features that are not supported: convert it with qemu-img convert",
            ));
        }
        let bits = number(&header, 20, 4);
        if !(9..=21).contains(&bits) {
            return Err(wrong("the image has clusters of an impossible size"));
        }
        let (cluster, size) = (1 << bits, number(&header, 24, 8));
        if size > most {
            return Err(wrong("the image's disk is larger than a disk volume can be"));
        }
        let (l1, l1_entries) = (number(&header, 40, 8), number(&header, 36, 4));
        if l1_entries < size.div_ceil(cluster * (cluster / 8)) {
            return Err(wrong("the image's table is too short for its disk"));
        }
        Ok(Self { file, length, size, cluster, l1, l1_entries, version })
    }

    /// Gives the clusters that hold something to `take`, with their offsets on the disk.
    pub fn read(&self, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let entries = self.cluster / 8;
        // What is in the image once is read once: a small one cannot stand for a large disk.
        let mut left = self.length / self.cluster;
        let mut buffer = vec![0; self.cluster as usize];
        let mut table = vec![0; self.cluster as usize];
        for n in 0..self.l1_entries.min(self.size.div_ceil(self.cluster * entries)) {
            let mut entry = [0; 8];
            let at = self.l1.checked_add(n * 8).ok_or_else(|| wrong("a table lies outside of the image"))?;
            self.file.read_exact_at(&mut entry, at)?;
            let offset = u64::from_be_bytes(entry) & OFFSET;
            if offset == 0 {
                continue;
            }
            self.cluster(offset, &mut table, &mut left)?;
            for (m, entry) in table.chunks_exact(8).enumerate() {
                let entry = entry.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
                let at = (n * entries + m as u64) * self.cluster;
                if entry & COMPRESSED != 0 {
                    return Err(wrong("the image is compressed: convert it with qemu-img convert -O qcow2"));
                }
                if at >= self.size || entry & OFFSET == 0 || (self.version == 3 && entry & ZERO != 0) {
                    continue;
                }
                self.cluster(entry & OFFSET, &mut buffer, &mut left)?;
                let length = (self.size - at).min(self.cluster) as usize;
                take(at, buffer.get(..length).unwrap_or(&buffer))?;
            }
        }
        Ok(())
    }

    fn cluster(&self, offset: u64, into: &mut [u8], left: &mut u64) -> io::Result<()> {
        if !offset.is_multiple_of(self.cluster) || offset >= self.length {
            return Err(wrong("a cluster lies outside of the image"));
        }
        *left = left
            .checked_sub(1)
            .ok_or_else(|| wrong("the image has clusters that are used more than once"))?;
        // The last one may be cut short.
        let length = (self.length - offset).min(self.cluster) as usize;
        let (piece, rest) = into.split_at_mut(length);
        rest.fill(0);
        self.file.read_exact_at(piece, offset)
    }
}
