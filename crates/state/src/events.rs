//! The event log: one JSON object a line in `<run>/events.jsonl`, appended by whoever does something, read by
//! `events`. A line is written by one `write(2)` with `O_APPEND`, so that writers need no lock. It lies in the
//! run directory: events, like Docker's, do not outlive the host's uptime.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use types::Event;

/// Beyond this size the log becomes `events.jsonl.1`, and a new one is begun.
const MAX_SIZE: u64 = 8 << 20;

/// The event log of one run directory.
#[derive(Clone, Debug)]
pub struct EventLog {
    path: PathBuf,
}

/// How far back and how far on to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Follow {
    /// Events from this time on, nanoseconds since the epoch; none begins now.
    pub since_ns: Option<i64>,
    /// Ends at this time; none goes on for ever.
    pub until_ns: Option<i64>,
}

impl EventLog {
    /// The log in `run`, whether it is there yet or not.
    pub fn new(run: &Path) -> Self {
        Self { path: run.join("events.jsonl") }
    }

    /// Appends one event.
    pub fn append(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        file.write_all(&line)?;
        if file.metadata()?.len() > MAX_SIZE {
            std::fs::rename(&self.path, self.rotated())?;
        }
        Ok(())
    }

    fn rotated(&self) -> PathBuf {
        self.path.with_extension("jsonl.1")
    }

    /// Gives the events of the asked time to `sink`, then waits for more until `until_ns` or until `sink` breaks.
    /// `idle` is asked several times a second whether to go on.
    pub fn follow(
        &self,
        span: Follow,
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
        idle: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> io::Result<()> {
        let since = span.since_ns.unwrap_or_else(sys::host::now_ns);
        let over = |now: i64| span.until_ns.is_some_and(|u| now > u);
        // The watch is set before the first read, so that nothing falls between them.
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        if let Some(dir) = self.path.parent() {
            let what =
                inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_FROM;
            inotify::add_watch(&watch, dir, what)?;
        }
        let mut give = |line: &[u8]| match serde_json::from_slice::<Event>(line) {
            Ok(e) if e.time_ns < since || over(e.time_ns) => ControlFlow::Continue(()),
            Ok(e) => sink(e),
            // A line torn by a crash.
            Err(_) => ControlFlow::Continue(()),
        };
        if span.since_ns.is_some()
            && let Ok(old) = File::open(self.rotated())
            && drain(&mut Tail::new(old), &mut give)?.is_break()
        {
            return Ok(());
        }
        let mut tail = File::open(&self.path).ok().map(Tail::new);
        loop {
            if let Some(t) = &mut tail
                && drain(t, &mut give)?.is_break()
            {
                return Ok(());
            }
            // A rotated or new log is read from its start once the old one is drained.
            let inode = |m: std::fs::Metadata| (m.dev(), m.ino());
            let now = std::fs::metadata(&self.path).ok().map(inode);
            if now.is_some() && now != tail.as_ref().and_then(|t| t.file.get_ref().metadata().ok().map(inode))
            {
                // Lines may have been added between the last read and the rotation.
                if let Some(old) = &mut tail
                    && drain(old, &mut give)?.is_break()
                {
                    return Ok(());
                }
                tail = File::open(&self.path).ok().map(Tail::new);
                continue;
            }
            if over(sys::host::now_ns()) || idle().is_break() {
                return Ok(());
            }
            let mut fds = [PollFd::new(&watch, PollFlags::IN)];
            let wait = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let mut scratch = [0; 4096];
            while rustix::io::read(&watch, &mut scratch).is_ok_and(|n| n > 0) {}
        }
    }
}

/// Room for a line that is kept from one to the next.
const LINE: usize = 16 << 10;

/// A reader that gives whole lines only.
struct Tail {
    file: BufReader<File>,
    line: Vec<u8>,
}

impl Tail {
    fn new(file: File) -> Self {
        Self { file: BufReader::new(file), line: Vec::new() }
    }
}

fn drain(tail: &mut Tail, give: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<ControlFlow<()>> {
    loop {
        let got = tail.file.read_until(b'\n', &mut tail.line)?;
        if got == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        if tail.line.ends_with(b"\n") {
            let done = give(&tail.line);
            tail.line.clear();
            // One long line is no reason to keep its room.
            tail.line.shrink_to(LINE);
            if done.is_break() {
                return Ok(done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use types::EventType;

    fn event(n: i64) -> Event {
        Event {
            kind: EventType::Container,
            action: "start".into(),
            id: n.to_string(),
            attributes: BTreeMap::new(),
            time_ns: n,
        }
    }

    #[test]
    fn followers_see_old_and_new_lines_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::new(dir.path());
        log.append(&event(1)).unwrap();
        log.append(&event(2)).unwrap();
        let writer = log.clone();
        let thread = std::thread::spawn(move || {
            for n in 3..=50 {
                writer.append(&event(n)).unwrap();
                if n == 20 {
                    std::fs::rename(&writer.path, writer.rotated()).unwrap();
                }
            }
        });
        let mut seen = Vec::new();
        let span = Follow { since_ns: Some(2), until_ns: None };
        log.follow(
            span,
            &mut |e| {
                seen.push(e.time_ns);
                if e.time_ns == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
            &mut || ControlFlow::Continue(()),
        )
        .unwrap();
        thread.join().unwrap();
        seen.dedup();
        assert_eq!(seen.last(), Some(&50));
        assert!(seen.windows(2).all(|w| w[0] < w[1]), "{seen:?}");
    }
}
