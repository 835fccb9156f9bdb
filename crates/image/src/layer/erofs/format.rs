//! The on-disk format of EROFS, as far as it is written here: uncompressed, 4096-byte blocks, extended inodes.
//!
//! Source: Linux `fs/erofs/erofs_fs.h` and Documentation/filesystems/erofs.rst. All numbers are little-endian.

use super::super::tar::{Meta, Xattrs};
use super::super::tree::Mark;

/// Size of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Offset of the superblock.
pub(crate) const SUPER_OFFSET: u64 = 1024;
/// Inodes are numbered in units of this many bytes.
pub(crate) const SLOT: u64 = 32;
/// Size of an extended inode.
pub(crate) const INODE: u64 = 64;
/// Address of a hole.
pub(crate) const HOLE: u32 = u32::MAX;

const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock carries a CRC-32C.
const COMPAT_SB_CHKSUM: u32 = 1;
/// Inodes carry mtime rather than ctime.
const COMPAT_MTIME: u32 = 2;
/// Some files are in chunks (Linux 5.15).
const INCOMPAT_CHUNKED: u32 = 4;

pub(crate) const S_IFIFO: u16 = 0o010_000;
pub(crate) const S_IFCHR: u16 = 0o020_000;
pub(crate) const S_IFDIR: u16 = 0o040_000;
pub(crate) const S_IFBLK: u16 = 0o060_000;
pub(crate) const S_IFREG: u16 = 0o100_000;
pub(crate) const S_IFLNK: u16 = 0o120_000;

/// How the content of an inode is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In consecutive blocks.
    Plain = 0,
    /// As `Plain`, the last, partial block right behind the inode.
    Inline = 2,
    /// By a table of chunk addresses behind the inode.
    Chunked = 4,
}

/// What goes into the superblock.
#[derive(Debug)]
pub(crate) struct Super {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub chunked: bool,
    pub uuid: [u8; 16],
    /// With a NUL at its end, as Linux 5.10 insists.
    pub volume: [u8; 16],
}

impl Super {
    /// The first block from the superblock on; what lies behind it in `block0` is part of the checksum.
    pub(crate) fn write(&self, block0: &mut [u8]) {
        let mut sb = Vec::with_capacity(128);
        sb.extend(MAGIC.to_le_bytes());
        sb.extend([0; 4]); // checksum, below
        sb.extend((COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        sb.push(12); // block size, as a power of two
        sb.push(0);
        sb.extend(self.root_nid.to_le_bytes());
        sb.extend(self.inodes.to_le_bytes());
        sb.extend([0; 12]); // build time: the same tar gives the same file
        sb.extend(self.blocks.to_le_bytes());
        sb.extend([0; 8]); // inodes are numbered from the start of the file; no shared xattrs
        sb.extend(self.uuid);
        sb.extend(self.volume);
        sb.extend(if self.chunked { INCOMPAT_CHUNKED } else { 0 }.to_le_bytes());
        sb.resize(128, 0);
        let from = SUPER_OFFSET as usize;
        block0[from..from + 128].copy_from_slice(&sb);
        let sum = crc32c(&block0[from..BLOCK as usize]);
        block0[from + 4..from + 8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads back the UUID, the volume name and the number of blocks from the 128 bytes at [`SUPER_OFFSET`].
    pub(crate) fn read(sb: &[u8; 128]) -> Option<([u8; 16], [u8; 16], u32)> {
        let array = |at: usize| sb.get(at..at + 16).and_then(|s| <[u8; 16]>::try_from(s).ok());
        let word = |at: usize| sb.get(at..at + 4).and_then(|s| Some(u32::from_le_bytes(s.try_into().ok()?)));
        (word(0)? == MAGIC).then_some(())?;
        Some((array(48)?, array(64)?, word(36)?))
    }
}

/// CRC-32C without the final inversion, as the kernel's `crc32c(~0, …)`.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(c & 1)))
    })
}

/// An inode, to be encoded.
#[derive(Debug)]
pub(crate) struct RawInode<'a> {
    pub layout: Layout,
    /// Type bits of the mode.
    pub kind: u16,
    pub meta: &'a Meta,
    pub size: u64,
    /// Block address, device number or chunk format.
    pub union: u32,
    pub ino: u32,
    pub links: u32,
}

/// Offset of the number of links in an inode.
pub(crate) const LINKS_OFFSET: u64 = 44;

impl RawInode<'_> {
    /// Appends the inode and `xattrs` (from [`xattrs`]).
    pub(crate) fn write(&self, xattrs: &[u8], out: &mut Vec<u8>) {
        // i_xattr_icount counts four-byte units behind the header of twelve bytes, plus one.
        let icount = if xattrs.is_empty() { 0 } else { (xattrs.len() - 12) / 4 + 1 };
        out.extend((1 | (self.layout as u16) << 1).to_le_bytes());
        out.extend((icount as u16).to_le_bytes());
        out.extend((self.kind | self.meta.mode).to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.size.to_le_bytes());
        out.extend(self.union.to_le_bytes());
        out.extend(self.ino.to_le_bytes());
        out.extend(self.meta.uid.to_le_bytes());
        out.extend(self.meta.gid.to_le_bytes());
        out.extend(self.meta.mtime.to_le_bytes());
        out.extend(self.meta.nanos.to_le_bytes());
        out.extend(self.links.to_le_bytes());
        out.extend([0; 16]);
        out.extend(xattrs);
    }
}

/// The inline xattr area of an inode: nothing, or a header and entries, each padded to four bytes.
/// `marks` are more of them, our own. `None` if EROFS cannot hold that much.
pub(crate) fn xattrs(xattrs: &Xattrs, marks: &[Mark]) -> Option<Vec<u8>> {
    if xattrs.is_empty() && marks.is_empty() {
        return Some(Vec::new());
    }
    let mut out = vec![0; 12];
    let own = marks.iter().map(|(name, value)| (name.as_bytes(), *value));
    for (name, value) in xattrs.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).chain(own) {
        let (index, rest) = prefix(name)?;
        out.push(u8::try_from(rest.len()).ok()?);
        out.push(index);
        out.extend(u16::try_from(value.len()).ok()?.to_le_bytes());
        out.extend(rest);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    u16::try_from((out.len() - 12) / 4 + 1).ok().map(|_| out)
}

fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
        .into_iter()
        .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
}

/// A device number, as `new_encode_dev` of Linux makes it.
pub(crate) fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// Type of a name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileType {
    Regular = 1,
    Dir = 2,
    Char = 3,
    Block = 4,
    Fifo = 5,
    Symlink = 7,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub kind: FileType,
}

/// Splits sorted names into blocks: how many names go into each, and how many bytes the last one uses.
pub(crate) fn split<'a>(names: impl Iterator<Item = &'a [u8]>) -> (Vec<usize>, usize) {
    let (mut counts, mut count, mut used) = (Vec::new(), 0, 0);
    for name in names {
        let need = 12 + name.len();
        if used + need > BLOCK as usize {
            counts.push(count);
            (count, used) = (0, 0);
        }
        count += 1;
        used += need;
    }
    counts.push(count);
    (counts, used)
}

/// Appends one directory block: entries, then names.
pub(crate) fn dir_block(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut at = entries.len() * 12;
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        out.extend((at as u16).to_le_bytes());
        out.extend([entry.kind as u8, 0]);
        at += entry.name.len();
    }
    entries.iter().for_each(|entry| out.extend(entry.name));
}

/// Where metadata of `head` bytes (inode, xattrs, table) and `tail` bytes of inline content may start at or after
/// `at`: an inode must not cross a block, and neither may inline content.
pub(crate) fn fit(at: u64, head: u64, tail: u64) -> u64 {
    let at = at.next_multiple_of(SLOT);
    let crosses = |at: u64| at % BLOCK + INODE > BLOCK || (tail > 0 && (at + head) % BLOCK + tail > BLOCK);
    if crosses(at) { at.next_multiple_of(BLOCK) } else { at }
}

/// Whether `tail` bytes of content are better kept behind their inode than in a block of their own.
pub(crate) fn inline(at: u64, head: u64, tail: u64) -> bool {
    if tail == 0 || head % BLOCK + tail > BLOCK {
        return false;
    }
    let at = at.next_multiple_of(SLOT);
    fit(at, head, tail) - at <= BLOCK - tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_castagnoli() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn devices() {
        assert_eq!(device(8, 1), 0x801);
        assert_eq!(device(0x123, 0x45678), 0x4561_2378);
    }

    #[test]
    fn content_behind_an_inode_stays_in_its_block() {
        for at in (0..9000).step_by(7) {
            for head in [64, 76, 200, 4000, 4096, 5000] {
                for tail in [1, 100, 3000, 4032, 4095] {
                    if inline(at, head, tail) {
                        let there = fit(at, head, tail);
                        assert!(there >= at && there.is_multiple_of(SLOT));
                        assert!((there + head) % BLOCK + tail <= BLOCK, "{at} {head} {tail}");
                    }
                }
            }
        }
    }
}
