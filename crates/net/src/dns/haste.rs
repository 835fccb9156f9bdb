//! Being where the client is. A client that asks one thing after the other has its next question ready within microseconds of
//! an answer, which is sooner than a process is woken on another processor that has gone idle, and more so on a virtual one. So
//! whoever asks in haste is answered on its own processor: the two take turns there, and neither waits for any other to wake.
//! For that, the client must be woken there, and the kernel does so only where nobody but idle threads run: the server is
//! one for as long as it sends an answer.
//!
//! Where that cannot be, the next question is waited for awake. Where processors are busy, both would only be in the client's
//! way. So what it is worth is measured.
//!
//! ```text
//! asleep ── questions come soon, but not at once ──► hasty: beside the client, or awake ── nothing comes in time ──► asleep
//!    ▲                                                 │
//!    └──────────── RESPITE questions long ◄────────────┘ no sooner than asleep, or others wait
//! ```
//!
//! Who has but one processor has the client on it, and sleeps.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use sys::sched::Pinned;

/// How long the next question is waited for, and how soon it must have come for that to be worth while.
const PATIENCE: Duration = Duration::from_micros(120);
/// What comes sooner than this comes from the same processor.
const AT_ONCE: Duration = Duration::from_micros(25);
/// So many questions are answered asleep after haste was not worth it.
const RESPITE: u32 = 1000;
/// How long the next question is waited for beside the client. Longer than to the next tick of most kernels, so that no timer
/// has to be set for it alone.
const LINGER: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// The client and the server. Where more would run, one of them would have to wait for others.
const PAIR: usize = 2;
/// After so many questions that did not come alone, several are asked at once: they are answered sooner from elsewhere.
const CROWD: u32 = 8;
/// Of the averages of the last questions.
const WEIGHT: u32 = 16;

/// Whether the next question is waited for in haste.
#[derive(Debug)]
pub(super) struct Haste {
    last: Option<Instant>,
    awake: bool,
    /// How long after an answer came the next, by who was asleep, and in haste: averages.
    asleep_took: Duration,
    awake_took: Duration,
    respite: u32,
    crowd: u32,
    /// Whether there are several processors, once somebody has asked in haste.
    several: Option<bool>,
    /// Whether this thread may be beside its clients; likewise.
    free: Option<bool>,
    beside: Option<Pinned>,
    /// Whether it was looked already, since it last left, if it may be there.
    looked: bool,
}

impl Default for Haste {
    fn default() -> Self {
        // Averages of fewer questions say little.
        let (asleep_took, awake_took) = Default::default();
        Self {
            last: None,
            awake: false,
            asleep_took,
            awake_took,
            respite: WEIGHT,
            crowd: 0,
            several: None,
            free: None,
            beside: None,
            looked: false,
        }
    }
}

impl Haste {
    /// A question is answered now.
    pub(super) fn answered(&mut self, now: Instant) {
        let Some(last) = self.last.replace(now) else { return };
        // With the answer itself: who lets others go before it may be kept from going on by them.
        let took = now.saturating_duration_since(last).min(4 * PATIENCE);
        let average = |old: Duration| match old.is_zero() {
            true => took,
            false => (old * (WEIGHT - 1) + took) / WEIGHT,
        };
        if self.awake {
            self.awake_took = average(self.awake_took);
            if self.awake_took > self.asleep_took {
                (self.awake, self.respite) = (false, RESPITE);
            }
            return;
        }
        self.asleep_took = average(self.asleep_took);
        self.respite = self.respite.saturating_sub(1);
        let worth = (AT_ONCE..PATIENCE).contains(&self.asleep_took) && took < PATIENCE && self.respite == 0;
        if worth && *self.several.get_or_insert_with(several_processors) {
            (self.awake, self.awake_took) = (true, self.asleep_took * 3 / 4);
        }
    }

    /// Whether the last questions came so fast that the next one is waited for in haste.
    pub(super) fn is_awake(&self) -> bool {
        self.awake
    }

    /// Whether to look again, after nothing was there.
    pub(super) fn goes_on(&mut self, socket: BorrowedFd<'_>) -> bool {
        let may = || sys::sched::running().is_ok_and(|all| all <= PAIR);
        if self.awake && self.beside.is_none() && *self.free.get_or_insert_with(sys::sched::is_free) && may()
        {
            // Where the client was when it asked last.
            let processor = rustix::net::sockopt::socket_incoming_cpu(socket);
            self.beside = processor.ok().and_then(|n| Pinned::to(usize::try_from(n).ok()?).ok());
        }
        self.awake = self.awake
            && match self.beside {
                Some(_) => {
                    poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(&LINGER)) == Ok(1)
                }
                None => self.last.is_some_and(|last| last.elapsed() < PATIENCE),
            };
        self.awake
    }

    /// Whether questions are answered beside who asks them. One has been received and is about to be answered.
    pub(super) fn is_beside(&mut self, socket: BorrowedFd<'_>) -> bool {
        if self.beside.is_none() {
            return false;
        }
        let another = rustix::io::ioctl_fionread(socket).is_ok_and(|bytes| bytes > 0);
        self.crowd = if another { self.crowd + 1 } else { 0 };
        if self.crowd >= CROWD {
            (self.awake, self.respite, self.crowd) = (false, RESPITE, 0);
            self.beside = None;
        }
        self.beside.is_some()
    }

    /// Goes to where it was, for whatever else there is to do.
    pub(super) fn leave(&mut self) {
        (self.beside, self.looked) = (None, false);
    }
}

fn several_processors() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Questions that come so long after each answer.
    fn ask(haste: &mut Haste, count: u32, after: Duration) {
        let mut at = haste.last.unwrap_or_else(Instant::now);
        for _ in 0..count {
            at += after;
            haste.answered(at);
        }
    }

    #[test]
    fn only_who_asks_in_haste_is_waited_for() {
        let (soon, at_once, late) = (PATIENCE / 2, AT_ONCE / 4, PATIENCE * 2);
        let several = || Haste { several: Some(true), free: Some(false), ..Haste::default() };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut haste = several();
        assert!(!haste.goes_on(socket.as_fd()));
        ask(&mut haste, 100, late);
        assert!(!haste.awake);
        ask(&mut haste, 100, soon);
        assert!(haste.awake);
        // It has an end.
        haste.last = Some(Instant::now());
        let begin = Instant::now();
        while haste.goes_on(socket.as_fd()) {}
        assert!(begin.elapsed() >= PATIENCE / 2 && !haste.awake);
        // Where it takes no turn between processors, or wins nothing, it is left.
        let mut busy = several();
        ask(&mut busy, 2000, at_once);
        assert!(!busy.awake);
        let mut slow = several();
        ask(&mut slow, 100, soon);
        assert!(slow.awake);
        ask(&mut slow, 40, soon + soon / 2);
        assert!(!slow.awake && slow.respite > RESPITE / 2);
        // Beside the client it has an end, too, and nothing remains of it.
        let mut beside = Haste { free: None, ..several() };
        ask(&mut beside, 100, soon);
        beside.last = Some(Instant::now());
        while beside.goes_on(socket.as_fd()) {}
        assert!(!beside.awake);
        beside.leave();
        let mut alone = Haste { several: Some(false), ..Haste::default() };
        ask(&mut alone, 2000, soon);
        assert!(!alone.awake);
    }
}
