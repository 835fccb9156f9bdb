//! Signals of a process that must not die of them, and the children it inherits.
//!
//! Handlers instead of `SIG_IGN` or a blocked mask: `execve(2)` resets handlers to the default, but hands ignored and
//! blocked signals down, and a workload must not start with those.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

static CHILD_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn nothing(_: libc::c_int) {}

/// What [`child_notifier`] brings for a SIGHUP; for a child it is 0.
pub const HANGUP: u8 = 1;

extern "C" fn child_ended(_: libc::c_int) {
    tell(0);
}

extern "C" fn hung_up(_: libc::c_int) {
    tell(HANGUP);
}

fn tell(what: u8) {
    let fd = CHILD_PIPE.load(Ordering::Relaxed);
    // SAFETY: write(2) and __errno_location(3) are safe in a signal handler; the byte outlives the call; a full pipe
    // (EAGAIN) is as good as a written one. errno is restored for the interrupted code.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(fd, [what].as_ptr().cast(), 1);
        *errno = saved;
    }
}

fn install(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) -> io::Result<()> {
    // SAFETY: a zeroed sigaction is a valid one with an empty mask; handler and flags are set before its use.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = flags;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on the signals that would end or stop this process do nothing to it (SIGKILL, SIGSTOP and faults excepted),
/// SIGPIPE included; programs that it executes start with the defaults.
pub fn survive() -> io::Result<()> {
    let signals = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGXFSZ,
        libc::SIGIO,
    ];
    signals.into_iter().try_for_each(|s| install(s, nothing, libc::SA_RESTART))
}

/// A descriptor, not blocking, that is readable after a child ended, and after a SIGHUP. One a process.
pub fn child_notifier() -> io::Result<OwnedFd> {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let previous = CHILD_PIPE.swap(write.as_raw_fd(), Ordering::Relaxed);
    // The handler uses it for the life of the process.
    std::mem::forget(write);
    if previous >= 0 {
        // SAFETY: the descriptor came from this function, which forgot it; the handler knows the new one by now.
        drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(previous) });
    }
    install(libc::SIGCHLD, child_ended, libc::SA_RESTART | libc::SA_NOCLDSTOP)?;
    install(libc::SIGHUP, hung_up, libc::SA_RESTART)?;
    Ok(read)
}

/// The pid of a child that ended and is not reaped yet.
pub fn ended_child() -> Option<i32> {
    // SAFETY: a zeroed siginfo_t is valid, the call fills it in; si_pid is valid for the results of waitid.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let done = libc::waitid(libc::P_ALL, 0, &mut info, flags);
        (done == 0 && info.si_pid() > 0).then(|| info.si_pid())
    }
}

/// Gives free memory of the heap back to the kernel.
pub fn trim_heap() {
    // SAFETY: malloc_trim(3) takes no pointers and is thread safe.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
