//! Who has which name on which network: one small file for each place on a network, `<run>/networks/<network>/<container>`.
//!
//! Written by rename when a sandbox comes to a network, removed when it leaves, so that readers need no lock and no
//! process need live for others to find a name. The directories are root's; what lies in them and cannot be read is nobody.

use crate::NetError;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use types::Attachment;

/// Most bytes of a file; it holds some names.
const MOST: u64 = 64 << 10;
/// Names that one sandbox may have.
const NAMES: usize = 256;
/// Times of files have steps of this or less: what changed within it may have changed once more.
const STEP: Duration = Duration::from_millis(50);

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// The container's own name first.
    names: Vec<String>,
    #[serde(default)]
    ipv4: Option<Ipv4Addr>,
    #[serde(default)]
    ipv6: Option<Ipv6Addr>,
}

fn directory(run: &Path, network: &str) -> PathBuf {
    run.join("networks").join(network)
}

/// A part of a path, not a way out of it.
fn is_name(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && !part.contains('/')
}

/// Lets the others on a network find a sandbox by its names, and by its addresses in reverse. May be repeated.
pub fn announce(run: &Path, attachment: &Attachment) -> Result<(), NetError> {
    let failed = NetError::system("announce the names of a sandbox");
    if !is_name(&attachment.network) || !is_name(&attachment.id) {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    let entry = Entry {
        names: attachment.names.iter().take(NAMES).cloned().collect(),
        ipv4: Some(attachment.ipv4),
        ipv6: attachment.ipv6,
    };
    let dir = directory(run, &attachment.network);
    let write = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        sys::file::replace(&dir.join(&attachment.id), &serde_json::to_vec(&entry)?, false)
    };
    match write() {
        // An empty directory was swept in between.
        Err(e) if e.kind() == io::ErrorKind::NotFound => write(),
        done => done,
    }
    .map_err(failed)
}

/// Takes the names of a sandbox back. May be repeated.
pub fn withdraw(run: &Path, attachment: &Attachment) -> Result<(), NetError> {
    if !is_name(&attachment.network) || !is_name(&attachment.id) {
        return Ok(());
    }
    match std::fs::remove_file(directory(run, &attachment.network).join(&attachment.id)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NetError::system("withdraw the names of a sandbox")(e))
        }
        _ => Ok(()),
    }
}

/// Removes the names of those that are gone, which `gone` tells by the ids of a network and of a container: what it answers
/// with is held until they are removed. And what writers that were killed left, and directories that hold nothing.
pub fn sweep_names<G>(run: &Path, gone: impl Fn(&str, &str) -> Option<G>) {
    for network in std::fs::read_dir(run.join("networks")).into_iter().flatten().flatten() {
        for entry in std::fs::read_dir(network.path()).into_iter().flatten().flatten() {
            let (network, container) = (network.file_name(), entry.file_name());
            let held;
            let remove = match (network.to_str(), container.to_str()) {
                // Somebody may be writing it.
                (_, Some(name)) if name.starts_with('.') => !entry.metadata().is_ok_and(|m| is_fresh(&m)),
                (Some(network), Some(container)) => {
                    held = gone(network, container);
                    held.is_some()
                }
                _ => true,
            };
            if remove {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        // Fails where it is not empty.
        let _ = std::fs::remove_dir(network.path());
    }
}

fn is_fresh(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok());
    age.is_none_or(|age| age < Duration::from_secs(60))
}

/// What a name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) ipv4: Vec<Ipv4Addr>,
    pub(super) ipv6: Vec<Ipv6Addr>,
}

/// The names that one sandbox may see: those of its networks.
#[derive(Debug, Default)]
pub(super) struct View {
    networks: Vec<Network>,
}

impl View {
    /// Of these networks, in this order.
    pub(super) fn new(run: &Path, attachments: &[Attachment]) -> Self {
        let of = |a: &Attachment| Network {
            dir: directory(run, &a.network),
            suffix: format!(".{}", a.network_name.to_ascii_lowercase()),
            seen: None,
            files: HashMap::new(),
            names: HashMap::new(),
        };
        Self { networks: attachments.iter().filter(|a| is_name(&a.network)).map(of).collect() }
    }

    /// Looks for changes.
    pub(super) fn refresh(&mut self) {
        self.networks.iter_mut().for_each(Network::refresh);
    }

    /// Who has a name (in lower case), on the first network where somebody has it.
    pub(super) fn name(&self, name: &str) -> Option<&Found> {
        self.networks.iter().find_map(|n| n.name(name))
    }

    /// The first name of who has an address, with that of the network.
    pub(super) fn address(&self, address: IpAddr) -> Option<String> {
        self.networks.iter().find_map(|n| n.address(address))
    }
}

/// A file that was read, and by what it is known again.
#[derive(Debug)]
struct Known {
    mark: Mark,
    entry: Option<Entry>,
}

/// By what a file or a directory is known to be the same.
type Mark = (u64, i64, i64, u64);

fn mark(metadata: &Metadata) -> Mark {
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size())
}

/// The names on one network.
#[derive(Debug)]
struct Network {
    dir: PathBuf,
    /// A dot and the network's name: `NAME.NETWORK` is `NAME` on it.
    suffix: String,
    /// The directory as it was read, if nothing can have changed since but what its time tells.
    seen: Option<Mark>,
    files: HashMap<OsString, Known>,
    names: HashMap<Box<str>, Found>,
}

impl Network {
    fn name(&self, name: &str) -> Option<&Found> {
        let short = name.strip_suffix(self.suffix.as_str());
        self.names.get(name).or_else(|| self.names.get(short?))
    }

    fn address(&self, address: IpAddr) -> Option<String> {
        let has = |e: &&Entry| match address {
            IpAddr::V4(a) => e.ipv4 == Some(a),
            IpAddr::V6(a) => e.ipv6 == Some(a),
        };
        let entry = self.files.values().filter_map(|k| k.entry.as_ref()).find(has)?;
        Some(format!("{}{}", entry.names.first()?, self.suffix))
    }

    fn refresh(&mut self) {
        let Ok(metadata) = std::fs::metadata(&self.dir) else {
            (self.seen, self.files, self.names) = Default::default();
            return;
        };
        if self.seen == Some(mark(&metadata)) {
            return;
        }
        self.read();
        let age = metadata.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok());
        self.seen = age.filter(|age| *age > STEP).map(|_| mark(&metadata));
    }

    fn read(&mut self) {
        let mut old = std::mem::take(&mut self.files);
        let mut changed = false;
        for file in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = file.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let Ok(metadata) = file.metadata() else { continue };
            let known = old.remove(&name).filter(|k| k.mark == mark(&metadata));
            let known = known.unwrap_or_else(|| {
                changed = true;
                Known { mark: mark(&metadata), entry: read_entry(&file.path()).ok() }
            });
            self.files.insert(name, known);
        }
        if changed || !old.is_empty() {
            self.index();
        }
    }

    fn index(&mut self) {
        let mut names: HashMap<Box<str>, Found> = HashMap::new();
        for entry in self.files.values().filter_map(|k| k.entry.as_ref()) {
            let mut own: Vec<_> = entry.names.iter().map(|n| n.to_ascii_lowercase()).collect();
            own.sort_unstable();
            own.dedup();
            for name in own {
                let found = names.entry(name.into()).or_default();
                found.ipv4.extend(entry.ipv4);
                found.ipv6.extend(entry.ipv6);
            }
        }
        // In an order of their own: each answer begins at another.
        for found in names.values_mut() {
            found.ipv4.sort_unstable();
            found.ipv6.sort_unstable();
        }
        self.names = names;
    }
}

fn read_entry(path: &Path) -> io::Result<Entry> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(Errno::INVAL.into());
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(Errno::FBIG.into());
    }
    let mut entry: Entry = serde_json::from_slice(&bytes)?;
    entry.names.truncate(NAMES);
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::attachment;

    fn place(n: u8, network: &str, names: &[&str]) -> Attachment {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        Attachment {
            network: network.into(),
            network_name: format!("Net-{network}"),
            names,
            ..attachment(n, Vec::new())
        }
    }

    #[test]
    fn names_come_and_go() {
        let run = tempfile::tempdir().unwrap();
        let (web, db) = (place(2, "1", &["web", "www", "aa"]), place(3, "1", &["DB", "www"]));
        let mut view = View::new(run.path(), std::slice::from_ref(&web));
        view.refresh();
        assert_eq!(view.name("web"), None);
        announce(run.path(), &web).unwrap();
        announce(run.path(), &db).unwrap();
        view.refresh();
        assert_eq!(view.name("web").unwrap().ipv4, [web.ipv4]);
        assert_eq!(view.name("db.net-1").unwrap().ipv6, [db.ipv6.unwrap()]);
        assert_eq!(view.name("www").unwrap().ipv4, [web.ipv4, db.ipv4]);
        assert_eq!(view.address(db.ipv4.into()).as_deref(), Some("DB.net-1"));
        assert_eq!(view.name("net-1"), None);
        // At once, although both happened within one step of the clock.
        withdraw(run.path(), &web).unwrap();
        withdraw(run.path(), &web).unwrap();
        announce(run.path(), &Attachment { names: vec!["other".into()], ..db.clone() }).unwrap();
        view.refresh();
        assert_eq!((view.name("web"), view.name("www")), (None, None));
        assert_eq!(view.name("other").unwrap().ipv4, [db.ipv4]);
    }

    #[test]
    fn other_networks_are_not_seen_and_the_first_own_one_wins() {
        let run = tempfile::tempdir().unwrap();
        announce(run.path(), &place(2, "1", &["web"])).unwrap();
        announce(run.path(), &place(3, "2", &["web", "two"])).unwrap();
        announce(run.path(), &place(4, "3", &["web", "three"])).unwrap();
        let mut view = View::new(run.path(), &[place(5, "2", &[]), place(5, "1", &[])]);
        view.refresh();
        assert_eq!(view.name("web").unwrap().ipv4, [Ipv4Addr::new(172, 30, 0, 3)]);
        assert_eq!(view.name("web.net-1").unwrap().ipv4, [Ipv4Addr::new(172, 30, 0, 2)]);
        assert_eq!((view.name("three"), view.name("web.net-3")), (None, None));
        assert_eq!(view.address(Ipv4Addr::new(172, 30, 0, 4).into()), None);
    }

    #[test]
    fn what_cannot_be_read_is_nobody() {
        let run = tempfile::tempdir().unwrap();
        announce(run.path(), &place(2, "1", &["web"])).unwrap();
        let dir = run.path().join("networks/1");
        std::fs::write(dir.join("torn"), r#"{"names":["torn"#).unwrap();
        std::fs::write(dir.join("other"), r#"{"names":[7]}"#).unwrap();
        std::fs::write(dir.join("huge"), vec![b' '; 70_000]).unwrap();
        std::fs::write(dir.join(".web.1.new"), r#"{"names":["half"],"ipv4":"10.0.0.1"}"#).unwrap();
        std::fs::create_dir(dir.join("directory")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.join("link")).unwrap();
        let mut view = View::new(run.path(), &[place(3, "1", &[])]);
        view.refresh();
        assert_eq!(view.name("web").unwrap().ipv4.len(), 1);
        assert_eq!((view.name("torn"), view.name("half")), (None, None));
    }

    #[test]
    fn the_names_of_the_dead_are_swept() {
        let run = tempfile::tempdir().unwrap();
        let (one, two) = (place(2, "1", &["one"]), place(3, "2", &["two"]));
        announce(run.path(), &one).unwrap();
        announce(run.path(), &two).unwrap();
        sweep_names(run.path(), |network, id| (network != "1" || id != one.id).then_some(()));
        let left: Vec<_> = std::fs::read_dir(run.path().join("networks")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert!(run.path().join("networks/1").join(&one.id).exists());
        announce(run.path(), &two).unwrap();
        assert!(announce(run.path(), &Attachment { network: "../x".into(), ..two }).is_err());
    }
}
