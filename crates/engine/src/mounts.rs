//! What the user wants mounted: `-v`, `--mount`, `--tmpfs`, `VOLUME` and `--volumes-from`, checked and made uniform
//! when a container is created, and carried out at each start.

use crate::paths::Paths;
use crate::{EngineError, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use types::docker::{self, MountType};

/// The kinds of mounts that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Bind,
    Volume,
    Tmpfs,
    Image,
}

/// What a volume is to be made as, if it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Wanted {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Wanted {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// One mount, with nothing left to decide but what the source is at the moment of start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserMount {
    pub kind: Kind,
    /// Name of a volume, or id of an image; empty for the others.
    #[serde(default)]
    pub volume: String,
    /// The part of the volume or image that is mounted, a path beneath it; empty for all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subpath: String,
    /// Of a volume.
    #[serde(default, skip_serializing_if = "Wanted::is_nothing")]
    pub wanted: Wanted,
    /// Directory or file of the host (bind).
    #[serde(default)]
    pub source: PathBuf,
    /// Where it goes: absolute, without `.` and `..`.
    pub target: PathBuf,
    #[serde(default)]
    pub read_only: bool,
    /// Mounts below the source are not taken along.
    #[serde(default)]
    pub non_recursive: bool,
    #[serde(default)]
    pub propagation: String,
    /// Of a tmpfs, as `mount(8)` takes them.
    #[serde(default)]
    pub options: Vec<String>,
    /// A new volume stays empty instead of getting the image's files.
    #[serde(default)]
    pub no_copy: bool,
    /// Made for this container alone.
    #[serde(default)]
    pub anonymous: bool,
    /// Make the source directory if it is not there (`-v` does, `--mount` does not).
    #[serde(default)]
    pub create_source: bool,
    /// The mode words of `-v`, for `inspect`.
    #[serde(default)]
    pub mode: String,
}

impl UserMount {
    fn new(kind: Kind, target: &str) -> Result<Self> {
        Ok(Self { kind, target: clean_target(target)?, ..Self::bind(PathBuf::new()) })
    }

    /// A binding of this, wherever it goes.
    pub(crate) fn bind(source: PathBuf) -> Self {
        Self {
            kind: Kind::Bind,
            volume: String::new(),
            subpath: String::new(),
            wanted: Wanted::default(),
            source,
            target: PathBuf::new(),
            read_only: false,
            non_recursive: false,
            propagation: String::new(),
            options: Vec::new(),
            no_copy: false,
            anonymous: false,
            create_source: false,
            mode: String::new(),
        }
    }

    /// Has a bind mount from below one of these directories found beneath it, as a part of a volume is: beneath the outermost,
    /// since what lies in that may have become a link. What is found beneath another directory already may move further in.
    pub(crate) fn confine(&mut self, beneath: &[PathBuf]) {
        if self.kind != Kind::Bind {
            return;
        }
        let whole =
            if self.subpath.is_empty() { self.source.clone() } else { self.source.join(&self.subpath) };
        let inside = beneath.iter().filter(|dir| dir.starts_with(&self.source) || self.subpath.is_empty());
        let found = inside
            .filter_map(|dir| Some((dir, whole.strip_prefix(dir).ok()?.to_str()?)))
            .min_by_key(|(dir, _)| dir.components().count());
        if let Some((dir, rest)) = found {
            (self.subpath, self.source) = (rest.to_owned(), dir.clone());
        }
    }

    /// As `inspect` and `ps` show it.
    pub fn point(&self, paths: &Paths) -> docker::MountPoint {
        let source = match self.kind {
            Kind::Bind if self.subpath.is_empty() => self.source.clone(),
            Kind::Bind => self.source.join(&self.subpath),
            Kind::Volume => paths.volume(&self.volume),
            Kind::Image => PathBuf::from(&self.volume),
            Kind::Tmpfs => PathBuf::new(),
        };
        docker::MountPoint {
            typ: Some(match self.kind {
                Kind::Bind => "bind".into(),
                Kind::Volume => "volume".into(),
                Kind::Tmpfs => "tmpfs".into(),
                Kind::Image => "image".into(),
            }),
            name: (self.kind == Kind::Volume).then(|| self.volume.clone()),
            source: Some(source.to_string_lossy().into_owned()),
            destination: Some(self.target.to_string_lossy().into_owned()),
            driver: (self.kind == Kind::Volume).then(|| {
                self.wanted.driver.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "local".into())
            }),
            mode: Some(self.mode.clone()),
            rw: Some(!self.read_only),
            propagation: Some(match self.kind {
                Kind::Bind if self.propagation.is_empty() => "rprivate".into(),
                _ => self.propagation.clone(),
            }),
        }
    }
}

/// Gathers all mounts of a new container. `from` are those of the containers named by `--volumes-from`, and
/// `new_name` makes up the name of an anonymous volume.
pub(crate) fn gather(
    config: &docker::ContainerConfig,
    host: &docker::HostConfig,
    from: Vec<UserMount>,
    paths: &Paths,
    new_name: &mut dyn FnMut() -> Result<String>,
) -> Result<Vec<UserMount>> {
    let mut all: Vec<UserMount> = Vec::new();
    let mut taken = HashSet::new();
    // `--volume-driver` is for the volumes of `-v` and the image's.
    let driver = host.volume_driver.clone().filter(|d| !d.is_empty());
    let wanted = || Wanted { driver: driver.clone(), ..Wanted::default() };
    for spec in host.binds.iter().flatten() {
        let mount = parse_bind(spec)?;
        let wanted = if mount.kind == Kind::Volume { wanted() } else { Wanted::default() };
        all.push(UserMount { wanted, ..mount });
    }
    for mount in host.mounts.iter().flatten() {
        all.push(from_docker(mount)?);
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        let options = options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
        all.push(UserMount { options, ..UserMount::new(Kind::Tmpfs, target)? });
    }
    for mount in &all {
        if !taken.insert(mount.target.clone()) {
            return Err(EngineError::Invalid(format!("duplicate mount point: {}", mount.target.display())));
        }
    }
    for mount in from {
        if taken.insert(mount.target.clone()) {
            all.push(mount);
        }
    }
    for target in config.volumes.iter().flatten() {
        let mount = UserMount { wanted: wanted(), ..UserMount::new(Kind::Volume, target)? };
        if taken.insert(mount.target.clone()) {
            all.push(mount);
        }
    }
    for mount in &mut all {
        match mount.kind {
            Kind::Volume if mount.volume.is_empty() => {
                mount.volume = new_name()?;
                mount.anonymous = true;
            }
            Kind::Bind => check_source(mount, paths)?,
            _ => {}
        }
    }
    // Parents before what lies in them.
    all.sort_by_key(|m| m.target.components().count());
    Ok(all)
}

/// Reads `[SOURCE:]TARGET[:MODE]`.
fn parse_bind(spec: &str) -> Result<UserMount> {
    let wrong = |why: &str| EngineError::Invalid(format!("invalid volume specification {spec:?}: {why}"));
    let parts: Vec<&str> = spec.split(':').collect();
    let (source, target, mode) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, mode] => (source, target, mode),
        _ => return Err(wrong("it is [SOURCE:]TARGET[:MODE]")),
    };
    if parts.len() > 1 && source.is_empty() {
        return Err(wrong("the source is empty"));
    }
    let kind = if source.starts_with('/') { Kind::Bind } else { Kind::Volume };
    let mut mount = UserMount::new(kind, target)?;
    mount.mode = mode.to_owned();
    match kind {
        Kind::Bind => {
            mount.source = PathBuf::from(source);
            mount.create_source = true;
        }
        _ => mount.volume = volume_name(source)?,
    }
    for word in mode.split(',').filter(|w| !w.is_empty()) {
        match word {
            "ro" | "readonly" => mount.read_only = true,
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "nocopy" => mount.no_copy = true,
            _ if is_propagation(word) && kind == Kind::Bind => mount.propagation = word.to_owned(),
            _ => return Err(wrong(&format!("unknown mode {word:?}"))),
        }
    }
    Ok(mount)
}

fn from_docker(m: &docker::Mount) -> Result<UserMount> {
    let target = m.target.as_deref().unwrap_or("");
    let wrong = |why: &str| EngineError::Invalid(format!("invalid mount config for {target:?}: {why}"));
    let source = m.source.as_deref().unwrap_or("");
    let mut mount = match m.typ.unwrap_or(MountType::VOLUME) {
        MountType::BIND => {
            if !source.starts_with('/') {
                return Err(wrong("the source of a bind mount is an absolute path"));
            }
            let options = m.bind_options.clone().unwrap_or_default();
            UserMount {
                source: PathBuf::from(source),
                propagation: options.propagation.map(|p| p.to_string()).unwrap_or_default(),
                non_recursive: options.non_recursive.unwrap_or(false),
                create_source: options.create_mountpoint.unwrap_or(false),
                ..UserMount::new(Kind::Bind, target)?
            }
        }
        MountType::VOLUME => {
            let options = m.volume_options.clone().unwrap_or_default();
            let driver = options.driver_config.unwrap_or_default();
            UserMount {
                volume: volume_name(source)?,
                subpath: subpath(options.subpath)?,
                wanted: Wanted {
                    driver: driver.name.filter(|d| !d.is_empty()),
                    options: driver.options.into_iter().flatten().collect(),
                    labels: options.labels.into_iter().flatten().collect(),
                },
                no_copy: options.no_copy.unwrap_or(false),
                ..UserMount::new(Kind::Volume, target)?
            }
        }
        MountType::TMPFS => {
            if !source.is_empty() {
                return Err(wrong("a tmpfs has no source"));
            }
            let mut options = Vec::new();
            let tmpfs = m.tmpfs_options.clone().unwrap_or_default();
            if let Some(size) = tmpfs.size_bytes.filter(|s| *s > 0) {
                options.push(format!("size={size}"));
            }
            if let Some(mode) = tmpfs.mode.filter(|m| *m > 0) {
                options.push(format!("mode={mode:o}"));
            }
            for option in tmpfs.options.into_iter().flatten() {
                options.push(option.join("="));
            }
            UserMount { options, ..UserMount::new(Kind::Tmpfs, target)? }
        }
        MountType::IMAGE => {
            if source.is_empty() {
                return Err(wrong("an image mount has an image as its source"));
            }
            let options = m.image_options.clone().unwrap_or_default();
            let subpath = subpath(options.subpath)?;
            // Resolved to an id when all are gathered.
            return Ok(UserMount {
                volume: source.to_owned(),
                subpath,
                read_only: true,
                ..UserMount::new(Kind::Image, target)?
            });
        }
        other => return Err(wrong(&format!("mounts of type {other} are not supported"))),
    };
    mount.read_only = m.read_only.unwrap_or(false);
    Ok(mount)
}

/// A path beneath a volume or an image: relative, and not upwards by its letters. Links on the way are the kernel's
/// business, when it is mounted.
fn subpath(path: Option<String>) -> Result<String> {
    let path = path.unwrap_or_default();
    let fine = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    match Path::new(&path).components().all(fine) && !path.contains(['\0', ',']) {
        true => Ok(path),
        false => Err(EngineError::Invalid(format!(
            "invalid subpath {path:?}: it is a relative path inside the volume, without \"..\""
        ))),
    }
}

fn is_propagation(word: &str) -> bool {
    matches!(word, "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate")
}

/// A volume's name, as Docker has them; empty is an anonymous one.
pub(crate) fn volume_name(name: &str) -> Result<String> {
    let ok = name.is_empty() || crate::names::is_valid(name) && name.len() <= 255;
    if ok {
        return Ok(name.to_owned());
    }
    Err(EngineError::Invalid(format!(
        "{name:?} includes invalid characters for a local volume name, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed; a host directory is an absolute path"
    )))
}

/// A mount point inside: absolute, cleaned lexically, not the root itself.
fn clean_target(target: &str) -> Result<PathBuf> {
    let wrong = |why| EngineError::Invalid(format!("invalid mount target {target:?}: {why}"));
    if target.contains('\0') {
        return Err(wrong("it has a NUL byte"));
    }
    let path = clean(Path::new(target)).ok_or_else(|| wrong("it is an absolute path"))?;
    if path == Path::new("/") {
        return Err(wrong("the destination cannot be '/'"));
    }
    Ok(path)
}

/// Resolves `.` and `..` by the letter; `None` for a relative path.
pub(crate) fn clean(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    Some(out)
}

pub(crate) fn check_source(mount: &UserMount, paths: &Paths) -> Result<()> {
    let shown = mount.source.display();
    match std::fs::canonicalize(&mount.source) {
        Ok(real) => {
            // A server's socket is there to be given away: tools that manage workloads ask for it.
            let is_socket = || std::fs::symlink_metadata(&real).is_ok_and(|m| m.file_type().is_socket());
            let run = std::fs::canonicalize(&paths.run).ok();
            if run.is_some() && real.parent() == run.as_deref() && is_socket() {
                return Ok(());
            }
            for own in [&paths.root, &paths.run] {
                if std::fs::canonicalize(own).is_ok_and(|own| real.starts_with(own)) {
                    return Err(EngineError::Invalid(format!(
                        "bind source {shown} lies in dhow's own state ({}); a workload must not reach it",
                        own.display()
                    )));
                }
            }
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && mount.create_source => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(EngineError::Invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {shown}"
        ))),
        Err(source) => Err(EngineError::Io { what: "bind source", path: mount.source.clone(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(binds: &[&str], volumes: &[&str]) -> Result<Vec<UserMount>> {
        let strings = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect());
        let config = docker::ContainerConfig { volumes: strings(volumes), ..Default::default() };
        let host = docker::HostConfig { binds: strings(binds), ..Default::default() };
        let paths = Paths { root: "/nowhere/root".into(), run: "/nowhere/run".into() };
        gather(&config, &host, Vec::new(), &paths, &mut || Ok("made-up".into()))
    }

    #[test]
    fn binds_and_volumes() {
        let all = gathered(&["/tmp:/a/b:ro", "data:/a", "/c"], &["/a", "/d/../e"]).unwrap();
        let shown: Vec<_> = all
            .iter()
            .map(|m| (m.kind, m.volume.as_str(), m.target.to_str().unwrap(), m.read_only))
            .collect();
        assert_eq!(
            shown,
            [
                (Kind::Volume, "data", "/a", false),
                (Kind::Volume, "made-up", "/c", false),
                (Kind::Volume, "made-up", "/e", false),
                (Kind::Bind, "", "/a/b", true),
            ]
        );
        assert!(!all[0].anonymous && all[1].anonymous);
    }

    #[test]
    fn binds_are_found_beneath_the_outermost_directory() {
        let of = |source: &str, subpath: &str, beneath: &[&str]| {
            let mut mount = UserMount { subpath: subpath.into(), ..UserMount::bind(source.into()) };
            mount.confine(&beneath.iter().map(PathBuf::from).collect::<Vec<_>>());
            (mount.source.display().to_string(), mount.subpath)
        };
        let is = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(of("/srv/ci/x", "", &["/srv"]), is("/srv", "ci/x"));
        assert_eq!(of("/srv/ci/x", "", &["/srv/ci", "/srv"]), is("/srv", "ci/x"));
        assert_eq!(of("/srv", "ci/x", &["/srv/ci"]), is("/srv/ci", "x"));
        assert_eq!(of("/srv/ci", "x", &["/srv"]), is("/srv/ci", "x"));
        assert_eq!(of("/srv", "", &["/srv"]), is("/srv", ""));
        assert_eq!(of("/etc", "", &["/srv"]), is("/etc", ""));
    }

    #[test]
    fn wrong_ones_are_refused() {
        for bad in
            ["", ":/a", "/tmp:a", "/tmp:/", "/tmp:/a/..", "/tmp:/a:xx", "a/b:/c", "..:/c", "/a:/b:ro:x"]
        {
            assert!(gathered(&[bad], &[]).is_err(), "{bad}");
        }
        assert!(gathered(&["/tmp:/a", "/tmp:/a/"], &[]).is_err());
    }
}
