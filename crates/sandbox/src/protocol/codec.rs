//! Frames to bytes and back. The decoder takes bytes from anybody: it never panics, never holds more than one frame and
//! one read, and is what `fuzz/fuzz_targets/control_protocol.rs` feeds.

use super::{HEADER, Kind, Request, Response, VERSION};
use serde::{Serialize, de::DeserializeOwned};

/// A guest's agent, which must be small, serves and is a client of nobody: what clients alone do is left out there.
const HOST: bool = cfg!(feature = "host");

const MAGIC: &[u8; 4] = b"DHOW";

/// Why a peer is hung up on.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// No frame has this number.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// A frame is longer than its kind allows.
    #[error("a {kind:?} frame of {len} bytes is too long")]
    TooLong {
        /// Its kind.
        kind: Kind,
        /// The length it claims.
        len: usize,
    },
    /// A fixed-size payload has another size, or reserved bytes are set.
    #[error("malformed {0:?} frame")]
    Malformed(Kind),
    /// The peer is of another version of this program, or no peer at all.
    #[error(
        "the peer speaks control protocol version {0}, not {VERSION}: it was started by another version of dhow"
    )]
    Version(u16),
    /// A control payload is not the JSON that is due.
    #[error("malformed message: {0}")]
    Message(#[from] serde_json::Error),
    /// A frame that does not belong here.
    #[error("unexpected {0:?} frame")]
    Unexpected(Kind),
}

/// A frame as it was received.
#[derive(Debug)]
pub enum Frame<'a> {
    /// The peer's version is ours.
    Hello,
    /// See [`Kind::Request`].
    Request(Box<Request>),
    /// See [`Kind::Response`].
    Response(Box<Response>),
    /// See [`Kind::Stdin`].
    Stdin(&'a [u8]),
    /// See [`Kind::StdinEnd`].
    StdinEnd,
    /// Rows and columns.
    Resize(u16, u16),
    /// See [`Kind::Detach`].
    Detach,
    /// See [`Kind::Stdout`].
    Stdout(&'a [u8]),
    /// See [`Kind::Stderr`].
    Stderr(&'a [u8]),
    /// See [`Kind::Exit`].
    Exit {
        /// The code.
        code: i32,
        /// The OOM killer struck.
        oom: bool,
    },
}

impl Frame<'_> {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match self {
            Self::Hello => {
                out.extend(header(Kind::Hello, 6));
                out.extend(MAGIC);
                out.extend(VERSION.to_le_bytes());
            }
            Self::Request(message) if HOST => control(out, Kind::Request, message)?,
            Self::Request(_) => return Err(ProtocolError::Unexpected(Kind::Request)),
            Self::Response(message) => control(out, Kind::Response, message)?,
            Self::Stdin(bytes) => data(out, Kind::Stdin, bytes)?,
            Self::Stdout(bytes) => data(out, Kind::Stdout, bytes)?,
            Self::Stderr(bytes) => data(out, Kind::Stderr, bytes)?,
            Self::StdinEnd => out.extend(header(Kind::StdinEnd, 0)),
            Self::Detach => out.extend(header(Kind::Detach, 0)),
            Self::Resize(rows, columns) => {
                out.extend(header(Kind::Resize, 4));
                out.extend(rows.to_le_bytes());
                out.extend(columns.to_le_bytes());
            }
            Self::Exit { code, oom } => {
                out.extend(header(Kind::Exit, 5));
                out.extend(code.to_le_bytes());
                out.push((*oom).into());
            }
        }
        Ok(())
    }
}

/// The header of a frame whose payload follows by itself.
pub fn header(kind: Kind, len: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (len as u32).to_le_bytes();
    [kind as u8, 0, 0, 0, a, b, c, d]
}

fn control(out: &mut Vec<u8>, kind: Kind, message: &impl Serialize) -> Result<(), ProtocolError> {
    let at = out.len();
    out.extend([0; HEADER]);
    serde_json::to_writer(&mut *out, message)?;
    let len = out.len() - at - HEADER;
    if len > kind.limit() {
        out.truncate(at);
        return Err(ProtocolError::TooLong { kind, len });
    }
    if let Some(slot) = out.get_mut(at..at + HEADER) {
        slot.copy_from_slice(&header(kind, len));
    }
    Ok(())
}

fn data(out: &mut Vec<u8>, kind: Kind, bytes: &[u8]) -> Result<(), ProtocolError> {
    if bytes.len() > kind.limit() {
        return Err(ProtocolError::TooLong { kind, len: bytes.len() });
    }
    out.extend(header(kind, bytes.len()));
    out.extend(bytes);
    Ok(())
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front that were consumed.
    at: usize,
}

impl Decoder {
    /// Where to append what was read. Consumed bytes are given up first.
    pub fn input(&mut self) -> &mut Vec<u8> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
        } else {
            self.buffer.drain(..self.at);
        }
        self.at = 0;
        &mut self.buffer
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.at == self.buffer.len()
    }

    /// Gives the memory of an empty decoder back.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// The next whole frame, if there is one. After an error the stream has no meaning any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let Some((head, body)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [byte, x, y, z, a, b, c, d] = *head;
        let kind = Kind::from_byte(byte).ok_or(ProtocolError::UnknownKind(byte))?;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if [x, y, z] != [0; 3] {
            return Err(ProtocolError::Malformed(kind));
        }
        if len > kind.limit() {
            return Err(ProtocolError::TooLong { kind, len });
        }
        let Some(payload) = body.get(..len) else { return Ok(None) };
        self.at += HEADER + len;
        parse(kind, payload).map(Some)
    }
}

fn parse(kind: Kind, payload: &[u8]) -> Result<Frame<'_>, ProtocolError> {
    let malformed = || ProtocolError::Malformed(kind);
    Ok(match kind {
        Kind::Hello => {
            let (magic, version) = payload.split_first_chunk::<4>().ok_or_else(malformed)?;
            let version: [u8; 2] = version.try_into().map_err(|_| malformed())?;
            if magic != MAGIC {
                return Err(malformed());
            }
            match u16::from_le_bytes(version) {
                VERSION => Frame::Hello,
                other => return Err(ProtocolError::Version(other)),
            }
        }
        Kind::Request => Frame::Request(json(payload)?),
        Kind::Response if HOST => Frame::Response(json(payload)?),
        Kind::Response => return Err(ProtocolError::Unexpected(kind)),
        Kind::Stdin => Frame::Stdin(payload),
        Kind::StdinEnd => Frame::StdinEnd,
        Kind::Resize => {
            let [a, b, c, d]: [u8; 4] = payload.try_into().map_err(|_| malformed())?;
            Frame::Resize(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
        }
        Kind::Detach => Frame::Detach,
        Kind::Stdout => Frame::Stdout(payload),
        Kind::Stderr => Frame::Stderr(payload),
        Kind::Exit => {
            let [a, b, c, d, oom]: [u8; 5] = payload.try_into().map_err(|_| malformed())?;
            Frame::Exit { code: i32::from_le_bytes([a, b, c, d]), oom: oom != 0 }
        }
    })
}

fn json<T: DeserializeOwned>(payload: &[u8]) -> Result<Box<T>, ProtocolError> {
    Ok(Box::new(serde_json::from_slice(payload)?))
}

#[cfg(test)]
mod tests {
    use super::super::{AttachOptions, MAX_DATA, WaitCondition};
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(frames: &[Frame<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        frames.iter().for_each(|f| f.encode(&mut out).unwrap());
        out
    }

    fn drain(decoder: &mut Decoder, seen: &mut Vec<String>) -> Result<(), ProtocolError> {
        while let Some(frame) = decoder.next_frame()? {
            seen.push(format!("{frame:?}"));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_frames(
            data in proptest::collection::vec(any::<u8>(), 0..300),
            cut in 1usize..40,
        ) {
            let sent = [
                Frame::Hello,
                Frame::Request(Box::new(Request::Attach(AttachOptions { stdin: true, stdout: true, stderr: false }))),
                Frame::Stdin(&data),
                Frame::StdinEnd,
                Frame::Resize(24, 80),
                Frame::Request(Box::new(Request::Wait { condition: WaitCondition::NextExit })),
                Frame::Stdout(&data),
                Frame::Exit { code: -1, oom: true },
            ];
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes_of(&sent).chunks(cut) {
                decoder.input().extend(piece);
                drain(&mut decoder, &mut seen).unwrap();
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(seen, sent.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>());
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = Decoder::default();
            decoder.input().extend(garbage);
            let _ = drain(&mut decoder, &mut Vec::new());
        }
    }

    #[test]
    fn long_frames_are_refused_by_their_header_alone() {
        assert!(Frame::Stdin(&vec![0; MAX_DATA + 1]).encode(&mut Vec::new()).is_err());
        let mut decoder = Decoder::default();
        decoder.input().extend(header(Kind::Request, u32::MAX as usize));
        assert!(matches!(decoder.next_frame(), Err(ProtocolError::TooLong { .. })));
        let mut decoder = Decoder::default();
        decoder.input().extend([1, 0, 0, 0, 6, 0, 0, 0, b'D', b'H', b'O', b'W', 9, 0]);
        assert!(matches!(decoder.next_frame(), Err(ProtocolError::Version(9))));
    }
}
