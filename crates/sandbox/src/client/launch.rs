//! The socket that a command shares with the supervisor it starts: the answer whether the container runs comes on it,
//! and, where asked for, its output from the first byte on.

use super::{AttachOptions, Client, ClientError, Stream};
use crate::protocol::{Request, Response};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// A supervisor that is being started.
#[derive(Debug)]
pub struct Launch {
    client: Client,
    attach: bool,
}

impl Launch {
    /// Makes the pair of sockets and leaves the order in it. The descriptor (close-on-exec is set) goes to the new process as
    /// `Supervise::ready`. With `attach` no byte of output is lost, since the streams are attached before the workload runs.
    pub fn new(attach: Option<AttachOptions>) -> Result<(Self, OwnedFd), ClientError> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut client = Client::over(ours);
        client.send(Request::Start { attach })?;
        Ok((Self { client, attach: attach.is_some() }, theirs.into()))
    }

    /// Waits until the workload runs, and returns its pid and the stream. [`ClientError::Refused`] carries the exit code that
    /// Docker has for this failure; [`ClientError::Gone`] means that the supervisor died.
    ///
    /// Close every other copy of the descriptor first, or a dead supervisor is waited for in vain.
    pub fn started(mut self) -> Result<(i32, Option<Stream>), ClientError> {
        match self.client.answer()? {
            Response::Started { pid } => Ok((pid, self.attach.then(|| self.client.into_stream()))),
            _ => Err(ClientError::Unexpected),
        }
    }
}
