//! Connections: accepted, bounded, and served one request after the other (HTTP/1.1, as Docker's socket).

use crate::client::{Handover, Place, Wire};
use crate::docker;
use crate::listen::Active;
use crate::shared::Server;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};

/// Between two requests, and for the whole head of one.
const HEAD: Duration = Duration::from_secs(600);
/// Between two questions whether a silent client is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// For a handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// At once.
static HANDSHAKES: Semaphore = Semaphore::const_new(64);
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const HEADERS: usize = 100;
/// When no descriptor is left, someone must close one first.
const RETRY: Duration = Duration::from_millis(50);

/// Told when the server ends: connections finish what they are at.
pub(crate) static CLOSING: Notify = Notify::const_new();

/// Takes connections for ever.
pub(crate) async fn accept(server: Arc<Server>, listener: Active, places: Arc<Semaphore>) {
    loop {
        let server = Arc::clone(&server);
        match &listener {
            Active::Unix(listener) => match listener.accept().await {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                    let wire = Wire::of(&stream);
                    tokio::spawn(serve(server, stream, wire, Place::of(place)));
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            },
            Active::Tls(listener, acceptor) => match listener.accept().await {
                Ok((stream, _)) => {
                    watch(&stream);
                    let (acceptor, places) = (acceptor.clone(), Arc::clone(&places));
                    // Nobody knows yet who that is: it takes no place from those who are known.
                    let Ok(turn) = HANDSHAKES.acquire().await else { return };
                    tokio::spawn(async move {
                        let wire = Wire::of(&stream);
                        let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
                        let place = places.try_acquire_owned();
                        drop(turn);
                        if let (Ok(Ok(stream)), Ok(place)) = (shaken, place) {
                            serve(server, stream, wire, Place::of(place)).await;
                        }
                    });
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            },
        }
    }
}

/// A client of another host that vanished does not say so: it is asked.
fn watch(stream: &tokio::net::TcpStream) {
    use rustix::net::sockopt;
    // Without it the connection works as well; it only may last too long.
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepcnt(stream, 4);
}

/// Answers requests until the client or the server ends, or somebody takes the connection over.
async fn serve(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    wire: Option<Wire>,
    place: Place,
) {
    let handover = Handover::default();
    let service = service_fn(|mut request| {
        if let Some(wire) = &wire {
            request.extensions_mut().insert(wire.clone());
        }
        request.extensions_mut().insert(place.clone());
        request.extensions_mut().insert(handover.clone());
        let server = Arc::clone(&server);
        Box::pin(async move { Ok::<_, std::convert::Infallible>(docker::answer(server, request).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => ended,
        () = CLOSING.notified() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    // A client that breaks off is nobody's failure.
    if ended.is_ok() {
        let rest = connection.into_parts();
        handover.conclude(rest.io.into_inner(), rest.read_buf).await;
    }
}
