//! The server of names for one sandbox, in its supervisor: one epoll descriptor, no thread, no waiting.

use super::decide::{self, Verdict, decide};
use super::haste::Haste;
use super::message::{self, Answer, NoQuery, Query, Rcode, Record, kind};
use super::outside::{Outcome, Outside};
use super::reflex::Reflex;
use super::registry::View;
use super::relay::{self, Frame, Transport};
use super::stream::Stream;
use super::{Entrance, is_named};
use crate::NetError;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use types::{Attachment, Egress, EgressRule};

/// Connections of a workload; the longest silent gives way to one more.
const STREAMS: usize = 32;
/// Connections of an agent, which needs one, and a second when it has lost the first.
const AGENTS: usize = 2;
/// Datagrams in one turn.
const BUDGET: usize = 64;
/// How long what was seen of the names holds for who asks in haste.
const LOOK: Duration = Duration::from_millis(1);
/// Longest question.
const QUESTION: usize = 4096;
/// Seconds for which an answer of our own may be remembered: changes show within them.
const TTL: u32 = 1;
/// What a name of an own network stands for is permitted so long, from each answer.
const NEAR: Duration = Duration::from_secs(60);
/// What a name outside stands for is permitted as long as the answer lives, within these bounds, and then for as long as a
/// client may take that has looked it up at the last moment.
const SHORTEST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const GRACE: Duration = Duration::from_secs(30);
/// Addresses that names may have opened at one time: each takes memory of the kernel's. Who asks for more is told no more.
const PERMITS: usize = 4096;

/// Permits addresses to a sandbox under a policy, by one of its rules: `egress::permit`.
pub type Permit = fn(&Attachment, &EgressRule, &[(IpAddr, Duration)]) -> Result<(), NetError>;

/// What a server works with.
#[derive(Debug)]
pub struct Names {
    /// The run directory of the store, with its `networks`.
    pub run: PathBuf,
    /// The sandbox's places on networks.
    pub attachments: Vec<Attachment>,
    /// The servers outside; the host's own if empty.
    pub servers: Vec<IpAddr>,
    /// How the policy lets an address be reached.
    pub permit: Permit,
}

/// Who waits for an answer.
#[derive(Clone, Debug)]
pub(super) enum Client {
    /// By a datagram, inside.
    Datagram(SocketAddr),
    /// On a connection.
    Stream(u32),
    /// Behind an agent's connection.
    Behind(u32, u32, Transport),
}

impl Client {
    pub(super) fn is_datagram(&self) -> bool {
        matches!(self, Self::Datagram(_) | Self::Behind(_, _, Transport::Udp))
    }

    fn limit(&self, query: &Query<'_>) -> usize {
        if self.is_datagram() { query.udp_limit() } else { relay::MOST }
    }
}

/// An address could not be permitted, so its name is not told.
struct NoPermit;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// The workload itself.
    Workload,
    /// An agent, which speaks for its workload.
    Agent,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Datagrams,
    Listener,
    Timer,
    Stream(u32),
    Outside(u32),
}

impl Token {
    pub(super) fn encode(self) -> EventData {
        let (kind, number) = match self {
            Self::Datagrams => (0, 0),
            Self::Listener => (1, 0),
            Self::Timer => (2, 0),
            Self::Stream(n) => (3, n),
            Self::Outside(n) => (4, n),
        };
        EventData::new_u64((kind << 32) | u64::from(number))
    }

    fn decode(data: EventData) -> Self {
        let n = data.u64();
        match n >> 32 {
            0 => Self::Datagrams,
            1 => Self::Listener,
            2 => Self::Timer,
            3 => Self::Stream(n as u32),
            _ => Self::Outside(n as u32),
        }
    }
}

/// Serves names to one sandbox.
#[derive(Debug)]
pub struct Server {
    names: Names,
    view: View,
    /// When it was last looked whether that has changed.
    looked: Option<Instant>,
    epoll: OwnedFd,
    /// Where datagrams come in; none for a microVM.
    udp: Option<OwnedFd>,
    listener: OwnedFd,
    peer: Peer,
    streams: BTreeMap<u32, Stream>,
    next: u32,
    outside: Outside,
    /// Whose turn it is, of both families: a client that asks for both gets each in turn.
    turns: [usize; 2],
    haste: Haste,
    reflex: Reflex,
    /// Until when addresses are permitted, by network, place of the rule, and address.
    permitted: HashMap<(String, usize, IpAddr), Instant>,
}

impl Server {
    /// Serves a container, by sockets in its network namespace.
    pub fn inside(names: Names, netns: BorrowedFd<'_>) -> Result<Self, NetError> {
        let failed = NetError::system("serve names inside");
        let open = || {
            let Entrance { udp, tcp } = Entrance::within(netns)?;
            Self::new(names, Some(udp), tcp, Peer::Workload)
        };
        open().map_err(failed)
    }

    /// Serves a microVM, whose agent connects to this listener, which does not block.
    pub fn behind(names: Names, listener: OwnedFd) -> Result<Self, NetError> {
        Self::new(names, None, listener, Peer::Agent).map_err(NetError::system("serve names"))
    }

    fn new(names: Names, udp: Option<OwnedFd>, listener: OwnedFd, peer: Peer) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let outside = Outside::new(&names.servers)?;
        if let Some(udp) = &udp {
            epoll::add(&epoll, udp, Token::Datagrams.encode(), EventFlags::IN)?;
        }
        // By edges: where no descriptor is free for a connection, it waits, and does not have us turn idly.
        epoll::add(&epoll, &listener, Token::Listener.encode(), EventFlags::IN | EventFlags::ET)?;
        epoll::add(&epoll, &outside.timer, Token::Timer.encode(), EventFlags::IN)?;
        Ok(Self {
            view: view(&names),
            looked: None,
            names,
            epoll,
            udp,
            listener,
            peer,
            streams: BTreeMap::new(),
            next: 0,
            outside,
            turns: [0; 2],
            haste: Haste::default(),
            reflex: Reflex::default(),
            permitted: HashMap::new(),
        })
    }

    /// The sandbox is on these networks from now on.
    pub fn change(&mut self, attachments: &[Attachment]) {
        self.names.attachments = attachments.to_vec();
        self.view = view(&self.names);
        self.looked = None;
        self.permitted = HashMap::new();
    }

    /// Readable when [`Self::serve`] has something to do.
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Answers what waits; never blocks.
    pub fn serve(&mut self) {
        let mut events = Vec::with_capacity(64);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)).is_err() {
            return;
        }
        for Event { data, flags } in events {
            match Token::decode(data) {
                Token::Datagrams => self.datagrams(),
                Token::Listener => self.accept(),
                Token::Timer => {
                    for outcome in self.outside.expire(&self.epoll) {
                        self.conclude(outcome);
                    }
                }
                Token::Stream(number) => self.stream(number, flags),
                Token::Outside(number) => {
                    if let Some(outcome) = self.outside.ready(&self.epoll, number) {
                        self.conclude(outcome);
                    }
                }
            }
        }
    }

    fn datagrams(&mut self) {
        let mut buffer = [0; QUESTION];
        let mut left = BUDGET;
        while let Some(udp) = self.udp.as_ref().filter(|_| left > 0) {
            match rustix::net::recvfrom(udp, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length, from)) => {
                    left -= 1;
                    let asked = Instant::now();
                    let Some(from) = from.and_then(|a| SocketAddr::try_from(a).ok()) else { continue };
                    // Cut off, it is no question.
                    if let Some(message) = buffer.get(..length) {
                        self.question(Client::Datagram(from), message);
                    }
                    self.haste.answered(asked, Instant::now());
                }
                Err(Errno::AGAIN) if self.haste.goes_on() => {}
                Err(Errno::AGAIN) => return,
                // Errors of a datagram socket are those of answers sent before.
                Err(_) => left -= 1,
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (most, longest) = match self.peer {
            Peer::Agent => (AGENTS, QUESTION + relay::HEAD),
            Peer::Workload => (STREAMS, QUESTION),
        };
        loop {
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => return,
            };
            while self.streams.len() >= most {
                let oldest = self.streams.iter().min_by_key(|(_, s)| s.last_heard()).map(|(n, _)| *n);
                oldest.and_then(|n| self.streams.remove(&n));
            }
            self.next = self.next.wrapping_add(1);
            if epoll::add(&self.epoll, &socket, Token::Stream(self.next).encode(), EventFlags::IN).is_ok() {
                self.streams.insert(self.next, Stream::new(socket, longest));
            }
        }
    }

    fn stream(&mut self, number: u32, flags: EventFlags) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        if stream.flush().is_err() {
            self.streams.remove(&number);
            return;
        }
        // Who does not read its answers is not asked for more.
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && !stream.is_behind() {
            match stream.receive() {
                Ok(parts) => parts.iter().for_each(|part| self.part(number, part)),
                Err(_) => drop(self.streams.remove(&number)),
            }
        }
        self.watch(number);
    }

    fn part(&mut self, number: u32, part: &[u8]) {
        match self.peer {
            Peer::Workload => self.question(Client::Stream(number), part),
            Peer::Agent => match Frame::parse(part) {
                Some(frame) => {
                    self.question(Client::Behind(number, frame.number, frame.transport), frame.message);
                }
                None => drop(self.streams.remove(&number)),
            },
        }
    }

    fn watch(&mut self, number: u32) {
        if let Some(stream) = self.streams.get(&number) {
            let what = if stream.is_behind() { EventFlags::OUT } else { EventFlags::IN };
            let _ = epoll::modify(&self.epoll, stream, Token::Stream(number).encode(), what);
        }
    }

    /// What changed before a question was asked is seen by it; but who asks in haste is not told later, each time, for what
    /// may have changed just now.
    fn look(&mut self, now: Instant) {
        let is_fresh = self.looked.is_some_and(|looked| now.duration_since(looked) < LOOK);
        if !(is_fresh && self.haste.is_awake()) {
            self.view.refresh();
            self.looked = Some(now);
        }
    }

    fn question(&mut self, client: Client, bytes: &[u8]) {
        let now = Instant::now();
        // Also those that the kernel answers meanwhile are in haste, and what is seen now holds for them.
        let is_frequent = matches!(client, Client::Datagram(_)) && self.reflex.is_frequent(bytes, now);
        if is_frequent {
            self.looked = None;
        }
        self.look(now);
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(NoQuery::Silence) => return,
            Err(NoQuery::Mistaken(id, flags)) => return self.deliver(&client, &message::mistaken(id, flags)),
        };
        let limit = client.limit(&query);
        let tell = |server: &mut Self, rcode, records: &[Record]| {
            server.deliver(&client, &query.answer(rcode, TTL, records, limit));
        };
        if !query.is_plain() {
            return tell(self, Rcode::NotImplemented, &[]);
        }
        let turn = self.turns.get(usize::from(query.kind == kind::AAAA)).copied().unwrap_or_default();
        match decide(&query, &self.view, &self.names.attachments, turn) {
            Verdict::Known(records) => {
                if let Some(turn) = self.turns.get_mut(usize::from(query.kind == kind::AAAA)) {
                    *turn = turn.wrapping_add(1);
                }
                let addresses = records.iter().filter_map(|r| match r {
                    Record::Address(a) => Some((*a, NEAR)),
                    Record::Name(_) => None,
                });
                let addresses: Vec<_> = addresses.collect();
                if self.permit(query.name.as_deref(), &addresses).is_err() {
                    return tell(self, Rcode::ServerFailure, &[]);
                }
                let answer = query.answer(Rcode::NoError, TTL, &records, limit);
                self.deliver(&client, &answer);
                // Several addresses take turns, and what a policy permits is permitted at each answer.
                let is_ruled = query.name.as_deref().is_none_or(|name| self.is_ruled(name));
                if is_frequent
                    && records.len() < 2
                    && !is_ruled
                    && let Some(udp) = &self.udp
                {
                    self.reflex.learn(udp.as_fd(), bytes, &answer, now + LOOK);
                }
            }
            Verdict::Nobody => tell(self, Rcode::NoSuchName, &[]),
            Verdict::Refuse => tell(self, Rcode::Refused, &[]),
            Verdict::Ask => {
                if let Some(outcome) = self.outside.ask(&self.epoll, client.clone(), &query) {
                    self.conclude(outcome);
                }
            }
        }
    }

    /// Passes an answer from outside on, once its addresses are permitted.
    fn conclude(&mut self, outcome: Outcome) {
        let Outcome { asked, answer } = outcome;
        let Some(query) = asked.query() else { return };
        let mut out = answer
            .filter(|answer| self.permit_outside(&query, answer).is_ok())
            .unwrap_or_else(|| query.answer(Rcode::ServerFailure, 0, &[], asked.client.limit(&query)));
        message::truncate(&mut out, query.question(), asked.client.limit(&query));
        asked.restore_id(&mut out);
        self.deliver(&asked.client, &out);
    }

    fn permit_outside(&mut self, query: &Query<'_>, answer: &[u8]) -> Result<(), NoPermit> {
        let Some(name) = query.name.as_deref().filter(|name| self.is_ruled(name)) else { return Ok(()) };
        let Some(answer) = Answer::to(query.question(), query.id, answer) else { return Ok(()) };
        let addresses: Vec<_> = answer
            .addresses(name)
            .into_iter()
            .filter(|(address, _)| crate::egress::may_be_named(*address))
            .map(|(address, ttl)| {
                let lives = Duration::from_secs(ttl.into());
                (address, lives.clamp(SHORTEST, LONGEST) + GRACE)
            })
            .collect();
        self.permit(Some(name), &addresses)
    }

    /// Whether any rule names it.
    fn is_ruled(&self, name: &str) -> bool {
        self.names.attachments.iter().any(|a| decide::rules(a, name).next().is_some())
    }

    /// Permits addresses wherever a rule names what they stand for.
    fn permit(&mut self, name: Option<&str>, addresses: &[(IpAddr, Duration)]) -> Result<(), NoPermit> {
        let Some(name) = name.filter(|_| !addresses.is_empty()) else { return Ok(()) };
        let now = Instant::now();
        for attachment in &self.names.attachments {
            for (place, rule) in decide::rules(attachment, name) {
                let key = |address: IpAddr| (attachment.network.clone(), place, address);
                // One that is permitted for as long, to a second, need not be again.
                let lacks = |(address, time): &&(IpAddr, Duration)| {
                    let until = self.permitted.get(&key(*address));
                    until.is_none_or(|until| *until + Duration::from_secs(1) < now + *time)
                };
                let new: Vec<_> = addresses.iter().filter(lacks).copied().collect();
                if new.is_empty() {
                    continue;
                }
                if self.permitted.len() + new.len() > PERMITS {
                    self.permitted.retain(|_, until| *until > now);
                    if self.permitted.len() + new.len() > PERMITS {
                        return Err(NoPermit);
                    }
                }
                (self.names.permit)(attachment, rule, &new).map_err(|_| NoPermit)?;
                self.permitted.extend(new.iter().map(|(address, time)| (key(*address), now + *time)));
            }
        }
        Ok(())
    }

    /// Permits all anew that is permitted: the firewall has forgotten it.
    pub fn permit_again(&mut self) {
        let now = Instant::now();
        self.permitted.retain(|_, until| *until > now);
        for attachment in &self.names.attachments {
            let Egress::Only(rules) = &attachment.egress else { continue };
            for (place, rule) in rules.iter().enumerate() {
                let of_rule = self
                    .permitted
                    .iter()
                    .filter(|((network, n, _), _)| *n == place && *network == attachment.network);
                let list: Vec<_> = of_rule.map(|((_, _, ip), until)| (*ip, *until - now)).collect();
                if !list.is_empty() {
                    // What fails is asked for again when its time is over.
                    let _ = (self.names.permit)(attachment, rule, &list);
                }
            }
        }
    }

    fn deliver(&mut self, client: &Client, bytes: &[u8]) {
        let mut framed = Vec::new();
        let number = match client {
            Client::Datagram(to) => {
                if let Some(udp) = &self.udp {
                    // Who does not read loses answers, as with any datagram.
                    let _ = rustix::net::sendto(udp, bytes, SendFlags::NOSIGNAL, to);
                }
                return;
            }
            Client::Stream(number) => {
                let Ok(length) = u16::try_from(bytes.len()) else { return };
                framed.extend_from_slice(&length.to_be_bytes());
                framed.extend_from_slice(bytes);
                *number
            }
            Client::Behind(number, inner, transport) => {
                Frame { number: *inner, transport: *transport, message: bytes }.write(&mut framed);
                *number
            }
        };
        if let Some(stream) = self.streams.get_mut(&number) {
            match stream.send(&framed) {
                Ok(()) => self.watch(number),
                Err(_) => drop(self.streams.remove(&number)),
            }
        }
    }
}

fn view(names: &Names) -> View {
    let named: Vec<_> = names.attachments.iter().filter(|a| is_named(a)).cloned().collect();
    View::new(&names.run, &named)
}
