//! `ps`.

use crate::listed::{self, Listed, Text, Words};
use crate::network::Places;
use crate::pattern::Patterns;
use crate::request::ListOptions;
use crate::store::Container;
use crate::{Engine, EngineError, Result, filters};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use types::docker::{
    ContainerSummary, ContainerSummaryHealth, ContainerSummaryHealthStatusEnum as Health,
    ContainerSummaryHostConfig, ContainerSummaryNetworkSettings, ContainerSummaryStateEnum as State,
    EndpointSettings, MountPoint, PortSummary, PortSummaryTypeEnum,
};
use types::units::human_duration;
use types::{ContainerId, HealthStatus, PortBinding, Protocol, RunState, Status};

const SECOND: i64 = 1_000_000_000;

/// A container as lists tell of it: the members of [`ContainerSummary`], none of them copied.
#[derive(Debug)]
#[expect(missing_docs, reason = "they are described there")]
pub struct Summary<'a> {
    pub id: &'a str,
    /// Without the slash.
    pub name: &'a str,
    pub image: &'a str,
    pub image_id: &'a str,
    pub command: String,
    pub created: i64,
    pub ports: Vec<PortSummary>,
    /// `SizeRw` and `SizeRootFs`.
    pub sizes: Option<(i64, i64)>,
    pub labels: Words<'a>,
    pub state: State,
    pub status: Cow<'static, str>,
    pub health: Option<ContainerSummaryHealth>,
    pub network_mode: Option<Text<'a>>,
    pub annotations: Option<Words<'a>>,
    pub networks: Vec<(Cow<'static, str>, EndpointSettings)>,
    pub mounts: Vec<MountPoint>,
}

fn owned(words: Words<'_>) -> HashMap<String, String> {
    words.into_iter().map(|(key, value)| (key.into_string(), value.into_string())).collect()
}

impl From<Summary<'_>> for ContainerSummary {
    fn from(c: Summary<'_>) -> Self {
        let networks = c.networks.into_iter().map(|(name, network)| (name.into_owned(), network)).collect();
        Self {
            id: Some(c.id.to_owned()),
            names: Some(vec![format!("/{}", c.name)]),
            image: Some(c.image.to_owned()),
            image_id: Some(c.image_id.to_owned()),
            command: Some(c.command),
            created: Some(c.created),
            ports: Some(c.ports),
            size_rw: c.sizes.map(|(rw, _)| rw),
            size_root_fs: c.sizes.map(|(_, all)| all),
            labels: Some(owned(c.labels)),
            state: Some(c.state),
            status: Some(c.status.into_owned()),
            health: c.health,
            host_config: Some(ContainerSummaryHostConfig {
                network_mode: c.network_mode.map(Text::into_string),
                annotations: c.annotations.map(owned),
            }),
            network_settings: Some(ContainerSummaryNetworkSettings { networks: Some(networks) }),
            mounts: Some(c.mounts),
            ..Self::default()
        }
    }
}

impl Engine {
    /// The containers that match, latest first.
    pub fn list(&self, options: &ListOptions) -> Result<Vec<ContainerSummary>> {
        let mut out = Vec::new();
        self.list_each(options, &mut |container, _| out.push(container.into()))?;
        Ok(out)
    }

    /// The same, one after the other: nobody needs to hold all of many. Beside each, how many may come after it.
    pub fn list_each(&self, options: &ListOptions, each: &mut dyn FnMut(Summary<'_>, usize)) -> Result<()> {
        filters::check(&options.filters, filters::CONTAINER)?;
        let asks_status = ["status", "exited"].iter().any(|k| options.filters.contains_key(*k));
        let all = options.all || options.limit.is_some() || asks_status;
        // In this order: what was started before the list began has left its mark, and what is gone is not in it.
        let begun = self.begun();
        let listed = listed::all(&self.db)?;
        let mut places = self.places_on_networks(None)?;
        let now = sys::host::now_ns();
        let patterns = Patterns::of(&options.filters);
        let limit = options.limit.unwrap_or(usize::MAX);
        let mut told = 0;
        for (stored, left) in listed.iter().zip((0..listed.len()).rev()) {
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
            if self.container_matches(&options.filters, &container, &state, &places, &patterns)? {
                let sizes = if options.size { self.listed_sizes(container.id)? } else { None };
                told += 1;
                each(self.summary(container, &state, &mut places, sizes, now), left.min(limit - told));
                if told >= limit {
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

    fn listed_sizes(&self, id: &str) -> Result<Option<(i64, i64)>> {
        match self.find(id) {
            Ok(container) => self.sizes(&container).map(Some),
            // Gone while it was looked at.
            Err(EngineError::NoSuchContainer(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn summary<'a>(
        &self,
        c: Listed<'a>,
        state: &RunState,
        places: &mut Places,
        sizes: Option<(i64, i64)>,
        now: i64,
    ) -> Summary<'a> {
        let active = state.status.is_active();
        Summary {
            command: c.command(),
            created: c.created_ns / SECOND,
            ports: ports(&c, state),
            sizes,
            state: match state.status {
                Status::Created => State::CREATED,
                Status::Running => State::RUNNING,
                Status::Paused => State::PAUSED,
                Status::Restarting => State::RESTARTING,
                Status::Exited => State::EXITED,
                Status::Dead => State::DEAD,
            },
            status: status_text(state, now),
            health: state.health.as_ref().map(|h| ContainerSummaryHealth {
                status: Some(match h.status {
                    HealthStatus::Starting => Health::STARTING,
                    HealthStatus::Healthy => Health::HEALTHY,
                    HealthStatus::Unhealthy => Health::UNHEALTHY,
                }),
                failing_streak: Some(h.failing_streak.into()),
            }),
            networks: self.shown_networks(places, c.id, c.network_mode(), active),
            mounts: c.mounts.iter().map(|m| m.point(&self.paths)).collect(),
            id: c.id,
            name: c.name,
            image: c.image,
            image_id: c.image_id,
            labels: c.config.labels.unwrap_or_default(),
            network_mode: c.host.network_mode,
            annotations: c.host.annotations,
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
pub(crate) fn status_text(state: &RunState, now: i64) -> Cow<'static, str> {
    let up = || human_duration((now - state.started_ns).max(0) / SECOND);
    let ago = || human_duration((now - state.finished_ns).max(0) / SECOND);
    let told = match state.status {
        Status::Created => return "Created".into(),
        Status::Running => match &state.health {
            Some(h) if h.status == HealthStatus::Starting => format!("Up {} (health: starting)", up()),
            Some(h) => format!("Up {} ({})", up(), h.status.as_str()),
            None => format!("Up {}", up()),
        },
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, ago()),
        // It never ran: its start failed.
        Status::Exited if state.started_ns == 0 => return "Created".into(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, ago()),
        Status::Dead => return "Dead".into(),
    };
    told.into()
}

fn ports(c: &Listed<'_>, state: &RunState) -> Vec<PortSummary> {
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
        let Ok((port, protocol)) = crate::network::parse_port(exposed.as_str()) else { continue };
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
