//! Opens what the configuration names, before anything is jailed.

use crate::arch::boot::Images;
use crate::config::{self, Config, Disk, DiskContent};
use crate::devices::block::Block;
use crate::devices::fs::Fs;
use crate::devices::net::Net;
use crate::devices::net_tap::Tap;
use crate::devices::storage::Storage;
use crate::devices::vsock::Vsock;
use crate::error::VmmError;
use crate::gpt::{Layout, SECTOR};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Open { what, path: path.into(), source }
}

/// Kernel and initramfs.
pub fn images(config: &Config) -> Result<Images, VmmError> {
    let open = |what, path: &Path| -> Result<_, VmmError> {
        let file = File::open(path).map_err(failed(what, path))?;
        Ok((file, path.to_path_buf()))
    };
    Ok(Images {
        kernel: open("the kernel", &config.kernel)?,
        initrd: config.initrd.as_deref().map(|path| open("the initramfs", path)).transpose()?,
    })
}

/// The file that the console's output is appended to.
pub fn console(config: &Config) -> Result<Option<File>, VmmError> {
    let open = |path: &Path| {
        OpenOptions::new().create(true).append(true).open(path).map_err(failed("the console's file", path))
    };
    config.console.as_deref().map(open).transpose()
}

/// The control socket, listening; a socket that nobody serves any more is replaced.
pub fn control(config: &Config) -> Result<UnixListener, VmmError> {
    let path = &config.control;
    let bind = || -> io::Result<UnixListener> {
        if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(failed("the control socket", path))
}

/// A network interface on the tap that was inherited.
pub fn net(net: &config::Net) -> Result<Net, VmmError> {
    // SAFETY: the configuration says that this descriptor is the machine's; nothing else here refers to it.
    let fd = unsafe { OwnedFd::from_raw_fd(net.tap) };
    let open = || Net::new(Tap::new(fd)?, net.mac, &net.rate);
    open().map_err(VmmError::system("use the tap device"))
}

/// The virtual socket, listening. In a jail, whose root then is the directory of the sockets, the guest's connections go
/// to paths below that root.
pub fn vsock(vsock: &config::Vsock, jailed: bool) -> Result<Vsock, VmmError> {
    let open = || {
        let listener = UnixListener::bind(&vsock.socket)?;
        let base = match vsock.socket.file_name() {
            Some(name) if jailed => Path::new("/").join(name),
            _ => vsock.socket.clone(),
        };
        Vsock::new(vsock.cid, listener, base)
    };
    open().map_err(failed("the virtual socket", &vsock.socket))
}

/// The file system on the socket that was inherited.
pub fn fs(fs: &config::Fs) -> Result<Fs, VmmError> {
    // SAFETY: the configuration says that this descriptor is the machine's; nothing else here refers to it.
    let fd = unsafe { OwnedFd::from_raw_fd(fs.socket) };
    Fs::new(fd, &fs.tag).map_err(VmmError::system("use the socket to the server of directories"))
}

/// A disk of the configuration; `number` counts from 0.
pub fn disk(disk: &Disk, number: usize) -> Result<Block, VmmError> {
    let storage = match &disk.content {
        DiskContent::Raw(path) => raw(path, disk).map_err(failed("the disk", path))?,
        DiskContent::Partitions(paths) => {
            let mut files = Vec::with_capacity(paths.len());
            let mut sizes = Vec::with_capacity(paths.len());
            for path in paths {
                let mut file = File::open(path).map_err(failed("the partition", path))?;
                sizes.push(file.seek(SeekFrom::End(0)).map_err(failed("the partition", path))?);
                files.push(file);
            }
            let layout = Layout::of(&sizes).map_err(|source| VmmError::Layout { disk: number, source })?;
            Storage::Partitions { layout, files }
        }
    };
    let block = Block::new(storage, disk.read_only, number).limited(&disk.rate);
    block.map_err(VmmError::system("make the timers of a disk's limits"))
}

/// Seeking tells the size of block devices, too.
fn raw(path: &Path, disk: &Disk) -> io::Result<Storage> {
    let mut file = match &disk.lock {
        None => OpenOptions::new().read(true).write(!disk.read_only).open(path)?,
        Some(name) => sys::file::open_locked(path, disk.read_only)?.ok_or_else(|| {
            io::Error::other(format!(
                "volume {name} is in use by another container, and a disk has one user that writes, or several that read"
            ))
        })?,
    };
    let size = file.seek(SeekFrom::End(0))?;
    Ok(Storage::Raw { file, size: size - size % SECTOR })
}
