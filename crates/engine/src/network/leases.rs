//! Addresses: an endpoint leases one of each family at its container's first start and keeps it until it is removed, or
//! until somebody needs it while its container does not run.
//!
//! A lease is a row's column, unique within its network, and decided in one transaction: so no two starts, however many
//! at once, get the same, and none outlives its container.

use crate::network::cidr::{from_number, number};
use crate::network::rows::{self, Endpoint, Network, Pool};
use crate::spec::invalid;
use crate::{Engine, EngineError, Result};
use state::rusqlite::{OptionalExtension, Transaction, params};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use sys::file::Lock;
use types::{BridgePlan, ContainerId};

/// Both addresses of an endpoint.
pub(super) type Addresses = (Ipv4Addr, Option<Ipv6Addr>);

impl Engine {
    /// The endpoint's addresses: those it had, or those it asked for, or the next free ones.
    pub(super) fn lease(
        &self,
        network: &Network,
        bridge: &BridgePlan,
        endpoint: &Endpoint,
    ) -> Result<Addresses> {
        // The default bridge derives one from the other: no lease.
        let leases6 = bridge.gateway6.is_some() && !network.is_default();
        if let Some(ipv4) = endpoint.ipv4
            && (!leases6 || endpoint.ipv6.is_some())
        {
            let derived = || bridge.gateway6.map(|g| net::ipv6_for(g, bridge.prefix6, ipv4));
            return Ok((ipv4, if leases6 { endpoint.ipv6 } else { derived() }));
        }
        match self.take(network, bridge, endpoint) {
            Err(EngineError::Exhausted(_) | EngineError::Conflict(_))
                if self.reclaim(network, endpoint)? =>
            {
                self.take(network, bridge, endpoint)
            }
            done => done,
        }
    }

    fn take(&self, network: &Network, bridge: &BridgePlan, endpoint: &Endpoint) -> Result<Addresses> {
        let wanted = wanted(network, endpoint)?;
        self.db.write(|tx| {
            let last: Option<Option<u32>> = tx
                .prepare_cached("SELECT last4 FROM networks WHERE id = ?1")?
                .query_row([&network.id], |r| r.get(0))
                .optional()?;
            let last = last.ok_or_else(|| gone(&network.name))?;
            let pool4 = match network.pool(true) {
                Some(pool) => pool.clone(),
                None => whole(bridge.gateway4.into(), bridge.prefix4),
            };
            let after = last.map(u128::from);
            let ipv4 = match endpoint.ipv4 {
                Some(leased) => leased,
                None => v4(choose(tx, network, &pool4, wanted.0, after)?),
            };
            let ipv6 = match (network.pool(false), bridge.gateway6, endpoint.ipv6) {
                (Some(pool), Some(gateway), None) => {
                    let derived = net::ipv6_for(gateway, bridge.prefix6, ipv4).into();
                    Some(choose6(tx, network, pool, wanted.1, derived)?)
                }
                (Some(_), Some(_), leased) => leased,
                (None, Some(gateway), _) => Some(net::ipv6_for(gateway, bridge.prefix6, ipv4)),
                (_, None, _) => None,
            };
            let row6 = ipv6.filter(|_| network.pool(false).is_some()).map(|a| a.octets());
            let held = tx
                .prepare_cached(
                    "UPDATE endpoints SET ipv4 = ?1, ipv6 = ?2 WHERE container = ?3 AND network = ?4",
                )?
                .execute(params![u32::from(ipv4), row6, endpoint.container, network.id])?;
            if held == 0 {
                return Err(EngineError::NoSuchContainer(endpoint.container.clone()));
            }
            tx.prepare_cached("UPDATE networks SET last4 = ?1 WHERE id = ?2")?
                .execute(params![u32::from(ipv4), network.id])?;
            Ok((ipv4, ipv6))
        })
    }

    /// Takes the addresses of this network from the containers that do not run; whether there were any.
    fn reclaim(&self, network: &Network, except: &Endpoint) -> Result<bool> {
        let mut any = false;
        for endpoint in rows::of_network(&self.db, &network.id)? {
            let Ok(id) = ContainerId::parse(&endpoint.container) else { continue };
            if endpoint.container == except.container || endpoint.ipv4.is_none() {
                continue;
            }
            // One that a crash left running has no supervisor that holds its lock.
            let path = self.paths.lock(&id);
            let lock = if path.exists() { Lock::try_exclusive(&path).ok().flatten() } else { None };
            if self.read_state(&id).status.is_active() || path.exists() && lock.is_none() {
                continue;
            }
            self.db.write::<_, EngineError>(|tx| {
                let sql =
                    "UPDATE endpoints SET ipv4 = NULL, ipv6 = NULL WHERE container = ?1 AND network = ?2";
                tx.execute(sql, [&endpoint.container, &network.id])?;
                Ok(())
            })?;
            any = true;
        }
        Ok(any)
    }
}

/// What an endpoint asks for, checked against its network.
pub(super) fn wanted(network: &Network, endpoint: &Endpoint) -> Result<(Option<IpAddr>, Option<IpAddr>)> {
    let ipam = endpoint.settings.ipam_config.as_ref();
    let read = |text: Option<&String>, ipv4: bool| {
        let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(None) };
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let address: IpAddr =
            text.parse().map_err(|_| invalid(format!("invalid {family} address: {text}")))?;
        if address.is_ipv4() != ipv4 {
            return Err(invalid(format!("invalid {family} address: {text}")));
        }
        if network.is_default() {
            return Err(invalid("user specified IP address is supported on user defined networks only"));
        }
        let pool = network.pool(ipv4).ok_or_else(|| {
            invalid(format!("invalid address {address}: network {} has no {family} subnet", network.name))
        })?;
        let (first, last) = pool.subnet.hosts();
        if !pool.subnet.contains(address) || !(first..=last).contains(&number(address)) {
            return Err(invalid(format!(
                "invalid address {address}: It does not belong to any of this network's subnets ({} of {})",
                pool.subnet, network.name
            )));
        }
        if let Some((name, _)) = pool.reserved.iter().find(|(_, r)| **r == address) {
            return Err(EngineError::Conflict(format!(
                "Address already in use: {address} of network {} is kept for {name} (--aux-address)",
                network.name
            )));
        }
        if address == pool.gateway {
            return Err(EngineError::Conflict(format!(
                "Address already in use: {address} is the gateway of network {}",
                network.name
            )));
        }
        Ok(Some(address))
    };
    Ok((
        read(ipam.and_then(|i| i.ipv4_address.as_ref()), true)?,
        read(ipam.and_then(|i| i.ipv6_address.as_ref()), false)?,
    ))
}

fn choose(
    tx: &Transaction<'_>,
    network: &Network,
    pool: &Pool,
    wanted: Option<IpAddr>,
    after: Option<u128>,
) -> Result<IpAddr> {
    let ipv4 = pool.gateway.is_ipv4();
    if let Some(address) = wanted {
        return match holder(tx, network, address)? {
            Some(name) => Err(EngineError::Conflict(format!(
                "Address already in use: {address} of network {} is held by container {name}",
                network.name
            ))),
            None => Ok(address),
        };
    }
    let (first, last) = given_out(pool);
    let free = |n: u128| {
        let address = from_number(n, ipv4);
        address != pool.gateway && !pool.reserved.values().any(|r| *r == address)
    };
    let column = if ipv4 { "ipv4" } else { "ipv6" };
    let sql = format!("SELECT 1 FROM endpoints WHERE network = ?1 AND {column} = ?2");
    let mut taken = tx.prepare_cached(&sql)?;
    let mut is_taken = |n: u128| match from_number(n, ipv4) {
        IpAddr::V4(a) => taken.exists(params![network.id, u32::from(a)]).unwrap_or(true),
        IpAddr::V6(a) => taken.exists(params![network.id, a.octets()]).unwrap_or(true),
    };
    let found = net::next_free(first, last, after, |n| !free(n) || is_taken(n));
    found.map(|n| from_number(n, ipv4)).ok_or_else(|| {
        EngineError::Exhausted(format!(
            "no free address is left in {} of network {}: remove containers that are not needed",
            pool.range.unwrap_or(pool.subnet),
            network.name
        ))
    })
}

/// An IPv6 address: the one that goes with the IPv4 address, where that is to be had.
fn choose6(
    tx: &Transaction<'_>,
    network: &Network,
    pool: &Pool,
    wanted: Option<IpAddr>,
    derived: IpAddr,
) -> Result<Ipv6Addr> {
    let (first, last) = given_out(pool);
    let fits = (first..=last).contains(&number(derived))
        && derived != pool.gateway
        && !pool.reserved.values().any(|r| *r == derived);
    let found = match wanted {
        None if fits && holder(tx, network, derived)?.is_none() => derived,
        wanted => choose(tx, network, pool, wanted, None)?,
    };
    match found {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => Err(invalid("an IPv6 pool has no IPv4 address")),
    }
}

/// The first and last of the addresses that are given out unasked.
fn given_out(pool: &Pool) -> (u128, u128) {
    let (first, last) = pool.subnet.hosts();
    let (from, to) = pool.range.unwrap_or(pool.subnet).span();
    (first.max(from), last.min(to))
}

/// The name of the container that has an address.
fn holder(tx: &Transaction<'_>, network: &Network, address: IpAddr) -> Result<Option<String>> {
    let column = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let sql = format!(
        "SELECT c.name FROM endpoints e JOIN containers c ON c.id = e.container WHERE e.network = ?1 AND e.{column} = ?2"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let name = match address {
        IpAddr::V4(a) => statement.query_row(params![network.id, u32::from(a)], |r| r.get(0)),
        IpAddr::V6(a) => statement.query_row(params![network.id, a.octets()], |r| r.get(0)),
    };
    Ok(name.optional()?)
}

/// The subnet of the default bridge.
fn whole(gateway: IpAddr, prefix: u8) -> Pool {
    Pool {
        subnet: crate::network::cidr::Cidr::around(gateway, prefix),
        gateway,
        range: None,
        reserved: std::collections::BTreeMap::new(),
    }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        // An IPv4 pool has no other.
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// What a start says of a network that was removed.
pub(super) fn gone(name: &str) -> EngineError {
    EngineError::Conflict(format!(
        "network {name} not found: it was removed; create it again, or disconnect the container from it with network disconnect"
    ))
}
