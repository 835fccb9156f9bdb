//! `ps`.

use crate::request::ListOptions;
use crate::store::{self, Container};
use crate::{Engine, EngineError, Result, filters};
use types::docker::{
    ContainerSummary, ContainerSummaryHealth, ContainerSummaryHealthStatusEnum as Health,
    ContainerSummaryHostConfig, ContainerSummaryNetworkSettings, ContainerSummaryStateEnum as State,
    PortSummary, PortSummaryTypeEnum,
};
use types::units::human_duration;
use types::{HealthStatus, PortBinding, Protocol, RunState, Status};

const SECOND: i64 = 1_000_000_000;

impl Engine {
    /// The containers that match, latest first.
    pub fn list(&self, options: &ListOptions) -> Result<Vec<ContainerSummary>> {
        filters::check(&options.filters, filters::CONTAINER)?;
        let asks_status = ["status", "exited"].iter().any(|k| options.filters.contains_key(*k));
        let all = options.all || options.limit.is_some() || asks_status;
        let mut out = Vec::new();
        for container in store::all(&self.db)? {
            let state = match self.state(&container) {
                Ok(state) => state,
                // Gone while it was looked at.
                Err(EngineError::NoSuchContainer(_)) => continue,
                Err(e) => return Err(e),
            };
            if (all || state.status.is_active())
                && self.container_matches(&options.filters, &container, &state)?
            {
                out.push(self.summary(&container, &state, options.size)?);
                if options.limit.is_some_and(|l| out.len() >= l) {
                    break;
                }
            }
        }
        Ok(out)
    }

    fn summary(&self, c: &Container, state: &RunState, size: bool) -> Result<ContainerSummary> {
        let command: Vec<&str> = c
            .config
            .entrypoint
            .iter()
            .flatten()
            .chain(c.config.cmd.iter().flatten())
            .map(String::as_str)
            .collect();
        let (size_rw, size_root_fs) = if size {
            let (rw, all) = self.sizes(c)?;
            (Some(rw), Some(all))
        } else {
            (None, None)
        };
        let networks = ContainerSummaryNetworkSettings { networks: Some(self.endpoints(c, state)?) };
        Ok(ContainerSummary {
            id: Some(c.id.to_string()),
            names: Some(vec![format!("/{}", c.name)]),
            image: Some(c.image.clone()),
            image_id: Some(c.image_id.clone()),
            command: Some(command.join(" ")),
            created: Some(c.created_ns / SECOND),
            ports: Some(ports(c, state)),
            size_rw,
            size_root_fs,
            labels: Some(c.config.labels.clone().unwrap_or_default()),
            state: Some(match state.status {
                Status::Created => State::CREATED,
                Status::Running => State::RUNNING,
                Status::Paused => State::PAUSED,
                Status::Restarting => State::RESTARTING,
                Status::Exited => State::EXITED,
                Status::Dead => State::DEAD,
            }),
            status: Some(status_text(state, sys::host::now_ns())),
            host_config: Some(ContainerSummaryHostConfig {
                network_mode: c.host.network_mode.clone(),
                annotations: c.host.annotations.clone(),
            }),
            network_settings: Some(networks),
            mounts: Some(c.mounts.iter().map(|m| m.point(&self.paths)).collect()),
            health: state.health.as_ref().map(|h| ContainerSummaryHealth {
                status: Some(match h.status {
                    HealthStatus::Starting => Health::STARTING,
                    HealthStatus::Healthy => Health::HEALTHY,
                    HealthStatus::Unhealthy => Health::UNHEALTHY,
                }),
                failing_streak: Some(h.failing_streak.into()),
            }),
            ..Default::default()
        })
    }

    /// Bytes of the writable layer, and of it and the image together.
    pub(crate) fn sizes(&self, c: &Container) -> Result<(i64, i64)> {
        let rw = rootfs::usage(&self.paths.sandbox(&c.id).join("upper"))? as i64;
        let image = self.images.resolve(&c.image_id, None).map_or(0, |i| i.size as i64);
        Ok((rw, rw + image))
    }
}

/// Docker's status column: `Up 5 minutes (healthy)`.
pub(crate) fn status_text(state: &RunState, now: i64) -> String {
    let up = || human_duration((now - state.started_ns).max(0) / SECOND);
    let ago = || human_duration((now - state.finished_ns).max(0) / SECOND);
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => match &state.health {
            Some(h) if h.status == HealthStatus::Starting => format!("Up {} (health: starting)", up()),
            Some(h) => format!("Up {} ({})", up(), h.status.as_str()),
            None => format!("Up {}", up()),
        },
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, ago()),
        // It never ran: its start failed.
        Status::Exited if state.started_ns == 0 => "Created".into(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, ago()),
        Status::Dead => "Dead".into(),
    }
}

fn ports(c: &Container, state: &RunState) -> Vec<PortSummary> {
    let kind = |p: Protocol| {
        Some(match p {
            Protocol::Tcp => PortSummaryTypeEnum::TCP,
            Protocol::Udp => PortSummaryTypeEnum::UDP,
        })
    };
    let published: &[PortBinding] = if state.status.is_active() { &state.ports } else { &[] };
    let mut out: Vec<PortSummary> = published
        .iter()
        .map(|p| PortSummary {
            ip: Some(p.host_ip.to_string()),
            private_port: p.container_port,
            public_port: Some(p.host_port),
            typ: kind(p.protocol),
        })
        .collect();
    for exposed in c.config.exposed_ports.iter().flatten() {
        let Ok((port, protocol)) = crate::network::parse_port(exposed) else { continue };
        if state.status.is_active()
            && !published.iter().any(|p| (p.container_port, p.protocol) == (port, protocol))
        {
            out.push(PortSummary { ip: None, private_port: port, public_port: None, typ: kind(protocol) });
        }
    }
    out.sort_by_key(|p| (p.private_port, p.public_port, p.ip.clone()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_reads_as_dockers() {
        let of = |status, exit_code| RunState {
            status,
            exit_code,
            started_ns: 1,
            finished_ns: 1,
            ..Default::default()
        };
        assert_eq!(status_text(&of(Status::Running, 0), 90 * SECOND), "Up About a minute");
        assert_eq!(status_text(&of(Status::Exited, 137), 5 * SECOND + 1), "Exited (137) 5 seconds ago");
        assert_eq!(status_text(&of(Status::Paused, 0), 5 * SECOND + 1), "Up 5 seconds (Paused)");
    }
}
