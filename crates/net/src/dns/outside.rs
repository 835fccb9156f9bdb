//! Questions to the servers outside, from the host's own network namespace.
//!
//! ```text
//! ask ─► server 1 ── silence, or a failure ──► server 2 ─► … ─► the last failure, or SERVFAIL
//!            └──────────── an answer ◄────────────┴── late ones are taken, too
//! ```
//!
//! Each question has a socket of its own for each server, so that an answer must come from that server to a port that
//! nobody can foresee, with a random id (RFC 5452).

use super::message::{Answer, Query, set_id};
use super::server::{Client, Token};
use super::servers::Servers;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Questions at a time; the oldest gives way to one more.
const MOST: usize = 128;
/// How often one is sent, to one server after the other.
const TRIES: usize = 3;
/// How long one server is waited for before the next is asked as well. Clients wait five seconds.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The longest message.
const LONGEST: usize = u16::MAX as usize;

/// What is asked outside.
#[derive(Debug)]
pub(super) struct Outside {
    servers: Servers,
    asked: BTreeMap<u32, Asked>,
    next: u32,
    pub(super) timer: OwnedFd,
}

/// One question.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) client: Client,
    /// As the client sent it, but for its id.
    message: Vec<u8>,
    id: u16,
    attempts: Vec<Attempt>,
    tries: usize,
    until: Instant,
    /// The answer of a server that could not answer.
    failure: Option<Vec<u8>>,
}

/// The question at one server.
#[derive(Debug)]
struct Attempt {
    server: usize,
    socket: OwnedFd,
    /// By TCP: what is to be sent, and what has come.
    stream: Option<(Vec<u8>, Vec<u8>)>,
}

/// What came of a question: the answer, with the id of the question as it was sent; none if nobody answered.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) asked: Asked,
    pub(super) answer: Option<Vec<u8>>,
}

impl Asked {
    /// The client's query, as it came but for its id.
    pub(super) fn query(&self) -> Option<Query<'_>> {
        Query::parse(&self.message).ok()
    }

    /// Its id on the way outside.
    fn sent_id(&self) -> u16 {
        u16::from_be_bytes(self.message.first_chunk().copied().unwrap_or_default())
    }

    /// Gives a message the id that the client waits for.
    pub(super) fn restore_id(&self, message: &mut [u8]) {
        set_id(message, self.id);
    }
}

impl Outside {
    pub(super) fn new(given: &[IpAddr]) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { servers: Servers::new(given), asked: BTreeMap::new(), next: 0, timer })
    }

    /// Sends a query on. Answers with what ended by that: this one, if nobody can be asked, or one that gave way.
    pub(super) fn ask(&mut self, epoll: &OwnedFd, client: Client, query: &Query<'_>) -> Option<Outcome> {
        let dropped = match self.asked.len() >= MOST {
            true => self.asked.pop_first().map(|(_, asked)| Outcome { asked, answer: None }),
            false => None,
        };
        let mut message = query.message.to_vec();
        set_id(&mut message, sys::host::random().map(u16::from_ne_bytes).unwrap_or_default());
        let (id, until) = (query.id, Instant::now() + PATIENCE);
        let mut asked = Asked { client, message, id, attempts: Vec::new(), tries: 0, until, failure: None };
        self.next = self.next.wrapping_add(1);
        if !asked.try_next(epoll, self.next, self.servers.now()) {
            return dropped.or(Some(Outcome { asked, answer: None }));
        }
        self.asked.insert(self.next, asked);
        self.set_timer();
        dropped
    }

    /// Reads what servers say to a question, or sends what could not be sent before.
    pub(super) fn ready(&mut self, epoll: &OwnedFd, number: u32) -> Option<Outcome> {
        let asked = self.asked.get_mut(&number)?;
        let answer = match asked.hear(epoll, number) {
            Heard::Answer(answer) => Some(answer),
            Heard::Nothing => return None,
            Heard::Failure => match asked.try_next(epoll, number, self.servers.now()) {
                true => {
                    self.set_timer();
                    return None;
                }
                // Another one may still answer.
                false if !asked.attempts.is_empty() => return None,
                false => asked.failure.take(),
            },
        };
        let asked = self.asked.remove(&number)?;
        Some(Outcome { asked, answer })
    }

    /// Asks again where nobody has answered in time, and answers with what ended.
    pub(super) fn expire(&mut self, epoll: &OwnedFd) -> Vec<Outcome> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.timer, &mut count);
        let now = Instant::now();
        let due: Vec<u32> = self.asked.iter().filter(|(_, a)| a.until <= now).map(|(n, _)| *n).collect();
        let mut ended = Vec::new();
        for number in due {
            let Some(asked) = self.asked.get_mut(&number) else { continue };
            if !asked.try_next(epoll, number, self.servers.now())
                && let Some(mut asked) = self.asked.remove(&number)
            {
                let answer = asked.failure.take();
                ended.push(Outcome { asked, answer });
            }
        }
        self.set_timer();
        ended
    }

    fn set_timer(&self) {
        let Some(first) = self.asked.values().map(|a| a.until).min() else { return };
        // Zero would be never.
        let left = first.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let it_value = Timespec::try_from(left).unwrap_or_default();
        let spec = Itimerspec { it_interval: Timespec::default(), it_value };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
    }
}

enum Heard {
    Answer(Vec<u8>),
    /// A server could not answer, or is not there.
    Failure,
    Nothing,
}

impl Asked {
    /// Asks the next server; whether there was one to ask.
    fn try_next(&mut self, epoll: &OwnedFd, number: u32, servers: &[SocketAddr]) -> bool {
        while self.tries < TRIES && !servers.is_empty() {
            let server = self.tries % servers.len();
            self.tries += 1;
            self.until = Instant::now() + PATIENCE;
            let known = self.attempts.iter().find(|a| a.server == server);
            let sent = match known {
                Some(attempt) if attempt.stream.is_some() => true,
                Some(attempt) => {
                    rustix::net::send(&attempt.socket, &self.message, SendFlags::NOSIGNAL).is_ok()
                }
                None => servers.get(server).is_some_and(|to| self.begin(epoll, number, server, *to).is_ok()),
            };
            if sent {
                return true;
            }
        }
        false
    }

    fn begin(&mut self, epoll: &OwnedFd, number: u32, server: usize, to: SocketAddr) -> Result<(), Errno> {
        let by_tcp = !self.client.is_datagram();
        let kind = if by_tcp { SocketType::STREAM } else { SocketType::DGRAM };
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket =
            rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        match rustix::net::connect(&socket, &to) {
            Err(Errno::INPROGRESS) if by_tcp => {}
            done => done?,
        }
        let token = Token::Outside(number).encode();
        let stream = if by_tcp {
            epoll::add(epoll, &socket, token, EventFlags::IN | EventFlags::OUT)?;
            let length = u16::try_from(self.message.len()).map_err(|_| Errno::MSGSIZE)?;
            Some(([&length.to_be_bytes(), &self.message[..]].concat(), Vec::new()))
        } else {
            rustix::net::send(&socket, &self.message, SendFlags::NOSIGNAL)?;
            epoll::add(epoll, &socket, token, EventFlags::IN)?;
            None
        };
        self.attempts.push(Attempt { server, socket, stream });
        Ok(())
    }

    fn hear(&mut self, epoll: &OwnedFd, number: u32) -> Heard {
        let mut heard = Heard::Nothing;
        let mut index = 0;
        while let Some(attempt) = self.attempts.get_mut(index) {
            let message = match attempt.receive(epoll, number) {
                Ok(message) => message,
                Err(_) => {
                    self.attempts.remove(index);
                    heard = Heard::Failure;
                    continue;
                }
            };
            let id = self.sent_id();
            let question = self.query().map(|q| q.question().to_vec()).unwrap_or_default();
            match message.as_deref().and_then(|m| Answer::to(&question, id, m)) {
                Some(answer) if answer.is_failure() => {
                    self.failure = message;
                    self.attempts.remove(index);
                    heard = Heard::Failure;
                }
                Some(_) => return Heard::Answer(message.unwrap_or_default()),
                // Not there yet, or not meant for this question.
                None => index += 1,
            }
        }
        heard
    }
}

impl Attempt {
    /// A message that has come whole.
    fn receive(&mut self, epoll: &OwnedFd, number: u32) -> Result<Option<Vec<u8>>, Errno> {
        let Some((output, input)) = &mut self.stream else {
            let mut buffer = vec![0; LONGEST];
            return match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, n)) => {
                    buffer.truncate(n);
                    Ok(Some(buffer))
                }
                Err(Errno::AGAIN | Errno::INTR) => Ok(None),
                Err(e) => Err(e),
            };
        };
        if !output.is_empty() {
            match rustix::net::send(&self.socket, output, SendFlags::NOSIGNAL) {
                Ok(n) => drop(output.drain(..n)),
                Err(Errno::AGAIN | Errno::NOTCONN | Errno::INTR) => return Ok(None),
                Err(e) => return Err(e),
            }
            if output.is_empty() {
                epoll::modify(epoll, &self.socket, Token::Outside(number).encode(), EventFlags::IN)?;
            }
        }
        let mut portion = [0; 8192];
        match rustix::net::recv(&self.socket, &mut portion[..], RecvFlags::empty()) {
            Ok((_, 0)) => return Err(Errno::CONNRESET),
            Ok((_, n)) => input.extend_from_slice(portion.get(..n).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => return Ok(None),
            Err(e) => return Err(e),
        }
        Ok(super::relay::next_part(&mut &input[..]).map(<[u8]>::to_vec))
    }
}
