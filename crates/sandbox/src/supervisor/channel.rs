//! The descriptors between the supervisor and one process: its outputs, its input, or its console.
//!
//! The main process gets FIFOs in the run directory, so that a new supervisor can take them over:
//!
//! - `out`, `err`: the workload's end is open for reading *and* writing. So there is a reader even when the supervisor has died:
//!   a write then waits (when the pipe is full) for the next supervisor instead of raising SIGPIPE. The supervisor's end
//!   only reads, so it sees the end of file as soon as no process of the container has it open any more.
//! - `in` with stdin open for as long as the container lives: open for both as well, as it never ends. With `stdin_once` it is
//!   a plain pipe: the workload sees the end when the feeding client goes, or the supervisor dies. Not a FIFO, for whoever
//!   opens `/dev/stdin` anew after its end would wait for another writer.
//!
//! Exec sessions get plain pipes: they do not outlive their supervisor.

use crate::logs::Source;
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A pipe under load grows to this, so that neither side waits for the other at each turn.
const BIG_PIPE: usize = 1 << 20;

/// Names of the FIFOs in the run directory.
pub(super) const FIFOS: [&str; 3] = ["in", "out", "err"];

/// Our ends.
#[derive(Default)]
pub(super) struct Channel {
    /// stdout, or the console.
    pub(super) out: Option<OwnedFd>,
    /// stderr.
    pub(super) err: Option<OwnedFd>,
    /// stdin, or the console once more.
    input: Option<OwnedFd>,
    /// What did not fit into stdin yet.
    queue: Vec<u8>,
    /// stdin is to be closed when that is written.
    ending: bool,
    /// This is a console.
    pub(super) tty: bool,
    grown: bool,
}

/// The process's ends.
pub(super) struct Ends(pub(super) [OwnedFd; 3]);

impl Ends {
    pub(super) fn borrow(&self) -> [BorrowedFd<'_>; 3] {
        let [a, b, c] = &self.0;
        [a.as_fd(), b.as_fd(), c.as_fd()]
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Ends for a process whose console comes from the hull.
pub(super) fn no_ends() -> io::Result<Ends> {
    Ok(Ends([null()?, null()?, null()?]))
}

/// Makes the main process's FIFOs anew; what an earlier run left in them is gone.
pub(super) fn fifos(run: &Path, open_stdin: bool, stdin_once: bool) -> io::Result<(Channel, Ends)> {
    let nonblock = OFlags::NONBLOCK | OFlags::CLOEXEC;
    let make = |name: &str| -> io::Result<std::path::PathBuf> {
        let path = run.join(name);
        remove_fifo(&path);
        // Any user of the container may open its stdout by /proc/self/fd; none but root reaches the run directory.
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666))?;
        Ok(path)
    };
    let output = |name| -> io::Result<(OwnedFd, OwnedFd)> {
        let path = make(name)?;
        let ours = open(&path, OFlags::RDONLY | nonblock, Mode::empty())?;
        let theirs = open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok((ours, theirs))
    };
    let (out, their_out) = output("out")?;
    let (err, their_err) = output("err")?;
    let (input, their_in) = match (open_stdin, stdin_once) {
        (false, _) => (None, null()?),
        (true, true) => stdin_pipe()?,
        (true, false) => {
            let path = make("in")?;
            let theirs = open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            (Some(open(&path, OFlags::WRONLY | nonblock, Mode::empty())?), theirs)
        }
    };
    let channel = Channel { out: Some(out), err: Some(err), input, ..Channel::default() };
    Ok((channel, Ends([their_in, their_out, their_err])))
}

/// Opens the FIFOs of a container that runs already.
pub(super) fn adopt_fifos(run: &Path, open_stdin: bool) -> Channel {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let end = |name: &str, mode| open(run.join(name), mode | flags, Mode::empty()).ok();
    Channel {
        out: end("out", OFlags::RDONLY),
        err: end("err", OFlags::RDONLY),
        // Without a reader there is nobody to feed: ENXIO.
        input: open_stdin.then(|| end("in", OFlags::WRONLY)).flatten(),
        ..Channel::default()
    }
}

fn remove_fifo(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Removes the FIFOs.
pub(super) fn remove_fifos(run: &Path) {
    FIFOS.iter().for_each(|name| remove_fifo(&run.join(name)));
}

/// Pipes for an exec session; what is not wanted is `/dev/null`.
pub(super) fn pipes(stdin: bool, stdout: bool, stderr: bool) -> io::Result<(Channel, Ends)> {
    let output = |wanted: bool| -> io::Result<(Option<OwnedFd>, OwnedFd)> {
        if !wanted {
            return Ok((None, null()?));
        }
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        set_nonblocking(&ours)?;
        allow_reopening(&theirs);
        Ok((Some(ours), theirs))
    };
    let (out, their_out) = output(stdout)?;
    let (err, their_err) = output(stderr)?;
    let (input, their_in) = if stdin { stdin_pipe()? } else { (None, null()?) };
    Ok((Channel { out, err, input, ..Channel::default() }, Ends([their_in, their_out, their_err])))
}

/// Our end and the process's of a plain pipe for its stdin.
fn stdin_pipe() -> io::Result<(Option<OwnedFd>, OwnedFd)> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&ours)?;
    allow_reopening(&theirs);
    Ok((Some(ours), theirs))
}

/// `/dev/stdout` of a process that is not root is this pipe, opened anew.
fn allow_reopening(fd: &OwnedFd) {
    let _ = rustix::fs::fchmod(fd, Mode::from_raw_mode(0o666));
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

impl Channel {
    /// Around the master of a pseudo terminal.
    pub(super) fn console(master: OwnedFd, input: bool) -> io::Result<Self> {
        set_nonblocking(&master)?;
        let input = if input { Some(master.try_clone()?) } else { None };
        Ok(Self { out: Some(master), input, tty: true, ..Self::default() })
    }

    pub(super) fn output(&self, source: Source) -> Option<&OwnedFd> {
        match source {
            Source::Stdout => self.out.as_ref(),
            Source::Stderr => self.err.as_ref(),
        }
    }

    pub(super) fn close(&mut self, source: Source) {
        match source {
            Source::Stdout => self.out = None,
            Source::Stderr => self.err = None,
        }
    }

    /// Reads once into `buffer`: `Some(0)` at the end, none when there is nothing now.
    pub(super) fn read(&mut self, source: Source, buffer: &mut [u8]) -> Option<usize> {
        let fd = self.output(source)?;
        loop {
            match rustix::io::read(fd, &mut *buffer) {
                Ok(n) => {
                    if n == buffer.len() && !self.grown && !self.tty {
                        // Refused beyond a user's limit, then it stays as it is.
                        let _ = fcntl_setpipe_size(fd, BIG_PIPE);
                        self.grown = true;
                    }
                    return Some(n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                // EIO: nobody has the terminal open any more.
                Err(_) => return Some(0),
            }
        }
    }

    pub(super) fn has_output(&self) -> bool {
        self.out.is_some() || self.err.is_some()
    }

    /// The end to poll for writing, while something waits to be written.
    pub(super) fn waiting_input(&self) -> Option<&OwnedFd> {
        self.input.as_ref().filter(|_| !self.queue.is_empty())
    }

    /// Whether more input should wait.
    pub(super) fn is_full(&self) -> bool {
        self.input.is_some() && !self.queue.is_empty()
    }

    /// Feeds the process; without an open stdin the bytes are lost, as on any closed one.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.input.is_some() && !self.ending {
            self.queue.extend_from_slice(bytes);
            self.flush();
        }
    }

    /// Closes stdin after what is queued. A terminal has no such end.
    pub(super) fn end_input(&mut self) {
        if !self.tty {
            self.ending = true;
            self.flush();
        }
    }

    /// Writes what fits.
    pub(super) fn flush(&mut self) {
        let mut done = 0;
        while let Some(fd) = &self.input
            && done < self.queue.len()
        {
            match rustix::io::write(fd, self.queue.get(done..).unwrap_or_default()) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // It closed its stdin.
                Err(_) => {
                    self.input = None;
                    self.queue = Vec::new();
                    return;
                }
            }
        }
        self.queue.drain(..done);
        if self.queue.is_empty() {
            self.queue = Vec::new();
            if self.ending {
                self.input = None;
            }
        }
    }

    /// Whether there is a console to be resized.
    pub(super) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        match &self.out {
            Some(fd) if self.tty => match tcsetwinsize(fd, size) {
                // A console in a guest is a socket here; its hull resizes it.
                Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
                done => Ok(done?),
            },
            _ => Ok(()),
        }
    }
}
