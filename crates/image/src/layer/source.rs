//! The tar stream: read in large buffers, counted, limited and hashed on the way.
//!
//! Every byte is hashed, those after the end of the archive too, since a diff id covers them. A stream longer than
//! one buffer is hashed by a second thread, which shares the buffers with the parser: nothing is copied for it.

use super::error::{LayerError, Result};
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use types::Digest;

/// Size of a buffer.
const BUFFER: usize = 256 << 10;
/// Buffers that wait for the hashing thread.
const QUEUE: usize = 4;

type Buffer = Arc<Vec<u8>>;

enum Hasher {
    Here(Sha256),
    There { queue: SyncSender<(Buffer, usize)>, thread: JoinHandle<Sha256> },
    Gone,
}

/// A limited, hashed byte stream.
pub(super) struct Source<'a> {
    inner: &'a mut dyn Read,
    current: Buffer,
    filled: usize,
    at: usize,
    /// Bytes read from `inner`.
    total: u64,
    limit: u64,
    hasher: Hasher,
    spare: Vec<Buffer>,
    ended: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(inner: &'a mut dyn Read, limit: u64) -> Self {
        Self {
            inner,
            current: Buffer::default(),
            filled: 0,
            at: 0,
            total: 0,
            limit,
            hasher: Hasher::Here(Sha256::new()),
            spare: Vec::new(),
            ended: false,
        }
    }

    /// Bytes handed out so far.
    pub(super) fn position(&self) -> u64 {
        self.total - (self.filled - self.at) as u64
    }

    /// At least one and at most `max` bytes, without copying; none at the end of the stream.
    pub(super) fn chunk(&mut self, max: usize) -> Result<&[u8]> {
        if self.at == self.filled {
            self.fill()?;
        }
        let start = self.at;
        self.at += max.min(self.filled - start);
        Ok(self.current.get(start..self.at).unwrap_or_default())
    }

    /// Whether everything was handed out.
    pub(super) fn at_end(&mut self) -> Result<bool> {
        if self.at == self.filled {
            self.fill()?;
        }
        Ok(self.at == self.filled)
    }

    /// Fills `out`; an end before that is [`LayerError::Truncated`].
    pub(super) fn exact(&mut self, out: &mut [u8]) -> Result<()> {
        if self.or_end(out)? { Ok(()) } else { Err(self.truncated()) }
    }

    /// Fills `out`, or finds the stream at its end (`false`).
    pub(super) fn or_end(&mut self, out: &mut [u8]) -> Result<bool> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let piece = self.chunk(rest.len())?;
            if piece.is_empty() {
                return if done == 0 { Ok(false) } else { Err(self.truncated()) };
            }
            let n = piece.len();
            rest[..n].copy_from_slice(piece);
            done += n;
        }
        Ok(true)
    }

    /// Passes over `n` bytes.
    pub(super) fn skip(&mut self, mut n: u64) -> Result<()> {
        while n > 0 {
            let got = self.chunk(usize::try_from(n).unwrap_or(usize::MAX))?.len();
            if got == 0 {
                return Err(self.truncated());
            }
            n -= got as u64;
        }
        Ok(())
    }

    pub(super) fn truncated(&self) -> LayerError {
        LayerError::Truncated { at: self.total }
    }

    /// Reads what is left, and returns the digest of the whole stream.
    pub(super) fn finish(mut self) -> Result<Digest> {
        while !self.chunk(usize::MAX)?.is_empty() {}
        let sum = match std::mem::replace(&mut self.hasher, Hasher::Gone) {
            Hasher::Here(sha) => sha,
            Hasher::There { queue, thread } => {
                drop(queue);
                thread.join().map_err(|_| hashing_failed())?
            }
            Hasher::Gone => return Err(hashing_failed()),
        };
        Ok(Digest::from_sha256(sum.finalize().into()))
    }

    fn fill(&mut self) -> Result<()> {
        (self.at, self.filled) = (0, 0);
        if self.ended {
            return Ok(());
        }
        self.recycle();
        let buffer = Arc::get_mut(&mut self.current).ok_or_else(hashing_failed)?;
        while let Some(room) = buffer.get_mut(self.filled..).filter(|room| !room.is_empty()) {
            match self.inner.read(room) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(n) => self.filled += n.min(room.len()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(LayerError::Source(e)),
            }
        }
        self.total += self.filled as u64;
        if self.total > self.limit {
            return Err(LayerError::Limit { what: "the size of its tar stream", limit: self.limit });
        }
        self.hash()
    }

    /// Makes `current` a buffer that nobody else reads.
    fn recycle(&mut self) {
        let old = std::mem::take(&mut self.current);
        if !old.is_empty() {
            self.spare.push(old);
        }
        self.current = match self.spare.iter().position(|b| Arc::strong_count(b) == 1) {
            Some(free) => self.spare.swap_remove(free),
            None => Arc::new(vec![0; BUFFER]),
        };
    }

    fn hash(&mut self) -> Result<()> {
        // The first full buffer says that this is no small layer: worth a thread, if the host gives one.
        if !self.ended
            && let Hasher::Here(sha) = &self.hasher
        {
            let mut sha = sha.clone();
            let (queue, work) = sync_channel::<(Buffer, usize)>(QUEUE);
            let hashing = move || {
                while let Ok((buffer, n)) = work.recv() {
                    sha.update(buffer.get(..n).unwrap_or_default());
                }
                sha
            };
            if let Ok(thread) = thread::Builder::new().name("layer-sha256".into()).spawn(hashing) {
                self.hasher = Hasher::There { queue, thread };
            }
        }
        match &mut self.hasher {
            Hasher::Here(sha) => sha.update(self.current.get(..self.filled).unwrap_or_default()),
            Hasher::There { queue, .. } => {
                queue.send((self.current.clone(), self.filled)).map_err(|_| hashing_failed())?;
            }
            Hasher::Gone => return Err(hashing_failed()),
        }
        Ok(())
    }
}

fn hashing_failed() -> LayerError {
    LayerError::Source(io::Error::other("the hashing thread ended early"))
}
