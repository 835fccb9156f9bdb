//! `network create`: what was asked for, read and checked as far as that needs nothing of this host.

use crate::network::cidr::{Cidr, number};
use crate::network::egress::parse_egress;
use crate::network::rows::{Driver, PREDEFINED, Pool};
use crate::spec::invalid;
use crate::{EngineError, Result};
use std::collections::BTreeMap;
use std::net::IpAddr;
use types::docker::{IpamConfig, NetworkCreateRequest};
use types::{Egress, MacvlanMode, Uplink};

/// Options of networks, each with Docker's name first where Docker has it.
const MTU: &[&str] = &["com.docker.network.driver.mtu", "mtu"];
const BRIDGE_NAME: &[&str] = &["com.docker.network.bridge.name"];
/// Options whose default is all that Dhow does.
const FIXED: &[(&str, &str)] = &[
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.enable_ip_masquerade", "true"),
];
const HOST_ACCESS: &str = "host-access";
const NO_METADATA: &str = "no-metadata";
const EGRESS: &str = "egress";
const PARENT: &str = "parent";
const MODE: &str = "macvlan_mode";
/// The least MTU of IPv4 (RFC 791) and of IPv6 (RFC 8200), and the most that a bridge takes.
const MTUS: (std::ops::RangeInclusive<u32>, u32) = (68..=65_535, 1280);

/// A network as it is wanted; what is left out is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub name: String,
    pub driver: Driver,
    pub internal: bool,
    pub attachable: bool,
    pub ipv6: bool,
    pub pools: Vec<Pool>,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub settings: Settings,
}

/// What the options of a network say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub mtu: Option<u32>,
    pub bridge_name: Option<String>,
    pub host_access: bool,
    pub no_metadata: bool,
    pub egress: Egress,
    pub uplink: Option<Uplink>,
}

/// Reads a request.
pub(super) fn read(request: &NetworkCreateRequest) -> Result<Wanted> {
    check_name(&request.name)?;
    let driver = match request.driver.as_deref().unwrap_or("") {
        "" | "default" | "bridge" => Driver::Bridge,
        "macvlan" => Driver::Macvlan,
        "host" | "null" | "none" => {
            return Err(EngineError::Conflict(format!(
                "only one instance of {:?} network is allowed",
                request.driver.as_deref().unwrap_or("")
            )));
        }
        other => {
            return Err(invalid(format!("unknown network driver {other:?}: bridge and macvlan are known")));
        }
    };
    if request.enable_ipv4 == Some(false) {
        return Err(EngineError::Unsupported("a network without IPv4 is not supported".into()));
    }
    refuse_unsupported(request)?;
    let pools = pools(request)?;
    let options: BTreeMap<_, _> = request.options.clone().unwrap_or_default().into_iter().collect();
    let ipv6 = request.enable_ipv6.unwrap_or(false) || pools.iter().any(|p| p.gateway.is_ipv6());
    let settings = settings(driver, &options)?;
    if ipv6 && settings.mtu.is_some_and(|m| m < MTUS.1) {
        return Err(invalid(format!("an MTU below {} is too small for IPv6", MTUS.1)));
    }
    Ok(Wanted {
        name: request.name.clone(),
        driver,
        internal: request.internal.unwrap_or(false),
        attachable: request.attachable.unwrap_or(false),
        ipv6,
        pools,
        options,
        labels: request.labels.clone().unwrap_or_default().into_iter().collect(),
        settings,
    })
}

/// As containers' names, but of one letter, too.
fn check_name(name: &str) -> Result<()> {
    if PREDEFINED.contains(&name) || name == "default" {
        return Err(EngineError::Conflict(format!(
            "operation is not permitted on predefined {name} network"
        )));
    }
    let mut bytes = name.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if !valid || name.len() > 255 {
        return Err(invalid(format!(
            "invalid network name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    Ok(())
}

fn refuse_unsupported(request: &NetworkCreateRequest) -> Result<()> {
    let refused = [
        ("ingress networks are", request.ingress.unwrap_or(false)),
        ("configuration-only networks are", request.config_only.unwrap_or(false)),
        ("configurations from other networks are", request.config_from.is_some()),
        ("swarm networks are", !matches!(request.scope.as_deref().unwrap_or(""), "" | "local")),
        ("IPAM drivers are", {
            let driver = request.ipam.as_ref().and_then(|i| i.driver.as_deref());
            !matches!(driver.unwrap_or(""), "" | "default")
        }),
    ];
    match refused.iter().find(|(_, asked)| *asked) {
        Some((what, _)) => Err(EngineError::Unsupported(format!("{what} not supported"))),
        None => Ok(()),
    }
}

fn pools(request: &NetworkCreateRequest) -> Result<Vec<Pool>> {
    let configs = request.ipam.as_ref().and_then(|i| i.config.as_deref()).unwrap_or_default();
    let mut pools = configs.iter().map(pool).collect::<Result<Vec<_>>>()?;
    pools.sort_by_key(|p| p.gateway.is_ipv6());
    if let Some(twins) = pools.windows(2).find(|w| w[0].gateway.is_ipv4() == w[1].gateway.is_ipv4()) {
        return Err(invalid(format!(
            "{} and {}: a network has one subnet of each address family",
            twins[0].subnet, twins[1].subnet
        )));
    }
    Ok(pools)
}

fn pool(config: &IpamConfig) -> Result<Pool> {
    let Some(subnet) = config.subnet.as_deref().filter(|s| !s.is_empty()) else {
        return Err(invalid("every ip-range or gateway must have a corresponding subnet"));
    };
    let subnet = Cidr::parse(subnet).map_err(invalid)?;
    let (first, last) = subnet.hosts();
    if subnet.is_special() {
        return Err(invalid(format!(
            "subnet {subnet} is not for networks: it has addresses of special meaning"
        )));
    }
    // The gateway, and one more.
    if last <= first {
        return Err(invalid(format!("subnet {subnet} is too small: it has no address to give out")));
    }
    let within = |what: &str, text: &str| {
        let address: IpAddr = text.parse().map_err(|_| invalid(format!("invalid {what} {text:?}")))?;
        let usable = subnet.contains(address) && (first..=last).contains(&number(address));
        if usable { Ok(address) } else { Err(invalid(format!("{what} {address} is not in subnet {subnet}"))) }
    };
    let gateway = match config.gateway.as_deref().filter(|g| !g.is_empty()) {
        Some(text) => within("gateway", text)?,
        None => crate::network::cidr::from_number(first, subnet.address.is_ipv4()),
    };
    let range = match config.ip_range.as_deref().filter(|r| !r.is_empty()) {
        Some(text) => {
            let range = Cidr::parse(text).map_err(invalid)?;
            if !subnet.covers(range) {
                return Err(invalid(format!("ip-range {range} is not in subnet {subnet}")));
            }
            Some(range)
        }
        None => None,
    };
    let mut reserved = BTreeMap::new();
    for (name, text) in config.auxiliary_addresses.iter().flatten() {
        let address = within("auxiliary address", text)?;
        if address == gateway {
            return Err(invalid(format!("auxiliary address {address} ({name}) is the gateway")));
        }
        reserved.insert(name.clone(), address);
    }
    Ok(Pool { subnet, gateway, range, reserved })
}

/// Reads the options of a network; one that is not known could be one that matters.
fn settings(driver: Driver, options: &BTreeMap<String, String>) -> Result<Settings> {
    let mut out = Settings::default();
    let (mut parent, mut mode) = (None, MacvlanMode::default());
    for (key, value) in options {
        let wrong = |why: &str| invalid(format!("invalid option {key}={value}: {why}"));
        match key.as_str() {
            k if MTU.contains(&k) => {
                let mtu = value.parse().ok().filter(|m| MTUS.0.contains(m));
                out.mtu = Some(mtu.ok_or_else(|| wrong("a number from 68 to 65535"))?);
            }
            EGRESS => out.egress = parse_egress(value)?,
            HOST_ACCESS if driver == Driver::Bridge => {
                out.host_access = flag(value).ok_or_else(|| wrong("true or false"))?
            }
            NO_METADATA if driver == Driver::Bridge => {
                out.no_metadata = flag(value).ok_or_else(|| wrong("true or false"))?
            }
            k if BRIDGE_NAME.contains(&k) && driver == Driver::Bridge => {
                out.bridge_name = Some(
                    interface(value).ok_or_else(|| wrong("at most 15 letters, digits, '-', '_' or '.'"))?,
                );
            }
            k if driver == Driver::Bridge && FIXED.iter().any(|(name, _)| *name == k) => {
                let known = FIXED.iter().any(|(name, only)| *name == k && only == value);
                known.then_some(()).ok_or_else(|| wrong("no other value than true is supported"))?;
            }
            PARENT if driver == Driver::Macvlan => {
                parent = Some(interface(value).ok_or_else(|| wrong("the name of an interface"))?);
            }
            MODE if driver == Driver::Macvlan => {
                mode = match value.as_str() {
                    "bridge" => MacvlanMode::Bridge,
                    "private" => MacvlanMode::Private,
                    "vepa" => MacvlanMode::Vepa,
                    "passthru" => MacvlanMode::Passthru,
                    _ => return Err(wrong("bridge, private, vepa or passthru")),
                };
            }
            _ => {
                let known = match driver {
                    Driver::Macvlan => "parent, macvlan_mode, mtu and egress",
                    _ => "host-access, no-metadata, mtu, egress and com.docker.network.bridge.name",
                };
                return Err(wrong(&format!("{known} are known")));
            }
        }
    }
    if driver == Driver::Macvlan {
        let parent = parent
            .ok_or_else(|| invalid("a macvlan network needs an interface of the host: -o parent=eth0"))?;
        if out.egress != Egress::All {
            return Err(EngineError::Unsupported(
                "a macvlan network passes by this host's firewall: its egress cannot be restricted".into(),
            ));
        }
        out.uplink = Some(Uplink { parent, mode });
    }
    Ok(out)
}

/// Docker's booleans.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text {
        "true" | "1" | "" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn interface(name: &str) -> Option<String> {
    let fits = (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    fits.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use types::docker::Ipam;

    fn request(config: Vec<IpamConfig>, options: &[(&str, &str)]) -> NetworkCreateRequest {
        NetworkCreateRequest {
            name: "n".into(),
            ipam: Some(Ipam { config: Some(config), ..Default::default() }),
            options: Some(options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
            ..Default::default()
        }
    }

    fn subnet(subnet: &str, gateway: &str, range: &str) -> IpamConfig {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        IpamConfig {
            subnet: some(subnet),
            gateway: some(gateway),
            ip_range: some(range),
            auxiliary_addresses: None,
        }
    }

    #[test]
    fn subnets_are_checked() {
        let both = vec![subnet("fd00:5::/64", "", ""), subnet("10.5.0.0/16", "10.5.0.9", "10.5.1.0/24")];
        let wanted = read(&request(both, &[])).unwrap();
        assert!(wanted.ipv6);
        assert_eq!(wanted.pools[0].gateway, IpAddr::from([10, 5, 0, 9]));
        assert_eq!(wanted.pools[1].gateway.to_string(), "fd00:5::1");
        for (bad, why) in [
            (vec![subnet("", "10.0.0.1", "")], "corresponding subnet"),
            (vec![subnet("10.5.0.0/16", "10.6.0.1", "")], "gateway 10.6.0.1 is not in subnet"),
            (vec![subnet("10.5.0.0/16", "10.5.255.255", "")], "is not in subnet"),
            (vec![subnet("10.5.0.0/16", "", "10.6.0.0/24")], "ip-range 10.6.0.0/24 is not in subnet"),
            (vec![subnet("10.5.0.0/31", "", "")], "too small"),
            (vec![subnet("10.5.0.0/32", "", "")], "too small"),
            (vec![subnet("127.0.0.0/8", "", "")], "special"),
            (vec![subnet("0.0.0.0/0", "", "")], "special"),
            (vec![subnet("10.5.0.0/24", "", ""), subnet("10.6.0.0/24", "", "")], "one subnet of each"),
            (vec![subnet("10.5.0.0/24", "::1", "")], "not in subnet"),
        ] {
            let e = read(&request(bad, &[])).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
        let aux = HashMap::from([("router".to_owned(), "10.5.0.1".to_owned())]);
        let config = IpamConfig { auxiliary_addresses: Some(aux), ..subnet("10.5.0.0/24", "", "") };
        assert!(read(&request(vec![config], &[])).unwrap_err().to_string().contains("is the gateway"));
    }

    #[test]
    fn options_are_read() {
        let wanted =
            read(&request(vec![], &[("host-access", "true"), ("mtu", "1400"), ("egress", "none")])).unwrap();
        assert!(wanted.settings.host_access && wanted.settings.mtu == Some(1400));
        assert_eq!(wanted.settings.egress, Egress::Only(vec![]));
        for bad in [
            ("mtu", "1"),
            ("mtu", "x"),
            ("host-access", "perhaps"),
            ("colour", "red"),
            ("parent", "eth0"),
            ("com.docker.network.bridge.name", "much-too-long-a-name"),
            ("com.docker.network.bridge.enable_icc", "false"),
            ("egress", "a:b"),
        ] {
            assert!(read(&request(vec![], &[bad])).is_err(), "{bad:?}");
        }
        let macvlan = |options: &[(&str, &str)]| {
            read(&NetworkCreateRequest { driver: Some("macvlan".into()), ..request(vec![], options) })
        };
        assert!(macvlan(&[]).is_err() && macvlan(&[("parent", "eth0"), ("egress", "none")]).is_err());
        let uplink =
            macvlan(&[("parent", "eth0"), ("macvlan_mode", "private")]).unwrap().settings.uplink.unwrap();
        assert_eq!((uplink.parent.as_str(), uplink.mode), ("eth0", MacvlanMode::Private));
    }

    #[test]
    fn names_are_checked() {
        let of = |name: &str| read(&NetworkCreateRequest { name: name.into(), ..Default::default() });
        assert!(of("a").is_ok() && of("my_net-1.x").is_ok());
        for bad in ["", "-a", "a b", "a/b", "ä", "bridge", "host", "none", "default", "container:x"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
