//! Why an image operation failed, in sentences for users.

use std::io;
use std::path::{Path, PathBuf};
use types::{Digest, ErrorKind, Kinded, Platform};

/// A failure of the image store. Each message is one sentence that names what it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image of that name or id.
    #[error("no such image: {0}")]
    NotFound(String),
    /// An id prefix that several images share.
    #[error("the id {0} is ambiguous: several images start with it")]
    Ambiguous(String),
    /// Not a name.
    #[error(transparent)]
    Reference(#[from] types::ReferenceError),
    /// A request that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The image is in use, or has several names.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The image is not for the platform that was asked for.
    #[error("{image} is not there for {wanted}; it is there for: {}", list(available))]
    Platform {
        /// As the user named it.
        image: String,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// The registry knows no such repository, or hides it.
    #[error(
        "pull access denied for {repository}: the repository does not exist, or it needs 'dhow login {registry}'"
    )]
    PullDenied {
        /// Repository as commands show it.
        repository: String,
        /// Host.
        registry: String,
    },
    /// The registry knows the repository but not the tag or digest.
    #[error("manifest for {0} not found: the registry has no such tag or digest")]
    ManifestUnknown(String),
    /// Push refused.
    #[error("push to {repository} denied: {reason}; 'dhow login {registry}' may help")]
    PushDenied {
        /// Repository as commands show it.
        repository: String,
        /// Host.
        registry: String,
        /// What the registry said.
        reason: String,
    },
    /// Wrong user name or password.
    #[error("login to {registry} failed: {reason}")]
    Login {
        /// Host.
        registry: String,
        /// What the registry said.
        reason: String,
    },
    /// The registry cannot be reached, or went silent.
    #[error("registry {registry}: {reason}")]
    Unavailable {
        /// Host.
        registry: String,
        /// What went wrong.
        reason: String,
    },
    /// The registry answered something that it must not.
    #[error("registry {registry}: {reason}")]
    Registry {
        /// Host.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// Content that lies about its digest, its size or its type, or that is malformed.
    #[error("{what} is damaged or lies about itself: {reason}")]
    Corrupt {
        /// Which content.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A blob whose bytes have another digest.
    #[error("{what} has the digest {found} instead of {expected}")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// Announced.
        expected: Digest,
        /// Computed.
        found: Digest,
    },
    /// Content beyond a limit.
    #[error("{what} is beyond the limit: {reason}")]
    Limit {
        /// Which content.
        what: String,
        /// Which limit.
        reason: String,
    },
    /// Content that Dhow does not handle.
    #[error("{0}")]
    Unsupported(String),
    /// The disk is full.
    #[error("no space left on the disk that holds {}: {reason}", path.display())]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// What needed room.
        reason: String,
    },
    /// A layer could not be stored.
    #[error("{layer}: {source}")]
    Layer {
        /// Which layer.
        layer: String,
        /// Why.
        source: crate::layer::LayerError,
    },
    /// The database.
    #[error(transparent)]
    Db(#[from] state::DbError),
    /// A file operation of the host.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no platform".into();
    }
    let mut names: Vec<String> = platforms.iter().map(Platform::to_string).collect();
    names.dedup();
    names.join(", ")
}

impl ImageError {
    /// A file operation that failed; a full disk is told apart.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            return Self::DiskFull { path: path.to_owned(), reason: format!("cannot {action} it") };
        }
        // An error of ours that travelled through a reader.
        match source.downcast::<ImageError>() {
            Ok(inner) => inner,
            Err(source) => Self::Io { action, path: path.to_owned(), source },
        }
    }

    pub(crate) fn corrupt(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), reason: reason.into() }
    }
}

/// Whether the disk or the quota ended.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<rusqlite::Error> for ImageError {
    fn from(e: rusqlite::Error) -> Self {
        Self::Db(e.into())
    }
}

impl From<ImageError> for io::Error {
    fn from(e: ImageError) -> Self {
        io::Error::other(e)
    }
}

impl Kinded for ImageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::ManifestUnknown(_) | Self::Platform { .. } => ErrorKind::NotFound,
            Self::Ambiguous(_) | Self::Reference(_) | Self::Invalid(_) => ErrorKind::Invalid,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::PullDenied { .. } | Self::PushDenied { .. } | Self::Login { .. } => ErrorKind::Denied,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Registry { .. } | Self::Corrupt { .. } | Self::DigestMismatch { .. } => ErrorKind::Corrupt,
            Self::Limit { .. } | Self::DiskFull { .. } => ErrorKind::Exhausted,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Layer { source, .. } => source.kind(),
            Self::Db(e) => e.kind(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            Self::Io { .. } => ErrorKind::Internal,
        }
    }
}
