//! Limits of throughput: token buckets, and a timer to go on when one has filled again.
//!
//! A bucket may be overdrawn by one request, which the next ones wait for. So a request greater than the bucket passes,
//! and what is not known before it was done (a packet's length) can be charged after.

use crate::config::RateLimit;
use crate::devices::IN;
use crate::virtio::{DeviceError, Interest};
use rustix::event::Timespec;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A bucket holds what flows in this time: so much may pass at once after a pause.
const BURST: Duration = Duration::from_millis(100);
/// Tokens are counted in billionths, that none gets lost in rounding.
const UNIT: i128 = 1_000_000_000;

/// The bucket is empty for this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub Duration);

/// A token bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Tokens per second; 0 is no limit.
    rate: u64,
    /// In [`UNIT`]; negative when overdrawn.
    level: i128,
    filled: Instant,
}

impl Bucket {
    /// A full bucket for so many tokens per second; 0 is no limit.
    pub fn new(rate: u64) -> Self {
        let mut bucket = Self { rate, level: 0, filled: Instant::now() };
        bucket.level = bucket.capacity();
        bucket
    }

    /// At least one token.
    fn capacity(&self) -> i128 {
        (i128::from(self.rate) * BURST.as_nanos() as i128).max(UNIT)
    }

    /// Takes `n` tokens, or says how long to wait.
    pub fn take(&mut self, n: u64) -> Result<(), Wait> {
        self.take_at(n, Instant::now())
    }

    fn take_at(&mut self, n: u64, now: Instant) -> Result<(), Wait> {
        self.ready_at(now)?;
        self.charge(n);
        Ok(())
    }

    /// Whether the bucket holds anything.
    pub fn ready(&mut self) -> Result<(), Wait> {
        self.ready_at(Instant::now())
    }

    fn ready_at(&mut self, now: Instant) -> Result<(), Wait> {
        if self.rate == 0 {
            return Ok(());
        }
        let elapsed = now.saturating_duration_since(self.filled).as_nanos() as i128;
        self.level = (self.level + elapsed * i128::from(self.rate)).min(self.capacity());
        self.filled = now;
        if self.level >= UNIT {
            return Ok(());
        }
        let nanos = (UNIT - self.level).div_euclid(i128::from(self.rate)) + 1;
        Err(Wait(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))))
    }

    /// Takes `n` tokens, also those that are not there.
    pub fn charge(&mut self, n: u64) {
        if self.rate != 0 {
            self.level -= i128::from(n) * UNIT;
        }
    }
}

/// The limits of one direction, in bytes and in requests, with the timer that tells when to go on.
#[derive(Debug)]
pub struct Limiter {
    bytes: Bucket,
    requests: Bucket,
    timer: OwnedFd,
    waiting: bool,
}

impl Limiter {
    /// Full buckets.
    pub fn new(limit: &RateLimit) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            bytes: Bucket::new(limit.bytes_per_second),
            requests: Bucket::new(limit.ops_per_second),
            timer: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?,
            waiting: false,
        })
    }

    /// Other limits from now on.
    pub fn set(&mut self, limit: &RateLimit) {
        self.bytes = Bucket::new(limit.bytes_per_second);
        self.requests = Bucket::new(limit.ops_per_second);
    }

    /// Whether one more request may pass; [`Self::charge`] follows it. If not, the timer is set.
    pub fn ready(&mut self) -> io::Result<bool> {
        let Wait(left) = match (self.bytes.ready(), self.requests.ready()) {
            (Ok(()), Ok(())) => {
                self.waiting = false;
                return Ok(true);
            }
            (Err(a), Err(b)) => Wait(a.0.max(b.0)),
            (Err(wait), _) | (_, Err(wait)) => wait,
        };
        if !self.waiting {
            let it_value = Timespec::try_from(left).map_err(io::Error::other)?;
            let value = Itimerspec { it_interval: Timespec::default(), it_value };
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
            self.waiting = true;
        }
        Ok(false)
    }

    /// One request of so many bytes has passed.
    pub fn charge(&mut self, bytes: u64) {
        self.requests.charge(1);
        self.bytes.charge(bytes);
    }

    /// Requests wait for the timer.
    pub fn waits(&self) -> bool {
        self.waiting
    }

    /// To wait for the timer.
    pub fn interest(&self, token: u64) -> Interest {
        Interest { fd: self.timer.as_raw_fd(), events: IN, token }
    }

    /// The timer rang.
    pub fn rang(&mut self) {
        // Its value is of no interest, and EAGAIN is no error.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.waiting = false;
    }
}

/// A timer that could not be set.
pub(super) fn timer(source: io::Error) -> DeviceError {
    DeviceError::Host { what: "cannot set the timer of a rate limit", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time passes only where the tests say so.
    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_bucket_lets_its_rate_pass_and_says_how_long_to_wait() {
        let mut bucket = Bucket::new(1000);
        let start = bucket.filled;
        for _ in 0..100 {
            bucket.take_at(1, start).unwrap();
        }
        let Wait(wait) = bucket.take_at(1, start).unwrap_err();
        assert!(wait >= Duration::from_micros(999) && wait <= Duration::from_micros(1001), "{wait:?}");
        bucket.take_at(1, start + wait).unwrap();
        // Over a second, its rate and not more than one burst above it.
        let passed = (100..1100).filter(|ms| bucket.take_at(1, after(start, *ms)).is_ok()).count();
        assert!((999..=1100).contains(&passed), "{passed}");
    }

    #[test]
    fn a_request_greater_than_the_bucket_passes_and_the_next_waits_for_it() {
        let mut bucket = Bucket::new(1000);
        let start = bucket.filled;
        bucket.take_at(2100, start).unwrap();
        let Wait(wait) = bucket.take_at(1, start).unwrap_err();
        assert!(wait > Duration::from_millis(1990) && wait < Duration::from_millis(2010), "{wait:?}");
        bucket.take_at(1, after(start, 1900)).unwrap_err();
        bucket.take_at(1, after(start, 2010)).unwrap();
    }

    #[test]
    fn a_pause_is_worth_one_burst() {
        let mut bucket = Bucket::new(1000);
        let late = after(bucket.filled, 3_600_000);
        let passed = (0..1000).filter(|_| bucket.take_at(1, late).is_ok()).count();
        assert_eq!(passed, 100);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut bucket = Bucket::new(u64::MAX);
        let start = bucket.filled;
        bucket.take_at(u64::MAX, after(start, 1)).unwrap();
        bucket.ready_at(after(start, 1 << 40)).unwrap();
        let mut slow = Bucket::new(1);
        let start = slow.filled;
        slow.take_at(u64::MAX, start).unwrap();
        slow.take_at(1, after(start, 1 << 30)).unwrap_err();
        let mut free = Bucket::new(0);
        (0..10).for_each(|_| free.take(u64::MAX).unwrap());
    }

    #[test]
    fn a_limiter_rings_when_it_may_go_on() {
        let limit = RateLimit { bytes_per_second: 0, ops_per_second: 100 };
        let mut limiter = Limiter::new(&limit).unwrap();
        let mut passed = 0;
        while limiter.ready().unwrap() {
            limiter.charge(1 << 40);
            passed += 1;
        }
        assert!(passed >= 10, "{passed}");
        assert!(limiter.waits());
        let mut fds = [rustix::event::PollFd::new(&limiter.timer, rustix::event::PollFlags::IN)];
        let wait = Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&wait)).unwrap(), 1);
        limiter.rang();
        assert!(limiter.ready().unwrap());
    }
}
