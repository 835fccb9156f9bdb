//! PAX extended headers (POSIX.1-2017, `pax`, "pax Extended Header") and the three sparse forms GNU tar wrote
//! into them (GNU tar manual, "Storing Sparse Files").

use super::error::{Result, entry};
use super::tar::{Segment, SparseMap};

/// Largest extended header, long name or long link target: no honest one comes near.
pub(super) const MAX_EXTENSION: u64 = 1 << 20;
/// Bytes of xattrs one entry may carry; what EROFS can hold is twice that.
const MAX_XATTRS: usize = 128 << 10;
/// Pieces a sparse file may consist of.
const MAX_SEGMENTS: usize = 1 << 20;

/// What an extended header says about the entry after it. Unknown keywords are ignored, as POSIX wants.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// GNU.sparse.* records.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// `GNU.sparse.major` and `minor`.
    pub version: (u64, u64),
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `realsize`.
    pub size: Option<u64>,
    /// From `map`, or from `offset` and `numbytes` pairs.
    pub map: Option<SparseMap>,
    offset: Option<u64>,
}

/// Parses an extended header; the error is what is wrong with it.
pub(super) fn parse(mut data: &[u8]) -> std::result::Result<Pax, String> {
    let mut pax = Pax::default();
    while !data.is_empty() && data.iter().any(|b| *b != 0) {
        let bad = || "a malformed PAX record".to_owned();
        let space = data.iter().take(21).position(|b| *b == b' ').ok_or_else(bad)?;
        let length = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
        let record = data.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(bad)?;
        data = data.get(length..).ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        keyword(&mut pax, key, value)
            .ok_or_else(|| format!("the PAX record {:?} has a bad value", String::from_utf8_lossy(key)))?;
    }
    Ok(pax)
}

fn keyword(pax: &mut Pax, key: &[u8], value: &[u8]) -> Option<()> {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        pax.xattrs.retain(|(old, _)| old != name);
        pax.xattrs.push((name.to_vec(), value.to_vec()));
        let total: usize = pax.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        return (total <= MAX_XATTRS).then_some(());
    }
    let text = |v: &[u8]| (!v.contains(&0)).then(|| v.to_vec());
    // An empty value takes back what an earlier record said.
    let empty = value.is_empty();
    match key {
        b"path" => pax.path = if empty { None } else { Some(text(value)?) },
        b"linkpath" => pax.link = if empty { None } else { Some(text(value)?) },
        b"size" => pax.size = if empty { None } else { Some(decimal(value)?) },
        b"uid" => pax.uid = if empty { None } else { Some(decimal(value)?) },
        b"gid" => pax.gid = if empty { None } else { Some(decimal(value)?) },
        b"mtime" => pax.mtime = if empty { None } else { Some(time(value)?) },
        b"GNU.sparse.major" => pax.sparse.version.0 = decimal(value)?,
        b"GNU.sparse.minor" => pax.sparse.version.1 = decimal(value)?,
        b"GNU.sparse.name" => pax.sparse.name = Some(text(value)?),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => pax.sparse.size = Some(decimal(value)?),
        b"GNU.sparse.map" => {
            let mut map = Vec::new();
            let mut numbers = value.split(|b| *b == b',');
            while let Some(offset) = numbers.next().filter(|n| !n.is_empty()) {
                map.push(Segment { offset: decimal(offset)?, length: decimal(numbers.next()?)? });
            }
            pax.sparse.map = Some(map);
        }
        b"GNU.sparse.offset" => pax.sparse.offset = Some(decimal(value)?),
        b"GNU.sparse.numbytes" => {
            let segment = Segment { offset: pax.sparse.offset.take()?, length: decimal(value)? };
            pax.sparse.map.get_or_insert_default().push(segment);
        }
        b"GNU.sparse.numblocks" => {
            pax.sparse.map.get_or_insert_default();
        }
        _ => {}
    }
    Some(())
}

/// Checks a map against the file's size and the bytes stored in the tar, and drops its empty pieces.
pub(super) fn check_map(path: &[u8], map: SparseMap, size: u64, stored: u64) -> Result<SparseMap> {
    let bad = || entry(path, "has a sparse map that contradicts itself");
    if map.len() > MAX_SEGMENTS {
        return Err(entry(path, "is sparse in more pieces than can be handled"));
    }
    let (mut end, mut sum) = (0_u64, 0_u64);
    for piece in &map {
        let next = piece.offset.checked_add(piece.length).ok_or_else(bad)?;
        if piece.offset < end || next > size {
            return Err(bad());
        }
        end = next;
        sum += piece.length;
    }
    if sum != stored {
        return Err(bad());
    }
    Ok(map.into_iter().filter(|p| p.length > 0).collect())
}

/// An unsigned decimal number, nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |n, b| {
        b.is_ascii_digit().then_some(())?;
        n.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

/// Seconds with an optional fraction, possibly negative, as seconds and nanoseconds after them.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0_u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for i in 0..9 {
            nanos = nanos * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
        }
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_hold_any_byte() {
        let pax = parse(b"32 SCHILY.xattr.user.a=x\ny=\0\n z\n19 mtime=-1.250000\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\ny=\0\n z"[..].to_vec())]);
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [&b"5 a=b\n"[..], b"6 a b\n", b"x a=b\n", b"99 a=b\n", b"11 uid=abc\n", b"3\n", b"0 a=b\n"]
        {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(parse(b"12 path=a\0b\n").is_err());
    }

    #[test]
    fn maps_are_checked() {
        let s = |offset, length| Segment { offset, length };
        assert!(check_map(b"f", vec![s(0, 1), s(5, 5), s(10, 0)], 10, 6).is_ok());
        assert!(check_map(b"f", vec![s(5, 5), s(0, 1)], 10, 6).is_err());
        assert!(check_map(b"f", vec![s(0, 11)], 10, 11).is_err());
        assert!(check_map(b"f", vec![s(u64::MAX, 2)], u64::MAX, 2).is_err());
        assert!(check_map(b"f", vec![s(0, 5)], 10, 6).is_err());
    }
}
