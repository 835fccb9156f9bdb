//! From a container's wishes to the machine that it gets.

use super::{HYPERVISOR, KERNEL, Virtualization, disk, initrd, virtualization};
use crate::mounts::UserMount;
use crate::network::DEFAULT;
use crate::spec::invalid;
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use std::path::PathBuf;
use types::docker::HostConfig;
use types::{Attachment, Hypervisor, MachinePlan, NetworkPlan, units};

/// MiB of memory where `--memory` says nothing.
const DEFAULT_MEMORY: u64 = 512;
/// Below this no kernel boots.
const MIN_MEMORY: u64 = 48;
/// Virtual CPUs where `--cpus` says nothing.
const DEFAULT_CPUS: u8 = 1;
const MAX_CPUS: u64 = 254;

fn annotation<'a>(host: &'a HostConfig, key: &str) -> Option<&'a str> {
    host.annotations.as_ref()?.get(key).map(String::as_str).filter(|v| !v.is_empty())
}

/// The hypervisor that was asked for.
fn asked(host: &HostConfig) -> Result<Option<Hypervisor>> {
    match annotation(host, HYPERVISOR) {
        None => Ok(None),
        Some("kvm") => Ok(Some(Hypervisor::Kvm)),
        Some("qemu") => Ok(Some(Hypervisor::Qemu)),
        Some(other) => Err(invalid(format!("invalid hypervisor {other:?}: use kvm or qemu"))),
    }
}

fn memory_mib(host: &HostConfig) -> Result<u64> {
    let bytes = host.memory.and_then(|m| u64::try_from(m).ok()).filter(|m| *m > 0);
    let mib = bytes.map_or(DEFAULT_MEMORY, |b| b >> 20);
    if mib < MIN_MEMORY {
        return Err(invalid(format!(
            "a microVM's memory is at least {MIN_MEMORY} MiB, since its kernel needs some: {mib} MiB were asked for"
        )));
    }
    Ok(mib)
}

/// As many as carry the CPUs that were asked for; what is left of the last one is held back by the quota.
fn vcpus(host: &HostConfig) -> Result<u8> {
    let nano = host.nano_cpus.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let quota = match (host.cpu_quota, host.cpu_period.filter(|p| *p > 0)) {
        (Some(quota), period) if quota > 0 => {
            u64::try_from(quota).ok().zip(u64::try_from(period.unwrap_or(100_000)).ok())
        }
        _ => None,
    };
    let wanted = nano.map(|n| n.div_ceil(1_000_000_000)).or(quota.map(|(q, period)| q.div_ceil(period)));
    match wanted {
        None => Ok(DEFAULT_CPUS),
        Some(n) if n <= MAX_CPUS => Ok(n as u8),
        Some(n) => Err(invalid(format!("a microVM has at most {MAX_CPUS} CPUs, not {n}"))),
    }
}

fn disk_size(host: &HostConfig) -> Result<u64> {
    let Some(text) = host.storage_opt.as_ref().and_then(|o| o.get("size")) else {
        return Ok(disk::DEFAULT_SIZE);
    };
    let size = units::parse_bytes(text).and_then(|s| u64::try_from(s).ok());
    let size =
        size.ok_or_else(|| invalid(format!("invalid disk size {text:?}: write it as 512m, 10g or 1t")))?;
    let size = size.min(disk::MAX_SIZE + 1).next_multiple_of(1 << 20);
    if !(disk::MIN_SIZE..=disk::MAX_SIZE).contains(&size) {
        return Err(invalid(format!("a microVM's disk has 16 MiB to 16 TiB: {text} were asked for")));
    }
    Ok(size)
}

/// Refuses what a microVM cannot have, before there is one.
pub(crate) fn check(container: &Container) -> Result<()> {
    let host = &container.host;
    if !container.is_vm() {
        if host.storage_opt.as_ref().is_some_and(|s| !s.is_empty()) {
            return Err(EngineError::Unsupported(
                "--disk-size and --storage-opt are for microVMs (--vm): a container's layer has no size"
                    .into(),
            ));
        }
        return Ok(());
    }
    let unknown = host.storage_opt.iter().flatten().find(|(key, _)| *key != "size");
    if let Some((key, _)) = unknown {
        return Err(invalid(format!("unknown storage option {key:?}: a microVM's disk has a size only")));
    }
    asked(host)?;
    memory_mib(host)?;
    vcpus(host)?;
    disk_size(host)?;
    let refuse =
        |what: &str, why: &str| Err(EngineError::Unsupported(format!("{what} is not for microVMs: {why}")));
    let mode = |m: &Option<String>| m.as_deref().unwrap_or("").to_owned();
    if mode(&host.network_mode) == "host" || mode(&host.network_mode).starts_with("container:") {
        return refuse(
            &format!("--network {}", mode(&host.network_mode)),
            "a guest has a network stack of its own; use the default network or none",
        );
    }
    for (flag, value) in [("--pid", &host.pid_mode), ("--ipc", &host.ipc_mode), ("--uts", &host.uts_mode)] {
        if mode(value) == "host" || mode(value).starts_with("container:") {
            return refuse(&format!("{flag} {}", mode(value)), "a guest shares no namespace with this host");
        }
    }
    if host.devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return refuse("--device", "a device of this host cannot be passed to a guest");
    }
    if host.userns_mode.as_deref() == Some("private") {
        return refuse("--userns private", "a guest's users are apart from this host's already");
    }
    let spreads = |m: &&UserMount| !matches!(m.propagation.as_str(), "" | "private" | "rprivate");
    if let Some(mount) = container.mounts.iter().find(spreads) {
        return refuse(
            &format!("the propagation {} of the mount at {}", mount.propagation, mount.target.display()),
            "mounts do not spread between this host and a guest; leave it out",
        );
    }
    Ok(())
}

/// Interfaces for networks that it may be connected to later. One that stays on the default network, as most do, gets one;
/// whoever makes networks gets more.
pub(crate) fn spare_interfaces(network: &NetworkPlan) -> u8 {
    let default = |a: &Attachment| a.network_name == DEFAULT;
    match network {
        NetworkPlan::Networks(list) if list.iter().all(default) => 1,
        NetworkPlan::Networks(_) => 3,
        NetworkPlan::Host | NetworkPlan::None | NetworkPlan::Container(_) => 0,
    }
}

impl Engine {
    /// Where a microVM's disk lies.
    pub(crate) fn disk_path(&self, container: &Container) -> PathBuf {
        self.paths.sandbox(&container.id).join("disk.img")
    }

    /// The machine of a container that is to be one; its disk and initramfs are made. Says on stderr that it is emulated.
    pub(crate) fn machine_plan(&self, container: &Container) -> Result<Option<MachinePlan>> {
        if !container.is_vm() {
            return Ok(None);
        }
        self.clean_machine(container)?;
        let host = &container.host;
        let hypervisor = self.hypervisor(container)?;
        let (kernel, dir) = self.kernel(annotation(host, KERNEL))?;
        let initrd = initrd::ensure(&dir, self.guest)?;
        let disk = self.disk_path(container);
        self.paths.ensure_sandbox(&container.id)?;
        disk::ensure(&disk, disk_size(host)?, &self.paths.root.join("templates"))?;
        Ok(Some(MachinePlan {
            hypervisor,
            kernel_name: kernel.name,
            kernel: dir.join("vmlinuz"),
            initrd,
            memory_mib: memory_mib(host)?,
            vcpus: vcpus(host)?,
            disk,
            spare_interfaces: 0,
        }))
    }

    fn hypervisor(&self, container: &Container) -> Result<Hypervisor> {
        let found = virtualization();
        match (asked(&container.host)?, &found) {
            (Some(Hypervisor::Kvm), Virtualization::None(why)) => Err(EngineError::Unsupported(format!(
                "--hypervisor kvm: this host has no usable KVM ({why})"
            ))),
            (Some(asked), _) => Ok(asked),
            (None, Virtualization::None(why)) => {
                eprintln!(
                    "dhow: no hardware virtualisation ({why}): QEMU emulates the microVM, which is slow"
                );
                Ok(Hypervisor::Qemu)
            }
            (None, Virtualization::Kvm) => Ok(Hypervisor::Kvm),
        }
    }
}
