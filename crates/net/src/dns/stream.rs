//! Connections: of a workload by TCP, or between a microVM's agent and the supervisor. Both carry parts with their lengths
//! before them.

use super::relay::next_part;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// Answers that wait for a client which does not read: more, and it is gone.
const WAITING: usize = 256 << 10;
/// Bytes of one read.
const PORTION: usize = 8192;

/// One connection.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    longest: usize,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When it was last heard.
    last: Instant,
}

/// Its peer is gone, or does what no peer does.
#[derive(Debug)]
pub struct Over;

impl Stream {
    /// Of a socket that does not block; parts from the other end are no longer than this.
    pub fn new(socket: OwnedFd, longest: usize) -> Self {
        Self { socket, longest, input: Vec::new(), output: Vec::new(), last: Instant::now() }
    }

    /// Reads what is there, and answers with the parts that are whole.
    pub fn receive(&mut self) -> Result<Vec<Vec<u8>>, Over> {
        let mut portion = [0; PORTION];
        match rustix::net::recv(&self.socket, &mut portion[..], RecvFlags::empty()) {
            Ok((_, 0)) => return Err(Over),
            Ok((_, n)) => self.input.extend_from_slice(portion.get(..n).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Vec::new()),
            Err(_) => return Err(Over),
        }
        self.last = Instant::now();
        let mut rest = &self.input[..];
        let mut parts = Vec::new();
        while let Some(part) = next_part(&mut rest) {
            parts.push(part.to_vec());
        }
        let next = rest.first_chunk::<2>().map_or(0, |l| u16::from_be_bytes(*l).into());
        if next > self.longest || parts.iter().any(|p| p.len() > self.longest) {
            return Err(Over);
        }
        self.input = rest.to_vec();
        Ok(parts)
    }

    /// Sends bytes, as far as the other end takes them; the rest waits.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Over> {
        if self.output.len() + bytes.len() > WAITING {
            return Err(Over);
        }
        self.output.extend_from_slice(bytes);
        self.flush()
    }

    /// Sends what waits.
    pub fn flush(&mut self) -> Result<(), Over> {
        while !self.output.is_empty() {
            match rustix::net::send(&self.socket, &self.output, SendFlags::NOSIGNAL) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Over),
            }
        }
        self.output = Vec::new();
        Ok(())
    }

    /// Whether answers wait for it to read.
    pub fn is_behind(&self) -> bool {
        !self.output.is_empty()
    }

    /// When it was last heard.
    pub fn last_heard(&self) -> Instant {
        self.last
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
