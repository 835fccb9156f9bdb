//! Writing the limits of v1, in the order that the kernel wants.

use super::Group;
use crate::container::cgroup::files::{self, is};
use crate::container::cgroup::hierarchy::Hierarchies;
use crate::container::cgroup::{convert, devices, explain};
use crate::hull::HullError;
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use types::oci::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

pub(super) struct Limits<'a> {
    pub group: &'a Group,
    pub host: &'a Hierarchies,
}

impl Limits<'_> {
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), HullError> {
        explain::check(resources)?;
        if let Some(rules) = resources.devices().as_deref().filter(|r| !r.is_empty()) {
            let dir = self.need("devices", "device rules")?;
            for (file, line) in devices::v1_lines(rules)? {
                files::write(dir, file, &line).map_err(|e| explain::device(&line, e))?;
            }
        }
        if let Some(memory) = resources.memory() {
            self.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.cpu(cpu)?;
        }
        if let Some(pids) = resources.pids() {
            let dir = self.need("pids", "a limit of processes (--pids-limit)")?;
            let value = convert::pids(pids.limit());
            files::write(dir, "pids.max", &value)
                .map_err(|e| explain::limit("the process limit", &value, e))?;
        }
        if let Some(block_io) = resources.block_io() {
            self.block_io(block_io)?;
        }
        for huge in resources.hugepage_limits().iter().flatten() {
            let dir = self.need("hugetlb", "a limit of huge pages")?;
            let file = format!("hugetlb.{}.limit_in_bytes", huge.page_size());
            let what = format!("the limit of {} huge pages", huge.page_size());
            files::write(dir, &file, &huge.limit().to_string())
                .map_err(|e| explain::limit(&what, &huge.limit().to_string(), e))?;
        }
        if let Some(network) = resources.network() {
            if let Some(class) = network.class_id().filter(|c| *c != 0) {
                let dir = self.need("net_cls", "a network class")?;
                files::write(dir, "net_cls.classid", &class.to_string())
                    .map_err(|e| explain::limit("the network class", &class.to_string(), e))?;
            }
            for priority in network.priorities().iter().flatten() {
                let dir = self.need("net_prio", "a network priority")?;
                let line = format!("{} {}", priority.name(), priority.priority());
                files::write(dir, "net_prio.ifpriomap", &line)
                    .map_err(|e| explain::limit("the network priority", &line, e))?;
            }
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            let dir = self.need("rdma", "RDMA limits")?;
            let line = convert::rdma(device, limit);
            files::write(dir, "rdma.max", &line).map_err(|e| explain::limit("the RDMA limit", &line, e))?;
        }
        if resources.unified().as_ref().is_some_and(|u| !u.is_empty()) {
            return Err(HullError::Unsupported(
                "limits named by cgroup v2 files need cgroup v2, and this host uses v1".into(),
            ));
        }
        Ok(())
    }

    /// The group's directory for a controller that a limit needs.
    fn need(&self, controller: &str, what: &str) -> Result<BorrowedFd<'_>, HullError> {
        self.group.dir(controller).ok_or_else(|| {
            let why = match self.host.v1(controller) {
                Some(_) => "the container has no group there",
                None => "this host does not have it",
            };
            HullError::Unsupported(format!("{what} needs the {controller} cgroup controller, and {why}"))
        })
    }

    /// Memory and memory + swap each bound the other, so the order depends on the direction.
    fn memory(&self, memory: &LinuxMemory) -> Result<(), HullError> {
        let dir = self.need("memory", "a memory limit")?;
        let limit = memory.limit().filter(|l| *l != 0);
        let has_swap = files::exists(dir, "memory.memsw.limit_in_bytes");
        // No limit of memory with a limit of memory and swap makes no sense: lift both.
        let swap = memory.swap().filter(|s| *s != 0).or(limit.filter(|l| *l == -1)).filter(|_| has_swap);
        let set_limit = || limit.map_or(Ok(()), |l| self.memory_limit(dir, l));
        let set_swap = || {
            let Some(swap) = swap else { return Ok(()) };
            files::write(dir, "memory.memsw.limit_in_bytes", &swap.to_string())
                .map_err(|e| explain::swap(dir, swap, e))
        };
        let current = files::read_u64(dir, "memory.memsw.limit_in_bytes").unwrap_or(u64::MAX);
        let raises = swap.is_some_and(|s| s == -1 || u64::try_from(s).is_ok_and(|s| s > current));
        if raises {
            set_swap()?;
            set_limit()?;
        } else {
            set_limit()?;
            set_swap()?;
        }
        if let Some(soft) = memory.reservation().filter(|r| *r != 0) {
            files::write(dir, "memory.soft_limit_in_bytes", &soft.to_string())
                .map_err(|e| explain::limit("the memory reservation", &soft.to_string(), e))?;
        }
        #[allow(deprecated)]
        let (kernel, tcp) = (memory.kernel(), memory.kernel_tcp());
        for (value, file) in [(kernel, "memory.kmem.limit_in_bytes"), (tcp, "memory.kmem.tcp.limit_in_bytes")]
        {
            let Some(value) = value.filter(|v| *v != 0) else { continue };
            match files::write(dir, file, &value.to_string()) {
                // Kernels from 5.16 refuse what those before 5.4 could.
                Err(e) if is(&e, Errno::OPNOTSUPP) || is(&e, Errno::NOENT) => {}
                done => done.map_err(|e| explain::limit("the kernel memory limit", &value.to_string(), e))?,
            }
        }
        if let Some(swappiness) = memory.swappiness() {
            optional(files::write(dir, "memory.swappiness", &swappiness.to_string()))
                .map_err(|e| explain::limit("the swappiness", &swappiness.to_string(), e))?;
        }
        if let Some(disable) = memory.disable_oom_killer() {
            let value = if disable { "1" } else { "0" };
            // A new group starts with 0; a write may be refused, so only what is asked for is written.
            if disable
                || files::read(dir, "memory.oom_control").is_ok_and(|t| t.contains("oom_kill_disable 1"))
            {
                optional(files::write(dir, "memory.oom_control", value))
                    .map_err(|e| explain::limit("disabling the OOM killer", value, e))?;
            }
        }
        Ok(())
    }

    fn memory_limit(&self, dir: BorrowedFd<'_>, limit: i64) -> Result<(), HullError> {
        files::write(dir, "memory.limit_in_bytes", &limit.to_string()).map_err(|e| {
            if is(&e, Errno::BUSY) {
                let used = files::read_u64(dir, "memory.usage_in_bytes").unwrap_or(0);
                return explain::below_usage(limit, used);
            }
            let both = files::read_u64(dir, "memory.memsw.limit_in_bytes").unwrap_or(u64::MAX);
            if is(&e, Errno::INVAL) && u64::try_from(limit).is_ok_and(|l| l > both) {
                return explain::above_swap(limit, both);
            }
            explain::limit("the memory limit", &limit.to_string(), e)
        })
    }

    fn cpu(&self, cpu: &LinuxCpu) -> Result<(), HullError> {
        let write = |dir, file: &str, value: String, what: &str| {
            files::write(dir, file, &value).map_err(|e| explain::limit(what, &value, e))
        };
        if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
            let dir = self.need("cpu", "CPU shares (--cpu-shares)")?;
            write(dir, "cpu.shares", shares.to_string(), "the CPU shares")?;
        }
        if let Some(period) = cpu.realtime_period().filter(|p| *p != 0) {
            let dir = self.realtime("cpu.rt_period_us")?;
            write(dir, "cpu.rt_period_us", period.to_string(), "the CPU real-time period")?;
        }
        if let Some(runtime) = cpu.realtime_runtime().filter(|r| *r != 0) {
            let dir = self.realtime("cpu.rt_runtime_us")?;
            write(dir, "cpu.rt_runtime_us", runtime.to_string(), "the CPU real-time runtime")?;
        }
        self.quota(cpu)?;
        if let Some(idle) = cpu.idle() {
            let dir = self.need("cpu", "an idle CPU class")?;
            optional(files::write(dir, "cpu.idle", &idle.to_string()))
                .map_err(|e| explain::limit("the idle CPU class", &idle.to_string(), e))?;
        }
        for (value, file, what) in [
            (cpu.cpus(), "cpuset.cpus", explain::CpuSet::Cpus),
            (cpu.mems(), "cpuset.mems", explain::CpuSet::Mems),
        ] {
            let Some(value) = value.as_deref().filter(|v| !v.is_empty()) else { continue };
            let dir = self.need("cpuset", what.flag())?;
            let effective = self.host.v1("cpuset").map(|h| &h.root);
            what.check(value, effective.and_then(|root| files::read(root, file).ok()).as_deref())?;
            files::write(dir, file, value).map_err(|e| explain::limit(what.name(), value, e))?;
        }
        Ok(())
    }

    fn realtime(&self, file: &str) -> Result<BorrowedFd<'_>, HullError> {
        let dir = self.need("cpu", "real-time CPU time")?;
        if files::exists(dir, file) {
            return Ok(dir);
        }
        Err(HullError::Unsupported(
            "this kernel cannot give real-time CPU time to cgroups (no CONFIG_RT_GROUP_SCHED)".into(),
        ))
    }

    /// Period and quota bound each other through the parent's share, and the burst is bounded by the quota.
    fn quota(&self, cpu: &LinuxCpu) -> Result<(), HullError> {
        let period = cpu.period().filter(|p| *p != 0);
        let quota = cpu.quota().filter(|q| *q != 0);
        let burst = cpu.burst();
        if period.is_none() && quota.is_none() && burst.is_none() {
            return Ok(());
        }
        let dir = self.need("cpu", "a CPU quota (--cpus)")?;
        let write = |file: &str, value: String, what: &str| {
            files::write(dir, file, &value).map_err(|e| explain::limit(what, &value, e))
        };
        if burst.is_some() && files::exists(dir, "cpu.cfs_burst_us") {
            // Out of the way first, it may exceed the new quota.
            write("cpu.cfs_burst_us", "0".into(), "the CPU burst")?;
        }
        let mut period_later = false;
        if let Some(period) = period {
            match files::write(dir, "cpu.cfs_period_us", &period.to_string()) {
                Err(e) if is(&e, Errno::INVAL) && quota.is_some() => period_later = true,
                done => done.map_err(|e| explain::limit("the CPU period", &period.to_string(), e))?,
            }
        }
        if let Some(quota) = quota {
            write("cpu.cfs_quota_us", quota.max(-1).to_string(), "the CPU quota")?;
        }
        if let Some(period) = period.filter(|_| period_later) {
            write("cpu.cfs_period_us", period.to_string(), "the CPU period")?;
        }
        if let Some(burst) = burst.filter(|b| *b != 0 && files::exists(dir, "cpu.cfs_burst_us")) {
            write("cpu.cfs_burst_us", burst.to_string(), "the CPU burst")?;
        }
        Ok(())
    }

    fn block_io(&self, io: &LinuxBlockIo) -> Result<(), HullError> {
        let dir = self.need("blkio", "a limit of block I/O")?;
        let pick = |names: [&'static str; 2]| names.into_iter().find(|n| files::exists(dir, n));
        if let (Some(weight), Some(file)) =
            (io.weight().filter(|w| *w != 0), pick(["blkio.weight", "blkio.bfq.weight"]))
        {
            files::write(dir, file, &weight.to_string())
                .map_err(|e| explain::limit("the block I/O weight", &weight.to_string(), e))?;
        }
        if let (Some(weight), true) =
            (io.leaf_weight().filter(|w| *w != 0), files::exists(dir, "blkio.leaf_weight"))
        {
            files::write(dir, "blkio.leaf_weight", &weight.to_string())
                .map_err(|e| explain::limit("the block I/O leaf weight", &weight.to_string(), e))?;
        }
        for device in io.weight_device().iter().flatten() {
            let (Some(weight), Some(file)) =
                (device.weight(), pick(["blkio.weight_device", "blkio.bfq.weight_device"]))
            else {
                continue;
            };
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            files::write(dir, file, &line).map_err(|e| explain::block_device("weight", &line, e))?;
        }
        for (file, what, devices) in throttles(io) {
            for device in devices.iter().flatten() {
                let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
                optional(files::write(dir, file, &line))
                    .map_err(|e| explain::block_device(what, &line, e))?;
            }
        }
        Ok(())
    }
}

type Throttle<'a> = (&'static str, &'static str, &'a Option<Vec<LinuxThrottleDevice>>);

fn throttles(io: &LinuxBlockIo) -> [Throttle<'_>; 4] {
    [
        ("blkio.throttle.read_bps_device", "read rate", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", "write rate", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", "rate of reads", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", "rate of writes", io.throttle_write_iops_device()),
    ]
}

/// A knob that the kernel was built without is left out; the user was told by `Cgroup::unsupported`.
fn optional(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if is(&e, Errno::NOENT) || is(&e, Errno::OPNOTSUPP) => Ok(()),
        done => done,
    }
}
