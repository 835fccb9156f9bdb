//! One client: its socket, what it asked for, and what is on its way to it.

use crate::logs::Source;
use crate::protocol::{
    AttachOptions, Decoder, Frame, HEADER, Kind, MAX_DATA, ProtocolError, Response, WaitCondition, header,
};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io::{self, IoSlice, Write};
use std::os::unix::net::UnixStream;

/// What a client is doing.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Role {
    /// It may ask something.
    Idle,
    /// It reads and feeds the main process.
    Attached(AttachOptions),
    /// It reads and feeds this exec session.
    Exec(u64),
    /// It waits for an end.
    Waiting(WaitCondition),
    /// What it asked for is done when a start, or another change, is over, or when a guest has answered.
    Postponed,
}

/// A client's connection.
pub(super) struct Connection {
    pub(super) socket: UnixStream,
    pub(super) decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    pub(super) role: Role,
    pub(super) greeted: bool,
    /// What runs stands still until it is gone.
    pub(super) holds: bool,
    /// It left by a detach frame.
    pub(super) detached: bool,
    /// To be closed when all is sent.
    pub(super) closing: bool,
    /// To be dropped now.
    pub(super) dead: bool,
}

impl Connection {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            decoder: Decoder::default(),
            out: Vec::new(),
            sent: 0,
            role: Role::Idle,
            greeted: false,
            holds: false,
            detached: false,
            closing: false,
            dead: false,
        })
    }

    /// Something waits until the client reads.
    pub(super) fn is_behind(&self) -> bool {
        !self.out.is_empty()
    }

    pub(super) fn is_over(&self) -> bool {
        self.dead || (self.closing && !self.is_behind())
    }

    /// Whether it wants that output of the main process.
    pub(super) fn reads(&self, source: Source) -> bool {
        match &self.role {
            Role::Attached(options) if !self.closing && !self.dead => match source {
                Source::Stdout => options.stdout,
                Source::Stderr => options.stderr,
            },
            _ => false,
        }
    }

    /// Reads what is there; marks a connection that ended as dead.
    pub(super) fn receive(&mut self) {
        let room = if self.role == Role::Idle { 4096 } else { MAX_DATA + HEADER };
        let input = self.decoder.input();
        input.reserve(room);
        match recv(&self.socket, spare_capacity(input), RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.dead = true,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.dead = true,
        }
    }

    pub(super) fn send(&mut self, frame: &Frame<'_>) {
        if let Err(e) = frame.encode(&mut self.out) {
            self.refuse(&e);
        }
        self.flush();
    }

    pub(super) fn answer(&mut self, response: Response) {
        self.send(&Frame::Response(Box::new(response)));
    }

    /// Hangs up on a peer that breaks the protocol.
    pub(super) fn refuse(&mut self, _: &ProtocolError) {
        self.dead = true;
    }

    /// The last frame: the exit code, and whether the OOM killer struck.
    pub(super) fn finish(&mut self, code: i32, oom: bool) {
        self.send(&Frame::Exit { code, oom });
        self.closing = true;
    }

    /// Sends output without copying it where the client keeps up.
    pub(super) fn output(&mut self, source: Source, bytes: &[u8]) {
        let kind = if source == Source::Stdout { Kind::Stdout } else { Kind::Stderr };
        for piece in bytes.chunks(MAX_DATA) {
            let head = header(kind, piece.len());
            let mut done = 0;
            if self.out.is_empty() && !self.dead {
                done = match self.socket.write_vectored(&[IoSlice::new(&head), IoSlice::new(piece)]) {
                    Ok(n) => n,
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
                    Err(_) => {
                        self.dead = true;
                        0
                    }
                };
            }
            if self.dead {
                return;
            }
            self.out.extend_from_slice(head.get(done..).unwrap_or_default());
            self.out.extend_from_slice(piece.get(done.saturating_sub(HEADER)..).unwrap_or_default());
        }
    }

    /// Sends what fits.
    pub(super) fn flush(&mut self) {
        while self.sent < self.out.len() {
            match self.socket.write(self.out.get(self.sent..).unwrap_or_default()) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.dead = true;
                    break;
                }
            }
        }
        self.sent = 0;
        // Idle clients hold no memory.
        self.out = Vec::new();
    }
}
