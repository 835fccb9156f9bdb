//! Push, login and logout. Blobs go out as they came in; what the registry has is skipped, what another of its
//! repositories has is mounted.

use crate::db::{self, BlobRow};
use crate::local;
use crate::manifest;
use crate::registry::{Access, Ask, Body, Payload, Registry, credentials};
use crate::{ImageError, ImageStore, LayerEvent, Progress};
use credentials::Credentials;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use types::{Digest, ImageRef};
use ureq::http::{Method, StatusCode};

/// Layers that are sent at once.
const PARALLEL: usize = 3;

/// How to push.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// How to reach the registry.
    pub access: Access,
}

/// What came of a push.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

impl ImageStore {
    /// Sends an image to the registry in its name.
    pub fn push(
        &self,
        name: &ImageRef,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Pushed, ImageError> {
        let tag = name.tag().ok_or_else(|| ImageError::Invalid("cannot push a digest reference".into()))?;
        let row = db::by_name(self.db.conn(), &db::key(name))?.ok_or_else(|| {
            ImageError::NotFound(format!("{} (only an image of that name can be pushed)", name.familiar()))
        })?;
        let lease = self.lease()?;
        let (bytes, kind, digest, blobs) = self.portable_manifest(&row.id)?;
        lease.hold(blobs.iter().map(|b| &b.digest))?;
        let registry = Registry::connect(name.registry(), &options.access)?;
        let mut origins = Vec::new();
        for blob in &blobs {
            let mut from = db::origins(self.db.conn(), &blob.digest, name.registry())?;
            from.retain(|r| r != name.repository());
            origins.push(from);
        }
        let scope = format!("repository:{}:pull,push", name.repository());
        let out = Upload { registry: &registry, name, scope: &scope, store: &self.content, progress };
        out.layers(&blobs, &origins)?;
        out.bytes(&row.id, &row.config)?;
        out.manifest(tag, &bytes, &kind)?;
        self.db.write(|tx| {
            db::add_origin(tx, &blobs, name)?;
            db::add_repo_digest(tx, name, &digest, &row.id)
        })?;
        let size = bytes.len() as u64;
        progress.status(&format!("{tag}: digest: {digest} size: {size}"));
        Ok(Pushed { digest, size })
    }

    /// The manifest under which an image can leave, and its blobs: its own if these are the blobs that it names,
    /// else one that names them.
    pub(crate) fn portable_manifest(
        &self,
        id: &Digest,
    ) -> Result<(Vec<u8>, String, Digest, Vec<BlobRow>), ImageError> {
        let blobs = db::blobs(self.db.conn(), id)?;
        let (bytes, kind, digest) = db::manifest(self.db.conn(), id)?;
        let named = match manifest::parse(&bytes, None, "the stored manifest")? {
            manifest::Document::Manifest(m) => m.layers,
            manifest::Document::Index(_) => Vec::new(),
        };
        if named.iter().map(|l| &l.digest).eq(blobs.iter().map(|b| &b.digest)) {
            return Ok((bytes, kind, digest, blobs));
        }
        let config = db::by_prefix(self.db.conn(), &id.hex())?.pop();
        let config = config.ok_or_else(|| ImageError::NotFound(id.to_string()))?.config;
        let bytes = manifest::compose(&config, local::descriptors(&blobs));
        let digest = manifest::digest_of(&bytes);
        Ok((bytes, manifest::OCI_MANIFEST.to_owned(), digest, blobs))
    }
}

/// Verifies credentials with a registry and remembers them. Answers where they are kept.
pub fn login(registry: &str, user: &str, password: &str, access: &Access) -> Result<String, ImageError> {
    let credentials = Credentials::Password { user: user.to_owned(), password: password.to_owned() };
    let access = Access { credentials: Some(credentials), ..access.clone() };
    Registry::connect(registry, &access)?.verify_login()?;
    credentials::store(registry, user, password)
}

/// Asks a registry whether it takes the credentials of `access`.
pub fn verify_login(registry: &str, access: &Access) -> Result<(), ImageError> {
    Registry::connect(registry, access)?.verify_login()
}

/// Forgets the credentials for a registry. False: there were none.
pub fn logout(registry: &str) -> Result<bool, ImageError> {
    credentials::erase(registry)
}

struct Upload<'a> {
    registry: &'a Registry,
    name: &'a ImageRef,
    scope: &'a str,
    store: &'a crate::content::Content,
    progress: &'a dyn Progress,
}

impl Upload<'_> {
    fn layers(&self, blobs: &[BlobRow], origins: &[Vec<String>]) -> Result<(), ImageError> {
        let mut seen = HashSet::new();
        let jobs: Vec<_> = blobs.iter().zip(origins).filter(|(b, _)| seen.insert(b.digest)).collect();
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<ImageError>> = Mutex::new(None);
        let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::scope(|s| {
            for _ in 0..jobs.len().min(PARALLEL) {
                s.spawn(|| {
                    while let Some((blob, origins)) = jobs.get(next.fetch_add(1, Relaxed)) {
                        if !self.progress.is_wanted() {
                            lock().get_or_insert(self.registry.down("the push was given up"));
                        }
                        if lock().is_some() {
                            return;
                        }
                        if let Err(e) = self.layer(blob, origins) {
                            lock().get_or_insert(e);
                        }
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn layer(&self, blob: &BlobRow, origins: &[String]) -> Result<(), ImageError> {
        let short = blob.diff_id.short();
        if self.has(&blob.digest)? {
            self.progress.layer(&short, LayerEvent::LayerExists);
            return Ok(());
        }
        for from in origins {
            if self.mount(&blob.digest, from)? {
                self.progress.layer(&short, LayerEvent::Mounted(from.clone()));
                return Ok(());
            }
        }
        if self.store.size(&blob.digest) != Some(blob.size) {
            let reason = "it is gone or cut short; pull or load the image again";
            return Err(ImageError::corrupt(format!("the stored blob of layer {short}"), reason));
        }
        let body = BlobBody { upload: self, blob, short: &short };
        let place = self.start()?;
        self.finish(&blob.digest, &place, Payload::File(&body, blob.size))?;
        self.progress.layer(&short, LayerEvent::Pushed);
        Ok(())
    }

    fn bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        if self.has(digest)? {
            return Ok(());
        }
        let place = self.start()?;
        self.finish(digest, &place, Payload::Bytes(bytes))
    }

    fn has(&self, digest: &Digest) -> Result<bool, ImageError> {
        let place = format!("/v2/{}/blobs/{digest}", self.name.repository());
        let reply = self.registry.send_patiently(&Method::HEAD, &place, &Ask::new(self.scope))?;
        match reply.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(reply)),
        }
    }

    /// Asks for a blob of another repository. A registry that does not want to opens an upload instead, which
    /// ends by itself.
    fn mount(&self, digest: &Digest, from: &str) -> Result<bool, ImageError> {
        let repository = self.name.repository();
        let place = format!("/v2/{repository}/blobs/uploads/?mount={digest}&from={from}");
        let scope = format!("{} repository:{from}:pull", self.scope);
        let ask = Ask { payload: Payload::Bytes(&[]), ..Ask::new(&scope) };
        // The token may be refused for the other repository; then it is sent.
        Ok(self.registry.send(&Method::POST, &place, &ask).is_ok_and(|r| r.status() == StatusCode::CREATED))
    }

    fn start(&self) -> Result<String, ImageError> {
        let place = format!("/v2/{}/blobs/uploads/", self.name.repository());
        let ask = Ask { payload: Payload::Bytes(&[]), ..Ask::new(self.scope) };
        let reply = self.registry.send(&Method::POST, &place, &ask)?;
        if reply.status() != StatusCode::ACCEPTED {
            return Err(self.refused(reply));
        }
        let to = reply.headers().get("location").and_then(|l| l.to_str().ok());
        to.map(|l| self.registry.place(l))
            .ok_or_else(|| self.registry.wrong("it names no place for an upload"))
    }

    fn finish(&self, digest: &Digest, place: &str, payload: Payload<'_>) -> Result<(), ImageError> {
        let sign = if place.contains('?') { '&' } else { '?' };
        let headers = [("content-type", "application/octet-stream")];
        let ask = Ask { headers: &headers, payload, ..Ask::new(self.scope) };
        let reply = self.registry.send(&Method::PUT, &format!("{place}{sign}digest={digest}"), &ask)?;
        if reply.status() == StatusCode::CREATED { Ok(()) } else { Err(self.refused(reply)) }
    }

    fn manifest(&self, tag: &str, bytes: &[u8], kind: &str) -> Result<(), ImageError> {
        let place = format!("/v2/{}/manifests/{tag}", self.name.repository());
        let headers = [("content-type", kind)];
        let ask = Ask { headers: &headers, payload: Payload::Bytes(bytes), ..Ask::new(self.scope) };
        let reply = self.registry.send_patiently(&Method::PUT, &place, &ask)?;
        if reply.status() == StatusCode::CREATED { Ok(()) } else { Err(self.refused(reply)) }
    }

    fn refused(&self, reply: crate::registry::Reply) -> ImageError {
        let refusal = self.registry.refusal(reply);
        match refusal.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ImageError::PushDenied {
                repository: self.name.familiar_name(),
                registry: self.registry.host.clone(),
                reason: match refusal.message.as_str() {
                    "" => "requested access to the resource is denied".into(),
                    said => said.to_owned(),
                },
            },
            _ => self.registry.unexpected(&refusal, "the upload"),
        }
    }
}

/// A blob as the body of a request.
struct BlobBody<'a> {
    upload: &'a Upload<'a>,
    blob: &'a BlobRow,
    short: &'a str,
}

impl Body for BlobBody<'_> {
    fn open(&self) -> Result<Box<dyn Read + '_>, ImageError> {
        Ok(Box::new(Sending {
            inner: self.upload.store.open(&self.blob.digest)?,
            done: 0,
            told: 0,
            total: self.blob.size,
            short: self.short,
            progress: self.upload.progress,
        }))
    }
}

/// Tells how far a blob was sent.
struct Sending<'a> {
    inner: File,
    done: u64,
    told: u64,
    total: u64,
    short: &'a str,
    progress: &'a dyn Progress,
}

impl Read for Sending<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.progress.is_wanted() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let n = self.inner.read(buf)?;
        self.done += n as u64;
        if self.done - self.told >= 1 << 20 || self.done == self.total {
            self.told = self.done;
            self.progress.layer(self.short, LayerEvent::Pushing { done: self.done, total: self.total });
        }
        Ok(n)
    }
}
