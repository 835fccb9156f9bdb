//! Pull: manifest, configuration, then layers, three at a time. Each layer is downloaded, hashed and written by one
//! thread while others decompress it and turn it into its EROFS file; the slowest of the three sets the pace.
//!
//! One blob: `wanted -> locked -> (resumed) -> downloading -> verified -> committed`. A broken connection is taken
//! up where it broke; a lie about digest or size throws the partial blob away; a killed process leaves it for the
//! next pull. A layer appears only when its blob was verified to the last byte.

use crate::content::{CHUNK, Content, Growing, Hashing};
use crate::db::{self, BlobRow};
use crate::layer::{LayerLimits, LayerStore};
use crate::lease::Lease;
use crate::manifest::{self, Descriptor, Document, MAX_CONFIG, Manifest};
use crate::registry::{Access, Registry};
use crate::store::Registration;
use crate::{Image, ImageError, ImageStore, LayerEvent, Progress, unpack};
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use types::{Digest, ImageConfig, ImageRef, Kinded, Platform};

/// Layers that are fetched at once.
const PARALLEL: usize = 3;
/// Attempts in a row that bring no byte.
const ATTEMPTS: u32 = 5;
/// For so long a registry may be asked again and again without a byte.
const PATIENCE: Duration = Duration::from_secs(60);
/// Indexes within indexes.
const MAX_DEPTH: usize = 3;
/// Why an operation broke off that nobody waits for.
const GIVEN_UP: &str = "the pull was given up";
/// Bytes between two reports.
const REPORT: u64 = 512 << 10;

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Platform to choose; the host's if not told.
    pub platform: Option<Platform>,
    /// How to reach the registry.
    pub access: Access,
}

/// What came of a pull.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Digest of the manifest or index that the name stands for.
    pub digest: Digest,
    /// Nothing had to be fetched.
    pub up_to_date: bool,
}

impl ImageStore {
    /// Fetches an image, or what of it is not there.
    pub fn pull(
        &self,
        name: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, ImageError> {
        let registry = Registry::connect(name.registry(), &options.access)?;
        self.pull_one(&registry, name, options, progress)
    }

    /// Fetches every tag of a repository.
    pub fn pull_all(
        &self,
        name: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Pulled>, ImageError> {
        let registry = Registry::connect(name.registry(), &options.access)?;
        let tags = registry.tags(name)?;
        let one = |tag| match progress.is_wanted() {
            true => self.pull_one(&registry, &name.with_tag(tag)?, options, progress),
            false => Err(registry.down(GIVEN_UP)),
        };
        tags.iter().map(|tag| one(tag.as_str())).collect()
    }

    fn pull_one(
        &self,
        registry: &Registry,
        name: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, ImageError> {
        let wanted = options.platform.clone().unwrap_or_else(Platform::host);
        let what = name.familiar();
        let reference = match name.digest() {
            Some(d) => d.to_string(),
            None => name.tag().unwrap_or("latest").to_owned(),
        };
        let (bytes, kind) = registry.manifest(name, &reference)?;
        progress.status(&format!("{reference}: Pulling from {}", short_repository(name)));
        let digest = manifest::digest_of(&bytes);
        let picked = pick(registry, name, bytes, kind, &wanted, &what)?;
        let manifest_digest = manifest::digest_of(&picked.bytes);
        let names: Vec<ImageRef> = if name.digest().is_some() { Vec::new() } else { vec![name.clone()] };
        let repo_digests = [(name.clone(), digest)];

        if let Some(image) = self.complete_already(&picked.manifest, &manifest_digest)? {
            if !wanted.accepts(&image.platform) {
                return Err(ImageError::Platform { image: what, wanted, available: vec![image.platform] });
            }
            let known = names.iter().all(|n| image.refs.contains(n))
                && db::by_repo_digest(self.db.conn(), &name.name(), &digest)?.is_some();
            if !known {
                self.db.write(|tx| {
                    for n in &names {
                        db::set_name(tx, n, &image.id, sys::host::now_ns())?;
                    }
                    db::add_repo_digest(tx, name, &digest, &image.id)
                })?;
            }
            tell_end(progress, &digest, known, &what);
            let image = self.resolve(&image.id.to_string(), None)?;
            return Ok(Pulled { image, digest, up_to_date: known });
        }

        let config_bytes = self.config(registry, name, &picked.manifest.config, &what)?;
        let config =
            manifest::parse_config(&config_bytes, Some(picked.manifest.layers.len()), Some(&wanted), &what)?;
        let lease = self.lease()?;
        let stored = self.fetch_layers(registry, name, &picked.manifest, &config, &lease, progress).and_then(
            |layers| {
                let (id, _) = self.register(Registration {
                    config: &config,
                    config_bytes: &config_bytes,
                    manifest: &picked.bytes,
                    manifest_type: &picked.kind,
                    layers: &layers,
                    names: &names,
                    repo_digests: &repo_digests,
                    parent: None,
                })?;
                self.db.write(|tx| db::add_origin(tx, &layers, name))?;
                Ok(id)
            },
        );
        let id = self.conclude(lease, stored)?;
        tell_end(progress, &digest, false, &what);
        let image = self.resolve(&id.to_string(), None)?;
        Ok(Pulled { image, digest, up_to_date: false })
    }

    /// The image of a manifest, if it and all its layers are there.
    fn complete_already(&self, m: &Manifest, digest: &Digest) -> Result<Option<Image>, ImageError> {
        if db::is_removed(self.db.conn(), &m.config.digest)? != Some(false)
            || db::manifest(self.db.conn(), &m.config.digest)?.2 != *digest
            || m.layers.iter().any(|l| self.content.size(&l.digest) != Some(l.size))
        {
            return Ok(None);
        }
        match self.resolve(&m.config.digest.to_string(), None) {
            Ok(image) => Ok(Some(image)),
            // A layer is missing: the pull mends it.
            Err(ImageError::Corrupt { .. } | ImageError::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn config(
        &self,
        registry: &Registry,
        name: &ImageRef,
        d: &Descriptor,
        what: &str,
    ) -> Result<Vec<u8>, ImageError> {
        if let Some(row) = db::by_prefix(self.db.conn(), &d.digest.hex())?.pop() {
            return Ok(row.config);
        }
        let what = format!("the configuration of {what}");
        let (reply, _) = registry.blob(name, &d.digest, 0)?;
        let bytes = registry.body(reply, MAX_CONFIG, &what)?;
        if bytes.len() as u64 != d.size {
            let reason =
                format!("{} bytes instead of the {} that the manifest announces", bytes.len(), d.size);
            return Err(ImageError::corrupt(what, reason));
        }
        let found = manifest::digest_of(&bytes);
        if found != d.digest {
            return Err(ImageError::DigestMismatch { what, expected: d.digest, found });
        }
        Ok(bytes)
    }

    fn fetch_layers(
        &self,
        registry: &Registry,
        name: &ImageRef,
        m: &Manifest,
        config: &ImageConfig,
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<Vec<BlobRow>, ImageError> {
        let diff_ids = &config.rootfs.diff_ids;
        lease.hold(m.layers.iter().map(|l| &l.digest).chain(diff_ids))?;
        let mut jobs: Vec<(&Descriptor, &Digest)> = Vec::new();
        let mut rows: HashMap<Digest, BlobRow> = HashMap::new();
        let mut seen = HashSet::new();
        for (layer, diff_id) in m.layers.iter().zip(diff_ids) {
            if !seen.insert(layer.digest) {
                continue;
            }
            match self.known_layer(layer, diff_id, lease)? {
                Some(row) => {
                    progress.layer(&layer.digest.short(), LayerEvent::AlreadyExists);
                    rows.insert(layer.digest, row);
                }
                None => {
                    progress.layer(&layer.digest.short(), LayerEvent::Queued);
                    jobs.push((layer, diff_id));
                }
            }
        }
        if !jobs.is_empty() {
            self.content.room(jobs.iter().map(|(l, _)| l.size).fold(0, u64::saturating_add))?;
        }
        let fetch = Fetch {
            registry,
            name,
            content: &self.content,
            layers: &self.layers,
            limits: &self.limits,
            progress,
            stop: AtomicBool::new(false),
        };
        for row in fetch.all(&jobs)? {
            rows.insert(row.digest, row);
        }
        Ok(m.layers.iter().filter_map(|l| rows.get(&l.digest).cloned()).collect())
    }

    /// A layer that needs no fetching: by this blob or by another one with the same content.
    fn known_layer(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        lease: &Lease,
    ) -> Result<Option<BlobRow>, ImageError> {
        if self.layers.get(diff_id).is_none() {
            return Ok(None);
        }
        if self.content.size(&layer.digest) == Some(layer.size) {
            return Ok(Some(row(layer, diff_id)));
        }
        self.other_blob(diff_id, lease, |_| true)
    }

    /// A blob that holds a layer, held from now on.
    pub(crate) fn other_blob(
        &self,
        diff_id: &Digest,
        lease: &Lease,
        wanted: impl Fn(&Digest) -> bool,
    ) -> Result<Option<BlobRow>, ImageError> {
        for blob in db::blobs_of(self.db.conn(), diff_id)?.into_iter().filter(|b| wanted(&b.digest)) {
            lease.hold([&blob.digest])?;
            // Looked at when nobody can delete it any more.
            if self.content.size(&blob.digest) == Some(blob.size) {
                return Ok(Some(blob));
            }
        }
        Ok(None)
    }
}

fn row(layer: &Descriptor, diff_id: &Digest) -> BlobRow {
    let (digest, size) = (layer.digest, layer.size);
    BlobRow { digest, diff_id: *diff_id, size, media_type: layer.media_type.clone() }
}

fn tell_end(progress: &dyn Progress, digest: &Digest, up_to_date: bool, what: &str) {
    progress.status(&format!("Digest: {digest}"));
    progress.status(&match up_to_date {
        true => format!("Status: Image is up to date for {what}"),
        false => format!("Status: Downloaded newer image for {what}"),
    });
}

fn short_repository(name: &ImageRef) -> &str {
    name.repository()
}

struct Picked {
    manifest: Manifest,
    bytes: Vec<u8>,
    kind: String,
}

/// Follows indexes to the manifest for a platform.
fn pick(
    registry: &Registry,
    name: &ImageRef,
    mut bytes: Vec<u8>,
    mut kind: Option<String>,
    wanted: &Platform,
    what: &str,
) -> Result<Picked, ImageError> {
    for _ in 0..=MAX_DEPTH {
        match manifest::parse(&bytes, kind.as_deref(), &format!("the manifest of {what}"))? {
            Document::Manifest(manifest) => {
                let told = manifest.media_type.clone().filter(|t| !t.is_empty()).or(kind);
                let kind = told.unwrap_or_else(|| manifest::OCI_MANIFEST.to_owned());
                return Ok(Picked { manifest, bytes, kind });
            }
            Document::Index(index) => {
                let chosen = manifest::choose(&index, wanted, what)?;
                let (next, next_kind) = registry.manifest(name, &chosen.digest.to_string())?;
                if next.len() as u64 != chosen.size {
                    let reason = format!(
                        "{} bytes instead of the {} that its index announces",
                        next.len(),
                        chosen.size
                    );
                    return Err(ImageError::corrupt(format!("the manifest of {what}"), reason));
                }
                (bytes, kind) = (next, next_kind);
            }
        }
    }
    Err(ImageError::corrupt(format!("the index of {what}"), "indexes lie within each other too deep"))
}

/// What the threads share. No database: that stays with the thread that opened it.
struct Fetch<'a> {
    registry: &'a Registry,
    name: &'a ImageRef,
    content: &'a Content,
    layers: &'a LayerStore,
    limits: &'a LayerLimits,
    progress: &'a dyn Progress,
    stop: AtomicBool,
}

impl Fetch<'_> {
    fn all(&self, jobs: &[(&Descriptor, &Digest)]) -> Result<Vec<BlobRow>, ImageError> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<ImageError>> = Mutex::new(None);
        let work = || {
            let mut rows = Vec::new();
            while let Some((layer, diff_id)) = jobs.get(next.fetch_add(1, Relaxed)) {
                if self.is_over() {
                    break;
                }
                match self.layer(layer, diff_id) {
                    Ok(row) => rows.push(row),
                    Err(e) => {
                        // The first failure is the reason, the others follow from it.
                        if !self.stop.swap(true, Relaxed) {
                            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                        }
                        break;
                    }
                }
            }
            rows
        };
        let rows = std::thread::scope(|s| {
            let threads: Vec<_> = (0..jobs.len().min(PARALLEL)).map(|_| s.spawn(work)).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect::<Vec<_>>()
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None if rows.len() == jobs.len() => Ok(rows),
            None if !self.progress.is_wanted() => Err(self.registry.down(GIVEN_UP)),
            None => Err(ImageError::corrupt(self.name.familiar(), "a layer could not be processed")),
        }
    }

    /// Another layer failed, or nobody waits any more.
    fn is_over(&self) -> bool {
        self.stop.load(Relaxed) || !self.progress.is_wanted()
    }

    fn tell(&self, layer: &Descriptor, event: LayerEvent) {
        self.progress.layer(&layer.digest.short(), event);
    }

    fn layer(&self, layer: &Descriptor, diff_id: &Digest) -> Result<BlobRow, ImageError> {
        self.content.prepare()?;
        let waiting = || self.tell(layer, LayerEvent::Waiting);
        let Some(_lock) = self.content.lock(&layer.digest, waiting, || !self.is_over())? else {
            return Err(self.registry.down(GIVEN_UP));
        };
        if self.content.size(&layer.digest) == Some(layer.size) {
            if self.layers.get(diff_id).is_some() {
                self.content.discard(&layer.digest);
                self.tell(layer, LayerEvent::AlreadyExists);
                return Ok(row(layer, diff_id));
            }
            if self.convert_stored(layer, diff_id).is_ok() {
                self.content.discard(&layer.digest);
                self.tell(layer, LayerEvent::PullComplete);
                return Ok(row(layer, diff_id));
            }
            // The stored blob is damaged.
            self.content.remove(&layer.digest)?;
        }
        let file = self.content.open_partial(&layer.digest)?;
        let resumed = file.metadata().is_ok_and(|m| m.len() > 0);
        let mut done = self.fetch(layer, diff_id, &file);
        if resumed && matches!(&done, Err(e) if e.kind() == types::ErrorKind::Corrupt) {
            // What was left of an earlier pull may be the damaged part: once more from the start.
            file.set_len(0).map_err(|e| ImageError::io("empty", &self.content.partial(&layer.digest), e))?;
            done = self.fetch(layer, diff_id, &file);
        }
        match done {
            Ok(()) => {
                self.content.commit(&layer.digest)?;
                self.tell(layer, LayerEvent::PullComplete);
                Ok(row(layer, diff_id))
            }
            Err(e) => {
                // A connection that broke can be taken up by the next pull; nothing else can.
                let stopped = self.stop.load(Relaxed);
                if !stopped && e.kind() != types::ErrorKind::Unavailable {
                    self.content.discard(&layer.digest);
                }
                if file.metadata().is_ok_and(|m| m.len() == 0) {
                    self.content.discard(&layer.digest);
                }
                Err(e)
            }
        }
    }

    /// Makes the layer of a blob that is there already.
    fn convert_stored(&self, layer: &Descriptor, diff_id: &Digest) -> Result<(), ImageError> {
        let mut hashed = Hashing::new(self.content.open(&layer.digest)?);
        let limits = unpack::limits_for(self.limits, layer.size);
        let what = format!("layer {}", layer.digest.short());
        unpack::ingest(self.layers, self.content, &what, &mut hashed, Some(diff_id), &limits, None)?;
        let (_, found, _) = hashed.finish();
        if found != layer.digest {
            return Err(ImageError::DigestMismatch { what, expected: layer.digest, found });
        }
        Ok(())
    }

    fn fetch(&self, layer: &Descriptor, diff_id: &Digest, file: &File) -> Result<(), ImageError> {
        let clone = file.try_clone().map_err(|e| ImageError::io("open", self.content.tmp(), e))?;
        let growing = Growing::new(clone);
        let limits = unpack::limits_for(self.limits, layer.size);
        let what = format!("layer {}", layer.digest.short());
        std::thread::scope(|s| {
            let download = s.spawn(|| {
                let mut download = Download {
                    fetch: self,
                    layer,
                    file,
                    growing: &growing,
                    sum: Sha256::new(),
                    at: 0,
                    told: 0,
                };
                let done = download.run();
                growing.end(done.is_ok());
                done
            });
            let made = unpack::ingest(
                self.layers,
                self.content,
                &what,
                growing.reader(),
                Some(diff_id),
                &limits,
                None,
            );
            if made.is_err() {
                growing.abandon();
            }
            let downloaded = download.join().unwrap_or(Ok(false));
            match (downloaded, made) {
                (Err(e), _) | (Ok(_), Err(e)) => Err(e),
                (Ok(true), Ok(_)) => Ok(()),
                (Ok(false), Ok(_)) => Err(ImageError::corrupt(what, "its download ended early")),
            }
        })
    }
}

/// One blob on its way into its partial file.
struct Download<'a> {
    fetch: &'a Fetch<'a>,
    layer: &'a Descriptor,
    file: &'a File,
    growing: &'a Growing,
    sum: Sha256,
    at: u64,
    told: u64,
}

impl Download<'_> {
    /// False: the reader gave up, and says why.
    fn run(&mut self) -> Result<bool, ImageError> {
        self.rehash()?;
        let mut fruitless = 0;
        let mut progressed = Instant::now();
        while self.at < self.layer.size {
            let before = self.at;
            match self.stream() {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) if e.kind() != types::ErrorKind::Unavailable => return Err(e),
                Err(e) => {
                    fruitless = if self.at > before { 1 } else { fruitless + 1 };
                    if self.at > before {
                        progressed = Instant::now();
                    }
                    if fruitless >= ATTEMPTS || progressed.elapsed() > PATIENCE {
                        return Err(e);
                    }
                    self.fetch.tell(
                        self.layer,
                        LayerEvent::Retrying { attempt: fruitless + 1, reason: e.to_string() },
                    );
                    if !self.pause(Duration::from_millis(250 << fruitless)) {
                        return Err(e);
                    }
                }
            }
        }
        let found = Digest::from_sha256(std::mem::take(&mut self.sum).finalize().into());
        if found != self.layer.digest {
            let what = format!("a layer of {} from {}", self.fetch.name.familiar(), self.fetch.registry.host);
            return Err(ImageError::DigestMismatch { what, expected: self.layer.digest, found });
        }
        self.fetch.tell(self.layer, LayerEvent::DownloadComplete);
        Ok(true)
    }

    /// Waits, unless it is over meanwhile.
    fn pause(&self, time: Duration) -> bool {
        let step = Duration::from_millis(50);
        for _ in 0..time.as_millis() / step.as_millis() {
            if self.fetch.is_over() {
                return false;
            }
            std::thread::sleep(step);
        }
        true
    }

    /// Takes over what an earlier pull left.
    fn rehash(&mut self) -> Result<(), ImageError> {
        let path = || self.fetch.content.partial(&self.layer.digest);
        let fail = |e| ImageError::io("read", &path(), e);
        let len = self.file.metadata().map_err(fail)?.len();
        if len > self.layer.size {
            self.file.set_len(0).map_err(fail)?;
            return Ok(());
        }
        let mut buf = vec![0; CHUNK];
        while self.at < len {
            let n = self.file.read_at(&mut buf, self.at).map_err(fail)?;
            if n == 0 {
                break;
            }
            self.sum.update(&buf[..n]);
            self.at += n as u64;
            self.growing.advance(self.at);
        }
        Ok(())
    }

    /// One connection's worth of bytes.
    fn stream(&mut self) -> Result<bool, ImageError> {
        let registry = self.fetch.registry;
        let size = self.layer.size;
        let (reply, heeded) = registry.blob(self.fetch.name, &self.layer.digest, self.at)?;
        let mut skip = if heeded { 0 } else { self.at };
        let lies = |sent: u64| {
            let what = format!("layer {}", self.layer.digest.short());
            let reason =
                format!("{} sends {sent} bytes or more, the manifest announces {size}", registry.host);
            ImageError::corrupt(what, reason)
        };
        if let Some(len) = reply.body().content_length() {
            let total = len.saturating_add(self.at - skip);
            if total != size {
                let what = format!("layer {}", self.layer.digest.short());
                let reason = format!("{} has {total} bytes, the manifest announces {size}", registry.host);
                return Err(ImageError::corrupt(what, reason));
            }
        }
        let mut body = reply.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buf = vec![0; CHUNK];
        loop {
            if self.fetch.is_over() {
                return Err(registry.down(GIVEN_UP));
            }
            let n = match body.read(&mut buf) {
                Ok(0) if self.at == size => return Ok(true),
                Ok(0) => {
                    return Err(
                        registry.down(format!("the connection ended after {} of {size} bytes", self.at))
                    );
                }
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(crate::registry::read_error(&registry.host, e)),
            };
            let mut fresh = &buf[..n];
            let skipped = skip.min(n as u64);
            skip -= skipped;
            fresh = &fresh[skipped as usize..];
            if fresh.is_empty() {
                continue;
            }
            if self.at + fresh.len() as u64 > size {
                return Err(lies(self.at + fresh.len() as u64));
            }
            self.file
                .write_all_at(fresh, self.at)
                .map_err(|e| ImageError::io("write", &self.fetch.content.partial(&self.layer.digest), e))?;
            self.sum.update(fresh);
            self.at += fresh.len() as u64;
            if !self.growing.advance(self.at) {
                return Ok(false);
            }
            if self.at - self.told >= REPORT || self.at == size {
                self.told = self.at;
                self.fetch.tell(self.layer, LayerEvent::Downloading { done: self.at, total: size });
            }
        }
    }
}
