//! The tables of networks and of endpoints, the containers' places on them.
//!
//! A network exists from the commit of its row to its deletion; its bridge is made with it and by whoever starts on it,
//! and noted in `dead_bridges` when the row goes, until it is gone too. An endpoint is what was asked for, and the addresses
//! leased since the first start. It stays when its network is removed, so that a start can tell what is missing.

use crate::network::cidr::Cidr;
use crate::store::json;
use crate::{EngineError, Result};
use serde::{Deserialize, Serialize};
use state::Db;
use state::rusqlite::{OptionalExtension, Row, Transaction, params, params_from_iter};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use types::docker::EndpointSettings;
use types::{BridgePlan, Egress, Uplink};

/// The network of containers that name none.
pub(crate) const DEFAULT: &str = "bridge";
/// Names that every store has from its beginning.
pub(crate) const PREDEFINED: [&str; 3] = [DEFAULT, "host", "none"];

/// What carries a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    #[default]
    Bridge,
    Macvlan,
    Host,
    Null,
}

impl Driver {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

/// One subnet of a network, and which of its addresses are given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub subnet: Cidr,
    pub gateway: IpAddr,
    /// Addresses come from here only, unless one is asked for.
    pub range: Option<Cidr>,
    /// Addresses of somebody else, by name.
    #[serde(default)]
    pub reserved: BTreeMap<String, IpAddr>,
}

/// A network as it was created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub driver: Driver,
    pub internal: bool,
    pub attachable: bool,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// IPv4's first; none of predefined networks.
    pub pools: Vec<Pool>,
    /// The bridge, or, of a network on an interface of the host, what its endpoints need to know. The default
    /// bridge's is a setting.
    pub bridge: Option<BridgePlan>,
    pub egress: Egress,
    /// The interface of the host that a macvlan is on.
    pub uplink: Option<Uplink>,
}

/// One network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    pub created_ns: i64,
    /// The IPv4 address that was given out most recently.
    pub last4: Option<Ipv4Addr>,
    pub config: Config,
}

const NETWORK: &str = "n.id, n.name, n.created_ns, n.last4, n.config";

impl Network {
    fn from_row(row: &Row<'_>, at: usize) -> state::rusqlite::Result<Result<Self>> {
        let config: String = row.get(at + 4)?;
        let id: String = row.get(at)?;
        let config = match serde_json::from_str(&config) {
            Ok(config) => config,
            Err(source) => {
                return Ok(Err(EngineError::Stored { what: "configuration of network", id, source }));
            }
        };
        Ok(Ok(Self {
            id,
            name: row.get(at + 1)?,
            created_ns: row.get(at + 2)?,
            last4: row.get::<_, Option<u32>>(at + 3)?.map(Ipv4Addr::from),
            config,
        }))
    }

    /// Commits the network to the store.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<()> {
        if tx.prepare_cached("SELECT 1 FROM networks WHERE name = ?1")?.exists([&self.name])? {
            return Err(EngineError::Conflict(format!("network with name {} already exists", self.name)));
        }
        tx.execute(
            "INSERT INTO networks VALUES (?1, ?2, ?3, NULL, ?4)",
            params![self.id, self.name, self.created_ns, json(&self.config)],
        )?;
        Ok(())
    }

    pub fn is_default(&self) -> bool {
        self.name == DEFAULT
    }

    pub fn is_predefined(&self) -> bool {
        PREDEFINED.contains(&self.name.as_str())
    }

    /// The subnet of a family.
    pub fn pool(&self, ipv4: bool) -> Option<&Pool> {
        self.config.pools.iter().find(|p| p.gateway.is_ipv4() == ipv4)
    }
}

/// Every network, by name.
pub(crate) fn all(db: &Db) -> Result<Vec<Network>> {
    let mut statement =
        db.conn().prepare_cached(&format!("SELECT {NETWORK} FROM networks n ORDER BY n.name"))?;
    let rows = statement.query_map([], |r| Network::from_row(r, 0))?;
    rows.map(|r| r?).collect()
}

/// Finds a network by full id, name or unambiguous id prefix.
pub(crate) fn find(db: &Db, wanted: &str) -> Result<Network> {
    // Both are unique, and no name is checked for being an id: the id wins.
    let sql = format!(
        "SELECT {NETWORK} FROM networks n WHERE n.id = ?1 OR n.name = ?1 ORDER BY n.name = ?1 LIMIT 1"
    );
    let found =
        db.conn().prepare_cached(&sql)?.query_row([wanted], |r| Network::from_row(r, 0)).optional()?;
    if let Some(network) = found {
        return network;
    }
    let none = || EngineError::NoSuchNetwork(wanted.to_owned());
    if wanted.is_empty()
        || wanted.len() > 64
        || !wanted.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(none());
    }
    let sql = format!("SELECT {NETWORK} FROM networks n WHERE n.id >= ?1 AND n.id < ?1 || 'g' LIMIT 2");
    let mut statement = db.conn().prepare_cached(&sql)?;
    let mut rows = statement.query_map([wanted], |r| Network::from_row(r, 0))?;
    let first = rows.next().ok_or_else(none)??;
    if rows.next().is_some() {
        return Err(EngineError::Invalid(format!(
            "multiple networks found with the id prefix {wanted:?}: give more digits"
        )));
    }
    first
}

/// A container's place on a network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    /// Full id of the container.
    pub container: String,
    /// Full id of the network.
    pub network: String,
    /// The network's name, which outlives it.
    pub name: String,
    /// Order of the interfaces.
    pub position: i64,
    /// What was asked for.
    pub settings: EndpointSettings,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

const ENDPOINT: &str = "e.container, e.network, e.name, e.position, e.settings, e.ipv4, e.ipv6";

/// The same, by the name that the network has by now.
const NAMED: &str =
    "e.container, e.network, coalesce(n.name, e.name), e.position, e.settings, e.ipv4, e.ipv6";

impl Endpoint {
    fn from_row(row: &Row<'_>) -> state::rusqlite::Result<Result<Self>> {
        let container: String = row.get(0)?;
        let settings: String = row.get(4)?;
        let settings = match serde_json::from_str(&settings) {
            Ok(settings) => settings,
            Err(source) => {
                return Ok(Err(EngineError::Stored { what: "network settings", id: container, source }));
            }
        };
        Ok(Ok(Self {
            container,
            network: row.get(1)?,
            name: row.get(2)?,
            position: row.get(3)?,
            settings,
            ipv4: row.get::<_, Option<u32>>(5)?.map(Ipv4Addr::from),
            ipv6: row.get::<_, Option<[u8; 16]>>(6)?.map(Ipv6Addr::from),
        }))
    }

    /// Commits the endpoint to the store; its network is there, as nobody can remove it meanwhile.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<()> {
        if !tx.prepare_cached("SELECT 1 FROM networks WHERE id = ?1")?.exists([&self.network])? {
            return Err(EngineError::NoSuchNetwork(self.name.clone()));
        }
        tx.prepare_cached("INSERT INTO endpoints VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
            self.container,
            self.network,
            self.name,
            self.position,
            json(&self.settings),
            self.ipv4.map(u32::from),
            self.ipv6.map(|a| a.octets()),
        ])?;
        Ok(())
    }

    /// Deletes it.
    pub fn delete(&self, db: &Db) -> Result<()> {
        db.write(|tx| {
            let sql = "DELETE FROM endpoints WHERE container = ?1 AND network = ?2";
            tx.execute(sql, [&self.container, &self.network])?;
            Ok(())
        })
    }
}

/// A container's endpoints in the order of its interfaces, with their networks as far as these are still there.
pub(crate) fn of_container(db: &Db, id: &str) -> Result<Vec<(Endpoint, Option<Network>)>> {
    let sql = format!(
        "SELECT {ENDPOINT}, {NETWORK} FROM endpoints e LEFT JOIN networks n ON n.id = e.network
         WHERE e.container = ?1 ORDER BY e.position"
    );
    let mut statement = db.conn().prepare_cached(&sql)?;
    let rows = statement.query_map([id], |row| {
        let there = row.get::<_, Option<String>>(7)?.is_some();
        let network = if there { Some(Network::from_row(row, 7)?) } else { None };
        Ok((Endpoint::from_row(row)?, network))
    })?;
    rows.map(|row| {
        let (endpoint, network) = row?;
        Ok((endpoint?, network.transpose()?))
    })
    .collect()
}

/// The endpoints of one container, or of all, by container, in the order of its interfaces, with the names that their
/// networks have or had.
pub(crate) fn named(db: &Db, container: Option<&str>) -> Result<HashMap<String, Vec<Endpoint>>> {
    let sql = format!(
        "SELECT {NAMED} FROM endpoints e LEFT JOIN networks n ON n.id = e.network {} ORDER BY e.container, e.position",
        if container.is_some() { "WHERE e.container = ?1" } else { "" },
    );
    let mut statement = db.conn().prepare_cached(&sql)?;
    let mut out: HashMap<String, Vec<Endpoint>> = HashMap::new();
    for endpoint in statement.query_map(params_from_iter(container), Endpoint::from_row)? {
        let endpoint = endpoint??;
        match out.get_mut(&endpoint.container) {
            Some(list) => list.push(endpoint),
            None => drop(out.insert(endpoint.container.clone(), vec![endpoint])),
        }
    }
    Ok(out)
}

/// The endpoints on a network.
pub(crate) fn of_network(db: &Db, id: &str) -> Result<Vec<Endpoint>> {
    let sql = format!("SELECT {ENDPOINT} FROM endpoints e WHERE e.network = ?1");
    let mut statement = db.conn().prepare_cached(&sql)?;
    let rows = statement.query_map([id], Endpoint::from_row)?;
    rows.map(|r| r?).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SCHEMA;

    fn network(byte: u8, name: &str) -> Network {
        Network {
            id: format!("{byte:02x}").repeat(32),
            name: name.into(),
            created_ns: 1,
            last4: None,
            config: Config { driver: Driver::Macvlan, internal: true, ..Config::default() },
        }
    }

    #[test]
    fn networks_are_found_by_name_id_and_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("state.db")).unwrap();
        db.migrate("engine", SCHEMA).unwrap();
        let names: Vec<_> = all(&db).unwrap().into_iter().map(|n| (n.name, n.config.driver)).collect();
        let predefined = [("bridge", Driver::Bridge), ("host", Driver::Host), ("none", Driver::Null)];
        assert_eq!(names, predefined.map(|(n, d)| (n.to_owned(), d)));
        for n in [network(0xaa, "one"), network(0xab, "two")] {
            db.write(|tx| n.insert(tx)).unwrap();
        }
        assert_eq!(find(&db, "one").unwrap(), network(0xaa, "one"));
        assert_eq!(find(&db, &"ab".repeat(32)).unwrap().name, "two");
        assert_eq!(find(&db, "aba").unwrap().name, "two");
        assert!(matches!(find(&db, "a"), Err(EngineError::Invalid(_))));
        for missing in ["", "three", "a'--", &"f".repeat(65)] {
            assert!(matches!(find(&db, missing), Err(EngineError::NoSuchNetwork(_))), "{missing}");
        }
        assert!(matches!(db.write(|tx| network(0xcc, "one").insert(tx)), Err(EngineError::Conflict(_))));
    }

    #[test]
    fn a_store_of_an_older_version_keeps_its_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("state.db")).unwrap();
        db.migrate("engine", &SCHEMA[..1]).unwrap();
        let containers = [
            (
                "a",
                r#"{"NetworkMode":"bridge"}"#,
                r#"{"EndpointsConfig":{"default":{"MacAddress":"02:00:00:00:00:01"}}}"#,
            ),
            ("b", "{}", "{}"),
            ("c", r#"{"NetworkMode":"none"}"#, "{}"),
        ];
        for (name, host, networking) in containers {
            let id = name.repeat(64);
            let sql = "INSERT INTO containers VALUES (?1, ?2, 0, 'i', 'i', '{}', ?3, ?4, '[]')";
            db.conn().execute(sql, [&id, name, host, networking]).unwrap();
        }
        db.conn()
            .execute("INSERT INTO addresses VALUES ('bridge', 2887647234, ?1)", ["a".repeat(64)])
            .unwrap();
        db.conn().execute("INSERT INTO addresses VALUES ('userns', 7, ?1)", ["b".repeat(64)]).unwrap();
        db.migrate("engine", SCHEMA).unwrap();
        let slot = "SELECT slot FROM user_ranges WHERE container = ?1";
        assert_eq!(db.conn().query_row(slot, ["b".repeat(64)], |r| r.get::<_, u32>(0)).unwrap(), 7);
        let of = |name: &str| of_container(&db, &name.repeat(64)).unwrap();
        let (endpoint, network) = of("a").remove(0);
        assert_eq!(endpoint.ipv4, Some(Ipv4Addr::new(172, 30, 0, 2)));
        assert_eq!(endpoint.settings.mac_address.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(network.unwrap().last4, Some(Ipv4Addr::new(172, 30, 0, 2)));
        assert_eq!((of("b").len(), of("b")[0].0.ipv4, of("c").len()), (1, None, 0));
        assert_eq!(crate::store::all(&db).unwrap().len(), 3);
    }
}
