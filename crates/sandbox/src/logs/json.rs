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
/// A piece, and what may belong to its last character.
const SIGHT: usize = PIECE + 3;
/// The longest escape.
const LONGEST: usize = 6;
const REPLACEMENT: [u8; 8] = padded(b"\\ufffd");
/// Eight zeros in a row, which binary files have many of.
const ZEROS: [u8; 8 * LONGEST] = *b"\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000";

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

/// How every byte is written: first where it stands alone, then where it is part of a UTF-8 sequence of several.
static WRITTEN: [[u8; 8]; 512] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 8]; 512];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        table[at] = match byte {
            b'"' => padded(b"\\\""),
            b'\\' => padded(b"\\\\"),
            b'\n' => padded(b"\\n"),
            b'\r' => padded(b"\\r"),
            0x80.. => REPLACEMENT,
            _ if special(byte) => padded(&[b'\\', b'u', b'0', b'0', HEX[at >> 4], HEX[at & 15]]),
            _ => padded(&[byte]),
        };
        table[at + 256] = padded(&[byte]);
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

/// Which bytes are part of a valid sequence of several (RFC 3629, section 4): 1, or else 0. Without a branch: binary
/// output has bytes that could begin one everywhere, and a wrong guess of the processor costs more than all of this.
#[allow(clippy::needless_range_loop, reason = "four bytes at a time of arrays of a fixed length")]
fn sequences(text: &[u8; SIGHT]) -> ([u8; SIGHT], bool) {
    let mut separators = 0;
    let [mut two, mut three, mut four] = [[0u8; PIECE]; 3];
    for i in 0..PIECE {
        let (lead, next) = (text[i], text[i + 1]);
        let rest = |byte: u8| byte & 0xc0 == 0x80;
        let low = if lead == 0xe0 {
            0xa0
        } else if lead == 0xf0 {
            0x90
        } else {
            0x80
        };
        let high = if lead == 0xed {
            0x9f
        } else if lead == 0xf4 {
            0x8f
        } else {
            0xbf
        };
        let (long, longer) = (lead >= 0xe0, lead >= 0xf0);
        let valid = (0xc2..=0xf4).contains(&lead)
            & (next >= low)
            & (next <= high)
            & (!long | rest(text[i + 2]))
            & (!longer | rest(text[i + 3]));
        separators |= u8::from((lead == 0xe2) & (next == 0x80) & (text[i + 2] | 1 == 0xa9));
        two[i] = u8::from(valid);
        three[i] = u8::from(valid & long);
        four[i] = u8::from(valid & longer);
    }
    let mut part = [0; SIGHT];
    for i in 0..PIECE {
        part[i] |= two[i];
    }
    for i in 0..PIECE {
        part[i + 1] |= two[i];
    }
    for i in 0..PIECE {
        part[i + 2] |= three[i];
    }
    for i in 0..PIECE {
        part[i + 3] |= four[i];
    }
    (part, separators != 0)
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let (plain, other) = rest.split_at(plain_pieces(rest));
        out.extend_from_slice(plain);
        if other.is_empty() {
            return;
        }
        rest = other.get(escape_piece(out, other)..).unwrap_or_default();
    }
}

/// Appends a piece, or what is left, up to the end of its last character; returns its length. It is put together apart, since
/// to append a byte or six each time would be slow.
fn escape_piece(out: &mut Vec<u8>, text: &[u8]) -> usize {
    let mut last = [0; SIGHT];
    let sight = text.first_chunk().unwrap_or_else(|| {
        // Zeros continue no sequence.
        last.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        &last
    });
    let ascii = sight.iter().fold(0, |any, byte| any | byte) < 0x80;
    let (parts, separators) = if ascii { ([0; SIGHT], false) } else { sequences(sight) };
    let behind = parts[PIECE..].iter().take_while(|part| **part == 1).count();
    let length = text.len().min(PIECE + behind);
    let (sight, parts) = (sight.get(..length).unwrap_or_default(), parts.get(..length).unwrap_or_default());
    if separators {
        with_separators(out, sight, parts);
        return length;
    }
    let mut piece = [0; SIGHT * LONGEST + 8];
    let mut written = 0;
    for (bytes, parts) in sight.chunks(8).zip(parts.chunks(8)) {
        if bytes == [0; 8] {
            if let Some(place) = piece.get_mut(written..written + ZEROS.len()) {
                place.copy_from_slice(&ZEROS);
            }
            written += ZEROS.len();
            continue;
        }
        for (byte, part) in bytes.iter().zip(parts) {
            let entry = WRITTEN[usize::from(*byte) | usize::from(*part & 1) << 8];
            if let Some(place) = piece.get_mut(written..written + 8) {
                place.copy_from_slice(&entry);
            }
            written += usize::from(entry[7]);
        }
    }
    out.extend_from_slice(piece.get(..written).unwrap_or_default());
    length
}

/// The same where JavaScript's line separators, U+2028 and U+2029, may be in it, which Go escapes.
fn with_separators(out: &mut Vec<u8>, text: &[u8], parts: &[u8]) {
    let mut at = 0;
    while let (Some(byte), Some(part)) = (text.get(at), parts.get(at)) {
        let separator: &[u8] = match text.get(at..at + 3) {
            Some([0xe2, 0x80, 0xa8]) => b"\\u2028",
            Some([0xe2, 0x80, 0xa9]) => b"\\u2029",
            _ => b"",
        };
        let entry = WRITTEN[usize::from(*byte) | usize::from(*part & 1) << 8];
        if separator.is_empty() {
            out.extend(entry.iter().take(entry[7].into()));
        } else {
            out.extend(separator);
        }
        at += if separator.is_empty() { 1 } else { 3 };
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

    /// What the encoder has a way of its own for.
    fn part() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            // The beginning of a character.
            any::<char>().prop_map(|c| c.to_string().into_bytes().split_last().unwrap().1.to_vec()),
            proptest::sample::select(vec![
                "\u{2028}",
                "\u{2029}",
                "\u{d7ff}",
                "\u{e000}",
                "\u{10ffff}",
                "<\"\\\r\n"
            ])
            .prop_map(|s| s.as_bytes().to_vec()),
            (0usize..40).prop_map(|n| vec![0; n]),
            "[ -~]{0,70}".prop_map(String::into_bytes),
            proptest::collection::vec(0x80u8.., 0..6),
        ]
    }

    /// The escapes one character at a time.
    fn plainly(text: &[u8]) -> String {
        let mut out = String::new();
        for chunk in text.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' | '\\' => out.extend(['\\', c]),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                        out.push_str(&format!("\\u{:04x}", u32::from(c)));
                    }
                    c => out.push(c),
                }
            }
            out.push_str(&"\\ufffd".repeat(chunk.invalid().len()));
        }
        out
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
        fn escapes_are_dockers_wherever_pieces_meet(parts in proptest::collection::vec(part(), 0..40)) {
            let text = parts.concat();
            prop_assert_eq!(encoded(&text), plainly(&text));
        }

        #[test]
        fn text_survives(text in "\\PC*\n") {
            let mut line = Vec::new();
            entry(&mut line, text.as_bytes(), &tail(Source::Stdout, &BTreeMap::new(), "1970-01-01T00:00:00Z"));
            prop_assert_eq!(parse(line.strip_suffix(b"\n").unwrap()).unwrap().line, text.into_bytes());
        }
    }
}
