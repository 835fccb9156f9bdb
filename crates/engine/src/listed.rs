//! Containers as lists and filters see them: of what is stored of each only the members that these read, taken out of it
//! as the rows go by. A list of many costs little more than reading them; who acts on a container has it whole
//! ([`crate::store::Container`]).

use crate::mounts::UserMount;
use crate::{EngineError, Result};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use state::Db;
use state::rusqlite::{self, Row};
use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;

/// A string of a stored document: a part of it, where nothing in it is escaped.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    /// The string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A copy of it.
    pub fn into_string(self) -> String {
        self.0.into_owned()
    }
}

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Labels or annotations.
pub type Words<'a> = BTreeMap<Text<'a>, Text<'a>>;
/// Ports, as keys of a map: `80/tcp`.
type Ports<'a> = BTreeMap<Text<'a>, IgnoredAny>;

/// One container.
#[derive(Debug)]
pub(crate) struct Listed<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub created_ns: i64,
    /// Digest of the image's configuration.
    pub image_id: &'a str,
    /// Image as the user named it.
    pub image: &'a str,
    pub config: Config<'a>,
    pub host: Host<'a>,
    pub mounts: Vec<UserMount>,
}

/// What a list reads of a container's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config<'a> {
    #[serde(borrow)]
    pub entrypoint: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub cmd: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub labels: Option<Words<'a>>,
    #[serde(borrow)]
    pub exposed_ports: Option<Ports<'a>>,
}

/// What a list reads of its host configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Host<'a> {
    #[serde(borrow)]
    pub network_mode: Option<Text<'a>>,
    #[serde(borrow)]
    pub annotations: Option<Words<'a>>,
    #[serde(borrow)]
    pub port_bindings: Option<Ports<'a>>,
}

const COLUMNS: &str = "created_ns, id, name, image_id, image, config, host, mounts";

/// Rows, all their columns in one text: what they say is read when it is to be shown.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    text: String,
    rows: Vec<Place>,
}

/// Where a row's columns are.
#[derive(Debug)]
struct Place {
    created_ns: i64,
    begin: usize,
    ends: [usize; 7],
}

/// One row.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    created_ns: i64,
    columns: [&'a str; 7],
}

impl Rows {
    fn add(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let (begin, mut ends) = (self.text.len(), [0; 7]);
        for (column, end) in ends.iter_mut().enumerate() {
            self.text.push_str(row.get_ref(column + 1)?.as_str()?);
            *end = self.text.len();
        }
        self.rows.push(Place { created_ns: row.get(0)?, begin, ends });
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Each of them, latest first.
    pub fn iter(&self) -> impl Iterator<Item = Stored<'_>> {
        self.rows.iter().map(|Place { created_ns, begin, ends }| {
            let mut begin = *begin;
            let columns =
                ends.map(|end| self.text.get(std::mem::replace(&mut begin, end)..end).unwrap_or_default());
            Stored { created_ns: *created_ns, columns }
        })
    }
}

impl<'a> Stored<'a> {
    /// The container's full id.
    pub fn id(&self) -> &'a str {
        self.columns[0]
    }

    /// What it says.
    pub fn read(&self) -> Result<Listed<'a>> {
        fn read<'a, T: Deserialize<'a>>(what: &'static str, id: &str, json: &'a str) -> Result<T> {
            serde_json::from_str(json).map_err(|source| EngineError::Stored {
                what,
                id: id.to_owned(),
                source,
            })
        }
        let [id, name, image_id, image, config, host, mounts] = self.columns;
        Ok(Listed {
            config: read("configuration", id, config)?,
            host: read("host configuration", id, host)?,
            mounts: read("mounts", id, mounts)?,
            id,
            name,
            created_ns: self.created_ns,
            image_id,
            image,
        })
    }
}

impl Listed<'_> {
    /// All words of its command in one.
    pub fn command(&self) -> String {
        let mut words = self.config.entrypoint.iter().flatten().chain(self.config.cmd.iter().flatten());
        let mut all = words.next().map(|word| word.as_str().to_owned()).unwrap_or_default();
        for word in words {
            all.push(' ');
            all.push_str(word.as_str());
        }
        all
    }

    /// Which network it is on, if it is on one that has no places.
    pub fn network_mode(&self) -> Option<&str> {
        self.host.network_mode.as_ref().map(Text::as_str)
    }
}

/// Every container, latest first.
pub(crate) fn all(db: &Db) -> Result<Rows> {
    let mut statement = db.conn().prepare_cached(&format!("SELECT {COLUMNS} FROM containers"))?;
    let mut all = Rows::default();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        all.add(row)?;
    }
    // The database would copy all of each row to do this. The id is a row's first column.
    let Rows { text, rows } = &mut all;
    let id = |place: &Place| text.get(place.begin..place.ends[0]).unwrap_or_default();
    rows.sort_unstable_by(|a, b| b.created_ns.cmp(&a.created_ns).then_with(|| id(a).cmp(id(b))));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{self, Container};
    use std::collections::HashMap;
    use types::ContainerId;
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
        let rows = all(&db).unwrap();
        let read = |rows: &Rows| rows.iter().map(|row| row.read().map(drop)).collect::<Result<Vec<()>>>();
        assert_eq!(read(&rows).unwrap().len(), rows.len());
        let [one, two] = &rows.iter().map(|row| row.read().unwrap()).collect::<Vec<_>>()[..] else {
            panic!("two were made")
        };
        assert_eq!((one.id, one.name, one.created_ns), (made.id.as_str(), made.name.as_str(), 5));
        let words = |words: &Option<Words<'_>>| {
            let pairs = words.iter().flatten().map(|(k, v)| (k.as_str().to_owned(), v.as_str().to_owned()));
            words.is_some().then(|| pairs.collect::<HashMap<_, _>>())
        };
        assert_eq!((one.command().as_str(), words(&one.config.labels)), ("sh -c true", map()));
        let ports = |p: &Option<Ports<'_>>| -> Vec<String> {
            p.iter().flatten().map(|(p, _)| p.as_str().to_owned()).collect()
        };
        assert_eq!(ports(&one.config.exposed_ports), ["80/tcp"]);
        assert_eq!(ports(&one.host.port_bindings), ["80/tcp"]);
        assert_eq!((one.network_mode(), words(&one.host.annotations)), (Some("none"), map()));
        assert_eq!(one.mounts, made.mounts);
        assert_eq!((two.command().as_str(), words(&two.config.labels), two.mounts.len()), ("", None, 0));
        db.conn().execute("UPDATE containers SET host = '{' WHERE name = 'two'", []).unwrap();
        assert!(matches!(
            read(&all(&db).unwrap()),
            Err(EngineError::Stored { what: "host configuration", .. })
        ));
    }
}
