//! Why a process could not be made ready or executed.

use std::io;
use types::{ErrorKind, Kinded};

/// Why a process could not be made ready or executed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command does not exist: exit code 127.
    #[error("exec: {command:?}: executable file not found{}", if command.contains('/') { "" } else { " in $PATH" })]
    NotFound {
        /// As the user gave it.
        command: String,
    },
    /// The command exists but cannot be executed: exit code 126.
    #[error("exec: {command:?}: {source}")]
    NotExecutable {
        /// As the user gave it.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The request itself cannot be fulfilled.
    #[error("{0}")]
    Invalid(String),
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// What was being done.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Kinded for LaunchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::NotExecutable { .. } | Self::Invalid(_) => ErrorKind::Invalid,
            Self::Step { .. } => ErrorKind::Internal,
        }
    }
}

/// Names the step that failed.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, LaunchError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, LaunchError> {
        self.map_err(|e| LaunchError::Step { step: step(), source: e.into() })
    }
}
