//! The layer store: a tar stream becomes one read-only EROFS file, named by its diff id, while it streams.
//!
//! ```text
//! <dir>/<hex>.erofs        a layer
//! <dir>/<hex>/{fs,info}    a layer on a host that cannot mount EROFS: an unpacked directory
//! <dir>/.new-*             one that is being written, locked by its writer (flock), or left by a dead one
//! ```
//!
//! A name without `.new-` is always whole: layers are renamed into place when their digest is known to be right.
//! Whiteouts are in the form overlayfs reads (device 0/0, `trusted.overlay.opaque`). What a hostile tar can and
//! cannot do is written down in [`tree`] (paths), [`tar`] (headers) and [`ingest`] (attributes).
//!
//! Not here: compression, media types, registries (the tar comes in plain), and mounting.

mod detect;
mod dir;
mod erofs;
mod error;
mod ingest;
mod pax;
mod source;
mod tar;
mod temp;
#[cfg(test)]
mod tests;
mod tree;

pub use detect::detect_format;
pub use error::LayerError;

use erofs::format::{BLOCK, SUPER_OFFSET, Super};
use error::{Result, io};
use source::Source;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use temp::Temp;
use types::{Digest, LayerFormat};

/// Name of the unpacked tree in the directory of a layer, and of what is known about it.
const TREE: &str = "fs";
const INFO: &str = "info";

/// One layer in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The EROFS file, or the root of the unpacked tree.
    pub path: PathBuf,
    /// Which of the two.
    pub format: LayerFormat,
    /// Bytes on the disk.
    pub size: u64,
    /// Sum of the sizes of its files, which is what Docker shows as a layer's size.
    pub content_size: u64,
}

/// What a tar may ask for before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLimits {
    /// Sum of file sizes, holes included.
    pub max_content: u64,
    /// Names: files, directories (those that are only implied, too), links and whiteouts.
    pub max_entries: u64,
    /// Bytes of the uncompressed stream.
    pub max_tar: u64,
}

impl Default for LayerLimits {
    /// 1 TiB of content and of tar, sixteen million names.
    fn default() -> Self {
        Self { max_content: 1 << 40, max_entries: 1 << 24, max_tar: 1 << 40 }
    }
}

/// The directory that holds layers.
#[derive(Clone, Debug)]
pub struct LayerStore {
    dir: PathBuf,
    format: LayerFormat,
}

impl LayerStore {
    /// Opens the store, made if it is not there. New layers get this format; see [`detect_format`].
    pub fn open(dir: &Path, format: LayerFormat) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        if !dir.is_dir() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(io("create", dir))?;
        }
        Ok(Self { dir: dir.to_owned(), format })
    }

    /// The format that new layers get.
    pub fn format(&self) -> LayerFormat {
        self.format
    }

    /// Reads an uncompressed tar to its end and writes it as one layer, in one step as others see it. The digest
    /// covers every byte of the stream; if it is not the expected one, nothing is kept. A layer that is there
    /// already is kept, and `tar` is only verified.
    pub fn ingest(
        &self,
        tar: &mut dyn Read,
        expected: Option<&Digest>,
        limits: &LayerLimits,
    ) -> Result<Layer> {
        if let Some(expected) = expected
            && let Some(layer) = self.get(expected)
        {
            let found = Source::new(tar, limits.max_tar).finish()?;
            return if found == *expected {
                Ok(layer)
            } else {
                Err(LayerError::Digest { expected: *expected, found })
            };
        }
        let (temp, diff_id) = match self.format {
            LayerFormat::Erofs => {
                let temp = Temp::file(&self.dir)?;
                let mut sink = erofs::Writer::new(temp.handle()?, temp.path());
                let (diff_id, _) = ingest::ingest(tar, expected, limits, &mut sink)?;
                (temp, diff_id)
            }
            LayerFormat::Dir => {
                let temp = Temp::dir(&self.dir)?;
                let mut sink = dir::Unpacker::new(temp.path())?;
                let (diff_id, _) = ingest::ingest(tar, expected, limits, &mut sink)?;
                (temp, diff_id)
            }
        };
        let path = self.place(&diff_id, self.format);
        if let Some(layer) = self.get(&diff_id) {
            return Ok(layer);
        }
        temp.rename(&path, || self.get(&diff_id).is_some())?;
        self.get(&diff_id).ok_or_else(|| io("open", &path)(std::io::ErrorKind::NotFound.into()))
    }

    /// The layer, if it is here. One open and one small read.
    pub fn get(&self, diff_id: &Digest) -> Option<Layer> {
        let erofs = || get_erofs(diff_id, self.place(diff_id, LayerFormat::Erofs));
        let dir = || get_dir(diff_id, &self.place(diff_id, LayerFormat::Dir));
        match self.format {
            LayerFormat::Erofs => erofs().or_else(dir),
            LayerFormat::Dir => dir(),
        }
    }

    /// Fails where this process cannot open anything in the store: it has too many files open, or may not.
    pub(crate) fn reachable(&self) -> std::result::Result<(), crate::ImageError> {
        let opened = File::open(&self.dir).map(drop);
        opened.map_err(|e| crate::ImageError::io("open", &self.dir, e))
    }

    /// Deletes a layer in whatever format it is here, and returns the bytes it took on the disk. One that is not
    /// here is no error. The caller knows that nothing uses it.
    pub fn remove(&self, diff_id: &Digest) -> Result<u64> {
        let mut freed = 0;
        let file = self.place(diff_id, LayerFormat::Erofs);
        if let Ok(meta) = std::fs::symlink_metadata(&file) {
            match std::fs::remove_file(&file) {
                Ok(()) => freed += meta.blocks() * 512,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(io("remove", &file)(e)),
            }
        }
        let tree = self.place(diff_id, LayerFormat::Dir);
        if std::fs::symlink_metadata(&tree).is_ok() {
            let size = get_dir(diff_id, &tree).map_or(0, |layer| layer.size);
            // First out of sight in one step: half a layer must never be found.
            if Temp::take_over(&self.dir, &tree)? {
                freed += size;
            }
        }
        Ok(freed)
    }

    /// Every layer that is here.
    pub fn list(&self) -> Vec<Digest> {
        let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut all: Vec<Digest> = names
            .filter_map(|name| {
                let name = name.file_name();
                let name = name.to_str()?;
                Digest::parse_hex(name.strip_suffix(".erofs").unwrap_or(name))
            })
            .collect();
        all.sort();
        all.dedup();
        all.retain(|diff_id| self.get(diff_id).is_some());
        all
    }

    /// Removes what writers left behind that are dead by now.
    pub fn sweep_temporary(&self) {
        temp::sweep(&self.dir);
    }

    fn place(&self, diff_id: &Digest, format: LayerFormat) -> PathBuf {
        let mut name = diff_id.hex();
        if format == LayerFormat::Erofs {
            name.push_str(".erofs");
        }
        self.dir.join(name)
    }
}

/// An EROFS file is whole if its superblock, written last, is of this layer, and no block is missing.
fn get_erofs(diff_id: &Digest, path: PathBuf) -> Option<Layer> {
    let file = File::open(&path).ok()?;
    let mut sb = [0; 128];
    file.read_exact_at(&mut sb, SUPER_OFFSET).ok()?;
    let meta = file.metadata().ok()?;
    let (uuid, volume, blocks) = Super::read(&sb)?;
    if uuid != erofs::uuid(diff_id) || meta.len() != u64::from(blocks) * BLOCK {
        return None;
    }
    let content_size = erofs::content_size(&volume)?;
    Some(Layer {
        diff_id: *diff_id,
        path,
        format: LayerFormat::Erofs,
        size: meta.blocks() * 512,
        content_size,
    })
}

fn get_dir(diff_id: &Digest, path: &Path) -> Option<Layer> {
    let info = std::fs::read_to_string(path.join(INFO)).ok()?;
    let (content, size) = info.trim_end().split_once(' ')?;
    Some(Layer {
        diff_id: *diff_id,
        path: path.join(TREE),
        format: LayerFormat::Dir,
        size: size.parse().ok()?,
        content_size: content.parse().ok()?,
    })
}
