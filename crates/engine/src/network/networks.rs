//! `network create`, `rm`, `prune`, `ls`, and what recovery does for networks.
//!
//! Subnets are chosen and checked under one lock of the whole host, and the bridge is made before it is let go: so stores
//! see each other's by the host's routes.

use crate::network::cidr::Cidr;
use crate::network::request::{self, Wanted};
use crate::network::rows::{self, Config, Driver, Network, Pool};
use crate::spec::invalid;
use crate::store::{self, json};
use crate::{Engine, EngineError, Result, filters};
use state::rusqlite::params;
use std::collections::BTreeMap;
use std::net::IpAddr;
use sys::file::Lock;
use types::docker::NetworkCreateRequest;
use types::{BridgePlan, EventType};

/// The setting that holds the default bridge's plan.
const BRIDGE: &str = "bridge";
/// Locked while subnets are chosen. In a directory that only root writes: anybody could hold a lock in `/tmp`.
const SUBNETS: &str = "/run/dhow-subnets.lock";

impl Engine {
    /// Makes a network; answers with its full id. Beyond Docker's options there are `host-access`, `no-metadata` and `egress`.
    pub fn create_network(&self, request: &NetworkCreateRequest) -> Result<String> {
        let wanted = request::read(request)?;
        let lock = lock_subnets()?;
        self.bury_bridges()?;
        net::sweep_forsaken()?;
        let network = self.settle(wanted)?;
        self.db.write(|tx| network.insert(tx))?;
        if let Err(e) = self.ensure_network(&network) {
            self.db.write(|tx| bury(tx, &network))?;
            self.bury_bridges()?;
            return Err(e);
        }
        drop(lock);
        self.network_event(&network, "create", None);
        Ok(network.id)
    }

    /// Decides all that was left open.
    fn settle(&self, wanted: Wanted) -> Result<Network> {
        if rows::find(&self.db, &wanted.name).is_ok_and(|n| n.name == wanted.name) {
            return Err(EngineError::Conflict(format!("network with name {} already exists", wanted.name)));
        }
        let id = crate::ids::new_id()?.to_string();
        let others = rows::all(&self.db)?;
        let pools = self.choose_pools(&wanted, &others)?;
        let bridge_name = wanted.settings.bridge_name.clone();
        if let Some(name) = bridge_name.as_deref() {
            self.refuse_bridge(name, &others)?;
        }
        if let Some(uplink) = wanted.settings.uplink.as_ref().filter(|u| !net::interface_exists(&u.parent)) {
            return Err(invalid(format!(
                "the parent interface {} does not exist on this host",
                uplink.parent
            )));
        }
        let bridge = plan(&id, &wanted, &pools, bridge_name)?;
        Ok(Network {
            name: wanted.name,
            created_ns: sys::host::now_ns(),
            last4: None,
            config: Config {
                driver: wanted.driver,
                internal: wanted.internal,
                attachable: wanted.attachable,
                options: wanted.options,
                labels: wanted.labels,
                pools,
                bridge: Some(bridge),
                egress: wanted.settings.egress,
                uplink: wanted.settings.uplink,
            },
            id,
        })
    }

    /// A bridge belongs to one network, also while it is down, as after a reboot.
    fn refuse_bridge(&self, name: &str, others: &[Network]) -> Result<()> {
        let own = others.iter().find(|n| n.config.bridge.as_ref().is_some_and(|b| b.name == name));
        if let Some(network) = own {
            return Err(EngineError::Conflict(format!(
                "the bridge {name} belongs to network {}",
                network.name
            )));
        }
        if name == self.default_bridge_name() {
            return Err(EngineError::Conflict(format!("the bridge {name} is that of the default network")));
        }
        match net::interface_exists(name) {
            true => Err(EngineError::Conflict(format!("the interface {name} exists already on this host"))),
            false => Ok(()),
        }
    }

    fn default_bridge_name(&self) -> String {
        let tag = self.paths.tag();
        if tag.is_empty() { "dhow0".into() } else { format!("dhow-{tag}") }
    }

    /// The given subnets, checked, and chosen ones for those that were not given.
    fn choose_pools(&self, wanted: &Wanted, others: &[Network]) -> Result<Vec<Pool>> {
        let mut pools = wanted.pools.clone();
        let taken = self.taken_subnets(others)?;
        for pool in &pools {
            refuse_overlap(pool.subnet, &taken, wanted.driver)?;
        }
        let has = |ipv4: bool| pools.iter().any(|p| p.gateway.is_ipv4() == ipv4);
        let (chosen4, chosen6) = (!has(true), wanted.ipv6 && !has(false));
        if !chosen4 && !chosen6 {
            return Ok(pools);
        }
        if wanted.driver == Driver::Macvlan && chosen4 {
            return Err(invalid("a macvlan network needs the subnet of its LAN: --subnet and --gateway"));
        }
        let seed = sys::host::random().map_err(EngineError::io("getrandom", "".as_ref()))?;
        let known: Vec<_> = taken.iter().map(|(_, c)| *c).chain(pools.iter().map(|p| p.subnet)).collect();
        let known: Vec<_> = known.into_iter().map(|c| (c.address, c.prefix)).collect();
        let subnets = net::choose_subnets(seed, &known, true, self.paths.number())?;
        let of = |gateway: IpAddr, prefix| Pool {
            subnet: Cidr::around(gateway, prefix),
            gateway,
            range: None,
            reserved: BTreeMap::new(),
        };
        if chosen4 {
            pools.insert(0, of(subnets.gateway4.into(), subnets.prefix4));
        }
        if chosen6 {
            let gateway = subnets.gateway6.ok_or_else(no_ipv6)?;
            pools.push(of(gateway.into(), subnets.prefix6));
        }
        Ok(pools)
    }

    /// Subnets of this store's networks, with their names.
    fn taken_subnets(&self, networks: &[Network]) -> Result<Vec<(String, Cidr)>> {
        let mut out = Vec::new();
        for network in networks {
            out.extend(network.config.pools.iter().map(|p| (network.name.clone(), p.subnet)));
        }
        if let Some(bridge) = self.stored_bridge()? {
            out.push((rows::DEFAULT.into(), Cidr::around(bridge.gateway4.into(), bridge.prefix4)));
            out.extend(
                bridge.gateway6.map(|g| (rows::DEFAULT.into(), Cidr::around(g.into(), bridge.prefix6))),
            );
        }
        Ok(out)
    }

    /// Makes what the network needs on this host, where it is missing.
    fn ensure_network(&self, network: &Network) -> Result<()> {
        match (&network.config.bridge, network.config.driver) {
            (Some(bridge), Driver::Bridge) => Ok(net::ensure_bridge(bridge)?),
            _ => Ok(()),
        }
    }

    /// Removes a network that no running container is on. Those that do not run keep what they asked for, and cannot start
    /// without it.
    pub fn remove_network(&self, name: &str) -> Result<()> {
        let network = rows::find(&self.db, name)?;
        self.remove_if(&network, |engine| engine.running_on(&network))
    }

    fn remove_if(&self, network: &Network, users: impl Fn(&Self) -> Result<Vec<String>>) -> Result<()> {
        if network.is_predefined() {
            return Err(EngineError::Conflict(format!(
                "{} is a pre-defined network and cannot be removed",
                network.name
            )));
        }
        self.db.write(|tx| {
            // Who starts now leases its address after this, and finds no network.
            let users = users(self)?;
            if !users.is_empty() {
                return Err(EngineError::Conflict(format!(
                    "error while removing network: network {} has active endpoints: {}",
                    network.name,
                    users.join(", ")
                )));
            }
            bury(tx, network)
        })?;
        self.network_event(network, "destroy", None);
        let _lock = lock_subnets()?;
        self.bury_bridges()
    }

    /// Names of the containers that run, or are being started, on a network.
    fn running_on(&self, network: &Network) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for endpoint in rows::of_network(&self.db, &network.id)? {
            let container = self.find(&endpoint.container)?;
            if self.is_held(&container.id) || self.read_state(&container.id).status.is_active() {
                names.push(format!("{} ({})", container.name, container.id.short()));
            }
        }
        Ok(names)
    }

    /// Whether a supervisor, or a command that starts one, has a container in its hands.
    pub(crate) fn is_held(&self, id: &types::ContainerId) -> bool {
        let lock = self.paths.lock(id);
        lock.exists() && !matches!(Lock::try_exclusive(&lock), Ok(Some(_)))
    }

    /// Removes the networks that no container names, and tells their names.
    pub fn prune_networks(&self, filter: &crate::Filters) -> Result<Vec<String>> {
        filters::check(filter, &["until", "label", "label!"])?;
        let mut gone = Vec::new();
        for network in rows::all(&self.db)?.into_iter().filter(|n| !n.is_predefined()) {
            if !crate::prune::prunable(filter, network.created_ns, |k| network.config.labels.get(k))? {
                continue;
            }
            let anybody = |engine: &Self| {
                Ok(rows::of_network(&engine.db, &network.id)?.into_iter().map(|e| e.container).collect())
            };
            match self.remove_if(&network, anybody) {
                Ok(()) => gone.push(network.name),
                Err(EngineError::Conflict(_) | EngineError::NoSuchNetwork(_)) => {}
                Err(e) => return Err(e),
            }
        }
        self.prune_event(types::EventType::Network, 0);
        Ok(gone)
    }

    /// Removes bridges whose networks are gone. Called with the lock on subnets held: a new network may have a bridge of
    /// the same name.
    fn bury_bridges(&self) -> Result<()> {
        let mut statement = self.db.conn().prepare_cached("SELECT name, plan FROM dead_bridges")?;
        let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
        let dead = rows.collect::<state::rusqlite::Result<Vec<(String, String)>>>()?;
        for (name, plan) in dead {
            let alive = rows::all(&self.db)?;
            let in_use = alive.iter().any(|n| n.config.bridge.as_ref().is_some_and(|b| b.name == name));
            if let Ok(plan) = serde_json::from_str::<BridgePlan>(&plan)
                && !in_use
            {
                net::remove_bridge(&plan)?;
            }
            self.db.write::<_, EngineError>(|tx| {
                tx.execute("DELETE FROM dead_bridges WHERE name = ?1", [&name])?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// After a crash: bridges of removed networks go, and interfaces and rules of containers that do not run.
    pub(crate) fn sweep_networks(&self) -> Result<()> {
        if self.db.conn().prepare_cached("SELECT 1 FROM dead_bridges")?.exists([])? {
            let _lock = lock_subnets()?;
            self.bury_bridges()?;
        }
        let bridges = rows::all(&self.db)?.into_iter().filter(|n| n.config.driver == Driver::Bridge);
        for network in bridges {
            if let Some(bridge) = self.plan_of(&network)? {
                let mut unknown = None;
                let live = || self.live_attachments(&network.id).map_err(|e| unknown = Some(e)).ok();
                let swept = net::sweep(&bridge, live);
                unknown.map_or(Ok(()), Err)?;
                swept?;
            }
        }
        Ok(())
    }

    /// The plan of a bridge that may be there; none of a default bridge that was never used.
    pub(crate) fn plan_of(&self, network: &Network) -> Result<Option<BridgePlan>> {
        if network.is_default() { self.stored_bridge() } else { Ok(network.config.bridge.clone()) }
    }

    /// Makes every bridge and all rules of this store's networks anew. Answers with their names.
    pub fn repair_networks(&self) -> Result<Vec<String>> {
        self.sweep_networks()?;
        let (mut names, mut ids, mut plans) = (Vec::new(), Vec::new(), Vec::new());
        for network in rows::all(&self.db)?.into_iter().filter(|n| n.config.driver == Driver::Bridge) {
            if let Some(bridge) = self.plan_of(&network)? {
                plans.push(bridge);
                names.push(network.name);
                ids.push(network.id);
            }
        }
        let _lock = lock_subnets()?;
        let unknown = std::cell::Cell::new(None);
        let live = || {
            let all: Result<Vec<_>> = ids.iter().map(|id| self.live_attachments(id)).collect();
            all.map(|lists| lists.concat()).map_err(|e| unknown.set(Some(e))).ok()
        };
        let repaired = net::repair(&plans, live);
        unknown.take().map_or(Ok(()), Err)?;
        repaired?;
        net::sweep_forsaken()?;
        Ok(names)
    }

    /// Removes all bridges: the store is being removed.
    pub(crate) fn remove_bridges(&self) -> Result<()> {
        let _lock = lock_subnets()?;
        self.bury_bridges()?;
        for network in rows::all(&self.db)?.into_iter().filter(|n| n.config.driver == Driver::Bridge) {
            if let Some(bridge) = self.plan_of(&network)? {
                net::remove_bridge(&bridge)?;
            }
        }
        Ok(())
    }

    /// The default bridge of this store: its subnets are chosen once.
    pub(crate) fn default_bridge(&self) -> Result<BridgePlan> {
        if let Some(plan) = self.stored_bridge()? {
            return Ok(plan);
        }
        // Stores of one host must not choose the same subnet: one at a time, and the bridge is made at once.
        let lock = lock_subnets()?;
        if let Some(plan) = self.stored_bridge()? {
            return Ok(plan);
        }
        let seed = sys::host::random().map_err(EngineError::io("getrandom", "".as_ref()))?;
        let taken = self.taken_subnets(&rows::all(&self.db)?)?;
        let taken: Vec<_> = taken.into_iter().map(|(_, c)| (c.address, c.prefix)).collect();
        let subnets = net::choose_subnets(seed, &taken, false, self.paths.number())?;
        // Once for each store, and of all: a store whose files are gone mends nothing.
        net::sweep_forsaken()?;
        let plan = BridgePlan {
            name: self.default_bridge_name(),
            gateway4: subnets.gateway4,
            prefix4: subnets.prefix4,
            gateway6: subnets.gateway6,
            prefix6: subnets.prefix6,
            mtu: 1500,
            internal: false,
            host_access: false,
            no_metadata: false,
        };
        net::ensure_bridge(&plan)?;
        store::set_setting(&self.db, BRIDGE, &json(&plan))?;
        drop(lock);
        Ok(plan)
    }

    pub(crate) fn stored_bridge(&self) -> Result<Option<BridgePlan>> {
        Ok(store::setting(&self.db, BRIDGE)?.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Tells an event of a network; `container` is whose place on it came or went.
    pub(crate) fn network_event(&self, network: &Network, action: &str, container: Option<&str>) {
        let mut attributes = BTreeMap::from([
            ("name".to_owned(), network.name.clone()),
            ("type".to_owned(), network.config.driver.as_str().to_owned()),
        ]);
        attributes.extend(container.map(|c| ("container".to_owned(), c.to_owned())));
        self.tell(EventType::Network, action, &network.id, attributes);
    }
}

/// Keeps others from choosing a subnet, or making a bridge, meanwhile.
pub(crate) fn lock_subnets() -> Result<Lock> {
    Lock::exclusive(SUBNETS.as_ref()).map_err(EngineError::io("cannot lock", SUBNETS.as_ref()))
}

/// Deletes a network's row, with the addresses that containers hold on it, and notes its bridge for removal.
fn bury(tx: &state::rusqlite::Transaction<'_>, network: &Network) -> Result<()> {
    tx.execute("UPDATE endpoints SET ipv4 = NULL, ipv6 = NULL WHERE network = ?1", [&network.id])?;
    if tx.execute("DELETE FROM networks WHERE id = ?1", [&network.id])? == 0 {
        return Err(EngineError::NoSuchNetwork(network.name.clone()));
    }
    if let (Some(bridge), Driver::Bridge) = (&network.config.bridge, network.config.driver) {
        let sql = "INSERT OR REPLACE INTO dead_bridges VALUES (?1, ?2)";
        tx.execute(sql, params![bridge.name, json(bridge)])?;
    }
    Ok(())
}

fn refuse_overlap(subnet: Cidr, taken: &[(String, Cidr)], driver: Driver) -> Result<()> {
    if let Some((name, other)) = taken.iter().find(|(_, other)| other.overlaps(subnet)) {
        // Docker's words first: tools look for them.
        return Err(EngineError::Conflict(format!(
            "Pool overlaps with other one on this address space: subnet {subnet} overlaps {other} of network {name}"
        )));
    }
    // A macvlan is on the very LAN that the host has a route to.
    if driver == Driver::Macvlan {
        return Ok(());
    }
    for route in net::routes()? {
        let other = Cidr::around(route.address, route.prefix);
        if other.overlaps(subnet) {
            let by =
                if route.interface.is_empty() { String::new() } else { format!(" ({})", route.interface) };
            return Err(EngineError::Conflict(format!(
                "subnet {subnet} overlaps {other}, to which this host has a route{by}"
            )));
        }
    }
    Ok(())
}

/// The bridge that carries a network; of a macvlan what its endpoints need to know.
fn plan(id: &str, wanted: &Wanted, pools: &[Pool], name: Option<String>) -> Result<BridgePlan> {
    let mut plan = BridgePlan {
        name: name.unwrap_or_else(|| format!("dh-{}", id.get(..12).unwrap_or(id))),
        gateway4: [0, 0, 0, 0].into(),
        prefix4: 0,
        gateway6: None,
        prefix6: 0,
        mtu: wanted.settings.mtu.unwrap_or(1500),
        internal: wanted.internal,
        host_access: wanted.settings.host_access,
        no_metadata: wanted.settings.no_metadata,
    };
    for pool in pools {
        match pool.gateway {
            IpAddr::V4(gateway) => (plan.gateway4, plan.prefix4) = (gateway, pool.subnet.prefix),
            IpAddr::V6(gateway) if has_ipv6() => {
                (plan.gateway6, plan.prefix6) = (Some(gateway), pool.subnet.prefix);
            }
            IpAddr::V6(_) => return Err(no_ipv6()),
        }
    }
    Ok(plan)
}

fn no_ipv6() -> EngineError {
    EngineError::Unsupported("IPv6 is switched off on this host (net.ipv6.conf.all.disable_ipv6)".into())
}

fn has_ipv6() -> bool {
    std::fs::read("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|v| v.first() == Some(&b'0'))
}
