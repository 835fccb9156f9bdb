//! Reads a tar stream entry by entry: v7, ustar, PAX and GNU forms, long names and sparse files of each.
//!
//! Knows no file system: paths come out as the tar has them, for [`tree`](super::tree) to judge. What is
//! accepted follows Go's `archive/tar`, since that is what wrote nearly every layer and what others read them with:
//! global PAX headers are ignored, and types without content have none whatever their size field says.

use super::error::{LayerError, Result, entry, shown};
use super::pax::{self, MAX_EXTENSION, Pax, check_map, decimal};
use super::source::Source;

pub(super) const BLOCK: usize = 512;

/// A piece of a sparse file that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// The pieces of a sparse file, in order, without overlap.
pub(super) type SparseMap = Vec<Segment>;

/// Names and values of extended attributes.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Attributes of an inode.
#[derive(Clone, Debug, Default)]
pub(super) struct Meta {
    /// The lower twelve bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub nanos: u32,
    pub xattrs: Xattrs,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum Kind {
    File { size: u64, sparse: Option<SparseMap> },
    Dir,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One entry, without its content.
#[derive(Debug)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
}

/// The reader.
pub(super) struct Tar<'a> {
    source: Source<'a>,
    /// Content of the current entry that was not read yet, and the padding after it.
    content: u64,
    padding: u64,
    headers: u64,
    max_headers: u64,
    /// Whether the end must be marked by zero blocks.
    strict: bool,
}

impl<'a> Tar<'a> {
    pub(super) fn new(source: Source<'a>, max_headers: u64, strict: bool) -> Self {
        Self { source, content: 0, padding: 0, headers: 0, max_headers, strict }
    }

    /// Passes over what is left of the current entry, and reads the header of the next.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut pax = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.source.skip(self.content + self.padding)?;
            (self.content, self.padding) = (0, 0);
            let at = self.source.position();
            let Some(header) = self.header()? else {
                return match (&pax, &long_name, &long_link) {
                    (None, None, None) => Ok(None),
                    _ => Err(damaged(at, "an extended header without an entry after it")),
                };
            };
            let size = number(field(&header, 124, 12)).filter(|n| *n >= 0);
            let size = size.ok_or_else(|| damaged(at, "a bad size"))? as u64;
            match header[156] {
                b'x' => {
                    let data = self.extension(size)?;
                    pax = Some(pax::parse(&data).map_err(|what| damaged(at, &what))?);
                }
                b'L' => long_name = Some(cut(&self.extension(size)?).to_vec()),
                b'K' => long_link = Some(cut(&self.extension(size)?).to_vec()),
                // Global headers and volume labels say nothing about any file.
                b'g' | b'V' => self.set_content(size)?,
                _ => {
                    let pax = pax.unwrap_or_default();
                    return self.entry(at, &header, size, pax, long_name, long_link).map(Some);
                }
            }
        }
    }

    /// Some of the content of the current entry, at most `max` bytes; empty at its end only.
    pub(super) fn content(&mut self, max: usize) -> Result<&[u8]> {
        let max = usize::try_from(self.content).unwrap_or(usize::MAX).min(max);
        if max == 0 {
            return Ok(&[]);
        }
        if self.source.at_end()? {
            return Err(self.source.truncated());
        }
        let chunk = self.source.chunk(max)?;
        self.content -= chunk.len() as u64;
        Ok(chunk)
    }

    /// The stream, for what comes after the archive.
    pub(super) fn into_source(self) -> Source<'a> {
        self.source
    }

    /// The next header block with a right checksum; none at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let at = self.source.position();
        let mut block = [0; BLOCK];
        if !self.source.or_end(&mut block)? {
            return if self.strict { Err(self.source.truncated()) } else { Ok(None) };
        }
        if block == [0; BLOCK] {
            let mut second = [0; BLOCK];
            if self.source.or_end(&mut second)? && second != [0; BLOCK] {
                return Err(damaged(at, "an empty header in the middle of the archive"));
            }
            return Ok(None);
        }
        let sum = |byte: fn(u8) -> i64| -> i64 {
            let spaces = 8 * i64::from(b' ');
            block
                .iter()
                .enumerate()
                .filter(|(i, _)| !(148..156).contains(i))
                .map(|(_, b)| byte(*b))
                .sum::<i64>()
                + spaces
        };
        // Some old writers summed signed bytes.
        let stored = number(field(&block, 148, 8));
        if stored != Some(sum(i64::from)) && stored != Some(sum(|b| i64::from(b as i8))) {
            return Err(damaged(at, "a header with a wrong checksum"));
        }
        self.headers += 1;
        if self.headers > self.max_headers {
            return Err(LayerError::Limit { what: "the number of its entries", limit: self.max_headers });
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(LayerError::Limit { what: "the size of an extended header", limit: MAX_EXTENSION });
        }
        let mut data = vec![0; size as usize];
        self.source.exact(&mut data)?;
        self.padding = padding(size);
        Ok(data)
    }

    fn set_content(&mut self, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(LayerError::Limit { what: "the size of a file", limit: i64::MAX as u64 });
        }
        (self.content, self.padding) = (size, padding(size));
        Ok(())
    }

    fn entry(
        &mut self,
        at: u64,
        header: &[u8; BLOCK],
        size: u64,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let path = long_name.or(pax.sparse.name.take()).or(pax.path.take()).unwrap_or_else(|| name(header));
        let link = || long_link.or(pax.link.take()).unwrap_or_else(|| cut(field(header, 157, 100)).to_vec());
        let stored = pax.size.unwrap_or(size);
        let kind = match header[156] {
            0 if path.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' | b'S' => self.file(at, header, &path, stored, &mut pax)?,
            b'5' => Kind::Dir,
            b'1' => Kind::HardLink(link()),
            b'2' => Kind::Symlink(link()),
            b'3' => {
                device(header).map(|(a, b)| Kind::Char(a, b)).ok_or_else(|| damaged(at, "a bad device"))?
            }
            b'4' => {
                device(header).map(|(a, b)| Kind::Block(a, b)).ok_or_else(|| damaged(at, "a bad device"))?
            }
            b'6' => Kind::Fifo,
            other => {
                return Err(entry(&path, format!("is of an unknown type ({:?})", char::from(other))));
            }
        };
        let meta = meta(header, pax).map_err(|what| damaged(at, &format!("{what} of {:?}", shown(&path))))?;
        Ok(Entry { path, kind, meta })
    }

    fn file(&mut self, at: u64, header: &[u8], path: &[u8], stored: u64, pax: &mut Pax) -> Result<Kind> {
        let sparse = &mut pax.sparse;
        let (size, map) = if header[156] == b'S' {
            let (size, map) = self.gnu_map(at, header)?;
            self.set_content(stored)?;
            (size, Some(map))
        } else if sparse.version.0 == 1 {
            self.set_content(stored)?;
            let map = self.pax_map(at)?;
            (sparse.size.ok_or_else(|| damaged(at, "a sparse file without its size"))?, Some(map))
        } else if let Some(map) = sparse.map.take() {
            self.set_content(stored)?;
            (sparse.size.ok_or_else(|| damaged(at, "a sparse file without its size"))?, Some(map))
        } else {
            self.set_content(stored)?;
            (stored, None)
        };
        if size > i64::MAX as u64 {
            return Err(LayerError::Limit { what: "the size of a file", limit: i64::MAX as u64 });
        }
        let sparse = map.map(|map| check_map(path, map, size, self.content)).transpose()?;
        Ok(Kind::File { size, sparse })
    }

    /// The map of an old GNU sparse entry: four pieces in the header, 21 in each block that follows.
    fn gnu_map(&mut self, at: u64, header: &[u8]) -> Result<(u64, SparseMap)> {
        let bad = || damaged(at, "a bad sparse map");
        let mut map = Vec::new();
        let take = |map: &mut SparseMap, pieces: &[u8]| -> Result<()> {
            for piece in pieces.chunks_exact(24).filter(|p| p.iter().any(|b| *b != 0 && *b != b' ')) {
                let get = |range| number(field(piece, range, 12)).and_then(|n| u64::try_from(n).ok());
                map.push(Segment { offset: get(0).ok_or_else(bad)?, length: get(12).ok_or_else(bad)? });
            }
            Ok(())
        };
        take(&mut map, field(header, 386, 96))?;
        let mut more = header[482] != 0;
        while more {
            if map.len() as u64 > MAX_EXTENSION {
                return Err(LayerError::Limit {
                    what: "the number of a sparse file's pieces",
                    limit: MAX_EXTENSION,
                });
            }
            let mut block = [0; BLOCK];
            self.source.exact(&mut block)?;
            let before = map.len();
            take(&mut map, field(&block, 0, 504))?;
            more = block[504] != 0 && map.len() > before;
        }
        let size = number(field(header, 483, 12)).and_then(|n| u64::try_from(n).ok()).ok_or_else(bad)?;
        Ok((size, map))
    }

    /// The map of a PAX 1.0 sparse entry: decimal lines at the head of its content, padded to a block.
    fn pax_map(&mut self, at: u64) -> Result<SparseMap> {
        let bad = || damaged(at, "a bad sparse map");
        let mut block = [0; BLOCK];
        let mut used = BLOCK;
        let mut line = |tar: &mut Self| -> Result<u64> {
            let mut digits = Vec::new();
            loop {
                if used == BLOCK {
                    tar.content = tar.content.checked_sub(BLOCK as u64).ok_or_else(bad)?;
                    tar.source.exact(&mut block)?;
                    used = 0;
                }
                let byte = block[used];
                used += 1;
                match byte {
                    b'\n' => return decimal(&digits).ok_or_else(bad),
                    _ if digits.len() < 20 => digits.push(byte),
                    _ => return Err(bad()),
                }
            }
        };
        let count = line(self)?;
        if count > MAX_EXTENSION {
            return Err(LayerError::Limit {
                what: "the number of a sparse file's pieces",
                limit: MAX_EXTENSION,
            });
        }
        let mut map = Vec::new();
        for _ in 0..count {
            map.push(Segment { offset: line(self)?, length: line(self)? });
        }
        Ok(map)
    }
}

fn damaged(at: u64, what: &str) -> LayerError {
    LayerError::Damaged { at, what: what.to_owned() }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn field(block: &[u8], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

/// The bytes before the first NUL.
fn cut(text: &[u8]) -> &[u8] {
    text.split(|b| *b == 0).next().unwrap_or_default()
}

/// The path in the header: `prefix/name` in ustar archives, `name` in all others.
fn name(header: &[u8]) -> Vec<u8> {
    let short = cut(field(header, 0, 100));
    let prefix = match field(header, 257, 8) {
        b"ustar\x0000" if field(header, 508, 4) == b"tar\0" => cut(field(header, 345, 131)),
        b"ustar\x0000" => cut(field(header, 345, 155)),
        _ => b"",
    };
    if prefix.is_empty() { short.to_vec() } else { [prefix, b"/", short].concat() }
}

/// A number field: octal digits between spaces or NULs (nothing is 0), or GNU's base 256.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = if negative { -1_i64 } else { 0 };
        return field.iter().enumerate().try_fold(start, |n, (i, b)| {
            let byte = if i == 0 && !negative { b & 0x7f } else { *b };
            Some(n.checked_mul(256)? | i64::from(byte))
        });
    }
    let blank = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits = field[start..].split(blank).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |n, b| {
        matches!(b, b'0'..=b'7').then_some(())?;
        n.checked_mul(8)?.checked_add(i64::from(b - b'0'))
    })
}

fn device(header: &[u8]) -> Option<(u32, u32)> {
    // Twelve and twenty bits are what Linux has.
    let get = |at, max| number(field(header, at, 8)).and_then(|n| u32::try_from(n).ok()).filter(|n| *n < max);
    Some((get(329, 1 << 12)?, get(337, 1 << 20)?))
}

fn meta(header: &[u8], pax: Pax) -> std::result::Result<Meta, &'static str> {
    let id = |pax: Option<u64>, at| {
        let id = pax.or_else(|| number(field(header, at, 8)).and_then(|n| u64::try_from(n).ok()))?;
        // All ones means "nobody" to chown(2) and is no id.
        u32::try_from(id).ok().filter(|id| *id != u32::MAX)
    };
    let (mtime, nanos) = match pax.mtime {
        Some(time) => time,
        None => (number(field(header, 136, 12)).ok_or("a bad time")?, 0),
    };
    Ok(Meta {
        mode: number(field(header, 100, 8)).ok_or("bad permissions")? as u16 & 0o7777,
        uid: id(pax.uid, 108).ok_or("a bad owner")?,
        gid: id(pax.gid, 116).ok_or("a bad group")?,
        mtime,
        nanos,
        xattrs: pax.xattrs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"12x4"), None);
        assert_eq!(number(b""), None);
    }
}
