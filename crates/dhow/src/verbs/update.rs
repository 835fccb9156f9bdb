//! `update`.

use crate::args::values;
use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::verb::Run as Verb;
use types::docker;

/// Flags of `update`.
#[derive(clap::Args, Debug)]
pub struct Update {
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long, value_name = "uint16", value_parser = values::blkio_weight)]
    blkio_weight: Option<u16>,
    /// Limit CPU CFS (Completely Fair Scheduler) period, in microseconds
    #[arg(long, value_name = "int", value_parser = values::int)]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota, in microseconds
    #[arg(long, value_name = "int", value_parser = values::int)]
    cpu_quota: Option<i64>,
    /// Limit CPU real-time period in microseconds
    #[arg(long, value_name = "int", value_parser = values::int)]
    cpu_rt_period: Option<i64>,
    /// Limit CPU real-time runtime in microseconds
    #[arg(long, value_name = "int", value_parser = values::int)]
    cpu_rt_runtime: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short, long, value_name = "int", value_parser = values::int)]
    cpu_shares: Option<i64>,
    /// Number of CPUs
    #[arg(long, value_name = "decimal", value_parser = values::nano_cpus)]
    cpus: Option<i64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_cpus: Option<String>,
    /// Memory nodes in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_mems: Option<String>,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = values::bytes)]
    memory: Option<i64>,
    /// Memory soft limit
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    memory_reservation: Option<i64>,
    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, value_name = "bytes", value_parser = values::bytes_or_minus_one)]
    memory_swap: Option<i64>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, value_name = "int", value_parser = values::int)]
    pids_limit: Option<i64>,
    /// Restart policy to apply when a container exits
    #[arg(long, value_name = "string", value_parser = values::restart_policy)]
    restart: Option<docker::RestartPolicy>,
    /// Limit read rate (bytes per second) from a device
    #[arg(long, value_name = "list", value_parser = values::throttle_bytes)]
    device_read_bps: Vec<docker::ThrottleDevice>,
    /// Limit read rate (IO per second) from a device
    #[arg(long, value_name = "list", value_parser = values::throttle_count)]
    device_read_iops: Vec<docker::ThrottleDevice>,
    /// Limit write rate (bytes per second) to a device
    #[arg(long, value_name = "list", value_parser = values::throttle_bytes)]
    device_write_bps: Vec<docker::ThrottleDevice>,
    /// Limit write rate (IO per second) to a device
    #[arg(long, value_name = "list", value_parser = values::throttle_count)]
    device_write_iops: Vec<docker::ThrottleDevice>,
}

impl Verb for Update {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let list = |l: Vec<docker::ThrottleDevice>| (!l.is_empty()).then_some(l);
        let request = docker::ContainerUpdateBody {
            blkio_weight: self.blkio_weight,
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_realtime_period: self.cpu_rt_period,
            cpu_realtime_runtime: self.cpu_rt_runtime,
            cpu_shares: self.cpu_shares,
            nano_cpus: self.cpus,
            cpuset_cpus: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            memory: self.memory,
            memory_reservation: self.memory_reservation,
            memory_swap: self.memory_swap,
            pids_limit: self.pids_limit,
            restart_policy: self.restart,
            blkio_device_read_bps: list(self.device_read_bps),
            blkio_device_read_iops: list(self.device_read_iops),
            blkio_device_write_bps: list(self.device_write_bps),
            blkio_device_write_iops: list(self.device_write_iops),
            ..docker::ContainerUpdateBody::default()
        };
        if request == docker::ContainerUpdateBody::default() {
            return Err("you must provide one or more flags when using this command".into());
        }
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            for w in engine.update(name, &request)? {
                cx.out.warning(&w);
            }
            Ok(cx.out.line(name)?)
        })
    }
}
