//! Docker's `local` format: the length of a protobuf message (32 bits, big endian), the message, the length again, so
//! that the file can be read from either end.
//!
//! ```text
//! message LogEntry { string source = 1; int64 time_nano = 2; bytes line = 3; bool partial = 4; }
//! ```
//! The line is kept without its newline, which `partial` says is missing (moby, `api/types/plugins/logdriver/entry.proto`).

use super::{Entry, Source};
use std::collections::BTreeMap;

/// Longer ones are not ours: the file is damaged from there on.
pub(super) const MAX_MESSAGE: usize = 1 << 20;

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// Appends one entry.
pub(super) fn entry(out: &mut Vec<u8>, source: Source, time_ns: i64, text: &[u8]) {
    let (line, partial) = text.strip_suffix(b"\n").map_or((text, true), |line| (line, false));
    let start = out.len();
    out.extend([0; 4]);
    out.push(1 << 3 | 2);
    varint(out, source.as_str().len() as u64);
    out.extend(source.as_str().as_bytes());
    out.push(2 << 3);
    varint(out, time_ns as u64);
    out.push(3 << 3 | 2);
    varint(out, line.len() as u64);
    out.extend(line);
    if partial {
        out.extend([4 << 3, 1]);
    }
    let len = ((out.len() - start - 4) as u32).to_be_bytes();
    if let Some(slot) = out.get_mut(start..start + 4) {
        slot.copy_from_slice(&len);
    }
    out.extend(len);
}

/// Reads one message; `None` for a damaged one.
pub(super) fn parse(mut message: &[u8]) -> Option<Entry> {
    let mut entry = Entry { time_ns: 0, source: Source::Stdout, line: Vec::new(), attrs: BTreeMap::new() };
    let mut partial = false;
    while !message.is_empty() {
        let key = read_varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = read_varint(&mut message)?;
                match key >> 3 {
                    2 => entry.time_ns = value as i64,
                    4 => partial = value != 0,
                    _ => {}
                }
            }
            2 => {
                let len = usize::try_from(read_varint(&mut message)?).ok()?;
                let (value, rest) = message.split_at_checked(len)?;
                message = rest;
                match key >> 3 {
                    1 if value == b"stderr" => entry.source = Source::Stderr,
                    3 => entry.line = value.to_vec(),
                    _ => {}
                }
            }
            _ => return None,
        }
    }
    if !partial {
        entry.line.push(b'\n');
    }
    Some(entry)
}

/// The first message of `bytes` with the bytes it takes: `Err` where no message can be.
pub(super) fn split(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, ()> {
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let n = u32::from_be_bytes(*len) as usize;
    if n > MAX_MESSAGE {
        return Err(());
    }
    let (Some(message), Some(again)) = (rest.get(..n), rest.get(n..n + 4)) else { return Ok(None) };
    if again == len { Ok(Some((message, n + 8))) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(text in proptest::collection::vec(any::<u8>(), 0..300), time in any::<i64>()) {
            let text: Vec<u8> = text.into_iter().filter(|b| *b != b'\n').collect();
            for line in [text.clone(), [&text[..], b"\n"].concat()] {
                let mut out = Vec::new();
                entry(&mut out, Source::Stderr, time, &line);
                let (message, len) = split(&out).unwrap().unwrap();
                prop_assert_eq!(len, out.len());
                let back = parse(message).unwrap();
                prop_assert_eq!((back.time_ns, back.source, back.line), (time, Source::Stderr, line));
            }
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = split(&garbage);
            let _ = parse(&garbage);
        }
    }
}
