//! Images as files: docker-archive (Docker's `docker save`), OCI archive and OCI layout directory (OCI image-spec
//! `image-layout.md`).

mod load;
mod save;
mod spool;

use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::Path;

/// Where `load` reads.
pub enum LoadFrom<'a> {
    /// A docker-archive or OCI archive, also compressed with gzip or zstd.
    Stream(&'a mut (dyn Read + Send)),
    /// An OCI layout directory.
    Directory(&'a Path),
}

/// Where `save` writes.
pub enum SaveTo<'a> {
    /// An archive.
    Stream(&'a mut dyn Write, SaveFormat),
    /// An OCI layout directory, made if it is not there.
    Directory(&'a Path),
}

/// Kinds of archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveFormat {
    /// As Docker writes it since version 25: an OCI layout with `manifest.json` and `repositories` beside it.
    #[default]
    DockerArchive,
    /// An OCI layout in a tar.
    OciArchive,
}

/// An image of docker-archive's `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchiveImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Annotation of an index entry: the full name (containerd).
const FULL_NAME: &str = "io.containerd.image.name";
/// Annotation of an index entry: a tag, or with some tools a full name (OCI).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
