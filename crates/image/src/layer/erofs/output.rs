//! The file an EROFS layer is written to: data one after the other, with room set aside for metadata.

use super::super::error::{Result, io};
use super::format::{BLOCK, fit};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes gathered before they are written.
const BUFFER: usize = 512 << 10;
/// A slice of at least this size is written as it is.
const DIRECT: usize = 64 << 10;
/// A gap of at least this size becomes a hole of the file.
const GAP: u64 = 64 << 10;
/// Room for metadata is set aside in pieces that grow up to this size.
const EXTENT: u64 = 256 << 10;

/// Appends to a file.
pub(super) struct Output {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Offset of the buffer in the file.
    base: u64,
}

impl Output {
    pub(super) fn new(file: File, path: &Path, start: u64) -> Self {
        Self { file, path: path.to_owned(), buffer: Vec::new(), base: start }
    }

    pub(super) fn position(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    pub(super) fn append(&mut self, data: &[u8]) -> Result<()> {
        if self.buffer.len() + data.len() > BUFFER {
            self.flush()?;
            if data.len() >= DIRECT {
                self.write_at(self.base, data)?;
                self.base += data.len() as u64;
                return Ok(());
            }
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    /// Goes on at `to`; what is between reads as zeros.
    pub(super) fn seek(&mut self, to: u64) -> Result<()> {
        let gap = to.saturating_sub(self.position());
        if gap >= GAP {
            self.flush()?;
            self.base = to;
            return Ok(());
        }
        if self.buffer.len() + gap as usize > BUFFER {
            self.flush()?;
        }
        self.buffer.resize(self.buffer.len() + gap as usize, 0);
        Ok(())
    }

    pub(super) fn align(&mut self) -> Result<()> {
        self.seek(self.position().next_multiple_of(BLOCK))
    }

    /// Sets `length` bytes aside, and says where.
    fn reserve(&mut self, length: u64) -> Result<u64> {
        self.align()?;
        self.flush()?;
        let start = self.base;
        self.base += length;
        Ok(start)
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.write_at(self.base, &self.buffer)?;
            self.base += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Overwrites something earlier.
    pub(super) fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.file.write_all_at(data, at).map_err(io("write", &self.path))
    }

    /// Sets the length of the file.
    pub(super) fn end(&mut self) -> Result<()> {
        self.align()?;
        self.flush()?;
        self.file.set_len(self.base).map_err(io("write", &self.path))
    }
}

/// Metadata written while data streams: inodes and the ends of files, gathered in extents so that they lie
/// close together, and small enough that an extent waits in memory.
#[derive(Default)]
pub(super) struct MetaArea {
    start: u64,
    room: u64,
    next_room: u64,
    buffer: Vec<u8>,
}

impl MetaArea {
    /// Where the next metadata would go if it needs no new extent.
    pub(super) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Makes sure that `head` and `tail` bytes fit, and moves to where they start.
    pub(super) fn place(&mut self, head: u64, tail: u64, out: &mut Output) -> Result<u64> {
        let mut at = fit(self.position(), head, tail);
        if at + head + tail > self.start + self.room {
            self.flush(out)?;
            self.next_room = (self.next_room * 2).clamp(16 << 10, EXTENT);
            self.room = (head + tail).next_multiple_of(BLOCK).max(self.next_room);
            self.start = out.reserve(self.room)?;
            at = self.start;
        }
        self.buffer.resize((at - self.start) as usize, 0);
        Ok(at)
    }

    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    pub(super) fn flush(&mut self, out: &Output) -> Result<()> {
        out.write_at(self.start, &self.buffer)?;
        self.buffer.clear();
        (self.start, self.room) = (0, 0);
        Ok(())
    }

    /// Overwrites four bytes of metadata wherever they are by now.
    pub(super) fn patch(&mut self, at: u64, value: u32, out: &Output) -> Result<()> {
        let bytes = value.to_le_bytes();
        let here = at.checked_sub(self.start).and_then(|from| {
            let from = usize::try_from(from).ok()?;
            self.buffer.get_mut(from..from + 4)
        });
        match here {
            Some(there) => there.copy_from_slice(&bytes),
            None => out.write_at(at, &bytes)?,
        }
        Ok(())
    }
}
