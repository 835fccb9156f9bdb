//! `load`: reads docker-archives and OCI layouts, and believes them nothing that it has not computed itself.

use super::spool::Spool;
use super::{ArchiveImage, FULL_NAME, LoadFrom, REF_NAME};
use crate::content::Hashing;
use crate::db::BlobRow;
use crate::lease::Lease;
use crate::manifest::{self, Descriptor, Document, Index, MAX_CONFIG, MAX_MANIFEST, Manifest};
use crate::store::Registration;
use crate::unpack::{self, Compression};
use crate::{ImageError, ImageStore, LayerEvent, Progress, local};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use types::{Digest, ImageConfig, ImageRef, Platform};

/// Images in one archive.
const MAX_IMAGES: usize = 1000;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// One image as an archive describes it.
struct Found {
    config: Vec<u8>,
    layers: Vec<FoundLayer>,
    names: Vec<ImageRef>,
    manifest: Option<(Vec<u8>, String, Manifest)>,
}

struct FoundLayer {
    file: String,
    blob: Option<Digest>,
}

impl ImageStore {
    /// Reads every image of an archive or layout. Answers ids, each with the names that it got.
    pub fn load(
        &self,
        from: LoadFrom<'_>,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Vec<(Digest, Vec<ImageRef>)>, ImageError> {
        let lease = self.lease()?;
        let done = self.load_with(&lease, from, platform, progress);
        self.conclude(lease, done)
    }

    fn load_with(
        &self,
        lease: &Lease,
        from: LoadFrom<'_>,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Vec<(Digest, Vec<ImageRef>)>, ImageError> {
        let spool = match from {
            LoadFrom::Stream(input) => Spool::stream(&self.content, input)?,
            LoadFrom::Directory(path) => Spool::directory(&self.content, path)?,
        };
        let found = match spool.read("manifest.json", MAX_CONFIG)? {
            Some(bytes) => docker_images(&spool, &bytes)?,
            None => oci_images(&spool, platform)?,
        };
        let mut loaded = Vec::new();
        for image in found {
            loaded.push(self.load_image(&spool, lease, image, progress)?);
        }
        Ok(loaded)
    }

    fn load_image(
        &self,
        spool: &Spool,
        lease: &Lease,
        image: Found,
        progress: &dyn Progress,
    ) -> Result<(Digest, Vec<ImageRef>), ImageError> {
        let what = image.names.first().map_or("the archive".into(), ImageRef::familiar);
        let config = manifest::parse_config(&image.config, Some(image.layers.len()), None, &what)?;
        lease.hold(&config.rootfs.diff_ids)?;
        let mut blobs = Vec::new();
        for (layer, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
            blobs.push(self.load_layer(spool, lease, layer, diff_id, progress)?);
        }
        self.register_loaded(&config, &image, &blobs)
    }

    fn register_loaded(
        &self,
        config: &ImageConfig,
        image: &Found,
        blobs: &[BlobRow],
    ) -> Result<(Digest, Vec<ImageRef>), ImageError> {
        // The archive's own manifest keeps its digest, if the blobs are those that it names.
        let own = image.manifest.as_ref().filter(|(.., m)| {
            m.config.digest == manifest::digest_of(&image.config)
                && m.layers.iter().map(|l| &l.digest).eq(blobs.iter().map(|b| &b.digest))
        });
        let composed;
        let (bytes, kind) = match own {
            Some((bytes, kind, _)) => (bytes, kind.as_str()),
            None => {
                composed = manifest::compose(&image.config, local::descriptors(blobs));
                (&composed, manifest::OCI_MANIFEST)
            }
        };
        let (id, _) = self.register(Registration {
            config,
            config_bytes: &image.config,
            manifest: bytes,
            manifest_type: kind,
            layers: blobs,
            names: &image.names,
            repo_digests: &[],
            parent: None,
        })?;
        Ok((id, image.names.clone()))
    }

    fn load_layer(
        &self,
        spool: &Spool,
        lease: &Lease,
        layer: &FoundLayer,
        diff_id: &Digest,
        progress: &dyn Progress,
    ) -> Result<BlobRow, ImageError> {
        let short = diff_id.short();
        if self.layers.get(diff_id).is_some() {
            let wanted = |d: &Digest| layer.blob.is_none_or(|b| b == *d);
            if let Some(blob) = self.other_blob(diff_id, lease, wanted)? {
                progress.layer(&short, LayerEvent::AlreadyExists);
                return Ok(blob);
            }
        }
        let what = format!("layer {short}");
        let path = spool.own(&layer.file, &diff_id.hex())?;
        let read = |e| ImageError::io("read", &path, e);
        let mut file = File::open(&path).map_err(read)?;
        let total = file.metadata().map_err(read)?.len();
        progress.layer(&short, LayerEvent::Loading { done: 0, total });
        let mut head = Vec::new();
        file.by_ref().take(8).read_to_end(&mut head).map_err(read)?;
        file.rewind().map_err(read)?;
        let kind = Compression::detect(&head)?;
        let source = Counting { inner: file, done: 0, told: 0, total, short: &short, progress };
        let blob = if kind == Compression::None {
            let mut hashed = Hashing::new(source);
            let blob = self.add_layer(lease, &mut hashed, &what, Some(diff_id))?;
            verify(layer.blob.as_ref(), &hashed.finish().1, &what)?;
            blob
        } else {
            let mut hashed = Hashing::new(source);
            let limits = unpack::limits_for(&self.limits, total);
            unpack::ingest(&self.layers, &self.content, &what, &mut hashed, Some(diff_id), &limits, None)?;
            let (_, digest, size) = hashed.finish();
            verify(layer.blob.as_ref(), &digest, &what)?;
            lease.hold([&digest])?;
            let to = self.content.path(&digest);
            std::fs::rename(&path, &to).map_err(|e| ImageError::io("store", &to, e))?;
            BlobRow { digest, diff_id: *diff_id, size, media_type: kind.layer_type().to_owned() }
        };
        let _ = std::fs::remove_file(&path);
        progress.layer(&short, LayerEvent::Loaded);
        Ok(blob)
    }
}

fn verify(expected: Option<&Digest>, found: &Digest, what: &str) -> Result<(), ImageError> {
    match expected {
        Some(expected) if expected != found => Err(ImageError::DigestMismatch {
            what: format!("{what} of the archive"),
            expected: *expected,
            found: *found,
        }),
        _ => Ok(()),
    }
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|e| ImageError::corrupt(format!("{name} of the archive"), e.to_string()))
}

fn docker_images(spool: &Spool, bytes: &[u8]) -> Result<Vec<Found>, ImageError> {
    let images: Vec<ArchiveImage> = json(bytes, "manifest.json")?;
    let mut manifests = manifests_by_config(spool);
    if images.len() > MAX_IMAGES {
        return Err(ImageError::Limit {
            what: "the archive".into(),
            reason: format!("{} images", images.len()),
        });
    }
    let mut found = Vec::new();
    for image in images {
        let missing = || ImageError::corrupt("the archive", format!("{:.200} is missing", image.config));
        let config = spool.read(&image.config, MAX_CONFIG)?.ok_or_else(missing)?;
        // Docker names the file after its content.
        let stem = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        let own = manifest::digest_of(&config);
        verify(Digest::parse_hex(stem).as_ref(), &own, "the configuration")?;
        let names = image.repo_tags.unwrap_or_default();
        found.push(Found {
            layers: image
                .layers
                .unwrap_or_default()
                .into_iter()
                .map(|file| FoundLayer { blob: blob_of(&file), file })
                .collect(),
            names: names.iter().map(|n| ImageRef::parse(n)).collect::<Result<_, _>>()?,
            manifest: manifests.remove(&own),
            config,
        });
    }
    Ok(found)
}

/// `blobs/sha256/<hex>` names its content.
fn blob_of(file: &str) -> Option<Digest> {
    Digest::parse_hex(file.strip_prefix("blobs/sha256/")?)
}

/// The OCI manifests beside a `manifest.json`, by configuration. What is wrong with them does not matter: they
/// serve to keep a digest only.
fn manifests_by_config(spool: &Spool) -> HashMap<Digest, (Vec<u8>, String, Manifest)> {
    let Ok(Some(bytes)) = spool.read("index.json", MAX_MANIFEST) else { return HashMap::new() };
    let Ok(Document::Index(index)) = manifest::parse(&bytes, None, "index.json") else {
        return HashMap::new();
    };
    let read = |d: &Descriptor| match document(spool, d) {
        Ok((bytes, Document::Manifest(m))) => {
            let kind = m.media_type.clone().unwrap_or_else(|| d.media_type.clone());
            Some((m.config.digest, (bytes, kind, m)))
        }
        _ => None,
    };
    index.manifests.iter().take(MAX_IMAGES).filter_map(read).collect()
}

fn blob_file(d: &Digest) -> String {
    format!("blobs/sha256/{}", d.hex())
}

/// Reads and verifies a manifest or index of a layout.
fn document(spool: &Spool, d: &Descriptor) -> Result<(Vec<u8>, Document), ImageError> {
    let what = format!("manifest {}", d.digest.short());
    let missing = || ImageError::corrupt("the archive", format!("its {what} is missing"));
    let bytes = spool.read(&blob_file(&d.digest), MAX_MANIFEST)?.ok_or_else(missing)?;
    verify(Some(&d.digest), &manifest::digest_of(&bytes), &what)?;
    let kind = (!d.media_type.is_empty()).then_some(d.media_type.as_str());
    let document = manifest::parse(&bytes, kind, &what)?;
    Ok((bytes, document))
}

fn oci_images(spool: &Spool, platform: Option<&Platform>) -> Result<Vec<Found>, ImageError> {
    let nothing = || {
        ImageError::corrupt(
            "the input",
            "neither manifest.json (docker-archive) nor index.json (OCI layout) is in it",
        )
    };
    let bytes = spool.read("index.json", MAX_MANIFEST)?.ok_or_else(nothing)?;
    let index: Index = json(&bytes, "index.json")?;
    if index.manifests.len() > MAX_IMAGES {
        let reason = format!("{} images", index.manifests.len());
        return Err(ImageError::Limit { what: "the archive".into(), reason });
    }
    let host = Platform::host();
    let wanted = platform.unwrap_or(&host);
    let mut found: Vec<Found> = Vec::new();
    for entry in &index.manifests {
        let name = name_of(entry);
        let (bytes, manifest, kind) = descend(spool, entry, wanted, 0)?;
        let missing = || ImageError::corrupt("the archive", "a configuration is missing".to_string());
        let config = spool.read(&blob_file(&manifest.config.digest), MAX_CONFIG)?.ok_or_else(missing)?;
        verify(Some(&manifest.config.digest), &manifest::digest_of(&config), "the configuration")?;
        let layers = manifest
            .layers
            .iter()
            .map(|l| FoundLayer { file: blob_file(&l.digest), blob: Some(l.digest) })
            .collect();
        found.push(Found {
            config,
            layers,
            names: name.into_iter().collect(),
            manifest: Some((bytes, kind, manifest)),
        });
    }
    if found.is_empty() { Err(ImageError::corrupt("the archive", "it holds no image")) } else { Ok(found) }
}

fn name_of(entry: &Descriptor) -> Option<ImageRef> {
    let annotations = entry.annotations.as_ref()?;
    let full = annotations.get(FULL_NAME);
    // A bare tag names no repository.
    let name = full.or_else(|| annotations.get(REF_NAME).filter(|n| n.contains(['/', ':'])))?;
    ImageRef::parse(name).ok().filter(|r| r.digest().is_none())
}

fn descend(
    spool: &Spool,
    entry: &Descriptor,
    wanted: &Platform,
    depth: usize,
) -> Result<(Vec<u8>, Manifest, String), ImageError> {
    match document(spool, entry)? {
        (bytes, Document::Manifest(m)) => {
            let kind = m.media_type.clone().unwrap_or_else(|| entry.media_type.clone());
            Ok((bytes, m, kind))
        }
        (_, Document::Index(_)) if depth >= MAX_DEPTH => {
            Err(ImageError::corrupt("the archive", "its indexes lie within each other too deep"))
        }
        (_, Document::Index(index)) => {
            descend(spool, manifest::choose(&index, wanted, "the archive")?, wanted, depth + 1)
        }
    }
}

/// Tells how far a file was read.
struct Counting<'a> {
    inner: File,
    done: u64,
    told: u64,
    total: u64,
    short: &'a str,
    progress: &'a dyn Progress,
}

impl Read for Counting<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.done += n as u64;
        if self.done - self.told >= 1 << 20 {
            self.told = self.done;
            self.progress.layer(self.short, LayerEvent::Loading { done: self.done, total: self.total });
        }
        Ok(n)
    }
}
