//! Which format this host can use.

use super::erofs::Writer;
use super::ingest::ingest;
use super::temp::Temp;
use super::{LayerLimits, LayerStore};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};
use std::path::Path;
use types::LayerFormat;

/// [`LayerFormat::Erofs`] if this process can mount EROFS files that lie in `dir`. Tries it, with an empty layer
/// that is attached nowhere: ask once, and keep the answer.
pub fn detect_format(dir: &Path) -> LayerFormat {
    if mounts(dir) { LayerFormat::Erofs } else { LayerFormat::Dir }
}

fn mounts(dir: &Path) -> bool {
    // A store that is asked for the first time has no directory yet.
    if LayerStore::open(dir, LayerFormat::Erofs).is_err() {
        return false;
    }
    let Ok(temp) = Temp::file(dir) else { return false };
    let Ok(file) = temp.handle() else { return false };
    let empty = [0; 1024];
    let mut sink = Writer::new(file, temp.path());
    if ingest(&mut &empty[..], None, &LayerLimits::default(), &mut sink).is_err() {
        return false;
    }
    // Opening the file system also has the kernel load its module. In a user namespace it is refused.
    let Ok(context) = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC) else { return false };
    let create = || {
        fsconfig_set_string(&context, "source", temp.path())?;
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)
    };
    match create() {
        Ok(()) => true,
        // Before Linux 6.12 it takes a block device.
        Err(Errno::NOTBLK) => Path::new("/dev/loop-control").exists(),
        Err(_) => false,
    }
}
