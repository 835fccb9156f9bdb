//! `image inspect`, `history` and the images' part of `system df`.

use crate::db;
use crate::{ImageError, ImageStore};
use std::collections::{HashMap, HashSet};
use types::docker::{
    DriverData, HealthConfig, ImageConfig as DockerConfig, ImageHistoryResponseItem, ImageInspect,
    ImageInspectMetadata, ImageInspectRootFs,
};
use types::{ImageConfig, ImageRef, LayerFormat, ProcessDefaults};

/// What images take on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Images.
    pub images: usize,
    /// Bytes of layers and blobs.
    pub bytes: u64,
    /// Bytes of layers and blobs of images that are not in `active`.
    pub reclaimable: u64,
}

impl ImageStore {
    /// Everything about one image, as Docker words it.
    pub fn inspect(&self, name: &str) -> Result<ImageInspect, ImageError> {
        let image = self.resolve(name, None)?;
        let row = self.find(&image.id.to_string())?;
        let history = image.config.history.last();
        let extra = |k: &str| image.config.extra.get(k).and_then(|v| v.as_str()).map(str::to_owned);
        let format = image.layers.first().map_or(LayerFormat::Erofs, |l| l.format);
        let driver = match format {
            LayerFormat::Erofs => "erofs",
            LayerFormat::Dir => "overlay2",
        };
        // Overlayfs counts from the top.
        let paths: Vec<String> = image.layers.iter().rev().map(|l| l.path.display().to_string()).collect();
        let tagged = db::last_tag(self.db.conn(), &image.id)?;
        Ok(ImageInspect {
            id: Some(image.id.to_string()),
            repo_tags: Some(image.refs.iter().map(ImageRef::familiar).collect()),
            repo_digests: Some(image.repo_digests.iter().map(ImageRef::familiar).collect()),
            comment: Some(history.and_then(|h| h.comment.clone()).unwrap_or_default()),
            created: image.config.created.clone(),
            author: Some(image.config.author.clone().unwrap_or_default()),
            config: Some(docker_config(&image.config.config)),
            architecture: Some(image.config.architecture.clone()),
            variant: image.config.variant.clone(),
            os: Some(image.config.os.clone()),
            os_version: extra("os.version"),
            size: Some(row.size as i64),
            graph_driver: Some(DriverData {
                name: driver.to_owned(),
                data: HashMap::from([("LowerDir".to_owned(), paths.join(":"))]),
            }),
            root_fs: Some(ImageInspectRootFs {
                typ: "layers".into(),
                layers: Some(image.layers.iter().map(|l| l.diff_id.to_string()).collect()),
            }),
            metadata: Some(ImageInspectMetadata { last_tag_time: tagged.map(types::units::rfc3339) }),
            ..Default::default()
        })
    }

    /// How an image came to be, newest first.
    pub fn history(&self, name: &str) -> Result<Vec<ImageHistoryResponseItem>, ImageError> {
        let image = self.resolve(name, None)?;
        let mut layers = image.layers.iter();
        let mut out: Vec<ImageHistoryResponseItem> = Vec::new();
        for entry in &image.config.history {
            let size = if entry.empty_layer { 0 } else { layers.next().map_or(0, |l| l.content_size) };
            out.push(item(
                entry.created.as_deref(),
                entry.created_by.clone().unwrap_or_default(),
                entry.comment.clone().unwrap_or_default(),
                size,
            ));
        }
        // Some builders write no history.
        out.extend(
            layers
                .map(|l| item(image.config.created.as_deref(), String::new(), String::new(), l.content_size)),
        );
        out.reverse();
        if let Some(first) = out.first_mut() {
            first.id = image.id.to_string();
            first.tags = image.refs.iter().map(ImageRef::familiar).collect();
        }
        Ok(out)
    }

    /// Bytes on the disk. `active` are the ids that containers use.
    pub fn disk_usage(&self, active: &HashSet<types::Digest>) -> Result<DiskUsage, ImageError> {
        let rows = db::all(self.db.conn())?;
        let mut needed: HashSet<types::Digest> = HashSet::new();
        for row in rows.iter().filter(|r| active.contains(&r.id)) {
            needed.extend(db::blobs(self.db.conn(), &row.id)?.iter().flat_map(|b| [b.digest, b.diff_id]));
        }
        let mut usage = DiskUsage { images: rows.len(), ..Default::default() };
        let layers = self.layers.list().into_iter().filter_map(|d| Some((d, self.layers.get(&d)?.size)));
        let blobs = self.content.list().into_iter().filter_map(|d| Some((d, self.content.size(&d)?)));
        for (digest, size) in layers.chain(blobs) {
            usage.bytes += size;
            if !needed.contains(&digest) {
                usage.reclaimable += size;
            }
        }
        Ok(usage)
    }

    /// The configuration document of an image, as it came.
    pub fn raw_config(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        Ok(self.find(name)?.config)
    }

    /// The parsed configuration of an image, without its layers.
    pub fn config_of(&self, name: &str) -> Result<ImageConfig, ImageError> {
        let row = self.find(name)?;
        serde_json::from_slice(&row.config)
            .map_err(|e| ImageError::corrupt(format!("the configuration of {name}"), e.to_string()))
    }
}

fn item(created: Option<&str>, created_by: String, comment: String, size: u64) -> ImageHistoryResponseItem {
    ImageHistoryResponseItem {
        id: "<missing>".into(),
        created: created.and_then(types::units::parse_rfc3339).unwrap_or(0).div_euclid(1_000_000_000),
        created_by,
        tags: Vec::new(),
        size: size as i64,
        comment,
    }
}

fn docker_config(c: &ProcessDefaults) -> DockerConfig {
    let text = |s: &String| (!s.is_empty()).then(|| s.clone());
    let keys = |m: &std::collections::BTreeMap<String, serde_json::Value>| {
        (!m.is_empty()).then(|| m.keys().cloned().collect::<Vec<_>>())
    };
    DockerConfig {
        user: Some(c.user.clone()),
        exposed_ports: keys(&c.exposed_ports),
        env: Some(c.env.clone()),
        cmd: c.cmd.clone(),
        healthcheck: c.healthcheck.as_ref().map(|h| HealthConfig {
            test: Some(h.test.clone()),
            interval: Some(h.interval),
            timeout: Some(h.timeout),
            retries: Some(h.retries),
            start_period: Some(h.start_period),
            start_interval: Some(h.start_interval),
        }),
        volumes: keys(&c.volumes),
        working_dir: text(&c.working_dir),
        entrypoint: c.entrypoint.clone(),
        on_build: c.on_build.clone(),
        labels: (!c.labels.is_empty()).then(|| c.labels.clone().into_iter().collect()),
        stop_signal: c.stop_signal.clone(),
        shell: c.shell.clone(),
        ..Default::default()
    }
}
