//! What clients of a server may do, beyond Docker's all or nothing.
//!
//! `--readonly` lets nothing change. `--restrict` keeps workloads behind their walls, so that a socket can be handed to
//! a job without handing over the host: what a client creates must keep to the rules, and what it enters (exec,
//! attach, copy, start) must keep to them too, whoever made it. Each refusal names its rule.

use crate::fault::Fault;
use crate::subnet;
use serde_json::Value;
use std::path::{Component, Path, PathBuf};
use types::docker::{
    ContainerConfig, EndpointSettings, HostConfig, MountType, NetworkCreateRequest, VolumeCreateRequest,
};

/// The registry of names without one.
const HUB: &str = "docker.io";
/// The option that names a network's bridge.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Longer than any name of an image that a registry takes.
const LONGEST_NAME: usize = 1024;

/// A rule that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// No such rule.
    #[error(
        "unknown rule {0:?} of --restrict: give default, vm, bind=DIRECTORY, image=PATTERN, or ports=FIRST-LAST"
    )]
    Unknown(String),
    /// Not a range of ports.
    #[error("--restrict ports={0}: give two ports, the smaller one first: 8000-8999")]
    Ports(String),
    /// Not an absolute path.
    #[error("--restrict bind={0}: give an absolute path without '..'")]
    Path(String),
}

/// What clients may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Nothing changes.
    pub read_only: bool,
    /// What workloads must keep to, if anything.
    pub restrict: Option<Restrict>,
}

/// The rules of `--restrict`. That nothing is privileged, joins the host's namespaces, adds capabilities or devices, or takes
/// a wall away, is always among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restrict {
    /// Only microVMs.
    pub vm_only: bool,
    /// Directories below which a bind mount may lie; none allows no bind mount.
    pub binds: Vec<PathBuf>,
    /// Images that may be used, with `*` for any part of a name between slashes; none allows all.
    pub images: Vec<String>,
    /// The first and the last port of the host that may be published.
    pub ports: (u16, u16),
}

impl Default for Restrict {
    fn default() -> Self {
        Self { vm_only: false, binds: Vec::new(), images: Vec::new(), ports: (1024, u16::MAX) }
    }
}

impl Restrict {
    /// Reads the values of the flag.
    pub fn parse<S: AsRef<str>>(rules: &[S]) -> Result<Self, PolicyError> {
        let mut out = Self::default();
        for rule in rules.iter().flat_map(|r| r.as_ref().split(',')) {
            match rule.split_once('=').unwrap_or((rule, "")) {
                ("default", "") => {}
                ("vm", "") => out.vm_only = true,
                ("image", pattern) if !pattern.is_empty() => out.images.push(pattern.to_owned()),
                ("ports", range) => out.ports = ports(range)?,
                ("bind", dir) => {
                    let path = Path::new(dir);
                    if !is_plain(path) {
                        return Err(PolicyError::Path(dir.to_owned()));
                    }
                    out.binds.push(path.to_owned());
                }
                _ => return Err(PolicyError::Unknown(rule.to_owned())),
            }
        }
        Ok(out)
    }

    /// Whether a workload keeps to the rules.
    pub fn admit(&self, config: &ContainerConfig, host: &HostConfig) -> Result<(), Fault> {
        self.admit_image(config.image.as_deref().unwrap_or_default())?;
        if self.vm_only && !engine::is_vm(host) {
            return Err(refused("vm", "only microVMs may run (--runtime vm)"));
        }
        if host.privileged == Some(true) {
            return Err(refused("privileged", "privileged workloads are not allowed"));
        }
        namespaces(host)?;
        additions(host)?;
        self.mounts(host)?;
        self.admit_ports(host)?;
        unknown(host)
    }

    /// Whether an image may be used.
    pub fn admit_image(&self, image: &str) -> Result<(), Fault> {
        if self.images.is_empty() {
            return Ok(());
        }
        let is_id = image.strip_prefix("sha256:").unwrap_or(image).bytes().all(|b| b.is_ascii_hexdigit());
        let named = match types::ImageRef::parse(image) {
            Ok(reference) if image.len() <= LONGEST_NAME => reference,
            _ => return Err(Fault::invalid("invalid reference format: that is no name of an image")),
        };
        if !is_id && self.images.iter().any(|pattern| is_named(pattern, &named)) {
            return Ok(());
        }
        Err(refused("image", &format!("the image {image} is not on the list ({})", self.images.join(", "))))
    }

    /// Whether images may come in as archives, under whatever names.
    pub fn admit_archive(&self) -> Result<(), Fault> {
        match self.images.is_empty() {
            true => Ok(()),
            false => Err(refused("image", "archives are not on the list of images")),
        }
    }

    /// Whether a volume may be made: a directory of the host's is a bind mount by another name, and what a guest wrote is
    /// not for the host's kernel to read.
    pub fn admit_volume(&self, request: &VolumeCreateRequest) -> Result<(), Fault> {
        let options = request.driver_opts.iter().flatten();
        self.admit_volume_options(options.map(|(key, value)| (key.as_str(), value.as_str())))
    }

    /// Whether a volume with these options may be made or used.
    pub fn admit_volume_options<'a>(
        &self,
        mut options: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), Fault> {
        match options.find(|(key, _)| !matches!(*key, "size" | "journal")) {
            Some((key, value)) => {
                Err(refused("bind", &format!("volumes with the option {key}={value} are not allowed")))
            }
            None => Ok(()),
        }
    }

    /// Whether a network may be made. Addresses that are somebody else's would lead the host's own traffic astray.
    pub fn admit_network(&self, request: &NetworkCreateRequest) -> Result<(), Fault> {
        let options = request.options.iter().flatten().map(|(key, _)| key.as_str());
        self.admit_driver(request.driver.as_deref().unwrap_or_default(), options)?;
        let pools = request.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten());
        let mut subnets = pools.filter_map(|pool| pool.subnet.as_deref());
        subnets.try_for_each(|subnet| subnet::admit(subnet).map_err(|why| refused("network", &why)))
    }

    /// Whether a network of this driver, with these options, may be made or used.
    pub fn admit_driver<'a>(
        &self,
        driver: &str,
        mut options: impl Iterator<Item = &'a str>,
    ) -> Result<(), Fault> {
        if !matches!(driver, "" | "default" | "bridge" | "null") {
            return Err(refused("network", "networks on the host's own interfaces are not allowed"));
        }
        match options.find(|key| matches!(*key, "host-access" | engine::HOST_ACCESS | BRIDGE_NAME)) {
            Some(BRIDGE_NAME) => Err(refused("network", "a bridge's name may not be chosen")),
            Some(_) => Err(refused("network", "networks that reach the host's own services are not allowed")),
            None => Ok(()),
        }
    }

    /// Whether a workload may have such a place on a network.
    pub fn admit_endpoint(&self, settings: &EndpointSettings) -> Result<(), Fault> {
        match settings.driver_opts.iter().flatten().any(|(key, _)| key == engine::HOST_ACCESS) {
            true => Err(refused("network", "workloads that reach the host's own services are not allowed")),
            false => Ok(()),
        }
    }

    /// Ports of the host that are its own services' are not for workloads.
    fn admit_ports(&self, host: &HostConfig) -> Result<(), Fault> {
        let bindings = host.port_bindings.iter().flat_map(|map| map.values().flatten().flatten());
        for ports in bindings.filter_map(|binding| binding.host_port.as_deref()) {
            // None, or 0, is one that is free; what is no port is the engine's to tell.
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { continue };
            if (first, last) != (0, 0) && (first < self.ports.0 || last > self.ports.1) {
                let (least, most) = self.ports;
                return Err(refused("ports", &format!("the port {ports} is not from {least} to {most}")));
            }
        }
        Ok(())
    }

    fn mounts(&self, host: &HostConfig) -> Result<(), Fault> {
        for bind in host.binds.iter().flatten() {
            let mut parts = bind.split(':');
            let source = parts.next().unwrap_or_default();
            if source.starts_with('/') || source.starts_with('.') {
                self.admit_bind(source)?;
            }
            parts.nth(1).into_iter().flat_map(|mode| mode.split(',')).try_for_each(propagates)?;
        }
        for mount in host.mounts.iter().flatten() {
            let source = mount.source.as_deref().unwrap_or_default();
            // One without a type is a volume to the engine.
            match mount.typ.unwrap_or(MountType::VOLUME) {
                MountType::IMAGE => self.admit_image(source)?,
                MountType::BIND => {
                    self.admit_bind(source)?;
                    let propagation = mount.bind_options.as_ref().and_then(|o| o.propagation);
                    propagation.map_or(Ok(()), |p| propagates(p.as_ref()))?;
                }
                MountType::TMPFS => {}
                MountType::VOLUME => {
                    let driver = mount.volume_options.as_ref().and_then(|o| o.driver_config.as_ref());
                    if let Some(options) = driver.and_then(|d| d.options.clone()) {
                        let request =
                            VolumeCreateRequest { driver_opts: Some(options), ..Default::default() };
                        self.admit_volume(&request)?;
                    }
                }
                other => return Err(refused("bind", &format!("mounts of type {other} are not allowed"))),
            }
        }
        Ok(())
    }

    fn admit_bind(&self, source: &str) -> Result<(), Fault> {
        // A link below an allowed directory may lead out of it. What is below it at each start the engine finds by
        // itself, beneath the directory (`CreateRequest::beneath`); this is for the sentence.
        let written = Path::new(source);
        let real = std::fs::canonicalize(source).ok().filter(|_| is_plain(written));
        let lies_below = |dir: &PathBuf| {
            written.starts_with(dir) && real.as_ref().is_some_and(|real| real.starts_with(dir))
        };
        if self.binds.iter().any(lies_below) {
            return Ok(());
        }
        let allowed: Vec<_> = self.binds.iter().map(|d| d.display().to_string()).collect();
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        Err(refused("bind", &format!("{source} is not below an allowed directory ({allowed})")))
    }
}

fn ports(range: &str) -> Result<(u16, u16), PolicyError> {
    let both = range.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    both.filter(|(first, last)| first <= last).ok_or_else(|| PolicyError::Ports(range.to_owned()))
}

/// Mounts that a workload makes below a bind mount stay its own.
fn propagates(mode: &str) -> Result<(), Fault> {
    match mode {
        "shared" | "rshared" => {
            Err(refused("bind", &format!("the propagation {mode} is not allowed: it leads out to the host")))
        }
        _ => Ok(()),
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
}

/// A refusal by a rule.
pub fn refused(rule: &str, why: &str) -> Fault {
    Fault::new(403, format!("refused by the rule {rule:?} of this server: {why}"))
}

fn namespaces(host: &HostConfig) -> Result<(), Fault> {
    let given = [
        ("PidMode", &host.pid_mode),
        ("IpcMode", &host.ipc_mode),
        ("UTSMode", &host.uts_mode),
        ("UsernsMode", &host.userns_mode),
        ("NetworkMode", &host.network_mode),
    ];
    for (name, mode) in given {
        let mode = mode.as_deref().unwrap_or_default();
        if mode == "host" || mode.starts_with("container:") {
            return Err(refused("namespaces", &format!("{name} {mode:?} is not allowed")));
        }
    }
    if host.cgroupns_mode == Some(types::docker::HostConfigCgroupnsModeEnum::HOST) {
        return Err(refused("namespaces", "CgroupnsMode \"host\" is not allowed"));
    }
    Ok(())
}

/// What a workload gets on top of the default, or is spared of it.
fn additions(host: &HostConfig) -> Result<(), Fault> {
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let walls = |option: &String| {
        !matches!(option.as_str(), "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true")
    };
    let refusals = [
        (some(&host.cap_add), "capabilities", "CapAdd is not allowed"),
        (host.devices.as_ref().is_some_and(|d| !d.is_empty()), "devices", "Devices are not allowed"),
        (some(&host.device_cgroup_rules), "devices", "DeviceCgroupRules are not allowed"),
        (
            host.device_requests.as_ref().is_some_and(|d| !d.is_empty()),
            "devices",
            "DeviceRequests are not allowed",
        ),
        (
            host.security_opt.iter().flatten().any(walls),
            "security",
            "SecurityOpt may only say no-new-privileges",
        ),
        (
            host.masked_paths.is_some() || host.readonly_paths.is_some(),
            "security",
            "MaskedPaths and ReadonlyPaths may not be changed",
        ),
        (host.sysctls.as_ref().is_some_and(|s| !s.is_empty()), "security", "Sysctls are not allowed"),
        (some(&host.volumes_from), "bind", "VolumesFrom is not allowed"),
        (
            host.cgroup_parent.as_deref().is_some_and(|c| !c.is_empty()),
            "namespaces",
            "CgroupParent is not allowed",
        ),
        (host.oom_score_adj.is_some_and(|o| o < 0), "security", "OomScoreAdj below 0 is not allowed"),
        (
            host.ulimits.iter().flatten().any(|u| u.name.as_deref() == Some("rtprio")),
            "security",
            "Ulimits of rtprio are not allowed",
        ),
    ];
    match refusals.into_iter().find(|(hit, ..)| *hit) {
        Some((_, rule, why)) => Err(refused(rule, why)),
        None => Ok(()),
    }
}

/// Members of `HostConfig` that give a workload nothing of the host, or that other rules look at.
const HARMLESS: &str = "\
    CpuShares CpuPeriod CpuQuota CpusetCpus CpusetMems NanoCpus CpuCount CpuPercent Memory MemoryReservation \
    MemorySwap MemorySwappiness BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps \
    BlkioDeviceReadIOps BlkioDeviceWriteIOps IOMaximumIOps IOMaximumBandwidth PidsLimit Ulimits OomScoreAdj \
    ShmSize StorageOpt \
    Runtime Init AutoRemove RestartPolicy LogConfig Annotations ConsoleSize ContainerIDFile \
    CapDrop SecurityOpt ReadonlyRootfs GroupAdd Tmpfs Binds Mounts VolumeDriver CgroupnsMode IpcMode PidMode \
    UTSMode UsernsMode \
    NetworkMode Dns DnsOptions DnsSearch ExtraHosts PortBindings PublishAllPorts";

fn is_harmless(member: &str) -> bool {
    HARMLESS.split_whitespace().any(|known| known == member)
}

/// Refuses what nobody has called harmless: also what Docker's API will have one day.
fn unknown(host: &HostConfig) -> Result<(), Fault> {
    let members = serde_json::to_value(host)?;
    let asked = members.as_object().into_iter().flatten().filter(|(_, value)| !says_nothing(value));
    match asked.into_iter().find(|(key, _)| !is_harmless(key)) {
        Some((key, _)) => Err(refused("default", &format!("{key} is not among what is allowed"))),
        None => Ok(()),
    }
}

/// A value that is as good as none.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Whether a pattern names an image: by its full name, with or without its tag where that is the default one. One without a
/// registry is of Docker Hub, as a name is.
fn is_named(pattern: &str, image: &types::ImageRef) -> bool {
    let pattern = match pattern.split_once('/') {
        _ if pattern == "**" => pattern.to_owned(),
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => pattern.to_owned(),
        Some(_) => format!("{HUB}/{pattern}"),
        None => format!("{HUB}/library/{pattern}"),
    };
    let name = image.name();
    let tagged = |tag: &str| parts_match(&pattern, &format!("{name}:{tag}"));
    match (image.digest(), image.tag()) {
        (Some(digest), _) => parts_match(&pattern, &format!("{name}@{digest}")),
        (None, None | Some("latest")) => tagged("latest") || parts_match(&pattern, &name),
        (None, Some(tag)) => tagged(tag),
    }
}

/// `*` stands for any text between two slashes, `**` in the end for all that may follow.
fn parts_match(pattern: &str, name: &str) -> bool {
    let mut names = name.split('/');
    for part in pattern.split('/') {
        match (part, names.next()) {
            ("**", Some(_)) if pattern.ends_with("**") && pattern.matches("**").count() == 1 => return true,
            (part, Some(name)) if matches(part, name) => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

/// `*` stands for any text. Takes no more steps than both are long together times two, whatever they are.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| text.strip_prefix(head)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part).and_then(|at| rest.get(at + part.len()..)) {
            Some(tail) => rest = tail,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(host: HostConfig, restrict: &Restrict) -> Result<(), String> {
        restrict.admit(&ContainerConfig::default(), &host).map_err(|f| f.message)
    }

    #[test]
    fn the_walls_stay() {
        let r = Restrict::default();
        assert_eq!(rule(HostConfig::default(), &r), Ok(()));
        let text = |s: &str| Some(s.to_owned());
        let list = |s: &str| Some(vec![s.to_owned()]);
        for (host, name) in [
            (HostConfig { privileged: Some(true), ..Default::default() }, "privileged"),
            (HostConfig { pid_mode: text("host"), ..Default::default() }, "namespaces"),
            (HostConfig { network_mode: text("container:x"), ..Default::default() }, "namespaces"),
            (HostConfig { cap_add: list("SYS_ADMIN"), ..Default::default() }, "capabilities"),
            (HostConfig { security_opt: list("seccomp=unconfined"), ..Default::default() }, "security"),
            (HostConfig { masked_paths: Some(vec![]), ..Default::default() }, "security"),
            (HostConfig { binds: list("/etc:/x"), ..Default::default() }, "bind"),
            (HostConfig { volumes_from: list("x"), ..Default::default() }, "bind"),
        ] {
            let said = rule(host, &r).unwrap_err();
            assert!(said.contains(&format!("{name:?}")), "{said}");
        }
        assert_eq!(
            rule(HostConfig { security_opt: list("no-new-privileges"), ..Default::default() }, &r),
            Ok(())
        );
        let published = |ports: &str| {
            let bindings = json!({"80/tcp": [{"HostPort": ports}]});
            HostConfig { port_bindings: serde_json::from_value(bindings).unwrap(), ..Default::default() }
        };
        let some = Restrict::parse(&["ports=80-8999"]).unwrap();
        for (ports, by_default, by_some) in [
            ("", true, true),
            ("0", true, true),
            ("80", false, true),
            ("9000", true, false),
            ("8990-9010", true, false),
            ("1000-1100", false, true),
        ] {
            assert_eq!(rule(published(ports), &r).is_ok(), by_default, "{ports}");
            assert_eq!(rule(published(ports), &some).is_ok(), by_some, "{ports}");
        }
        assert!(Restrict::parse(&["ports=9-8"]).is_err() && Restrict::parse(&["ports=x"]).is_err());
        assert!(rule(HostConfig::default(), &Restrict { vm_only: true, ..r }).is_err());
    }

    #[test]
    fn what_nobody_called_harmless_is_refused() {
        let read = |host: Value| serde_json::from_value::<HostConfig>(host).unwrap();
        let r = Restrict::parse(&["bind=/usr"]).unwrap();
        // What Docker's own client sends of a plain `docker run`.
        let plain = json!({
            "Binds": null, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default",
            "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": true,
            "ConsoleSize": [24, 80], "CapAdd": null, "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
            "Privileged": false, "MemorySwappiness": -1, "OomKillDisable": false, "Devices": [], "IOMaximumIOps": 0,
            "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "MaskedPaths": null, "ReadonlyPaths": null,
        });
        assert_eq!(rule(read(plain), &r), Ok(()));
        for (host, member) in [
            (json!({"CpuRealtimeRuntime": 1000}), "CpuRealtimeRuntime"),
            (json!({"OomKillDisable": true}), "OomKillDisable"),
            (json!({"Cgroup": "container:x"}), "Cgroup"),
            (json!({"Links": ["a:b"]}), "Links"),
            (json!({"Ulimits": [{"Name": "rtprio", "Soft": 9, "Hard": 9}]}), "rtprio"),
            (json!({"Binds": ["/usr:/x:ro,rshared"]}), "rshared"),
            (
                json!({"Mounts": [{"Type": "bind", "Source": "/usr", "Target": "/x", "BindOptions": {"Propagation": "shared"}}]}),
                "shared",
            ),
            (json!({"Mounts": [{"Type": "npipe", "Source": "a", "Target": "/x"}]}), "npipe"),
            (
                json!({"Mounts": [{"Target": "/x", "VolumeOptions": {"DriverConfig": {"Options": {"device": "/etc"}}}}]}),
                "device=/etc",
            ),
        ] {
            let said = rule(read(host), &r).unwrap_err();
            assert!(said.contains(member), "{member}: {said}");
        }
    }

    #[test]
    fn every_member_has_been_thought_of() {
        // Those that are refused with a rule of their own, or by default.
        let refused = "CgroupParent CapAdd Devices DeviceCgroupRules DeviceRequests Privileged VolumesFrom Sysctls \
            MaskedPaths ReadonlyPaths Cgroup Links OomKillDisable CpuRealtimePeriod CpuRealtimeRuntime Isolation";
        assert!(!refused.split_whitespace().any(is_harmless));
        let read = |key: &str, value: Value| {
            let host = serde_json::from_value::<HostConfig>(json!({key: value})).ok()?;
            Some(serde_json::to_value(host).unwrap().as_object().unwrap().len())
        };
        let values =
            [json!([]), json!({}), json!("x"), json!(1), json!(true), json!("default"), json!("private")];
        for key in HARMLESS.split_whitespace() {
            let known = values.iter().any(|value| read(key, value.clone()) == Some(1));
            assert!(known, "{key} is no member of HostConfig");
        }
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
            ("ab*ba", "aba", false),
            ("a**b", "ab", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn binds_lie_below_directories() {
        let dir = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir(real.join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", real.join("out")).unwrap();
        let r = Restrict::parse(&[format!("bind={}", real.display())]).unwrap();
        let bind =
            |p: &Path| HostConfig { binds: Some(vec![format!("{}:/x", p.display())]), ..Default::default() };
        assert_eq!(rule(bind(&real.join("in")), &r), Ok(()));
        for bad in [real.join("out"), real.join("in/../.."), real.join("none"), "/etc".into()] {
            assert!(rule(bind(&bad), &r).is_err(), "{}", bad.display());
        }
    }

    #[test]
    fn rules_are_read() {
        let r = Restrict::parse(&["vm,image=registry.example/*", "image=hello"]).unwrap();
        assert!(r.vm_only && r.admit_image("hello").is_ok() && r.admit_image("registry.example/a:1").is_ok());
        assert!(r.admit_image("evil").is_err() && r.admit_archive().is_err());
        for (pattern, image, fits) in [
            ("busybox*", "busybox:1.36", true),
            ("busybox", "docker.io/library/busybox", true),
            ("busybox", "busybox:2", false),
            ("busybox*", "busybox.attacker.example/x", false),
            ("busybox*", "busybox.attacker.example/library/busybox", false),
            ("team/*", "team/app:3", true),
            ("team/*", "team.example/app:3", false),
            ("r.example:5000/a/*", "r.example:5000/a/b/c", false),
            ("r.example:5000/a/**", "r.example:5000/a/b/c", true),
            ("**", "r.example/x", true),
            ("**/x", "r.example/x", false),
        ] {
            let rules = Restrict::parse(&[format!("image={pattern}")]).unwrap();
            assert_eq!(rules.admit_image(image).is_ok(), fits, "{pattern} {image}");
        }
        assert!(r.admit_image("0123456789ab").is_err(), "an id says nothing of the image");
        let slow = Restrict::parse(&["image=r.example/*/ci-*:v1"]).unwrap();
        assert!(
            slow.admit_image("r.example/a/ci-b:v1").is_ok()
                && slow.admit_image("r.example/a/cib:v1").is_err()
        );
        assert!(slow.admit_image(&("r.example/".to_owned() + &"/ci-".repeat(900_000))).is_err());
        assert_eq!(Restrict::parse(&["nonsense"]), Err(PolicyError::Unknown("nonsense".into())));
        assert_eq!(Restrict::parse(&["bind=../x"]), Err(PolicyError::Path("../x".into())));
    }
}
