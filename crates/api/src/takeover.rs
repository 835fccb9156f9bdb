//! Connections that stop being HTTP: taken over as they are, or as a websocket; and the same over a request and an answer that
//! go on, for clients that send their input as a body.

use crate::ask::{Answer, Ask};
use crate::body::Body;
use crate::client::{Input, Output, Raw};
use crate::fault::Fault;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::http::response::Builder;
use hyper::{Response, StatusCode, Version};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// How long a websocket's last word may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// Bytes between a websocket and the streams.
const PIPE: usize = 64 << 10;

/// Answers with streams of this type, which the job gets: those of the connection itself, whether the client asks for it or not,
/// as Docker's daemon does; but where it sends its input as the request's body, that body and the answer's.
pub fn streams<J>(
    mut ask: Ask,
    kind: &str,
    job: impl FnOnce(Ask, Input, Output) -> J + Send + 'static,
) -> Answer
where
    J: Future<Output = ()> + Send + 'static,
{
    let answer = Response::builder().header(CONTENT_TYPE, kind);
    let asked = ask.wants_upgrade;
    let answer = if !asked && ask.has_body() {
        let input = Box::new(BodyInput { body: ask.take_body()?, rest: Bytes::new() });
        let (output, body) = answer_output();
        tokio::spawn(job(ask, input, Box::new(output)));
        // It ends with its streams: a client may have left without reading their end.
        answer.header(CONNECTION, "close").body(body)
    } else {
        let connection = ask.take_connection()?;
        tokio::spawn(async move {
            if let Ok(Raw { input, output }) = connection.await {
                job(ask, input, output).await;
            }
        });
        match asked {
            true => switched(answer, "tcp").body(Body::empty()),
            // In this version of HTTP an answer without a length has all that follows as its body.
            false => answer.version(Version::HTTP_10).header(CONNECTION, "close").body(Body::Elsewhere),
        }
    };
    answer.map_err(|e| Fault::internal(e.to_string()))
}

fn switched(answer: Builder, protocol: &str) -> Builder {
    answer.status(StatusCode::SWITCHING_PROTOCOLS).header(CONNECTION, "Upgrade").header(UPGRADE, protocol)
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
    let Some(key) = key.filter(|_| ask.wants_upgrade) else {
        return Err(Fault::invalid("a websocket is needed here: ask for the upgrade (RFC 6455)"));
    };
    let connection = ask.take_connection()?;
    let answer = switched(Response::builder(), "websocket")
        .header("Sec-WebSocket-Accept", key)
        .body(Body::empty())
        .map_err(|e| Fault::internal(e.to_string()))?;
    let socket = async move {
        let Raw { input, output } = connection.await.ok()?;
        let io = tokio::io::join(input, output);
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
    let (mut sink, messages) = socket.split();
    tokio::select! {
        () = outward(&mut sink, from) => {}
        () = inward(messages, to) => {}
    }
    // Whoever ends it, both sides say so.
    let _ = tokio::time::timeout(FAREWELL, futures_util::SinkExt::close(&mut sink)).await;
}

async fn outward<K: futures_util::Sink<Message> + Unpin>(sink: &mut K, mut from: DuplexStream) {
    use futures_util::SinkExt;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = from.read(&mut buffer).await.unwrap_or(0);
        let piece = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
        if piece.is_empty() {
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
