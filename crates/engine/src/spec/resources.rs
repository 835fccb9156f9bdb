//! Limits: Docker's flags as the OCI specification's resources.

use crate::Result;
use crate::spec::{Context, devices, invalid};
use rustix::fs::{major, minor};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use types::docker::{HostConfig, ThrottleDevice};
use types::oci::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDevice,
    LinuxWeightDeviceBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};

/// Docker's period where `--cpus` asks for a quota, microseconds.
const PERIOD: u64 = 100_000;
/// Docker refuses less memory than this: nothing would start.
const MIN_MEMORY: i64 = 6 << 20;

/// A new container's resources, device rules included.
pub(super) fn with_devices(cx: &Context<'_>, warnings: &mut Vec<String>) -> Result<LinuxResources> {
    let mut resources = from_host(&cx.container.host)?;
    warnings.extend(sandbox::container::cgroup::Cgroup::unsupported(&resources));
    resources.set_devices(Some(devices::rules(&cx.container.host)?));
    Ok(resources)
}

/// The limits of a host configuration.
pub(crate) fn from_host(host: &HostConfig) -> Result<LinuxResources> {
    let mut out = LinuxResourcesBuilder::default();
    if let Some(memory) = memory(host)? {
        out = out.memory(memory.build().map_err(invalid)?);
    }
    if let Some(cpu) = cpu(host)? {
        out = out.cpu(cpu.build().map_err(invalid)?);
    }
    if let Some(limit) = host.pids_limit.filter(|l| *l != 0) {
        out = out.pids(LinuxPidsBuilder::default().limit(limit).build().map_err(invalid)?);
    }
    if let Some(block) = block_io(host)? {
        out = out.block_io(block.build().map_err(invalid)?);
    }
    let mut out = out.build().map_err(invalid)?;
    out.set_devices(None);
    Ok(out)
}

/// What an `update` changes: the fields that are set in `change` over `old`, checked together. Returns the new whole
/// configuration and the resources to apply.
pub(crate) fn from_update(old: &HostConfig, change: &HostConfig) -> Result<(HostConfig, LinuxResources)> {
    let mut new = old.clone();
    macro_rules! take {
        ($($field:ident),*) => { $( if change.$field.is_some() { new.$field = change.$field.clone(); } )* };
    }
    take!(
        memory,
        memory_swap,
        memory_reservation,
        nano_cpus,
        cpu_shares,
        cpu_period,
        cpu_quota,
        cpuset_cpus,
        cpuset_mems,
        pids_limit,
        blkio_weight,
        blkio_weight_device,
        blkio_device_read_bps,
        blkio_device_write_bps,
        blkio_device_read_iops,
        blkio_device_write_iops,
        cpu_realtime_period,
        cpu_realtime_runtime,
        restart_policy
    );
    // `--cpus` and `--cpu-quota` are two ways to say one thing: the later one counts.
    if change.nano_cpus.is_some_and(|n| n > 0) {
        new.cpu_quota = None;
        new.cpu_period = None;
    } else if change.cpu_quota.is_some() || change.cpu_period.is_some() {
        new.nano_cpus = None;
    }
    // A new memory limit above the old swap limit raises that with it, as both were one where the user named one.
    if change.memory.is_some() && change.memory_swap.is_none() {
        let (memory, swap) = (new.memory.unwrap_or(0), new.memory_swap.unwrap_or(0));
        if swap > 0 && swap < memory {
            return Err(invalid(
                "memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            ));
        }
    }
    let resources = from_host(&new)?;
    Ok((new, resources))
}

fn memory(host: &HostConfig) -> Result<Option<LinuxMemoryBuilder>> {
    let set = |v: Option<i64>| v.filter(|v| *v != 0);
    let (limit, swap, reservation) = (set(host.memory), set(host.memory_swap), set(host.memory_reservation));
    if let Some(limit) = limit {
        if limit > 0 && limit < MIN_MEMORY {
            return Err(invalid(format!("minimum memory limit allowed is 6MB: --memory {limit} is less")));
        }
        if swap.is_some_and(|s| s > 0 && s < limit) {
            return Err(invalid("minimum memoryswap limit should be larger than memory limit, see usage"));
        }
        if reservation.is_some_and(|r| r > limit && limit > 0) {
            return Err(invalid(
                "minimum memory limit can not be less than memory reservation limit, see usage",
            ));
        }
    } else if swap.is_some_and(|s| s > 0) {
        return Err(invalid("you should always set the memory limit when using memoryswap limit, see usage"));
    }
    if reservation.is_some_and(|r| r > 0 && r < MIN_MEMORY) {
        return Err(invalid("minimum memory reservation allowed is 6MB"));
    }
    let swappiness = host.memory_swappiness.filter(|s| *s != -1);
    if swappiness.is_some_and(|s| !(0..=100).contains(&s)) {
        return Err(invalid("invalid value for --memory-swappiness: valid range is 0-100"));
    }
    if limit.is_none()
        && reservation.is_none()
        && swap.is_none()
        && swappiness.is_none()
        && host.oom_kill_disable.is_none()
    {
        return Ok(None);
    }
    let mut out = LinuxMemoryBuilder::default();
    if let Some(limit) = limit {
        out = out.limit(limit);
        // Docker's default: as much swap as memory.
        out = out.swap(swap.unwrap_or(if limit > 0 { limit.saturating_mul(2) } else { -1 }));
    } else if let Some(swap) = swap {
        out = out.swap(swap);
    }
    if let Some(reservation) = reservation {
        out = out.reservation(reservation);
    }
    if let Some(swappiness) = swappiness {
        out = out.swappiness(swappiness as u64);
    }
    if host.oom_kill_disable == Some(true) {
        out = out.disable_oom_killer(true);
    }
    Ok(Some(out))
}

fn cpu(host: &HostConfig) -> Result<Option<LinuxCpuBuilder>> {
    let set = |v: Option<i64>| v.filter(|v| *v != 0);
    let mut out = LinuxCpuBuilder::default();
    let mut any = false;
    if let Some(nano) = set(host.nano_cpus) {
        if set(host.cpu_quota).is_some() || set(host.cpu_period).is_some() {
            return Err(invalid(
                "conflicting options: --cpus cannot be combined with --cpu-period or --cpu-quota",
            ));
        }
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as i64).max(online_cpus());
        if nano < 0 || nano > cpus.saturating_mul(1_000_000_000) {
            return Err(invalid(format!(
                "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            )));
        }
        let quota = nano / 10_000;
        if quota < 1000 {
            return Err(invalid("range of CPUs is from 0.01: --cpus is too small"));
        }
        out = out.quota(quota).period(PERIOD);
        any = true;
    }
    if let Some(period) = set(host.cpu_period) {
        if !(1000..=1_000_000).contains(&period) {
            return Err(invalid(
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ));
        }
        out = out.period(period as u64);
        any = true;
    }
    if let Some(quota) = set(host.cpu_quota) {
        if quota > 0 && quota < 1000 {
            return Err(invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
        }
        out = out.quota(quota);
        any = true;
    }
    if let Some(shares) = set(host.cpu_shares) {
        if shares < 0 {
            return Err(invalid(format!("invalid CPU shares ({shares}): value must be a positive integer")));
        }
        out = out.shares(shares as u64);
        any = true;
    }
    if let Some(runtime) = set(host.cpu_realtime_runtime) {
        out = out.realtime_runtime(runtime);
        any = true;
    }
    if let Some(period) = set(host.cpu_realtime_period) {
        out = out.realtime_period(period as u64);
        any = true;
    }
    for (list, flag) in [(&host.cpuset_cpus, "--cpuset-cpus"), (&host.cpuset_mems, "--cpuset-mems")] {
        let Some(list) = list.as_ref().filter(|l| !l.is_empty()) else { continue };
        if !list.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-')) {
            return Err(invalid(format!("invalid value {list} for {flag}: for example 0-3 or 0,1")));
        }
        out = if flag == "--cpuset-cpus" { out.cpus(list.clone()) } else { out.mems(list.clone()) };
        any = true;
    }
    Ok(any.then_some(out))
}

fn online_cpus() -> i64 {
    std::fs::read_to_string("/sys/devices/system/cpu/online").ok().map_or(1, |s| {
        s.trim()
            .split(',')
            .filter_map(|r| {
                let (a, b) = r.split_once('-').unwrap_or((r, r));
                Some(b.parse::<i64>().ok()? - a.parse::<i64>().ok()? + 1)
            })
            .sum()
    })
}

fn block_io(host: &HostConfig) -> Result<Option<LinuxBlockIoBuilder>> {
    let mut out = LinuxBlockIoBuilder::default();
    let mut any = false;
    if let Some(weight) = host.blkio_weight.filter(|w| *w != 0) {
        if !(10..=1000).contains(&weight) {
            return Err(invalid("range of blkio weight is from 10 to 1000"));
        }
        out = out.weight(weight);
        any = true;
    }
    let weights: Vec<LinuxWeightDevice> = host
        .blkio_weight_device
        .iter()
        .flatten()
        .map(|d| {
            let (major, minor) = block_device(d.path.as_deref().unwrap_or(""))?;
            let weight = u16::try_from(d.weight.unwrap_or(0)).map_err(invalid)?;
            LinuxWeightDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .weight(weight)
                .build()
                .map_err(invalid)
        })
        .collect::<Result<_>>()?;
    if !weights.is_empty() {
        out = out.weight_device(weights);
        any = true;
    }
    let lists = [
        throttle(&host.blkio_device_read_bps)?,
        throttle(&host.blkio_device_write_bps)?,
        throttle(&host.blkio_device_read_iops)?,
        throttle(&host.blkio_device_write_iops)?,
    ];
    for (at, list) in lists.into_iter().enumerate() {
        if list.is_empty() {
            continue;
        }
        any = true;
        out = match at {
            0 => out.throttle_read_bps_device(list),
            1 => out.throttle_write_bps_device(list),
            2 => out.throttle_read_iops_device(list),
            _ => out.throttle_write_iops_device(list),
        };
    }
    Ok(any.then_some(out))
}

fn throttle(list: &Option<Vec<ThrottleDevice>>) -> Result<Vec<LinuxThrottleDevice>> {
    list.iter()
        .flatten()
        .map(|d| {
            let (major, minor) = block_device(d.path.as_deref().unwrap_or(""))?;
            let rate = u64::try_from(d.rate.unwrap_or(0)).map_err(invalid)?;
            LinuxThrottleDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .rate(rate)
                .build()
                .map_err(invalid)
        })
        .collect()
}

fn block_device(path: &str) -> Result<(i64, i64)> {
    let meta = std::fs::metadata(path).map_err(|e| invalid(format!("block device {path:?}: {e}")))?;
    if !meta.file_type().is_block_device() {
        return Err(invalid(format!("{path:?} is not a block device")));
    }
    Ok((i64::from(major(meta.rdev())), i64::from(minor(meta.rdev()))))
}

/// `--ulimit`: `NAME=SOFT[:HARD]`, -1 for no limit.
pub(super) fn rlimits(host: &HostConfig) -> Result<Vec<PosixRlimit>> {
    let value = |v: i64| if v < 0 { u64::MAX } else { v as u64 };
    host.ulimits
        .iter()
        .flatten()
        .map(|u| {
            let name = u.name.as_deref().unwrap_or("");
            let soft = value(u.soft.unwrap_or(0));
            let hard = value(u.hard.unwrap_or(0));
            if soft > hard {
                return Err(invalid(format!(
                    "ulimit {name}: soft limit must be less than or equal to hard limit"
                )));
            }
            PosixRlimitBuilder::default().typ(rlimit(name)?).soft(soft).hard(hard).build().map_err(invalid)
        })
        .collect()
}

fn rlimit(name: &str) -> Result<PosixRlimitType> {
    use PosixRlimitType::*;
    Ok(match name.to_ascii_lowercase().as_str() {
        "core" => RlimitCore,
        "cpu" => RlimitCpu,
        "data" => RlimitData,
        "fsize" => RlimitFsize,
        "locks" => RlimitLocks,
        "memlock" => RlimitMemlock,
        "msgqueue" => RlimitMsgqueue,
        "nice" => RlimitNice,
        "nofile" => RlimitNofile,
        "nproc" => RlimitNproc,
        "rss" => RlimitRss,
        "rtprio" => RlimitRtprio,
        "rttime" => RlimitRttime,
        "sigpending" => RlimitSigpending,
        "stack" => RlimitStack,
        "as" => RlimitAs,
        _ => return Err(invalid(format!("invalid ulimit type: {name}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_rules_are_dockers() {
        let of = |memory, swap| from_host(&HostConfig { memory, memory_swap: swap, ..Default::default() });
        let resources = of(Some(64 << 20), None).unwrap();
        assert_eq!(resources.memory().and_then(|m| m.swap()), Some(128 << 20));
        assert!(of(Some(1 << 20), None).is_err());
        assert!(of(Some(64 << 20), Some(32 << 20)).is_err());
        assert!(of(None, Some(32 << 20)).is_err());
        assert!(of(None, None).unwrap().memory().is_none());
    }

    #[test]
    fn cpus_become_a_quota() {
        let host = HostConfig { nano_cpus: Some(500_000_000), ..Default::default() };
        let cpu = from_host(&host).unwrap().cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(50_000), Some(100_000)));
        let (new, _) =
            from_update(&host, &HostConfig { cpu_quota: Some(20_000), ..Default::default() }).unwrap();
        assert_eq!((new.nano_cpus, new.cpu_quota), (None, Some(20_000)));
    }
}
