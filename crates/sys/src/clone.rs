//! New processes: `clone3(2)` with a pidfd, and the namespaces that go with them.
//!
//! Not a replacement for `std::process::Command`: the child runs our own code, and only single-threaded programs may
//! ask for that (another thread may hold the allocator's lock at the moment of the clone).

use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Namespace flags of `clone3`, `unshare` and `setns`.
pub mod ns {
    /// Mounts.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// Host and domain name.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// System V IPC and POSIX message queues.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// Users and groups.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// Process ids.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Network.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    /// Control groups.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Clocks.
    pub const TIME: u64 = 0x80;
}

/// `CLONE_INTO_CGROUP`, linux/sched.h.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child of this process.
#[derive(Debug)]
pub struct Child {
    /// Its pid as this process sees it.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Runs `body` in a new process, in new namespaces (`flags` of [`ns`]) and, where given, in a cgroup (v2); its
/// result is the exit code. The child is a copy of this process: whatever `body` does not use is closed by
/// [`crate::process::close_all_but`], nothing is dropped.
pub fn spawn(flags: u64, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    clone3(flags, cgroup, body)
}

/// As [`spawn`], but the new process is a child of this one's parent; returns its pid as this process sees it. By the
/// old `clone(2)`, whose flags a seccomp policy can read: such policies allow it where they refuse `clone3`.
pub fn spawn_sibling(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // The signal of its end is ours.
    let flags = libc::CLONE_PARENT as u64;
    // SAFETY: no CLONE_VM and no new stack: the child continues here on its own copy of memory, as after fork(). The
    // other arguments are pointers and a value that these flags do not use.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0u64, 0u64, 0u64, 0u64) } {
        -1 => Err(io::Error::last_os_error()),
        0 => become_child(body),
        pid => Ok(pid as i32),
    }
}

fn become_child(body: impl FnOnce() -> i32) -> ! {
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(125);
    crate::process::exit_now(code)
}

fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers, for which zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM and no new stack: the child continues here on its own copy of memory, as after fork().
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => become_child(body),
        // SAFETY: the kernel stored a new descriptor that nobody else owns.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Joins namespaces: of the process behind a pidfd (any flags), or the one behind a namespace file.
pub fn setns(fd: impl AsFd, flags: u64) -> io::Result<()> {
    // SAFETY: takes integers only.
    match unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves namespaces for new ones.
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: takes an integer; only namespace flags are offered here, which touch no memory or descriptors.
    match unsafe { libc::unshare(flags as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How a process ended, as `wait(2)` encodes it, asked of its pidfd though it is not our child
/// (`PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`, Linux 6.15). `None`: not known, or not ended.
pub fn exit_info(pidfd: impl AsFd) -> io::Result<Option<i32>> {
    const INFO_EXIT: u64 = 1 << 3;
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    // _IOWR(0xFF, 11, struct pidfd_info) in its first, 64-byte version.
    const GET_INFO: u64 = (3 << 30) | ((size_of::<PidfdInfo>() as u64) << 16) | (0xFF << 8) | 11;
    let mut info = PidfdInfo { mask: INFO_EXIT, ..Default::default() };
    // SAFETY: the request's size field is that of `info`, so the kernel writes no more than it holds.
    let done = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), GET_INFO as _, &raw mut info) };
    match done {
        0 if info.mask & INFO_EXIT != 0 => Ok(Some(info.exit_code)),
        0 => Ok(None),
        _ => match Errno::from_io_error(&io::Error::last_os_error()) {
            // Old kernels, or reaped before the information was kept.
            Some(Errno::NOTTY | Errno::INVAL | Errno::SRCH) => Ok(None),
            e => Err(e.unwrap_or(Errno::IO).into()),
        },
    }
}
