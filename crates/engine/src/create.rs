//! `create`: from a request to a row in the database.

use crate::ids::new_id;
use crate::mounts::{self, UserMount};
use crate::request::{CreateRequest, Created, PullPolicy};
use crate::spec::invalid;
use crate::store::{self, Container};
use crate::{Engine, EngineError, Result, config, merge, names};
use image::{Image, ImageError, Progress};
use std::collections::HashMap;
use types::docker::{ContainerConfig, HostConfig};
use types::{ImageRef, RestartPolicy};

/// Attempts at a made-up name before giving up.
const NAME_ATTEMPTS: u32 = 50;

/// Most bytes of a container's configuration, as it is stored.
const LARGEST: usize = 512 << 10;

impl Engine {
    /// Creates a container: fetches its image if need be, checks all that can be checked, and remembers it.
    pub fn create(&self, request: CreateRequest, progress: &dyn Progress) -> Result<Created> {
        if let Some(name) = &request.name
            && !names::is_valid(name)
        {
            return Err(EngineError::Invalid(format!(
                "invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )));
        }
        refuse_unsupported(&request.host)?;
        let image = self.image_for(&request, progress)?;
        let mut warnings = Vec::new();
        if request.platform.is_none() && !types::Platform::host().accepts(&image.platform) {
            let host = types::Platform::host();
            warnings.push(format!(
                "the image's platform ({}) is not this host's ({host}), and no platform was asked for",
                image.platform
            ));
        }
        let mut config = merge::merge(request.config, &image.config.config);
        config.image = Some(request.image.clone());
        let mut host = request.host;
        fill_in(&mut host);
        let mut mounts = self.mounts_of(&config, &host)?;
        mounts.iter_mut().for_each(|mount| mount.confine(&request.beneath));
        let mut container = Container {
            id: new_id()?,
            name: request.name.clone().unwrap_or_default(),
            created_ns: sys::host::now_ns(),
            image_id: image.id.to_string(),
            image: request.image,
            config,
            host,
            mounts,
        };
        refuse_large(&container)?;
        self.check(&container, &mut warnings)?;
        let endpoints = self.new_endpoints(&container, request.networks)?;
        self.commit_new(&mut container, &endpoints, &image, request.name.is_none())?;
        self.event(&container, "create", &[]);
        Ok(Created { id: container.id, warnings })
    }

    /// Fetches an image unless it is there.
    pub fn ensure_image(&self, image: &str, progress: &dyn Progress) -> Result<()> {
        let request = CreateRequest { image: image.to_owned(), ..CreateRequest::default() };
        self.image_for(&request, progress).map(drop)
    }

    /// The image, fetched as the policy says.
    fn image_for(&self, request: &CreateRequest, progress: &dyn Progress) -> Result<Image> {
        let platform = request.platform.as_ref();
        let local = || self.images.resolve(&request.image, platform);
        if request.pull != PullPolicy::Always {
            match local() {
                Err(ImageError::NotFound(_) | ImageError::Platform { .. })
                    if self.is_embedded(&request.image) =>
                {
                    return Ok(self.images.ensure_hello(self.hello)?);
                }
                Err(ImageError::NotFound(_) | ImageError::Platform { .. })
                    if request.pull == PullPolicy::Missing => {}
                other => return Ok(other?),
            }
            progress.status(&format!("Unable to find image '{}' locally", familiar(&request.image)));
        } else if self.is_embedded(&request.image) {
            return Ok(self.images.ensure_hello(self.hello)?);
        }
        let reference = ImageRef::parse(&request.image).map_err(ImageError::from)?;
        let access = image::registry::Access { insecure: insecure_registries(), ..Default::default() };
        let options = image::PullOptions { platform: request.platform.clone(), access };
        Ok(self.images.pull(&reference, &options, progress)?.image)
    }

    /// Whether this is the image that is embedded in the program.
    pub fn is_embedded(&self, name: &str) -> bool {
        !self.hello.is_empty() && matches!(name, image::HELLO | "hello:latest")
    }

    fn mounts_of(&self, config: &ContainerConfig, host: &HostConfig) -> Result<Vec<UserMount>> {
        let mut from = Vec::new();
        for spec in host.volumes_from.iter().flatten() {
            let (name, mode) = spec.split_once(':').unwrap_or((spec, "rw"));
            if !matches!(mode, "ro" | "rw" | "z" | "Z") {
                return Err(invalid(format!("invalid mode {mode:?} of --volumes-from {spec:?}")));
            }
            for mut mount in store::find(&self.db, name)?.mounts {
                mount.read_only |= mode == "ro";
                from.push(mount);
            }
        }
        let mut new_name = || Ok(new_id()?.as_str().to_owned());
        let mut all = mounts::gather(config, host, from, &self.paths, &mut new_name)?;
        for mount in all.iter_mut().filter(|m| m.kind == mounts::Kind::Image) {
            mount.volume = self.images.id(&mount.volume)?.to_string();
        }
        Ok(all)
    }

    /// Builds what a start would build, so that a wrong request fails now and not at the start.
    fn check(&self, container: &Container, warnings: &mut Vec<String>) -> Result<()> {
        config::log_config(container)?;
        let restart = config::restart_policy(&container.host)?;
        crate::signals::stop_signal(&container.config)?;
        crate::config::health_check(&container.config)?;
        crate::network::check(container)?;
        crate::users::check(&container.host)?;
        crate::machine::check(container)?;
        self.cgroup(container)?;
        crate::spec::resources_of(&container.host)?;
        crate::spec::arguments(&container.config)?;
        if let Some(bad) = container.config.env.iter().flatten().find(|e| e.is_empty() || e.starts_with('='))
        {
            return Err(invalid(format!("invalid environment variable: {bad}")));
        }
        if let Some(dir) = container.config.working_dir.as_deref().filter(|d| !d.is_empty())
            && !dir.starts_with('/')
        {
            return Err(invalid(format!(
                "the working directory {dir:?} is invalid, it needs to be an absolute path"
            )));
        }
        if let Some(name) = container.config.hostname.as_deref().filter(|h| !h.is_empty())
            && (name.len() > 64 || name.contains(['/', '\0', ' ', '\n']))
        {
            return Err(invalid(format!("invalid hostname {name:?}: at most 64 bytes of a host name")));
        }
        if container.host.auto_remove.unwrap_or(false) && restart != RestartPolicy::No {
            return Err(EngineError::Invalid(
                "conflicting options: cannot specify both --restart and --rm".into(),
            ));
        }
        // Two things that are checked for their errors and warnings only, where nothing of other containers is needed.
        if crate::network::joined_names(container).is_empty() {
            let cx = crate::spec::Context {
                container,
                mounts: &[],
                volumes: &[],
                paths: &self.paths,
                joined: &HashMap::new(),
                names_of: &container.id,
                user_ids: Some(crate::users::FIRST_ID),
            };
            warnings.extend(crate::spec::build(&cx)?.warnings);
        }
        Ok(())
    }

    /// Commits the container with its places on networks and its volumes; finds a free name if none was given.
    fn commit_new(
        &self,
        container: &mut Container,
        endpoints: &[crate::network::Endpoint],
        image: &Image,
        made_up: bool,
    ) -> Result<()> {
        for attempt in 0..NAME_ATTEMPTS {
            if made_up {
                let random = sys::host::random().map_err(EngineError::io("getrandom", "".as_ref()))?;
                container.name = names::made_up(random, attempt);
            }
            let done = self.db.write(|tx| {
                // It may have been removed since it was resolved; within this transaction it cannot be.
                self.images.id(&image.id.to_string())?;
                for mount in container.mounts.iter().filter(|m| m.kind == mounts::Kind::Image) {
                    self.images.id(&mount.volume)?;
                }
                container.insert(tx)?;
                endpoints.iter().try_for_each(|e| e.insert(tx))?;
                crate::volumes::claim(self, tx, container)
            });
            match done {
                Err(EngineError::NameInUse { .. }) if made_up => {}
                Ok(new) => {
                    for volume in new {
                        self.volume_event("create", &self.volume_row(&volume)?);
                    }
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        Err(EngineError::Conflict("no free name was found: give one with --name".into()))
    }
}

/// Registries that are spoken to without TLS, beyond those on this host: `DHOW_INSECURE_REGISTRIES`, separated by
/// commas.
pub fn insecure_registries() -> Vec<String> {
    let variable = std::env::var("DHOW_INSECURE_REGISTRIES").unwrap_or_default();
    variable.split(',').map(|r| r.trim().to_owned()).filter(|r| !r.is_empty()).collect()
}

fn familiar(name: &str) -> String {
    ImageRef::parse(name).map_or_else(|_| name.to_owned(), |r| r.familiar())
}

/// What lists and events tell of a container they tell to each who asks.
fn refuse_large(container: &Container) -> Result<()> {
    let length = store::json(&container.config).len() + store::json(&container.host).len();
    match length > LARGEST {
        true => Err(EngineError::Invalid(format!(
            "the container's configuration has {length} bytes: at most {LARGEST} are kept"
        ))),
        false => Ok(()),
    }
}

fn refuse_unsupported(host: &HostConfig) -> Result<()> {
    match host.runtime.as_deref().unwrap_or("") {
        "" | "runc" | "io.containerd.runc.v2" | "dhow" | "container" | "vm" | crate::machine::RUNTIME => {}
        other => return Err(EngineError::Invalid(format!("unknown or invalid runtime name: {other}"))),
    }
    if host.links.as_ref().is_some_and(|l| !l.is_empty()) {
        return Err(EngineError::Unsupported(
            "--link is not supported: use the address or --add-host".into(),
        ));
    }
    if host.device_requests.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(EngineError::Unsupported(
            "--gpus is not supported: give the device nodes with --device".into(),
        ));
    }
    Ok(())
}

/// Defaults that `inspect` shows.
fn fill_in(host: &mut HostConfig) {
    let mode = host.network_mode.get_or_insert_with(|| "bridge".into());
    if matches!(mode.as_str(), "" | "default") {
        *mode = "bridge".into();
    }
    host.ipc_mode.get_or_insert_with(|| "private".into());
    host.cgroupns_mode.get_or_insert(types::docker::HostConfigCgroupnsModeEnum::PRIVATE);
    host.shm_size.get_or_insert(64 << 20);
    let runtime = host.runtime.get_or_insert_default();
    match runtime.as_str() {
        "" => *runtime = "dhow".into(),
        "vm" => *runtime = crate::machine::RUNTIME.into(),
        _ => {}
    }
    host.log_config.get_or_insert_default().typ.get_or_insert_with(|| "json-file".into());
}
