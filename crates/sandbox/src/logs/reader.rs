//! Reads logs across rotations, from the end or the beginning, and follows them without missing or doubling an entry.
//!
//! Every file is held open by the reader, so a rotation meanwhile cannot take one away. At the end of the current file a
//! follower looks whether its name belongs to another file by now; then it reads its own to the end and goes on with
//! the next newer one.

use super::{Source, current_file, format_time, json, local, rotated};
use flate2::read::MultiGzDecoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use types::{ErrorKind, Kinded, LogConfig, LogDriver};

/// Where a reader gives up waiting for a sign and looks by itself.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
const PIECE: usize = 64 << 10;
/// No entry of ours is longer: 16 KiB of text, each byte six, and its attributes.
const LONGEST: usize = 1 << 20;

/// Which entries are wanted.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// None older, nanoseconds since the epoch.
    pub since: Option<i64>,
    /// None younger; a follower ends at the first one that is.
    pub until: Option<i64>,
    /// Only so many of the last ones (counted before the other conditions, as Docker does).
    pub tail: Option<u64>,
    /// Goes on until the container does not run any more.
    pub follow: bool,
    /// Those of stdout.
    pub stdout: bool,
    /// Those of stderr.
    pub stderr: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { since: None, until: None, tail: None, follow: false, stdout: true, stderr: true }
    }
}

/// One entry: a line, or a piece of a very long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was written, nanoseconds since the epoch.
    pub time_ns: i64,
    /// Where it came from.
    pub source: Source,
    /// Its bytes, the newline included where it has one.
    pub line: Vec<u8>,
    /// Attributes (`--log-opt labels` and the like).
    pub attrs: BTreeMap<String, String>,
}

impl Entry {
    /// Appends it as `logs` shows it: `--timestamps` and `--details` before the line.
    pub fn render(&self, timestamps: bool, details: bool, out: &mut Vec<u8>) {
        if timestamps {
            out.extend(format_time(self.time_ns).as_bytes());
            out.push(b' ');
        }
        if details {
            let pairs: Vec<String> = self.attrs.iter().map(|(k, v)| format!("{k}={v}")).collect();
            out.extend(pairs.join(",").as_bytes());
            out.push(b' ');
        }
        out.extend(&self.line);
    }
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The driver keeps nothing.
    #[error("configured logging driver does not support reading")]
    NotKept,
    /// The file system refuses.
    #[error("cannot read the log {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Kinded for ReadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotKept => ErrorKind::Unsupported,
            Self::Io { .. } => ErrorKind::Internal,
        }
    }
}

/// Hands every wanted entry of a sandbox's log to `each`, oldest first, until it breaks off. `is_running` is asked by a
/// follower that has come to the end.
pub fn read(
    dir: &Path,
    config: &LogConfig,
    options: &ReadOptions,
    each: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    is_running: &dyn Fn() -> bool,
) -> Result<(), ReadError> {
    let path = current_file(dir, config).ok_or(ReadError::NotKept)?;
    let mut reader = Reader { path: &path, driver: config.driver, options, each };
    reader.run(config.max_file, is_running).map_err(|source| ReadError::Io { path: path.clone(), source })
}

struct Reader<'a> {
    path: &'a Path,
    driver: LogDriver,
    options: &'a ReadOptions,
    each: &'a mut dyn FnMut(Entry) -> ControlFlow<()>,
}

/// One file of the log, with what was read of it but not used yet.
struct Part {
    input: Box<dyn Read>,
    buffer: Vec<u8>,
}

impl Part {
    fn plain(file: File) -> Self {
        Self { input: Box::new(file), buffer: Vec::new() }
    }

    /// Reads on; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        let n = (&mut self.input).take(PIECE as u64).read_to_end(&mut self.buffer)?;
        Ok(n > 0)
    }
}

impl Reader<'_> {
    fn run(&mut self, max_file: u32, is_running: &dyn Fn() -> bool) -> io::Result<()> {
        let watch = if self.options.follow { self.watch() } else { None };
        // The current file first: what is rotated aside meanwhile is still held, and known by its inode.
        let current = loop {
            match File::open(self.path) {
                Ok(file) => break file,
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Err(_) if self.options.follow && is_running() => wait(watch.as_ref()),
                Err(_) => return Ok(()),
            }
        };
        let mut files = self.older(max_file, &current.metadata()?)?;
        files.push((current.try_clone()?, false));
        let first = self.seek_tail(&mut files)?;
        for (at, (file, compressed)) in files.into_iter().enumerate() {
            if at < first.file {
                continue;
            }
            let skip = if at == first.file { first.entries } else { 0 };
            let mut part = match compressed {
                true => Part { input: Box::new(MultiGzDecoder::new(file)), buffer: Vec::new() },
                false => Part::plain(file),
            };
            if self.drain(&mut part, skip)?.is_break() {
                return Ok(());
            }
            if self.options.follow && at + 1 == first.count {
                return self.follow(current, part, watch, is_running);
            }
        }
        Ok(())
    }

    /// The rotated files, oldest first.
    fn older(&self, max_file: u32, current: &Metadata) -> io::Result<Vec<(File, bool)>> {
        let mut files = Vec::new();
        for n in (1..max_file.max(2)).rev() {
            for compressed in [false, true] {
                match File::open(rotated(self.path, n, compressed)) {
                    Ok(file) => {
                        if !same(&file.metadata()?, current) {
                            files.push((file, compressed));
                        }
                        // Both forms are there while it is compressed: the plain one is whole.
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(files)
    }

    /// Finds where the last `tail` entries begin: the file, and how many entries of it to pass over, with plain files
    /// positioned already.
    fn seek_tail(&self, files: &mut [(File, bool)]) -> io::Result<Start> {
        let count = files.len();
        let Some(mut wanted) = self.options.tail else { return Ok(Start { file: 0, entries: 0, count }) };
        for at in (0..count).rev() {
            let Some((file, compressed)) = files.get_mut(at) else { break };
            if *compressed {
                let entries = self.count_compressed(file)?;
                if entries >= wanted {
                    return Ok(Start { file: at, entries: entries - wanted, count });
                }
                wanted -= entries;
            } else {
                let (offset, found) = match self.driver {
                    LogDriver::Local => last_messages(file, wanted)?,
                    _ => last_lines(file, wanted)?,
                };
                file.seek(SeekFrom::Start(offset))?;
                if found >= wanted {
                    return Ok(Start { file: at, entries: 0, count });
                }
                wanted -= found;
            }
        }
        Ok(Start { file: 0, entries: 0, count })
    }

    fn count_compressed(&self, file: &mut File) -> io::Result<u64> {
        let mut part = Part { input: Box::new(MultiGzDecoder::new(file.try_clone()?)), buffer: Vec::new() };
        let mut entries = 0;
        while part.fill()? {
            let mut used = 0;
            while let Taken::Entry(_, n) = take(self.driver, part.buffer.get(used..).unwrap_or_default()) {
                used += n;
                entries += 1;
            }
            part.buffer.drain(..used);
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(entries)
    }

    /// Hands out every whole entry up to the end of the file as it is now.
    fn drain(&mut self, part: &mut Part, mut skip: u64) -> io::Result<ControlFlow<()>> {
        loop {
            let mut used = 0;
            loop {
                match take(self.driver, part.buffer.get(used..).unwrap_or_default()) {
                    Taken::More => break,
                    Taken::Damaged => {
                        // Nothing behind it can be trusted in this file.
                        part.input = Box::new(io::empty());
                        used = part.buffer.len();
                        break;
                    }
                    Taken::Entry(entry, n) => {
                        used += n;
                        if skip > 0 {
                            skip -= 1;
                        } else if let Some(entry) = entry
                            && self.give(entry).is_break()
                        {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
            }
            part.buffer.drain(..used);
            if !part.fill()? {
                return Ok(ControlFlow::Continue(()));
            }
        }
    }

    fn give(&mut self, entry: Entry) -> ControlFlow<()> {
        let options = self.options;
        if options.until.is_some_and(|until| entry.time_ns > until) {
            return ControlFlow::Break(());
        }
        let wanted = match entry.source {
            Source::Stdout => options.stdout,
            Source::Stderr => options.stderr,
        };
        if wanted && options.since.is_none_or(|since| entry.time_ns >= since) {
            return (self.each)(entry);
        }
        ControlFlow::Continue(())
    }

    fn follow(
        &mut self,
        mut current: File,
        mut part: Part,
        watch: Option<OwnedFd>,
        is_running: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        loop {
            // Asked before the look for new entries: what was written before it ended is seen.
            let running = is_running();
            let replaced = !part_is(&current, self.path);
            if self.drain(&mut part, 0)?.is_break() {
                return Ok(());
            }
            if replaced {
                for file in self.newer(&current.metadata()?)? {
                    part = Part::plain(file.try_clone()?);
                    current = file;
                    if self.drain(&mut part, 0)?.is_break() {
                        return Ok(());
                    }
                }
                continue;
            }
            // With one file only, rotation cuts it.
            let len = current.metadata()?.len();
            if (&current).stream_position()? > len {
                (&current).seek(SeekFrom::Start(0))?;
                part.buffer.clear();
                continue;
            }
            if self.options.until.is_some_and(|until| sys::host::now_ns() > until) || !running {
                return Ok(());
            }
            wait(watch.as_ref());
        }
    }

    /// The plain files that came after this one, oldest first; the current one is the last.
    fn newer(&self, own: &Metadata) -> io::Result<Vec<File>> {
        let mut files = Vec::new();
        match File::open(self.path) {
            Ok(file) => files.push(file),
            // In the middle of a rotation.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                wait(None);
                return Ok(files);
            }
            Err(e) => return Err(e),
        }
        for n in 1.. {
            let Ok(file) = File::open(rotated(self.path, n, false)) else { break };
            let meta = file.metadata()?;
            if same(&meta, own) || (meta.mtime(), meta.mtime_nsec()) <= (own.mtime(), own.mtime_nsec()) {
                break;
            }
            files.push(file);
        }
        files.reverse();
        Ok(files)
    }

    fn watch(&self) -> Option<OwnedFd> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        let what =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_FROM | inotify::WatchFlags::CREATE;
        inotify::add_watch(&fd, self.path.parent()?, what).ok()?;
        Some(fd)
    }
}

struct Start {
    file: usize,
    entries: u64,
    count: usize,
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Whether that path still names that file.
fn part_is(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => same(&a, &b),
        // Removed altogether, or in the middle of a rotation: looked at again after a moment.
        _ => true,
    }
}

/// Waits for a change, or a moment.
fn wait(watch: Option<&OwnedFd>) {
    let mut fds: Vec<PollFd<'_>> = watch.map(|fd| PollFd::new(fd, PollFlags::IN)).into_iter().collect();
    if poll(&mut fds, Some(&LOOK_AGAIN)).is_ok_and(|n| n > 0)
        && let Some(fd) = watch
    {
        let mut events = [0u8; 4096];
        while rustix::io::read(fd, &mut events).is_ok_and(|n| n > 0) {}
    }
}

enum Taken {
    /// One entry (none for a torn one) and its length.
    Entry(Option<Entry>, usize),
    /// Not whole yet.
    More,
    /// No entry can be here.
    Damaged,
}

fn take(driver: LogDriver, bytes: &[u8]) -> Taken {
    if driver == LogDriver::Local {
        return match local::split(bytes) {
            Ok(Some((message, n))) => Taken::Entry(local::parse(message), n),
            Ok(None) => Taken::More,
            Err(()) => Taken::Damaged,
        };
    }
    match memchr::memchr(b'\n', bytes) {
        Some(at) => Taken::Entry(bytes.get(..at).and_then(json::parse), at + 1),
        None if bytes.len() > LONGEST => Taken::Damaged,
        None => Taken::More,
    }
}

/// Offset at which the last `wanted` lines begin, and how many there are from there on.
fn last_lines(file: &File, wanted: u64) -> io::Result<(u64, u64)> {
    let mut end = file.metadata()?.len();
    // What has no newline yet is not counted, but comes with the rest.
    let mut found = 0;
    let mut piece = vec![0; PIECE];
    while end > 0 {
        let start = end.saturating_sub(PIECE as u64);
        let len = (end - start) as usize;
        let Some(piece) = piece.get_mut(..len) else { break };
        file.read_exact_at(piece, start)?;
        for at in memchr::memrchr_iter(b'\n', piece) {
            if found == wanted {
                return Ok((start + at as u64 + 1, found));
            }
            found += 1;
        }
        end = start;
    }
    Ok((0, found))
}

/// The same for messages between their lengths. A torn end is passed over from the front instead.
fn last_messages(file: &File, wanted: u64) -> io::Result<(u64, u64)> {
    let mut end = file.metadata()?.len();
    let mut found = 0;
    let whole = |end: u64| -> Option<u64> {
        let mut len = [0; 4];
        file.read_exact_at(&mut len, end.checked_sub(4)?).ok()?;
        let start = end.checked_sub(u64::from(u32::from_be_bytes(len)) + 8)?;
        let mut front = [0; 4];
        file.read_exact_at(&mut front, start).ok()?;
        (front == len).then_some(start)
    };
    if end > 0 && whole(end).is_none() {
        let mut good = 0;
        let mut front = [0; 4];
        while file.read_exact_at(&mut front, good).is_ok() {
            let next = good + u64::from(u32::from_be_bytes(front)) + 8;
            if next > end {
                break;
            }
            good = next;
        }
        end = good;
    }
    while end > 0 && found < wanted {
        let Some(start) = whole(end) else { break };
        end = start;
        found += 1;
    }
    Ok((end, found))
}
