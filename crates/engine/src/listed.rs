//! Containers as lists and filters see them: of what is stored of each only the members that these read, taken out of it
//! as the rows go by. A list of many costs little more than reading them; who acts on a container has it whole
//! ([`crate::store::Container`]).

use crate::mounts::UserMount;
use crate::{EngineError, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;
use state::Db;
use state::rusqlite::Row;
use std::collections::{BTreeMap, HashMap};
use types::ContainerId;

/// Ports, as keys of a map: `80/tcp`.
type Ports = BTreeMap<String, IgnoredAny>;

/// One container.
#[derive(Debug)]
pub(crate) struct Listed {
    pub id: ContainerId,
    pub name: String,
    pub created_ns: i64,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// Image as the user named it.
    pub image: String,
    pub config: Config,
    pub host: Host,
    pub mounts: Vec<UserMount>,
}

/// What a list reads of a container's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub labels: Option<HashMap<String, String>>,
    pub exposed_ports: Option<Ports>,
}

/// What a list reads of its host configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Host {
    pub network_mode: Option<String>,
    pub annotations: Option<HashMap<String, String>>,
    pub port_bindings: Option<Ports>,
}

/// One row, its columns in one text: what they say is read when it is to be shown.
#[derive(Debug)]
pub(crate) struct Stored {
    text: String,
    ends: [usize; 7],
    created_ns: i64,
}

const COLUMNS: &str = "created_ns, id, name, image_id, image, config, host, mounts";

impl Stored {
    fn from_row(row: &Row<'_>) -> state::rusqlite::Result<Self> {
        let mut columns = [""; 7];
        for (column, text) in columns.iter_mut().enumerate() {
            *text = row.get_ref(column + 1)?.as_str()?;
        }
        let mut end = 0;
        let ends = columns.map(|text| {
            end += text.len();
            end
        });
        Ok(Self { text: columns.concat(), ends, created_ns: row.get(0)? })
    }

    fn columns(&self) -> [&str; 7] {
        let mut begin = 0;
        self.ends.map(|end| self.text.get(std::mem::replace(&mut begin, end)..end).unwrap_or_default())
    }

    /// The container's full id.
    pub fn id(&self) -> &str {
        self.columns()[0]
    }

    /// What it says.
    pub fn read(&self) -> Result<Listed> {
        fn read<'a, T: Deserialize<'a>>(what: &'static str, id: &str, json: &'a str) -> Result<T> {
            serde_json::from_str(json).map_err(|source| EngineError::Stored {
                what,
                id: id.to_owned(),
                source,
            })
        }
        let [id, name, image_id, image, config, host, mounts] = self.columns();
        Ok(Listed {
            config: read("configuration", id, config)?,
            host: read("host configuration", id, host)?,
            mounts: read("mounts", id, mounts)?,
            id: ContainerId::parse(id).map_err(|e| EngineError::Invalid(e.to_string()))?,
            name: name.to_owned(),
            created_ns: self.created_ns,
            image_id: image_id.to_owned(),
            image: image.to_owned(),
        })
    }
}

impl Listed {
    /// All words of its command in one.
    pub fn command(&self) -> String {
        let words = self.config.entrypoint.iter().flatten().chain(self.config.cmd.iter().flatten());
        words.map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// Every container, latest first.
pub(crate) fn all(db: &Db) -> Result<Vec<Stored>> {
    let mut statement = db.conn().prepare_cached(&format!("SELECT {COLUMNS} FROM containers"))?;
    let rows = statement.query_map([], Stored::from_row)?;
    let mut all = rows.collect::<state::rusqlite::Result<Vec<_>>>()?;
    // The database would copy all of each row to do this.
    all.sort_by(|a, b| b.created_ns.cmp(&a.created_ns).then_with(|| a.id().cmp(b.id())));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{self, Container};
    use types::docker::{ContainerConfig, HostConfig};

    #[test]
    fn a_list_reads_what_was_stored() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("state.db")).unwrap();
        db.migrate("engine", store::SCHEMA).unwrap();
        let words = |w: &[&str]| Some(w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        let map = || Some(HashMap::from([("a".to_owned(), "1".to_owned())]));
        let made = Container {
            id: ContainerId::from_random([7; 32]),
            name: "one".into(),
            created_ns: 5,
            image_id: "sha256:x".into(),
            image: "x".into(),
            config: ContainerConfig {
                entrypoint: words(&["sh", "-c"]),
                cmd: words(&["true"]),
                labels: map(),
                exposed_ports: words(&["80/tcp"]),
                env: words(&["A=b"]),
                ..Default::default()
            },
            host: HostConfig {
                network_mode: Some("none".into()),
                annotations: map(),
                port_bindings: Some(HashMap::from([("80/tcp".to_owned(), None)])),
                memory: Some(5),
                ..Default::default()
            },
            mounts: vec![UserMount::bind("/srv".into())],
        };
        let bare = Container {
            id: ContainerId::from_random([8; 32]),
            name: "two".into(),
            created_ns: 4,
            config: ContainerConfig::default(),
            host: HostConfig::default(),
            mounts: Vec::new(),
            ..made.clone()
        };
        db.write(|tx| made.insert(tx).and_then(|()| bare.insert(tx))).unwrap();
        let read = || all(&db).unwrap().iter().map(Stored::read).collect::<Result<Vec<_>>>();
        let [one, two] = &read().unwrap()[..] else { panic!("two were made") };
        assert_eq!((&one.id, &one.name, one.created_ns), (&made.id, &made.name, 5));
        assert_eq!((one.command().as_str(), &one.config.labels), ("sh -c true", &map()));
        let ports = |p: &Option<Ports>| p.iter().flatten().map(|(p, _)| p.clone()).collect::<Vec<_>>();
        assert_eq!(ports(&one.config.exposed_ports), ["80/tcp"]);
        assert_eq!(ports(&one.host.port_bindings), ["80/tcp"]);
        assert_eq!((one.host.network_mode.as_deref(), &one.host.annotations), (Some("none"), &map()));
        assert_eq!(one.mounts, made.mounts);
        assert_eq!((two.command().as_str(), &two.config.labels, two.mounts.len()), ("", &None, 0));
        db.conn().execute("UPDATE containers SET host = '{' WHERE name = 'two'", []).unwrap();
        assert!(matches!(read(), Err(EngineError::Stored { what: "host configuration", .. })));
    }
}
