//! The commands' side of the control protocol: one connection to one supervisor.
//!
//! Blocking; [`Stream`] offers what a caller needs to poll it beside other descriptors. Not here: raw terminals,
//! detach keys, copying to and from the caller's own stdio.

pub(crate) mod answer;
mod launch;
mod stream;

pub use crate::protocol::{AttachOptions, ExecInfo, ExecOptions, Failure, WaitCondition};
pub use launch::Launch;
pub use stream::{Filled, OwnedFrame, Stream};

use crate::hull::Stats;
use crate::protocol::{Decoder, Frame, ProtocolError, Request, Response};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use types::{Attachment, ErrorKind, Kinded, RestartPolicy, RunState, oci};

/// Name of the control socket in a sandbox's run directory.
pub const SOCKET: &str = "ctl.sock";

/// Why a supervisor could not be talked to, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No supervisor listens there.
    #[error("no supervisor answers at {path}: {source}")]
    Connect {
        /// The socket.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended before it answered: the container ended, or it was killed.
    #[error(
        "the container's supervisor ended before it answered: the container has ended or was started again meanwhile, look at its state and try again"
    )]
    Gone,
    /// The connection broke.
    #[error("the connection to the supervisor broke: {0}")]
    Io(#[source] io::Error),
    /// What the process said could not be passed on.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// It sent what does not belong here.
    #[error("the supervisor's answer is not understood: {0}")]
    Protocol(#[from] ProtocolError),
    /// It answered another question.
    #[error("the supervisor's answer does not fit the request")]
    Unexpected,
    /// It refused, and says why.
    #[error(transparent)]
    Refused(#[from] Failure),
}

impl Kinded for ClientError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. } | Self::Gone | Self::Io(_) | Self::Output(_) => ErrorKind::Unavailable,
            Self::Protocol(_) | Self::Unexpected => ErrorKind::Corrupt,
            Self::Refused(failure) => failure.kind,
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(e: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match e.kind() {
            BrokenPipe | ConnectionReset | UnexpectedEof => Self::Gone,
            _ => Self::Io(e),
        }
    }
}

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    decoder: Decoder,
    greeted: bool,
    /// When an answer must be whole, from one who may be hostile.
    deadline: Option<Instant>,
}

impl Client {
    /// Connects to the supervisor whose run directory (`<run>/sandboxes/<id>`) this is.
    pub fn connect(run: &Path) -> Result<Self, ClientError> {
        let connect = || {
            // A socket's address has 108 bytes (unix(7)): a longer path is reached through its directory.
            let path = run.join(SOCKET);
            if path.as_os_str().len() < 100 {
                return UnixStream::connect(path);
            }
            let dir =
                rustix::fs::open(run, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
        };
        connect()
            .map(Self::over)
            .map_err(|source| ClientError::Connect { path: run.join(SOCKET).display().to_string(), source })
    }

    /// Over a connection that is there already.
    pub(crate) fn over(socket: UnixStream) -> Self {
        Self { socket, decoder: Decoder::default(), greeted: false, deadline: None }
    }

    /// The same, whatever the other side does: what is not answered by then has failed.
    #[cfg(feature = "vm")]
    pub(crate) fn over_until(socket: UnixStream, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::over(socket) }
    }

    /// The time that is left, told to the kernel.
    fn await_in_time(&self) -> io::Result<()> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.set_write_timeout(Some(left))
    }

    /// Attaches to the main process. The stream ends with its exit code.
    pub fn attach(mut self, options: AttachOptions) -> Result<Stream, ClientError> {
        match self.ask(Request::Attach(options))? {
            Response::Attached { since_ns } => Ok(self.into_stream().beginning(since_ns)),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Runs a command beside the main process. The stream ends with its exit code; there is none if it is detached.
    pub fn exec(mut self, options: ExecOptions) -> Result<Option<Stream>, ClientError> {
        let detach = options.detach;
        match self.ask(Request::Exec(Box::new(options)))? {
            Response::ExecStarted { .. } => Ok((!detach).then(|| self.into_stream())),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Starts the container over the socket of [`Launch`], attached from the first byte on.
    #[cfg(feature = "vm")]
    pub(crate) fn start(mut self, attach: AttachOptions) -> Result<Stream, ClientError> {
        match self.ask(Request::Start { attach: Some(attach) })? {
            Response::Started { .. } => Ok(self.into_stream()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Sends a signal to the main process.
    pub fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.done(Request::Signal { signal })
    }

    /// Asks it to end, kills it after the time-out (seconds; -1 is never), returns its exit code when it ended for good.
    /// `None` takes the container's own signal and time-out.
    pub fn stop(&mut self, signal: Option<i32>, timeout: Option<i64>) -> Result<i32, ClientError> {
        self.code(Request::Stop { signal, timeout })
    }

    /// Kills every process and returns the exit code when it ended for good.
    pub fn kill_all(&mut self) -> Result<i32, ClientError> {
        self.code(Request::KillAll)
    }

    /// Freezes every process.
    pub fn pause(&mut self) -> Result<(), ClientError> {
        self.done(Request::Pause)
    }

    /// Freezes them until this client is gone, however it goes.
    pub fn hold(&mut self) -> Result<(), ClientError> {
        self.done(Request::Hold)
    }

    /// Thaws them.
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.done(Request::Resume)
    }

    /// Applies limits and a restart policy at once. The caller writes them into the bundle as well.
    pub fn update(
        &mut self,
        resources: Option<&oci::LinuxResources>,
        restart: Option<RestartPolicy>,
    ) -> Result<(), ClientError> {
        self.done(Request::Update { resources: resources.cloned().map(Box::new), restart })
    }

    /// Tells it the container's new name. The caller writes it into the bundle as well.
    pub fn rename(&mut self, name: &str) -> Result<(), ClientError> {
        self.done(Request::Rename { name: name.to_owned() })
    }

    /// Gives it an interface on a further network. The supervisor writes it into the bundle.
    pub fn connect_network(&mut self, attachment: &Attachment) -> Result<(), ClientError> {
        self.done(Request::ConnectNetwork(Box::new(attachment.clone())))
    }

    /// Takes its interface on the network with this full id away, from the bundle as well.
    pub fn disconnect_network(&mut self, network: &str) -> Result<(), ClientError> {
        self.done(Request::DisconnectNetwork { network: network.to_owned() })
    }

    /// Resource figures as of now.
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        match self.ask(Request::Stats)? {
            Response::Stats(stats) => Ok(*stats),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Host pids of all its processes.
    pub fn processes(&mut self) -> Result<Vec<i32>, ClientError> {
        match self.ask(Request::Processes)? {
            Response::Processes { pids } => Ok(pids),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Sets the size of the terminal of the main process, or of an exec session.
    pub fn resize(&mut self, exec: Option<&str>, rows: u16, columns: u16) -> Result<(), ClientError> {
        self.done(Request::Resize { exec: exec.map(str::to_owned), rows, columns })
    }

    /// Waits, and returns the exit code. [`ClientError::Gone`] means that it ended while this was asked: read the state.
    pub fn wait(&mut self, condition: WaitCondition) -> Result<i32, ClientError> {
        self.code(Request::Wait { condition })
    }

    /// Asks it to end as [`Client::stop`] does and to start again, without waiting for either.
    pub fn restarting(mut self, signal: Option<i32>, timeout: Option<i64>) -> Result<Waiting, ClientError> {
        self.send(Request::Restart { signal, timeout })?;
        Ok(Waiting { client: self })
    }

    /// Asks for a [`Client::stop`] without waiting for its end.
    pub fn stopping(mut self, signal: Option<i32>, timeout: Option<i64>) -> Result<Waiting, ClientError> {
        self.send(Request::Stop { signal, timeout })?;
        Ok(Waiting { client: self })
    }

    /// Asks the same without waiting for the answer.
    pub fn waiting(mut self, condition: WaitCondition) -> Result<Waiting, ClientError> {
        self.send(Request::Wait { condition })?;
        Ok(Waiting { client: self })
    }

    /// Exec sessions that run, and the last ones that ended.
    pub fn execs(&mut self) -> Result<Vec<ExecInfo>, ClientError> {
        match self.ask(Request::Execs)? {
            Response::Execs { list } => Ok(list),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What the supervisor holds to be true.
    pub fn state(&mut self) -> Result<RunState, ClientError> {
        match self.ask(Request::State)? {
            Response::State(state) => Ok(*state),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn done(&mut self, request: Request) -> Result<(), ClientError> {
        match self.ask(request)? {
            Response::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn code(&mut self, request: Request) -> Result<i32, ClientError> {
        match self.ask(request)? {
            Response::Exited { code } => Ok(code),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Response, ClientError> {
        self.send(request)?;
        self.answer()
    }

    fn send(&mut self, request: Request) -> Result<(), ClientError> {
        let mut out = Vec::new();
        if !self.greeted {
            Frame::Hello.encode(&mut out)?;
        }
        Frame::Request(Box::new(request)).encode(&mut out)?;
        self.greeted = true;
        self.await_in_time()?;
        // A supervisor that refuses may have answered and gone before it read all of this.
        match self.socket.write_all(&out) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn answer(&mut self) -> Result<Response, ClientError> {
        loop {
            if let Some(answer) = answer::next(&mut self.decoder)? {
                return Ok(answer);
            }
            let mut piece = [0; 4096];
            let n = loop {
                self.await_in_time()?;
                match self.socket.read(&mut piece) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    done => break done?,
                }
            };
            if n == 0 {
                return Err(ClientError::Gone);
            }
            self.decoder.input().extend(piece.get(..n).unwrap_or_default());
        }
    }

    fn into_stream(self) -> Stream {
        Stream::new(self.socket, self.decoder)
    }
}

/// An exit code on its way. Poll the descriptor for reading, then ask for the answer.
#[derive(Debug)]
pub struct Waiting {
    client: Client,
}

impl Waiting {
    /// The exit code, once it is there, or 0 once it is started again; never blocks.
    pub fn answer(&mut self) -> Result<Option<i32>, ClientError> {
        loop {
            match answer::next(&mut self.client.decoder)? {
                Some(Response::Exited { code }) => return Ok(Some(code)),
                Some(Response::Started { .. }) => return Ok(Some(0)),
                Some(_) => return Err(ClientError::Unexpected),
                None => {}
            }
            let mut piece = [0; 4096];
            match answer::receive(&self.client.socket, &mut piece)? {
                Some(come) => self.client.decoder.input().extend(come),
                None => return Ok(None),
            }
        }
    }

    /// The same, if it is there in time; without a time, whenever it comes.
    pub fn answer_until(&mut self, until: Option<Instant>) -> Result<Option<i32>, ClientError> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            match self.answer()? {
                None if left != Some(Duration::ZERO) => {}
                answer => return Ok(answer),
            }
            let left = left.and_then(|left| rustix::event::Timespec::try_from(left).ok());
            let mut socket = [PollFd::new(&self.client.socket, PollFlags::IN)];
            match rustix::event::poll(&mut socket, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io::Error::from(e).into()),
            }
        }
    }
}

impl AsFd for Waiting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.socket.as_fd()
    }
}
