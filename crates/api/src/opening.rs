//! Connections whose client takes them over without asking. For `attach` and `exec` Docker's daemon hands the connection over
//! also where no upgrade is asked for: it says 200, and what follows are the raw streams of both sides. HTTP libraries know no
//! such thing. So the head of a connection's first request is looked at before; where it is one of these, an upgrade is
//! asked for in the client's name, and the answer to that is told as the client expects it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What is added to the head.
const ASKED: &[u8] = b"Connection: Upgrade\r\nUpgrade: tcp\r\n";
/// What a client that did not ask for an upgrade is told instead of its success.
const GRANTED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n";
/// How the answer begins that it stands for.
const SWITCHED: &[u8] = b"HTTP/1.1 101 ";
/// The end of a head.
const END: &[u8] = b"\r\n\r\n";
/// Longer heads are not looked at.
const MOST: usize = 16 << 10;

/// A connection, from its first byte on.
#[derive(Debug)]
pub struct Opened<S> {
    stream: S,
    /// What was read of it, and has to be read again.
    head: Vec<u8>,
    read: usize,
    answer: Answer,
}

/// What becomes of the answer's head.
#[derive(Debug)]
enum Answer {
    /// Nothing.
    AsItIs,
    /// It is collected.
    Head(Vec<u8>),
    /// It goes out: all of it, and how much of it is written.
    Told(Vec<u8>, usize),
}

/// Reads so much of the first head as tells whether it is one of those.
pub async fn open<S: AsyncRead + Unpin>(mut stream: S) -> Opened<S> {
    let mut head = Vec::new();
    while is_undecided(&head) {
        // What is wrong with the connection is found out again by who serves it.
        if !matches!(stream.read_buf(&mut head).await, Ok(n) if n > 0) {
            break;
        }
    }
    let answer = match takes_over(&head) {
        Some(line) => {
            head.splice(line..line, ASKED.iter().copied());
            Answer::Head(Vec::new())
        }
        None => Answer::AsItIs,
    };
    Opened { stream, head, read: 0, answer }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Whether more of the head is needed.
fn is_undecided(head: &[u8]) -> bool {
    let may_be = match find(head, b"\r\n") {
        Some(end) => head.get(..end).is_some_and(|line| names_streams(line).is_some()),
        None => head.starts_with(b"POST ") || b"POST ".starts_with(head),
    };
    may_be && head.len() < MOST && find(head, END).is_none()
}

/// The first line of a request for streams.
fn names_streams(line: &[u8]) -> Option<()> {
    let target = line.strip_prefix(b"POST ")?.strip_suffix(b" HTTP/1.1")?;
    let path = target.split(|b| *b == b'?').next()?;
    let fits = path.ends_with(b"/attach") || path.ends_with(b"/start") && find(path, b"/exec/").is_some();
    fits.then_some(())
}

/// Where the first line ends of a head that asks for streams, but neither for the connection nor to send input by the body.
fn takes_over(head: &[u8]) -> Option<usize> {
    let text = head.get(..find(head, END)? + 2)?;
    let line = find(text, b"\r\n")?;
    names_streams(text.get(..line)?)?;
    let headers = text.get(line + 2..)?.split(|b| *b == b'\n');
    let mut names = headers.filter_map(|header| header.split(|b| *b == b':').next());
    let other = |name: &[u8]| {
        name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"transfer-encoding")
    };
    (!names.any(other)).then_some(line + 2)
}

/// The head as the client expects it.
fn told(head: Vec<u8>) -> Answer {
    match find(&head, END) {
        None => Answer::Head(head),
        Some(end) if head.starts_with(SWITCHED) => {
            let rest = head.get(end + END.len()..).unwrap_or_default();
            Answer::Told([GRANTED, rest].concat(), 0)
        }
        Some(_) => Answer::Told(head, 0),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.head.get(self.read..).unwrap_or_default();
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let n = out.remaining().min(rest.len());
        out.put_slice(rest.get(..n).unwrap_or_default());
        self.read += n;
        if self.read == self.head.len() {
            (self.head, self.read) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Opened<S> {
    /// Writes what is ready of the answer's head.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Answer::Told(head, written) = &mut self.answer {
            let rest = head.get(*written..).unwrap_or_default();
            if rest.is_empty() {
                self.answer = Answer::AsItIs;
                break;
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => *written += n,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Answer::Head(head) = &mut self.answer {
            let mut head = std::mem::take(head);
            head.extend_from_slice(bytes);
            self.answer = told(head);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_answer(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        all: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if matches!(self.answer, Answer::AsItIs) {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, all);
        }
        let first = all.iter().find(|bytes| !bytes.is_empty()).map_or(&[][..], |bytes| bytes);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn run<T>(job: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(job)
    }

    #[test]
    fn who_asks_for_nothing_is_asked_for() {
        let sent = b"POST /v1.41/containers/x/attach?stream=1 HTTP/1.1\r\nHost: d\r\n\r\nraw";
        let asked = b"POST /v1.41/containers/x/attach?stream=1 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nHost: d\r\n\r\nraw";
        run(async {
            let (mut client, server) = tokio::io::duplex(1024);
            for piece in sent.chunks(7) {
                client.write_all(piece).await.unwrap();
            }
            let mut opened = open(server).await;
            let mut seen = vec![0; asked.len()];
            opened.read_exact(&mut seen).await.unwrap();
            assert_eq!(seen, asked);
            opened.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade").await.unwrap();
            opened.write_all(b": tcp\r\n\r\nout").await.unwrap();
            opened.write_all(b"put").await.unwrap();
            opened.shutdown().await.unwrap();
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            assert_eq!(told, [GRANTED, b"output"].concat());
        });
    }

    #[test]
    fn errors_and_other_requests_pass_as_they_are() {
        let heads: [&[u8]; 7] = [
            b"POST /exec/x/start HTTP/1.1\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n",
            b"POST /containers/x/attach HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"POST /containers/x/attach HTTP/1.0\r\n\r\n",
            b"POST /containers/x/start HTTP/1.1\r\n\r\n",
            b"GET /containers/x/attach/ws HTTP/1.1\r\n\r\n",
            b"nonsense",
            b"",
        ];
        for head in heads {
            assert!(takes_over(head).is_none(), "{}", String::from_utf8_lossy(head));
            assert!(!is_undecided(head) || head.is_empty());
        }
        assert!(is_undecided(b"PO") && is_undecided(b"POST /exec/x/start HTTP/1.1\r\nHost: d\r\n"));
        assert!(!is_undecided(&[b'P'; MOST]));
        let refused = b"HTTP/1.1 404 Not Found\r\n\r\nnone".to_vec();
        assert!(matches!(told(refused.clone()), Answer::Told(head, 0) if head == refused));
    }
}
