//! One connection: a stream of the host on one side, packets of the guest on the other, credit between them.
//!
//! ```text
//! host connects:   Requested ──RESPONSE──► Open ──guest: SHUTDOWN of both──► Draining ──all written──► gone
//! guest connects:                          Open ──RST, or both sides said SHUTDOWN──► gone
//! ```

use super::packet::{HEADER, Header, Ports, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND, op};
use crate::devices::Segments;
use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use vm_memory::{Bytes, ReadVolatile, WriteVolatile};

/// What the guest may send ahead of the host's reading, per connection; the guest is told so (`buf_alloc`).
pub const BUFFER: u32 = 64 << 10;
/// Greatest data of one packet to the guest; Linux takes no more.
const PACKET: usize = 64 << 10;

/// See the module's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The host asked; the guest has not answered.
    Requested,
    /// Data flows.
    Open,
    /// The guest knows that it ended; what it sent still goes to the host.
    Draining,
}

/// What happened to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest knows.
    Over,
    /// It is over, and the guest must be told by RST.
    Reset,
    /// The guest ended it in an orderly way and must be told by RST; data for the host remains ([`Stage::Draining`]).
    Drains,
}

/// One connection.
pub struct Connection {
    pub ports: Ports,
    pub stage: Stage,
    pub stream: UnixStream,
    /// Stands in the round-robin queue of those that have something for the guest.
    pub queued: bool,
    /// When it is given up.
    pub deadline: Option<Instant>,
    /// REQUEST or RESPONSE that the guest must get before anything else.
    greeting: Option<u16>,
    update_owed: bool,
    /// CREDIT_REQUEST is owed (`Some(true)`) or was sent since the credit ran out (`Some(false)`).
    request: Option<bool>,
    readable: bool,
    writable: bool,
    /// SHUTDOWN flags for what the host's side ended, and those that the guest was told.
    host_shut: u32,
    told_shut: u32,
    guest_shut: u32,
    /// Data from the guest that the host has not taken.
    out: VecDeque<u8>,
    received: u32,
    forwarded: u32,
    told_forwarded: u32,
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
}

impl Connection {
    /// The host asks for a port of the guest.
    pub fn from_host(stream: UnixStream, ports: Ports) -> Self {
        Self::new(stream, ports, Stage::Requested, op::REQUEST)
    }

    /// The guest asked, and the host's listener accepted.
    pub fn from_guest(stream: UnixStream, ports: Ports, header: &Header) -> Self {
        let mut connection = Self::new(stream, ports, Stage::Open, op::RESPONSE);
        connection.credit_told(header);
        connection
    }

    fn new(stream: UnixStream, ports: Ports, stage: Stage, greeting: u16) -> Self {
        Self {
            ports,
            stage,
            stream,
            queued: false,
            deadline: None,
            greeting: Some(greeting),
            update_owed: false,
            request: None,
            // Not known: trying tells. The stream is waited for by edges.
            readable: true,
            writable: true,
            host_shut: 0,
            told_shut: 0,
            guest_shut: 0,
            out: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told_forwarded: 0,
            sent: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
        }
    }

    /// Something is to be sent to the guest now.
    pub fn wants(&self) -> bool {
        self.stage != Stage::Draining
            && (self.greeting.is_some()
                || (self.stage == Stage::Open
                    && (self.update_owed
                        || self.host_shut != self.told_shut
                        || self.request == Some(true)
                        || (self.reads() && self.credit() > 0))))
    }

    fn reads(&self) -> bool {
        self.readable && (self.host_shut & SHUT_SEND) == 0 && (self.guest_shut & SHUT_RECEIVE) == 0
    }

    /// Room in the guest. A guest that tells nonsense has none.
    fn credit(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    fn credit_told(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        self.ask_for_credit();
    }

    fn ask_for_credit(&mut self) {
        if self.credit() > 0 {
            self.request = None;
        } else if self.stage == Stage::Open && self.reads() && self.request.is_none() {
            self.request = Some(true);
        }
    }

    /// The stream is ready (epoll, by edges).
    pub fn stream_ready(&mut self, readable: bool, writable: bool, hung_up: bool) -> Fate {
        self.readable |= readable || hung_up;
        self.writable |= writable || hung_up;
        if hung_up && self.stage == Stage::Requested {
            return Fate::Reset;
        }
        if hung_up {
            self.host_shut |= SHUT_RECEIVE;
            self.discard();
        } else if writable {
            self.flush();
        }
        self.ask_for_credit();
        self.after_flush()
    }

    /// A packet of the guest for this connection.
    pub fn receive(&mut self, header: &Header, data: &Segments) -> Fate {
        self.credit_told(header);
        match (header.op, self.stage) {
            (op::RESPONSE, Stage::Requested) => self.accepted(),
            (op::RST, _) if self.guest_shut & SHUT_SEND != 0 && !self.out.is_empty() => {
                self.stage = Stage::Draining;
                Fate::Lives
            }
            (op::RST, _) => Fate::Over,
            (op::RW, Stage::Open) if self.guest_shut & SHUT_SEND == 0 => self.data(header.len, data),
            (op::SHUTDOWN, Stage::Open) => self.shutdown(header.flags),
            (op::CREDIT_UPDATE, Stage::Open) => Fate::Lives,
            (op::CREDIT_REQUEST, Stage::Open) => {
                self.update_owed = true;
                Fate::Lives
            }
            // Also a second REQUEST, which could only be a mistake or an attack.
            _ => Fate::Reset,
        }
    }

    fn accepted(&mut self) -> Fate {
        self.stage = Stage::Open;
        self.deadline = None;
        self.ask_for_credit();
        let line = format!("OK {}\n", self.ports.host);
        // The first bytes of a stream always find room.
        match self.stream.write(line.as_bytes()) {
            Ok(n) if n == line.len() => Fate::Lives,
            _ => Fate::Reset,
        }
    }

    fn data(&mut self, length: u32, data: &Segments) -> Fate {
        // What is buffered is never more than BUFFER, so this cannot overflow.
        if length > BUFFER - self.received.wrapping_sub(self.forwarded).min(BUFFER) {
            return Fate::Reset;
        }
        self.received = self.received.wrapping_add(length);
        let length = length as usize;
        let mut done = 0;
        if self.out.is_empty() && self.writable && self.host_shut & SHUT_RECEIVE == 0 {
            for slice in data.range(HEADER, length) {
                match (&self.stream).write_volatile(&slice) {
                    Ok(n) => {
                        done += n;
                        if n < slice.len() {
                            break;
                        }
                    }
                    Err(e) => {
                        self.write_failed(e);
                        break;
                    }
                }
            }
            self.forwarded = self.forwarded.wrapping_add(done as u32);
        }
        if self.host_shut & SHUT_RECEIVE != 0 {
            // Nobody will read it; the guest learns so by SHUTDOWN.
            self.forwarded = self.received;
        } else {
            for slice in data.range(HEADER + done, length - done) {
                let from = self.out.len();
                self.out.resize(from + slice.len(), 0);
                let room = self.out.make_contiguous();
                if let Some(room) = room.get_mut(from..) {
                    // Both have the same length.
                    let _ = slice.read(room, 0);
                }
            }
            if !self.out.is_empty() {
                self.flush();
            }
        }
        self.after_flush()
    }

    /// Writes what waits, as far as the host takes it.
    fn flush(&mut self) {
        while self.writable && !self.out.is_empty() {
            match self.stream.write(self.out.as_slices().0) {
                Ok(n) => {
                    self.out.drain(..n);
                    self.forwarded = self.forwarded.wrapping_add(n as u32);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => {
                    self.host_shut |= SHUT_RECEIVE;
                    self.discard();
                }
            }
        }
        if self.out.is_empty() {
            self.out = VecDeque::new();
        }
    }

    fn write_failed(&mut self, error: vm_memory::VolatileMemoryError) {
        match error {
            vm_memory::VolatileMemoryError::IOError(e) if e.kind() == ErrorKind::WouldBlock => {
                self.writable = false
            }
            vm_memory::VolatileMemoryError::IOError(e) if e.kind() == ErrorKind::Interrupted => {}
            _ => self.host_shut |= SHUT_RECEIVE,
        }
    }

    fn discard(&mut self) {
        self.out = VecDeque::new();
        self.forwarded = self.received;
    }

    fn after_flush(&mut self) -> Fate {
        if self.stage == Stage::Draining {
            return if self.out.is_empty() { Fate::Over } else { Fate::Lives };
        }
        if self.guest_shut & SHUT_SEND != 0 && self.out.is_empty() {
            // Fails only when the host has closed already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        // The guest believes this much to be in the buffer; tell it before that stops it.
        let believed = self.received.wrapping_sub(self.told_forwarded);
        self.update_owed |= believed >= BUFFER / 2 && self.forwarded != self.told_forwarded;
        Fate::Lives
    }

    fn shutdown(&mut self, flags: u32) -> Fate {
        self.guest_shut |= flags & SHUT_BOTH;
        if self.guest_shut == SHUT_BOTH {
            if self.out.is_empty() {
                return Fate::Reset;
            }
            self.stage = Stage::Draining;
            return Fate::Drains;
        }
        if self.guest_shut & SHUT_RECEIVE != 0 {
            // Fails only when the host has closed already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.after_flush()
    }

    /// Writes the next packet for the guest, if there is any, into `space`, which has room for more than a header.
    /// Returns its length.
    pub fn produce(&mut self, cid: u64, space: &Segments) -> (Option<usize>, Fate) {
        let (op, data, flags) = if let Some(greeting) = self.greeting.take() {
            (greeting, 0, 0)
        } else if !self.wants() {
            return (None, Fate::Lives);
        } else {
            match self.read(space) {
                Err(()) => return (None, Fate::Reset),
                Ok(n) if n > 0 => (op::RW, n, 0),
                Ok(_) if self.host_shut != self.told_shut => {
                    self.told_shut = self.host_shut;
                    (op::SHUTDOWN, 0, self.host_shut)
                }
                Ok(_) if self.request == Some(true) => {
                    self.request = Some(false);
                    (op::CREDIT_REQUEST, 0, 0)
                }
                Ok(_) if self.update_owed => (op::CREDIT_UPDATE, 0, 0),
                Ok(_) => return (None, Fate::Lives),
            }
        };
        self.sent = self.sent.wrapping_add(data as u32);
        self.told_forwarded = self.forwarded;
        self.update_owed = false;
        let header = Header {
            // `data` is at most PACKET.
            len: data as u32,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
            ..Header::to_guest(cid, self.ports, op)
        };
        space.write(0, &header.to_bytes());
        self.ask_for_credit();
        (Some(HEADER + data), Fate::Lives)
    }

    /// Everything is told; the guest's RST is all that is missing.
    pub fn awaits_reset(&self) -> bool {
        self.stage == Stage::Open && self.told_shut == SHUT_BOTH
    }

    /// Reads from the host's stream to behind the header. An error resets the connection.
    fn read(&mut self, space: &Segments) -> Result<usize, ()> {
        let mut done = 0;
        if !self.reads() {
            return Ok(0);
        }
        for mut slice in space.range(HEADER, PACKET.min(self.credit() as usize)) {
            match (&self.stream).read_volatile(&mut slice) {
                Ok(0) => {
                    self.host_shut |= SHUT_SEND;
                    break;
                }
                Ok(n) => {
                    done += n;
                    if n < slice.len() {
                        break;
                    }
                }
                Err(vm_memory::VolatileMemoryError::IOError(e)) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                Err(vm_memory::VolatileMemoryError::IOError(e)) if e.kind() == ErrorKind::Interrupted => {
                    break;
                }
                // The host closed without having read all.
                Err(_) if done == 0 => return Err(()),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}
