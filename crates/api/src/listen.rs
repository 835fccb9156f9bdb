//! Where a server listens: Unix sockets, sockets that systemd opened, and TCP with mutual TLS, never without.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sys::file::Lock;

/// Why there is no listening there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server listens there.
    #[error("another server listens at {0}: stop it, or choose another path with --socket")]
    Taken(PathBuf),
    /// What is there is not a socket.
    #[error("{0} exists and is not a socket: choose another path with --socket")]
    NotASocket(PathBuf),
    /// A socket of systemd's that would be open to all.
    #[error(
        "the socket that systemd handed over is no Unix socket: TCP is served with mutual TLS only (--host)"
    )]
    NotUnix,
    /// The system refused.
    #[error("cannot listen at {at}: {source}")]
    Io {
        /// Where.
        at: String,
        /// Why not.
        source: io::Error,
    },
    /// Keys or certificates do not fit.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket, and the path that we hold, if we made it.
    Unix(UnixListener, Option<Held>),
    /// TCP with mutual TLS.
    Tls(TcpListener, Arc<tokio_rustls::rustls::ServerConfig>),
}

/// A path that is this server's as long as it lives: of several that start at once one has the lock beside it, so that none
/// takes another's socket for one that was left.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    beside: PathBuf,
    _lock: Lock,
}

impl Held {
    fn take(path: &Path) -> Result<Self, ListenError> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let beside = PathBuf::from(beside);
        match Lock::try_exclusive(&beside).map_err(failed(beside.display()))? {
            Some(lock) => Ok(Self { path: path.to_owned(), beside, _lock: lock }),
            None => Err(ListenError::Taken(path.to_owned())),
        }
    }
}

/// Nobody holds the lock of a file that has lost its name: whoever opened it before looks again.
impl Drop for Held {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.beside);
    }
}

fn failed(at: impl ToString) -> impl FnOnce(io::Error) -> ListenError {
    let at = at.to_string();
    move |source| ListenError::Io { at, source }
}

impl Listener {
    /// A Unix socket with this mode, given to this group. A socket that a killed server left is taken over. For a process with
    /// one thread: it changes the umask.
    pub fn unix(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, ListenError> {
        let io = || failed(path.display());
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(io())?;
        }
        let held = Held::take(path)?;
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io()(e)),
            Ok(m) if !m.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
            Ok(_) if listens(path).map_err(io())? => return Err(ListenError::Taken(path.to_owned())),
            Ok(_) => std::fs::remove_file(path).map_err(io())?,
        }
        // Nobody may connect before it has its group and mode.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => ListenError::Taken(path.to_owned()),
            _ => io()(e),
        })?;
        std::os::unix::fs::chown(path, None, group)
            .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
            .map_err(io())?;
        Ok(Self::Unix(listener, Some(held)))
    }

    /// A Unix socket that systemd listens at already (`sd_listen_fds(3)`). One of another family is refused: TCP without TLS
    /// is never served.
    pub fn inherited(fd: OwnedFd) -> Result<Self, ListenError> {
        let at = || "the socket of systemd".to_owned();
        let family = rustix::net::sockopt::socket_domain(&fd).map_err(|e| failed(at())(e.into()))?;
        if family != rustix::net::AddressFamily::UNIX {
            return Err(ListenError::NotUnix);
        }
        Ok(Self::Unix(UnixListener::from(fd), None))
    }

    /// TCP, for clients whose certificate this authority signed.
    pub fn tls(at: &str, ca: &Path, cert: &Path, key: &Path) -> Result<Self, ListenError> {
        let config = crate::tls::config(ca, cert, key)?;
        let listener = TcpListener::bind(at).map_err(failed(at))?;
        Ok(Self::Tls(listener, Arc::new(config)))
    }

    /// Where it listens, as `DOCKER_HOST` names it.
    pub fn address(&self) -> String {
        match self {
            Self::Unix(_, Some(held)) => format!("unix://{}", held.path.display()),
            Self::Unix(listener, None) => {
                let path = listener.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_owned));
                path.map_or_else(|| "a socket of systemd".into(), |p| format!("unix://{}", p.display()))
            }
            Self::Tls(listener, _) => {
                listener.local_addr().map_or_else(|_| "tcp".into(), |a: SocketAddr| format!("tcp://{a}"))
            }
        }
    }

    /// Ready for the runtime, and what takes its path away in the end.
    pub(crate) fn activate(self) -> io::Result<(Active, Option<Remover>)> {
        match self {
            Self::Unix(listener, held) => {
                listener.set_nonblocking(true)?;
                let remover = held.and_then(|held| {
                    let m = std::fs::symlink_metadata(&held.path).ok()?;
                    Some(Remover { held, identity: (m.dev(), m.ino()) })
                });
                Ok((Active::Unix(tokio::net::UnixListener::from_std(listener)?), remover))
            }
            Self::Tls(listener, config) => {
                listener.set_nonblocking(true)?;
                let acceptor = tokio_rustls::TlsAcceptor::from(config);
                Ok((Active::Tls(tokio::net::TcpListener::from_std(listener)?, acceptor), None))
            }
        }
    }
}

/// A listener of the runtime.
pub(crate) enum Active {
    Unix(tokio::net::UnixListener),
    Tls(tokio::net::TcpListener, tokio_rustls::TlsAcceptor),
}

/// Whether anybody listens at a socket, be it one who has no time to answer.
fn listens(path: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        // A full queue, or a socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Takes a socket's path away, unless somebody has put another there by now.
#[derive(Debug)]
pub(crate) struct Remover {
    held: Held,
    identity: (u64, u64),
}

impl Drop for Remover {
    fn drop(&mut self) {
        let path = &self.held.path;
        if std::fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            let _ = std::fs::remove_file(path);
        }
    }
}
