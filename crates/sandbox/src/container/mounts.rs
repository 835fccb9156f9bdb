//! The mounts of the specification, attached beneath a root filesystem that belongs to an attacker.
//!
//! Every source is a detached mount and every target a handle resolved beneath the root, so a link or a rename in
//! the root cannot lead a mount outside (CVE-2021-30465). procfs and sysfs are only mounted on real directories, not
//! through links, and what is there afterwards is checked to be what was mounted (CVE-2025-52881, CVE-2019-16884).

use super::cgroup_view::View;
use super::namespaces::with_mappings;
use super::options::Options;
use super::step::Step;
use crate::hull::HullError;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::Root;
use sys::mount::{Change, attach, attr, clone_handle, clone_path, new_filesystem, set_attributes};
use types::oci;

/// `PROC_SUPER_MAGIC`, linux/magic.h.
const PROC_MAGIC: i64 = 0x9fa0;

/// What may be covered in procfs (lxcfs does).
const HARMLESS: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
];

/// One mount, read from the specification in the parent.
#[derive(Debug)]
pub(super) struct Planned {
    target: PathBuf,
    options: Options,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A copy of what is mounted on the host, and whether it is a directory.
    Tree { tree: OwnedFd, directory: bool },
    /// A new filesystem.
    Filesystem { kind: String, source: String },
    /// The container's own part of the cgroup hierarchies.
    Cgroup,
}

/// Reads the mounts of a specification and copies the trees that are bound, while the host's paths and privileges
/// are at hand.
pub(super) fn plan(spec: &oci::Spec) -> Result<Vec<Planned>, HullError> {
    let label = spec.linux().as_ref().and_then(|l| l.mount_label().as_deref()).filter(|l| !l.is_empty());
    let mut translations = Translations { spec, made: Vec::new() };
    spec.mounts().iter().flatten().map(|m| plan_one(m, label, &mut translations)).collect()
}

/// User namespaces by which mounts translate ids, each made once.
struct Translations<'a> {
    spec: &'a oci::Spec,
    made: Vec<(Mappings<'a>, OwnedFd)>,
}

type Mappings<'a> = (&'a [oci::LinuxIdMapping], &'a [oci::LinuxIdMapping]);

impl<'a> Translations<'a> {
    /// Makes a detached mount translate ids, if it is asked to: by its own mappings or, with the option `idmap` alone,
    /// by those of the container.
    fn apply(&mut self, tree: &OwnedFd, mount: &'a oci::Mount, options: &Options) -> Result<(), HullError> {
        let slice = |map: &'a Option<Vec<oci::LinuxIdMapping>>| map.as_deref().unwrap_or_default();
        let mut wanted = (slice(mount.uid_mappings()), slice(mount.gid_mappings()));
        if wanted.0.is_empty() && wanted.1.is_empty() {
            if options.idmap.is_none() {
                return Ok(());
            }
            let linux = self.spec.linux().as_ref();
            wanted = linux.map(|l| (slice(l.uid_mappings()), slice(l.gid_mappings()))).unwrap_or_default();
        }
        let at = match self.made.iter().position(|(m, _)| *m == wanted) {
            Some(at) => at,
            None => {
                self.made.push((wanted, with_mappings(wanted.0, wanted.1)?));
                self.made.len() - 1
            }
        };
        let namespace = self.made[at].1.as_fd();
        sys::mount::set_idmap(tree, options.idmap == Some(true), namespace).map_err(|source| {
            let target = mount.destination().display();
            match source.raw_os_error() {
                Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => {
                    HullError::Unsupported(format!(
                        "the file system of the mount on {target} cannot translate user ids for a user namespace"
                    ))
                }
                _ => HullError::Step { step: format!("translate the user ids of the mount on {target}"), source },
            }
        })
    }
}

fn plan_one<'a>(
    mount: &'a oci::Mount,
    label: Option<&str>,
    translations: &mut Translations<'a>,
) -> Result<Planned, HullError> {
    let target = mount.destination().clone();
    if !target.is_absolute() {
        return Err(HullError::Invalid(format!("mount target {target:?} is not an absolute path")));
    }
    let mut options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or("bind");
    let what = if options.bind.is_some() || matches!(kind, "bind" | "rbind" | "none") {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        let recursive = options.bind.unwrap_or(kind == "rbind");
        let what = bind(source, recursive, &options)?;
        if let What::Tree { tree, .. } = &what {
            translations.apply(tree, mount, &options)?;
        }
        what
    } else if matches!(kind, "cgroup" | "cgroup2") {
        What::Cgroup
    } else {
        if let (Some(label), "tmpfs" | "devpts" | "mqueue") = (label, kind)
            && super::labels::selinux()
        {
            options.data.push(format!("context={label}"));
        }
        let source = mount.source().as_ref().map_or(kind.into(), |s| s.to_string_lossy().into_owned());
        What::Filesystem { kind: kind.to_owned(), source }
    };
    Ok(Planned { target, options, what })
}

fn bind(source: &Path, recursive: bool, options: &Options) -> Result<What, HullError> {
    if !source.is_absolute() {
        return Err(HullError::Invalid(format!("bind source {source:?} is not an absolute path")));
    }
    if let Some(word) = options.data.first() {
        return Err(HullError::Invalid(format!("bind mount of {source:?}: unknown option {word:?}")));
    }
    let named = || format!("bind {}", source.display());
    let tree = tree(source, options, recursive)?;
    let (to, all) = options.propagation.unwrap_or((sys::mount::propagation::PRIVATE, true));
    set_attributes(&tree, all && recursive, Change::propagation(to)).step(named)?;
    for (change, all) in [(options.change, false), (options.recursive, true)] {
        if !change.is_empty() {
            set_attributes(&tree, all, change).step(named)?;
        }
    }
    let meta = fstat(&tree).step(named)?;
    let directory = FileType::from_raw_mode(meta.st_mode).is_dir();
    Ok(What::Tree { tree, directory })
}

/// A copy of a tree of the host's, or of a part of it. What lies in a volume may be in hostile hands: its links lead
/// nowhere but to its own.
pub(crate) fn tree(source: &Path, options: &Options, recursive: bool) -> Result<OwnedFd, HullError> {
    let Some(part) = &options.subpath else {
        return clone_path(source, recursive).step(|| format!("bind {}", source.display()));
    };
    let copy = || clone_handle(Root::open(source)?.handle(part)?, recursive);
    copy().map_err(|e| match e.kind() {
        ErrorKind::NotFound => HullError::Invalid(format!(
            "cannot access path {} of the volume at {}: no such file or directory",
            part.display(),
            source.display()
        )),
        _ => HullError::Step { step: format!("bind {} of {}", part.display(), source.display()), source: e },
    })
}

impl Planned {
    /// Descriptors that the child must keep.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.what {
            What::Tree { tree, .. } => Some(tree.as_fd()),
            _ => None,
        }
    }

    /// Whether the container's own cgroup must be known first.
    pub(super) fn needs_cgroup(&self) -> bool {
        matches!(self.what, What::Cgroup)
    }

    /// Whether `/dev` is the host's (or another) directory, which is left as it is.
    pub(super) fn is_bound_dev(&self) -> bool {
        self.target == Path::new("/dev") && matches!(self.what, What::Tree { .. })
    }

    /// Attaches it beneath `root`. A mount that is to be read-only only once others below it are made is returned.
    pub(super) fn mount(&self, root: &Root, cgroups: Option<&View>) -> Result<Option<OwnedFd>, HullError> {
        let named = || format!("mount {}", self.target.display());
        match &self.what {
            What::Tree { tree, directory: true } => {
                let target = match directory(root, &self.target) {
                    Err(e) if e.kind() == ErrorKind::NotADirectory => {
                        return Err(self.mismatch("directory", "file"));
                    }
                    done => done.step(named)?,
                };
                self.refuse_over_proc(&target, Some(tree.as_fd()))?;
                attach(tree, target).step(named)?;
                Ok(None)
            }
            What::Tree { tree, directory: false } => {
                let target = file(root, &self.target).step(named)?;
                self.refuse_over_proc(&target, Some(tree.as_fd()))?;
                if FileType::from_raw_mode(fstat(&target).step(named)?.st_mode).is_dir() {
                    return Err(self.mismatch("file", "directory"));
                }
                attach(tree, target).step(named)?;
                Ok(None)
            }
            What::Cgroup => {
                let target = directory(root, &self.target).step(named)?;
                if let Some(view) = cgroups {
                    view.mount(target, self.options.change.set)?;
                }
                Ok(None)
            }
            What::Filesystem { kind, source } => self.filesystem(root, kind, source),
        }
    }

    fn mismatch(&self, source: &str, target: &str) -> HullError {
        HullError::Invalid(format!(
            "mount {}: the source on the host is a {source} and the target in the container leads to a {target}; \
             mount a directory on a directory, or a file on a file",
            self.target.display()
        ))
    }

    /// Nothing but procfs may cover procfs, or a part of it: labels and masks would be written to what only looks like
    /// it (CVE-2019-16884). Files that tell of the host's size may be replaced, as runc has it.
    fn refuse_over_proc(&self, target: &OwnedFd, with: Option<BorrowedFd<'_>>) -> Result<(), HullError> {
        let is_proc = |fd: BorrowedFd<'_>| fstatfs(fd).is_ok_and(|s| s.f_type == PROC_MAGIC);
        let harmless = HARMLESS.iter().any(|p| self.target == Path::new(p));
        if !is_proc(target.as_fd()) || with.is_some_and(is_proc) || harmless {
            return Ok(());
        }
        Err(HullError::Invalid(format!(
            "mount {}: nothing may be mounted over /proc or inside it, choose another target",
            self.target.display()
        )))
    }

    fn filesystem(&self, root: &Root, kind: &str, source: &str) -> Result<Option<OwnedFd>, HullError> {
        let named = || format!("mount {kind} on {}", self.target.display());
        let mut data: Vec<&str> = self.options.data.iter().map(String::as_str).collect();
        let target = match kind {
            "proc" | "sysfs" => real_directory(root, &self.target),
            _ => directory(root, &self.target),
        }
        .step(named)?;
        if kind != "proc" {
            self.refuse_over_proc(&target, None)?;
        }
        let copied_mode;
        // A tmpfs over a directory takes its permissions over, unless told otherwise.
        if kind == "tmpfs" && !data.iter().any(|d| d.starts_with("mode=")) {
            copied_mode = format!("mode={:o}", fstat(&target).step(named)?.st_mode & 0o7777);
            data.push(&copied_mode);
        }
        // Others may have their mount points in it: a tmpfs becomes read-only last.
        let late = kind == "tmpfs" && self.options.readonly();
        let attributes = self.options.change.set & !if late { attr::RDONLY } else { 0 };
        let mount = new_filesystem(kind, Some(source), data, attributes).step(named)?;
        if let Some((to, _)) = self.options.propagation {
            set_attributes(&mount, false, Change::propagation(to)).step(named)?;
        }
        attach(&mount, target).step(named)?;
        if kind == "proc" {
            let seen = real_directory(root, &self.target).step(named)?;
            require_procfs(&seen)?;
        }
        Ok(late.then_some(mount))
    }
}

/// Refuses anything but procfs where procfs must be (CVE-2019-16884, CVE-2025-52881).
pub(super) fn require_procfs(fd: impl AsFd) -> Result<(), HullError> {
    let magic = fstatfs(fd).step(|| "check /proc".into())?.f_type as i64;
    if magic == PROC_MAGIC { Ok(()) } else { Err(HullError::Invalid("/proc is not a procfs".into())) }
}

/// A directory beneath the root, made if it is missing; links are followed inside.
fn directory(root: &Root, path: &Path) -> std::io::Result<OwnedFd> {
    root.mkdir_all(path, Mode::from_raw_mode(0o755))
}

/// A directory that no link leads to.
fn real_directory(root: &Root, path: &Path) -> std::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || openat2(root, path, flags, Mode::empty(), resolve);
    match open() {
        Err(rustix::io::Errno::NOENT) => {
            directory(root, path)?;
            Ok(open()?)
        }
        Err(rustix::io::Errno::LOOP) => {
            Err(std::io::Error::other("the image has a symbolic link there, which is refused"))
        }
        done => Ok(done?),
    }
}

/// A file (of any kind but a directory) beneath the root, an empty one made if it is missing.
pub(super) fn file(root: &Root, path: &Path) -> std::io::Result<OwnedFd> {
    match root.handle(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                directory(root, parent)?;
            }
            let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            drop(root.resolve(path, flags, Mode::from_raw_mode(0o644))?);
            root.handle(path)
        }
        done => done,
    }
}
