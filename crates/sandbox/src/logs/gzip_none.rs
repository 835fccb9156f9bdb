//! In the place of `gzip`, for a guest: its log is the host's business.

use std::io;
use std::path::Path;

/// Never made.
pub(super) enum Compressor {}

impl Compressor {
    pub(super) fn start(_: &Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn step(&mut self) -> io::Result<bool> {
        match *self {}
    }
}
