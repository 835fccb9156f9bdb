//! Why the engine could not do what it was asked: one sentence each, and the exit code that Docker users expect.

use std::path::{Path, PathBuf};
use types::{ErrorKind, Kinded};

/// A failure of an engine operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No container of that name, id or prefix.
    #[error("no such container: {0}")]
    NoSuchContainer(String),
    /// No volume of that name.
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// A volume whose files are gone.
    #[error(
        "volume {name} has lost its files: {} is not there. Bring it back (is a disk not mounted?), or remove the volume", path.display()
    )]
    LostVolume {
        /// Its name.
        name: String,
        /// What is missing.
        path: PathBuf,
    },
    /// No network of that name, id or prefix.
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// No kernel for microVMs, or none of that name.
    #[error("{0}")]
    NoKernel(String),
    /// No object of any kind.
    #[error("no such object: {0}")]
    NoSuchObject(String),
    /// A prefix that several containers share.
    #[error("multiple containers found with the id prefix {0:?}: give more digits")]
    Ambiguous(String),
    /// The name belongs to another container.
    #[error(
        "the container name {name:?} is already in use by container {id:?}; remove or rename that container to use the name again"
    )]
    NameInUse {
        /// The name.
        name: String,
        /// Full id of its owner.
        id: String,
    },
    /// The container is not running.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The object's state forbids the request.
    #[error("{0}")]
    Conflict(String),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// This host or this build cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The host has no more of something.
    #[error("{0}")]
    Exhausted(String),
    /// A supervisor could not start the workload.
    #[error("{message}")]
    Start {
        /// What it said.
        message: String,
        /// 125, 126 or 127.
        code: i32,
    },
    /// Files in another user namespace could not be read or written.
    #[error("{message}")]
    Inside {
        /// What kind of failure.
        kind: ErrorKind,
        /// What the process that entered it said.
        message: String,
    },
    /// An image operation failed.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// A root filesystem operation failed.
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
    /// A network operation failed.
    #[error(transparent)]
    Net(#[from] net::NetError),
    /// A supervisor refused, or did not answer.
    #[error(transparent)]
    Client(#[from] sandbox::client::ClientError),
    /// A log could not be read.
    #[error(transparent)]
    Log(#[from] sandbox::logs::ReadError),
    /// The database.
    #[error(transparent)]
    Db(#[from] state::DbError),
    /// Stored JSON is not what it should be.
    #[error(
        "the stored {what} of container {id} is damaged ({source}); remove the container and create it again"
    )]
    Stored {
        /// Which document.
        what: &'static str,
        /// Whose.
        id: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The operating system refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Result of an engine operation.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

impl EngineError {
    /// The exit code of `run`, `start` and `exec` for this failure; other commands exit with 1.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start { code, .. } => *code,
            _ => 125,
        }
    }

    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

impl From<state::rusqlite::Error> for EngineError {
    fn from(e: state::rusqlite::Error) -> Self {
        Self::Db(e.into())
    }
}

impl Kinded for EngineError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchContainer(_)
            | Self::NoSuchVolume(_)
            | Self::NoSuchNetwork(_)
            | Self::NoSuchObject(_)
            | Self::NoKernel(_) => ErrorKind::NotFound,
            Self::Ambiguous(_) | Self::Invalid(_) => ErrorKind::Invalid,
            Self::NameInUse { .. } | Self::NotRunning(_) | Self::Conflict(_) => ErrorKind::Conflict,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Exhausted(_) => ErrorKind::Exhausted,
            Self::Start { code: 127, .. } => ErrorKind::NotFound,
            Self::Start { .. } => ErrorKind::Invalid,
            Self::Inside { kind, .. } => *kind,
            Self::Image(e) => e.kind(),
            Self::Rootfs(e) => e.kind(),
            Self::Net(e) => e.kind(),
            Self::Client(e) => e.kind(),
            Self::Log(e) => e.kind(),
            Self::Db(e) => e.kind(),
            Self::Stored { .. } | Self::LostVolume { .. } => ErrorKind::Corrupt,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                std::io::ErrorKind::StorageFull => ErrorKind::Exhausted,
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Internal,
            },
        }
    }
}
