//! Turns what the kernel says about a limit into one sentence that names the limit, the value and what is possible.

use super::files::{self, is};
use crate::hull::HullError;
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use types::oci::LinuxResources;
use types::units::binary_size;

/// The least memory that a container is given, Docker's.
const LEAST_MEMORY: i64 = 6 << 20;

/// Most processes that the kernel can have (`PID_MAX_LIMIT`).
const MOST_PIDS: i64 = 4 << 20;

/// Refuses values that no kernel takes.
pub(super) fn check(resources: &LinuxResources) -> Result<(), HullError> {
    let bad = |sentence: String| Err(HullError::Invalid(sentence));
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().unwrap_or(0);
        if limit > 0 && limit < LEAST_MEMORY {
            return bad(format!(
                "the memory limit {} is too low: the minimum is 6MiB",
                binary_size(limit as f64)
            ));
        }
        if limit < -1 {
            return bad(format!("the memory limit {limit} is not usable: give bytes, or -1 for no limit"));
        }
        let swap = memory.swap().unwrap_or(0);
        if swap > 0 && limit > swap {
            return bad(format!(
                "the limit of memory and swap together ({}) is below the memory limit ({}); it counts both, so it must be at least as large",
                binary_size(swap as f64),
                binary_size(limit as f64)
            ));
        }
        let reservation = memory.reservation().unwrap_or(0);
        if limit > 0 && reservation > limit {
            return bad(format!(
                "the memory reservation ({}) is above the memory limit ({}); it must be lower",
                binary_size(reservation as f64),
                binary_size(limit as f64)
            ));
        }
        if let Some(swappiness) = memory.swappiness().filter(|s| *s > 100) {
            return bad(format!("the memory swappiness {swappiness} is not usable: give 0 to 100"));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(period) = cpu.period().filter(|p| *p != 0 && !(1000..=1_000_000).contains(p)) {
            return bad(format!(
                "the CPU period {period} is not usable: give 1000 to 1000000 microseconds (1ms to 1s)"
            ));
        }
        if let Some(quota) = cpu.quota().filter(|q| (1..1000).contains(q)) {
            return bad(format!(
                "the CPU quota {quota} is too low: the minimum is 1000 microseconds (1ms) in each period"
            ));
        }
        if let Some(shares) = cpu.shares().filter(|s| *s != 0 && !(2..=262_144).contains(s)) {
            return bad(format!("the CPU shares {shares} are not usable: give 2 to 262144"));
        }
        for (value, set) in [(cpu.cpus(), CpuSet::Cpus), (cpu.mems(), CpuSet::Mems)] {
            set.check(value.as_deref().unwrap_or_default(), None)?;
        }
    }
    if let Some(pids) = resources.pids().filter(|p| p.limit() > MOST_PIDS) {
        return bad(format!(
            "the process limit {} is too high: this kernel has at most {MOST_PIDS} processes; -1 is no limit",
            pids.limit()
        ));
    }
    if let Some(io) = resources.block_io() {
        let weights = [io.weight(), io.leaf_weight()];
        let devices = io.weight_device().iter().flatten().map(|d| d.weight());
        if let Some(weight) =
            weights.into_iter().chain(devices).flatten().find(|w| *w != 0 && !(10..=1000).contains(w))
        {
            return bad(format!("the block I/O weight {weight} is not usable: give 10 to 1000"));
        }
    }
    Ok(())
}

/// Which of the two sets of a cpuset.
#[derive(Clone, Copy)]
pub(super) enum CpuSet {
    Cpus,
    Mems,
}

impl CpuSet {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpus => "the set of CPUs",
            Self::Mems => "the set of memory nodes",
        }
    }

    pub fn flag(self) -> &'static str {
        match self {
            Self::Cpus => "a set of CPUs (--cpuset-cpus)",
            Self::Mems => "a set of memory nodes (--cpuset-mems)",
        }
    }

    /// Refuses what is no list, and what is not in `available`.
    pub fn check(self, value: &str, available: Option<&str>) -> Result<(), HullError> {
        let thing = match self {
            Self::Cpus => "CPUs",
            Self::Mems => "memory nodes",
        };
        let Some(wanted) = files::parse_list(value) else {
            return Err(HullError::Invalid(format!(
                "{thing} {value:?} are no list of numbers and ranges like 0-3,7"
            )));
        };
        let Some(available) = available.map(str::trim).filter(|a| !a.is_empty()) else { return Ok(()) };
        if files::parse_list(available).is_some_and(|a| !files::is_subset(&wanted, &a)) {
            return Err(HullError::Invalid(format!(
                "requested {thing} are not available: requested {value}, available: {available}"
            )));
        }
        Ok(())
    }
}

/// A limit was refused.
pub(super) fn limit(what: &str, value: &str, source: io::Error) -> HullError {
    if is(&source, Errno::INVAL) || is(&source, Errno::RANGE) {
        return HullError::Invalid(format!("the kernel refuses {value} for {what}"));
    }
    if is(&source, Errno::NOENT) {
        return HullError::Unsupported(format!("this kernel cannot set {what} (wanted: {value})"));
    }
    HullError::Step { step: format!("set {what} to {value}"), source }
}

/// A limit of a block device was refused.
pub(super) fn block_device(what: &str, line: &str, source: io::Error) -> HullError {
    if is(&source, Errno::NODEV) || is(&source, Errno::NXIO) {
        let device = line.split(' ').next().unwrap_or(line);
        return HullError::Invalid(format!(
            "no {what} can be set for block device {device}: there is no such whole disk (name a disk, not a partition)"
        ));
    }
    limit(&format!("the {what} of a block device"), line, source)
}

/// A device rule was refused.
pub(super) fn device(line: &str, source: io::Error) -> HullError {
    if is(&source, Errno::PERM) {
        return HullError::Unsupported(format!(
            "the device rule {line:?} allows what the surrounding cgroup forbids"
        ));
    }
    HullError::Step { step: format!("set the device rule {line:?}"), source }
}

/// A process could not be put into the group.
pub(super) fn joining(who: &str, place: &str, source: io::Error) -> HullError {
    HullError::Step { step: format!("put {who} into the cgroup of {place}"), source }
}

/// The limit is less than what is in use and cannot be freed.
pub(super) fn below_usage(limit: i64, used: u64) -> HullError {
    HullError::Invalid(format!(
        "the memory limit cannot be lowered to {}: the container uses {}, and not enough of it can be freed",
        binary_size(limit as f64),
        binary_size(used as f64)
    ))
}

/// The memory limit would exceed that of memory and swap (v1 keeps both).
pub(super) fn above_swap(limit: i64, both: u64) -> HullError {
    HullError::Invalid(format!(
        "the memory limit {} is above the limit of memory and swap together, {}: update that one (--memory-swap) at the same time",
        binary_size(limit as f64),
        binary_size(both as f64)
    ))
}

/// v1's limit of memory and swap was refused.
pub(super) fn swap(dir: BorrowedFd<'_>, both: i64, source: io::Error) -> HullError {
    if is(&source, Errno::BUSY) {
        let used = files::read_u64(dir, "memory.memsw.usage_in_bytes").unwrap_or(0);
        return HullError::Invalid(format!(
            "the limit of memory and swap together cannot be lowered to {}: the container uses {}",
            binary_size(both as f64),
            binary_size(used as f64)
        ));
    }
    if is(&source, Errno::INVAL) {
        let memory = files::read_u64(dir, "memory.limit_in_bytes").unwrap_or(0);
        return HullError::Invalid(format!(
            "the limit of memory and swap together ({}) is below the memory limit ({}); it counts both, so it must be at least as large",
            binary_size(both as f64),
            binary_size(memory as f64)
        ));
    }
    limit("the limit of memory and swap together", &both.to_string(), source)
}
