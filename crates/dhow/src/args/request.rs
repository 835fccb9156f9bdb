//! From flags to a container's configuration: every rule of `docker run` that needs neither files nor the environment.
//!
//! What does need them is left in the [`Draft`] as it was written; [`super::resolve`] finishes it.

use super::container::ContainerFlags;
use super::{lists, mounts, network, ports, values};
use engine::{CreateRequest, PullPolicy};
use std::collections::HashMap;
use types::{Platform, docker};

/// A container as the command line asks for it.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// All that is settled.
    pub request: CreateRequest,
    /// `-e`, in order; a name alone stands for our own variable.
    pub env: Vec<String>,
    /// `--env-file`, in order; these come before `-e`.
    pub env_files: Vec<String>,
    /// `-l`, in order.
    pub labels: Vec<String>,
    /// `--label-file`, in order; these come before `-l`.
    pub label_files: Vec<String>,
    /// `-v` with a source, in order.
    pub binds: Vec<(String, String, String)>,
    /// Where to write the id.
    pub cidfile: Option<String>,
    /// No progress of a pull.
    pub quiet: bool,
}

/// Which streams a foreground `run` copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Ours to its.
    pub stdin: bool,
    /// Its to ours.
    pub stdout: bool,
    /// Its to ours.
    pub stderr: bool,
}

/// Turns flags, image and command into a [`Draft`].
pub fn draft(flags: ContainerFlags, image: String, command: Vec<String>) -> Result<Draft, String> {
    refuse(&flags)?;
    let streams = streams(&flags)?;
    let specs = published(&flags)?;
    let mut volumes = Vec::new();
    let mut binds = Vec::new();
    for v in &flags.volume {
        match mounts::parse_volume(v)? {
            mounts::Volume::Anonymous(path) => volumes.push(path),
            mounts::Volume::Bind { source, target, options } => binds.push((source, target, options)),
        }
    }
    for e in &flags.env {
        lists::check_env(e)?;
    }
    lists::label_map(&flags.label)?;
    let request = CreateRequest {
        beneath: Vec::new(),
        name: flags.name.clone().filter(|n| !n.is_empty()),
        platform: flags.platform.as_deref().map(Platform::parse).transpose().map_err(|e| e.to_string())?,
        pull: pull_policy(&flags.pull)?,
        config: config(&flags, &image, command, streams, &specs, volumes)?,
        host: host(&flags, &specs)?,
        networks: networking(&flags)?.1,
        image,
    };
    Ok(Draft {
        request,
        env: flags.env,
        env_files: flags.env_file,
        labels: flags.label,
        label_files: flags.label_file,
        binds,
        cidfile: flags.cidfile.filter(|c| !c.is_empty()),
        quiet: flags.quiet,
    })
}

/// Things that Docker has and Dhow has not, or that contradict each other.
fn refuse(f: &ContainerFlags) -> Result<(), String> {
    if f.gpus.is_some() {
        return Err("--gpus is not supported: pass the GPU's device nodes with --device".into());
    }
    if !f.link.is_empty() {
        return Err("--link is not supported: it is a legacy feature; share a network instead (--network container:NAME)".into());
    }
    if f.rm && !matches!(f.restart.as_str(), "" | "no") {
        return Err("conflicting options: cannot specify both --restart and --rm".into());
    }
    if f.cpus.is_some() && (f.cpu_period.is_some() || f.cpu_quota.is_some()) {
        return Err("conflicting options: cannot specify both --cpus and --cpu-period or --cpu-quota".into());
    }
    if let Some(s) = f.memory_swappiness
        && !(-1..=100).contains(&s)
    {
        return Err(format!("invalid value: {s}. Valid memory swappiness range is 0-100"));
    }
    if let Some(s) = f.oom_score_adj
        && !(-1000..=1000).contains(&s)
    {
        return Err(format!("invalid value {s}, range for oom score adj is [-1000, 1000]"));
    }
    Ok(())
}

fn pull_policy(s: &str) -> Result<PullPolicy, String> {
    match s {
        "always" => Ok(PullPolicy::Always),
        "missing" | "" => Ok(PullPolicy::Missing),
        "never" => Ok(PullPolicy::Never),
        _ => Err(format!("invalid pull option: '{s}': must be one of \"always\", \"missing\" or \"never\"")),
    }
}

fn streams(f: &ContainerFlags) -> Result<Streams, String> {
    let mut s = Streams { stdin: f.interactive, ..Streams::default() };
    for a in &f.attach {
        match a.to_ascii_lowercase().as_str() {
            "stdin" => s.stdin = true,
            "stdout" => s.stdout = true,
            "stderr" => s.stderr = true,
            _ => {
                return Err(format!(
                    "invalid argument {a:?} for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
                ));
            }
        }
    }
    if f.attach.is_empty() {
        (s.stdout, s.stderr) = (true, true);
    }
    Ok(s)
}

fn published(f: &ContainerFlags) -> Result<Vec<ports::PortSpec>, String> {
    let mut specs = Vec::new();
    for p in &f.publish {
        specs.extend(ports::parse_publish(p)?);
    }
    Ok(specs)
}

fn config(
    f: &ContainerFlags,
    image: &str,
    command: Vec<String>,
    streams: Streams,
    specs: &[ports::PortSpec],
    volumes: Vec<String>,
) -> Result<docker::ContainerConfig, String> {
    let mut exposed: Vec<String> = specs.iter().map(|s| s.container.clone()).collect();
    for e in &f.expose {
        exposed.extend(ports::parse_expose(e)?);
    }
    exposed.sort_unstable();
    exposed.dedup();
    Ok(docker::ContainerConfig {
        hostname: f.hostname.clone(),
        domainname: f.domainname.clone(),
        user: f.user.clone(),
        attach_stdin: Some(streams.stdin),
        attach_stdout: Some(streams.stdout),
        attach_stderr: Some(streams.stderr),
        exposed_ports: (!exposed.is_empty()).then_some(exposed),
        tty: Some(f.tty),
        open_stdin: Some(f.interactive),
        stdin_once: Some(f.interactive && streams.stdin),
        cmd: (!command.is_empty()).then_some(command),
        healthcheck: health(f)?,
        image: Some(image.to_owned()),
        volumes: (!volumes.is_empty()).then_some(volumes),
        working_dir: f.workdir.clone(),
        entrypoint: f.entrypoint.clone().map(|e| vec![e]),
        stop_signal: f.stop_signal.clone(),
        stop_timeout: f.stop_timeout,
        ..docker::ContainerConfig::default()
    })
}

fn health(f: &ContainerFlags) -> Result<Option<docker::HealthConfig>, String> {
    let any = f.health_cmd.is_some()
        || f.health_interval.is_some()
        || f.health_timeout.is_some()
        || f.health_start_period.is_some()
        || f.health_start_interval.is_some()
        || f.health_retries.is_some();
    if f.no_healthcheck {
        if any {
            return Err("--no-healthcheck conflicts with --health-* options".into());
        }
        return Ok(Some(docker::HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }));
    }
    for (name, value) in [
        ("interval", f.health_interval),
        ("timeout", f.health_timeout),
        ("retries", f.health_retries),
        ("start-period", f.health_start_period),
        ("start-interval", f.health_start_interval),
    ] {
        if value.is_some_and(|v| v < 0) {
            return Err(format!("--health-{name} cannot be negative"));
        }
    }
    Ok(any.then(|| docker::HealthConfig {
        test: f.health_cmd.as_ref().filter(|c| !c.is_empty()).map(|c| vec!["CMD-SHELL".into(), c.clone()]),
        interval: f.health_interval,
        timeout: f.health_timeout,
        retries: f.health_retries,
        start_period: f.health_start_period,
        start_interval: f.health_start_interval,
    }))
}

fn host(f: &ContainerFlags, specs: &[ports::PortSpec]) -> Result<docker::HostConfig, String> {
    let each = |list: &[String], parse: fn(&str) -> Result<String, String>| {
        some(list.iter().map(|s| parse(s)).collect::<Result<Vec<_>, _>>()?)
    };
    let (security_opt, open_paths) = security(&f.security_opt)?;
    Ok(docker::HostConfig {
        cpu_shares: f.cpu_shares,
        memory: f.memory,
        cgroup_parent: f.cgroup_parent.clone(),
        blkio_weight: f.blkio_weight,
        blkio_weight_device: some(f.blkio_weight_device.clone())?,
        blkio_device_read_bps: some(f.device_read_bps.clone())?,
        blkio_device_write_bps: some(f.device_write_bps.clone())?,
        blkio_device_read_iops: some(f.device_read_iops.clone())?,
        blkio_device_write_iops: some(f.device_write_iops.clone())?,
        cpu_period: f.cpu_period,
        cpu_quota: f.cpu_quota,
        cpu_realtime_period: f.cpu_rt_period,
        cpu_realtime_runtime: f.cpu_rt_runtime,
        cpuset_cpus: f.cpuset_cpus.clone(),
        cpuset_mems: f.cpuset_mems.clone(),
        devices: some(f.device.iter().map(|d| values::device(d)).collect::<Result<Vec<_>, _>>()?)?,
        device_cgroup_rules: each(&f.device_cgroup_rule, values::device_rule)?,
        memory_reservation: f.memory_reservation,
        memory_swap: f.memory_swap,
        memory_swappiness: f.memory_swappiness.filter(|s| *s >= 0),
        nano_cpus: f.cpus,
        oom_kill_disable: f.oom_kill_disable.then_some(true),
        init: f.init.then_some(true),
        pids_limit: f.pids_limit,
        ulimits: some(f.ulimit.clone())?,
        container_id_file: f.cidfile.clone(),
        log_config: log(f)?,
        network_mode: Some(networking(f)?.0),
        port_bindings: (!specs.is_empty()).then(|| ports::port_map(specs)),
        restart_policy: Some(values::restart_policy(&f.restart)?),
        auto_remove: Some(f.rm),
        volume_driver: f.volume_driver.clone(),
        volumes_from: some(f.volumes_from.clone())?,
        mounts: some(f.mount.clone())?,
        annotations: map(annotations(f)?),
        cap_add: some(f.cap_add.clone())?,
        cap_drop: some(f.cap_drop.clone())?,
        cgroupns_mode: cgroupns(f.cgroupns.as_deref())?,
        dns: each(&f.dns, network::address)?,
        dns_options: some(f.dns_option.clone())?,
        dns_search: each(&f.dns_search, network::dns_search)?,
        extra_hosts: each(&f.add_host, network::add_host)?,
        group_add: some(f.group_add.clone())?,
        ipc_mode: namespace("ipc", f.ipc.as_deref(), &["none", "private", "shareable", "host"], true)?,
        oom_score_adj: f.oom_score_adj,
        pid_mode: namespace("pid", f.pid.as_deref(), &["host", "private"], true)?,
        privileged: Some(f.privileged),
        publish_all_ports: Some(f.publish_all),
        readonly_rootfs: Some(f.read_only),
        security_opt: some(security_opt)?,
        storage_opt: map(f.machine.storage(lists::option_map("storage-opt", &f.storage_opt)?)),
        tmpfs: map(f.tmpfs.iter().map(|t| mounts::parse_tmpfs(t)).collect::<Result<HashMap<_, _>, _>>()?),
        uts_mode: namespace("uts", f.uts.as_deref(), &["host", "private"], false)?,
        userns_mode: namespace("userns", f.userns.as_deref(), &["host", "private", "auto"], false)?,
        shm_size: f.shm_size,
        sysctls: map(lists::option_map("sysctl", &f.sysctl)?),
        runtime: f.machine.runtime(f.runtime.as_deref())?,
        masked_paths: open_paths.then(Vec::new),
        readonly_paths: open_paths.then(Vec::new),
        ..docker::HostConfig::default()
    })
}

fn some<T>(list: Vec<T>) -> Result<Option<Vec<T>>, String> {
    Ok((!list.is_empty()).then_some(list))
}

/// Docker's API has no field for the time namespace, for microVMs and for egress: they go as annotations.
fn annotations(f: &ContainerFlags) -> Result<HashMap<String, String>, String> {
    let mut out = lists::option_map("annotation", &f.annotation)?;
    if namespace("timens", f.timens.as_deref(), &["host", "private"], false)?.as_deref() == Some("private") {
        out.insert("dhow.time-namespace".into(), "private".into());
    }
    f.machine.annotate(&mut out);
    if let Some(policy) = &f.egress {
        engine::parse_egress(policy).map_err(|e| e.to_string())?;
        out.insert(engine::EGRESS.into(), policy.clone());
    }
    Ok(out)
}

fn map(m: HashMap<String, String>) -> Option<HashMap<String, String>> {
    (!m.is_empty()).then_some(m)
}

fn log(f: &ContainerFlags) -> Result<Option<docker::HostConfigLogConfig>, String> {
    let options = lists::option_map("log-opt", &f.log_opt)?;
    if f.log_driver.as_deref() == Some("none") && !options.is_empty() {
        return Err("invalid logging opts for driver none".into());
    }
    Ok((f.log_driver.is_some() || !options.is_empty())
        .then(|| docker::HostConfigLogConfig { typ: f.log_driver.clone(), config: Some(options) }))
}

fn cgroupns(s: Option<&str>) -> Result<Option<docker::HostConfigCgroupnsModeEnum>, String> {
    match s {
        None | Some("") => Ok(None),
        Some("host") => Ok(Some(docker::HostConfigCgroupnsModeEnum::HOST)),
        Some("private") => Ok(Some(docker::HostConfigCgroupnsModeEnum::PRIVATE)),
        Some(other) => Err(format!("--cgroupns: invalid CGROUP mode {other:?}: use host or private")),
    }
}

fn namespace(
    flag: &str,
    value: Option<&str>,
    words: &[&str],
    shares: bool,
) -> Result<Option<String>, String> {
    match value {
        None | Some("") => Ok(None),
        Some(v) if words.contains(&v) => Ok(Some(v.to_owned())),
        Some(v) if shares && v.strip_prefix("container:").is_some_and(|c| !c.is_empty()) => {
            Ok(Some(v.to_owned()))
        }
        Some(v) => {
            let more = if shares { ", container:NAME" } else { "" };
            Err(format!("--{flag}: invalid mode {v:?}: use one of {}{more}", words.join(", ")))
        }
    }
}

/// Splits off `systempaths=unconfined`, which Docker turns into empty lists of masked and read-only paths.
fn security(options: &[String]) -> Result<(Vec<String>, bool), String> {
    let (mut out, mut open) = (Vec::new(), false);
    for o in options {
        // `key:value` is Docker's older form.
        let (key, value) = o.split_once('=').or_else(|| o.split_once(':')).unwrap_or((o, ""));
        match (key, value) {
            ("systempaths", "unconfined") => open = true,
            ("no-new-privileges", "" | "true" | "false") => {
                out.push(if value.is_empty() {
                    "no-new-privileges".into()
                } else {
                    format!("{key}={value}")
                });
            }
            ("label" | "apparmor" | "seccomp" | "writable-cgroups", v) if !v.is_empty() => {
                out.push(format!("{key}={v}"))
            }
            _ => return Err(format!("invalid --security-opt: {o:?}")),
        }
    }
    Ok((out, open))
}

/// `--network`, each once.
fn networks(f: &ContainerFlags) -> Result<Vec<network::NetworkFlag>, String> {
    let list = f.network.iter().map(|n| network::parse_network(n)).collect::<Result<Vec<_>, _>>()?;
    if list.len() > 1
        && let Some(n) = list.iter().find(|n| n.is_special())
    {
        return Err(format!("conflicting options: cannot attach both {} and another network", n.name));
    }
    for (place, n) in list.iter().enumerate() {
        if list[..place].iter().any(|m| m.name == n.name) {
            return Err(format!("network {:?} is specified multiple times", n.name));
        }
    }
    Ok(list)
}

/// The mode, which is the first network, and what each network is asked for. `--ip` and its kin are of the first.
fn networking(f: &ContainerFlags) -> Result<(String, Vec<(String, docker::EndpointSettings)>), String> {
    let mut list = networks(f)?;
    if list.is_empty() {
        list.push(network::NetworkFlag { name: "default".into(), ..Default::default() });
    }
    let first = &mut list[0];
    for (flag, own, given) in [("ip", &mut first.ip, &f.ip), ("ip6", &mut first.ip6, &f.ip6)] {
        if let Some(text) = given {
            let address = network::address(text)?;
            if own.replace(address).is_some() {
                return Err(format!(
                    "conflicting options: cannot specify both --{flag} and per-network {flag}"
                ));
            }
        }
    }
    if let Some(text) = &f.mac_address
        && first.mac.replace(network::mac(text)?).is_some()
    {
        return Err(
            "conflicting options: cannot specify both --mac-address and per-network mac-address".into()
        );
    }
    if !f.network_alias.is_empty() && !first.aliases.is_empty() {
        return Err("conflicting options: cannot specify both --network-alias and per-network alias".into());
    }
    first.aliases.extend(f.network_alias.iter().cloned());
    if first.is_special() && !first.is_bare() {
        return Err(format!(
            "conflicting options: addresses and aliases cannot be chosen with --network {}",
            first.name
        ));
    }
    let mode = first.name.clone();
    let wanted = list.into_iter().filter(|n| !n.is_special());
    Ok((mode, wanted.map(|n| (n.name.clone(), n.endpoint())).collect()))
}
