//! Facts about this host and its processes.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

/// The id of this boot (`/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process started, in clock ticks since boot (`/proc/PID/stat`, field 22). With the pid it names a
/// process for good, as pids alone are reused.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name, in parentheses, may hold anything: count from its last parenthesis.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed /proc/PID/stat"))
}

/// Whether that very process still runs (a zombie does not).
pub fn is_running(pid: i32, start: u64) -> bool {
    pid > 0
        && start_time(pid).is_ok_and(|s| s == start)
        && std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|s| !s.rsplit_once(')').is_some_and(|(_, r)| r.trim_start().starts_with(['Z', 'X'])))
}

/// Whether a process is stopped by a signal, or by a tracer that lives in another PID namespace than this process
/// (`/proc/PID/status`). Who traces from here, to debug us, lets it go on.
pub fn is_stopped(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map_or("", str::trim);
    let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    match field("State:").chars().next() {
        Some('T') => true,
        Some('t') => space(field("TracerPid:")).is_some_and(|theirs| Some(theirs) != space("self")),
        _ => false,
    }
}

/// How a process ended that nobody has reaped yet, as `wait(2)` encodes it (`/proc/PID/stat`, field 52; shown to
/// who may trace it). `None`: it runs, or is gone.
pub fn zombie_status(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    if fields.next()? != "Z" {
        return None;
    }
    fields.nth(48)?.parse().ok()
}

/// Bytes from the kernel's random source.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut out = [0; N];
    let mut at = 0;
    while at < N {
        at += rustix::rand::getrandom(&mut out[at..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs() {
        let me = std::process::id() as i32;
        let start = start_time(me).unwrap();
        assert!(is_running(me, start));
        assert!(!is_running(me, start + 1));
        assert_ne!(random::<16>().unwrap(), random::<16>().unwrap());
        assert_eq!(zombie_status(me), None);
    }

    #[test]
    fn a_zombie_tells_how_it_ended() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = child.id() as i32;
        let seen = std::iter::repeat_with(|| zombie_status(pid))
            .inspect(|_| std::thread::sleep(std::time::Duration::from_millis(2)))
            .take(2000)
            .find_map(|s| s);
        child.wait().unwrap();
        assert_eq!(seen, Some(7 << 8));
        assert_eq!(zombie_status(pid), None);
    }
}
