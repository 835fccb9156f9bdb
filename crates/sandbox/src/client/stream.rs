//! An attached connection: output comes as frames, input goes the other way.

use super::ClientError;
use crate::protocol::{Decoder, Frame, HEADER, Kind, MAX_DATA, header};
use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, recv};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Some bytes.
    Some,
    /// None now.
    Nothing,
    /// The supervisor hung up.
    End,
}

/// A frame with its own bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedFrame {
    /// From stdout or the terminal.
    Stdout(Vec<u8>),
    /// From stderr.
    Stderr(Vec<u8>),
    /// It ended; nothing follows.
    Exit {
        /// With this code.
        code: i32,
        /// The OOM killer struck.
        oom: bool,
    },
}

/// The streams of a process.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    decoder: Decoder,
    since_ns: i64,
}

impl Stream {
    pub(super) fn new(socket: UnixStream, decoder: Decoder) -> Self {
        Self { socket, decoder, since_ns: 0 }
    }

    pub(super) fn beginning(self, since_ns: i64) -> Self {
        Self { since_ns, ..self }
    }

    /// From when on output is in it: what was logged before, and only that, is not. 0 if all of it is.
    pub fn since_ns(&self) -> i64 {
        self.since_ns
    }

    /// The same connection once more, for another thread to write to.
    #[cfg(feature = "vm")]
    pub(crate) fn writer(&self) -> Result<Self, ClientError> {
        Ok(Self::new(self.socket.try_clone()?, Decoder::default()))
    }

    /// Takes the deadlines of requests off the connection.
    #[cfg(feature = "vm")]
    pub(crate) fn wait_for_ever(&self) -> Result<(), ClientError> {
        self.socket.set_read_timeout(None)?;
        Ok(self.socket.set_write_timeout(None)?)
    }

    /// Reads once, without waiting. Poll the descriptor for reading, call this, then [`Stream::frame`] until it has none.
    pub fn fill(&mut self) -> Result<Filled, ClientError> {
        self.receive(RecvFlags::DONTWAIT)
    }

    fn receive(&mut self, flags: RecvFlags) -> Result<Filled, ClientError> {
        let input = self.decoder.input();
        input.reserve(2 * (MAX_DATA + HEADER));
        match recv(&self.socket, spare_capacity(input), flags) {
            Ok((0, _)) => Ok(Filled::End),
            Ok(_) => Ok(Filled::Some),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Filled::Nothing),
            Err(rustix::io::Errno::CONNRESET) => Ok(Filled::End),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }

    /// The next frame that was read already: `Stdout`, `Stderr` or `Exit`.
    pub fn frame(&mut self) -> Result<Option<Frame<'_>>, ClientError> {
        match self.decoder.next_frame()? {
            None => Ok(None),
            Some(frame @ (Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit { .. })) => Ok(Some(frame)),
            Some(_) => Err(ClientError::Unexpected),
        }
    }

    /// Waits for the next frame; `None` when the supervisor hung up without an exit code.
    pub fn next_frame(&mut self) -> Result<Option<OwnedFrame>, ClientError> {
        loop {
            match self.frame()? {
                Some(Frame::Stdout(bytes)) => return Ok(Some(OwnedFrame::Stdout(bytes.to_vec()))),
                Some(Frame::Stderr(bytes)) => return Ok(Some(OwnedFrame::Stderr(bytes.to_vec()))),
                Some(Frame::Exit { code, oom }) => return Ok(Some(OwnedFrame::Exit { code, oom })),
                _ => {}
            }
            if self.receive(RecvFlags::empty())? == Filled::End {
                return Ok(None);
            }
        }
    }

    /// Feeds stdin. Waits while the workload does not read.
    pub fn write_stdin(&self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(MAX_DATA) {
            self.send(Kind::Stdin, piece)?;
        }
        Ok(())
    }

    /// Feeds stdin as far as it goes without waiting for long: at most one frame; returns how many bytes it took.
    pub fn write_stdin_some(&self, bytes: &[u8]) -> Result<usize, ClientError> {
        let piece = bytes.get(..bytes.len().min(MAX_DATA)).unwrap_or_default();
        self.send(Kind::Stdin, piece)?;
        Ok(piece.len())
    }

    /// No more input; output goes on.
    pub fn end_stdin(&self) -> Result<(), ClientError> {
        self.send(Kind::StdinEnd, &[])
    }

    /// New size of the terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), ClientError> {
        let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
        self.send(Kind::Resize, &[a, b, c, d])
    }

    /// Goes on purpose: the process keeps its stdin and goes on.
    pub fn detach(self) -> Result<(), ClientError> {
        self.send(Kind::Detach, &[])
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> Result<(), ClientError> {
        let head = header(kind, payload.len());
        let mut parts = [IoSlice::new(&head), IoSlice::new(payload)];
        let mut parts = &mut parts[..];
        while parts.iter().any(|p| !p.is_empty()) {
            match (&self.socket).write_vectored(parts) {
                Ok(n) => IoSlice::advance_slices(&mut parts, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
