//! Connections: accepted, bounded, and served one request after the other (HTTP/1.1, as Docker's socket).

use crate::docker;
use crate::listen::Active;
use crate::opening;
use crate::server::Server;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Between two requests, and for the whole head of one.
const HEAD: Duration = Duration::from_secs(600);
/// Between two questions whether a silent client is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// For a handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const HEADERS: usize = 100;
/// When no descriptor is left, someone must close one first.
const RETRY: Duration = Duration::from_millis(50);

/// Told when the server ends: connections finish what they are at.
pub(crate) static CLOSING: Notify = Notify::const_new();

/// The socket below a connection, to see whether its other end has gone.
#[derive(Clone, Debug)]
pub(crate) struct Wire(Arc<OwnedFd>);

impl Wire {
    fn of(fd: impl AsFd) -> Option<Self> {
        fd.as_fd().try_clone_to_owned().ok().map(|fd| Self(Arc::new(fd)))
    }

    /// Whether the client hung up altogether: one that only ended its input is still there.
    pub fn is_cut(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&*self.0, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && fds.iter().any(|f| f.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

/// One of the places that there are for connections. Whoever takes a connection over takes its place, too.
#[derive(Clone, Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

/// Takes connections for ever.
pub(crate) async fn accept(server: Arc<Server>, listener: Active, places: Arc<Semaphore>) {
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let server = Arc::clone(&server);
        match &listener {
            Active::Unix(listener) => match listener.accept().await {
                Ok((stream, _)) => {
                    let wire = Wire::of(&stream);
                    tokio::spawn(serve(server, stream, wire, Place(Arc::new(place))));
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            },
            Active::Tls(listener, acceptor) => match listener.accept().await {
                Ok((stream, _)) => {
                    watch(&stream);
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let wire = Wire::of(&stream);
                        if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await
                        {
                            serve(server, stream, wire, Place(Arc::new(place))).await;
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

async fn serve(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    wire: Option<Wire>,
    place: Place,
) {
    let service = service_fn(|mut request| {
        if let Some(wire) = &wire {
            request.extensions_mut().insert(wire.clone());
        }
        request.extensions_mut().insert(place.clone());
        let server = Arc::clone(&server);
        async move { Ok::<_, std::convert::Infallible>(docker::answer(server, request).await) }
    });
    let stream = tokio::select! {
        opened = tokio::time::timeout(HEAD, opening::open(stream)) => match opened {
            Ok(opened) => opened,
            Err(_) => return,
        },
        () = CLOSING.notified() => return,
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    // A client that breaks off is nobody's failure.
    tokio::select! {
        done = connection.as_mut() => drop(done),
        () = CLOSING.notified() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
