//! Answers that the kernel gives. Who asks the same thing again and again, as programs do that remember no names, waits for
//! two processes that take turns, one of which has most often to be woken on a processor that has halted. So what was answered
//! and is asked again within [`SOON`] is put into a table, for as long as what was seen of the names holds for who
//! asks in haste; a program on the sandbox's loopback interface ([`reflex_program`](super::reflex_program)) answers from there, before the
//! question has left the call that sends it.
//!
//! ```text
//! first questions ──────────────► Server ──► answer
//! one soon after the last ──────► Server ──► answer, and into the table, for a moment
//! those in that moment ─────────► the kernel answers from the table
//! ```
//!
//! It holds nothing by itself: entries end by the clock, and all of it with the supervisor. Where the kernel lacks what is
//! needed (before Linux 6.6, or without CAP_BPF) the server answers everything.
//!
//! Not here: what may be answered so (the server).

use super::reflex_program::{ANSWER, KEY, QUESTION, VALUE, program};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::bpf::Map;

/// How soon the same question must come again.
const SOON: Duration = Duration::from_millis(5);
/// How often in a row before the program is attached: that takes as long as readers of the kernel's lists do, some milliseconds, in
/// which all changes of networks wait, and so does letting it go. A few answers are not worth it.
const OFTEN: u32 = 16;
/// So many questions are remembered, and have entries.
const MOST: usize = 32;
/// Of the loopback interface, in each network namespace.
const LOOPBACK: u32 = 1;

/// A question, by which it is known again: its length, and all but its id.
type Key = [u8; KEY];

/// What is remembered of questions.
#[derive(Debug, Default)]
pub(super) struct Reflex {
    /// The last ones.
    recent: VecDeque<Recent>,
    hook: Hook,
}

/// One that was asked.
#[derive(Debug)]
struct Recent {
    key: Key,
    at: Instant,
    /// How often in a row it came soon.
    times: u32,
}

/// The kernel's half.
#[derive(Debug, Default)]
enum Hook {
    #[default]
    NotYet,
    There(Table),
    Impossible,
}

impl Reflex {
    /// Takes note of a question; whether it comes so often that it may be worth while to have it answered by the kernel.
    pub(super) fn is_frequent(&mut self, question: &[u8], now: Instant) -> bool {
        let Some(key) = key(question).filter(|_| !matches!(self.hook, Hook::Impossible)) else {
            return false;
        };
        if let Some(known) = self.recent.iter_mut().find(|known| known.key == key) {
            let is_soon = now.saturating_duration_since(known.at) < SOON;
            known.times = if is_soon { known.times.saturating_add(1) } else { 0 };
            known.at = now;
            return known.times >= OFTEN || (is_soon && matches!(self.hook, Hook::There(_)));
        }
        if self.recent.len() >= MOST
            && let Some(old) = self.recent.pop_front()
            && let Hook::There(table) = &self.hook
        {
            table.forget(&old.key);
        }
        self.recent.push_back(Recent { key, at: now, times: 0 });
        false
    }

    /// Has the kernel answer this question, to this socket, with this answer until this time.
    pub(super) fn learn(&mut self, socket: BorrowedFd<'_>, question: &[u8], answer: &[u8], until: Instant) {
        if matches!(self.hook, Hook::NotYet) {
            self.hook = Table::new(socket).map_or(Hook::Impossible, Hook::There);
        }
        if let Hook::There(table) = &self.hook
            && let Some(key) = key(question)
        {
            table.answer(&key, answer, monotonic(until));
        }
    }
}

/// Answers by questions, and the program that gives them.
#[derive(Debug)]
struct Table {
    map: Map<KEY, VALUE>,
    /// The program is there as long as this is open.
    _link: OwnedFd,
}

impl Table {
    /// For questions to a socket, in its network namespace.
    fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let address = SocketAddr::try_from(rustix::net::getsockname(socket)?).map_err(|_| Errno::INVAL)?;
        let port = address.port();
        let map = Map::new(MOST as u32)?;
        let program = sys::bpf::load_packet_program(&program(port, map.as_fd().as_raw_fd()))?;
        let netns = sys::netns::of_socket(socket)?;
        let link = sys::netns::within(netns.as_fd(), || sys::bpf::attach_to_ingress(LOOPBACK, &program))??;
        Ok(Self { map, _link: link })
    }

    fn answer(&self, key: &Key, answer: &[u8], until: u64) {
        if let Some(value) = value(answer, until) {
            // Without it the server is asked.
            let _ = self.map.insert(key, &value);
        }
    }

    fn forget(&self, key: &Key) {
        let _ = self.map.remove(key);
    }
}

/// A time by the clock of the program.
fn monotonic(at: Instant) -> u64 {
    let left = at.saturating_duration_since(Instant::now());
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    u64::try_from((now + left).as_nanos()).unwrap_or_default()
}

fn key(question: &[u8]) -> Option<Key> {
    let rest = question.get(2..).filter(|_| question.len() <= QUESTION)?;
    let mut key = [0; KEY];
    key.get_mut(..4)?.copy_from_slice(&(question.len() as u32).to_ne_bytes());
    key.get_mut(6..6 + rest.len())?.copy_from_slice(rest);
    Some(key)
}

fn value(answer: &[u8], until: u64) -> Option<[u8; VALUE]> {
    let mut value = [0; VALUE];
    let until = until.to_ne_bytes();
    value.get_mut(..8)?.copy_from_slice(&until);
    value.get_mut(8..12)?.copy_from_slice(&u32::try_from(answer.len()).ok()?.to_ne_bytes());
    value.get_mut(16..16 + ANSWER)?.get_mut(..answer.len())?.copy_from_slice(answer);
    value.get_mut(16 + ANSWER..)?.copy_from_slice(&until);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::query;
    use super::super::{ADDRESS, Entrance};
    use super::*;
    use crate::tests::Namespace;
    use std::net::UdpSocket;

    /// Asks, and waits: longer where an answer is expected than where none may be.
    fn ask(from: &str, question: &[u8], wait: Duration) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind(from).unwrap();
        socket.connect((ADDRESS, 53)).unwrap();
        socket.set_read_timeout(Some(wait)).unwrap();
        socket.send(question).unwrap();
        let mut buffer = [0; 600];
        let n = socket.recv(&mut buffer).ok()?;
        Some(buffer[..n].to_vec())
    }

    #[test]
    fn the_kernel_answers_what_is_in_the_table_and_nothing_else() {
        let Some(inside) = Namespace::new() else { return };
        let entrance = Entrance::within(inside.fd()).unwrap();
        let mut reflex = Reflex::default();
        let (long, short) = (Duration::from_secs(20), Duration::from_millis(50));
        let later = Instant::now() + Duration::from_secs(600);
        let question = query("db", 1, None);
        for length in [12, 60, ANSWER] {
            let answer: Vec<u8> = (0..length).map(|n| n as u8 ^ 0x5a).collect();
            reflex.learn(entrance.udp.as_fd(), &question, &answer, later);
            if let Hook::Impossible = reflex.hook {
                eprintln!("SKIPPED: this kernel has no programs for what comes in");
                return;
            }
            // With its own id; from whatever address of the workload's.
            for (id, from) in [([7, 9], "127.0.0.1:0"), ([0, 1], "0.0.0.0:0"), ([0xff, 0xfe], "127.9.9.9:0")]
            {
                let asked = [&id, &question[2..]].concat();
                let told = inside.run(|| ask(from, &asked, long)).expect("an answer");
                assert_eq!((&told[..2], &told[2..]), (&id[..], &answer[2..]), "{length} {from}");
            }
        }
        // Nobody serves here: what is not in the table waits in the socket.
        let mut other = question.clone();
        other[3] ^= 0x20;
        let longer = [&question[..], &[0]].concat();
        let huge = vec![0; 1400];
        for unknown in [&other[..], &longer, &question[..question.len() - 1], &huge] {
            assert_eq!(inside.run(|| ask("127.0.0.1:0", unknown, short)), None);
            let mut buffer = [0; 2000];
            let (n, _) =
                rustix::net::recv(&entrance.udp, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap();
            assert_eq!(&buffer[..n], unknown);
        }
        // Too long for an entry, an answer is not put there, and neither is one to an endless question.
        reflex.learn(entrance.udp.as_fd(), &other, &[0; ANSWER + 1], later);
        reflex.learn(entrance.udp.as_fd(), &huge, &[0; 40], later);
        assert_eq!(inside.run(|| ask("127.0.0.1:0", &other, short)), None);
        // Time ends each entry, and the program goes with who made it.
        reflex.learn(entrance.udp.as_fd(), &question, &[1; 40], Instant::now());
        assert_eq!(inside.run(|| ask("127.0.0.1:0", &question, short)), None);
        reflex.learn(entrance.udp.as_fd(), &question, &[1; 40], later);
        assert!(inside.run(|| ask("127.0.0.1:0", &question, long)).is_some());
        drop(reflex);
        assert_eq!(inside.run(|| ask("127.0.0.1:0", &question, short)), None);
    }

    #[test]
    fn what_is_asked_often_and_soon_is_frequent() {
        let mut reflex = Reflex::default();
        let (now, name) = (Instant::now(), |n: usize| query(&format!("name{n}"), 1, None));
        let mut again = name(1);
        again[0] ^= 1;
        for n in 0..OFTEN {
            let either = if n % 2 == 0 { again.clone() } else { name(1) };
            assert!(!reflex.is_frequent(&either, now + SOON / 2 * n), "{n}");
            assert!(!reflex.is_frequent(&name(2), now + SOON * n));
        }
        let now = now + SOON / 2 * OFTEN;
        assert!(reflex.is_frequent(&name(1), now) && reflex.is_frequent(&again, now + SOON / 2));
        assert!(!reflex.is_frequent(&again, now + 2 * SOON));
        (1..OFTEN).for_each(|_| assert!(!reflex.is_frequent(&again, now + 2 * SOON)));
        assert!(reflex.is_frequent(&again, now + 2 * SOON));
        for n in 2..3 * MOST {
            reflex.is_frequent(&name(n), now);
        }
        assert!(reflex.recent.len() <= MOST && !reflex.is_frequent(&name(1), now));
        assert!(!reflex.is_frequent(&[0; QUESTION + 1], now) && !reflex.is_frequent(&[], now));
    }
}
