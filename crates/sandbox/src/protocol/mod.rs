//! What a supervisor and its clients say to each other on `<run>/sandboxes/<id>/ctl.sock`.
//!
//! A stream of frames in both directions. A frame is an 8-byte header, then its payload:
//!
//! ```text
//! byte 0   1..=3   4..=7 (little endian)   8..
//! kind     zero    length of the payload   payload
//!
//! client      ──Hello──►  ──Request──►                   ──Stdin, StdinEnd, Resize, Detach──►
//! supervisor               ◄──Hello, ◄──Response──       ◄──Stdout, Stderr──  ◄──Exit──
//! ```
//!
//! Control payloads ([`Request`], [`Response`]) are JSON of at most [`MAX_CONTROL`] bytes, data payloads raw bytes of at
//! most [`MAX_DATA`]. Both sides check the version in the first frame; whoever breaks a rule is hung up on.
//! A request other than attach and exec may be followed by further requests on the same connection.
//!
//! Not here: who may connect (the supervisor checks peer credentials) and what a request does.

mod codec;
mod message;

pub use codec::{Decoder, Frame, ProtocolError, header};
pub use message::{AttachOptions, ExecInfo, ExecOptions, Failure, Request, Response, WaitCondition};

/// Version of this protocol; both sides must have the same.
pub const VERSION: u16 = 3;
/// Most bytes of a control frame's payload.
pub const MAX_CONTROL: usize = 1 << 20;
/// Most bytes of a data frame's payload.
pub const MAX_DATA: usize = 64 << 10;
/// Bytes of a frame's header.
pub const HEADER: usize = 8;

/// Kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Either side's first frame: `DHOW`, then the version.
    Hello = 1,
    /// A [`Request`].
    Request = 2,
    /// A [`Response`].
    Response = 3,
    /// Bytes for the workload's stdin.
    Stdin = 4,
    /// No more of those.
    StdinEnd = 5,
    /// New size of the terminal: rows and columns, 16 bits each.
    Resize = 6,
    /// The client goes on purpose: stdin stays open.
    Detach = 7,
    /// Bytes from the workload's stdout or terminal.
    Stdout = 8,
    /// Bytes from its stderr.
    Stderr = 9,
    /// It ended with this code (32 bits), and whether the OOM killer struck (a byte, 0 or 1); nothing follows.
    Exit = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Hello,
        Self::Request,
        Self::Response,
        Self::Stdin,
        Self::StdinEnd,
        Self::Resize,
        Self::Detach,
        Self::Stdout,
        Self::Stderr,
        Self::Exit,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == byte)
    }

    /// Most bytes of its payload.
    fn limit(self) -> usize {
        match self {
            Self::Request | Self::Response => MAX_CONTROL,
            Self::Stdin | Self::Stdout | Self::Stderr => MAX_DATA,
            Self::Hello => 6,
            Self::Resize => 4,
            Self::Exit => 5,
            Self::StdinEnd | Self::Detach => 0,
        }
    }
}
