//! `commit`: a container's changes become a layer, and with its configuration an image.

use crate::merge::merge;
use crate::recover::Liveness;
use crate::request::CommitOptions;
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use sandbox::client::{Client, ClientError};
use std::io::Write;
use types::docker::ContainerConfig;
use types::{Digest, ImageHealth, ImageRef, ProcessDefaults, Status};

impl Engine {
    /// Makes an image of a container; returns its id.
    pub fn commit(&self, name: &str, options: &CommitOptions) -> Result<Digest> {
        let container = self.find(name)?;
        let reference =
            options.reference.as_deref().map(ImageRef::parse).transpose().map_err(image::ImageError::from)?;
        if container.is_vm() {
            // The host cannot freeze a guest and ask it for files: the guest freezes the workload.
            let id = self.with_guest(&container, |files| {
                let pack = |out: &mut dyn Write| Ok(files.layer(options.pause, out)?);
                self.commit_frozen(&container, options, reference.as_ref(), pack)
            })?;
            return Ok(self.note_commit(&container, options, id));
        }
        let live = self.liveness(&container)?;
        let freeze = options.pause && matches!(&live, Liveness::Supervised(s) if s.status == Status::Running);
        let mut client = if freeze { self.freeze(&container)? } else { None };
        let plan = self.rootfs_plan(&container);
        let made = plan.and_then(|plan| {
            let pack = |out: &mut dyn Write| Ok(rootfs::archive_changes(&plan, out)?);
            self.with_writable(&container, || {
                self.commit_frozen(&container, options, reference.as_ref(), pack)
            })
        });
        match client.as_mut().map_or(Ok(()), Client::resume) {
            // It was killed while it was frozen, and ends now.
            Ok(()) | Err(ClientError::Gone) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(self.note_commit(&container, options, made?))
    }

    /// Freezes it; the connection thaws it. None where it ends just now: then it holds still by itself.
    fn freeze(&self, container: &Container) -> Result<Option<Client>> {
        let frozen = self.client(container).and_then(|mut client| {
            client.hold().map_err(|e| self.refused(container, e))?;
            Ok(client)
        });
        match frozen {
            Ok(client) => Ok(Some(client)),
            Err(
                EngineError::NotRunning(_)
                | EngineError::Client(ClientError::Gone | ClientError::Connect { .. }),
            ) => {
                drop(self.settled(container)?);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn note_commit(&self, container: &Container, options: &CommitOptions, id: Digest) -> Digest {
        let comment = options.message.clone().unwrap_or_default();
        self.event(container, "commit", &[("comment", comment), ("imageID", id.to_string())]);
        id
    }

    fn commit_frozen(
        &self,
        container: &Container,
        options: &CommitOptions,
        reference: Option<&ImageRef>,
        pack: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
    ) -> Result<Digest> {
        let base = self.images.resolve(&container.image_id, None)?;
        let config = merge(options.config.clone(), &process_defaults(&container.config));
        let command =
            container.config.entrypoint.iter().flatten().chain(container.config.cmd.iter().flatten());
        let created_by = command.map(String::as_str).collect::<Vec<_>>().join(" ");
        let (mut reader, mut writer) = std::io::pipe().map_err(EngineError::io("pipe", "".as_ref()))?;
        // The layer is read and written at the same time: neither its size in memory nor a temporary copy is needed.
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                pack(&mut writer)?;
                writer.flush().map_err(EngineError::io("cannot write", "the layer".as_ref()))
            });
            let id = self.images.commit(image::CommitRequest {
                base: &base,
                layer_tar: &mut reader as &mut (dyn std::io::Read + Send),
                config: process_defaults(&config),
                author: options.author.as_deref().unwrap_or(""),
                created_by: &created_by,
                comment: options.message.as_deref().unwrap_or(""),
                changes: &options.changes,
                name: reference,
            });
            // Lets the packing thread end where the other side gave up early.
            drop(reader);
            match packing.join() {
                // The other side gave up early and says why; or it tells of a stream that was cut short by this side.
                Ok(Err(EngineError::Rootfs(rootfs::RootfsError::Output { source })))
                    if id.is_err() && source.kind() == std::io::ErrorKind::BrokenPipe => {}
                Ok(packed) => packed?,
                Err(_) => return Err(EngineError::Conflict("packing the container's changes failed".into())),
            }
            Ok(id?)
        })
    }
}

fn process_defaults(config: &ContainerConfig) -> ProcessDefaults {
    let keys = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|k| (k.clone(), serde_json::Value::Object(Default::default()))).collect()
    };
    ProcessDefaults {
        user: config.user.clone().unwrap_or_default(),
        exposed_ports: keys(&config.exposed_ports),
        env: config.env.clone().unwrap_or_default(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        volumes: keys(&config.volumes),
        working_dir: config.working_dir.clone().unwrap_or_default(),
        labels: config.labels.clone().unwrap_or_default().into_iter().collect(),
        stop_signal: config.stop_signal.clone(),
        stop_timeout: config.stop_timeout,
        healthcheck: config.healthcheck.as_ref().map(|h| ImageHealth {
            test: h.test.clone().unwrap_or_default(),
            interval: h.interval.unwrap_or(0),
            timeout: h.timeout.unwrap_or(0),
            start_period: h.start_period.unwrap_or(0),
            start_interval: h.start_interval.unwrap_or(0),
            retries: h.retries.unwrap_or(0),
        }),
        shell: config.shell.clone(),
        on_build: config.on_build.clone(),
        extra: Default::default(),
    }
}
