//! `network ls` and `network inspect`, in Docker's shapes.

use crate::filters;
use crate::network::rows::{self, Driver, Network, Pool};
use crate::pattern::Patterns;
use crate::request::Filters;
use crate::spec::invalid;
use crate::{Engine, Result};
use std::collections::{BTreeMap, HashMap};
use types::BridgePlan;
use types::docker::{ConfigReference, EndpointResource, Ipam, IpamConfig, NetworkInspect, NetworkSummary};
use types::units::rfc3339;

/// Keys of `network ls --filter`.
const KNOWN: &[&str] = &["id", "name", "driver", "label", "scope", "type", "dangling"];

impl Engine {
    /// The networks that match, by name.
    pub fn networks(&self, filter: &Filters) -> Result<Vec<NetworkSummary>> {
        filters::check(filter, KNOWN)?;
        let mut out = Vec::new();
        let patterns = Patterns::of(filter);
        for network in rows::all(&self.db)? {
            if self.network_matches(filter, &network, &patterns)? {
                out.push(self.summary_of(&network)?);
            }
        }
        Ok(out)
    }

    fn network_matches(&self, filter: &Filters, n: &Network, patterns: &Patterns) -> Result<bool> {
        for (key, values) in filter {
            let mut tally = filters::Tally::of(key);
            for value in values {
                tally.add(match key.as_str() {
                    "id" => patterns.finds(value, &n.id),
                    "name" => patterns.finds(value, &n.name),
                    "driver" => n.config.driver.as_str() == value,
                    "scope" => value == "local",
                    "label" => filters::label_matches(value, |k| n.config.labels.get(k)),
                    "type" => match value.as_str() {
                        "builtin" => n.is_predefined(),
                        "custom" => !n.is_predefined(),
                        _ => return Err(invalid(format!("invalid filter type={value}: custom or builtin"))),
                    },
                    _ => {
                        let wanted = matches!(value.as_str(), "true" | "1");
                        let dangling = !n.is_predefined() && rows::of_network(&self.db, &n.id)?.is_empty();
                        wanted == dangling
                    }
                });
            }
            if !tally.holds() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn summary_of(&self, n: &Network) -> Result<NetworkSummary> {
        let plan = self.plan_of(n)?;
        Ok(NetworkSummary {
            name: Some(n.name.clone()),
            id: Some(n.id.clone()),
            created: Some(rfc3339(n.created_ns)),
            scope: Some("local".into()),
            driver: Some(n.config.driver.as_str().into()),
            enable_ipv4: Some(true),
            enable_ipv6: Some(plan.as_ref().is_some_and(|p| p.gateway6.is_some())),
            ipam: Some(ipam(n, plan.as_ref())),
            internal: Some(n.config.internal),
            attachable: Some(n.config.attachable),
            ingress: Some(false),
            config_from: Some(ConfigReference { network: Some(String::new()) }),
            config_only: Some(false),
            options: Some(options(n, plan.as_ref())),
            labels: Some(n.config.labels.clone().into_iter().collect()),
            peers: None,
        })
    }

    /// All that is known of a network.
    pub fn inspect_network(&self, name: &str) -> Result<NetworkInspect> {
        let n = rows::find(&self.db, name)?;
        let s = self.summary_of(&n)?;
        let mut containers = HashMap::new();
        for endpoint in rows::of_network(&self.db, &n.id)? {
            let Ok(c) = self.find(&endpoint.container) else { continue };
            let active = self.state(&c).is_ok_and(|s| s.status.is_active());
            let Some(a) = self.attached(c.id.as_str(), active).into_iter().find(|a| a.network == n.id) else {
                continue;
            };
            containers.insert(
                endpoint.container,
                EndpointResource {
                    name: Some(c.name),
                    endpoint_id: Some(a.host_ifname),
                    mac_address: Some(super::shown::mac(&a.mac)),
                    ipv4_address: Some(format!("{}/{}", a.ipv4, a.bridge.prefix4)),
                    ipv6_address: Some(
                        a.ipv6.map_or_else(String::new, |ip| format!("{ip}/{}", a.bridge.prefix6)),
                    ),
                },
            );
        }
        Ok(NetworkInspect {
            name: s.name,
            id: s.id,
            created: s.created,
            scope: s.scope,
            driver: s.driver,
            enable_ipv4: s.enable_ipv4,
            enable_ipv6: s.enable_ipv6,
            ipam: s.ipam,
            internal: s.internal,
            attachable: s.attachable,
            ingress: s.ingress,
            config_from: s.config_from,
            config_only: s.config_only,
            options: s.options,
            labels: s.labels,
            containers: Some(containers),
            ..NetworkInspect::default()
        })
    }
}

fn ipam(n: &Network, plan: Option<&BridgePlan>) -> Ipam {
    let mut config: Vec<IpamConfig> = n.config.pools.iter().map(shown_pool).collect();
    if let Some(plan) = plan.filter(|_| config.is_empty()) {
        let four = crate::network::cidr::Cidr::around(plan.gateway4.into(), plan.prefix4);
        let six =
            plan.gateway6.map(|g| (crate::network::cidr::Cidr::around(g.into(), plan.prefix6), g.into()));
        let both = std::iter::once((four, plan.gateway4.into())).chain(six);
        config.extend(both.map(|(subnet, gateway): (_, std::net::IpAddr)| {
            shown_pool(&Pool { subnet, gateway, range: None, reserved: BTreeMap::new() })
        }));
    }
    Ipam { driver: Some("default".into()), config: Some(config), options: None }
}

fn shown_pool(pool: &Pool) -> IpamConfig {
    IpamConfig {
        subnet: Some(pool.subnet.to_string()),
        ip_range: pool.range.map(|r| r.to_string()),
        gateway: Some(pool.gateway.to_string()),
        auxiliary_addresses: (!pool.reserved.is_empty())
            .then(|| pool.reserved.iter().map(|(k, v)| (k.clone(), v.to_string())).collect()),
    }
}

/// What was given, and of bridges the interface's name, which scripts look for there.
fn options(n: &Network, plan: Option<&BridgePlan>) -> HashMap<String, String> {
    let mut out: HashMap<String, String> = n.config.options.clone().into_iter().collect();
    if let Some(plan) = plan.filter(|_| n.config.driver == Driver::Bridge) {
        out.entry("com.docker.network.bridge.name".into()).or_insert_with(|| plan.name.clone());
    }
    out
}
