//! Tars built in memory, and layers read back through the kernel.

use super::super::{LayerError, LayerLimits, LayerStore, detect_format};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use types::LayerFormat;

/// A tar under construction.
#[derive(Default)]
pub(super) struct Tar(pub Vec<u8>);

impl Tar {
    /// One entry with everything said.
    pub(super) fn entry(&mut self, kind: u8, path: &str, data: &[u8], change: impl FnOnce(&mut tar::Header)) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        // The raw field: the library refuses the very paths that are wanted here.
        if path.len() <= 100 {
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        } else {
            self.pax(&[("path", path.as_bytes())]);
        }
        change(&mut header);
        header.set_cksum();
        self.raw(header.as_bytes(), data);
    }

    fn raw(&mut self, header: &[u8], data: &[u8]) {
        self.0.extend(header);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// An extended header.
    pub(super) fn pax(&mut self, records: &[(&str, &[u8])]) {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(b'x', "pax", &data, |_| {});
    }

    pub(super) fn file(&mut self, path: &str, data: &[u8]) {
        self.entry(b'0', path, data, |_| {});
    }

    pub(super) fn dir(&mut self, path: &str) {
        self.entry(b'5', path, b"", |_| {});
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.link(b'2', path, target);
    }

    pub(super) fn hard_link(&mut self, path: &str, target: &str) {
        self.link(b'1', path, target);
    }

    fn link(&mut self, kind: u8, path: &str, target: &str) {
        if target.len() > 100 {
            self.pax(&[("linkpath", target.as_bytes())]);
        }
        let short = &target.as_bytes()[..target.len().min(100)];
        self.entry(kind, path, b"", |h| h.as_old_mut().linkname[..short.len()].copy_from_slice(short));
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A tar of what `fill` adds.
pub(super) fn tar(fill: impl FnOnce(&mut Tar)) -> Vec<u8> {
    let mut tar = Tar::default();
    fill(&mut tar);
    tar.end()
}

/// What `lstat`, `readlink`, `read` and `listxattr` say of each path.
pub(super) type Snapshot = BTreeMap<PathBuf, String>;

pub(super) fn snapshot(root: &Path) -> Snapshot {
    let mut all = Snapshot::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = if path.as_os_str().is_empty() { root.join(".") } else { root.join(&path) };
        let meta = std::fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        let links = if kind.is_dir() { 0 } else { meta.nlink() };
        let mut text = format!(
            "{:o} {}:{} {}.{:09} links={links}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        if kind.is_file() {
            let data = std::fs::read(&full).unwrap();
            text += &format!(" size={} {:?}", data.len(), brief(&data));
        } else if kind.is_symlink() {
            text += &format!(" -> {}", std::fs::read_link(&full).unwrap().display());
        } else if kind.is_char_device() || kind.is_block_device() {
            text += &format!(" dev={:x}", meta.rdev());
        } else if kind.is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                todo.push(path.join(entry.unwrap().file_name()));
            }
        }
        for (name, value) in xattrs(&full) {
            let value = if value.len() < 50 { format!("{value:?}") } else { brief(&value) };
            text += &format!(" {name}={value}");
        }
        all.insert(path, text);
    }
    all
}

fn brief(data: &[u8]) -> String {
    use sha2::Digest as _;
    format!("{:?}", types::Digest::from_sha256(sha2::Sha256::digest(data).into()))
}

pub(super) fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..n].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..n].to_vec())
        })
        .collect()
}

/// A mount that is attached nowhere: it goes with its descriptor.
pub(super) struct Mounted(OwnedFd);

impl Mounted {
    pub(super) fn erofs(file: &Path) -> Self {
        Self::new("erofs", &[("source", file.to_str().unwrap())], true)
    }

    pub(super) fn tmpfs(size: &str) -> Self {
        Self::new("tmpfs", &[("size", size)], false)
    }

    fn new(kind: &str, options: &[(&str, &str)], read_only: bool) -> Self {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        for (key, value) in options {
            fsconfig_set_string(&context, *key, *value).unwrap();
        }
        if read_only {
            fsconfig_set_flag(&context, "ro").unwrap();
        }
        fsconfig_create(&context).unwrap();
        Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap())
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Whether layers can be looked at here; says why a test is skipped otherwise.
pub(super) fn able() -> bool {
    let tmp = tempfile::tempdir().unwrap();
    let root = rustix::process::geteuid().is_root();
    let file_backed = || {
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC);
        context.is_ok() && detect_format(tmp.path()) == LayerFormat::Erofs
    };
    if root && file_backed() {
        return true;
    }
    println!("skipped: needs root and a kernel that mounts EROFS files (6.12)");
    false
}

/// What Linux sees in a layer made of this tar, in both formats, which must agree.
pub(super) fn layer(tar: &[u8]) -> Snapshot {
    let tmp = tempfile::tempdir().unwrap();
    let store = LayerStore::open(tmp.path(), LayerFormat::Erofs).unwrap();
    let layer = store.ingest(&mut &tar[..], None, &LayerLimits::default()).unwrap();
    assert_eq!(store.get(&layer.diff_id), Some(layer.clone()));
    let erofs = snapshot(&Mounted::erofs(&layer.path).path());
    fsck(&layer.path);

    let other = tempfile::tempdir().unwrap();
    let store = LayerStore::open(other.path(), LayerFormat::Dir).unwrap();
    let unpacked = store.ingest(&mut &tar[..], None, &LayerLimits::default()).unwrap();
    assert_eq!(unpacked.content_size, layer.content_size);
    let dir = snapshot(&unpacked.path);
    // As overlayfs does, EROFS names one device by all whiteouts.
    let alike = |s: &Snapshot| -> Snapshot {
        let whiteout = |t: &String| t.starts_with("20000 0:0 ");
        s.iter().map(|(p, t)| (p.clone(), if whiteout(t) { "whiteout".into() } else { t.clone() })).collect()
    };
    let (erofs, dir) = (alike(&erofs), alike(&dir));
    same(&erofs, &dir);
    erofs
}

/// Says which paths differ, and nothing of the others.
pub(super) fn same(a: &Snapshot, b: &Snapshot) {
    for path in a.keys().chain(b.keys()) {
        assert_eq!(a.get(path), b.get(path), "{path:?}");
    }
}

/// erofs-utils agree that the file is sound, if they are here.
fn fsck(file: &Path) {
    match std::process::Command::new("fsck.erofs").arg(file).output() {
        Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr)),
        Err(_) => println!("not checked: no fsck.erofs here"),
    }
}

/// The error of ingesting this tar, in both formats; nothing may be left in the store.
pub(super) fn refused(tar: &[u8], limits: &LayerLimits) -> LayerError {
    let mut errors = [LayerFormat::Dir, LayerFormat::Erofs].map(|format| {
        let tmp = tempfile::tempdir().unwrap();
        let store = LayerStore::open(tmp.path(), format).unwrap();
        let error = store.ingest(&mut &tar[..], None, limits).unwrap_err();
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0, "{error} left something behind");
        Some(error)
    });
    assert_eq!(errors[0].as_ref().map(ToString::to_string), errors[1].as_ref().map(ToString::to_string));
    errors[0].take().unwrap()
}
