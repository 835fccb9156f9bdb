//! Writing tar streams: POSIX.1-2001 (`pax`), with extended records only where the plain header cannot say it.
//!
//! The same tree gives the same bytes: entries come sorted by name, no time of day and no user name enters.

use crate::error::{Context, Result, RootfsError};
use crate::tree::{self, Kind, Meta, Xattr};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BLOCK: usize = 512;
const BUFFER: usize = 256 * 1024;

/// One entry, without its content.
pub(crate) struct Header<'a> {
    pub name: &'a [u8],
    pub link: &'a [u8],
    /// The type flag.
    pub flag: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: &'a [Xattr],
}

/// A tar stream being written.
pub(crate) struct Tarball<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    /// Where inodes with several names were first written.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a> Tarball<'a> {
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, buffer: Vec::with_capacity(BUFFER), linked: HashMap::new() }
    }

    /// Writes the file `name` in `dir` as the entry `entry`; of a directory only itself. The empty name is `dir`. What
    /// vanished meanwhile is left out, and so are sockets, which no tar can hold. Where something is mounted on a file,
    /// an empty file stands for it if `hide_mounts`.
    pub fn add(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        meta: &Meta,
        entry: &[u8],
        hide_mounts: bool,
    ) -> Result<()> {
        let path = || Path::new(OsStr::from_bytes(entry)).to_owned();
        let gone = |e: &Errno| matches!(*e, Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::LOOP);
        let mut header = Header {
            name: entry,
            link: b"",
            flag: b'0',
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            size: 0,
            mtime: meta.mtime,
            device: (0, 0),
            xattrs: &[],
        };
        if meta.nlink > 1 && !meta.is_dir() && meta.kind != Kind::Socket {
            if let Some(first) = self.linked.get(&meta.id) {
                let first = first.clone();
                header.flag = b'1';
                header.link = &first;
                return self.header(&header);
            }
            self.linked.insert(meta.id, entry.to_vec());
        }
        let target;
        let slashed;
        let xattrs = match tree::xattrs(dir, name) {
            Err(e) if gone(&e) => Vec::new(),
            other => other.on("read the extended attributes of", path())?,
        };
        header.xattrs = &xattrs;
        match meta.kind {
            Kind::Socket => return Ok(()),
            Kind::File if hide_mounts && meta.mount_root => {}
            Kind::File => {
                let mut file = match tree::file(dir, name) {
                    Err(e) if gone(&e) => return Ok(()),
                    other => other.on("open", path())?,
                };
                header.size = file.metadata().on("look at", path())?.len();
                self.header(&header)?;
                return self.body(&mut file, header.size, &path());
            }
            Kind::Directory => {
                header.flag = b'5';
                if !entry.ends_with(b"/") {
                    slashed = [entry, b"/"].concat();
                    header.name = &slashed;
                }
            }
            Kind::Symlink => {
                target = match tree::link_target(dir, name) {
                    Err(e) if gone(&e) => return Ok(()),
                    other => other.on("read the link", path())?,
                };
                header.flag = b'2';
                header.link = &target;
            }
            Kind::Char => (header.flag, header.device) = (b'3', meta.device),
            Kind::Block => (header.flag, header.device) = (b'4', meta.device),
            Kind::Fifo => header.flag = b'6',
        }
        self.header(&header)
    }

    /// Writes an empty regular file, for whiteouts.
    pub fn marker(&mut self, entry: &[u8]) -> Result<()> {
        self.header(&Header {
            name: entry,
            link: b"",
            flag: b'0',
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: (0, 0),
            device: (0, 0),
            xattrs: &[],
        })
    }

    /// Writes the two blocks that end an archive.
    pub fn finish(mut self) -> Result<()> {
        self.buffer.extend_from_slice(&[0; 2 * BLOCK]);
        self.flush()?;
        self.out.flush().map_err(|source| RootfsError::Output { source })
    }

    pub fn header(&mut self, h: &Header<'_>) -> Result<()> {
        let records = pax_records(h);
        if !records.is_empty() {
            let base = h.name.rsplit(|b| *b == b'/').find(|part| !part.is_empty()).unwrap_or(b"");
            let mut name = b"PaxHeaders.0/".to_vec();
            name.extend_from_slice(&base[..base.len().min(80)]);
            self.long(&name, b'x', &records);
        }
        // Names that pax, being UTF-8, cannot carry go the GNU way.
        for (bytes, flag) in [(h.name, b'L'), (h.link, b'K')] {
            if bytes.len() > 100 && std::str::from_utf8(bytes).is_err() {
                self.long(b"././@LongLink", flag, &[bytes, b"\0"].concat());
            }
        }
        let block = plain(h);
        self.buffer.extend_from_slice(&block);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn long(&mut self, name: &[u8], flag: u8, content: &[u8]) {
        let size = content.len() as u64;
        let header = Header {
            name,
            link: b"",
            flag,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            mtime: (0, 0),
            device: (0, 0),
            xattrs: &[],
        };
        self.buffer.extend_from_slice(&plain(&header));
        self.buffer.extend_from_slice(content);
        self.pad(size);
    }

    /// Writes exactly `size` bytes: a file that grows meanwhile is cut, one that shrinks is filled with zeros.
    fn body(&mut self, file: &mut impl Read, size: u64, path: &Path) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let start = self.buffer.len();
            let room = (BUFFER.saturating_sub(start)).max(BLOCK) as u64;
            self.buffer.resize(start + room.min(left) as usize, 0);
            let read = loop {
                match file.read(&mut self.buffer[start..]) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    other => break other.on("read", path)?,
                }
            };
            if read == 0 {
                // Shrunk: the zeros are there already.
                left -= (self.buffer.len() - start) as u64;
            } else {
                self.buffer.truncate(start + read);
                left -= read as u64;
            }
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        self.pad(size);
        Ok(())
    }

    fn pad(&mut self, size: u64) {
        let rest = (size % BLOCK as u64) as usize;
        if rest > 0 {
            self.buffer.resize(self.buffer.len() + BLOCK - rest, 0);
        }
    }

    fn flush(&mut self) -> Result<()> {
        let done = self.out.write_all(&self.buffer);
        self.buffer.clear();
        done.map_err(|source| RootfsError::Output { source })
    }
}

/// The 512 bytes of POSIX.1-1988; values too large for it are cut and stand in the pax records.
fn plain(h: &Header<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut text = |at: usize, bytes: &[u8]| {
        let n = bytes.len().min(100);
        block[at..at + n].copy_from_slice(&bytes[..n]);
    };
    text(0, h.name);
    text(157, h.link);
    let mut octal = |at: usize, width: usize, value: u64| {
        let digits = format!("{:0w$o}", value, w = width - 1);
        if digits.len() < width {
            block[at..at + digits.len()].copy_from_slice(digits.as_bytes());
        } else {
            block[at..at + width - 1].fill(b'0');
        }
    };
    octal(100, 8, u64::from(h.mode));
    octal(108, 8, u64::from(h.uid));
    octal(116, 8, u64::from(h.gid));
    octal(124, 12, h.size);
    octal(136, 12, u64::try_from(h.mtime.0).unwrap_or(0));
    octal(329, 8, u64::from(h.device.0));
    octal(337, 8, u64::from(h.device.1));
    block[156] = h.flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// What the plain header cannot say.
fn pax_records(h: &Header<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| {
        // The length counts itself.
        let rest = key.len() + value.len() + 3;
        let mut total = rest + 1;
        while total != rest + total.to_string().len() {
            total = rest + total.to_string().len();
        }
        out.extend_from_slice(total.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    };
    for (key, value) in h.xattrs {
        record(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
    }
    if h.gid > 0o7777777 {
        record(b"gid", h.gid.to_string().as_bytes());
    }
    if h.link.len() > 100 && std::str::from_utf8(h.link).is_ok() {
        record(b"linkpath", h.link);
    }
    if h.mtime.1 != 0 || !(0..=0o77777777777).contains(&h.mtime.0) {
        record(b"mtime", pax_time(h.mtime).as_bytes());
    }
    if h.name.len() > 100 && std::str::from_utf8(h.name).is_ok() {
        record(b"path", h.name);
    }
    if h.size > 0o77777777777 {
        record(b"size", h.size.to_string().as_bytes());
    }
    if h.uid > 0o7777777 {
        record(b"uid", h.uid.to_string().as_bytes());
    }
    out
}

/// Decimal seconds with as many digits as needed.
fn pax_time((seconds, nanos): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
    let (whole, part) = (total / 1_000_000_000, total % 1_000_000_000);
    if part == 0 {
        return format!("{sign}{whole}");
    }
    let digits = format!("{part:09}");
    format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

/// Reads such a time back.
pub(crate) fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if whole.len() > 18 || !(whole.bytes().chain(part.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => (whole, nanos),
        (true, 0) => (-whole, 0),
        (true, _) => (-whole - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_come_back(seconds in -1_000_000_000_000i64..1_000_000_000_000, nanos in 0u32..1_000_000_000) {
            prop_assert_eq!(parse_time(&pax_time((seconds, nanos))), Some((seconds, nanos)));
        }

        #[test]
        fn headers_come_back(
            name in "[a-zé/]{1,300}", link in proptest::collection::vec(1u8..=255, 1..300),
            mode in 0u32..0o7777, uid: u32, gid: u32, seconds in -9_999_999_999i64..99_999_999_999,
            nanos in 0u32..1_000_000_000, value in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let xattrs = [(b"user.x".to_vec(), value)];
            let header = Header {
                name: name.as_bytes(), link: &link, flag: b'2', mode, uid, gid, size: 0,
                mtime: (seconds, nanos), device: (0, 0), xattrs: &xattrs,
            };
            let mut out = Vec::new();
            let mut tarball = Tarball::new(&mut out);
            tarball.header(&header).unwrap();
            tarball.finish().unwrap();
            let mut stream = &out[..];
            let mut reader = crate::reader::Reader::new(&mut stream);
            let entry = reader.next().unwrap().unwrap();
            prop_assert_eq!(&entry.name, name.as_bytes());
            prop_assert_eq!(&entry.link, &link);
            prop_assert_eq!((entry.mode, entry.uid, entry.gid), (mode, uid.into(), gid.into()));
            prop_assert_eq!(entry.mtime, (seconds, nanos));
            prop_assert_eq!(&entry.xattrs[..], &xattrs[..]);
            prop_assert!(reader.next().unwrap().is_none());
        }
    }

    #[test]
    fn nonsense_times_are_none() {
        for bad in ["", ".", "1.x", "--1", "1e3", "99999999999999999999"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
