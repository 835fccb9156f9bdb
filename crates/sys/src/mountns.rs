//! Two things about mounts that `rustix` leaves to `unsafe`: work in a mount namespace of one's own, without
//! leaving the caller's, and mounts that translate user ids.

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Runs `work` on a thread in a private copy of this mount namespace. What it mounts there nobody else sees, and it
/// vanishes with the thread, killed or not; detached mounts that it hands back as descriptors live on.
/// Descriptors opened before refer to the mounts of the caller's namespace: `work` opens its own.
pub fn in_private_mounts<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let body = || {
            // SAFETY: the descriptor table stays shared (no CLONE_FILES); the file system attributes and the mount
            // namespace that are unshared belong to this thread alone, which ends with this closure.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private)?;
            work()
        };
        let thread = std::thread::Builder::new().name("mounts".into()).spawn_scoped(scope, body)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

/// Makes a detached mount translate user and group ids by the mappings of a user namespace
/// (`MOUNT_ATTR_IDMAP`, `mount_setattr(2)`, Linux 5.12).
pub fn idmap(mount: impl AsFd, user_namespace: impl AsFd) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_fd().as_raw_fd() as u64,
    };
    // SAFETY: the path is a NUL-terminated empty string, `attr` is a complete `mount_attr` of the size given, and
    // both outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
