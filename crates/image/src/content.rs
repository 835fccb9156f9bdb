//! Blobs on the disk: `content/blobs/sha256/<hex>`, whole and verified, and `content/tmp/<hex>.partial`, which is
//! being written. The partial file is its own lock: whoever holds its `flock` writes it, and a killed writer leaves
//! bytes that the next one takes up.
//!
//! Nothing is synced file by file. Before the row of an image is committed, one `syncfs(2)` makes its blobs and
//! layers durable ([`Content::settle`]), so that a row never names what a crash took. For a layer of 77 MB in
//! 13,000 files it takes a tenth of the pull; a mark in the row and a check after the next boot would cost every
//! later command a question.

use crate::ImageError;
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sys::file::Lock;
use types::Digest;

/// Buffers of the pipeline.
pub(crate) const CHUNK: usize = 256 << 10;
/// Between two looks whether another one's blob is done.
const LOOK: Duration = Duration::from_millis(20);
/// A partial blob that nobody touched for so long is not resumed any more.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Room that is left on the disk for others: the smaller of this and one percent of the file system.
const RESERVE: u64 = 512 << 20;

/// The blob store.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    blobs: PathBuf,
    tmp: PathBuf,
    layers: PathBuf,
}

impl Content {
    /// Touches nothing.
    pub fn new(root: &Path) -> Self {
        let content = root.join("content");
        Self { blobs: content.join("blobs/sha256"), tmp: content.join("tmp"), layers: root.join("layers") }
    }

    /// Makes the directories.
    pub fn prepare(&self) -> Result<(), ImageError> {
        for dir in [&self.blobs, &self.tmp] {
            // Images may be private: for their owner alone.
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(dir).map_err(|e| ImageError::io("make", dir, e))?;
        }
        Ok(())
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    pub fn tmp(&self) -> &Path {
        &self.tmp
    }

    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.tmp.join(format!("{}.partial", digest.hex()))
    }

    /// The size of a blob that is there.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        std::fs::metadata(self.path(digest)).ok().filter(|m| m.is_file()).map(|m| m.len())
    }

    pub fn open(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.path(digest);
        File::open(&path).map_err(|e| ImageError::io("open the blob", &path, e))
    }

    /// Waits for the right to write a blob, as long as it is wanted. `busy` is called once if another process is at it.
    pub fn lock(
        &self,
        digest: &Digest,
        busy: impl FnOnce(),
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<Lock>, ImageError> {
        let path = self.partial(digest);
        let mut busy = Some(busy);
        loop {
            let lock = Lock::try_exclusive(&path).map_err(|e| ImageError::io("lock", &path, e))?;
            if lock.is_some() || !is_wanted() {
                return Ok(lock);
            }
            if let Some(busy) = busy.take() {
                busy();
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Opens the partial blob; the caller holds its lock.
    pub fn open_partial(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.partial(digest);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| ImageError::io("open", &path, e))
    }

    /// The partial blob, verified by the caller who holds its lock, becomes the blob.
    pub fn commit(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        std::fs::rename(self.partial(digest), &path).map_err(|e| ImageError::io("store", &path, e))
    }

    /// Throws a partial blob away; the caller holds its lock.
    pub fn discard(&self, digest: &Digest) {
        let _ = std::fs::remove_file(self.partial(digest));
    }

    /// Throws a partial blob away, if there is one and nobody is at it.
    pub fn discard_idle(&self, digest: &Digest) {
        let path = self.partial(digest);
        if path.exists()
            && let Ok(Some(_lock)) = Lock::try_exclusive(&path)
        {
            self.discard(digest);
        }
    }

    /// Deletes a blob and tells how large it was.
    pub fn remove(&self, digest: &Digest) -> Result<u64, ImageError> {
        let size = self.size(digest).unwrap_or(0);
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io("delete", &path, e)),
            _ => Ok(size),
        }
    }

    /// Every blob.
    pub fn list(&self) -> Vec<Digest> {
        let Ok(dir) = std::fs::read_dir(&self.blobs) else { return Vec::new() };
        dir.flatten().filter_map(|e| Digest::parse_hex(e.file_name().to_str()?)).collect()
    }

    /// Deletes what dead processes left: their other files at once, partial blobs when nobody came back for them
    /// for a day, or now if `all`.
    pub fn sweep(&self, all: bool) {
        let Ok(dir) = std::fs::read_dir(&self.tmp) else { return };
        for entry in dir.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "lock") {
                continue;
            }
            let old = || {
                entry
                    .metadata()
                    .and_then(|m| m.modified())
                    .is_ok_and(|t| t.elapsed().is_ok_and(|a| a > STALE))
            };
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            let partial = path.extension().is_some_and(|e| e == "partial");
            if partial && !all && !old() {
                continue;
            }
            // A directory's lock is a file in it.
            let lock = if is_dir { path.join("lock") } else { path.clone() };
            if let Ok(Some(_lock)) = Lock::try_exclusive(&lock) {
                let _ = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            }
        }
    }

    /// Waits until everything that was written to the file systems of blobs and layers is on the disk.
    pub fn settle(&self) -> Result<(), ImageError> {
        use std::os::unix::fs::MetadataExt;
        let mut done = None;
        for dir in [&self.blobs, &self.layers] {
            let fail = |e| ImageError::io("sync", dir, e);
            let open = File::open(dir).map_err(fail)?;
            let device = open.metadata().map_err(fail)?.dev();
            if done.replace(device) != Some(device) {
                rustix::fs::syncfs(&open).map_err(|e| fail(e.into()))?;
            }
        }
        Ok(())
    }

    /// Fails if `bytes` more would eat into the room that is left for others.
    pub fn room(&self, bytes: u64) -> Result<(), ImageError> {
        room(&self.tmp, bytes)
    }
}

fn room(path: &Path, bytes: u64) -> Result<(), ImageError> {
    let fs = rustix::fs::statvfs(path).map_err(|e| ImageError::io("measure the disk of", path, e.into()))?;
    let reserve = RESERVE.min(fs.f_blocks.saturating_mul(fs.f_frsize) / 100);
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if free >= reserve.saturating_add(bytes) {
        return Ok(());
    }
    let human = |b: u64| types::units::human_size(b as f64);
    let reason = match bytes {
        0 => format!("{} are free, of which dhow leaves {} to others", human(free), human(reserve)),
        _ => format!(
            "{} are needed, {} are free, of which dhow leaves {} to others",
            human(bytes),
            human(free),
            human(reserve)
        ),
    };
    Err(ImageError::DiskFull { path: path.to_owned(), reason })
}

/// A directory for the files of one operation; gone with it, or swept when its process was killed.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: Lock,
}

impl Scratch {
    pub fn new(content: &Content) -> Result<Self, ImageError> {
        content.prepare()?;
        let unique =
            sys::host::random::<8>().map_err(|e| ImageError::io("name a directory in", &content.tmp, e))?;
        let path = content.tmp.join(format!("work-{:016x}", u64::from_ne_bytes(unique)));
        let fail = |e| ImageError::io("make", &path, e);
        std::fs::create_dir(&path).map_err(fail)?;
        let lock = Lock::exclusive(&path.join("lock")).map_err(fail)?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Passes bytes on and sums them.
pub(crate) struct Hashing<T> {
    pub inner: T,
    sum: Sha256,
    pub count: u64,
}

impl<T> Hashing<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, sum: Sha256::new(), count: 0 }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
        self.count += bytes.len() as u64;
    }

    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest::from_sha256(self.sum.finalize().into()), self.count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.update(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.update(&buf[..n]);
        Ok(n)
    }
}

/// A file that one thread writes while another reads it. The reader sees its end only after the writer said that
/// the content is the right one.
#[derive(Debug)]
pub(crate) struct Growing {
    file: File,
    state: Mutex<GrowingState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GrowingState {
    len: u64,
    end: Option<bool>,
    abandoned: bool,
}

impl Growing {
    pub fn new(file: File) -> Self {
        Self { file, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, GrowingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes are there. False: nobody reads any more.
    pub fn advance(&self, len: u64) -> bool {
        let mut state = self.state();
        state.len = len;
        self.changed.notify_all();
        !state.abandoned
    }

    /// No byte comes any more; `good`: and all are right.
    pub fn end(&self, good: bool) {
        self.state().end.get_or_insert(good);
        self.changed.notify_all();
    }

    /// The reader gave up.
    pub fn abandon(&self) {
        self.state().abandoned = true;
    }

    pub fn reader(&self) -> GrowingReader<'_> {
        GrowingReader { of: self, at: 0, known: 0 }
    }
}

/// Reads a [`Growing`] file from its start.
#[derive(Debug)]
pub(crate) struct GrowingReader<'a> {
    of: &'a Growing,
    at: u64,
    known: u64,
}

impl GrowingReader<'_> {
    /// Waits for more; false at the end.
    fn wait(&mut self) -> io::Result<bool> {
        let mut state = self.of.state();
        loop {
            if state.len > self.at {
                self.known = state.len;
                return Ok(true);
            }
            match state.end {
                Some(true) => return Ok(false),
                Some(false) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download failed"));
                }
                None => state = self.of.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Read for GrowingReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || (self.at == self.known && !self.wait()?) {
            return Ok(0);
        }
        let want = buf.len().min(usize::try_from(self.known - self.at).unwrap_or(usize::MAX));
        let n = self.of.file.read_at(&mut buf[..want], self.at)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the partial blob became shorter"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Checks the room on the disk every so many bytes.
pub(crate) struct RoomCheck<'a> {
    path: &'a Path,
    next: u64,
}

impl<'a> RoomCheck<'a> {
    const STEP: u64 = 16 << 20;

    pub fn new(path: &'a Path) -> Self {
        Self { path, next: 0 }
    }

    pub fn at(&mut self, bytes: u64) -> Result<(), ImageError> {
        if bytes < self.next {
            return Ok(());
        }
        self.next = bytes + Self::STEP;
        room(self.path, 0)
    }
}
