//! What this host can limit, for `dhow info` and for warnings; and its size.

use super::files;
use super::hierarchy::Hierarchies;
use crate::hull::HullError;
use types::oci::LinuxResources;

/// The version of the cgroup interface that limits go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// What this host can limit. The flags bear the names of Docker's `info`.
#[derive(Clone, Debug)]
pub struct Info {
    /// Version in use.
    pub version: Version,
    /// Who makes groups; always `cgroupfs`.
    pub driver: &'static str,
    /// Controllers to be had, sorted.
    pub controllers: Vec<String>,
    /// Memory can be limited.
    pub memory_limit: bool,
    /// Swap can be limited.
    pub swap_limit: bool,
    /// The OOM killer can be switched off.
    pub oom_kill_disable: bool,
    /// CPU quotas.
    pub cpu_cfs_quota: bool,
    /// CPU shares or weights.
    pub cpu_shares: bool,
    /// CPU sets.
    pub cpuset: bool,
    /// Limits of processes.
    pub pids_limit: bool,
    /// Weights of block I/O.
    pub blkio_weight: bool,
    /// Rates of block I/O.
    pub blkio_throttle: bool,
}

/// What this host can limit.
pub fn info() -> Result<Info, HullError> {
    Ok(read(Hierarchies::get()?))
}

/// Bytes of memory of the host (`MemTotal`).
pub fn host_memory() -> u64 {
    // Asked each time: a guest's balloon takes of it.
    let info = rustix::system::sysinfo();
    // A C unsigned long, which is 32 bits on some platforms.
    #[allow(clippy::useless_conversion)]
    let total = u64::from(info.totalram);
    total.saturating_mul(u64::from(info.mem_unit.max(1)))
}

/// CPU time of the whole host in nanoseconds, as Docker's `system_cpu_usage` counts it, and its CPUs
/// (proc_stat(5)).
pub(super) fn host_cpu() -> (u64, u32) {
    std::fs::read_to_string("/proc/stat").map(|text| parse_stat(&text)).unwrap_or_default()
}

fn parse_stat(text: &str) -> (u64, u32) {
    let (mut ticks, mut cpus) = (0u64, 0);
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("cpu") else { break };
        match rest.strip_prefix(' ') {
            // user nice system idle iowait irq softirq (guest time is in user already)
            Some(all) => {
                ticks = all
                    .split_ascii_whitespace()
                    .take(7)
                    .filter_map(|t| t.parse::<u64>().ok())
                    .fold(0, u64::saturating_add)
            }
            None => cpus += 1,
        }
    }
    // USER_HZ is 100 on every Linux that we build for.
    (ticks.saturating_mul(10_000_000), cpus)
}

fn read(host: &'static Hierarchies) -> Info {
    if host.unified()
        && let Some(v2) = &host.v2
    {
        let mut controllers: Vec<String> = files::read(&v2.root, "cgroup.controllers")
            .map(|t| t.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        controllers.sort_unstable();
        let has = |name: &str| controllers.iter().any(|c| c == name);
        return Info {
            version: Version::V2,
            driver: "cgroupfs",
            memory_limit: has("memory"),
            swap_limit: has("memory") && super::v2::swap_accounting(host),
            oom_kill_disable: false,
            cpu_cfs_quota: has("cpu"),
            cpu_shares: has("cpu"),
            cpuset: has("cpuset"),
            pids_limit: has("pids"),
            blkio_weight: has("io"),
            blkio_throttle: has("io"),
            controllers,
        };
    }
    let file =
        |controller: &str, name: &str| host.v1(controller).is_some_and(|h| files::exists(&h.root, name));
    let mut controllers: Vec<String> =
        host.v1.iter().flat_map(|h| &h.controllers).filter(|c| !c.starts_with("name=")).cloned().collect();
    controllers.sort_unstable();
    Info {
        version: Version::V1,
        driver: "cgroupfs",
        controllers,
        memory_limit: host.v1("memory").is_some(),
        swap_limit: file("memory", "memory.memsw.limit_in_bytes"),
        oom_kill_disable: file("memory", "memory.oom_control"),
        // The root group of the CPU controller has no quota file; every kernel that we can run on has the option.
        cpu_cfs_quota: host.v1("cpu").is_some(),
        cpu_shares: host.v1("cpu").is_some(),
        cpuset: host.v1("cpuset").is_some(),
        pids_limit: host.v1("pids").is_some(),
        blkio_weight: file("blkio", "blkio.weight") || file("blkio", "blkio.bfq.weight"),
        blkio_throttle: file("blkio", "blkio.throttle.read_bps_device"),
    }
}

pub(super) fn unsupported(host: &'static Hierarchies, resources: &LinuxResources) -> Vec<String> {
    let info = read(host);
    let mut out = Vec::new();
    let mut warn = |asked: bool, can: bool, sentence: &str| {
        if asked && !can {
            out.push(sentence.to_owned());
        }
    };
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().unwrap_or(0);
        warn(
            memory.swap().is_some_and(|s| s > 0 && s != limit),
            info.swap_limit,
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
        );
        warn(
            memory.disable_oom_killer() == Some(true),
            info.oom_kill_disable,
            "Your kernel does not support OomKillDisable. OomKillDisable discarded.",
        );
        warn(
            memory.swappiness().is_some(),
            info.version == Version::V1,
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
        );
        #[allow(deprecated)]
        let kernel = memory.kernel().is_some_and(|k| k > 0);
        warn(
            kernel,
            false,
            "Specifying a kernel memory limit is deprecated and has no effect on this kernel. Kernel memory discarded.",
        );
    }
    if let Some(io) = resources.block_io() {
        let weight = io.weight().is_some_and(|w| w != 0);
        let devices = io.weight_device().as_ref().is_some_and(|d| !d.is_empty());
        warn(
            weight || devices,
            info.blkio_weight,
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
        );
        let throttles = [
            io.throttle_read_bps_device(),
            io.throttle_write_bps_device(),
            io.throttle_read_iops_device(),
            io.throttle_write_iops_device(),
        ];
        warn(
            throttles.iter().any(|t| t.as_ref().is_some_and(|t| !t.is_empty())),
            info.blkio_throttle,
            "Your kernel does not support Block I/O rate limits or the cgroup is not mounted. Rates discarded.",
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn proc_stat() {
        let text = "cpu  1 2 3 4 5 6 7 100 0 0\ncpu0 1 2 3 4 5 6 7 100 0 0\ncpu1 0 0\nintr 5\n";
        assert_eq!(parse_stat(text), (280_000_000, 2));
    }

    #[test]
    fn this_host() {
        assert!(host_memory() > 1 << 20);
        assert!(host_cpu().1 >= 1);
    }

    proptest! {
        #[test]
        fn proc_stat_never_panics(text in "(cpu ?[0-9 ]*\n){0,3}\\PC*") {
            parse_stat(&text);
        }
    }
}
