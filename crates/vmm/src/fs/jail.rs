//! What the server's process has left when it takes the first request.
//!
//! Sources: capabilities(7), seccomp(2).

use crate::seccomp::Filter;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::io;

/// What it takes to make, read and change files as root in a container does; without MKNOD, as there are no devices.
/// SETUID and SETGID are for the owner of what is made.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Descriptors that are wanted; a host may allow fewer.
const DESCRIPTORS: u64 = 1 << 16;

const CALLS: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getrandom,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_recvfrom,
    libc::SYS_renameat2,
    libc::SYS_sendto,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Raises or lowers the limit of descriptors; what it is now.
pub fn descriptors() -> u64 {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let value = now.maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    match rustix::process::setrlimit(Resource::Nofile, limit) {
        Ok(()) => value,
        Err(_) => now.current.unwrap_or(value),
    }
}

/// Gives up all that a server of files does not need. For the only thread of a process.
pub fn enter() -> io::Result<Filter> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let none = Some(0);
    rustix::process::setrlimit(Resource::Core, Rlimit { current: none, maximum: none })?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::thread::clear_ambient_capability_set()?;
    let now = rustix::thread::capabilities(None)?.permitted;
    let kept = CAPABILITIES & now;
    // The bounding set is for programs that are executed, which the filter forbids.
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    Filter::file_server(CALLS)
}
