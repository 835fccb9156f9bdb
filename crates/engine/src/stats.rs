//! `stats`: what a container uses.

use crate::recover::Liveness;
use crate::{Engine, EngineError, Result};
use sandbox::hull::Stats;
use types::docker::{
    ContainerBlkioStatEntry, ContainerBlkioStats, ContainerCpuStats, ContainerCpuUsage, ContainerMemoryStats,
    ContainerNetworkStats, ContainerPidsStats, ContainerStatsResponse, ContainerThrottlingData,
};
use types::units::rfc3339;

impl Engine {
    /// Figures of a running container as of now; `precpu_stats` is left to the caller, who knows the ones before.
    pub fn stats(&self, name: &str) -> Result<ContainerStatsResponse> {
        let container = self.find(name)?;
        let stats = match self.liveness(&container)? {
            Liveness::Supervised(_) => {
                match self.client(&container)?.stats().map_err(|e| self.refused(&container, e)) {
                    Err(EngineError::NotRunning(_)) => Stats::default(),
                    done => done?,
                }
            }
            Liveness::Ended(..) => Stats::default(),
        };
        Ok(docker_stats(container.id.as_str(), &container.name, stats))
    }
}

/// Names beside those of `memory.stat`: what a microVM's guest says of its own memory.
pub const GUEST_MEMORY: [&str; 2] = ["guest_usage", "guest_limit"];

fn docker_stats(id: &str, name: &str, s: Stats) -> ContainerStatsResponse {
    let entry = |(major, minor, read, write): &(u64, u64, u64, u64)| {
        [("read", *read), ("write", *write)].map(|(op, value)| ContainerBlkioStatEntry {
            major: Some(*major),
            minor: Some(*minor),
            op: Some(op.into()),
            value: Some(value),
        })
    };
    let inside = s.guest_memory.into_iter().flatten();
    let guest = GUEST_MEMORY.into_iter().zip(inside).map(|(name, value)| (name.to_owned(), value));
    ContainerStatsResponse {
        id: Some(id.to_owned()),
        name: Some(format!("/{name}")),
        os_type: Some("linux".into()),
        read: Some(rfc3339(s.read_ns)),
        preread: Some(rfc3339(0)),
        cpu_stats: Some(ContainerCpuStats {
            cpu_usage: Some(ContainerCpuUsage {
                total_usage: Some(s.cpu_total_ns),
                percpu_usage: None,
                usage_in_kernelmode: Some(s.cpu_system_ns),
                usage_in_usermode: Some(s.cpu_user_ns),
            }),
            system_cpu_usage: Some(s.host_cpu_ns),
            online_cpus: Some(s.online_cpus),
            throttling_data: Some(ContainerThrottlingData {
                periods: Some(s.throttling[0]),
                throttled_periods: Some(s.throttling[1]),
                throttled_time: Some(s.throttling[2]),
            }),
        }),
        memory_stats: Some(ContainerMemoryStats {
            usage: Some(s.memory_usage),
            max_usage: Some(s.memory_max_usage),
            stats: Some(s.memory_stat.into_iter().chain(guest).collect()),
            limit: Some(s.memory_limit),
            ..Default::default()
        }),
        networks: Some(
            s.networks
                .into_iter()
                .map(|(name, n)| {
                    let [
                        rx_bytes,
                        rx_packets,
                        rx_errors,
                        rx_dropped,
                        tx_bytes,
                        tx_packets,
                        tx_errors,
                        tx_dropped,
                    ] = n.map(Some);
                    let stats = ContainerNetworkStats {
                        rx_bytes,
                        rx_packets,
                        rx_errors,
                        rx_dropped,
                        tx_bytes,
                        tx_packets,
                        tx_errors,
                        tx_dropped,
                        ..Default::default()
                    };
                    (name, stats)
                })
                .collect(),
        ),
        pids_stats: Some(ContainerPidsStats {
            current: Some(s.pids),
            limit: (s.pids_limit > 0).then_some(s.pids_limit),
        }),
        blkio_stats: Some(ContainerBlkioStats {
            io_service_bytes_recursive: Some(s.blkio_bytes.iter().flat_map(entry).collect()),
            ..Default::default()
        }),
        num_procs: Some(0),
        ..Default::default()
    }
}
