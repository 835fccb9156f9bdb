//! The loop between our stdio and a supervisor's stream.
//!
//! One thread, one `poll`. Output goes straight from the frame to the descriptor; a reader that is slow slows the
//! workload, as a pipe would. Input is sent only while the supervisor has room, so that two full pipes never wait for
//! each other.

use super::signals::{Arrived, Signals, ends};
use super::terminal::{self, Raw};
use engine::Feed;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use sandbox::client::{ClientError, Filled, Stream};
use sandbox::protocol::Frame;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Interrupts after which the user surely means us.
const PATIENCE: u32 = 3;

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process ended with this code.
    Exited(i32),
    /// The user typed the detach keys.
    Detached,
    /// The supervisor hung up without a word.
    Gone,
    /// A signal asked us, not the workload, to end.
    Signaled(i32),
    /// Whoever read our output has gone.
    BrokenPipe,
}

/// What is copied, and how.
pub struct Options<'a> {
    /// Our stdin goes there.
    pub stdin: bool,
    /// Its stdout comes here.
    pub stdout: bool,
    /// Its stderr comes here.
    pub stderr: bool,
    /// The process has a terminal: ours becomes raw, sizes are passed on.
    pub tty: bool,
    /// Keys that detach.
    pub keys: Vec<u8>,
    /// Takes the signals that we get; none if they are meant for us.
    pub proxy: Option<&'a dyn Fn(i32)>,
}

/// Copies until one side ends.
pub fn pump(mut stream: Stream, options: &Options<'_>) -> Result<End, ClientError> {
    let raw = if options.tty && options.stdin { Raw::enter().map_err(ClientError::Io)? } else { None };
    let end = run(&mut stream, options, raw.is_some());
    drop(raw);
    if matches!(end, Ok(End::Detached)) {
        // The supervisor tells a client that left on purpose from one that died.
        let _ = stream.detach();
    }
    end
}

fn run(stream: &mut Stream, options: &Options<'_>, raw: bool) -> Result<End, ClientError> {
    let mut signals = if options.proxy.is_some() || raw || options.tty {
        Some(Signals::catch(options.proxy.is_some(), options.tty).map_err(ClientError::Io)?)
    } else {
        None
    };
    let mut feed = Feed::new(options.stdin, raw.then(|| options.keys.clone()));
    let mut interrupts = 0;
    // What an answer to the request brought along is there already, and no poll would tell.
    if let Some(end) = output(stream, options)? {
        return Ok(end);
    }
    loop {
        let ready = wait(stream, &feed, signals.as_ref())?;
        if ready.signal
            && let Some(s) = &mut signals
        {
            for arrived in s.pending() {
                match (arrived, options.proxy) {
                    (Arrived::Resized, _) => {
                        if let Some((rows, columns)) = terminal::size() {
                            // A process that just ended has no terminal any more; its exit code follows.
                            let _ = stream.resize(rows, columns);
                        }
                    }
                    (Arrived::Signal(n), None) => return Ok(End::Signaled(n)),
                    (Arrived::Signal(n), Some(proxy)) => {
                        interrupts += u32::from(ends(n));
                        if interrupts >= PATIENCE {
                            return Ok(End::Signaled(n));
                        }
                        proxy(n);
                    }
                }
            }
        }
        if ready.output {
            match stream.fill()? {
                Filled::End => return Ok(output(stream, options)?.unwrap_or(End::Gone)),
                Filled::Some | Filled::Nothing => {
                    if let Some(end) = output(stream, options)? {
                        return Ok(end);
                    }
                }
            }
        }
        if ready.input {
            input(&mut feed, stream)?;
            if feed.has_detached() {
                return Ok(End::Detached);
            }
        }
    }
}

struct Ready {
    output: bool,
    input: bool,
    signal: bool,
}

fn wait(stream: &Stream, feed: &Feed, signals: Option<&Signals>) -> Result<Ready, ClientError> {
    let stdin = io::stdin();
    let some = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
    loop {
        let interest = if feed.is_waiting() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![PollFd::from_borrowed_fd(stream.as_fd(), interest)];
        let signal_at = signals.map(|s| {
            fds.push(PollFd::from_borrowed_fd(s.fd(), PollFlags::IN));
            fds.len() - 1
        });
        let stdin_at = feed.wants_more().then(|| {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
            fds.len() - 1
        });
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(ClientError::Io(e.into())),
            Ok(_) => {}
        }
        let got = |i: Option<usize>| i.and_then(|i| fds.get(i)).is_some_and(|f| !f.revents().is_empty());
        let own = fds.first().map_or(PollFlags::empty(), PollFd::revents);
        return Ok(Ready {
            output: own.intersects(some),
            input: got(stdin_at) || (feed.is_waiting() && own.contains(PollFlags::OUT)),
            signal: got(signal_at),
        });
    }
}

/// Writes all frames that are there.
fn output(stream: &mut Stream, options: &Options<'_>) -> Result<Option<End>, ClientError> {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    while let Some(frame) = stream.frame()? {
        let written = match frame {
            Frame::Stdout(bytes) if options.stdout => write_all(stdout.as_fd(), bytes),
            Frame::Stderr(bytes) if options.stderr => write_all(stderr.as_fd(), bytes),
            Frame::Exit { code, .. } => return Ok(Some(End::Exited(code))),
            _ => Ok(()),
        };
        match written {
            Ok(()) => {}
            Err(Errno::PIPE) => return Ok(Some(End::BrokenPipe)),
            Err(e) => return Err(ClientError::Output(e.into())),
        }
    }
    Ok(None)
}

/// Past Rust's own buffer, which would look for line ends.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // Someone gave us a descriptor that does not block.
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads our stdin once, or sends once.
fn input(feed: &mut Feed, stream: &Stream) -> Result<(), ClientError> {
    if feed.is_waiting() {
        return feed.send(stream);
    }
    match rustix::io::read(io::stdin(), feed.buffer()) {
        Ok(n) => feed.take(n),
        Err(Errno::INTR | Errno::AGAIN) => {}
        // A terminal that was hung up.
        Err(Errno::IO) => feed.take(0),
        Err(e) => return Err(ClientError::Io(e.into())),
    }
    Ok(())
}
