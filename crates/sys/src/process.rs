//! What a process does to itself just before it becomes another program.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// One BPF instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Ends this process at once: no destructors, no buffers written.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor but these (and 0 to 2). Only for a process that [`crate::clone::spawn`] just made: the
/// objects that own the descriptors belong to the parent's life and are never used or dropped there.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 3;
    for fd in keep {
        if fd > from {
            close_range(from as u32, fd as u32 - 1, 0)?;
        }
        from = fd + 1;
    }
    close_range(from as u32, u32::MAX, 0)
}

/// Marks every descriptor from 3 on to be closed by `execve` (CVE-2024-21626).
pub fn close_on_exec_from_3() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from 3 on. As [`close_all_but`], only for a process of ours that will never drop an owner.
pub fn close_from_3() -> io::Result<()> {
    close_range(3, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: takes integers only; that no owner uses a closed descriptor is the callers' documented duty.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Every signal to its default action, and none blocked: what `execve` would otherwise hand down (Rust's runtime
/// ignores SIGPIPE).
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; numbers that cannot be changed answer EINVAL, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty, initialised set; no old set is asked for.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Who writes to a pipe or socket that nobody reads gets an error, not SIGPIPE. Programs that are executed inherit it.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Blocks every signal, to take them with [`next_signal`].
pub fn block_signals() {
    // SAFETY: a full, initialised set; no old set is asked for.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Waits for any blocked signal and takes it.
pub fn next_signal() -> io::Result<i32> {
    // SAFETY: an initialised set; no siginfo is asked for.
    let signal = unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&raw const all, std::ptr::null_mut())
    };
    if signal > 0 { Ok(signal) } else { Err(io::Error::last_os_error()) }
}

/// `kill(2)` with a plain number, real-time signals included.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `pidfd_send_signal(2)` with a plain number.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: integers and a null pointer, for which the kernel fills in the sender.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes the program at `path`; returns only on failure.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Becomes the program behind a handle; returns only on failure.
pub fn execve_fd(program: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: as in `execve`; the path is empty, so the descriptor itself is executed.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Loads a seccomp filter for this thread. Needs `no_new_privs` or CAP_SYS_ADMIN; `flags` are
/// `SECCOMP_FILTER_FLAG_*`.
pub fn load_seccomp(filter: &[BpfInstruction], flags: u32) -> io::Result<()> {
    let Ok(len) = u16::try_from(filter.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    const SET_MODE_FILTER: libc::c_uint = 1;
    // SAFETY: `program` names `len` instructions of the layout of sock_filter, which the kernel copies.
    match unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the session keyring of whoever started us for a new one, so that keys of the host stay out of reach.
pub fn new_session_keyring(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `personality(2)`.
pub fn personality(domain: u32) -> io::Result<()> {
    // SAFETY: takes an integer only.
    match unsafe { libc::personality(domain.into()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `ioprio_set(2)` for this process.
pub fn set_io_priority(class: u16, level: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    let value = libc::c_int::from(class) << 13 | libc::c_int::from(level);
    // SAFETY: takes integers only.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Shows another command line for this process, as setproctitle(3) does: over its own arguments, which nothing reads
/// any more. One that does not fit is cut. Reads `/proc/self/stat`. Only for a process that
/// [`crate::clone::spawn`] just made.
pub fn set_title(title: &str) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    // Fields 48 and 49 of proc_pid_stat(5), counted from 3: where the arguments begin and end.
    let mut fields = rest.split_ascii_whitespace().skip(45).map(str::parse::<usize>);
    let (Some(Ok(start)), Some(Ok(end))) = (fields.next(), fields.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let room = end.checked_sub(start).filter(|n| start != 0 && *n >= 2).ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; room];
    for (to, from) in bytes.iter_mut().zip(title.bytes().take(room - 2)) {
        *to = from;
    }
    // That the last byte is no NUL says that the first string is a title, and all there is.
    bytes[room - 1] = b' ';
    // SAFETY: the kernel put the arguments of this process there, `room` writable bytes of its stack; the process is a
    // copy that runs nothing but our code, which looks at no argument.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, room) };
    Ok(())
}

/// Makes these the descriptors 0, 1 and 2 of this process, inherited by what it executes.
pub fn set_stdio(stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    // First out of the way of each other: one of them may be 0, 1 or 2 itself.
    let mut high = Vec::with_capacity(3);
    for fd in stdio {
        high.push(rustix::io::fcntl_dupfd_cloexec(fd, 3)?);
    }
    for (target, fd) in (0..).zip(&high) {
        // SAFETY: 0 to 2 are the standard streams, which std never owns; replacing what they name is what is asked.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
