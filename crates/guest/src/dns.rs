//! Names for the workload: what it asks on 127.0.0.11 goes to the host, and the host's answers come back
//! ([`net::dns::relay`]).
//!
//! A process of its own, made before PID 1 becomes the supervisor, which has other things to wait for. It knows nothing of
//! names. The workload is taken for hostile: all that it can make this process keep is bounded.

use crate::{Result, Told};
use net::dns::relay::{Frame, MOST, PORT, Transport};
use net::dns::{Entrance, Over, Stream};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use types::NetworkPlan;

/// Questions without an answer; the oldest is forgotten.
const QUESTIONS: usize = 1024;
/// Connections of the workload; the longest silent is closed.
const STREAMS: usize = 32;
/// Longest question.
const LONGEST: usize = 4096;
/// Datagrams in one turn.
const BUDGET: usize = 64;
/// How long the host is left alone after it did not accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the process, where the network has names.
pub fn start(network: &NetworkPlan) -> Result<()> {
    if !network.attachments().iter().any(net::dns::is_named) {
        return Ok(());
    }
    let entrance = Entrance::here().told("listen for questions about names")?;
    let body = || {
        let keep = [entrance.udp.as_fd(), entrance.tcp.as_fd()];
        if sys::process::close_all_but(&keep).is_err() {
            return 1;
        }
        let (Ok(udp), Ok(tcp)) = (entrance.udp.try_clone(), entrance.tcp.try_clone()) else { return 1 };
        Relay::new(Entrance { udp, tcp }).run();
        1
    };
    sys::clone::spawn(0, None, body).map(drop).told("create the process that relays questions about names")
}

/// Who asked.
enum Asker {
    Datagram(SocketAddr),
    Stream(u32),
}

struct Relay {
    entrance: Entrance,
    host: Option<Stream>,
    /// When the host did not accept.
    refused: Option<Instant>,
    askers: BTreeMap<u32, Asker>,
    streams: BTreeMap<u32, Stream>,
    next: u32,
}

/// What is ready.
#[derive(Clone, Copy)]
enum Ready {
    Datagrams,
    Connections,
    Host,
    Stream(u32),
}

impl Relay {
    fn new(entrance: Entrance) -> Self {
        let (askers, streams) = (BTreeMap::new(), BTreeMap::new());
        Self { entrance, host: None, refused: None, askers, streams, next: 0 }
    }

    fn run(&mut self) {
        loop {
            for ready in self.wait() {
                match ready {
                    Ready::Datagrams => self.datagrams(),
                    Ready::Connections => self.accept(),
                    Ready::Host => self.host_speaks(),
                    Ready::Stream(number) => self.stream_speaks(number),
                }
            }
        }
    }

    fn wait(&self) -> Vec<Ready> {
        let wanted = |s: &Stream| if s.is_behind() { PollFlags::OUT } else { PollFlags::IN };
        let mut watched = vec![
            (Ready::Datagrams, PollFd::new(&self.entrance.udp, PollFlags::IN)),
            (Ready::Connections, PollFd::new(&self.entrance.tcp, PollFlags::IN)),
        ];
        // Answers are read even if it does not take more questions.
        let host = self.host.iter().map(|s| (Ready::Host, PollFd::new(s, wanted(s) | PollFlags::IN)));
        watched.extend(host);
        watched.extend(self.streams.iter().map(|(n, s)| (Ready::Stream(*n), PollFd::new(s, wanted(s)))));
        let mut fds: Vec<_> = watched.iter().map(|(_, fd)| fd.clone()).collect();
        if poll(&mut fds, None).is_err() {
            return Vec::new();
        }
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        ready.map(|((ready, _), _)| *ready).collect()
    }

    fn datagrams(&mut self) {
        let mut buffer = [0; LONGEST];
        for _ in 0..BUDGET {
            match rustix::net::recvfrom(&self.entrance.udp, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length, from)) => {
                    let from = from.and_then(|a| SocketAddr::try_from(a).ok());
                    if let (Some(from), Some(message)) = (from, buffer.get(..length)) {
                        self.ask(Asker::Datagram(from), Transport::Udp, message);
                    }
                }
                Err(Errno::AGAIN) => return,
                // Of an answer that was sent before.
                Err(_) => {}
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(socket) = rustix::net::accept_with(&self.entrance.tcp, flags) {
            if self.streams.len() >= STREAMS {
                let oldest = self.streams.iter().min_by_key(|(_, s)| s.last_heard()).map(|(n, _)| *n);
                oldest.and_then(|n| self.streams.remove(&n));
            }
            self.next = self.next.wrapping_add(1);
            self.streams.insert(self.next, Stream::new(socket, LONGEST));
        }
    }

    fn stream_speaks(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let parts = match stream.flush() {
            Ok(()) if stream.is_behind() => return,
            Ok(()) => stream.receive(),
            Err(Over) => Err(Over),
        };
        match parts {
            Ok(parts) => {
                parts.iter().for_each(|part| self.ask(Asker::Stream(number), Transport::Tcp, part));
            }
            Err(Over) => drop(self.streams.remove(&number)),
        }
    }

    /// Sends a question to the host. One that cannot be sent is forgotten: the workload asks again.
    fn ask(&mut self, asker: Asker, transport: Transport, message: &[u8]) {
        if !self.connect() {
            return;
        }
        self.next = self.next.wrapping_add(1);
        let mut frame = Vec::new();
        Frame { number: self.next, transport, message }.write(&mut frame);
        match self.host.as_mut().map(|host| host.send(&frame)) {
            Some(Ok(())) => {
                if self.askers.len() >= QUESTIONS {
                    self.askers.pop_first();
                }
                self.askers.insert(self.next, asker);
            }
            _ => self.host = None,
        }
    }

    /// Whether the host is there.
    fn connect(&mut self) -> bool {
        if self.host.is_none() && self.refused.is_none_or(|at| at.elapsed() > PAUSE) {
            let connect = || -> std::io::Result<_> {
                let socket = sys::vsock::connect(sys::vsock::HOST, PORT)?;
                rustix::io::ioctl_fionbio(&socket, true)?;
                Ok(socket)
            };
            match connect() {
                Ok(socket) => self.host = Some(Stream::new(socket, usize::MAX)),
                Err(_) => self.refused = Some(Instant::now()),
            }
        }
        self.host.is_some()
    }

    fn host_speaks(&mut self) {
        let heard = self.host.as_mut().map(|host| host.flush().and_then(|()| host.receive()));
        match heard {
            Some(Ok(parts)) => parts.iter().filter_map(|p| Frame::parse(p)).for_each(|f| self.answer(&f)),
            // Another supervisor may come: the next question looks for it.
            Some(Err(Over)) => self.host = None,
            None => {}
        }
    }

    fn answer(&mut self, frame: &Frame<'_>) {
        match self.askers.remove(&frame.number) {
            Some(Asker::Datagram(to)) => {
                let _ = rustix::net::sendto(&self.entrance.udp, frame.message, SendFlags::NOSIGNAL, &to);
            }
            Some(Asker::Stream(number)) => {
                let Some(length) =
                    u16::try_from(frame.message.len()).ok().filter(|l| usize::from(*l) <= MOST)
                else {
                    return;
                };
                let framed = [&length.to_be_bytes(), frame.message].concat();
                if let Some(stream) = self.streams.get_mut(&number)
                    && stream.send(&framed).is_err()
                {
                    self.streams.remove(&number);
                }
            }
            None => {}
        }
    }
}
