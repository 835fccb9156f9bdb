//! `save`: writes images as archives and layouts. Blobs go out as they came in, so that digests stay.

use super::{ArchiveImage, FULL_NAME, REF_NAME, SaveFormat, SaveTo};
use crate::manifest::{Descriptor, Index, IndexPlatform, OCI_INDEX};
use crate::{ImageError, ImageStore, db};
use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::path::Path;
use types::{Digest, ImageRef};

impl ImageStore {
    /// Writes images, named or by id, with the names under which they were asked for.
    pub fn save(&self, images: &[&str], to: SaveTo<'_>) -> Result<(), ImageError> {
        let lease = self.lease()?;
        let mut wanted: Vec<(db::ImageRow, Vec<ImageRef>)> = Vec::new();
        for name in images {
            let row = self.find(name)?;
            // An id has no name to be saved under.
            let by_name = ImageRef::parse(name).ok().filter(|r| r.digest().is_none());
            let by_name = by_name.filter(|r| {
                db::by_name(self.db.conn(), &db::key(r)).is_ok_and(|i| i.is_some_and(|i| i.id == row.id))
            });
            match wanted.iter_mut().find(|(r, _)| r.id == row.id) {
                Some((_, names)) => names.extend(by_name),
                None => wanted.push((row, by_name.into_iter().collect())),
            }
        }
        match to {
            SaveTo::Directory(path) => {
                let mut sink = Layout::new(path)?;
                self.write_layout(&lease, &wanted, None, &mut sink)
            }
            SaveTo::Stream(out, format) => {
                let mut sink = Archive { tar: tar::Builder::new(out) };
                self.write_layout(&lease, &wanted, Some(format), &mut sink)?;
                sink.tar.finish().map_err(write)
            }
        }
    }

    fn write_layout(
        &self,
        lease: &crate::lease::Lease,
        images: &[(db::ImageRow, Vec<ImageRef>)],
        format: Option<SaveFormat>,
        sink: &mut dyn Sink,
    ) -> Result<(), ImageError> {
        let mut written = HashSet::new();
        let mut entries = Vec::new();
        let mut docker = Vec::new();
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        sink.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for (row, names) in images {
            let (bytes, kind, digest, blobs) = self.portable_manifest(&row.id)?;
            lease.hold(blobs.iter().map(|b| &b.digest))?;
            for blob in &blobs {
                if written.insert(blob.digest) {
                    self.write_blob(&blob.digest, blob.size, sink)?;
                }
            }
            for (d, bytes) in [(row.id, &row.config), (digest, &bytes)] {
                if written.insert(d) {
                    sink.bytes(&file(&d), bytes)?;
                }
            }
            let size = bytes.len() as u64;
            let platform = Some(IndexPlatform {
                architecture: row.platform.architecture.clone(),
                os: row.platform.os.clone(),
                variant: row.platform.variant.clone(),
            });
            let entry = |annotations| Descriptor {
                media_type: kind.clone(),
                digest,
                size,
                platform: platform.clone(),
                annotations,
            };
            for name in names {
                let tag = name.tag().unwrap_or("latest").to_owned();
                let id = row.id.hex();
                repositories.entry(name.familiar_name()).or_default().insert(tag.clone(), id);
                entries.push(entry(Some(
                    [(FULL_NAME.to_owned(), name.to_string()), (REF_NAME.to_owned(), tag)].into(),
                )));
            }
            if names.is_empty() {
                entries.push(entry(None));
            }
            docker.push(ArchiveImage {
                config: file(&row.id),
                repo_tags: Some(names.iter().map(ImageRef::familiar).collect()),
                layers: Some(blobs.iter().map(|b| file(&b.digest)).collect()),
            });
        }
        let index = Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests: entries };
        sink.bytes("index.json", &serde_json::to_vec(&index).map_err(not_json)?)?;
        if format == Some(SaveFormat::DockerArchive) {
            sink.bytes("manifest.json", &serde_json::to_vec(&docker).map_err(not_json)?)?;
            sink.bytes("repositories", &serde_json::to_vec(&repositories).map_err(not_json)?)?;
        }
        Ok(())
    }

    fn write_blob(&self, digest: &Digest, size: u64, sink: &mut dyn Sink) -> Result<(), ImageError> {
        let found = self.content.size(digest);
        if found != Some(size) {
            let reason = "it is gone or cut short; pull or load the image again";
            return Err(ImageError::corrupt(format!("the stored blob {}", digest.short()), reason));
        }
        sink.stream(&file(digest), size, &mut self.content.open(digest)?)
    }
}

fn file(d: &Digest) -> String {
    format!("blobs/sha256/{}", d.hex())
}

fn write(e: std::io::Error) -> ImageError {
    ImageError::io("write", Path::new("the archive"), e)
}

fn not_json(e: serde_json::Error) -> ImageError {
    ImageError::Invalid(format!("the archive's index cannot be written: {e}"))
}

/// Takes the files of a layout.
trait Sink {
    fn stream(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<(), ImageError>;
    fn bytes(&mut self, name: &str, mut bytes: &[u8]) -> Result<(), ImageError> {
        self.stream(name, bytes.len() as u64, &mut bytes)
    }
}

struct Archive<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
}

impl Sink for Archive<'_> {
    fn stream(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<(), ImageError> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        self.tar.append_data(&mut header, name, from.take(size)).map_err(write)
    }
}

struct Layout<'a> {
    path: &'a Path,
}

impl<'a> Layout<'a> {
    fn new(path: &'a Path) -> Result<Self, ImageError> {
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(|e| ImageError::io("make", &blobs, e))?;
        let index = path.join("index.json");
        if index.exists() {
            return Err(ImageError::Conflict(format!(
                "{} is an OCI layout already; name an empty directory",
                path.display()
            )));
        }
        Ok(Self { path })
    }
}

impl Sink for Layout<'_> {
    fn stream(&mut self, name: &str, _: u64, from: &mut dyn Read) -> Result<(), ImageError> {
        let path = self.path.join(name);
        let fail = |e| ImageError::io("write", &path, e);
        let mut file = std::fs::File::create(&path).map_err(fail)?;
        std::io::copy(from, &mut file).map(drop).map_err(fail)
    }
}
