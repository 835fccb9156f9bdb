//! The networks of containers as `inspect` and `ps` show them, in Docker's shape. Read at once for one or for all; networks
//! themselves are `network::inspect`'s.

use crate::network::rows::{self, Endpoint};
use crate::{Engine, Result};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;
use types::docker::EndpointSettings;
use types::{Attachment, ContainerId, NetworkPlan};

/// Who is on which network, of one container or of all.
pub(crate) struct Places {
    endpoints: HashMap<String, Vec<Endpoint>>,
    /// Ids of the networks that have no places, by name.
    special: [(&'static str, String); 2],
}

/// The part of a bundle that is asked for.
#[derive(Deserialize)]
struct Attached {
    network: NetworkPlan,
}

impl Engine {
    /// The places of this container, or of all.
    pub(crate) fn places_on_networks(&self, of: Option<&ContainerId>) -> Result<Places> {
        let id = |name| rows::find(&self.db, name).map(|n| n.id).unwrap_or_default();
        Ok(Places {
            endpoints: rows::named(&self.db, of.map(ContainerId::as_str))?,
            special: ["host", "none"].map(|name| (name, id(name))),
        })
    }

    /// The interfaces of a container that runs.
    pub(crate) fn attached(&self, id: &str, active: bool) -> Vec<Attachment> {
        let id = if active { ContainerId::parse(id).ok() } else { None };
        let json = id.and_then(|id| std::fs::read(self.paths.bundle(&id)).ok());
        let bundle = json.and_then(|json| serde_json::from_slice::<Attached>(&json).ok());
        bundle.map(|b| b.network.attachments().to_vec()).unwrap_or_default()
    }

    /// The networks of a container, whose places are taken out.
    pub(crate) fn shown_networks(
        &self,
        places: &mut Places,
        id: &str,
        mode: Option<&str>,
        active: bool,
    ) -> Vec<(Cow<'static, str>, EndpointSettings)> {
        if let Some((name, network)) = places.special_of(mode) {
            let shown =
                EndpointSettings { network_id: Some(network.clone()), ..shown(EndpointSettings::default()) };
            return vec![(Cow::Borrowed(*name), shown)];
        }
        let Some(endpoints) = places.endpoints.remove(id) else { return Vec::new() };
        let attached = self.attached(id, active);
        let each = endpoints.into_iter().map(|mut endpoint| {
            let name = std::mem::take(&mut endpoint.name);
            let attachment = attached.iter().find(|a| a.network == endpoint.network);
            (Cow::Owned(name), shown_endpoint(endpoint, attachment))
        });
        each.collect()
    }
}

impl Places {
    /// The network without places that a container is on.
    fn special_of(&self, mode: Option<&str>) -> Option<&(&'static str, String)> {
        self.special.iter().find(|(name, _)| mode == Some(*name))
    }

    /// Whether a container is on a network that is named, or whose id begins so.
    pub fn is_on(&self, id: &str, mode: Option<&str>, wanted: &str) -> bool {
        let fits = |name: &str, id: &str| name == wanted || wanted.len() >= 4 && id.starts_with(wanted);
        match self.special_of(mode) {
            Some((name, id)) => fits(name, id),
            None => self.endpoints.get(id).into_iter().flatten().any(|e| fits(&e.name, &e.network)),
        }
    }
}

/// What is asked for and what it has come to.
fn shown_endpoint(endpoint: Endpoint, attachment: Option<&Attachment>) -> EndpointSettings {
    let mut out = shown(endpoint.settings);
    out.network_id = Some(endpoint.network);
    let Some(a) = attachment else { return out };
    out.mac_address = Some(mac(&a.mac));
    out.endpoint_id = Some(a.host_ifname.clone());
    if !a.bridge.internal || a.bridge.gateway4.is_private() {
        out.gateway = Some(a.bridge.gateway4.to_string());
    }
    out.ip_address = Some(a.ipv4.to_string());
    out.ip_prefix_len = Some(a.bridge.prefix4.into());
    out.ipv6_gateway =
        Some(a.bridge.gateway6.filter(|_| a.ipv6.is_some()).map_or_else(String::new, |g| g.to_string()));
    out.global_ipv6_address = Some(a.ipv6.map_or_else(String::new, |i| i.to_string()));
    out.global_ipv6_prefix_len = Some(a.ipv6.map_or(0, |_| a.bridge.prefix6.into()));
    out.dns_names = (a.network_name != rows::DEFAULT).then(|| a.names.clone());
    out
}

/// Members that Docker always tells, empty ones too.
fn shown(settings: EndpointSettings) -> EndpointSettings {
    let empty = || Some(String::new());
    EndpointSettings {
        mac_address: settings.mac_address.or_else(empty),
        gw_priority: settings.gw_priority.or(Some(0)),
        network_id: empty(),
        endpoint_id: empty(),
        gateway: empty(),
        ip_address: empty(),
        ip_prefix_len: Some(0),
        ipv6_gateway: empty(),
        global_ipv6_address: empty(),
        global_ipv6_prefix_len: Some(0),
        ..settings
    }
}

pub(super) fn mac(mac: &[u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
