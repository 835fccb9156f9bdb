//! What can go wrong between a tar stream and a layer on the disk.

use std::io;
use std::path::{Path, PathBuf};
use types::{Digest, ErrorKind, Kinded};

/// Why a layer could not be written, removed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The operating system refused something about the store.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// The disk (or a quota) is full.
    #[error("no space left for the layer in {}; free some space and try again", path.display())]
    NoSpace {
        /// The store.
        path: PathBuf,
    },
    /// The stream the tar comes from failed.
    #[error("cannot read the layer's tar stream")]
    Source(#[source] io::Error),
    /// The stream ends in the middle of the tar.
    #[error("the layer's tar stream is truncated: it ends after {at} bytes")]
    Truncated {
        /// Bytes that came.
        at: u64,
    },
    /// No tar, or a damaged one.
    #[error("the layer's tar stream is damaged at byte {at}: {what}")]
    Damaged {
        /// Where the header or record starts.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// An entry that no file system could hold, or that must not be followed.
    #[error("the layer holds {path:?}, which {what}")]
    Entry {
        /// Path of the entry as the tar has it.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// An entry that leads out of the layer.
    #[error("the layer holds {path:?}, which leads outside of the layer")]
    Escapes {
        /// Path of the entry, or the target of its hard link, as the tar has it.
        path: String,
    },
    /// A hard link to nothing.
    #[error("the layer holds {path:?}, a hard link to {target:?}, which is no file of this layer")]
    MissingTarget {
        /// Path of the link.
        path: String,
        /// Path it names.
        target: String,
    },
    /// More than [`LayerLimits`](super::LayerLimits) or the file system allows.
    #[error("the layer is refused: {what} exceeds the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The bytes are not those that were promised.
    #[error("the layer's content does not match its digest: expected {expected}, got {found}")]
    Digest {
        /// Promised.
        expected: Digest,
        /// Computed.
        found: Digest,
    },
}

impl Kinded for LayerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            Self::Io { .. } => ErrorKind::Internal,
            Self::NoSpace { .. } => ErrorKind::Exhausted,
            Self::Source(_) => ErrorKind::Unavailable,
            Self::Truncated { .. } | Self::Damaged { .. } | Self::Digest { .. } => ErrorKind::Corrupt,
            Self::Entry { .. } | Self::Escapes { .. } | Self::MissingTarget { .. } | Self::Limit { .. } => {
                ErrorKind::Invalid
            }
        }
    }
}

pub(super) type Result<T> = std::result::Result<T, LayerError>;

/// Turns an I/O error on `path` into a [`LayerError`], telling a full disk apart.
pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayerError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LayerError::NoSpace { path },
        _ => LayerError::Io { action, path, source },
    }
}

/// A path or name out of a tar, as text for people.
pub(super) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.chars().count() > 200 {
        text.chars().take(200).chain("…".chars()).collect()
    } else {
        text.into_owned()
    }
}

pub(super) fn entry(path: &[u8], what: impl Into<String>) -> LayerError {
    LayerError::Entry { path: shown(path), what: what.into() }
}
