//! Layers on their way: one blob each, downloaded, hashed, and made a layer meanwhile.

use super::{GIVEN_UP, row};
use crate::content::{CHUNK, Content, Growing, Hashing};
use crate::db::BlobRow;
use crate::layer::{LayerLimits, LayerStore};
use crate::manifest::Descriptor;
use crate::registry::Registry;
use crate::{ImageError, LayerEvent, Progress, unpack};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use types::{Digest, ImageRef, Kinded};

/// Layers that are fetched at once.
const PARALLEL: usize = 3;
/// Attempts in a row that bring no byte.
const ATTEMPTS: u32 = 5;
/// For so long a registry may be asked again and again without a byte.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes between two reports.
const REPORT: u64 = 512 << 10;

/// What the threads share. No database: that stays with the thread that opened it.
pub(super) struct Fetch<'a> {
    pub registry: &'a Registry,
    pub name: &'a ImageRef,
    pub content: &'a Content,
    pub layers: &'a LayerStore,
    pub limits: &'a LayerLimits,
    pub progress: &'a dyn Progress,
    pub stop: AtomicBool,
}

impl Fetch<'_> {
    /// Fetches all, some at a time.
    pub fn all(&self, jobs: &[(&Descriptor, &Digest)]) -> Result<Vec<BlobRow>, ImageError> {
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
