//! Writing the limits of v2, from the v1 terms of the OCI specification.

use super::Group;
use crate::container::cgroup::files::{self, is};
use crate::container::cgroup::{convert, devices, explain};
use crate::hull::HullError;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use types::oci::{LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources};

pub(super) struct Limits<'a> {
    pub group: &'a Group,
}

impl Limits<'_> {
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), HullError> {
        explain::check(resources)?;
        if let Some(rules) = resources.devices().as_deref().filter(|r| !r.is_empty()) {
            self.devices(rules)?;
        }
        if let Some(memory) = resources.memory() {
            self.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.cpu(cpu)?;
        }
        if let Some(pids) = resources.pids() {
            self.need("pids.max", "pids", "a limit of processes (--pids-limit)")?;
            self.write("pids.max", &convert::pids(pids.limit()), "the process limit")?;
        }
        if let Some(block_io) = resources.block_io() {
            self.block_io(block_io)?;
        }
        for huge in resources.hugepage_limits().iter().flatten() {
            let file = format!("hugetlb.{}.max", huge.page_size());
            self.need(&file, "hugetlb", &format!("a limit of {} huge pages", huge.page_size()))?;
            self.write(&file, &convert::bytes(huge.limit()), "the limit of huge pages")?;
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            self.need("rdma.max", "rdma", "an RDMA limit")?;
            self.write("rdma.max", &convert::rdma(device, limit), "the RDMA limit")?;
        }
        for (file, value) in resources.unified().iter().flatten() {
            self.unified(file, value)?;
        }
        Ok(())
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.group.dir.as_fd()
    }

    fn has(&self, file: &str) -> bool {
        files::exists(self.dir(), file)
    }

    fn write(&self, file: &str, value: &str, what: &str) -> Result<(), HullError> {
        files::write(self.dir(), file, value).map_err(|e| explain::limit(what, value, e))
    }

    fn need(&self, file: &str, controller: &str, what: &str) -> Result<(), HullError> {
        if self.has(file) {
            return Ok(());
        }
        let available = files::read(self.dir(), "cgroup.controllers").unwrap_or_default();
        Err(HullError::Unsupported(if available.split_whitespace().any(|c| c == controller) {
            format!("{what} is not supported by this kernel (no {file})")
        } else {
            format!(
                "{what} needs the {controller} cgroup controller, which this host does not give (it gives: {})",
                available.trim()
            )
        }))
    }

    /// Attaches the new program before the old ones go, so that at no moment more is allowed.
    fn devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<(), HullError> {
        let step = |source| {
            if is(&source, Errno::NOSYS) || is(&source, Errno::INVAL) {
                return HullError::Unsupported(
                    "device rules on cgroup v2 need a kernel with CONFIG_CGROUP_BPF".into(),
                );
            }
            HullError::Step { step: "attach the device rules".into(), source }
        };
        let program = sys::bpf::load_device_program(&devices::program(rules)?).map_err(step)?;
        let old = sys::bpf::device_programs(self.dir()).map_err(step)?;
        sys::bpf::attach_device_program(self.dir(), &program).map_err(step)?;
        for old in old {
            sys::bpf::detach_device_program(self.dir(), old.as_fd()).map_err(step)?;
        }
        Ok(())
    }

    fn memory(&self, memory: &LinuxMemory) -> Result<(), HullError> {
        self.need("memory.max", "memory", "a memory limit")?;
        let limit = memory.limit().filter(|l| *l != 0);
        if let Some(limit) = limit.filter(|l| *l > 0) {
            self.make_room(limit)?;
        }
        // An update may give one of the pair only.
        let beside = limit.unwrap_or_else(|| match files::read_u64(self.dir(), "memory.max") {
            Ok(u64::MAX) | Err(_) => -1,
            Ok(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
        });
        let swap = convert::swap_max(
            memory.swap().unwrap_or(0),
            if memory.swap().is_some() { beside } else { limit.unwrap_or(0) },
        )
        .map_err(HullError::Invalid)?;
        if let Some(swap) = swap.filter(|_| self.has("memory.swap.max")) {
            self.write("memory.swap.max", &swap, "the swap limit")?;
        }
        if let Some(limit) = limit {
            self.write("memory.max", &convert::bytes(limit), "the memory limit")?;
        }
        if let Some(soft) = memory.reservation().filter(|r| *r != 0) {
            self.write("memory.low", &convert::bytes(soft), "the memory reservation")?;
        }
        Ok(())
    }

    /// Where v1 refuses a limit below what is in use, v2 kills. So what can be freed is freed first, and if that is
    /// not enough the limit is refused.
    fn make_room(&self, limit: i64) -> Result<(), HullError> {
        let used = || files::read_u64(self.dir(), "memory.current").unwrap_or(0);
        let excess = |used: u64| used.checked_sub(limit.unsigned_abs()).filter(|e| *e > 0);
        for _ in 0..5 {
            let Some(excess) = excess(used()) else { return Ok(()) };
            match files::write(self.dir(), "memory.reclaim", &excess.to_string()) {
                // Not all of it could be freed, this time.
                Err(e) if is(&e, Errno::AGAIN) => {}
                // Kernels before 5.19: count what could be.
                Err(e) if is(&e, Errno::NOENT) => {
                    let text = files::read(self.dir(), "memory.stat").unwrap_or_default();
                    let cache = ["inactive_file", "active_file", "slab_reclaimable"]
                        .iter()
                        .filter_map(|key| files::flat_value(&text, key))
                        .fold(0, u64::saturating_add);
                    return match used() {
                        now if now.saturating_sub(cache) > limit.unsigned_abs() => {
                            Err(explain::below_usage(limit, now))
                        }
                        _ => Ok(()),
                    };
                }
                _ => {}
            }
        }
        match used() {
            now if excess(now).is_some() => Err(explain::below_usage(limit, now)),
            _ => Ok(()),
        }
    }

    fn cpu(&self, cpu: &LinuxCpu) -> Result<(), HullError> {
        if cpu.realtime_period().is_some_and(|p| p != 0) || cpu.realtime_runtime().is_some_and(|r| r != 0) {
            return Err(HullError::Unsupported(
                "real-time CPU time cannot be given to cgroups on cgroup v2".into(),
            ));
        }
        if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
            self.need("cpu.weight", "cpu", "CPU shares (--cpu-shares)")?;
            self.write("cpu.weight", &convert::cpu_weight(shares).to_string(), "the CPU weight")?;
        }
        if cpu.burst().is_some() && self.has("cpu.max.burst") {
            // Out of the way first, it may exceed the new quota.
            self.write("cpu.max.burst", "0", "the CPU burst")?;
        }
        let (quota, period) = (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0));
        if quota.is_some() || period.is_some() {
            self.need("cpu.max", "cpu", "a CPU quota (--cpus)")?;
            let now = files::read(self.dir(), "cpu.max").unwrap_or_default();
            let (old_quota, old_period) = now.trim().split_once(' ').unwrap_or(("max", "100000"));
            let quota = quota.or_else(|| old_quota.parse().ok());
            let period = period.or_else(|| old_period.parse().ok());
            if let Some(value) = convert::cpu_max(quota, period) {
                self.write("cpu.max", &value, "the CPU quota and period")?;
            }
        }
        if let Some(burst) = cpu.burst().filter(|b| *b != 0 && self.has("cpu.max.burst")) {
            self.write("cpu.max.burst", &burst.to_string(), "the CPU burst")?;
        }
        if let Some(idle) = cpu.idle().filter(|_| self.has("cpu.idle")) {
            self.write("cpu.idle", &idle.to_string(), "the idle CPU class")?;
        }
        for (value, name, set) in [
            (cpu.cpus(), "cpuset.cpus", explain::CpuSet::Cpus),
            (cpu.mems(), "cpuset.mems", explain::CpuSet::Mems),
        ] {
            let Some(value) = value.as_deref().filter(|v| !v.is_empty()) else { continue };
            self.need(name, "cpuset", set.flag())?;
            let available = files::read(&self.group.hierarchy.root, &format!("{name}.effective")).ok();
            set.check(value, available.as_deref())?;
            self.write(name, value, set.name())?;
        }
        Ok(())
    }

    fn block_io(&self, io: &LinuxBlockIo) -> Result<(), HullError> {
        self.need("io.stat", "io", "a limit of block I/O")?;
        let bfq = self.has("io.bfq.weight");
        if let Some(weight) = io.weight().filter(|w| *w != 0) {
            if bfq {
                self.write("io.bfq.weight", &weight.to_string(), "the block I/O weight")?;
            } else if self.has("io.weight") {
                let value = format!("default {}", convert::io_weight(weight));
                self.write("io.weight", &value, "the block I/O weight")?;
            }
        }
        for device in io.weight_device().iter().flatten() {
            let Some(weight) = device.weight() else { continue };
            let (file, weight) = match bfq {
                true => ("io.bfq.weight", u64::from(weight)),
                false => ("io.weight", convert::io_weight(weight)),
            };
            if self.has(file) {
                let line = format!("{}:{} {weight}", device.major(), device.minor());
                files::write(self.dir(), file, &line)
                    .map_err(|e| explain::block_device("weight", &line, e))?;
            }
        }
        let throttles = [
            ("rbps", "read rate", io.throttle_read_bps_device()),
            ("wbps", "write rate", io.throttle_write_bps_device()),
            ("riops", "rate of reads", io.throttle_read_iops_device()),
            ("wiops", "rate of writes", io.throttle_write_iops_device()),
        ];
        for (key, what, devices) in throttles {
            for device in devices.iter().flatten().filter(|_| self.has("io.max")) {
                let rate = if device.rate() == 0 { "max".into() } else { device.rate().to_string() };
                let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
                files::write(self.dir(), "io.max", &line)
                    .map_err(|e| explain::block_device(what, &line, e))?;
            }
        }
        Ok(())
    }

    /// A limit by the name of its file.
    fn unified(&self, file: &str, value: &str) -> Result<(), HullError> {
        let controller = file.split('.').next().unwrap_or_default();
        if file.contains('/') || !file.contains('.') || controller.is_empty() || controller == "cgroup" {
            return Err(HullError::Invalid(format!(
                "{file:?} is no limit of cgroup v2: name a file of a controller, such as memory.high"
            )));
        }
        self.need(file, controller, &format!("the limit {file}"))?;
        self.write(file, value, file)
    }
}
