//! Docker's json-file format: `{"log":"…\n","stream":"stdout","attrs":{…},"time":"…"}` and a newline.
//!
//! Written by hand, since this is where a workload's output rate is decided: bytes that need no escape are found 32 at
//! a time and copied at once, the others looked up. Escapes are those of Docker's encoder (moby, `jsonfilelog/jsonlog`).

use super::{Entry, Source, parse_time};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What follows the text of every entry of one moment.
pub(super) fn tail(source: Source, attrs: &BTreeMap<String, String>, time: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.extend(b"\",\"stream\":\"");
    out.extend(source.as_str().as_bytes());
    out.push(b'"');
    if !attrs.is_empty() {
        out.extend(b",\"attrs\":");
        // Strings to strings: writing them to memory cannot fail.
        let _ = serde_json::to_writer(&mut out, attrs);
    }
    out.extend(b",\"time\":\"");
    out.extend(time.as_bytes());
    out.extend(b"\"}\n");
    out
}

/// Appends one entry.
pub(super) fn entry(out: &mut Vec<u8>, text: &[u8], tail: &[u8]) {
    out.extend(b"{\"log\":\"");
    escape(out, text);
    out.extend(tail);
}

/// Bytes that are looked at together.
const PIECE: usize = 32;
/// The longest escape.
const LONGEST: usize = 6;
const REPLACEMENT: [u8; 8] = padded(b"\\ufffd");

/// Up to seven bytes, and their number at the end: one store writes them, whatever their number.
const fn padded(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    let mut at = 0;
    while at < bytes.len() {
        out[at] = bytes[at];
        at += 1;
    }
    out[7] = bytes.len() as u8;
    out
}

/// How every byte is written that does not begin a UTF-8 sequence of several; those that do are left empty.
static SINGLE: [[u8; 8]; 256] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 8]; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        table[at] = match byte {
            b'"' => padded(b"\\\""),
            b'\\' => padded(b"\\\\"),
            b'\n' => padded(b"\\n"),
            b'\r' => padded(b"\\r"),
            0xc2..=0xf4 => [0; 8],
            0x80.. => REPLACEMENT,
            _ if special(byte) => padded(&[b'\\', b'u', b'0', b'0', HEX[at >> 4], HEX[at & 15]]),
            _ => padded(&[byte]),
        };
        at += 1;
    }
    table
};

/// Whether a byte of an ASCII text cannot stand for itself.
const fn special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == b'<') | (byte == b'>') | (byte == b'&')
}

/// The length of the pieces at the front in which every byte stands for itself.
fn plain_pieces(text: &[u8]) -> usize {
    // No early exit within a piece, so that the compiler makes vector instructions of it.
    let plain = |piece: &&[u8]| !piece.iter().fold(false, |any, b| any | special(*b) | (*b >= 0x80));
    text.chunks_exact(PIECE).take_while(plain).count() * PIECE
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    // What is escaped is put together here: binary output would else be a copy of a byte or six each time.
    let mut piece = [0; PIECE * LONGEST + 8];
    let mut rest = text;
    loop {
        let (plain, other) = rest.split_at(plain_pieces(rest));
        out.extend_from_slice(plain);
        if other.is_empty() {
            return;
        }
        let (mut read, mut written) = (0, 0);
        while let Some(byte) = other.get(read).filter(|_| read < PIECE) {
            let single = SINGLE[usize::from(*byte)];
            let (bytes, taken) = match single[7] {
                0 => wide(other.get(read..).unwrap_or_default()),
                _ => (single, 1),
            };
            if let Some(place) = piece.get_mut(written..written + 8) {
                place.copy_from_slice(&bytes);
            }
            written += usize::from(bytes[7]);
            read += taken;
        }
        out.extend_from_slice(piece.get(..written).unwrap_or_default());
        rest = other.get(read..).unwrap_or_default();
    }
}

/// How a character from 0x80 on is written, and its length: valid UTF-8 as it is, any other byte as U+FFFD.
fn wide(text: &[u8]) -> ([u8; 8], usize) {
    let bytes = text.get(..sequence(text)).unwrap_or_default();
    match bytes {
        [] => (REPLACEMENT, 1),
        // JavaScript's two line separators, which Go escapes.
        [0xe2, 0x80, 0xa8] => (padded(b"\\u2028"), 3),
        [0xe2, 0x80, 0xa9] => (padded(b"\\u2029"), 3),
        _ => (padded(bytes), bytes.len()),
    }
}

/// The length of the UTF-8 sequence at the front, 0 if there is none (RFC 3629, section 4).
fn sequence(text: &[u8]) -> usize {
    match *text {
        [0xc2..=0xdf, 0x80..=0xbf, ..] => 2,
        [0xe0, 0xa0..=0xbf, 0x80..=0xbf, ..]
        | [0xe1..=0xec | 0xee..=0xef, 0x80..=0xbf, 0x80..=0xbf, ..]
        | [0xed, 0x80..=0x9f, 0x80..=0xbf, ..] => 3,
        [0xf0, 0x90..=0xbf, 0x80..=0xbf, 0x80..=0xbf, ..]
        | [0xf1..=0xf3, 0x80..=0xbf, 0x80..=0xbf, 0x80..=0xbf, ..]
        | [0xf4, 0x80..=0x8f, 0x80..=0xbf, 0x80..=0xbf, ..] => 4,
        _ => 0,
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    log: Cow<'a, str>,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
    #[serde(borrow, default)]
    time: Cow<'a, str>,
}

/// Reads one line without its newline; `None` for a torn one.
pub(super) fn parse(line: &[u8]) -> Option<Entry> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    Some(Entry {
        time_ns: parse_time(&line.time)?,
        source: if line.stream == "stderr" { Source::Stderr } else { Source::Stdout },
        line: line.log.into_owned().into_bytes(),
        attrs: line.attrs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(text: &[u8]) -> String {
        let mut out = Vec::new();
        escape(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_are_dockers() {
        assert_eq!(
            encoded(b"a\tb\"c\\d\r\n<&>\x1b[0m\x7f"),
            "a\\u0009b\\\"c\\\\d\\r\\n\\u003c\\u0026\\u003e\\u001b[0m\x7f"
        );
        assert_eq!(encoded("grüße \u{2028}日本".as_bytes()), "grüße \\u2028日本");
        assert_eq!(encoded(b"\xff\xe2\x82x"), "\\ufffd\\ufffd\\ufffdx");
        let mut line = Vec::new();
        entry(&mut line, b"hi\n", &tail(Source::Stderr, &BTreeMap::new(), "1970-01-01T00:00:00Z"));
        assert_eq!(line, b"{\"log\":\"hi\\n\",\"stream\":\"stderr\",\"time\":\"1970-01-01T00:00:00Z\"}\n");
        let attrs = BTreeMap::from([("tag".to_owned(), "x".to_owned())]);
        let with = tail(Source::Stdout, &attrs, "T");
        assert_eq!(with, b"\",\"stream\":\"stdout\",\"attrs\":{\"tag\":\"x\"},\"time\":\"T\"}\n");
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut line = Vec::new();
            entry(&mut line, &text, &tail(Source::Stdout, &BTreeMap::new(), "2023-11-14T22:13:20.12Z"));
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            let back = parse(line.strip_suffix(b"\n").unwrap()).unwrap();
            let expected: String = text.utf8_chunks()
                .map(|c| format!("{}{}", c.valid(), "\u{fffd}".repeat(c.invalid().len()))).collect();
            prop_assert_eq!(back.line, expected.into_bytes());
        }

        #[test]
        fn text_survives(text in "\\PC*\n") {
            let mut line = Vec::new();
            entry(&mut line, text.as_bytes(), &tail(Source::Stdout, &BTreeMap::new(), "1970-01-01T00:00:00Z"));
            prop_assert_eq!(parse(line.strip_suffix(b"\n").unwrap()).unwrap().line, text.into_bytes());
        }
    }
}
