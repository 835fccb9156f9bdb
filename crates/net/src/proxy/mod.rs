//! Published ports without NAT: connections that arrive at the reserving sockets are carried to the sandbox here.
//!
//! ```text
//! serve ── listener: accept ──► connecting ──► carrying ⇄ ──► half closed ──► closed
//!      └── datagram ──► flow of that client ──► sandbox, and answers back
//! ```
//!
//! One epoll descriptor that the supervisor watches among its own; no threads, no timers. Descriptors are watched
//! edge-triggered, so each is worked until it would block; a busy one yields after a budget and is armed anew. A
//! connection holds no buffer but what its receiver would not yet take.

mod tcp;
mod udp;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use types::Protocol;

/// Connections and flows at once; more wait in the backlog, or push out the longest silent flow.
/// (Each connection is two descriptors, and a process often may have but 1024.)
const MOST: usize = 400;
/// The largest datagram, and a good portion of a stream.
const SCRATCH: usize = 64 * 1024;
/// Turns of one descriptor before another gets its own.
const BUDGET: usize = 32;

/// Carries connections from reserving sockets to the sandbox.
#[derive(Debug)]
pub(crate) struct Proxy {
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    slots: Slots,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    protocol: Protocol,
    target: SocketAddr,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener(usize),
    Slot { index: u32, generation: u32 },
}

const LISTENER: u64 = 1 << 63;

impl Token {
    fn encode(self) -> EventData {
        EventData::new_u64(match self {
            Self::Listener(index) => LISTENER | index as u64,
            Self::Slot { index, generation } => {
                (u64::from(generation & 0x7fff_ffff) << 32) | u64::from(index)
            }
        })
    }

    fn decode(data: EventData) -> Self {
        let n = data.u64();
        if n & LISTENER != 0 {
            return Self::Listener((n & !LISTENER) as usize);
        }
        Self::Slot { index: n as u32, generation: (n >> 32) as u32 }
    }
}

#[derive(Debug)]
enum Work {
    Tcp(tcp::Connection),
    Udp(udp::Flow),
}

/// Work by number. A number serves again, so it goes with a generation: an event of the dead finds nobody.
#[derive(Debug, Default)]
struct Slots {
    list: Vec<(u32, Option<Work>)>,
    used: usize,
}

impl Slots {
    fn reserve(&mut self) -> Token {
        let free = self.list.iter().position(|(_, work)| work.is_none());
        let index = free.unwrap_or_else(|| {
            self.list.push((0, None));
            self.list.len() - 1
        });
        let generation = self.list.get(index).map_or(0, |s| s.0);
        Token::Slot { index: index as u32, generation }
    }

    fn fill(&mut self, token: Token, work: Work) {
        if let Token::Slot { index, .. } = token
            && let Some(slot) = self.list.get_mut(index as usize)
        {
            slot.1 = Some(work);
            self.used += 1;
        }
    }

    fn get(&mut self, token: Token) -> Option<&mut Work> {
        let Token::Slot { index, generation } = token else { return None };
        self.list.get_mut(index as usize).filter(|s| s.0 == generation)?.1.as_mut()
    }

    fn free(&mut self, index: usize) {
        if let Some(slot) = self.list.get_mut(index)
            && slot.1.take().is_some()
        {
            slot.0 = (slot.0 + 1) & 0x7fff_ffff;
            self.used -= 1;
        }
        if self.used == 0 {
            self.list = Vec::new();
        }
    }
}

impl Proxy {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, listeners: Vec::new(), slots: Slots::default(), scratch: Vec::new() })
    }

    /// Carries what arrives at `socket` (non-blocking) to `target`.
    pub(crate) fn listen(
        &mut self,
        socket: OwnedFd,
        protocol: Protocol,
        target: SocketAddr,
    ) -> io::Result<()> {
        let token = Token::Listener(self.listeners.len());
        watch(&self.epoll, &socket, token, EventFlags::IN)?;
        self.listeners.push(Listener { socket, protocol, target });
        Ok(())
    }

    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Handles what is ready now.
    pub(crate) fn serve(&mut self) {
        let mut events = Vec::with_capacity(64);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)).is_err() {
            return;
        }
        self.scratch.resize(SCRATCH, 0);
        for Event { data, .. } in events {
            match Token::decode(data) {
                Token::Listener(index) => self.arrive(index),
                token => self.work(token),
            }
        }
        // An idle supervisor keeps no buffer.
        self.scratch = Vec::new();
    }

    fn arrive(&mut self, index: usize) {
        match self.listeners.get(index).map(|l| l.protocol) {
            Some(Protocol::Tcp) => self.accept(index),
            Some(Protocol::Udp) => self.receive(index),
            None => {}
        }
    }

    fn work(&mut self, token: Token) {
        let Token::Slot { index, .. } = token else { return };
        let done = match self.slots.get(token) {
            Some(Work::Tcp(connection)) => connection.carry(&mut self.scratch),
            Some(Work::Udp(flow)) => match self.listeners.get(flow.listener) {
                Some(listener) => flow.answer(&listener.socket, &mut self.scratch),
                None => Progress::Done,
            },
            None => return,
        };
        match done {
            Progress::Waits => {}
            Progress::Yields => self.arm(token),
            Progress::Done => {
                let was_full = self.slots.used >= MOST;
                self.slots.free(index as usize);
                if was_full {
                    // Their edge came when there was no room.
                    (0..self.listeners.len()).for_each(|i| self.arrive(i));
                }
            }
        }
    }

    /// Has epoll report a descriptor again although nothing new has happened to it.
    fn arm(&mut self, token: Token) {
        match self.slots.get(token) {
            Some(Work::Tcp(connection)) => {
                for side in connection.sides() {
                    let _ = epoll::modify(&self.epoll, side, token.encode(), tcp::INTEREST);
                }
            }
            Some(Work::Udp(flow)) => {
                let _ =
                    epoll::modify(&self.epoll, &flow.socket, token.encode(), EventFlags::IN | EventFlags::ET);
            }
            None => {}
        }
    }
}

/// How far a turn got.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Everything that can be done is; the next event goes on.
    Waits,
    /// There is more to do, after the others.
    Yields,
    /// Nothing more will come.
    Done,
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: Token, what: EventFlags) -> io::Result<()> {
    Ok(epoll::add(epoll, fd, token.encode(), what | EventFlags::ET)?)
}

/// How long a UDP flow may be silent before its place may be taken, as long as conntrack remembers a stream.
const SILENCE: Duration = Duration::from_secs(120);
