//! Names the step that failed.

use crate::hull::HullError;
use process::LaunchError;
use std::io;

/// Names the step that failed.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, HullError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, HullError> {
        self.map_err(|e| HullError::Step { step: step(), source: e.into() })
    }
}

impl From<LaunchError> for HullError {
    fn from(e: LaunchError) -> Self {
        match e {
            LaunchError::NotFound { command } => Self::CommandNotFound { command },
            LaunchError::NotExecutable { command, source } => Self::CommandNotExecutable { command, source },
            LaunchError::Invalid(text) => Self::Invalid(text),
            LaunchError::Step { step, source } => Self::Step { step, source },
        }
    }
}
