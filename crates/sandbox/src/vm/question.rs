//! One question to a guest's agent: a connection over the machine's vsock device, [`crate::protocol`]'s greeting, a request,
//! an answer.
//!
//! ```text
//! opening ── "OK …" ──► asked ── response ──► answered
//!    └── an end of the stream, nonsense, or the time is up: failed
//! ```
//!
//! Nothing here waits: the guest may be hung, its hypervisor stopped. Who asks polls the socket ([`Pending`]).
//! Not here: streams of sessions, which a process of their own copies ([`super::exec`]).

use super::connect;
use crate::boot::CONTROL_PORT;
use crate::client::{ClientError, answer};
use crate::hull::{HullError, Pending};
use crate::protocol::{Decoder, Frame, Request, Response};
use rustix::net::{SendFlags, send};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

/// The longest answer to `CONNECT`: "OK 1073741824\n" is usual.
const LONGEST_LINE: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Question {
    socket: UnixStream,
    until: Instant,
    /// The greeting and the request, as long as they are to be sent.
    frames: Vec<u8>,
    /// What the device says before the guest does.
    line: Vec<u8>,
    decoder: Decoder,
    fits: fn(&Response) -> bool,
}

impl Question {
    /// Begins to ask the agent of the machine with the sockets in `dir`.
    pub(super) fn new(dir: &Path, request: &Request) -> Result<Self, ClientError> {
        let refused =
            |source| ClientError::Connect { path: dir.join(connect::VSOCK).display().to_string(), source };
        let socket = connect::begin(dir, CONTROL_PORT).map_err(refused)?;
        Self::over(socket, request, Instant::now() + connect::PATIENCE)
    }

    fn over(socket: UnixStream, request: &Request, until: Instant) -> Result<Self, ClientError> {
        let mut frames = Vec::new();
        Frame::Hello.encode(&mut frames)?;
        Frame::Request(Box::new(request.clone())).encode(&mut frames)?;
        let fits = match request {
            Request::Stats => |r: &Response| matches!(r, Response::Stats(_)),
            Request::Processes => |r: &Response| matches!(r, Response::Processes { .. }),
            _ => |r: &Response| matches!(r, Response::Done),
        };
        Ok(Self { socket, until, frames, line: Vec::new(), decoder: Decoder::default(), fits })
    }

    /// Goes as far as what has come allows.
    fn proceed(&mut self) -> Result<Option<Response>, ClientError> {
        loop {
            match answer::next(&mut self.decoder)? {
                Some(answer) if (self.fits)(&answer) => return Ok(Some(answer)),
                Some(_) => return Err(ClientError::Unexpected),
                None => {}
            }
            let mut piece = [0; 4096];
            match answer::receive(&self.socket, &mut piece)? {
                Some(come) => self.take(come)?,
                None => return Ok(None),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        if self.frames.is_empty() {
            self.decoder.input().extend(bytes);
            return Ok(());
        }
        self.line.extend(bytes);
        let Some(end) = self.line.iter().position(|b| *b == b'\n') else {
            return if self.line.len() < LONGEST_LINE { Ok(()) } else { Err(no_device()) };
        };
        if !self.line.starts_with(b"OK ") {
            return Err(no_device());
        }
        self.decoder.input().extend(self.line.get(end + 1..).unwrap_or_default());
        self.line = Vec::new();
        self.ask()
    }

    /// Sends it all at once: nobody has sent anything before, so there is room.
    fn ask(&mut self) -> Result<(), ClientError> {
        let frames = std::mem::take(&mut self.frames);
        match send(&self.socket, &frames, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) if n == frames.len() => Ok(()),
            Ok(_) => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }
}

/// The machine is up, and its device says that nobody listens in it, or what no device says.
fn no_device() -> ClientError {
    io::Error::from(io::ErrorKind::ConnectionRefused).into()
}

impl Pending<Response> for Question {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn until(&self) -> Instant {
        self.until
    }

    fn result(&mut self) -> Option<Result<Response, HullError>> {
        match self.proceed() {
            Ok(Some(response)) => Some(Ok(response)),
            Ok(None) if self.until > Instant::now() => None,
            Ok(None) => Some(Err(HullError::Unsupported(format!(
                "the guest's agent does not answer: it had {} s to do so",
                connect::PATIENCE.as_secs()
            )))),
            Err(e) => Some(Err(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hull::Stats;
    use std::io::{Read, Write};
    use std::time::Duration;

    fn asked(request: &Request) -> (Question, UnixStream) {
        let (ours, guest) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let until = Instant::now() + Duration::from_secs(3600);
        (Question::over(ours, request, until).unwrap(), guest)
    }

    fn frames(frames: &[Frame<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut out).unwrap());
        out
    }

    fn response(response: Response) -> Frame<'static> {
        Frame::Response(Box::new(response))
    }

    #[test]
    fn it_asks_once_the_guest_is_there_and_hears_the_answer_byte_by_byte() {
        let (mut question, mut guest) = asked(&Request::Stats);
        for byte in b"OK 1073741824" {
            guest.write_all(&[*byte]).unwrap();
            assert!(question.result().is_none());
        }
        guest.write_all(b"\n").unwrap();
        assert!(question.result().is_none());
        let mut bytes = [0; 1024];
        let n = guest.read(&mut bytes).unwrap();
        let sent = frames(&[Frame::Hello, Frame::Request(Box::new(Request::Stats))]);
        assert_eq!(bytes.get(..n), Some(&sent[..]));

        let stats = Stats { pids: 7, ..Stats::default() };
        let said = frames(&[Frame::Hello, response(Response::Stats(Box::new(stats.clone())))]);
        let (last, most) = said.split_last().unwrap();
        for byte in most {
            guest.write_all(&[*byte]).unwrap();
            assert!(question.result().is_none());
        }
        guest.write_all(&[*last]).unwrap();
        let Some(Ok(Response::Stats(told))) = question.result() else { panic!() };
        assert_eq!(*told, stats);
    }

    #[test]
    fn a_guest_that_says_anything_else_is_not_believed() {
        let done = |said: &[u8]| {
            let (mut question, mut guest) = asked(&Request::Signal { signal: 1 });
            guest.write_all(said).unwrap();
            drop(guest);
            question.result().unwrap()
        };
        let ok = |rest: &[Frame<'_>]| [b"OK 1\n".to_vec(), frames(rest)].concat();
        // Said at once, before it could hear the question: an answer nevertheless, and no worse than another.
        let (mut question, mut guest) = asked(&Request::Signal { signal: 1 });
        guest.write_all(&ok(&[Frame::Hello, response(Response::Done)])).unwrap();
        assert!(matches!(question.result(), Some(Ok(Response::Done))));

        let pids = Response::Processes { pids: vec![1] };
        for said in [
            b"".to_vec(),
            b"OK".to_vec(),
            b"NO\n".to_vec(),
            vec![b'x'; 64],
            ok(&[]),
            ok(&[response(pids)]),
            ok(&[Frame::Stdout(b"x")]),
            [b"OK 1\n", &[0xff; 64][..]].concat(),
        ] {
            let e = done(&said).unwrap_err();
            assert!(e.to_string().contains("does not answer"), "{e}");
        }
    }

    #[test]
    fn silence_has_an_end() {
        let (mut question, mut guest) = asked(&Request::Processes);
        question.until = Instant::now();
        let e = question.result().unwrap().unwrap_err();
        assert_eq!(e.to_string(), "the guest's agent does not answer: it had 10 s to do so");
        // What is there counts, however late.
        guest
            .write_all(
                &[b"OK 1\n".to_vec(), frames(&[response(Response::Processes { pids: vec![] })])].concat(),
            )
            .unwrap();
        assert!(question.result().unwrap().is_ok());
    }
}
