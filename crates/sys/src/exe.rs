//! Our own program, out of the reach of what it starts (CVE-2019-5736).
//!
//! A workload that gets hold of `/proc/PID/exe` of a process of ours must not be able to write the program through
//! it. So processes that enter a sandbox are executed through a read-only clone of the mount that the program is
//! on: whatever is opened by way of it cannot be opened for writing. Where the kernel has no such mounts, from a
//! sealed copy in memory.

use crate::mount;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A descriptor of this very program, for `execveat`, by way of which nobody can write the program.
pub fn self_exe_sealed() -> io::Result<OwnedFd> {
    read_only_clone().or_else(|_| sealed_copy())
}

fn read_only_clone() -> io::Result<OwnedFd> {
    // The mount that we were started from may be another mount namespace's, which cannot be cloned: then the file's
    // path leads to this one's, if it is the same file there.
    let link = Path::new("/proc/self/exe");
    let clone = match mount::clone_path(link, false) {
        Ok(clone) => clone,
        Err(_) => {
            let clone = mount::clone_path(&std::fs::read_link(link)?, false)?;
            let (found, ours) = (rustix::fs::fstat(&clone)?, rustix::fs::stat(link)?);
            if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino) {
                return Err(io::Error::other("our program's path leads to another file"));
            }
            clone
        }
    };
    mount::set_attributes(&clone, false, mount::Change::set(mount::attr::RDONLY))?;
    Ok(clone)
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create("dhow", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("dhow", flags),
        done => done,
    }?;
    let mut source = std::fs::File::open("/proc/self/exe")?;
    let mut file = std::fs::File::from(copy);
    io::copy(&mut source, &mut file)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    // The description that may write is given up: only a read-only one goes on.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_we_execute_cannot_be_written() {
        for (name, fd) in [("clone", read_only_clone()), ("copy", sealed_copy())] {
            let fd = match fd {
                Ok(fd) => fd,
                Err(e) if name == "clone" => {
                    println!("skipped: no mount clones here: {e}");
                    continue;
                }
                Err(e) => panic!("{name}: {e}"),
            };
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            assert!(std::fs::OpenOptions::new().write(true).open(&path).is_err() || name == "copy");
            if name == "copy" {
                use std::os::unix::fs::FileExt;
                if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&path) {
                    assert!(file.write_at(b"x", 0).is_err());
                }
            }
        }
    }
}
