//! How fast this CPU's time-stamp counter runs.

use std::time::{Duration, Instant};

/// Long enough for a precision of some parts in a million.
const SAMPLE: Duration = Duration::from_millis(10);

/// Ticks in a millisecond, measured. A guest whose instructions QEMU emulates sees the host's counter, and has no other
/// clock by which to learn its speed on a busy host: it is told on its command line (`tsc_early_khz`).
#[cfg(target_arch = "x86_64")]
pub fn host_khz() -> u64 {
    // SAFETY: reads a counter, which every x86_64 CPU has.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (begin, before) = (Instant::now(), ticks());
    std::thread::sleep(SAMPLE);
    let passed = u128::from(ticks().wrapping_sub(before));
    u64::try_from(passed * 1_000_000 / begin.elapsed().as_nanos().max(1)).unwrap_or(0)
}
