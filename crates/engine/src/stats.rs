//! `stats` and `top`: what a container uses, and what runs in it.

use crate::recover::Liveness;
use crate::spec::invalid;
use crate::store::Container;
use crate::{Engine, EngineError, Result, machine};
use sandbox::hull::Stats;
use std::process::Command;
use types::docker::{
    ContainerBlkioStatEntry, ContainerBlkioStats, ContainerCpuStats, ContainerCpuUsage, ContainerMemoryStats,
    ContainerNetworkStats, ContainerPidsStats, ContainerStatsResponse, ContainerThrottlingData,
    ContainerTopResponse,
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

    /// The processes of a running container, as `ps` with these options shows them; Docker's default is `-ef`.
    pub fn top(&self, name: &str, ps_args: &[String]) -> Result<ContainerTopResponse> {
        let container = self.find(name)?;
        let shown = match container.is_vm() {
            true => self.top_of_guest(&container, ps_args)?,
            false => self.top_of_container(&container, ps_args)?,
        };
        self.event(&container, "top", &[]);
        Ok(shown)
    }

    fn top_of_container(&self, container: &Container, ps_args: &[String]) -> Result<ContainerTopResponse> {
        let pids = match self.liveness(container)? {
            Liveness::Supervised(_) => {
                self.client(container)?.processes().map_err(|e| self.refused(container, e))?
            }
            Liveness::Ended(..) => return Err(EngineError::NotRunning(container.id.to_string())),
        };
        let default = ["-ef".to_owned()];
        let args = if ps_args.is_empty() { &default[..] } else { ps_args };
        // Which processes are shown is never the client's to say: ps(1) has root's sight of the whole host, and refuses every
        // other choice beside `-q`. That goes first: nothing that follows takes it for its own argument.
        let listed: Vec<String> = pids.iter().map(i32::to_string).collect();
        let output = Command::new("ps")
            .args(["-q", &listed.join(",")])
            .args(args)
            .output()
            .map_err(EngineError::io("cannot run the program (package procps)", "ps".as_ref()))?;
        // It fails as well where none of the processes is there any more.
        if !output.status.success() && !output.stderr.is_empty() {
            return Err(invalid(format!(
                "ps {}: options that choose or sort processes, or draw a forest, cannot be used here: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).lines().find(|l| !l.is_empty()).unwrap_or_default()
            )));
        }
        parse_ps(&String::from_utf8_lossy(&output.stdout), &pids)
    }

    /// The guest has no `ps` of this host, nor need its image have one: its agent knows one way to show them.
    fn top_of_guest(&self, container: &Container, ps_args: &[String]) -> Result<ContainerTopResponse> {
        if !matches!(ps_args, [] | [_]) || ps_args.iter().any(|a| a != "-ef" && a != "ef") {
            return Err(EngineError::Unsupported(format!(
                "top of a microVM takes no options but -ef, not {:?}: run ps inside (dhow exec {} ps)",
                ps_args.join(" "),
                container.name
            )));
        }
        if let Liveness::Ended(..) = self.liveness(container)? {
            return Err(EngineError::NotRunning(container.id.to_string()));
        }
        self.with_guest(container, |files| Ok(machine::files::top(files.processes()?)))
    }
}

fn parse_ps(text: &str, pids: &[i32]) -> Result<ContainerTopResponse> {
    let mut lines = text.lines();
    let titles: Vec<String> =
        lines.next().unwrap_or("").split_ascii_whitespace().map(str::to_owned).collect();
    let at = titles
        .iter()
        .position(|t| t == "PID")
        .ok_or_else(|| invalid("couldn't find PID field in ps output: the options must show it"))?;
    let processes = lines
        .filter_map(|line| {
            let mut fields: Vec<String> = Vec::with_capacity(titles.len());
            let mut rest = line.trim_start();
            // The last column is a command line, which has spaces.
            while fields.len() + 1 < titles.len() {
                let (field, tail) = rest.split_once(char::is_whitespace)?;
                fields.push(field.to_owned());
                rest = tail.trim_start();
            }
            fields.push(rest.to_owned());
            pids.contains(&fields.get(at)?.parse().ok()?).then_some(fields)
        })
        .collect();
    Ok(ContainerTopResponse { titles: Some(titles), processes: Some(processes) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let text = "UID  PID PPID CMD\nroot   1    0 /sbin/init splash\nroot  20    1 sleep 100 x\n";
        let top = parse_ps(text, &[20]).unwrap();
        assert_eq!(top.processes.unwrap(), [["root", "20", "1", "sleep 100 x"]]);
        assert!(parse_ps("UID CMD\n", &[1]).is_err());
    }
}
