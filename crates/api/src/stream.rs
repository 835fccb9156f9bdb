//! The streams of a process, between its supervisor and a client whose connection was taken over.
//!
//! Without a terminal output goes in frames (`stdcopy`: one byte of which stream, three of nothing, four of length, big
//! endian); with one, as it is. A client that reads slowly slows the workload, as a pipe would: nothing is queued.

use crate::client::Wire;
use engine::Feed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox::client::{AttachOptions, ClientError, Filled, Stream};
use sandbox::protocol::Frame;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, Ready};
use tokio::net::UnixStream;

/// How often a silent client is looked after.
const LOOK: Duration = Duration::from_secs(2);

/// What is copied, and how.
#[derive(Debug)]
pub struct Options {
    /// Which streams.
    pub streams: AttachOptions,
    /// The process has a terminal.
    pub tty: bool,
    /// Keys that detach; none where there is no terminal.
    pub keys: Option<Vec<u8>>,
    /// The client's socket.
    pub wire: Option<Wire>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process ended with this code.
    Exited(i32),
    /// The client has gone, or the supervisor.
    Gone,
}

/// A second descriptor of a supervisor's socket, by which the runtime tells when it is ready.
#[derive(Debug)]
pub struct Signal(UnixStream);

impl Signal {
    /// Of this socket, which does not block from now on.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket.as_fd().try_clone_to_owned()?);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(socket)?))
    }

    /// Waits until it is ready for this.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.0.ready(interest).await
    }

    /// It was not, after all.
    pub fn clear(&self, interest: Interest) {
        let _ = self.0.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

/// Copies until one side ends.
pub async fn pump(
    stream: Stream,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    options: Options,
) -> End {
    let mut stream = stream;
    let Ok(signal) = Signal::of(&stream) else { return End::Gone };
    let end = copy(&mut stream, &signal, &mut input, &mut output, &options).await;
    let _ = output.shutdown().await;
    match end {
        Ok(Some(code)) => End::Exited(code),
        Ok(None) => {
            // The supervisor tells a client that left on purpose from one that died.
            let _ = stream.detach();
            End::Gone
        }
        Err(_) => End::Gone,
    }
}

/// The exit code; none if the client detached.
async fn copy(
    stream: &mut Stream,
    signal: &Signal,
    input: &mut (impl AsyncRead + Unpin),
    output: &mut (impl AsyncWrite + Unpin),
    options: &Options,
) -> Result<Option<i32>, ClientError> {
    let mut feed = Feed::new(options.streams.stdin, options.keys.clone());
    // What an answer to the request brought along is there already, and no poll would tell.
    if let Some(code) = drain(stream, output, options).await? {
        return Ok(Some(code));
    }
    let mut look = tokio::time::interval(LOOK);
    loop {
        let (waiting, wants_more) = (feed.is_waiting(), feed.wants_more());
        let interest = if waiting { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        tokio::select! {
            ready = signal.ready(interest) => {
                let ready = ready.map_err(ClientError::Io)?;
                if waiting && ready.is_writable() {
                    if has_room(stream.as_fd()) {
                        feed.send(stream)?;
                    } else {
                        signal.clear(Interest::WRITABLE);
                    }
                }
                if ready.is_readable() || ready.is_read_closed() {
                    let filled = stream.fill()?;
                    if filled == Filled::Nothing {
                        signal.clear(Interest::READABLE);
                        continue;
                    }
                    let last = drain(stream, output, options).await?;
                    if last.is_some() || filled == Filled::End {
                        return last.map(Some).ok_or(ClientError::Gone);
                    }
                }
            }
            n = input.read(feed.buffer()), if wants_more => {
                // A client that broke off has no more input either; whether it is there, the next write tells.
                feed.take(n.unwrap_or(0));
            }
            _ = look.tick() => {
                if options.wire.as_ref().is_some_and(Wire::is_cut) {
                    return Err(ClientError::Gone);
                }
            }
        }
        if feed.has_detached() {
            return Ok(None);
        }
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

/// Passes on all frames that are there.
async fn drain(
    stream: &mut Stream,
    output: &mut (impl AsyncWrite + Unpin),
    options: &Options,
) -> Result<Option<i32>, ClientError> {
    while let Some(frame) = stream.frame()? {
        let (of, bytes) = match frame {
            Frame::Stdout(bytes) if options.streams.stdout => (1, bytes),
            Frame::Stderr(bytes) if options.streams.stderr => (2, bytes),
            Frame::Exit { code, .. } => return Ok(Some(code)),
            _ => continue,
        };
        if !options.tty {
            output.write_all(&header(of, bytes.len())).await.map_err(ClientError::Output)?;
        }
        output.write_all(bytes).await.map_err(ClientError::Output)?;
    }
    output.flush().await.map_err(ClientError::Output)?;
    Ok(None)
}

/// The head of a frame of `stdcopy`.
pub fn header(of: u8, len: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    [of, 0, 0, 0, a, b, c, d]
}
