//! `/dev`: the nodes and links that every container has, those that the specification adds, and the console.

use super::mounts;
use super::step::Step;
use crate::hull::HullError;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, fstatfs, makedev, mknodat,
    openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use sys::Root;
use sys::mount::{attach, clone_handle};
use types::oci::{LinuxDevice, LinuxDeviceType};

/// `DEVPTS_SUPER_MAGIC`, linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// A device node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    path: PathBuf,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    owner: Option<(u32, u32)>,
}

/// What the runtime specification wants in every container.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links that go with them.
const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/core", "/proc/kcore"),
];

/// The default devices and those of the specification, whose names are checked.
pub(super) fn plan(wanted: &[LinuxDevice]) -> Result<Vec<Device>, HullError> {
    let mut devices: Vec<Device> = DEFAULT
        .iter()
        .map(|(path, major, minor)| Device {
            path: path.into(),
            kind: FileType::CharacterDevice,
            major: *major,
            minor: *minor,
            mode: 0o666,
            owner: None,
        })
        .collect();
    for w in wanted {
        let device = check(w)?;
        devices.retain(|d| d.path != device.path);
        devices.push(device);
    }
    Ok(devices)
}

fn check(wanted: &LinuxDevice) -> Result<Device, HullError> {
    let path = wanted.path();
    let invalid = |why: &str| Err(HullError::Invalid(format!("device {}: {why}", path.display())));
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.file_name().is_none() {
        return invalid("the path must be absolute and without dots");
    }
    let kind = match wanted.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return invalid("a node cannot be of every type"),
    };
    let (Ok(major), Ok(minor)) = (u32::try_from(wanted.major()), u32::try_from(wanted.minor())) else {
        return invalid("the device number is out of range");
    };
    let owner = (wanted.uid().is_some() || wanted.gid().is_some())
        .then(|| (wanted.uid().unwrap_or(0), wanted.gid().unwrap_or(0)));
    let mode = wanted.file_mode().unwrap_or(0o666) & 0o777;
    Ok(Device { path: path.clone(), kind, major, minor, mode, owner })
}

/// Makes the nodes and links beneath the root. In a user namespace, where nodes cannot be made, the host's are bound.
pub(super) fn make(root: &Root, devices: &[Device], user_namespace: bool) -> Result<(), HullError> {
    for device in devices {
        let named = || format!("make the device {}", device.path.display());
        if user_namespace {
            bind_host_node(root, device).step(named)?;
        } else {
            device.make(root).step(named)?;
        }
    }
    for (path, to) in LINKS {
        link(root, path, to).step(|| format!("make the link {path}"))?;
    }
    Ok(())
}

impl Device {
    fn make(&self, root: &Root) -> std::io::Result<()> {
        if let Some(parent) = self.path.parent() {
            root.mkdir_all(parent, Mode::from_raw_mode(0o755))?;
        }
        let (dir, name) = root.parent(&self.path)?;
        let number = makedev(self.major, self.minor);
        let mode = Mode::from_raw_mode(self.mode);
        for attempt in 0..2 {
            match mknodat(&dir, &name, self.kind, mode, number) {
                Ok(()) => break,
                Err(Errno::EXIST) if attempt == 0 => {
                    let there = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                    let kind = FileType::from_raw_mode(there.st_mode);
                    if kind == self.kind && there.st_rdev == number {
                        return Ok(());
                    }
                    // What the image put there is not this device: never let it pass for it.
                    unlinkat(&dir, &name, AtFlags::empty())?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(&dir, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            chmodat(&dir, &name, mode, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn bind_host_node(root: &Root, device: &Device) -> std::io::Result<()> {
    let node = openat(CWD, &device.path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let meta = fstat(&node)?;
    if FileType::from_raw_mode(meta.st_mode) != device.kind
        || meta.st_rdev != makedev(device.major, device.minor)
    {
        return Err(std::io::Error::other("the host's node of that name is another device"));
    }
    attach(clone_handle(node, false)?, mounts::file(root, &device.path)?)
}

fn link(root: &Root, path: &str, to: &str) -> std::io::Result<()> {
    if let Some(parent) = Path::new(path).parent() {
        root.mkdir_all(parent, Mode::from_raw_mode(0o755))?;
    }
    let (dir, name) = root.parent(path)?;
    match symlinkat(to, &dir, &name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The host's `/dev/null`, proved to be that device, to hide files behind (CVE-2025-31133). To be opened while the
/// host's root is in place.
pub(super) fn host_null() -> Result<OwnedFd, HullError> {
    let named = || "open /dev/null".to_owned();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(CWD, "/dev/null", flags, Mode::empty()).step(named)?;
    let meta = fstat(&null).step(named)?;
    if !FileType::from_raw_mode(meta.st_mode).is_char_device() || meta.st_rdev != makedev(1, 3) {
        return Err(HullError::Unsupported("the host's /dev/null is not the null device".into()));
    }
    Ok(null)
}

/// A pseudo terminal.
#[derive(Debug)]
pub(super) struct Console {
    /// For the hull.
    pub master: OwnedFd,
    /// For the workload.
    pub slave: OwnedFd,
}

impl Console {
    /// A terminal of the container's own devpts. The slave comes from the master, not by its name, which the
    /// container could change (CVE-2025-52565); both are checked to be what they should be.
    pub(super) fn open(root: &Root, size: Option<(u16, u16)>) -> Result<Self, HullError> {
        let named = || "open a terminal of /dev/pts".to_owned();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let ptmx = root.handle_nofollow("/dev/pts/ptmx").step(named)?;
        require_devpts(&ptmx)?;
        if fstat(&ptmx).step(named)?.st_rdev != makedev(5, 2) {
            return Err(HullError::Invalid("/dev/pts/ptmx is not a terminal multiplexer".into()));
        }
        let master = root.resolve("/dev/pts/ptmx", flags | OFlags::NOFOLLOW, Mode::empty()).step(named)?;
        require_devpts(&master)?;
        rustix::pty::unlockpt(&master).step(named)?;
        let open = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let slave =
            rustix::pty::ioctl_tiocgptpeer(&master, open | rustix::pty::OpenptFlags::CLOEXEC).step(named)?;
        require_devpts(&slave)?;
        if let Some((rows, columns)) = size {
            let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&slave, size).step(|| "set the terminal's size".into())?;
        }
        Ok(Self { master, slave })
    }

    /// Binds the terminal on `/dev/console`, which must be a plain file that we make or find, never a link.
    pub(super) fn bind(&self, root: &Root) -> Result<(), HullError> {
        let named = || "bind the terminal on /dev/console".to_owned();
        let (dir, name) = root.parent("/dev/console").step(named)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(&dir, &name, flags, Mode::from_raw_mode(0o600)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).step(named),
        }
        let target = openat(&dir, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .step(named)?;
        let kind = FileType::from_raw_mode(fstat(&target).step(named)?.st_mode);
        if kind.is_symlink() || kind.is_dir() {
            return Err(HullError::Invalid("/dev/console of the container is a link or a directory".into()));
        }
        let tree = clone_handle(&self.slave, false).step(named)?;
        attach(tree, target).step(named)
    }
}

fn require_devpts(fd: impl AsFd) -> Result<(), HullError> {
    let magic = fstatfs(fd).step(|| "check /dev/pts".into())?.f_type as i64;
    if magic == DEVPTS_MAGIC { Ok(()) } else { Err(HullError::Invalid("/dev/pts is not a devpts".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_devices_are_refused() {
        let device = |path: &str, kind, major| {
            let mut d = LinuxDevice::default();
            d.set_path(path.into()).set_typ(kind).set_major(major).set_minor(1);
            d
        };
        let fuse = device("/dev/fuse", LinuxDeviceType::C, 10);
        assert_eq!(plan(&[fuse]).unwrap().len(), 7);
        assert_eq!(plan(&[device("/dev/null", LinuxDeviceType::C, 1)]).unwrap().len(), 6);
        for bad in ["dev/x", "/dev/../etc/x", "/", "/dev/.."] {
            assert!(plan(&[device(bad, LinuxDeviceType::C, 10)]).is_err(), "{bad}");
        }
        assert!(plan(&[device("/dev/x", LinuxDeviceType::A, 10)]).is_err());
        assert!(plan(&[device("/dev/x", LinuxDeviceType::C, -1)]).is_err());
    }
}
