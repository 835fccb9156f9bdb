//! The control socket: one line of JSON asks, one answers.
//!
//! ```text
//! {"do":"pause"}                    {"is":"done"}
//! {"do":"status"}                   {"is":"status","state":"paused","vcpus":2,"memory_mib":256,"balloon_mib":0}
//! {"do":"balloon","mib":64}         {"is":"refused","why":"this guest has no balloon"}
//! ```
//!
//! Whoever can connect to the socket rules the guest: its directory must keep others out.

use crate::config::{DiskRate, RateLimit};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest line.
pub const LINE: usize = 4096;

/// How long the client waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Holds all vCPUs.
    Pause,
    /// Lets them run.
    Resume,
    /// Ends the guest at once, as pulling the plug would.
    Stop,
    /// What the machine is and does.
    Status,
    /// Asks the guest to give up memory.
    Balloon {
        /// How much, in all.
        mib: u64,
    },
    /// Sets the limits of a disk.
    LimitDisk {
        /// Its number in the configuration, from 0.
        number: usize,
        /// The limits.
        rate: DiskRate,
    },
    /// Sets the limits of a network interface.
    LimitNet {
        /// Its number in the configuration, from 0.
        number: usize,
        /// The limits.
        rate: RateLimit,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Request::Status`].
    Status {
        /// What it does.
        state: State,
        /// Virtual CPUs.
        vcpus: u8,
        /// Memory of the guest.
        memory_mib: u64,
        /// What the guest has given up of it, as it says.
        balloon_mib: u64,
    },
    /// It is not done.
    Refused {
        /// Why, in a sentence.
        why: String,
    },
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// vCPUs run.
    Running,
    /// They are held.
    Paused,
}

/// Asks the VMM behind this socket.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE as u64)).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// A connection on the VMM's side; never blocks.
pub struct Client {
    pub(crate) stream: UnixStream,
    line: Vec<u8>,
}

impl Client {
    /// Serves this stream.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, line: Vec::new() })
    }

    /// Reads what is there and answers what is complete; whether to keep the connection.
    pub fn serve(&mut self, mut answer: impl FnMut(Request) -> Answer) -> bool {
        let mut buffer = [0; LINE];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(e) => return matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        self.line.extend(&buffer[..count]);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let said = match serde_json::from_slice(&line) {
                Ok(request) => answer(request),
                Err(e) => Answer::Refused { why: format!("this is no request: {e}") },
            };
            let Ok(text) = serde_json::to_string(&said) else { return false };
            // An answer fits into the socket's buffer; who does not read its answers is let go.
            if self.stream.write_all(format!("{text}\n").as_bytes()).is_err() {
                return false;
            }
        }
        self.line.len() < LINE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_read_as_documented() {
        let text = |request: &Request| serde_json::to_string(request).unwrap();
        assert_eq!(text(&Request::Pause), r#"{"do":"pause"}"#);
        assert_eq!(text(&Request::Balloon { mib: 64 }), r#"{"do":"balloon","mib":64}"#);
        let status = Answer::Status { state: State::Paused, vcpus: 2, memory_mib: 256, balloon_mib: 0 };
        let expected = r#"{"is":"status","state":"paused","vcpus":2,"memory_mib":256,"balloon_mib":0}"#;
        assert_eq!(serde_json::to_string(&status).unwrap(), expected);
        assert!(serde_json::from_str::<Request>(r#"{"do":"explode"}"#).is_err());
    }

    #[test]
    fn what_is_no_request_is_refused_and_a_line_without_end_ends_the_connection() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(theirs).unwrap();
        ours.write_all(b"nonsense\n{\"do\":\"pause\"}\n").unwrap();
        assert!(client.serve(|_| Answer::Done));
        let mut answers = [0; 512];
        let count = ours.read(&mut answers).unwrap();
        let answers = String::from_utf8_lossy(&answers[..count]).into_owned();
        let lines: Vec<&str> = answers.lines().collect();
        assert!(lines[0].contains("refused") && lines[1] == r#"{"is":"done"}"#, "{answers}");

        ours.write_all(&[b'x'; LINE]).unwrap();
        assert!(!client.serve(|_| Answer::Done));
    }
}
