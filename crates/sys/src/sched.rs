//! Which processor the calling thread runs on, and who goes before it there (`sched(7)`).

use rustix::thread::{CapabilitySet, CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;

const OTHER: libc::c_int = 0;
const IDLE: libc::c_int = 5;

/// Whether the thread is scheduled as threads are by default, and may be again after it was [`Idle`].
pub fn is_free() -> bool {
    // SAFETY: no pointer is passed; 0 is the calling thread.
    let is_ordinary = unsafe { libc::sched_getscheduler(0) } == OTHER;
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|all| all.effective.contains(CapabilitySet::SYS_NICE))
        // The capability of a user namespace of its own is none here.
        && std::fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    is_ordinary && may
}

/// How many threads run or would, on all processors, this one included (`/proc/loadavg`, proc(5)).
pub fn running() -> io::Result<usize> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    let running = text.split_whitespace().nth(3).and_then(|both| both.split('/').next()?.parse().ok());
    running.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The thread runs on one processor only, as long as this lives.
#[derive(Debug)]
pub struct Pinned(CpuSet);

impl Pinned {
    /// Moves it there.
    pub fn to(processor: usize) -> io::Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut there = CpuSet::new();
        if processor >= CpuSet::MAX_CPU {
            return Err(rustix::io::Errno::INVAL.into());
        }
        there.set(processor);
        sched_setaffinity(None, &there)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Of processors that went away meanwhile the kernel makes all there are.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Everybody else goes before the thread, as long as this lives: whom it wakes runs at once, and in its place. Only where the
/// thread [`is_free`].
#[derive(Debug)]
pub struct Idle(());

impl Idle {
    /// From now on.
    pub fn now() -> Self {
        schedule(IDLE);
        Self(())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        schedule(OTHER);
    }
}

fn schedule(policy: libc::c_int) {
    // SAFETY: all zeros are a valid sched_param, and the only ones for both policies.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const param) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_as_before_afterwards() {
        assert!(running().unwrap() > 0);
        let before = sched_getaffinity(None).unwrap();
        let one = (0..CpuSet::MAX_CPU).find(|n| before.is_set(*n)).unwrap();
        let pinned = Pinned::to(one).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        assert!(Pinned::to(CpuSet::MAX_CPU).is_err());
        if is_free() {
            drop(Idle::now());
            assert!(is_free());
        }
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
