//! Volumes: what outlives containers. The table of them, and `volume create`, `ls`, `rm` and `prune`.
//!
//! ```text
//! options ─► what a driver can be asked for          disk  ─► the file of a disk: made, looked at
//! plan    ─► what a start mounts or hands over       place ─► mounted on this host, by whom, and swept
//! transfer ─► export, import, clone                  qcow2 ─► the one image format that is not raw
//! resize  ─► a disk grows                            aside ─► what has no row yet, or no more
//! words   ─► what mount(8) is told                   marks  ─► which disks a guest may have written
//! ```
//!
//! A volume is its row. Its directory or file is made when it is first needed, and what lies below
//! `<root>/volumes` without a row belongs to nobody.

mod aside;
pub(crate) mod disk;
mod marks;
pub(crate) mod options;
pub(crate) mod place;
mod plan;
mod qcow2;
mod resize;
mod transfer;
mod words;

pub(crate) use marks::Marks;
pub use options::Driver;
pub use transfer::Format as VolumeFormat;

use crate::mounts::Kind;
use crate::pattern::Patterns;
use crate::recover::remove_tree;
use crate::request::{Filters, Pruned};
use crate::spec::invalid;
use crate::store::{Container, json};
use crate::{Engine, EngineError, Result, filters};
use state::rusqlite::{OptionalExtension, Row, Transaction, params};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use types::{ErrorKind, EventType, Kinded};

/// Docker's label of a volume that nobody named.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Name.
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created_ns: i64,
    /// Made for one container alone.
    pub anonymous: bool,
    /// What carries it.
    pub driver: Driver,
    /// What the driver was told.
    pub options: BTreeMap<String, String>,
    /// Of the user's.
    pub labels: BTreeMap<String, String>,
    /// Containers that use it, by full id.
    pub users: Vec<String>,
}

/// What `volume create` is asked for.
#[derive(Clone, Debug, Default)]
pub struct CreateVolume {
    /// One is made up if none is given.
    pub name: Option<String>,
    /// Empty for the default.
    pub driver: String,
    /// What the driver is told.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

const COLUMNS: &str = "name, created_ns, anonymous, labels, driver, options";

impl VolumeInfo {
    fn from_row(row: &Row<'_>) -> state::rusqlite::Result<Self> {
        let map = |text: String| serde_json::from_str(&text).unwrap_or_default();
        let driver: String = row.get(4)?;
        Ok(Self {
            name: row.get(0)?,
            created_ns: row.get(1)?,
            anonymous: row.get(2)?,
            labels: map(row.get(3)?),
            driver: if driver == Driver::Disk.as_str() { Driver::Disk } else { Driver::Local },
            options: map(row.get(5)?),
            users: Vec::new(),
        })
    }

    /// Whether it is a directory of the store's, and nothing is to be mounted for it.
    pub fn is_directory(&self) -> bool {
        self.driver == Driver::Local && self.options.is_empty()
    }

    fn label(&self, key: &str) -> Option<&str> {
        match self.labels.get(key) {
            None if self.anonymous && key == ANONYMOUS => Some(""),
            found => found.map(String::as_str),
        }
    }

    /// Its labels, with those that Docker gives it.
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut all = self.labels.clone();
        if self.anonymous {
            all.insert(ANONYMOUS.into(), String::new());
        }
        all
    }
}

/// Finds a volume, without its users.
pub(crate) fn find(conn: &state::rusqlite::Connection, name: &str) -> Result<Option<VolumeInfo>> {
    let sql = format!("SELECT {COLUMNS} FROM volumes WHERE name = ?1");
    Ok(conn.prepare_cached(&sql)?.query_row([name], VolumeInfo::from_row).optional()?)
}

fn insert(volumes: &Path, tx: &Transaction<'_>, v: &VolumeInfo) -> Result<()> {
    // What a removal left that was cut short is none of the new one's; the next sweep deletes it.
    aside::put_aside(volumes, &v.name)?;
    let sql = format!("INSERT INTO volumes({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
    tx.prepare_cached(&sql)?.execute(params![
        v.name,
        v.created_ns,
        v.anonymous,
        json(&v.labels),
        v.driver.as_str(),
        json(&v.options),
    ])?;
    Ok(())
}

/// Notes the volumes of a new container, within the transaction that makes it; the names of those that are new.
pub(crate) fn claim(engine: &Engine, tx: &Transaction<'_>, container: &Container) -> Result<Vec<String>> {
    let mut new = Vec::new();
    for mount in container.mounts.iter().filter(|m| m.kind == Kind::Volume) {
        let asked = &mount.wanted;
        match find(tx, &mount.volume)? {
            Some(there) => {
                let driver = asked.driver.as_deref().map(Driver::parse).transpose()?;
                if driver.is_some_and(|d| d != there.driver) {
                    return Err(taken(&there));
                }
            }
            None => {
                let driver = Driver::parse(asked.driver.as_deref().unwrap_or(""))?;
                options::check(driver, &asked.options)?;
                let volume = VolumeInfo {
                    name: mount.volume.clone(),
                    created_ns: container.created_ns,
                    anonymous: mount.anonymous,
                    driver,
                    options: asked.options.clone(),
                    labels: asked.labels.clone(),
                    users: Vec::new(),
                };
                insert(&engine.volumes_dir(), tx, &volume)?;
                new.push(volume.name);
            }
        }
        tx.prepare_cached("INSERT OR IGNORE INTO container_volumes VALUES (?1, ?2)")?
            .execute([container.id.as_str(), &mount.volume])?;
    }
    Ok(new)
}

fn taken(there: &VolumeInfo) -> EngineError {
    let shown = there.options.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
    let shown = if shown.is_empty() { "no options".to_owned() } else { format!("the options {shown}") };
    EngineError::Conflict(format!(
        "a volume named {} exists already, with the driver {} and {shown}: choose another name, or remove it first",
        there.name, there.driver
    ))
}

impl Engine {
    /// Makes a volume, and returns its name. One that is there already, with the same driver and options, is as good.
    pub fn create_volume(&self, request: &CreateVolume) -> Result<String> {
        let driver = Driver::parse(&request.driver)?;
        options::check(driver, &request.options)?;
        let name = match request.name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => crate::mounts::volume_name(name)?,
            None => crate::ids::new_id()?.as_str().to_owned(),
        };
        let volume = VolumeInfo {
            name: name.clone(),
            created_ns: sys::host::now_ns(),
            anonymous: request.name.as_deref().unwrap_or("").is_empty(),
            driver,
            options: request.options.clone(),
            labels: request.labels.clone(),
            users: Vec::new(),
        };
        let new = self.db.write(|tx| match find(tx, &name)? {
            Some(there) if there.driver == driver && there.options == volume.options => Ok(false),
            Some(there) => Err(taken(&there)),
            None => insert(&self.volumes_dir(), tx, &volume).map(|()| true),
        })?;
        if new {
            if let Err(e) = self.make_volume(&volume) {
                // A container that has it already will tell the same.
                let _ = self.remove_row(&name, |_| Ok(())).and_then(|_| self.discard_volume(&name));
                return Err(e);
            }
            self.volume_event("create", &volume);
        }
        Ok(name)
    }

    pub(crate) fn volume_event(&self, action: &str, volume: &VolumeInfo) {
        self.tell(
            EventType::Volume,
            action,
            &volume.name,
            [("driver".to_owned(), volume.driver.to_string())].into(),
        );
    }

    /// Makes what a volume lies in, if it is missing.
    pub(crate) fn make_volume(&self, volume: &VolumeInfo) -> Result<()> {
        let data = self.paths.volume(&volume.name);
        // Only the volume itself has a mode for its users: nobody but root gets there by the host's path.
        let parent = data.parent().unwrap_or(&data);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(EngineError::io("cannot create the directory", parent))?;
        if volume.driver == Driver::Disk {
            let size = options::size(&volume.options)?;
            let (file, of) = (self.disk_file(&volume.name), options::kind(&volume.options)?);
            return disk::ensure(&file, size, &self.paths.root.join("templates"), of);
        }
        if volume.is_directory() && !data.exists() {
            std::fs::DirBuilder::new()
                .mode(0o755)
                .create(&data)
                .map_err(EngineError::io("cannot create the directory", &data))?;
        }
        Ok(())
    }

    /// The file of a volume that is a disk.
    pub(crate) fn disk_file(&self, name: &str) -> PathBuf {
        self.paths.volume(name).with_file_name("disk.img")
    }

    /// Makes the directories and files of a container's volumes, where they are missing.
    pub(crate) fn prepare_volumes(&self, container: &Container) -> Result<()> {
        for mount in container.mounts.iter() {
            match mount.kind {
                Kind::Volume => self.make_volume(&self.volume_row(&mount.volume)?)?,
                Kind::Bind if mount.create_source && !mount.source.exists() => {
                    std::fs::DirBuilder::new()
                        .recursive(true)
                        .mode(0o755)
                        .create(&mount.source)
                        .map_err(EngineError::io("cannot create the directory", &mount.source))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A volume, without its users.
    pub(crate) fn volume_row(&self, name: &str) -> Result<VolumeInfo> {
        find(self.db.conn(), name)?.ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> {
        let users = self.volume_users(name)?;
        Ok(VolumeInfo { users, ..self.volume_row(name)? })
    }

    /// Every volume, by name.
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        let sql = format!("SELECT {COLUMNS} FROM volumes ORDER BY name");
        let mut statement = self.db.conn().prepare_cached(&sql)?;
        let rows = statement.query_map([], VolumeInfo::from_row)?;
        rows.map(|row| {
            let volume = row?;
            let users = self.volume_users(&volume.name)?;
            Ok(VolumeInfo { users, ..volume })
        })
        .collect()
    }

    /// A volume in Docker's shape.
    pub fn volume_shape(&self, v: &VolumeInfo) -> Result<serde_json::Value> {
        let mut shown = serde_json::json!({
            "CreatedAt": types::units::rfc3339(v.created_ns), "Driver": v.driver.as_str(), "Labels": v.all_labels(),
            "Mountpoint": self.mountpoint(v), "Name": v.name, "Options": null, "Scope": "local",
        });
        if !v.options.is_empty() {
            shown["Options"] = serde_json::json!(v.options);
        }
        if v.driver == Driver::Disk {
            shown["Status"] = serde_json::json!({
                "Size": self.volume_capacity(v), "Used": self.volume_usage(v)?,
                "WrittenByGuest": self.volume_is_foreign(v),
            });
        }
        Ok(shown)
    }

    /// Those that match the filters of `volume ls`.
    pub fn matching_volumes(&self, filter: &Filters) -> Result<Vec<VolumeInfo>> {
        filters::check(filter, &["dangling", "driver", "label", "name"])?;
        for value in filter.get("dangling").into_iter().flatten() {
            if !matches!(value.as_str(), "true" | "false" | "1" | "0") {
                return Err(invalid(format!("invalid filter 'dangling={value}': use true or false")));
            }
        }
        let patterns = Patterns::of(filter);
        let matches = |v: &VolumeInfo| {
            filter.iter().all(|(key, values)| match key.as_str() {
                // Of labels all, as Docker has it.
                "label" => values.iter().all(|w| filters::label_matches(w, |k| v.label(k))),
                "name" => values.iter().any(|n| patterns.finds(n, &v.name)),
                "driver" => values.iter().any(|d| v.driver.as_str() == d),
                _ => values.iter().any(|d| matches!(d.as_str(), "true" | "1") == v.users.is_empty()),
            })
        };
        Ok(self.volumes()?.into_iter().filter(matches).collect())
    }

    pub(crate) fn volume_users(&self, name: &str) -> Result<Vec<String>> {
        let mut statement =
            self.db.conn().prepare_cached("SELECT container FROM container_volumes WHERE volume = ?1")?;
        let rows = statement.query_map([name], |r| r.get(0))?;
        Ok(rows.collect::<state::rusqlite::Result<_>>()?)
    }

    /// Where it is found on this host: its directory, or where it is mounted while it is used.
    pub fn mountpoint(&self, volume: &VolumeInfo) -> PathBuf {
        match volume.is_directory() {
            true => self.paths.volume(&volume.name),
            false => self.place(&volume.name).join("mnt"),
        }
    }

    /// Bytes that it takes of the host's disk.
    pub fn volume_usage(&self, volume: &VolumeInfo) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(match volume.driver {
            Driver::Disk => std::fs::metadata(self.disk_file(&volume.name)).map_or(0, |m| m.blocks() * 512),
            Driver::Local => rootfs::usage(&self.paths.volume(&volume.name))?,
        })
    }

    /// Whether a guest's kernel has written its filesystem, or it came from outside: then this host's does not read it.
    pub fn volume_is_foreign(&self, volume: &VolumeInfo) -> bool {
        volume.driver == Driver::Disk && self.is_foreign(&volume.name)
    }

    /// Bytes that a disk can hold, its filesystem's own included.
    pub fn volume_capacity(&self, volume: &VolumeInfo) -> Option<u64> {
        let file = self.disk_file(&volume.name);
        (volume.driver == Driver::Disk).then(|| std::fs::metadata(file).map_or(0, |m| m.len()))
    }

    /// Removes a volume that no container uses, and its data.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        let volume = match self.remove_row(name, |_| Ok(())) {
            // A full disk has no room to note a removal. What is removed makes it.
            Err(e) if e.kind() == ErrorKind::Exhausted => self.remove_row(name, remove_tree),
            done => done,
        }?;
        self.discard_volume(name)?;
        self.volume_event("destroy", &volume);
        Ok(())
    }

    /// Removes what no container names: anonymous ones, with `all` the others too, of those that match.
    pub fn prune_volumes(&self, all: bool, filter: &Filters) -> Result<Pruned> {
        filters::check(filter, &["all", "label", "label!"])?;
        let all = all || filter.get("all").is_some_and(|v| v.iter().any(|v| v == "true" || v == "1"));
        let mut out = Pruned::default();
        for volume in self.volumes()? {
            let has = |wanted: &String| filters::label_matches(wanted, |k| volume.label(k));
            let matches = filter.iter().all(|(key, values)| match key.as_str() {
                "label" => values.iter().all(has),
                "label!" => !values.iter().any(has),
                _ => true,
            });
            if !matches || !volume.users.is_empty() || !(all || volume.anonymous) {
                continue;
            }
            let size = self.volume_usage(&volume).unwrap_or(0);
            match self.remove_volume(&volume.name) {
                Ok(()) => {
                    out.reclaimed += size;
                    out.volumes.push(volume.name);
                }
                Err(EngineError::Conflict(_) | EngineError::NoSuchVolume(_)) => {}
                Err(e) => return Err(e),
            }
        }
        self.prune_event(types::EventType::Volume, out.reclaimed);
        Ok(out)
    }
}
