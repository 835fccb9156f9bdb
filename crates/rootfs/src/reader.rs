//! Reading tar streams: ustar, pax and the long names of GNU.
//!
//! The `tar` crate reads the fields of a header; the records of pax are read here, because it cuts them at newlines, and
//! the value of an extended attribute (`security.capability`, for one) may hold any byte.

use crate::error::{Result, RootfsError};
use crate::tarball::parse_time;
use crate::tree::{self, Xattr};
use std::io::{self, Read};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// More than any path, link and set of attributes that Linux allows.
const LONGEST: u64 = 1 << 20;

/// One entry, its content to be read next.
pub(crate) struct Entry {
    pub kind: EntryType,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: Vec<Xattr>,
}

/// A stream being read.
pub(crate) struct Reader<'a> {
    from: &'a mut dyn Read,
    /// Unread content of the present entry, and the padding after it.
    left: u64,
    padding: u64,
}

/// What the entries before an entry said about it.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<Xattr>,
}

impl<'a> Reader<'a> {
    pub fn new(from: &'a mut dyn Read) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            // Longer than any stream is whatever overflows.
            let rest = self.left.saturating_add(self.padding);
            let skipped = io::copy(&mut self.from.take(rest), &mut io::sink()).map_err(bad)?;
            if skipped != rest {
                return Err(bad(io::ErrorKind::UnexpectedEof.into()));
            }
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(bad)?;
            let kind = header.entry_type();
            match kind {
                EntryType::XHeader => extended.pax(&self.long(size)?)?,
                EntryType::XGlobalHeader => drop(self.long(size)?),
                EntryType::GNULongName => extended.name = Some(c_string(self.long(size)?)),
                EntryType::GNULongLink => extended.link = Some(c_string(self.long(size)?)),
                _ => {
                    let entry = extended.complete(&header, kind, size)?;
                    let has_content = matches!(kind, EntryType::Regular | EntryType::Continuous);
                    self.skip_later(if has_content { entry.size } else { size });
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Whatever follows the archive, up to a limit.
    pub fn drain(self, limit: u64) -> io::Result<u64> {
        io::copy(&mut self.from.take(limit), &mut io::sink())
    }

    fn skip_later(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            match self.from.read(&mut block[at..]) {
                // Some writers leave out the blocks at the end.
                Ok(0) if at == 0 => return Ok(None),
                Ok(0) => return Err(bad(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(bad(e)),
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        let field: u32 = block[148..156].iter().map(|b| u32::from(*b)).sum();
        if header.cksum().map_err(bad)? != sum - field + 8 * u32::from(b' ') {
            return Err(bad(io::Error::new(io::ErrorKind::InvalidData, "a header has a wrong checksum")));
        }
        Ok(Some(header))
    }

    /// The content of an entry that describes the next one.
    fn long(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > LONGEST {
            return Err(bad(io::Error::new(io::ErrorKind::InvalidData, "an extended header is too long")));
        }
        self.skip_later(size);
        let mut out = Vec::new();
        self.take(size).read_to_end(&mut out).map_err(bad)?;
        Ok(out)
    }
}

/// Reads the content of the present entry.
impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.from.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

impl Extended {
    fn pax(&mut self, mut records: &[u8]) -> Result<()> {
        while !records.is_empty() {
            let (key, value, rest) = record(records).ok_or_else(|| {
                bad(io::Error::new(io::ErrorKind::InvalidData, "an extended header is malformed"))
            })?;
            let text = || std::str::from_utf8(value).ok();
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = text().and_then(|t| t.parse().ok()),
                b"gid" => self.gid = text().and_then(|t| t.parse().ok()),
                b"size" => self.size = text().and_then(|t| t.parse().ok()),
                b"mtime" => self.mtime = text().and_then(parse_time),
                // Without its map, what follows is not the file's content.
                _ if key.starts_with(b"GNU.sparse.") => {
                    let why = "sparse files are not supported: make the archive without --sparse";
                    return Err(bad(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                        && tree::travels(name)
                        && !name.contains(&0)
                    {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            records = rest;
        }
        Ok(())
    }

    fn complete(&mut self, header: &Header, kind: EntryType, size: u64) -> Result<Entry> {
        let extended = std::mem::take(self);
        let or = |value: Option<u64>, field: io::Result<u64>| value.map_or(field, Ok).map_err(bad);
        Ok(Entry {
            kind,
            name: extended.name.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extended
                .link
                .or_else(|| header.link_name_bytes().map(|l| l.into_owned()))
                .unwrap_or_default(),
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: or(extended.uid, header.uid())?,
            gid: or(extended.gid, header.gid())?,
            size: extended.size.unwrap_or(size),
            mtime: extended
                .mtime
                .unwrap_or_else(|| (header.mtime().ok().and_then(|s| s.try_into().ok()).unwrap_or(0), 0)),
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs: extended.xattrs,
        })
    }
}

/// Key, value and rest of `LENGTH KEY=VALUE\n…`.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let body = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn bad(source: io::Error) -> RootfsError {
    RootfsError::Tar { source }
}
