//! Reading, writing and removing cgroup files and directories relative to open directories, and the parsers of their
//! formats. Knows neither controllers nor limits.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::{Errno, retry_on_intr};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A handle on the directory `name` in `dir`.
pub(super) fn open_dir(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Writes `value` in one `write(2)`, as the kernel wants it.
pub(super) fn write(dir: impl AsFd, name: &str, value: &str) -> io::Result<()> {
    let fd = openat(dir, name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    retry_on_intr(|| rustix::io::write(&fd, value.as_bytes()))?;
    Ok(())
}

/// Reads a whole file.
pub(super) fn read(dir: impl AsFd, name: &str) -> io::Result<String> {
    let fd = openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut out = vec![0; 4096];
    let mut len = 0;
    loop {
        if len == out.len() {
            out.resize(len * 2, 0);
        }
        match retry_on_intr(|| rustix::io::read(&fd, out.get_mut(len..).unwrap_or_default()))? {
            0 => break,
            n => len += n,
        }
    }
    out.truncate(len);
    String::from_utf8(out).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not text"))
}

/// Whether `dir` has a file `name`.
pub(super) fn exists(dir: impl AsFd, name: &str) -> bool {
    rustix::fs::accessat(dir, name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
}

/// Reads one number; `max` is `u64::MAX`.
pub(super) fn read_u64(dir: impl AsFd, name: &str) -> io::Result<u64> {
    parse_u64(&read(dir, name)?).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
}

/// Reads a number as cgroup files have it; `max` is `u64::MAX`, `-1` too.
pub(super) fn parse_u64(text: &str) -> Option<u64> {
    match text.trim() {
        "max" | "-1" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Reads `key value` lines ("flat keyed" in the kernel's cgroup-v2.rst); lines of another shape are passed over.
pub(super) fn parse_flat(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), parse_u64(value)?))
        })
        .collect()
}

/// One value of a flat keyed text.
pub(super) fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| parse_u64(line.strip_prefix(key)?.strip_prefix(' ')?))
}

/// Reads v1's `8:0 Read 123` lines into (major, minor, read, written), totals passed over.
pub(super) fn parse_blkio(text: &str) -> Vec<(u64, u64, u64, u64)> {
    let mut out: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(device), Some(what), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (Some(device), Ok(value)) = (parse_device(device), value.parse::<u64>()) else { continue };
        match what {
            "Read" => out.entry(device).or_default().0 += value,
            "Write" => out.entry(device).or_default().1 += value,
            _ => {}
        }
    }
    out.into_iter().map(|((major, minor), (read, written))| (major, minor, read, written)).collect()
}

/// Reads v2's `io.stat`: `8:0 rbytes=1 wbytes=2 …` into (major, minor, read, written).
pub(super) fn parse_io_stat(text: &str) -> Vec<(u64, u64, u64, u64)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (major, minor) = parse_device(words.next()?)?;
            let (mut read, mut written) = (0, 0);
            for word in words {
                match word.split_once('=') {
                    Some(("rbytes", v)) => read = v.parse().ok()?,
                    Some(("wbytes", v)) => written = v.parse().ok()?,
                    _ => {}
                }
            }
            Some((major, minor, read, written))
        })
        .collect()
}

fn parse_device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Reads a list of CPUs or memory nodes, `0-3,7` (cpuset(7), "List format"), into ranges. `None` if it is none.
pub(super) fn parse_list(text: &str) -> Option<Vec<(u32, u32)>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|part| {
            let part = part.trim();
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
            (low <= high).then_some((low, high))
        })
        .collect()
}

/// Whether each member of `wanted` is in `available`.
pub(super) fn is_subset(wanted: &[(u32, u32)], available: &[(u32, u32)]) -> bool {
    wanted.iter().all(|&(low, high)| {
        let mut next = low;
        while next <= high {
            match available.iter().find(|(a, b)| (*a..=*b).contains(&next)) {
                Some((_, b)) if *b == u32::MAX => return true,
                Some((_, b)) => next = b + 1,
                None => return false,
            }
        }
        true
    })
}

/// Names of the child cgroups of `dir`.
pub(super) fn children(dir: impl AsFd) -> io::Result<Vec<String>> {
    let mut out = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            out.push(name.into_owned());
        }
    }
    Ok(out)
}

/// Pids of the processes in `dir` and below.
pub(super) fn processes(dir: impl AsFd) -> io::Result<Vec<i32>> {
    let mut out = Vec::new();
    collect_processes(dir.as_fd(), &mut out)?;
    out.sort_unstable();
    out.dedup();
    // Processes of a foreign pid namespace show as 0.
    out.retain(|pid| *pid > 0);
    Ok(out)
}

fn collect_processes(dir: BorrowedFd<'_>, out: &mut Vec<i32>) -> io::Result<()> {
    match read(dir, "cgroup.procs") {
        Ok(text) => out.extend(text.lines().filter_map(|l| l.trim().parse::<i32>().ok())),
        // Removed meanwhile, or a threaded cgroup, whose processes its domain lists.
        Err(e) if gone(&e) || e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
        Err(e) => return Err(e),
    }
    let names = match children(dir) {
        Err(e) if gone(&e) => return Ok(()),
        names => names?,
    };
    for name in names {
        match open_dir(dir, &name) {
            Ok(child) => collect_processes(child.as_fd(), out)?,
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes the cgroup `name` of `dir` with those below it. One that does not exist is no error; one that holds
/// processes is `EBUSY`.
pub(super) fn remove_tree(dir: impl AsFd, name: &str) -> io::Result<()> {
    let dir = dir.as_fd();
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) => {}
        Err(e) => return Err(e.into()),
    }
    let group = match open_dir(dir, name) {
        Err(e) if gone(&e) => return Ok(()),
        group => group?,
    };
    let below = match children(&group) {
        Err(e) if gone(&e) => return Ok(()),
        below => below?,
    };
    if below.is_empty() {
        return Err(Errno::BUSY.into());
    }
    for child in below {
        remove_tree(&group, &child)?;
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Sends SIGKILL to every process in `dir` and below until none is left that was not sent it.
///
/// Frozen, nothing can fork between the listing and the signal. That state need not be reached: the signal comes
/// first when the processes thaw.
pub(super) fn kill_all(dir: BorrowedFd<'_>, freeze: impl Fn(), thaw: impl Fn()) -> io::Result<()> {
    let list = || match processes(dir) {
        Err(e) if !gone(&e) => Err(e),
        listed => Ok(listed.unwrap_or_default()),
    };
    let mut last = Vec::new();
    for _ in 0..64 {
        let first = list()?;
        if first.is_empty() || first == last {
            break;
        }
        // Never the caller, should it have got in here: frozen, it could not thaw.
        let me = rustix::process::getpid().as_raw_nonzero().get();
        if !first.contains(&me) {
            freeze();
        }
        let listed = list();
        for pid in listed.iter().flatten().filter(|pid| **pid != me) {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                // One that has ended meanwhile needs no signal.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        thaw();
        last = listed?;
    }
    Ok(())
}

/// Whether the error says that the cgroup was removed.
pub(super) fn gone(e: &io::Error) -> bool {
    is(e, Errno::NOENT) || is(e, Errno::NODEV)
}

/// Whether the error is that of the kernel.
pub(super) fn is(e: &io::Error, errno: Errno) -> bool {
    e.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn formats() {
        assert_eq!(parse_u64("max\n"), Some(u64::MAX));
        assert_eq!(parse_u64("12\n"), Some(12));
        assert_eq!(parse_u64("x"), None);
        assert_eq!(flat_value("oom 1\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(flat_value("oom_kill_disable 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(parse_flat("a 1\nbad\nb max\n").len(), 2);
        assert_eq!(
            parse_blkio("8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n254:1 Read 1\nTotal 31\n"),
            [(8, 0, 10, 20), (254, 1, 1, 0)]
        );
        assert_eq!(parse_io_stat("8:0 rbytes=5 wbytes=6 rios=1\n7:0 \n"), [(8, 0, 5, 6), (7, 0, 0, 0)]);
        assert_eq!(parse_list("0-3,7\n"), Some(vec![(0, 3), (7, 7)]));
        assert_eq!(parse_list(""), Some(vec![]));
        for bad in ["a", "3-1", "1,,2", "-1", "1-", "0x1"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
        assert!(is_subset(&[(0, 5)], &[(0, 3), (4, 9)]));
        assert!(!is_subset(&[(0, 5)], &[(0, 3), (5, 9)]));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*") {
            let _ = (parse_u64(&text), parse_flat(&text), parse_blkio(&text), parse_io_stat(&text), parse_list(&text));
        }

        #[test]
        fn subset_agrees_with_sets(wanted in proptest::collection::vec((0u32..40, 0u32..5), 0..5),
                                   available in proptest::collection::vec((0u32..40, 0u32..9), 0..5)) {
            let ranges = |v: &[(u32, u32)]| v.iter().map(|(a, n)| (*a, a + n)).collect::<Vec<_>>();
            let members = |v: &[(u32, u32)]| v.iter().flat_map(|(a, b)| *a..=*b).collect::<std::collections::BTreeSet<_>>();
            let (w, a) = (ranges(&wanted), ranges(&available));
            prop_assert_eq!(is_subset(&w, &a), members(&w).is_subset(&members(&a)));
        }

        #[test]
        fn lists_round_trip(parts in proptest::collection::vec((0u32..500, 0u32..9), 1..6)) {
            let text = parts.iter().map(|(a, n)| if *n == 0 { a.to_string() } else { format!("{a}-{}", a + n) })
                .collect::<Vec<_>>().join(",");
            let want: Vec<_> = parts.iter().map(|(a, n)| (*a, a + n)).collect();
            prop_assert_eq!(parse_list(&text), Some(want));
        }
    }
}
