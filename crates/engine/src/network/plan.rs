//! What a container's network will be at its start: from its endpoints to a [`NetworkPlan`].

use crate::network::egress::{EGRESS, parse_egress};
use crate::network::request::flag;
use crate::network::rows::{self, Endpoint, Network};
use crate::network::{leases, ports};
use crate::spec::invalid;
use crate::store::{self, Container};
use crate::{Engine, EngineError, Result};
use types::docker::EndpointSettings;
use types::{Attachment, Bandwidth, Egress, EgressTo, NetworkPlan};

/// The option of an endpoint that lets a container reach the host's own services by its network (`true`).
pub const HOST_ACCESS: &str = "dhow.host-access";
/// How much it may receive, and send.
const RATE_IN: &str = "dhow.ingress-rate";
const RATE_OUT: &str = "dhow.egress-rate";

impl Engine {
    /// Decides the network of a container that is about to start.
    pub(crate) fn plan_network(&self, container: &Container) -> Result<NetworkPlan> {
        let mode = container.host.network_mode.as_deref().unwrap_or(rows::DEFAULT);
        match mode {
            "host" => return Ok(NetworkPlan::Host),
            "none" => return Ok(NetworkPlan::None),
            _ => {}
        }
        if let Some(name) = mode.strip_prefix("container:") {
            return Ok(NetworkPlan::Container(store::find(&self.db, name)?.id.to_string()));
        }
        let mut list = Vec::new();
        let mut priorities = Vec::new();
        for (slot, (endpoint, network)) in
            rows::of_container(&self.db, container.id.as_str())?.into_iter().enumerate()
        {
            let network = match network {
                Some(network) => network,
                None => self.made_again(&endpoint)?,
            };
            priorities.push(endpoint.settings.gw_priority.unwrap_or(0));
            list.push(self.attachment(container, &network, &endpoint, slot)?);
        }
        route(&mut list, &priorities);
        check_names_of_egress(list.iter().map(|a| (a.network_name.as_str(), &a.egress)))?;
        let ports = ports::ports(container)?;
        if let Some(attachment) = list.iter_mut().find(|a| a.default_route) {
            publish(attachment, ports);
        }
        Ok(NetworkPlan::Networks(list))
    }

    /// A network of the name of one that was removed.
    fn made_again(&self, endpoint: &Endpoint) -> Result<Network> {
        let network = rows::find(&self.db, &endpoint.name).ok().filter(|n| n.name == endpoint.name);
        let network = network.ok_or_else(|| leases::gone(&endpoint.name))?;
        self.db.write::<_, EngineError>(|tx| {
            let sql = "UPDATE endpoints SET network = ?1, ipv4 = NULL, ipv6 = NULL WHERE container = ?2 AND network = ?3";
            tx.execute(sql, [&network.id, &endpoint.container, &endpoint.network])?;
            Ok(())
        })?;
        Ok(network)
    }

    /// One interface. No route leads by it and no port is published on it yet.
    pub(super) fn attachment(
        &self,
        container: &Container,
        network: &Network,
        endpoint: &Endpoint,
        slot: usize,
    ) -> Result<Attachment> {
        let bridge = match &network.config.bridge {
            Some(bridge) => bridge.clone(),
            None => self.default_bridge()?,
        };
        let (ipv4, ipv6) = self.lease(network, &bridge, endpoint)?;
        let options = Options::read(&endpoint.settings)?;
        Ok(Attachment {
            bridge,
            id: container.id.to_string(),
            network: network.id.clone(),
            network_name: network.name.clone(),
            names: names(container, &endpoint.settings),
            default_route: false,
            egress: match egress_of(container)? {
                Some(own) => own,
                None => network.config.egress.clone(),
            },
            host_access: options.host_access,
            bandwidth: options.bandwidth,
            uplink: network.config.uplink.clone(),
            host_ifname: net::host_ifname(container.id.as_str(), slot),
            ifname: format!("eth{slot}"),
            mac: match endpoint.settings.mac_address.as_deref().filter(|m| !m.is_empty()) {
                Some(text) => parse_mac(text)?,
                None => net::mac_from_ipv4(ipv4),
            },
            ipv4,
            ipv6,
            ports: Vec::new(),
        })
    }
}

/// Gives the default route to the first network that leads outside, or to the one of the highest priority.
fn route(list: &mut [Attachment], priorities: &[i64]) {
    let outside = list.iter().enumerate().filter(|(_, a)| !a.bridge.internal);
    let chosen = outside
        .max_by_key(|(slot, _)| (priorities.get(*slot).copied().unwrap_or(0), std::cmp::Reverse(*slot)))
        .map(|(slot, _)| slot);
    if let Some(attachment) = chosen.and_then(|slot| list.get_mut(slot)) {
        attachment.default_route = true;
    }
}

/// Ports are published where the default route is, so that answers leave by the interface by which questions came.
pub(super) fn publish(attachment: &mut Attachment, mut ports: Vec<types::PortBinding>) {
    // Who is on a LAN has its ports there.
    if attachment.uplink.is_some() {
        return;
    }
    if attachment.ipv6.is_none() {
        ports.retain(|p| p.host_ip.is_ipv4());
    }
    attachment.ports = ports;
}

/// Names on the network: the container's, its short id, then aliases.
fn names(container: &Container, settings: &EndpointSettings) -> Vec<String> {
    let mut names = vec![container.name.clone()];
    let more = std::iter::once(container.id.short().to_owned());
    for name in more.chain(settings.aliases.iter().flatten().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The container's own egress policy.
pub(super) fn egress_of(container: &Container) -> Result<Option<Egress>> {
    let text = container.host.annotations.as_ref().and_then(|a| a.get(EGRESS));
    text.map(|t| parse_egress(t)).transpose()
}

/// Names of an egress policy are enforced by the DNS server of user-defined networks, which sees what they resolve to.
/// Given are the networks of a container, by name, and what may be reached by each.
pub(super) fn check_names_of_egress<'a>(networks: impl Iterator<Item = (&'a str, &'a Egress)>) -> Result<()> {
    let mut found = None;
    for (network, egress) in networks {
        if network != rows::DEFAULT {
            return Ok(());
        }
        if let Egress::Only(rules) = egress {
            found = found.or_else(|| {
                rules.iter().find_map(|r| match &r.to {
                    EgressTo::Name(name) => Some(name.clone()),
                    EgressTo::Subnet(..) => None,
                })
            });
        }
    }
    match found {
        Some(name) => Err(invalid(format!(
            "the name {name} in --egress needs a user-defined network, whose DNS server sees what it resolves to: create one with network create"
        ))),
        None => Ok(()),
    }
}

/// An endpoint's options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    host_access: bool,
    bandwidth: Bandwidth,
}

impl Options {
    pub fn read(settings: &EndpointSettings) -> Result<Self> {
        let mut out = Self::default();
        for (key, value) in settings.driver_opts.iter().flatten() {
            let wrong = |why: &str| invalid(format!("invalid network option {key}={value}: {why}"));
            let rate =
                || types::units::parse_rate(value).map(Some).ok_or_else(|| wrong("a rate such as 10mbit"));
            match key.as_str() {
                HOST_ACCESS => out.host_access = flag(value).ok_or_else(|| wrong("true or false"))?,
                RATE_IN => out.bandwidth.ingress = rate()?,
                RATE_OUT => out.bandwidth.egress = rate()?,
                _ => return Err(wrong("it is not known")),
            }
        }
        Ok(out)
    }
}

pub(super) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let wrong = || invalid(format!("invalid MAC address {text:?}"));
    let mut out = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut out {
        let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() || out[0] & 1 != 0 {
        return Err(wrong());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_options_are_read() {
        assert_eq!(parse_mac("02:42:ac:11:00:02").unwrap(), [2, 0x42, 0xac, 0x11, 0, 2]);
        for bad in ["", "02:42", "03:42:ac:11:00:02", "02:42:ac:11:00:02:01", "zz:42:ac:11:00:02"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        let of = |key: &str, value: &str| {
            let driver_opts = Some([(key.to_owned(), value.to_owned())].into());
            Options::read(&EndpointSettings { driver_opts, ..Default::default() })
        };
        assert!(of(HOST_ACCESS, "true").unwrap().host_access);
        assert_eq!(of(RATE_IN, "10mbit").unwrap().bandwidth.ingress, Some(10_000_000));
        assert!(
            of(RATE_OUT, "fast").is_err() && of(HOST_ACCESS, "x").is_err() && of("colour", "red").is_err()
        );
    }
}
