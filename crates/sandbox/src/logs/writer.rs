//! Writes a container's output to its log, rotates it, and never fails: what a full disk cannot take is dropped, and a
//! line in the log says so as soon as there is room again.

use super::gzip::{Pieces, compress};
use super::{MAX_LINE, Source, current_file, format_time, json, local, rotated};
use crate::host_only::{OnHost, on_host};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use types::{LogConfig, LogDriver};

/// Encoded bytes that are collected before a write.
const BATCH: usize = 256 << 10;

/// The writing end of a container's log.
pub struct LogWriter {
    config: LogConfig,
    path: PathBuf,
    /// None for the driver `none`.
    file: Option<File>,
    size: u64,
    /// Encoded entries on their way to the file.
    out: Vec<u8>,
    /// Beginnings of lines, stdout's and stderr's.
    pending: [Vec<u8>; 2],
    /// Bytes that a full disk did not take.
    dropped: u64,
    why_dropped: String,
    compressor: Option<Box<dyn Pieces>>,
    /// A guest's output goes to its host, which keeps the log.
    _on_host: OnHost,
}

impl LogWriter {
    /// Opens the log in a sandbox's directory to append to it, and mends what a killed writer left.
    pub fn open(dir: &Path, config: &LogConfig) -> io::Result<Self> {
        let mut writer = Self {
            config: config.clone(),
            path: PathBuf::new(),
            file: None,
            size: 0,
            out: Vec::new(),
            pending: [Vec::new(), Vec::new()],
            dropped: 0,
            why_dropped: String::new(),
            compressor: None,
            _on_host: on_host()?,
        };
        let Some(path) = current_file(dir, config) else { return Ok(writer) };
        writer.path = path;
        if config.driver == LogDriver::Local
            && let Some(parent) = writer.path.parent()
        {
            std::fs::create_dir_all(parent)?;
        }
        let file = writer.open_file()?;
        writer.size = file.metadata()?.len();
        if writer.size > 0 {
            writer.mend(&file)?;
        }
        writer.file = Some(file);
        if config.compress && rotated(&writer.path, 1, false).exists() {
            writer.compressor = compress(&writer.path).ok();
        }
        Ok(writer)
    }

    fn open_file(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::open(&self.path, flags, Mode::from_raw_mode(0o640))?.into())
    }

    /// Ends a torn line, cuts a torn message off.
    fn mend(&mut self, file: &File) -> io::Result<()> {
        if self.config.driver == LogDriver::JsonFile {
            let mut last = [0];
            file.read_exact_at(&mut last, self.size - 1)?;
            if last != *b"\n" {
                (&*file).write_all(b"\n")?;
                self.size += 1;
            }
            return Ok(());
        }
        let mut good = 0;
        loop {
            let (mut front, mut back) = ([0; 4], [0; 4]);
            if file.read_exact_at(&mut front, good).is_err() {
                break;
            }
            let len = u64::from(u32::from_be_bytes(front));
            if file.read_exact_at(&mut back, good + 4 + len).is_err() || front != back {
                break;
            }
            good += len + 8;
        }
        if good < self.size {
            file.set_len(good)?;
            self.size = good;
        }
        Ok(())
    }

    /// Takes output as it came. Whole lines are written before this returns.
    pub fn write(&mut self, source: Source, bytes: &[u8], now_ns: i64) {
        if self.file.is_none() {
            return;
        }
        let tail = self.tail(source, now_ns);
        let slot = source as usize;
        let mut pending = std::mem::take(&mut self.pending[slot]);
        let mut rest = bytes;
        loop {
            let room = MAX_LINE - pending.len().min(MAX_LINE - 1);
            let window = rest.get(..room.min(rest.len())).unwrap_or_default();
            let cut = match memchr::memchr(b'\n', window) {
                Some(at) => at + 1,
                None if rest.len() >= room => room,
                None => break,
            };
            let (line, after) = rest.split_at(cut);
            if pending.is_empty() {
                self.entry(source, line, now_ns, &tail);
            } else {
                pending.extend_from_slice(line);
                self.entry(source, &pending, now_ns, &tail);
                pending.clear();
            }
            rest = after;
        }
        pending.extend_from_slice(rest);
        self.pending[slot] = pending;
        self.flush();
    }

    /// That output has ended: writes an unfinished line.
    pub fn end(&mut self, source: Source, now_ns: i64) {
        let pending = std::mem::take(&mut self.pending[source as usize]);
        if !pending.is_empty() && self.file.is_some() {
            let tail = self.tail(source, now_ns);
            self.entry(source, &pending, now_ns, &tail);
            self.flush();
        }
    }

    fn tail(&self, source: Source, now_ns: i64) -> Vec<u8> {
        match self.config.driver {
            LogDriver::JsonFile => json::tail(source, &self.config.attrs, &format_time(now_ns)),
            _ => Vec::new(),
        }
    }

    fn entry(&mut self, source: Source, text: &[u8], now_ns: i64, tail: &[u8]) {
        if self.config.max_size.is_some_and(|max| self.size + self.out.len() as u64 >= max) {
            self.flush();
            // Not so after a write that failed: rotating an empty file would only lose old lines.
            if self.size > 0 {
                self.rotate();
            }
        }
        match self.config.driver {
            LogDriver::JsonFile => json::entry(&mut self.out, text, tail),
            LogDriver::Local => local::entry(&mut self.out, source, now_ns, text),
            LogDriver::None => {}
        }
        if self.out.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if self.dropped > 0 {
            self.note_dropped();
        }
        let Some(file) = &mut self.file else { return };
        match file.write_all(&self.out) {
            Ok(()) => {
                self.size += self.out.len() as u64;
                self.dropped = 0;
            }
            Err(e) => {
                // No half entry stays behind.
                let _ = file.set_len(self.size);
                self.dropped += self.out.len() as u64;
                self.why_dropped = e.to_string();
            }
        }
        self.out.clear();
    }

    /// Puts a line in front of what is about to be written.
    fn note_dropped(&mut self) {
        let now = sys::host::now_ns();
        let text = format!("dhow: the log lost about {} bytes here: {}\n", self.dropped, self.why_dropped);
        let mut note = Vec::new();
        match self.config.driver {
            LogDriver::Local => local::entry(&mut note, Source::Stderr, now, text.as_bytes()),
            _ => json::entry(&mut note, text.as_bytes(), &self.tail(Source::Stderr, now)),
        }
        note.append(&mut self.out);
        self.out = note;
    }

    fn rotate(&mut self) {
        while self.work() {}
        if self.config.max_file < 2 {
            if let Some(file) = &self.file
                && file.set_len(0).is_ok()
            {
                self.size = 0;
            }
            return;
        }
        for n in (1..self.config.max_file).rev() {
            for compressed in [false, true] {
                let from = rotated(&self.path, n, compressed);
                if n + 1 == self.config.max_file {
                    let _ = std::fs::remove_file(from);
                } else {
                    let _ = std::fs::rename(from, rotated(&self.path, n + 1, compressed));
                }
            }
        }
        // Where the disk refuses, the old file grows on: better than losing lines.
        if std::fs::rename(&self.path, rotated(&self.path, 1, false)).is_err() {
            return;
        }
        if let Ok(file) = self.open_file() {
            self.file = Some(file);
            self.size = 0;
            if self.config.compress {
                self.compressor = compress(&self.path).ok();
            }
        }
    }

    /// Whether [`LogWriter::work`] has something to do when there is time.
    pub fn has_work(&self) -> bool {
        self.compressor.is_some()
    }

    /// Does a piece of work that can wait; whether there is more.
    pub fn work(&mut self) -> bool {
        let more = self.compressor.as_mut().is_some_and(|c| c.step().unwrap_or(false));
        if !more {
            self.compressor = None;
        }
        more
    }

    /// Gives memory back while there is no output.
    pub fn shrink(&mut self) {
        self.out = Vec::new();
        self.pending.iter_mut().for_each(Vec::shrink_to_fit);
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        while self.work() {}
    }
}
