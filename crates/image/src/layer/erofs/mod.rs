//! Writes a layer as one EROFS file while its tar streams by.
//!
//! ```text
//! block 0      superblock and the root directory's inode
//! then, as it comes:
//!   extents    inodes of files, links and devices, with the last partial block of small files
//!   blocks     content of files
//! at the end:
//!   extent     inodes of directories, with small directories inside
//!   blocks     larger directories
//! ```
//!
//! Directories come last since only the end of the tar tells what is in them; the superblock is the very last write,
//! so that a file without its end is no EROFS. Nothing that came once is read or moved again: what a later entry
//! replaced stays in the file without a name.

pub(super) mod format;
mod output;

use super::error::{LayerError, Result, entry};
use super::ingest::{Node, Sink};
use super::tar::{Meta, SparseMap, Tar};
use super::tree::{Child, DirId, Tree, Type};
use format::{BLOCK, Dirent, FileType, HOLE, INODE, Layout, RawInode, SLOT, SUPER_OFFSET, Super};
use output::{MetaArea, Output};
use std::fs::File;
use std::path::Path;
use types::Digest;

/// The last partial block of a larger file is not worth a look-up of its own.
const MAX_INLINE: u64 = 64 << 10;
/// Entries in the table of a sparse file; larger files get larger chunks.
const MAX_CHUNKS: u64 = 4096;
/// The root's inode follows the superblock: its number has but 16 bits.
const ROOT: u64 = SUPER_OFFSET + 128;

/// A half-written layer.
pub(super) struct Writer {
    out: Output,
    meta: MetaArea,
    chunked: bool,
    inodes: u32,
}

/// Where a directory goes.
struct Spot {
    id: DirId,
    at: u64,
    xattrs: Vec<u8>,
    /// Names per block.
    counts: Vec<usize>,
    /// Bytes used in the last block.
    last: usize,
    layout: Layout,
    /// First of the blocks that are not inline, counted from the first block of all directories.
    block: u64,
}

impl Spot {
    fn size(&self) -> u64 {
        (self.counts.len() as u64 - 1) * BLOCK + self.last as u64
    }

    fn blocks(&self) -> u64 {
        self.counts.len() as u64 - u64::from(self.layout == Layout::Inline)
    }

    fn inline(&self) -> u64 {
        if self.layout == Layout::Inline { self.last as u64 } else { 0 }
    }
}

impl Writer {
    /// Writes to an empty file.
    pub(super) fn new(file: File, path: &Path) -> Self {
        Self { out: Output::new(file, path, BLOCK), meta: MetaArea::default(), chunked: false, inodes: 1 }
    }

    fn file(&mut self, meta: &Meta, size: u64, sparse: Option<&SparseMap>, tar: &mut Tar<'_>) -> Result<u64> {
        if let Some(map) = sparse.filter(|map| map.iter().map(|piece| piece.length).sum::<u64>() < size) {
            return self.sparse_file(meta, size, map, tar);
        }
        let xattrs = encode_xattrs(meta)?;
        let head = INODE + xattrs.len() as u64;
        let tail = size % BLOCK;
        let inline = size < MAX_INLINE && format::inline(self.meta.position(), head, tail);
        let (layout, tail) = if inline { (Layout::Inline, tail) } else { (Layout::Plain, 0) };
        let at = self.meta.place(head, tail, &mut self.out)?;
        let union = block_number(self.out.position())?;
        self.inode_at(
            &RawInode { layout, kind: format::S_IFREG, meta, size, union, ino: 0, links: 1 },
            &xattrs,
        )?;
        copy(tar, size - tail, |data| self.out.append(data))?;
        self.out.align()?;
        let buffer = self.meta.buffer();
        copy(tar, tail, |data| {
            buffer.extend_from_slice(data);
            Ok(())
        })?;
        Ok(at)
    }

    /// A file with holes: chunks without data have no address.
    fn sparse_file(&mut self, meta: &Meta, size: u64, map: &SparseMap, tar: &mut Tar<'_>) -> Result<u64> {
        let mut bits = 0_u32;
        while size.div_ceil(BLOCK << bits) > MAX_CHUNKS {
            bits += 1;
        }
        if bits > 31 {
            return Err(LayerError::Limit {
                what: "the size of a sparse file",
                limit: (BLOCK << 31) * MAX_CHUNKS,
            });
        }
        let chunk = BLOCK << bits;
        let xattrs = encode_xattrs(meta)?;
        let chunks = size.div_ceil(chunk);
        let mut table = vec![HOLE; chunks as usize];
        let at = self.meta.place(INODE + xattrs.len() as u64 + 4 * chunks, 0, &mut self.out)?;
        let start = self.out.position();
        let mut next = start;
        for piece in map {
            for address in table
                .iter_mut()
                .take((piece.offset + piece.length).div_ceil(chunk) as usize)
                .skip((piece.offset / chunk) as usize)
                .filter(|address| **address == HOLE)
            {
                *address = block_number(next)?;
                next += chunk;
            }
        }
        // The last chunk ends with the file.
        let end = match table.last() {
            Some(last) if *last != HOLE => next - (chunks * chunk - size),
            _ => next,
        };
        let inode = RawInode {
            layout: Layout::Chunked,
            kind: format::S_IFREG,
            meta,
            size,
            union: bits,
            ino: 0,
            links: 1,
        };
        self.inode_at(&inode, &xattrs)?;
        let buffer = self.meta.buffer();
        table.iter().for_each(|address| buffer.extend(address.to_le_bytes()));
        for piece in map {
            let (mut offset, stop) = (piece.offset, piece.offset + piece.length);
            while offset < stop {
                let within = offset % chunk;
                let length = (chunk - within).min(stop - offset);
                let address = table.get((offset / chunk) as usize).copied().unwrap_or(HOLE);
                self.out.seek(u64::from(address) * BLOCK + within)?;
                copy(tar, length, |data| self.out.append(data))?;
                offset += length;
            }
        }
        self.out.seek(end.next_multiple_of(BLOCK))?;
        self.chunked = true;
        Ok(at)
    }

    fn symlink(&mut self, meta: &Meta, target: &[u8]) -> Result<u64> {
        let xattrs = encode_xattrs(meta)?;
        let (head, size) = (INODE + xattrs.len() as u64, target.len() as u64);
        let inline = format::inline(self.meta.position(), head, size);
        let layout = if inline { Layout::Inline } else { Layout::Plain };
        let at = self.meta.place(head, if inline { size } else { 0 }, &mut self.out)?;
        let union = block_number(self.out.position())?;
        self.inode_at(
            &RawInode { layout, kind: format::S_IFLNK, meta, size, union, ino: 0, links: 1 },
            &xattrs,
        )?;
        if inline {
            self.meta.buffer().extend_from_slice(target);
        } else {
            self.out.append(target)?;
            self.out.align()?;
        }
        Ok(at)
    }

    fn special(&mut self, meta: &Meta, kind: u16, device: u32, links: u32) -> Result<u64> {
        let xattrs = encode_xattrs(meta)?;
        let at = self.meta.place(INODE + xattrs.len() as u64, 0, &mut self.out)?;
        let inode = RawInode { layout: Layout::Plain, kind, meta, size: 0, union: device, ino: 0, links };
        self.inode_at(&inode, &xattrs)?;
        Ok(at)
    }

    /// Writes an inode to the place that was made for it.
    fn inode_at(&mut self, inode: &RawInode<'_>, xattrs: &[u8]) -> Result<()> {
        self.inodes = self
            .inodes
            .checked_add(1)
            .ok_or(LayerError::Limit { what: "the number of its inodes", limit: u64::from(u32::MAX) })?;
        RawInode { ino: self.inodes, ..*inode }.write(xattrs, self.meta.buffer());
        Ok(())
    }

    /// Decides where each directory goes; `start` is where the root's siblings may begin. Returns the end, too.
    fn lay_out(tree: &Tree, start: u64) -> Result<(Vec<Spot>, u64)> {
        let (mut at, mut block) = (start, 0);
        let mut spots = Vec::new();
        let live = tree.live();
        let marks = tree.marks(&live);
        for id in live.iter().copied() {
            let dir = tree.dir(id);
            let xattrs = format::xattrs(&dir.meta.xattrs, &marks(id)).ok_or_else(too_many_xattrs)?;
            let (counts, last) = format::split(names(tree, id, |_| 0).iter().map(|entry| entry.name));
            let (head, tail) = (INODE + xattrs.len() as u64, last as u64);
            let inline = if id == 0 { ROOT + head + tail <= BLOCK } else { format::inline(at, head, tail) };
            if id == 0 && ROOT + head > BLOCK {
                return Err(too_many_xattrs());
            }
            let layout = if inline { Layout::Inline } else { Layout::Plain };
            let mut spot = Spot { id, at: ROOT, xattrs, counts, last, layout, block };
            if id != 0 {
                spot.at = format::fit(at, head, spot.inline());
                at = spot.at + head + spot.inline();
            }
            block += spot.blocks();
            spots.push(spot);
        }
        Ok((spots, at))
    }
}

impl Sink for Writer {
    fn inode(&mut self, meta: &Meta, node: &Node<'_>, content: &mut Tar<'_>) -> Result<u64> {
        match node {
            Node::File { size, sparse } => self.file(meta, *size, *sparse, content),
            Node::Symlink(target) => self.symlink(meta, target),
            Node::Char(major, minor) => {
                self.special(meta, format::S_IFCHR, format::device(*major, *minor), 1)
            }
            Node::Block(major, minor) => {
                self.special(meta, format::S_IFBLK, format::device(*major, *minor), 1)
            }
            Node::Fifo => self.special(meta, format::S_IFIFO, 0, 1),
        }
    }

    fn finish(&mut self, tree: &Tree, diff_id: &Digest, content_size: u64) -> Result<()> {
        for inode in tree.inodes.iter().filter(|inode| inode.links > 1) {
            self.meta.patch(inode.place + format::LINKS_OFFSET, inode.links, &self.out)?;
        }
        // As overlayfs does itself, all whiteouts are names of one device.
        let live = tree.live();
        let hidden = |id: &DirId| tree.dir(*id).children.values().filter(|c| **c == Child::Whiteout).count();
        let whiteouts: usize = live.iter().map(hidden).sum();
        let whiteout = match u32::try_from(whiteouts) {
            Ok(0) => 0,
            links => self.special(&Meta::default(), format::S_IFCHR, 0, links.unwrap_or(u32::MAX))?,
        };
        self.meta.flush(&self.out)?;
        self.out.align()?;

        let (spots, end) = Self::lay_out(tree, self.out.position())?;
        let first_block = end.next_multiple_of(BLOCK);
        let mut places = vec![0; tree.dirs.len()];
        for spot in &spots {
            places[spot.id as usize] = spot.at;
        }
        let nid = |child: Child| match child {
            Child::Dir(id) => places[id as usize] / SLOT,
            Child::Inode(index) => tree.inodes[index as usize].place / SLOT,
            Child::Whiteout => whiteout / SLOT,
        };

        let mut block0 = vec![0; ROOT as usize];
        let mut encoded = Vec::new();
        for spot in &spots {
            let dir = tree.dir(spot.id);
            let subdirs = dir.children.values().filter(|c| matches!(c, Child::Dir(_))).count();
            self.inodes = self.inodes.saturating_add(1);
            let inode = RawInode {
                layout: spot.layout,
                kind: format::S_IFDIR,
                meta: &dir.meta,
                size: spot.size(),
                union: block_number(first_block + spot.block * BLOCK)?,
                ino: if spot.id == 0 { 1 } else { self.inodes },
                links: u32::try_from(subdirs + 2).unwrap_or(u32::MAX),
            };
            encoded.clear();
            inode.write(&spot.xattrs, &mut encoded);
            if spot.layout == Layout::Inline {
                let entries = names(tree, spot.id, nid);
                format::dir_block(&entries[entries.len() - spot.counts.last().unwrap_or(&0)..], &mut encoded);
            }
            if spot.id == 0 {
                block0.extend_from_slice(&encoded);
            } else {
                self.out.seek(spot.at)?;
                self.out.append(&encoded)?;
            }
        }
        self.out.seek(first_block)?;
        for spot in spots.iter().filter(|spot| spot.blocks() > 0) {
            let entries = names(tree, spot.id, nid);
            let mut rest = entries.as_slice();
            for count in spot.counts.iter().take(spot.blocks() as usize) {
                let (now, later) = rest.split_at(*count);
                rest = later;
                encoded.clear();
                format::dir_block(now, &mut encoded);
                self.out.append(&encoded)?;
                self.out.align()?;
            }
        }
        self.out.end()?;

        let sb = Super {
            root_nid: (ROOT / SLOT) as u16,
            inodes: u64::from(self.inodes),
            blocks: block_number(self.out.position())?,
            chunked: self.chunked,
            uuid: uuid(diff_id),
            volume: volume(content_size),
        };
        block0.resize(BLOCK as usize, 0);
        sb.write(&mut block0);
        self.out.write_at(0, &block0)
    }
}

/// What the UUID of a layer is: the start of its diff id.
pub(super) fn uuid(diff_id: &Digest) -> [u8; 16] {
    std::array::from_fn(|i| diff_id.bytes()[i])
}

/// The volume name holds the sum of file sizes: `d` and 14 hexadecimal digits.
fn volume(content_size: u64) -> [u8; 16] {
    let text = format!("d{:014x}", content_size.min((1 << 56) - 1));
    std::array::from_fn(|i| text.as_bytes().get(i).copied().unwrap_or(0))
}

/// Reads back what [`volume`] wrote.
pub(super) fn content_size(volume: &[u8; 16]) -> Option<u64> {
    let text = std::str::from_utf8(volume).ok()?.strip_prefix('d')?.strip_suffix('\0')?;
    u64::from_str_radix(text, 16).ok()
}

/// The names of a directory in the order EROFS wants: that of their bytes, `.` and `..` among them.
fn names(tree: &Tree, id: DirId, nid: impl Fn(Child) -> u64) -> Vec<Dirent<'_>> {
    let dir = tree.dir(id);
    let mut all = Vec::with_capacity(dir.children.len() + 2);
    all.extend(dir.children.iter().map(|(name, child)| {
        let kind = match child {
            Child::Dir(_) => FileType::Dir,
            Child::Whiteout => FileType::Char,
            Child::Inode(index) => match tree.inodes[*index as usize].kind {
                Type::File => FileType::Regular,
                Type::Symlink => FileType::Symlink,
                Type::Char => FileType::Char,
                Type::Block => FileType::Block,
                Type::Fifo => FileType::Fifo,
            },
        };
        Dirent { name, nid: nid(*child), kind }
    }));
    for (name, target) in [(&b"."[..], id), (b"..", dir.parent)] {
        let at = all.partition_point(|entry| entry.name < name);
        all.insert(at, Dirent { name, nid: nid(Child::Dir(target)), kind: FileType::Dir });
    }
    all
}

/// Hands `length` bytes of content on.
fn copy(tar: &mut Tar<'_>, mut length: u64, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    while length > 0 {
        let data = tar.content(usize::try_from(length).unwrap_or(usize::MAX))?;
        if data.is_empty() {
            return Err(entry(b"", "is shorter than its header says"));
        }
        length -= data.len() as u64;
        to(data)?;
    }
    Ok(())
}

fn encode_xattrs(meta: &Meta) -> Result<Vec<u8>> {
    format::xattrs(&meta.xattrs, &[]).ok_or_else(too_many_xattrs)
}

fn too_many_xattrs() -> LayerError {
    LayerError::Limit { what: "the size of an entry's extended attributes", limit: BLOCK }
}

/// Address of a block; EROFS has 32 bits for it.
fn block_number(at: u64) -> Result<u32> {
    u32::try_from(at / BLOCK).ok().filter(|block| *block != HOLE).ok_or(LayerError::Limit {
        what: "the size of the layer on disk",
        limit: u64::from(u32::MAX) * BLOCK,
    })
}
