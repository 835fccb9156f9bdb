//! What can go wrong with a root filesystem.

use std::io;
use std::path::{Path, PathBuf};
use types::{Digest, ErrorKind, Kinded};

/// Why a root filesystem could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The store lacks a layer that its database names.
    #[error("layer {digest} is missing at {}: pull the image again", path.display())]
    LayerMissing {
        /// Which layer.
        digest: Digest,
        /// Where it should be.
        path: PathBuf,
    },
    /// The kernel does not recognise the layer's file.
    #[error("layer {digest} at {} is damaged ({source}): remove the image and pull it again", path.display())]
    LayerDamaged {
        /// Which layer.
        digest: Digest,
        /// Its file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// This kernel lacks a file system or a way to mount it.
    #[error("this host cannot {what}: {source}")]
    Unsupported {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An operation on a file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as an infinitive.
        action: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A path that the user named is not there.
    #[error("Could not find the file {} in the container", path.display())]
    NoSuchPath {
        /// As the user gave it.
        path: PathBuf,
    },
    /// A directory was needed.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// As the user gave it.
        path: PathBuf,
    },
    /// A tar entry's name or link target leads out of the destination.
    #[error("tar entry {entry:?} is outside of the destination {}", dest.display())]
    Breakout {
        /// Name of the entry.
        entry: String,
        /// Where the tar was unpacked.
        dest: PathBuf,
    },
    /// A tar entry would turn a directory into a file or the reverse.
    #[error("cannot overwrite {} {} with {} {entry:?}", kinds(*.directory).0, path.display(), kinds(*.directory).1)]
    Overwrite {
        /// A directory stands in the way of a non-directory; else the reverse.
        directory: bool,
        /// What stands there.
        path: PathBuf,
        /// Name of the entry.
        entry: String,
    },
    /// A tar stream is not one, or is cut short.
    #[error("bad tar stream: {source}")]
    Tar {
        /// What the reader said.
        source: io::Error,
    },
    /// A tar entry of a type that no file system holds.
    #[error("tar entry {entry:?} has the unsupported type {kind:?}")]
    EntryType {
        /// Name of the entry.
        entry: String,
        /// Its type flag.
        kind: char,
    },
    /// A tar entry is a device, which would be one of this host's.
    #[error("{entry:?} is a device and is not made on this host: copy to - for a tar with it")]
    Device {
        /// Name of the entry.
        entry: String,
    },
    /// The receiver of a tar stream went away or is full.
    #[error("cannot write the tar stream: {source}")]
    Output {
        /// What the writer said.
        source: io::Error,
    },
}

fn kinds(directory: bool) -> (&'static str, &'static str) {
    if directory { ("directory", "non-directory") } else { ("non-directory", "directory") }
}

impl Kinded for RootfsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::LayerMissing { .. } | Self::LayerDamaged { .. } => ErrorKind::Corrupt,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::NoSuchPath { .. } => ErrorKind::NotFound,
            Self::NotADirectory { .. }
            | Self::Breakout { .. }
            | Self::Overwrite { .. }
            | Self::Device { .. }
            | Self::EntryType { .. } => ErrorKind::Invalid,
            Self::Tar { source } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::Exhausted,
            Self::Tar { .. } => ErrorKind::Invalid,
            Self::Io { source, .. } | Self::Output { source } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
                _ => ErrorKind::Internal,
            },
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, RootfsError>;

/// Adds the action and the path to an error of the operating system.
pub(crate) trait Context<T> {
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| RootfsError::Io { action, path: path.as_ref().to_owned(), source: e.into() })
    }
}
