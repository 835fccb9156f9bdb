//! Bodies: of an answer, whole or piece by piece from a thread that blocks; of a request, as something to read.

use crate::fault::Fault;
use crate::room::{Place, Room};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming};
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

/// Most bytes of a request that is a document; Docker's clients send some kilobytes.
pub const MOST: usize = 4 << 20;
/// What is held of a document without asking for room, and the room for those that are larger.
const SMALL: usize = 64 << 10;
static ROOM: Room = Room::new(16 * MOST);
/// How many of the larger ones are read at once: what becomes of a document is larger than it is.
static LARGE: Semaphore = Semaphore::const_new(8);
/// How long a client may take for the next piece of a document.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes that are read of a body that nobody wants, and how long its next piece may take.
const UNWANTED: usize = 1 << 20;
const UNWANTED_PATIENCE: Duration = Duration::from_secs(2);
/// How long an upload may stand still, and a download that nobody takes.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(600);
pub const DOWNLOAD_PATIENCE: Duration = Duration::from_secs(600);
/// Pieces on their way: as many as keep both sides busy.
const PIECES: usize = 4;
/// What is collected before it is sent.
const PIECE: usize = 32 << 10;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it; then nothing.
    Whole(Option<Bytes>),
    /// Piece by piece. An error breaks the connection off, so that nobody takes a part for the whole.
    Pieces(mpsc::Receiver<io::Result<Bytes>>),
    /// Of no known length, and nothing of it here: who takes the connection over sends it.
    Elsewhere,
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self::Whole(None)
    }

    /// These bytes.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Elsewhere => Poll::Ready(None),
            Self::Pieces(pieces) => pieces.poll_recv(cx).map(|p| p.map(|p| p.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Pieces(_) | Self::Elsewhere => hyper::body::SizeHint::default(),
        }
    }
}

/// The sending end of [`Body::Pieces`], for a thread that may block. The first byte, or [`BodyWriter::begin`], makes the
/// answer a success; what fails before may still become an error.
#[derive(Debug)]
pub struct BodyWriter {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    begun: Option<oneshot::Sender<()>>,
    buffer: Vec<u8>,
    patience: Option<Duration>,
}

impl BodyWriter {
    /// A writer, what tells of its beginning, and what it writes to. Fails where nobody takes a piece for so long, if that is
    /// said.
    pub fn pair(patience: Option<Duration>) -> (Self, oneshot::Receiver<()>, Body) {
        let (pieces, receiver) = mpsc::channel(PIECES);
        let (begun, has_begun) = oneshot::channel();
        let writer = Self { pieces, begun: Some(begun), buffer: Vec::new(), patience };
        (writer, has_begun, Body::Pieces(receiver))
    }

    /// Lets the answer's head go out, though there is nothing to say yet.
    pub fn begin(&mut self) {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(());
        }
    }

    /// Whether an answer is on its way already.
    pub fn has_begun(&self) -> bool {
        self.begun.is_none()
    }

    /// Whether nobody listens any more.
    pub fn is_gone(&self) -> bool {
        self.pieces.is_closed()
    }

    /// Ends the answer as one that is not whole.
    pub fn abort(&mut self, why: &Fault) {
        self.begin();
        let _ = self.give(Err(io::Error::other(why.message.clone())));
    }

    fn give(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        let given = match self.patience {
            None => self.pieces.blocking_send(piece),
            Some(patience) => wait_for(self.pieces.send(piece), patience).ok_or(io::ErrorKind::TimedOut)?,
        };
        given.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn send(&mut self) -> io::Result<()> {
        self.begin();
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.give(Ok(piece))
    }
}

/// What comes of this, on a thread that may block; none if it takes too long. It needs no timer of the runtime, which may
/// have ended before.
fn wait_for<F: Future>(future: F, patience: Duration) -> Option<F::Output> {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    let until = Instant::now() + patience;
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(done);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// A request's body, whole.
#[derive(Debug, Default)]
pub struct Whole {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Of a large one: to be kept as long as what was made of it is.
    pub turn: Option<SemaphorePermit<'static>>,
    place: Option<Place<'static>>,
}

/// The whole of a request's body, if it is not beyond all measure.
pub async fn whole(mut body: Incoming) -> Result<Whole, Fault> {
    let mut out = Whole::default();
    while let Some(data) = piece(&mut body, out.place.as_ref()).await? {
        if out.bytes.len() + data.len() > MOST {
            return Err(Fault::new(413, format!("the request's body is over {MOST} bytes")));
        }
        out.bytes.extend_from_slice(&data);
        if out.bytes.len() > SMALL && !out.place.get_or_insert_with(|| ROOM.place()).grow(out.bytes.len()) {
            return Err(too_slow());
        }
    }
    if let Some(place) = &out.place {
        tokio::select! {
            // Never closed; and nobody who has a turn waits for a client.
            turn = LARGE.acquire() => out.turn = turn.ok(),
            () = place.lost() => return Err(too_slow()),
        }
    }
    Ok(out)
}

/// The next bytes of a document; none at its end.
async fn piece(body: &mut Incoming, place: Option<&Place<'_>>) -> Result<Option<Bytes>, Fault> {
    let lost = async {
        match place {
            Some(place) => place.lost().await,
            None => std::future::pending().await,
        }
    };
    let next = tokio::select! {
        next = tokio::time::timeout(PATIENCE, body.frame()) => next,
        () = lost => return Err(too_slow()),
    };
    match next.map_err(|_| Fault::new(408, "the request's body did not arrive in time"))? {
        None => Ok(None),
        Some(Err(e)) => Err(Fault::invalid(format!("the request's body broke off: {e}"))),
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
    }
}

fn too_slow() -> Fault {
    Fault::new(408, "the request's body came too slowly: others need its room")
}

/// Reads what is left of a body that nobody wants, up to a measure.
pub async fn drain(mut body: Incoming) {
    let mut read = 0;
    while read < UNWANTED {
        match tokio::time::timeout(UNWANTED_PATIENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => read += frame.data_ref().map_or(0, Bytes::len),
            _ => return,
        }
    }
}

/// A request's body as something that a thread reads.
#[derive(Debug)]
pub struct BodyReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
    /// All of it was read; a body whose end was not seen is not whole.
    ended: bool,
}

impl BodyReader {
    /// Starts to receive it.
    pub fn new(mut body: Incoming) -> Self {
        let (to, pieces) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            loop {
                let piece = match tokio::time::timeout(UPLOAD_PATIENCE, body.frame()).await {
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    Ok(Some(Err(e))) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, e)),
                    Ok(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => Ok(data),
                        _ => continue,
                    },
                    // An empty piece is the end.
                    Ok(None) => Ok(Bytes::new()),
                };
                let last = piece.as_ref().map_or(true, Bytes::is_empty);
                if to.send(piece).await.is_err() || last {
                    return;
                }
            }
        });
        Self { pieces, rest: Bytes::new(), ended: false }
    }
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(piece) => self.rest = piece?,
            }
            self.ended = self.rest.is_empty();
        }
        let n = out.len().min(self.rest.len());
        let piece = self.rest.split_to(n);
        if let Some(out) = out.get_mut(..n) {
            out.copy_from_slice(&piece);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_that_nobody_takes_ends() {
        let (mut writer, _begun, body) = BodyWriter::pair(Some(Duration::from_millis(20)));
        let failed = (0..=PIECES).map(|_| writer.write_all(&[0; PIECE])).find_map(Result::err);
        assert_eq!(failed.map(|e| e.kind()), Some(io::ErrorKind::TimedOut));
        drop(body);
        assert_eq!(writer.write_all(&[0; PIECE]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
