//! The logs of a container: written by its supervisor, read by any command at any time.
//!
//! | driver | file in `sandboxes/<id>/` | an entry |
//! |---|---|---|
//! | `json-file` | `<id>-json.log` | Docker's JSON object, one a line |
//! | `local` | `local-logs/container.log` | Docker's protobuf message between its length and its length |
//! | `none` | - | - |
//!
//! Rotated files are named `.1` (the newest), `.2`, …, with `.gz` where they are compressed. An entry is a line of output
//! with its newline; a line of more than 16 KiB is cut into entries without one, as Docker does. A writer that was
//! killed leaves at most one torn entry at the end, which the next writer mends and every reader passes over.

mod gzip;
mod json;
mod local;
mod options;
mod reader;
mod time;
mod writer;

pub use options::{OptionError, parse_options};
pub use reader::{Entry, ReadError, ReadOptions, read};
pub use time::{format_time, parse_time};
pub use writer::LogWriter;

use std::path::{Path, PathBuf};
use types::{LogConfig, LogDriver};

/// Which of the workload's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// stdout, or the terminal.
    Stdout,
    /// stderr.
    Stderr,
}

impl Source {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Longest entry; a longer line is cut (Docker's copier has a buffer of this size).
pub const MAX_LINE: usize = 16 << 10;

/// The file that is written to at present; none for a driver that keeps nothing.
pub fn current_file(dir: &Path, config: &LogConfig) -> Option<PathBuf> {
    match config.driver {
        LogDriver::JsonFile => {
            let id = dir.file_name()?.to_string_lossy();
            Some(dir.join(format!("{id}-json.log")))
        }
        LogDriver::Local => Some(dir.join("local-logs/container.log")),
        LogDriver::None => None,
    }
}

/// `path` with `.n` (and `.gz`) behind it.
fn rotated(path: &Path, n: u32, compressed: bool) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}{}", if compressed { ".gz" } else { "" }));
    name.into()
}
