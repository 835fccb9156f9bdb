//! What binds another process: its seccomp filters. Source: ptrace(2), "PTRACE_SECCOMP_GET_FILTER" (Linux 4.4, with
//! CONFIG_CHECKPOINT_RESTORE).

use crate::process::BpfInstruction;
use std::io;
use std::time::{Duration, Instant};

/// The header's number; the library has none.
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most filters that are read.
const MAX_FILTERS: usize = 64;

/// The seccomp filters of a thread, the newest first; none if it has none. The thread is stopped for a moment. Needs
/// CAP_SYS_ADMIN in the initial user namespace.
pub fn seccomp_filters(tid: i32) -> io::Result<Vec<Vec<BpfInstruction>>> {
    // Who traces is a thread, whose end lets the traced one go, whatever happens here.
    let read = std::thread::Builder::new().spawn(move || {
        request(libc::PTRACE_SEIZE, tid, 0, 0)?;
        request(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
        await_stop(tid)?;
        let filters = (0..MAX_FILTERS).map(|index| filter(tid, index));
        let filters = filters.take_while(|f| !matches!(f, Ok(None))).filter_map(Result::transpose).collect();
        let _ = request(libc::PTRACE_DETACH, tid, 0, 0);
        filters
    })?;
    read.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// One filter; none beyond the last.
fn filter(tid: i32, index: usize) -> io::Result<Option<Vec<BpfInstruction>>> {
    let length = match request(SECCOMP_GET_FILTER, tid, index, 0) {
        // No more, or none at all.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => return Ok(None),
        done => done?,
    };
    let empty = BpfInstruction { code: 0, jt: 0, jf: 0, k: 0 };
    let mut program = vec![empty; usize::try_from(length).unwrap_or(0)];
    let written = request(SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize)?;
    program.truncate(usize::try_from(written).unwrap_or(0));
    Ok(Some(program))
}

fn await_stop(tid: i32) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        // SAFETY: waitpid writes no status where it is given no place for it.
        match unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) } {
            0 if begin.elapsed() > PATIENCE => return Err(io::ErrorKind::TimedOut.into()),
            0 => std::thread::sleep(Duration::from_millis(1)),
            n if n < 0 => return Err(io::Error::last_os_error()),
            _ => return Ok(()),
        }
    }
}

fn request(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: of the requests made here only SECCOMP_GET_FILTER writes, as many instructions as it has said before into
    // a buffer of that length: a thread's filters are never changed, and new ones count first, so that a stopped thread's
    // number `index` stays.
    match unsafe { libc::ptrace(request, tid, address, data) } {
        n if n < 0 => Err(io::Error::last_os_error()),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_without_filters_has_none_and_goes_on() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        match seccomp_filters(child.id() as i32) {
            Ok(filters) => assert!(filters.is_empty()),
            // Without the privilege, or in a kernel without the option.
            Err(e) => {
                assert!(matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EIO)), "{e}")
            }
        }
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(seccomp_filters(i32::MAX).is_err());
    }
}
