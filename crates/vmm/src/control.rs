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
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

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
    /// Takes the size of a disk's file anew, which has become longer, and tells the guest.
    GrowDisk {
        /// Its number in the configuration, from 0.
        number: usize,
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
        /// How many disks it has.
        #[serde(default)]
        disks: usize,
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
    let mut stream = Timed::connect(socket, Instant::now() + PATIENCE)?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE as u64)).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// A stream on which everything together ends at an instant: who is behind it may say a byte now and then.
#[derive(Debug)]
pub struct Timed {
    stream: UnixStream,
    until: Instant,
}

impl Timed {
    /// Connects; nobody may accept any more.
    pub fn connect(path: &Path, until: Instant) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let timed = Self { stream: UnixStream::from(socket), until };
        // It limits connect(2), too (socket(7)).
        timed.stream.set_write_timeout(Some(timed.left()?))?;
        rustix::net::connect(&timed.stream, &SocketAddrUnix::new(path)?)?;
        Ok(timed)
    }

    /// Gives it until another instant.
    pub fn extend(&mut self, until: Instant) {
        self.until = until;
    }

    fn left(&self) -> io::Result<Duration> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
        let status =
            Answer::Status { state: State::Paused, vcpus: 2, memory_mib: 256, balloon_mib: 0, disks: 1 };
        let expected =
            r#"{"is":"status","state":"paused","vcpus":2,"memory_mib":256,"balloon_mib":0,"disks":1}"#;
        assert_eq!(serde_json::to_string(&status).unwrap(), expected);
        assert!(serde_json::from_str::<Request>(r#"{"do":"explode"}"#).is_err());
    }

    #[test]
    fn who_says_a_byte_now_and_then_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let drips = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let begin = Instant::now();
        let timed = Timed::connect(&path, begin + Duration::from_millis(300)).unwrap();
        let mut line = String::new();
        assert!(BufReader::new(timed).read_line(&mut line).is_err());
        assert!(begin.elapsed() < Duration::from_secs(20) && !line.is_empty());
        drips.join().unwrap();
    }

    #[test]
    fn nobody_who_accepts_is_waited_for_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // More than its backlog, whatever the host's greatest (net.core.somaxconn) is.
        let mut open = Vec::new();
        let refused = loop {
            match Timed::connect(&path, Instant::now() + Duration::from_millis(200)) {
                Ok(stream) if open.len() < 10_000 => open.push(stream),
                other => break other.is_err(),
            }
        };
        assert!(refused);
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
