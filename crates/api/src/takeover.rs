//! Connections that stop being HTTP: taken over as they are, or as a websocket; and the same over an answer that goes on,
//! for clients that do not ask for the connection.

use crate::body::Body;
use crate::docker::Ask;
use crate::docker::ask::head;
use crate::fault::Fault;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Bytes between a websocket and the streams.
const PIPE: usize = 64 << 10;

/// What a client sends, and what it is sent.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// The other direction.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Answers with streams of this type, which the job gets: those of the connection itself, where the client asks for it, else
/// the answer's own, and what is left of the request's body.
pub fn streams<J>(
    mut ask: Ask,
    kind: &str,
    job: impl FnOnce(Ask, Input, Output) -> J + Send + 'static,
) -> Result<Response<Body>, Fault>
where
    J: Future<Output = ()> + Send + 'static,
{
    let Some(upgrade) = ask.take_upgrade() else {
        let input = body_input(&mut ask);
        let (output, body) = answer_output();
        tokio::spawn(job(ask, input, Box::new(output)));
        // It ends with its streams, as Docker's does: a client may have left without reading their end.
        let answer = head(kind).header(CONNECTION, "close").body(body);
        return answer.map_err(|e| Fault::internal(e.to_string()));
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let (input, output) = tokio::io::split(TokioIo::new(upgraded));
            job(ask, Box::new(input), Box::new(output)).await;
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONTENT_TYPE, kind)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "tcp")
        .body(Body::empty())
        .map_err(|e| Fault::internal(e.to_string()))
}

/// Who sends no body has not ended his input: he has none to send, and may look on as long as he likes.
fn body_input(ask: &mut Ask) -> Input {
    match ask.take_body().ok().filter(|body| !body.is_end_stream()) {
        Some(body) => Box::new(BodyInput { body, rest: Bytes::new() }),
        None => Box::new(Silence),
    }
}

/// Input that neither comes nor ends.
struct Silence;

impl AsyncRead for Silence {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// A request's body as input.
struct BodyInput {
    body: Incoming,
    rest: Bytes,
}

impl AsyncRead for BodyInput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            let frame = std::task::ready!(Pin::new(&mut self.body.frame()).poll(cx));
            match frame {
                None => return Poll::Ready(Ok(())),
                Some(Err(e)) => return Poll::Ready(Err(io::Error::other(e))),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let n = out.remaining().min(self.rest.len());
        out.put_slice(&self.rest.split_to(n));
        Poll::Ready(Ok(()))
    }
}

/// Output that is the body of an answer.
fn answer_output() -> (DuplexStream, Body) {
    let (ours, mut theirs) = tokio::io::duplex(PIPE);
    let (to, body) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let n = tokio::select! {
                n = theirs.read(&mut buffer) => n.unwrap_or(0),
                () = to.closed() => 0,
            };
            let piece = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
            if piece.is_empty() || to.send(Ok(piece)).await.is_err() {
                return;
            }
        }
    });
    (ours, Body::Pieces(body))
}

/// Input and output of a websocket (RFC 6455), when its client has it.
type Socket = Pin<Box<dyn Future<Output = Option<(DuplexStream, DuplexStream)>> + Send>>;

/// Makes a websocket of the connection.
pub fn websocket(ask: &mut Ask) -> Result<(Response<Body>, Socket), Fault> {
    let key = ask.headers.get("Sec-WebSocket-Key").map(|k| derive_accept_key(k.as_bytes()));
    let (Some(key), Some(upgrade)) = (key, ask.take_upgrade()) else {
        return Err(Fault::invalid("a websocket is needed here: ask for the upgrade (RFC 6455)"));
    };
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header("Sec-WebSocket-Accept", key)
        .body(Body::empty())
        .map_err(|e| Fault::internal(e.to_string()))?;
    let socket = async move {
        let io = TokioIo::new(upgrade.await.ok()?);
        let limits = WebSocketConfig::default().max_message_size(Some(1 << 20)).max_frame_size(Some(1 << 20));
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
        let (input, to_workload) = tokio::io::duplex(PIPE);
        let (output, from_workload) = tokio::io::duplex(PIPE);
        tokio::spawn(relay(socket, to_workload, from_workload));
        Some((input, output))
    };
    Ok((answer, Box::pin(socket)))
}

/// Two directions that do not wait for each other.
async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    to: DuplexStream,
    from: DuplexStream,
) {
    use futures_util::StreamExt;
    let (sink, messages) = socket.split();
    tokio::select! {
        () = outward(sink, from) => {}
        () = inward(messages, to) => {}
    }
}

async fn outward<K: futures_util::Sink<Message> + Unpin>(mut sink: K, mut from: DuplexStream) {
    use futures_util::SinkExt;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = from.read(&mut buffer).await.unwrap_or(0);
        let piece = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
        if piece.is_empty() {
            let _ = sink.close().await;
            return;
        }
        if sink.send(Message::Binary(piece)).await.is_err() {
            return;
        }
    }
}

/// Ends when the client has gone; input that nobody takes is read all the same.
async fn inward<E>(
    mut messages: impl futures_util::Stream<Item = Result<Message, E>> + Unpin,
    mut to: DuplexStream,
) {
    use futures_util::StreamExt;
    let mut taken = true;
    while let Some(Ok(message)) = messages.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return,
            _ => continue,
        };
        if taken {
            taken = to.write_all(&bytes).await.is_ok();
        }
    }
}
