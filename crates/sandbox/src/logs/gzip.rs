//! Compresses a rotated file a piece at a time, so that the supervisor's one thread goes on with its work in between.

use super::rotated;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{File, FileTimes};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Work that is done a piece at a time. As an object, so that a program that never begins it has none of its code.
pub(super) trait Pieces {
    /// Does one piece; whether there is more to do.
    fn step(&mut self) -> io::Result<bool>;
}

/// A rotated file on its way to its `.gz`.
struct Compressor {
    from: PathBuf,
    temporary: PathBuf,
    to: PathBuf,
    input: File,
    output: GzEncoder<File>,
}

/// Starts on `<path>.1`.
pub(super) fn compress(path: &Path) -> io::Result<Box<dyn Pieces>> {
    let from = rotated(path, 1, false);
    let to = rotated(path, 1, true);
    let mut temporary = to.clone().into_os_string();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let input = File::open(&from)?;
    let output = GzEncoder::new(File::create(&temporary)?, Compression::fast());
    Ok(Box::new(Compressor { from, temporary, to, input, output }))
}

impl Pieces for Compressor {
    fn step(&mut self) -> io::Result<bool> {
        let mut piece = Vec::with_capacity(64 << 10);
        if (&self.input).take(64 << 10).read_to_end(&mut piece)? > 0 {
            self.output.write_all(&piece)?;
            return Ok(true);
        }
        self.output.try_finish()?;
        // Readers order files by this time.
        if let Ok(modified) = self.input.metadata().and_then(|m| m.modified()) {
            let _ = self.output.get_ref().set_times(FileTimes::new().set_modified(modified));
        }
        std::fs::rename(&self.temporary, &self.to)?;
        std::fs::remove_file(&self.from)?;
        Ok(false)
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        // Gone already where all went well.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
