//! One TCP connection, carried in both directions.

use super::{BUDGET, MOST, Progress, Proxy, Work, watch};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_keepalive, set_socket_linger, set_tcp_nodelay};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Both directions in one registration.
pub(super) const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);
/// Most bytes of one read, and so most that wait for a slow receiver.
const PORTION: usize = 16 * 1024;

/// A client, the sandbox, and what is between them.
#[derive(Debug)]
pub(super) struct Connection {
    client: OwnedFd,
    server: OwnedFd,
    up: Pipe,
    down: Pipe,
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    /// Read, and not yet taken by the receiver.
    pending: Vec<u8>,
    /// The sender will send no more.
    ended: bool,
    /// The receiver has been told so.
    told: bool,
}

impl Proxy {
    /// Takes the connections that wait at a listener.
    pub(super) fn accept(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index) else { return };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while self.slots.used < MOST {
            let client = match rustix::net::accept_with(&listener.socket, flags) {
                Ok(client) => client,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                // EAGAIN; or descriptors ran out: the rest waits for the next edge.
                Err(_) => return,
            };
            let Ok(server) = connect(listener.target) else {
                reset(&client);
                continue;
            };
            // A peer that vanished without a word must not hold its place for ever.
            let _ = set_socket_keepalive(&client, true).and(set_tcp_nodelay(&client, true));
            let token = self.slots.reserve();
            let watched = watch(&self.epoll, &client, token, INTEREST)
                .and_then(|()| watch(&self.epoll, &server, token, INTEREST));
            if watched.is_ok() {
                let connection = Connection { client, server, up: Pipe::default(), down: Pipe::default() };
                self.slots.fill(token, Work::Tcp(connection));
            }
        }
    }
}

fn connect(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let _ = set_tcp_nodelay(&socket, true);
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// Lets the client see a reset when it is closed, as if it had met the sandbox's closed port itself.
fn reset(client: &OwnedFd) {
    let _ = set_socket_linger(client, Some(Duration::ZERO));
}

impl Connection {
    pub(super) fn sides(&self) -> [&OwnedFd; 2] {
        [&self.client, &self.server]
    }

    /// Moves bytes until both directions would block, or the budget is used up.
    pub(super) fn carry(&mut self, scratch: &mut [u8]) -> Progress {
        for _ in 0..BUDGET {
            let up = self.up.step(&self.client, &self.server, scratch);
            let down = self.down.step(&self.server, &self.client, scratch);
            match (up, down) {
                (Ok(false), Ok(false)) if self.up.told && self.down.told => return Progress::Done,
                (Ok(false), Ok(false)) => return Progress::Waits,
                (Ok(_), Ok(_)) => {}
                (Err(_), _) | (_, Err(_)) => {
                    reset(&self.client);
                    return Progress::Done;
                }
            }
        }
        Progress::Yields
    }
}

impl Pipe {
    /// Moves one portion; whether anything moved.
    fn step(&mut self, from: &OwnedFd, to: &OwnedFd, scratch: &mut [u8]) -> Result<bool, Errno> {
        if !self.pending.is_empty() {
            let taken = match send(to, &self.pending)? {
                0 => return Ok(false),
                taken => taken,
            };
            self.pending.drain(..taken);
            if self.pending.is_empty() {
                self.pending = Vec::new();
            }
            return Ok(true);
        }
        if self.ended {
            return match self.told {
                true => Ok(false),
                false => match rustix::net::shutdown(to, Shutdown::Write) {
                    // Not connected yet: later.
                    Err(Errno::NOTCONN) => Ok(false),
                    _ => {
                        self.told = true;
                        Ok(true)
                    }
                },
            };
        }
        let portion = scratch.get_mut(..PORTION).ok_or(Errno::INVAL)?;
        match rustix::net::recv(from, &mut *portion, RecvFlags::empty()) {
            Ok((_, 0)) => {
                self.ended = true;
                Ok(true)
            }
            Ok((_, len)) => {
                let bytes = portion.get(..len).ok_or(Errno::INVAL)?;
                let taken = send(to, bytes)?;
                self.pending.extend_from_slice(bytes.get(taken..).unwrap_or_default());
                Ok(true)
            }
            // ENOTCONN: the connection to the sandbox is still being made.
            Err(Errno::AGAIN | Errno::NOTCONN) => Ok(false),
            Err(Errno::INTR) => Ok(true),
            Err(e) => Err(e),
        }
    }
}

/// How many bytes the receiver took; none if it takes none now.
fn send(to: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::net::send(to, bytes, SendFlags::NOSIGNAL) {
        Ok(taken) => Ok(taken),
        Err(Errno::AGAIN | Errno::NOTCONN | Errno::INTR) => Ok(0),
        Err(e) => Err(e),
    }
}
