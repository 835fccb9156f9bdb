//! The serial console's output: a file that keeps the first and the last part of whatever the guest writes.

use crate::config::CONSOLE_BYTES;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

/// Bytes of the end that are kept in memory.
const TAIL: usize = 32 << 10;
/// Bytes that go to the file as they come.
const HEAD: u64 = CONSOLE_BYTES - TAIL as u64 - NOTICE;
/// Room for the line that says what is missing.
const NOTICE: u64 = 64;

/// Where the guest's output goes.
pub struct Console {
    file: Option<File>,
    /// Bytes that the file may still take as they come.
    room: u64,
    /// Bytes that did not go to the file.
    held: u64,
    tail: VecDeque<u8>,
}

impl Console {
    /// Appends to this file, which may have content; the bound is on both.
    pub fn new(file: Option<File>) -> Self {
        let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        Self { file, room: HEAD.saturating_sub(length), held: 0, tail: VecDeque::new() }
    }

    /// The last lines, at most `bytes` of them, without what is not text.
    pub fn tail(&self, bytes: usize) -> String {
        let skip = self.tail.len().saturating_sub(bytes);
        let last: Vec<u8> = self.tail.iter().skip(skip).copied().collect();
        let text = String::from_utf8_lossy(&last);
        text.chars().filter(|c| *c == '\n' || !c.is_control()).collect::<String>().trim().to_owned()
    }

    /// Writes what was held back. Called once, at the end.
    pub fn finish(&mut self) {
        let Some(file) = &mut self.file else { return };
        let length = file.metadata().map_or(CONSOLE_BYTES, |meta| meta.len());
        let fits = CONSOLE_BYTES.saturating_sub(length).saturating_sub(NOTICE).min(self.tail.len() as u64);
        let left_out = self.held.saturating_sub(fits);
        let kept = usize::try_from(self.held - left_out).unwrap_or(TAIL);
        let skip = self.tail.len() - kept;
        let mut end: Vec<u8> = match left_out {
            0 => Vec::new(),
            n => format!("\n[{n} bytes of output left out]\n").into_bytes(),
        };
        end.extend(self.tail.iter().skip(skip));
        let _ = file.write_all(&end);
        self.held = 0;
        self.room = 0;
        self.file = None;
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        let now = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        if let Some(file) = &mut self.file
            && file.write_all(&bytes[..now]).is_err()
        {
            // The host's disk is full: the guest need not know, and no further attempt is made.
            self.file = None;
        }
        self.room -= now as u64;
        self.held += (bytes.len() - now) as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    fn content(file: &mut File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_flood_leaves_its_head_and_its_tail() {
        let mut file = tempfile::tempfile().unwrap();
        let mut console = Console::new(Some(file.try_clone().unwrap()));
        console.write_all(b"first line\n").unwrap();
        for _ in 0..3000 {
            console.write_all(&[b'x'; 1000]).unwrap();
        }
        console.write_all(b"\nlast line\n").unwrap();
        assert_eq!(console.tail(11), "last line");
        console.finish();
        let bytes = content(&mut file);
        assert!(bytes.len() as u64 <= CONSOLE_BYTES, "{}", bytes.len());
        assert!(bytes.starts_with(b"first line\n") && bytes.ends_with(b"\nlast line\n"));
        assert!(String::from_utf8(bytes).unwrap().contains("bytes of output left out"));
    }

    #[test]
    fn little_output_is_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let mut console = Console::new(Some(file.try_clone().unwrap()));
        console.write_all(b"hello\n").unwrap();
        console.finish();
        assert_eq!(content(&mut file), b"hello\n");
    }

    #[test]
    fn a_full_file_stays_within_its_bound() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(CONSOLE_BYTES - 200).unwrap();
        file.seek(io::SeekFrom::End(0)).unwrap();
        let mut console = Console::new(Some(file.try_clone().unwrap()));
        console.write_all(&[b'x'; 100]).unwrap();
        console.finish();
        assert_eq!(file.metadata().unwrap().len(), CONSOLE_BYTES - 100);
    }
}
