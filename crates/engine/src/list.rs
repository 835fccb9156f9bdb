//! `ps`.

use crate::listed::{self, Listed};
use crate::network::Places;
use crate::request::ListOptions;
use crate::store::Container;
use crate::{Engine, EngineError, Result, filters};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use types::docker::{
    ContainerSummary, ContainerSummaryHealth, ContainerSummaryHealthStatusEnum as Health,
    ContainerSummaryHostConfig, ContainerSummaryNetworkSettings, ContainerSummaryStateEnum as State,
    PortSummary, PortSummaryTypeEnum,
};
use types::units::human_duration;
use types::{ContainerId, HealthStatus, PortBinding, Protocol, RunState, Status};

const SECOND: i64 = 1_000_000_000;

impl Engine {
    /// The containers that match, latest first.
    pub fn list(&self, options: &ListOptions) -> Result<Vec<ContainerSummary>> {
        let mut out = Vec::new();
        self.list_each(options, &mut |container| out.push(container))?;
        Ok(out)
    }

    /// The same, one after the other: nobody needs to hold all of many.
    pub fn list_each(&self, options: &ListOptions, each: &mut dyn FnMut(ContainerSummary)) -> Result<()> {
        filters::check(&options.filters, filters::CONTAINER)?;
        let asks_status = ["status", "exited"].iter().any(|k| options.filters.contains_key(*k));
        let all = options.all || options.limit.is_some() || asks_status;
        // In this order: what was started before the list began has left its mark, and what is gone is not in it.
        let begun = self.begun();
        let listed = listed::all(&self.db)?;
        let mut places = self.places_on_networks(None)?;
        let now = sys::host::now_ns();
        let mut told = 0;
        for stored in listed {
            let state = match self.listed_state(stored.id(), begun.as_ref()) {
                Ok(state) => state,
                // Gone while it was looked at.
                Err(EngineError::NoSuchContainer(_)) => continue,
                Err(e) => return Err(e),
            };
            if !all && !state.status.is_active() {
                continue;
            }
            let container = stored.read()?;
            if self.container_matches(&options.filters, &container, &state, &places)? {
                let sizes = if options.size { self.listed_sizes(&container.id)? } else { None };
                each(self.summary(container, &state, &mut places, sizes, now));
                told += 1;
                if options.limit.is_some_and(|limit| told >= limit) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Ids of the containers that have files: none of the others was ever started. Nothing if that cannot be told.
    fn begun(&self) -> Option<HashSet<OsString>> {
        let entries = std::fs::read_dir(self.paths.root.join("sandboxes")).ok()?;
        entries.map(|entry| Some(entry.ok()?.file_name())).collect()
    }

    fn listed_state(&self, id: &str, begun: Option<&HashSet<OsString>>) -> Result<RunState> {
        if begun.is_some_and(|begun| !begun.contains(OsStr::new(id))) {
            return Ok(RunState::default());
        }
        let known = ContainerId::parse(id).ok().and_then(|id| self.unsupervised(&id));
        match known {
            // It was never started, or it has just been removed.
            Some(state) if state == RunState::default() => self.find(id).map(|_| state),
            Some(state) => Ok(state),
            // What is active, or looks wrong, is looked at by who has all of it.
            None => self.state(&self.find(id)?),
        }
    }

    fn listed_sizes(&self, id: &ContainerId) -> Result<Option<(i64, i64)>> {
        match self.find(id.as_str()) {
            Ok(container) => self.sizes(&container).map(Some),
            // Gone while it was looked at.
            Err(EngineError::NoSuchContainer(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn summary(
        &self,
        c: Listed,
        state: &RunState,
        places: &mut Places,
        sizes: Option<(i64, i64)>,
        now: i64,
    ) -> ContainerSummary {
        let active = state.status.is_active();
        let networks = self.shown_networks(places, &c.id, c.host.network_mode.as_deref(), active);
        ContainerSummary {
            names: Some(vec![format!("/{}", c.name)]),
            command: Some(c.command()),
            created: Some(c.created_ns / SECOND),
            ports: Some(ports(&c, state)),
            size_rw: sizes.map(|(rw, _)| rw),
            size_root_fs: sizes.map(|(_, all)| all),
            state: Some(match state.status {
                Status::Created => State::CREATED,
                Status::Running => State::RUNNING,
                Status::Paused => State::PAUSED,
                Status::Restarting => State::RESTARTING,
                Status::Exited => State::EXITED,
                Status::Dead => State::DEAD,
            }),
            status: Some(status_text(state, now)),
            network_settings: Some(ContainerSummaryNetworkSettings { networks: Some(networks) }),
            mounts: Some(c.mounts.iter().map(|m| m.point(&self.paths)).collect()),
            health: state.health.as_ref().map(|h| ContainerSummaryHealth {
                status: Some(match h.status {
                    HealthStatus::Starting => Health::STARTING,
                    HealthStatus::Healthy => Health::HEALTHY,
                    HealthStatus::Unhealthy => Health::UNHEALTHY,
                }),
                failing_streak: Some(h.failing_streak.into()),
            }),
            id: Some(c.id.into()),
            image: Some(c.image),
            image_id: Some(c.image_id),
            labels: Some(c.config.labels.unwrap_or_default()),
            host_config: Some(ContainerSummaryHostConfig {
                network_mode: c.host.network_mode,
                annotations: c.host.annotations,
            }),
            ..Default::default()
        }
    }

    /// Bytes of the writable layer, and of it and the image together.
    pub(crate) fn sizes(&self, c: &Container) -> Result<(i64, i64)> {
        let rw = match self.writable_plan(c)? {
            None => rootfs::usage(&self.paths.sandbox(&c.id).join("upper"))?,
            Some(disk) => {
                let upper = disk.mountpoint().join("upper");
                self.with_writable(c, || Ok(rootfs::usage(&upper)?))?
            }
        } as i64;
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

fn ports(c: &Listed, state: &RunState) -> Vec<PortSummary> {
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
    for exposed in c.config.exposed_ports.iter().flat_map(|ports| ports.keys()) {
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
