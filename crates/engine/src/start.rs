//! `start`: from a row in the database to a supervised process. This is the hot path of `run`.

use crate::recover::Liveness;
use crate::spec::{self, invalid};
use crate::store::{self, Container};
use crate::volumes::Marks;
use crate::{Engine, EngineError, Result, config, signals};
use sandbox::client::{AttachOptions, Launch, Stream};
use std::collections::HashMap;
use sys::file::Lock;
use types::{Bundle, ContainerId, LayerPlan, NetworkPlan, RootfsPlan};

impl Engine {
    /// Starts a container. With `attach`, its streams come back, complete from their first byte. One that runs already
    /// is left alone (and attached to).
    pub fn start(&self, name: &str, attach: Option<AttachOptions>) -> Result<Option<Stream>> {
        let container = store::find(&self.db, name)?;
        self.start_container(&container, attach)
    }

    pub(crate) fn start_container(
        &self,
        container: &Container,
        attach: Option<AttachOptions>,
    ) -> Result<Option<Stream>> {
        let lock = match self.settled(container)? {
            Liveness::Supervised(state) if state.status == types::Status::Paused => {
                return Err(EngineError::Conflict(
                    "cannot start a paused container, try unpause instead".into(),
                ));
            }
            Liveness::Supervised(_) => {
                return attach
                    .map(|options| {
                        self.client(container)?.attach(options).map_err(|e| self.refused(container, e))
                    })
                    .transpose();
            }
            Liveness::Ended(_, lock) => lock,
        };
        self.warn_overcommit(container)?;
        let mut marks = Marks::default();
        let started = self.launch(container, lock, attach, &mut marks);
        if started.is_err() {
            self.take_back(container, marks);
        }
        started
    }

    fn launch(
        &self,
        container: &Container,
        lock: Lock,
        attach: Option<AttachOptions>,
        marks: &mut Marks,
    ) -> Result<Option<Stream>> {
        let bundle = self.bundle(container, marks)?;
        self.write_bundle(&bundle)?;
        let (launch, socket) = Launch::new(attach)?;
        crate::supervise::spawn(&self.paths, &container.id, socket, lock, false)?;
        match launch.started() {
            Ok((_pid, stream)) => Ok(stream),
            Err(e) => Err(crate::lifecycle::failed_start(e)),
        }
    }

    /// All that a supervisor needs, decided now.
    fn bundle(&self, container: &Container, marks: &mut Marks) -> Result<Bundle> {
        let mut machine = self.machine_plan(container)?;
        let mounts = &container.mounts[..];
        self.prepare_volumes(container)?;
        self.make_writable(container)?;
        let volumes = self.volume_plans(container)?;
        self.admit_disks(container, &volumes, marks)?;
        if let Some(machine) = &mut machine {
            machine.volumes = volumes.iter().filter(|v| v.disk().is_some()).cloned().collect();
        }
        let network = self.plan_network(container)?;
        if let Some(machine) = &mut machine {
            machine.spare_interfaces = crate::machine::spare_interfaces(&network);
        }
        let joined = self.joined(container)?;
        let other = match &network {
            NetworkPlan::Container(id) => ContainerId::parse(id).ok(),
            _ => None,
        };
        let cx = spec::Context {
            container,
            mounts,
            volumes: &volumes,
            paths: &self.paths,
            joined: &joined,
            names_of: other.as_ref().unwrap_or(&container.id),
            user_ids: self.user_ids(container)?,
        };
        let mut spec = spec::build(&cx)?.spec;
        let copy_up: Vec<_> = mounts
            .iter()
            .filter(|m| m.kind == crate::mounts::Kind::Volume && !m.no_copy && m.subpath.is_empty())
            .map(|m| m.target.to_string_lossy())
            .collect();
        if !copy_up.is_empty() {
            spec.annotations_mut()
                .get_or_insert_default()
                .insert(types::COPY_UP.into(), store::json(&copy_up));
        }
        let rootfs = self.rootfs_plan(container)?;
        self.paths.ensure_sandbox(&container.id)?;
        if machine.is_none() {
            rootfs::prepare(&rootfs)?;
        }
        if other.is_none() {
            self.write_name_files(container, &spec::hostname(&cx), &network)?;
        }
        Ok(Bundle {
            id: container.id.clone(),
            name: container.name.clone(),
            image: container.image.clone(),
            labels: container.config.labels.clone().unwrap_or_default().into_iter().collect(),
            spec,
            rootfs,
            machine,
            volumes,
            network,
            name_servers: crate::network::names::servers(container)?,
            cgroup: self.cgroup(container)?,
            open_stdin: container.config.open_stdin.unwrap_or(false),
            stdin_once: container.config.stdin_once.unwrap_or(false),
            init: container.host.init.unwrap_or(false),
            console_size: match container.host.console_size.as_deref() {
                Some(&[rows, columns]) => u16::try_from(rows).ok().zip(u16::try_from(columns).ok()),
                _ => None,
            },
            restart: config::restart_policy(&container.host)?,
            auto_remove: container.host.auto_remove.unwrap_or(false),
            stop_signal: signals::stop_signal(&container.config)?,
            stop_timeout: container.config.stop_timeout.unwrap_or(10),
            health: config::health_check(&container.config)?,
            log: config::log_config(container)?,
        })
    }

    pub(crate) fn write_bundle(&self, bundle: &Bundle) -> Result<()> {
        let path = self.paths.bundle(&bundle.id);
        let io = EngineError::io("cannot write", &path);
        serde_json::to_vec(bundle)
            .map_err(Into::into)
            .and_then(|json| sys::file::replace(&path, &json, false))
            .map_err(io)
    }

    pub(crate) fn read_bundle(&self, id: &ContainerId) -> Result<Bundle> {
        let path = self.paths.bundle(id);
        let json = std::fs::read(&path).map_err(EngineError::io("cannot read", &path))?;
        serde_json::from_slice(&json).map_err(|source| EngineError::Stored {
            what: "bundle",
            id: id.to_string(),
            source,
        })
    }

    /// Layers of the container's image and the directory of its changes.
    pub(crate) fn rootfs_plan(&self, container: &Container) -> Result<RootfsPlan> {
        let image = self.images.resolve(&container.image_id, None)?;
        let disk = self.writable_plan(container)?;
        Ok(RootfsPlan {
            layers: image
                .layers
                .into_iter()
                .map(|l| LayerPlan { diff_id: l.diff_id, path: l.path, format: l.format })
                .collect(),
            writable: disk.map_or_else(|| self.paths.sandbox(&container.id), |disk| disk.mountpoint()),
            layer_mounts: self.paths.layer_mounts(),
        })
    }

    /// `/dhow/<id>`, below the parent that `--cgroup-parent` names; stores other than the default one have their own.
    pub(crate) fn cgroup(&self, container: &Container) -> Result<String> {
        let own = self.cgroup_parent();
        let parent = container.host.cgroup_parent.as_deref().unwrap_or("").trim_matches('/');
        if parent.split('/').any(|p| p == ".." || p == ".") {
            return Err(invalid(format!(
                "invalid cgroup parent {parent:?}: it must not contain '.' or '..'"
            )));
        }
        Ok(if parent.is_empty() {
            format!("/{own}/{}", container.id)
        } else {
            format!("/{parent}/{}", container.id)
        })
    }

    /// The group that holds those of this store's containers.
    pub(crate) fn cgroup_parent(&self) -> String {
        let tag = self.paths.tag();
        if tag.is_empty() { "dhow".to_owned() } else { format!("dhow-{tag}") }
    }

    /// Pids of the running containers that this one joins.
    fn joined(&self, container: &Container) -> Result<HashMap<String, i32>> {
        crate::network::joined_names(container)
            .into_iter()
            .map(|name| {
                let other = store::find(&self.db, &name)?;
                other.refuse_vm("its namespaces")?;
                match self.liveness(&other)? {
                    Liveness::Supervised(state) if state.pid > 0 => Ok((name, state.pid)),
                    _ => Err(EngineError::Conflict(format!(
                        "cannot join the namespaces of {name}: it is not running"
                    ))),
                }
            })
            .collect()
    }

    /// `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
    fn write_name_files(&self, container: &Container, hostname: &str, network: &NetworkPlan) -> Result<()> {
        let dir = self.paths.sandbox(&container.id);
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            use std::io::Write;
            use std::os::unix::fs::OpenOptionsExt;
            // Written in place: a container that is started again has this very file mounted by its path.
            let file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path);
            file.and_then(|mut f| f.write_all(text.as_bytes()))
                .map_err(EngineError::io("cannot write", &path))
        };
        write("hostname", format!("{hostname}\n"))?;
        write("hosts", crate::network::names::hosts(container, hostname, network)?)?;
        write("resolv.conf", crate::network::names::resolv_conf(container, network)?)
    }

    /// One warning where the memory limits of what runs add up to more than the host has.
    fn warn_overcommit(&self, container: &Container) -> Result<()> {
        let Some(limit) = container.host.memory.filter(|m| *m > 0) else { return Ok(()) };
        let sql = "SELECT id, json_extract(host, '$.Memory') FROM containers WHERE json_extract(host, '$.Memory') > 0";
        let mut statement = self.db.conn().prepare_cached(sql)?;
        let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?)))?;
        let mut total = i128::from(limit);
        for row in rows {
            let (id, memory) = row?;
            let Ok(id) = types::ContainerId::parse(&id) else { continue };
            if id != container.id && self.read_state(&id).status.is_active() {
                total += i128::from(memory);
            }
        }
        let host = sandbox::container::cgroup::host_memory();
        if host > 0 && total > i128::from(host) {
            eprintln!(
                "WARNING: the memory limits of the running containers and of {} add up to {}, this host has {}",
                container.name,
                types::units::binary_size(total as f64),
                types::units::binary_size(host as f64)
            );
        }
        Ok(())
    }
}
