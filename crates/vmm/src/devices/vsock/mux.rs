//! The connections of a device, the host's listener, and whose turn it is.
//!
//! Everything is bounded: connections by [`CONNECTIONS`], what each buffers by [`super::connection::BUFFER`], answers to
//! stray packets by [`CONTROL`] (beyond it no packet of the guest is looked at until it takes the answers).

use super::connection::{Connection, Fate, Stage};
use super::packet::{HEADER, HOST_CID, Header, Ports, STREAM, op};
use crate::devices::Segments;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Connections at a time, those included that have not said `CONNECT` yet. One descriptor each.
pub const CONNECTIONS: usize = 1024;
/// Answers that wait for room in the guest's queue.
const CONTROL: usize = 256;
/// Longest first line of the host: `CONNECT 4294967295\n` and some grace.
const LINE: usize = 32;
/// Tests are less patient.
const fn seconds(n: u64) -> Duration {
    if cfg!(test) { Duration::from_millis(n * 30) } else { Duration::from_secs(n) }
}

/// The host may take this long to write it.
const LINE_TIME: Duration = seconds(10);
/// The guest may take this long to accept or refuse.
const ACCEPT_TIME: Duration = seconds(10);
/// The guest may take this long to confirm an end by RST.
const END_TIME: Duration = seconds(10);
/// No descriptor was free for a connection: look again after this time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Local ports of connections that the host opens begin here, where the guest's own requests hardly ever point to.
const FIRST_PORT: u32 = 1 << 30;

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const FIRST_ID: u64 = 2;

/// A stream of the host that has not written its line yet.
struct Pending {
    stream: UnixStream,
    deadline: Instant,
}

/// See the module.
pub struct Mux {
    cid: u64,
    base: PathBuf,
    listener: UnixListener,
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: Option<Instant>,
    connections: HashMap<u64, Connection>,
    ids: HashMap<Ports, u64>,
    pending: HashMap<u64, Pending>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Connections with something for the guest, in turn.
    turns: VecDeque<u64>,
    /// RST for connections that are gone or never were.
    control: VecDeque<Ports>,
    next_id: u64,
    next_port: u32,
}

impl Mux {
    /// `base` is the path to which `_PORT` is appended.
    pub fn new(cid: u64, listener: UnixListener, base: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Self {
            cid,
            base,
            listener,
            epoll,
            timer,
            armed: None,
            connections: HashMap::new(),
            ids: HashMap::new(),
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            turns: VecDeque::new(),
            control: VecDeque::new(),
            next_id: FIRST_ID,
            next_port: FIRST_PORT,
        })
    }

    /// Readable when [`Self::poll`] has something to do.
    pub fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Ends everything but the listener.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.ids.clear();
        self.pending.clear();
        self.turns.clear();
        self.control.clear();
        // A paused listener is to come back.
        self.deadlines.retain(|(_, id)| *id == LISTENER);
    }

    /// Connections, those included that have not said `CONNECT` yet.
    pub fn len(&self) -> usize {
        self.connections.len() + self.pending.len()
    }

    /// Something is to be sent to the guest.
    pub fn has_packets(&self) -> bool {
        !self.control.is_empty() || !self.turns.is_empty()
    }

    /// The guest must take answers before more of its packets are looked at.
    pub fn congested(&self) -> bool {
        self.control.len() >= CONTROL
    }

    /// Serves the descriptors that are ready, at most 64 of them.
    pub fn poll(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&Timespec::default()),
        ) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        for event in events {
            let flags = event.flags;
            match event.data.u64() {
                LISTENER => self.accept()?,
                TIMER => self.expire()?,
                id if self.pending.contains_key(&id) => self.line(id),
                id => {
                    let readable = flags.intersects(EventFlags::IN | EventFlags::RDHUP);
                    let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
                    if let Some(connection) = self.connections.get_mut(&id) {
                        let fate =
                            connection.stream_ready(readable, flags.contains(EventFlags::OUT), hung_up);
                        self.settle(id, fate);
                    }
                }
            }
        }
        self.arm()
    }

    /// Accepts connections of the host.
    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..32 {
            match self.listener.accept() {
                // Too many: this one learns so by the end of its stream.
                Ok(_) if self.len() >= CONNECTIONS => {}
                Ok((stream, _)) => {
                    let deadline = Instant::now() + LINE_TIME;
                    if stream.set_nonblocking(true).is_ok()
                        && let Some(id) = self.watch(&stream)
                    {
                        self.pending.insert(id, Pending { stream, deadline });
                        self.deadlines.insert((deadline, id));
                        self.line(id);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(_) => {
                    // No descriptor or memory. The listener stays ready; do not spin on it.
                    epoll::delete(&self.epoll, &self.listener)?;
                    self.deadlines.insert((Instant::now() + ACCEPT_PAUSE, LISTENER));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits for the stream's edges, under a new id; none when the kernel has no memory for that.
    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        let id = self.next_id;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, stream, EventData::new_u64(id), flags).ok()?;
        self.next_id += 1;
        Some(id)
    }

    /// Reads the first line of a stream of the host, and not a byte more.
    fn line(&mut self, id: u64) {
        let Some(pending) = self.pending.get(&id) else { return };
        let mut buffer = [0; LINE];
        let text = match rustix::net::recv(&pending.stream, &mut buffer, RecvFlags::PEEK) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Err(_) | Ok((0, _)) => return self.drop_pending(id),
            Ok((n, _)) => buffer.get(..n).unwrap_or_default(),
        };
        let Some(end) = text.iter().position(|b| *b == b'\n') else {
            if text.len() == LINE {
                self.drop_pending(id);
            }
            return;
        };
        let port = text
            .get(..end)
            .and_then(|l| l.strip_prefix(b"CONNECT "))
            .and_then(|p| std::str::from_utf8(p).ok())
            .and_then(|p| p.trim().parse().ok());
        let mut line = [0; LINE];
        let taken = line
            .get_mut(..=end)
            .and_then(|l| rustix::net::recv(&pending.stream, l, RecvFlags::empty()).ok())
            .is_some_and(|(n, _)| n == end + 1);
        let (Some(guest), true) = (port, taken) else { return self.drop_pending(id) };
        let Some(Pending { stream, deadline }) = self.pending.remove(&id) else { return };
        self.deadlines.remove(&(deadline, id));
        let ports = self.local_port(guest);
        self.insert(id, Connection::from_host(stream, ports), Some(ACCEPT_TIME));
    }

    fn drop_pending(&mut self, id: u64) {
        if let Some(pending) = self.pending.remove(&id) {
            self.deadlines.remove(&(pending.deadline, id));
        }
    }

    /// A port of the host that no connection to this port of the guest has.
    fn local_port(&mut self, guest: u32) -> Ports {
        loop {
            let ports = Ports { host: self.next_port, guest };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.ids.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn insert(&mut self, id: u64, mut connection: Connection, time: Option<Duration>) {
        connection.deadline = time.map(|t| Instant::now() + t);
        if let Some(deadline) = connection.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.ids.insert(connection.ports, id);
        self.connections.insert(id, connection);
        self.settle(id, Fate::Lives);
    }

    /// A packet of the guest: `data` is all that it sent, header included, and has as many bytes as the header says.
    pub fn receive(&mut self, header: &Header, data: &Segments) {
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        if header.kind != STREAM {
            return self.refuse(ports, header.op);
        }
        match self.ids.get(&ports).copied() {
            Some(id) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let before = connection.deadline;
                let fate = connection.receive(header, data);
                if let (Some(deadline), None) = (before, connection.deadline) {
                    self.deadlines.remove(&(deadline, id));
                }
                self.settle(id, fate);
            }
            None if header.op == op::REQUEST && self.len() < CONNECTIONS => match self.connect(ports.host) {
                Ok(stream) => match self.watch(&stream) {
                    Some(id) => self.insert(id, Connection::from_guest(stream, ports, header), None),
                    None => self.refuse(ports, header.op),
                },
                Err(_) => self.refuse(ports, header.op),
            },
            None => self.refuse(ports, header.op),
        }
    }

    /// Answers by RST, but for RST itself.
    fn refuse(&mut self, ports: Ports, op: u16) {
        if op != op::RST {
            self.control.push_back(ports);
        }
    }

    /// Connects to the host's listener for a port. Does not block: a listener whose backlog is full refuses.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.base);
        path.push(format!("_{port}"));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(UnixStream::from(socket))
    }

    /// Carries out what became of a connection.
    fn settle(&mut self, id: u64, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let ports = connection.ports;
        if matches!(fate, Fate::Over | Fate::Reset) {
            let (queued, deadline, draining) =
                (connection.queued, connection.deadline, connection.stage == Stage::Draining);
            self.connections.remove(&id);
            if !draining {
                self.ids.remove(&ports);
            }
            if let Some(deadline) = deadline {
                self.deadlines.remove(&(deadline, id));
            }
            if queued {
                // Or a guest that takes nothing could fill it without bound.
                self.turns.retain(|other| *other != id);
            }
            if fate == Fate::Reset {
                self.control.push_back(ports);
            }
            return;
        }
        if connection.wants() && !connection.queued {
            connection.queued = true;
            self.turns.push_back(id);
        }
        if connection.stage == Stage::Draining {
            // Without an end: the host reads it when it likes, or closes.
            if self.ids.get(&ports) == Some(&id) {
                // The guest may use its port again.
                self.ids.remove(&ports);
                if fate == Fate::Drains {
                    self.control.push_back(ports);
                }
            }
        } else if connection.awaits_reset() && connection.deadline.is_none() {
            let deadline = Instant::now() + END_TIME;
            connection.deadline = Some(deadline);
            self.deadlines.insert((deadline, id));
        }
    }

    /// Writes the next packet for the guest into `space`, which has room for more than a header; its length.
    pub fn next(&mut self, space: &Segments) -> Option<usize> {
        // One turn for each at most: whoever has nothing after all may stand in the queue again.
        for _ in 0..=self.turns.len() {
            if let Some(ports) = self.control.pop_front() {
                return Some(space.write(0, &Header::to_guest(self.cid, ports, op::RST).to_bytes()));
            }
            let id = self.turns.pop_front()?;
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let (length, fate) = connection.produce(self.cid, space);
            self.settle(id, fate);
            if let Some(length) = length {
                return Some(length.max(HEADER));
            }
        }
        None
    }

    /// Gives up what took too long.
    fn expire(&mut self) -> io::Result<()> {
        // Its value is of no interest, and EAGAIN is no error.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.armed = None;
        let now = Instant::now();
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.remove(&(deadline, id));
            if id == LISTENER {
                epoll::add(&self.epoll, &self.listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
            } else if self.pending.remove(&id).is_none() {
                self.settle(id, Fate::Reset);
            }
        }
        Ok(())
    }

    /// Sets the timer to the next deadline.
    pub fn arm(&mut self) -> io::Result<()> {
        let next = self.deadlines.first().map(|(deadline, _)| *deadline);
        // An earlier alarm than needed only looks again.
        if next.is_none() || self.armed.is_some_and(|armed| Some(armed) <= next) {
            return Ok(());
        }
        let left = next.map_or(Duration::ZERO, |n| n.saturating_duration_since(Instant::now()));
        // Zero would disarm it.
        let left = left.max(Duration::from_micros(1));
        let it_value = Timespec::try_from(left).map_err(io::Error::other)?;
        let value = Itimerspec { it_interval: Timespec::default(), it_value };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        self.armed = next;
        Ok(())
    }
}
