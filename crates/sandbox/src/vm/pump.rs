//! Copies between a process's descriptors and its stream in the guest.

use crate::client::{ClientError, OwnedFrame, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// After which a workload is one that stays.
const SETTLED: Duration = Duration::from_secs(5);

/// Copies until the process has ended, and returns its exit code, and whether the guest's OOM killer struck; none if the
/// guest went without telling it.
///
/// Input is copied by a thread of its own, so that a guest which does not read still gets its output away. The thread is
/// left behind: the process ends with the caller.
pub(super) fn run(
    mut stream: Stream,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    feeds: bool,
) -> Result<Option<(i32, bool)>, ClientError> {
    if feeds {
        let input = stream.writer()?;
        std::thread::Builder::new()
            .name("stdin".into())
            .stack_size(128 << 10)
            .spawn(move || feed(stdin, &input))?;
    }
    let (mut out, mut err) = (File::from(stdout), File::from(stderr));
    let mut settles = Some(Instant::now() + SETTLED);
    loop {
        if settles.is_some_and(|at| is_quiet_until(&stream, at)) {
            // It does little more than copy from here on.
            sys::memory::unmap_program();
            settles = None;
        }
        match stream.next_frame()? {
            // Nobody reads any more: the workload is told by nobody but its supervisor.
            Some(OwnedFrame::Stdout(bytes)) => drop(out.write_all(&bytes)),
            Some(OwnedFrame::Stderr(bytes)) => drop(err.write_all(&bytes)),
            Some(OwnedFrame::Exit { code, oom }) => return Ok(Some((code, oom))),
            None => return Ok(None),
        }
    }
}

/// Whether nothing comes until then, or then is past.
fn is_quiet_until(stream: &Stream, at: Instant) -> bool {
    let left = at.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let within = Timespec::try_from(left).unwrap_or_default();
    left.is_zero() || rustix::io::retry_on_intr(|| poll(&mut fds, Some(&within))) == Ok(0)
}

fn feed(stdin: OwnedFd, stream: &Stream) {
    let mut stdin = File::from(stdin);
    let mut buffer = vec![0; 32 << 10];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if stream.write_stdin(buffer.get(..n).unwrap_or_default()).is_ok() => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
    let _ = stream.end_stdin();
}

/// Copies of three descriptors.
pub(super) fn own(stdio: [BorrowedFd<'_>; 3]) -> std::io::Result<[OwnedFd; 3]> {
    let [a, b, c] = stdio;
    Ok([a.try_clone_to_owned()?, b.try_clone_to_owned()?, c.try_clone_to_owned()?])
}
