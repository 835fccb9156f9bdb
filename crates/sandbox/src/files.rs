//! The files of a microVM, served by its agent on [`PORT`]: one request on each connection.
//!
//! ```text
//! host:   Request                       a document, as in `crate::boot`
//! guest:  Accepted | Failed             a document
//!         ── either way, by the request: a stream ──
//! sender: Data* (End | Failed)          frames: kind (1 byte), length (4 bytes, little endian), payload
//! guest:  Done | Failed                 a document, after a stream of the host's
//! ```
//!
//! The frames tell an end from a connection that broke, and carry the reason where the sender fails midway. What a guest
//! sends is an attacker's: documents and frames have their largest sizes, the host counts the bytes of a stream and
//! waits for each part no longer than [`IDLE`].

use crate::boot;
use crate::protocol::Failure;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::time::Duration;
use types::{ErrorKind, Kinded};

/// Version of this conversation; an agent of another one refuses.
pub const VERSION: u16 = 2;
/// Port of the guest.
pub const PORT: u32 = 1026;
/// How long the other side may be silent within a stream: it may have to look at many files before it has one to send.
pub const IDLE: Duration = Duration::from_secs(300);
/// How long the agent may take to its first word.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes in a frame.
const MAX_FRAME: usize = 64 << 10;
/// Most bytes of the reason for a failure.
const MAX_REASON: usize = 8 << 10;

const DATA: u8 = 1;
const END: u8 = 2;
const FAILED: u8 = 3;

/// What the host asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// See [`VERSION`].
    pub version: u16,
    /// The work.
    pub work: Work,
}

/// Work on the files. Paths are bytes, as Linux has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A [`Stat`] follows as a document.
    Stat {
        /// Inside.
        path: Vec<u8>,
    },
    /// A tar follows.
    Pack {
        /// Inside.
        path: Vec<u8>,
        /// Name of its top entry.
        rename: Option<Vec<u8>>,
    },
    /// The host sends a tar.
    Unpack {
        /// A directory inside.
        dir: Vec<u8>,
        /// Directories are not replaced by other things, nor the reverse.
        strict: bool,
        /// User and group of everything.
        owner: Option<(u32, u32)>,
    },
    /// A tar of everything follows.
    Export,
    /// A list follows, see [`changes`].
    Changes,
    /// A layer's tar follows.
    Layer {
        /// The workload stands still meanwhile.
        freeze: bool,
    },
    /// [`Processes`] follow as a document.
    Processes,
    /// A volume's filesystem gets all of its disk, which grows to so many bytes. Nothing follows.
    Grow {
        /// Its number.
        volume: u32,
        /// What the disk is to have.
        bytes: u64,
    },
}

/// What is known of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Bytes.
    pub size: i64,
    /// Type and permissions in the bits of Go's `os.FileMode`.
    pub mode: u32,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Where a symbolic link leads, inside; else empty.
    pub link_target: String,
}

/// The workload's processes, by the columns of `ps -ef`: UID PID PPID C STIME TTY TIME CMD.
pub type Processes = Vec<[String; 8]>;

/// The agent's word on a request, or on a stream that it got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Now the stream, or the document; after a stream: it is done.
    Accepted,
    /// Not done.
    Failed(Failure),
}

/// A failure to be sent.
pub fn failure(e: &(impl Kinded + std::fmt::Display)) -> Failure {
    let mut message = e.to_string();
    let mut end = message.len().min(MAX_REASON / 8);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    Failure { kind: e.kind(), message, exit_code: 1 }
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct Sender<W>(W);

impl<W: Write> Sender<W> {
    /// Begins a stream.
    pub fn new(to: W) -> Self {
        Self(to)
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let [a, b, c, d] = length.to_le_bytes();
        self.0.write_all(&[kind, a, b, c, d])?;
        self.0.write_all(payload)
    }

    /// Says that all was sent.
    pub fn finish(mut self) -> io::Result<()> {
        self.frame(END, &[])?;
        self.0.flush()
    }

    /// Says why not all was sent.
    pub fn fail(mut self, why: &Failure) -> io::Result<()> {
        let json = serde_json::to_vec(why)?;
        self.frame(FAILED, &json)?;
        self.0.flush()
    }
}

impl<W: Write> Write for Sender<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..MAX_FRAME).unwrap_or(bytes);
        if !piece.is_empty() {
            self.frame(DATA, piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The receiving half of a stream: reads its content. The sender's failure is an error that holds a [`Failure`].
#[derive(Debug)]
pub struct Receiver<R> {
    from: R,
    /// Unread bytes of the present frame.
    left: usize,
    /// Bytes that may still come.
    limit: u64,
    ended: bool,
}

impl<R: Read> Receiver<R> {
    /// Begins a stream that may have so many bytes.
    pub fn new(from: R, limit: u64) -> Self {
        Self { from, left: 0, limit, ended: false }
    }

    /// Reads and forgets what is left; then the sender has said that it is the end.
    pub fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }

    fn next_frame(&mut self) -> io::Result<()> {
        let mut head = [0; 5];
        self.from.read_exact(&mut head)?;
        let [kind, a, b, c, d] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        match kind {
            DATA if (1..=MAX_FRAME).contains(&length) => {
                self.limit = self
                    .limit
                    .checked_sub(length as u64)
                    .ok_or_else(|| wrong("the guest sends more than its disks and its memory hold".into()))?;
                self.left = length;
                Ok(())
            }
            END if length == 0 => {
                self.ended = true;
                Ok(())
            }
            FAILED if length <= MAX_REASON => {
                let mut json = vec![0; length];
                self.from.read_exact(&mut json)?;
                let why: Failure = serde_json::from_slice(&json)?;
                Err(io::Error::other(why))
            }
            _ => Err(wrong(format!("a frame of kind {kind} with {length} bytes"))),
        }
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: Read> Read for Receiver<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 && !self.ended && !buffer.is_empty() {
            self.next_frame()?;
        }
        let most = buffer.len().min(self.left);
        let Some(room) = buffer.get_mut(..most).filter(|r| !r.is_empty()) else { return Ok(0) };
        let n = self.from.read(room)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(n);
        Ok(n)
    }
}

/// The list of changed paths, in a stream: for each the digit of Docker's kind (0 modified, 1 added, 2 deleted), the path
/// and a zero byte.
pub mod changes {
    use super::{io, wrong};
    use types::docker::{ChangeType, FilesystemChange};

    /// Most bytes of a list.
    pub const MAX: u64 = 16 << 20;
    /// Most entries of a list.
    const ENTRIES: usize = 1 << 20;

    /// Writes the list.
    pub fn write(list: &[FilesystemChange], to: &mut dyn io::Write) -> io::Result<()> {
        for change in list {
            let digit = match change.kind {
                ChangeType::_0 => b'0',
                ChangeType::_1 => b'1',
                ChangeType::_2 => b'2',
            };
            to.write_all(&[digit])?;
            to.write_all(change.path.as_bytes())?;
            to.write_all(&[0])?;
        }
        Ok(())
    }

    /// Reads a list that is complete.
    pub fn read(bytes: &[u8]) -> io::Result<Vec<FilesystemChange>> {
        let Some(bytes) = bytes.strip_suffix(&[0]) else {
            return if bytes.is_empty() { Ok(Vec::new()) } else { Err(wrong("an unfinished list".into())) };
        };
        if bytes.iter().filter(|b| **b == 0).count() >= ENTRIES {
            return Err(wrong(format!("a list of more than {ENTRIES} changes")));
        }
        let each = |item: &[u8]| {
            let kind = match item.first() {
                Some(b'0') => ChangeType::_0,
                Some(b'1') => ChangeType::_1,
                Some(b'2') => ChangeType::_2,
                _ => return Err(wrong("a change of no known kind".into())),
            };
            let path = String::from_utf8_lossy(item.get(1..).unwrap_or_default()).into_owned();
            Ok(FilesystemChange { path, kind })
        };
        bytes.split(|b| *b == 0).map(each).collect()
    }
}

/// What went wrong in a stream, if its sender said so.
pub fn sent_failure(e: &io::Error) -> Option<&Failure> {
    e.get_ref()?.downcast_ref()
}

/// Reads a word of the agent.
pub fn expect_accepted(from: &mut impl Read) -> Result<(), FilesError> {
    match boot::read(from)? {
        Answer::Accepted => Ok(()),
        Answer::Failed(failure) => Err(FilesError::Refused(failure)),
    }
}

/// Why the work on a microVM's files failed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The agent could not do it, and says why.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The conversation failed.
    #[error("the guest's agent does not serve its files: {0}")]
    Broken(#[source] io::Error),
    /// The caller's side of a stream failed.
    #[error("cannot write the tar stream: {0}")]
    Output(#[source] io::Error),
    /// The caller's tar failed.
    #[error("bad tar stream: {0}")]
    Input(#[source] io::Error),
}

impl From<io::Error> for FilesError {
    fn from(e: io::Error) -> Self {
        match sent_failure(&e) {
            Some(failure) => Self::Refused(failure.clone()),
            None => Self::Broken(e),
        }
    }
}

impl Kinded for FilesError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(failure) => failure.kind,
            Self::Broken(_) => ErrorKind::Unavailable,
            Self::Output(_) => ErrorKind::Internal,
            Self::Input(_) => ErrorKind::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason() -> Failure {
        Failure { kind: ErrorKind::NotFound, message: "gone".into(), exit_code: 1 }
    }

    proptest! {
        #[test]
        fn a_stream_comes_as_it_went(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 0..8),
            cut in any::<usize>(),
        ) {
            let (mut bytes, whole) = (Vec::new(), pieces.concat());
            let mut sender = Sender::new(&mut bytes);
            for piece in &pieces {
                sender.write_all(piece).unwrap();
            }
            sender.finish().unwrap();
            let mut got = Vec::new();
            Receiver::new(&bytes[..], whole.len() as u64).read_to_end(&mut got).unwrap();
            prop_assert_eq!(&got, &whole);
            // Anything cut off is an error, never an end.
            let cut = cut % bytes.len();
            prop_assert!(Receiver::new(&bytes[..cut], u64::MAX).drain().is_err());
            if !whole.is_empty() {
                prop_assert!(Receiver::new(&bytes[..], whole.len() as u64 - 1).drain().is_err());
            }
        }

        #[test]
        fn whatever_comes_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut got = Vec::new();
            let _ = Receiver::new(&bytes[..], 100).read_to_end(&mut got);
            prop_assert!(got.len() <= 100);
            let _ = changes::read(&bytes);
        }
    }

    #[test]
    fn a_failure_after_content_is_told() {
        let mut bytes = Vec::new();
        let mut sender = Sender::new(&mut bytes);
        sender.write_all(&[7; 100_000]).unwrap();
        sender.fail(&reason()).unwrap();
        let (mut got, mut receiver) = (Vec::new(), Receiver::new(&bytes[..], u64::MAX));
        let e = receiver.read_to_end(&mut got).unwrap_err();
        assert_eq!((got.len(), sent_failure(&e)), (100_000, Some(&reason())));
    }

    #[test]
    fn frames_too_large_are_refused() {
        for head in [[DATA, 0, 0, 0, 1], [DATA, 0, 0, 0, 0], [FAILED, 0, 0, 1, 0], [END, 1, 0, 0, 0], [9; 5]]
        {
            assert!(Receiver::new(&[&head[..], &[0; 99]].concat()[..], u64::MAX).drain().is_err());
        }
    }

    #[test]
    fn lists_of_changes_go_through() {
        let list = changes::read(b"0/a\x001/b\n\x002/c\x00").unwrap();
        let mut bytes = Vec::new();
        changes::write(&list, &mut bytes).unwrap();
        assert_eq!(bytes, b"0/a\x001/b\n\x002/c\x00");
        assert!(changes::read(b"0/a").is_err());
        assert!(changes::read(b"3/a\x00").is_err());
    }
}
