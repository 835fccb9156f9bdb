//! What of a container's specification is carried out inside, and what on the host.

use super::shares::Share;
use crate::boot::{Boot, SHARES, VERSION, VOLUMES, Volume};
use crate::container::step::Step;
use crate::hull::{CreateRequest, HullError};
use std::io::Read;
use std::path::Path;
use types::{Hypervisor, MachinePlan, NetworkPlan, VolumePlan, oci};
use vmm::config::{DiskRate, RateLimit};

/// Most bytes of a file that is handed over by its contents.
const MAX_FILE: u64 = 64 << 10;
/// The files of names, which the engine writes for each start.
const NAME_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// Where they lie in the guest.
const FILES: &str = "/run/dhow/files";
/// Memory that a hypervisor may use beyond its guest's.
const OVERHEAD: i64 = 64 << 20;
/// The same for one that translates code.
const EMULATED_OVERHEAD: i64 = 512 << 20;
/// Most memory of the server of shared directories, and how many bytes a guest needs itself to make it use one.
const NODES: i64 = 256 << 20;
const INODES: i64 = 4;

/// The share of a guest's memory that the host's tables of it may take.
const TABLES: i64 = 128;

/// What the agent is told, and what of the host's files it is given.
pub(super) fn boot(
    request: &CreateRequest<'_>,
    network: &NetworkPlan,
    plan: &MachinePlan,
    layers: usize,
) -> Result<(Boot, Vec<Share>), HullError> {
    let mut spec = request.spec.clone();
    let (files, shares) = take_bindings(&mut spec, &plan.volumes)?;
    if let Some(linux) = spec.linux_mut() {
        confine(linux)?;
    }
    if let Some(process) = spec.process_mut() {
        // Kinds of the host's kernel.
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
        process.set_oom_score_adj(None);
    }
    spec.set_hooks(None);
    let volumes = volumes(plan, layers);
    let boot = Boot {
        version: VERSION,
        id: request.id.to_owned(),
        spec,
        files,
        shares: !shares.is_empty(),
        forgotten: request.removed && volumes.is_empty() && shares.is_empty(),
        volumes,
        network: network.clone(),
        layers,
        files_only: false,
        part: String::new(),
        init: request.init,
        open_stdin: !is_null(request),
        console_size: request.console_size,
        now_ns: 0,
    };
    Ok((boot, shares))
}

/// Without `-i` stdin is `/dev/null`, and nobody need copy it.
fn is_null(request: &CreateRequest<'_>) -> bool {
    let null = rustix::fs::makedev(1, 3);
    let terminal = request.spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
    !terminal && rustix::fs::fstat(request.stdio[0]).is_ok_and(|s| s.st_rdev == null)
}

/// Namespaces, limits and mappings that have a meaning inside.
fn confine(linux: &mut oci::Linux) -> Result<(), HullError> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    if let Some(shared) = namespaces.iter().find(|n| n.path().is_some()) {
        return Err(HullError::Unsupported(format!(
            "a microVM cannot join the {} namespace of a container: leave the option out, or run a container",
            shared.typ()
        )));
    }
    if linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()) {
        return Err(HullError::Unsupported(
            "--userns private is for containers: a microVM's users are apart from the host's already".into(),
        ));
    }
    // The guest's own network is the workload's.
    namespaces.retain(|n| n.typ() != oci::LinuxNamespaceType::Network);
    linux.set_namespaces(Some(namespaces));
    if let Some(all) = linux.resources() {
        let mut inside = oci::LinuxResources::default();
        inside.set_pids(*all.pids()).set_devices(all.devices().clone());
        linux.set_resources(Some(inside));
    }
    linux.set_mount_label(None);
    Ok(())
}

type Files = Vec<(String, String)>;

/// Replaces the sources of bindings by what the guest has in their place: the small files of names by their contents, all
/// else by what is shared.
fn take_bindings(spec: &mut oci::Spec, volumes: &[VolumePlan]) -> Result<(Files, Vec<Share>), HullError> {
    let (mut files, mut shares) = (Vec::new(), Vec::new());
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let bound = mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind");
        let Some(source) = mount.source().clone().filter(|_| bound) else { continue };
        if let Some(number) = volumes.iter().position(|v| v.mountpoint() == source) {
            mount.set_source(Some(format!("{VOLUMES}/{number}").into()));
            // What the mount namespace of the host would have of it.
            mount
                .options_mut()
                .iter_mut()
                .flatten()
                .filter(|o| *o == "rbind")
                .for_each(|o| *o = "bind".into());
            mount.options_mut().iter_mut().flatten().filter(|o| *o == "rro").for_each(|o| *o = "ro".into());
            continue;
        }
        let target = mount.destination().to_string_lossy().into_owned();
        let place = if NAME_FILES.contains(&target.as_str()) && is_small_file(&source) {
            let place = format!("{FILES}/{}", files.len());
            files.push((place.clone(), contents(&source)?));
            place
        } else {
            shares.push(Share::of(source, mount));
            // The share is the part already.
            mount.options_mut().iter_mut().for_each(|words| words.retain(|w| !w.starts_with(types::SUBPATH)));
            format!("{SHARES}/{}", shares.len() - 1)
        };
        mount.set_source(Some(place.into()));
    }
    Ok((files, shares))
}

/// The disks that are volumes, as the agent finds them.
pub(super) fn volumes(plan: &MachinePlan, layers: usize) -> Vec<Volume> {
    let of = |(number, volume): (usize, &VolumePlan)| Volume {
        name: volume.name.clone(),
        serial: serial(layers, number),
        read_only: volume.read_only,
    };
    plan.volumes.iter().enumerate().map(of).collect()
}

/// What the guest is told by a disk that is the volume of this number: `dhow-` and its place among all disks, which begin
/// with that of the layers, if there are any, and the writable one.
pub(super) fn serial(layers: usize, volume: usize) -> String {
    format!("dhow-{}", disk(layers, volume))
}

/// The place among all disks of the one that is the volume of this number.
pub(super) fn disk(layers: usize, volume: usize) -> usize {
    usize::from(layers > 0) + 1 + volume
}

fn is_small_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_FILE)
}

fn contents(path: &Path) -> Result<String, HullError> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|f| f.take(MAX_FILE).read_to_string(&mut text))
        .step(|| format!("read {}", path.display()))?;
    Ok(text)
}

/// What the hypervisor's processes may use of the host: the guest's memory and what it takes to carry it; the container's
/// share of CPU time.
pub(super) fn host_resources(all: Option<&oci::LinuxResources>, plan: &MachinePlan) -> oci::LinuxResources {
    let mut resources = all.map(shared_with_host).unwrap_or_default();
    resources.set_memory(Some(host_memory(plan.memory_mib, plan.hypervisor)));
    resources
}

/// The limits of a container that hold for its hypervisor as they stand.
pub(super) fn shared_with_host(all: &oci::LinuxResources) -> oci::LinuxResources {
    let mut resources = oci::LinuxResources::default();
    // Those of throughput are kept by the hypervisor itself, see `disk_rate`.
    let weights = all.block_io().as_ref().map(|all| {
        let mut block = oci::LinuxBlockIo::default();
        block.set_weight(all.weight()).set_leaf_weight(all.leaf_weight());
        block.set_weight_device(all.weight_device().clone());
        block
    });
    resources.set_cpu(all.cpu().clone()).set_block_io(weights);
    resources
}

/// Limits of a microVM's disks: the tightest of each kind, whichever device of the host is named.
pub(super) fn disk_rate(all: &oci::LinuxResources) -> DiskRate {
    let least = |devices: Option<&Option<Vec<oci::LinuxThrottleDevice>>>| {
        devices.into_iter().flatten().flatten().map(|d| d.rate()).filter(|r| *r > 0).min().unwrap_or(0)
    };
    let block = all.block_io().as_ref();
    DiskRate {
        read: RateLimit {
            bytes_per_second: least(block.map(|b| b.throttle_read_bps_device())),
            ops_per_second: least(block.map(|b| b.throttle_read_iops_device())),
        },
        write: RateLimit {
            bytes_per_second: least(block.map(|b| b.throttle_write_bps_device())),
            ops_per_second: least(block.map(|b| b.throttle_write_iops_device())),
        },
    }
}

/// The limit for a machine whose guest has so much memory.
pub(super) fn host_memory(guest_mib: u64, hypervisor: Hypervisor) -> oci::LinuxMemory {
    let overhead = match hypervisor {
        Hypervisor::Kvm => OVERHEAD,
        Hypervisor::Qemu => EMULATED_OVERHEAD,
    };
    let guest = i64::try_from(guest_mib.saturating_mul(1 << 20)).unwrap_or(i64::MAX);
    let mut memory = oci::LinuxMemory::default();
    // Page tables and their shadows grow with the guest, and what is remembered of the files that it has seen.
    let grown = (guest / TABLES).saturating_add((guest / INODES).min(NODES));
    memory.set_limit(Some(guest.saturating_add(overhead).saturating_add(grown)));
    memory
}
