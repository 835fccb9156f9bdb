//! A container's places on networks: checked when it is created, changed by `network connect` and `disconnect`.
//!
//! The row is what is wanted, and comes first: a command that is killed between the row and the running container leaves one
//! that has its interface from its next start on, or at once when the command is given again.

use crate::network::plan::{self, Options, publish};
use crate::network::rows::{self, Driver, Endpoint, Network};
use crate::network::{leases, ports};
use crate::recover::Liveness;
use crate::spec::invalid;
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use sandbox::client::ClientError;
use std::collections::HashSet;
use types::docker::EndpointSettings;
use types::{Attachment, ErrorKind, Kinded, NetworkPlan};

/// Networks that a container cannot be connected to, with what Docker says.
fn refuse_special(container: &Container) -> Result<()> {
    let mode = container.host.network_mode.as_deref().unwrap_or(rows::DEFAULT);
    Err(EngineError::Conflict(match mode {
        "host" => "container cannot be disconnected from host network or connected to host network".into(),
        "none" => {
            "container cannot be connected to multiple networks with one of the networks in private (none) mode".into()
        }
        _ if mode.starts_with("container:") => {
            "container sharing network namespace with another container or host cannot be connected to any other network"
                .into()
        }
        _ => return Ok(()),
    }))
}

impl Engine {
    /// The endpoints of a container that is being created, in the order of its interfaces: the network of its mode first.
    pub(crate) fn new_endpoints(
        &self,
        container: &Container,
        asked: Vec<(String, EndpointSettings)>,
    ) -> Result<Vec<Endpoint>> {
        let mode = container.host.network_mode.as_deref().unwrap_or(rows::DEFAULT);
        let bridged = !matches!(mode, "host" | "none") && !mode.starts_with("container:");
        if !bridged {
            // What names the mode itself asks for nothing more.
            return match asked.iter().find(|(name, s)| name != mode || *s != EndpointSettings::default()) {
                Some((name, _)) => Err(EngineError::Invalid(format!(
                    "conflicting options: network {name}, or an address or alias, cannot be chosen with --network {mode}"
                ))),
                None => Ok(Vec::new()),
            };
        }
        let primary = rows::find(&self.db, mode)?;
        let mut list: Vec<(Network, EndpointSettings)> = Vec::new();
        for (name, settings) in asked {
            let network = if name == "default" { primary.clone() } else { rows::find(&self.db, &name)? };
            if list.iter().any(|(n, _)| n.id == network.id) {
                return Err(invalid(format!("network {:?} is specified multiple times", network.name)));
            }
            list.push((network, settings));
        }
        match list.iter().position(|(n, _)| n.id == primary.id) {
            Some(place) => list[..=place].rotate_right(1),
            None => list.insert(0, (primary, EndpointSettings::default())),
        }
        if list.len() > net::MAX_INTERFACES {
            return Err(invalid(format!("a container may be on {} networks at most", net::MAX_INTERFACES)));
        }
        let own = plan::egress_of(container)?;
        let policies = list.iter().map(|(n, _)| (n.name.as_str(), own.as_ref().unwrap_or(&n.config.egress)));
        plan::check_names_of_egress(policies)?;
        let endpoints = list.into_iter().enumerate();
        endpoints.map(|(n, (network, settings))| endpoint(container, &network, settings, n as i64)).collect()
    }

    /// Connects a container to a network, at once if it runs.
    pub fn connect_network(&self, network: &str, container: &str, settings: EndpointSettings) -> Result<()> {
        let network = rows::find(&self.db, network)?;
        let container = self.find(container)?;
        refuse_special(&container)?;
        let held = rows::of_container(&self.db, container.id.as_str())?;
        let known = held.iter().find(|(e, _)| e.network == network.id).map(|(e, _)| e.clone());
        if held.len() >= net::MAX_INTERFACES && known.is_none() {
            return Err(invalid(format!("a container may be on {} networks at most", net::MAX_INTERFACES)));
        }
        let position = held.iter().map(|(e, _)| e.position + 1).max().unwrap_or(0);
        let wanted = match &known {
            Some(endpoint) => endpoint.clone(),
            None => endpoint(&container, &network, settings, position)?,
        };
        // Who starts meanwhile has the row, or is found running.
        if known.is_none() {
            self.db.write(|tx| wanted.insert(tx))?;
        }
        match self.connect_running(&container, &network, &wanted) {
            Ok(true) => {}
            Ok(false) if known.is_some() => return Err(already(&container, &network)),
            Ok(false) => {}
            Err(e) => {
                if known.is_none() {
                    wanted.delete(&self.db)?;
                }
                return Err(e);
            }
        }
        self.network_event(&network, "connect", Some(container.id.as_str()));
        Ok(())
    }

    /// Gives a running container its interface; false if it does not run, or has it.
    fn connect_running(&self, container: &Container, network: &Network, endpoint: &Endpoint) -> Result<bool> {
        let Liveness::Supervised(_) = self.settled(container)? else { return Ok(false) };
        let bundle = self.read_bundle(&container.id)?;
        let NetworkPlan::Networks(list) = &bundle.network else { return Ok(false) };
        if list.iter().any(|a| a.network == network.id) {
            return Ok(false);
        }
        let slot = bundle.network.free_slots().next().filter(|s| *s < net::MAX_INTERFACES);
        let slot = slot.ok_or_else(|| invalid("the container has no interface left"))?;
        let mut attachment = self.attachment(container, network, endpoint, slot)?;
        let mut all: Vec<Attachment> = list.clone();
        all.push(attachment.clone());
        plan::check_names_of_egress(all.iter().map(|a| (a.network_name.as_str(), &a.egress)))?;
        if !attachment.bridge.internal && !list.iter().any(|a| a.default_route) {
            attachment.default_route = true;
            publish(&mut attachment, ports::ports(container)?);
        }
        let Err(e) = self.client(container)?.connect_network(&attachment) else { return Ok(true) };
        // Another command was faster.
        if self.read_bundle(&container.id)?.network.attachments().iter().any(|a| a.network == network.id) {
            return Ok(false);
        }
        match self.refused(container, e) {
            EngineError::NotRunning(_) => Ok(true),
            other => Err(other),
        }
    }

    /// Disconnects a container from a network. A network that was removed is known by the container alone; with `force`
    /// so is a container that was removed.
    pub fn disconnect_network(&self, network: &str, container: &str, force: bool) -> Result<()> {
        let container = match self.find(container) {
            // Its places went with it.
            Err(EngineError::NoSuchContainer(_)) if force => return rows::find(&self.db, network).map(drop),
            found => found?,
        };
        refuse_special(&container)?;
        let held = rows::of_container(&self.db, container.id.as_str())?;
        let known = rows::find(&self.db, network);
        let of = |e: &Endpoint| match &known {
            Ok(network) => e.network == network.id,
            Err(_) => e.name == network || e.network == network,
        };
        let Some((endpoint, found)) = held.into_iter().find(|(e, _)| of(e)) else {
            let network = known?;
            return Err(EngineError::Conflict(format!(
                "container {} is not connected to network {}",
                container.name, network.name
            )));
        };
        if let Liveness::Supervised(_) = self.settled(&container)? {
            match self.client(&container)?.disconnect_network(&endpoint.network) {
                Ok(()) => {}
                // It never got that interface, or has lost it to a command that was killed.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(ClientError::Gone) => {}
                Err(e) => return Err(e.into()),
            }
        }
        endpoint.delete(&self.db)?;
        if let Some(network) = found {
            self.network_event(&network, "disconnect", Some(container.id.as_str()));
        }
        Ok(())
    }

    /// The attachments to a network of all that runs or is being started: whoever holds its lock. Nobody is left out because
    /// something could not be read: who is not in this list is taken for dead.
    pub(crate) fn live_attachments(&self, network: &str) -> Result<Vec<Attachment>> {
        let mut all = Vec::new();
        for endpoint in rows::of_network(&self.db, network)? {
            let container = match self.find(&endpoint.container) {
                Err(EngineError::NoSuchContainer(_)) => continue,
                found => found?,
            };
            // Who never started has no bundle, and is on no network.
            if !self.is_held(&container.id) || !self.paths.bundle(&container.id).exists() {
                continue;
            }
            let NetworkPlan::Networks(mut list) = self.read_bundle(&container.id)?.network else { continue };
            // The numbers that were decided at the start.
            if let Some(publisher) = list.iter_mut().find(|a| !a.ports.is_empty()) {
                publisher.ports = self.read_state(&container.id).ports;
            }
            all.extend(list.into_iter().filter(|a| a.network == network));
        }
        Ok(all)
    }
}

/// A place on a network, checked as far as a stopped container's can be.
fn endpoint(
    container: &Container,
    network: &Network,
    settings: EndpointSettings,
    position: i64,
) -> Result<Endpoint> {
    if matches!(network.config.driver, Driver::Host | Driver::Null) {
        return Err(EngineError::Conflict(format!(
            "container cannot be connected to multiple networks with one of the networks in {} mode",
            if network.config.driver == Driver::Host { "host" } else { "private (none)" }
        )));
    }
    let endpoint = Endpoint {
        container: container.id.to_string(),
        network: network.id.clone(),
        name: network.name.clone(),
        position,
        settings: asked(settings),
        ipv4: None,
        ipv6: None,
    };
    leases::wanted(network, &endpoint)?;
    Options::read(&endpoint.settings)?;
    if let Some(mac) = endpoint.settings.mac_address.as_deref().filter(|m| !m.is_empty()) {
        plan::parse_mac(mac)?;
    }
    let aliases = endpoint.settings.aliases.as_deref().unwrap_or_default();
    if network.is_default() && !aliases.is_empty() {
        return Err(invalid(
            "network-scoped alias is supported only for containers in user defined networks",
        ));
    }
    if let Some(bad) = aliases.iter().find(|a| !is_alias(a)) {
        return Err(invalid(format!("invalid network alias {bad:?}: a host name, such as db or db.example")));
    }
    Ok(endpoint)
}

/// What can be asked for; the rest is what `inspect` tells, which clients send back.
fn asked(settings: EndpointSettings) -> EndpointSettings {
    let mut seen = HashSet::new();
    let aliases = settings.aliases.unwrap_or_default().into_iter().filter(|a| seen.insert(a.clone()));
    let aliases: Vec<_> = aliases.collect();
    EndpointSettings {
        ipam_config: settings.ipam_config,
        mac_address: settings.mac_address.filter(|m| !m.is_empty()),
        aliases: (!aliases.is_empty()).then_some(aliases),
        driver_opts: settings.driver_opts.filter(|o| !o.is_empty()),
        gw_priority: settings.gw_priority.filter(|p| *p != 0),
        ..EndpointSettings::default()
    }
}

/// Names that a resolver can ask for (RFC 1123, with Docker's underscore).
fn is_alias(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn already(container: &Container, network: &Network) -> EngineError {
    EngineError::Conflict(format!(
        "endpoint with name {} already exists in network {}: the container is already connected",
        container.name, network.name
    ))
}
