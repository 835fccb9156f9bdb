//! UDP: a connected socket to the sandbox for each client, so that answers find their way back.

use super::{BUDGET, MOST, Progress, Proxy, SILENCE, Token, Work, watch};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// The conversation of one client.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) listener: usize,
    pub(super) socket: OwnedFd,
    client: SocketAddr,
    last: Instant,
}

impl Proxy {
    /// Sends the datagrams that wait at a listener on to the sandbox.
    pub(super) fn receive(&mut self, index: usize) {
        for _ in 0..BUDGET {
            let Some(listener) = self.listeners.get(index) else { return };
            let (len, from) =
                match rustix::net::recvfrom(&listener.socket, &mut *self.scratch, RecvFlags::empty()) {
                    Ok((_, len, from)) => (len, from),
                    // Errors of a datagram socket are those of datagrams sent before.
                    Err(Errno::INTR | Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                        continue;
                    }
                    Err(_) => return,
                };
            let Some(client) = from.and_then(|a| SocketAddr::try_from(a).ok()) else { continue };
            let target = listener.target;
            let Some(slot) = self.flow(index, client, target) else { continue };
            if let Some(Work::Udp(flow)) = self.slots.get(slot) {
                flow.last = Instant::now();
                let bytes = self.scratch.get(..len).unwrap_or_default();
                let _ = rustix::net::send(&flow.socket, bytes, SendFlags::NOSIGNAL);
            }
        }
        // More may wait: have the listener reported again.
        if let Some(listener) = self.listeners.get(index) {
            let what = EventFlags::IN | EventFlags::ET;
            let token = Token::Listener(index).encode();
            let _ = rustix::event::epoll::modify(&self.epoll, &listener.socket, token, what);
        }
    }

    /// The flow of a client, made if there is none.
    fn flow(&mut self, listener: usize, client: SocketAddr, target: SocketAddr) -> Option<Token> {
        let flows = || {
            self.slots.list.iter().enumerate().filter_map(|(i, (g, work))| match work {
                Some(Work::Udp(flow)) => Some((i, *g, flow)),
                _ => None,
            })
        };
        if let Some((i, g, _)) = flows().find(|(_, _, f)| f.listener == listener && f.client == client) {
            return Some(Token::Slot { index: i as u32, generation: g });
        }
        let full = self.slots.used >= MOST;
        let now = Instant::now();
        let oldest = flows().min_by_key(|(_, _, f)| f.last).map(|(i, _, f)| (i, now.duration_since(f.last)));
        match oldest {
            Some((i, age)) if full || age > SILENCE => self.slots.free(i),
            _ if full => return None,
            _ => {}
        }
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).ok()?;
        rustix::net::connect(&socket, &target).ok()?;
        let token = self.slots.reserve();
        watch(&self.epoll, &socket, token, EventFlags::IN).ok()?;
        self.slots.fill(token, Work::Udp(Flow { listener, socket, client, last: now }));
        Some(token)
    }
}

impl Flow {
    /// Sends the sandbox's answers back to the client.
    pub(super) fn answer(&mut self, listener: &OwnedFd, scratch: &mut [u8]) -> Progress {
        for _ in 0..BUDGET {
            match rustix::net::recv(&self.socket, &mut *scratch, RecvFlags::empty()) {
                Ok((_, len)) => {
                    self.last = Instant::now();
                    let bytes = scratch.get(..len).unwrap_or_default();
                    let _ = rustix::net::sendto(listener, bytes, SendFlags::NOSIGNAL, &self.client);
                }
                Err(Errno::AGAIN) => return Progress::Waits,
                // The sandbox's port is closed, now; the client may try again.
                Err(Errno::INTR | Errno::CONNREFUSED) => {}
                Err(_) => return Progress::Done,
            }
        }
        Progress::Yields
    }
}
