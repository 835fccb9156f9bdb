//! `inspect` of a container, in Docker's shape.

use crate::network::parse_port;
use crate::store::Container;
use crate::{Engine, Result};
use std::collections::HashMap;
use types::docker::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as State, DriverData, Health,
    HealthStatusEnum, HealthcheckResult, NetworkSettings, PortBinding, PortMap,
};
use types::units::rfc3339;
use types::{HealthState, HealthStatus, RunState, Status};

impl Engine {
    /// All that is known of a container.
    pub fn inspect(&self, name: &str, size: bool) -> Result<ContainerInspectResponse> {
        let c = self.find(name)?;
        let state = self.state(&c)?;
        let dir = self.paths.sandbox(&c.id);
        let file = |name: &str| Some(dir.join(name).to_string_lossy().into_owned());
        let mut command = c.config.entrypoint.iter().flatten().chain(c.config.cmd.iter().flatten()).cloned();
        let (size_rw, size_root_fs) = if size {
            let (rw, all) = self.sizes(&c)?;
            (Some(rw), Some(all))
        } else {
            (None, None)
        };
        let log = crate::config::log_config(&c).ok().and_then(|l| sandbox::logs::current_file(&dir, &l));
        let exec_ids: Vec<String> = match state.status {
            Status::Running => self
                .execs(name)
                .unwrap_or_default()
                .into_iter()
                .filter(|e| e.exit_code.is_none())
                .map(|e| e.id)
                .collect(),
            _ => Vec::new(),
        };
        let mut places = self.places_on_networks(Some(&c.id))?;
        let mode = c.host.network_mode.as_deref();
        let networks = self.shown_networks(&mut places, c.id.as_str(), mode, state.status.is_active());
        let bundle = self.read_bundle(&c.id).ok();
        let process = bundle.as_ref().and_then(|b| b.spec.process().as_ref());
        Ok(ContainerInspectResponse {
            id: Some(c.id.to_string()),
            created: Some(rfc3339(c.created_ns)),
            path: command.next(),
            args: Some(command.collect()),
            state: Some(docker_state(&state)),
            image: Some(c.image_id.clone()),
            resolv_conf_path: file("resolv.conf"),
            hostname_path: file("hostname"),
            hosts_path: file("hosts"),
            log_path: Some(log.map(|l| l.to_string_lossy().into_owned()).unwrap_or_default()),
            name: Some(format!("/{}", c.name)),
            restart_count: Some(state.restart_count.into()),
            driver: Some("overlay".into()),
            platform: Some("linux".into()),
            mount_label: Some(String::new()),
            process_label: Some(process.and_then(|p| p.selinux_label().clone()).unwrap_or_default()),
            app_armor_profile: Some(process.and_then(|p| p.apparmor_profile().clone()).unwrap_or_default()),
            exec_ids: (!exec_ids.is_empty()).then_some(exec_ids),
            host_config: Some(c.host.clone()),
            graph_driver: Some(DriverData {
                name: "overlay".into(),
                data: HashMap::from([
                    ("UpperDir".to_owned(), dir.join("upper").to_string_lossy().into_owned()),
                    ("WorkDir".to_owned(), dir.join("work").to_string_lossy().into_owned()),
                ]),
            }),
            size_rw,
            size_root_fs,
            mounts: Some(c.mounts.iter().map(|m| m.point(&self.paths)).collect()),
            config: Some(self.shown_config(&c)),
            network_settings: Some(NetworkSettings {
                sandbox_id: Some(c.id.to_string()),
                sandbox_key: Some(if state.pid > 0 {
                    format!("/proc/{}/ns/net", state.pid)
                } else {
                    String::new()
                }),
                ports: Some(port_map(&c, &state)),
                networks: Some(
                    networks.into_iter().map(|(name, network)| (name.into_owned(), network)).collect(),
                ),
            }),
            ..Default::default()
        })
    }

    fn shown_config(&self, c: &Container) -> types::docker::ContainerConfig {
        let mut config = c.config.clone();
        if config.hostname.as_deref().unwrap_or("").is_empty() {
            config.hostname = Some(c.id.short().to_owned());
        }
        config
    }

    /// The published ports of a running container: `80/tcp` to addresses of the host.
    pub fn ports(&self, name: &str) -> Result<PortMap> {
        let c = self.find(name)?;
        let state = self.state(&c)?;
        Ok(if state.status.is_active() { port_map(&c, &state) } else { PortMap::new() })
    }
}

fn docker_state(s: &RunState) -> ContainerState {
    ContainerState {
        status: Some(match s.status {
            Status::Created => State::CREATED,
            Status::Running => State::RUNNING,
            Status::Paused => State::PAUSED,
            Status::Restarting => State::RESTARTING,
            Status::Exited => State::EXITED,
            Status::Dead => State::DEAD,
        }),
        running: Some(s.status.is_active()),
        paused: Some(s.status == Status::Paused),
        restarting: Some(s.status == Status::Restarting),
        oom_killed: Some(s.oom_killed),
        dead: Some(s.status == Status::Dead),
        pid: Some(s.pid.into()),
        exit_code: Some(s.exit_code.into()),
        error: Some(s.error.clone()),
        started_at: Some(rfc3339(s.started_ns)),
        finished_at: Some(rfc3339(s.finished_ns)),
        health: s.health.as_ref().map(docker_health),
    }
}

fn docker_health(h: &HealthState) -> Health {
    Health {
        status: Some(match h.status {
            HealthStatus::Starting => HealthStatusEnum::STARTING,
            HealthStatus::Healthy => HealthStatusEnum::HEALTHY,
            HealthStatus::Unhealthy => HealthStatusEnum::UNHEALTHY,
        }),
        failing_streak: Some(h.failing_streak.into()),
        log: Some(
            h.log
                .iter()
                .map(|e| HealthcheckResult {
                    start: Some(rfc3339(e.start_ns)),
                    end: Some(rfc3339(e.end_ns)),
                    exit_code: Some(e.exit_code.into()),
                    output: Some(e.output.clone()),
                })
                .collect(),
        ),
    }
}

fn port_map(c: &Container, state: &RunState) -> PortMap {
    let mut out = PortMap::new();
    for exposed in c.config.exposed_ports.iter().flatten() {
        if let Ok((port, protocol)) = parse_port(exposed) {
            out.insert(format!("{port}/{}", protocol.as_str()), None);
        }
    }
    for p in state.ports.iter().filter(|_| state.status.is_active()) {
        let key = format!("{}/{}", p.container_port, p.protocol.as_str());
        out.entry(key).or_default().get_or_insert_default().push(PortBinding {
            host_ip: Some(p.host_ip.to_string()),
            host_port: Some(p.host_port.to_string()),
        });
    }
    out
}
