//! The system calls that each kind of thread needs once the guest runs; any other kills the process.
//!
//! Sources: seccomp(2); what Rust's and C's libraries call for memory, locks and the end of threads.

use crate::error::VmmError;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::io;

/// Memory, locks, time, signals, the end of a thread or of the process.
const ALL: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_fstat,
    libc::SYS_statx,
];

/// Descriptors of devices and of the control socket: files, Unix sockets, the tap.
const IO: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_getrandom,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

#[cfg(target_arch = "x86_64")]
const IO_LEGACY: &[i64] = &[libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const IO_LEGACY: &[i64] = &[];

/// ioctl of a vCPU: `_IO(KVMIO, 0x80)`.
const KVM_RUN: i64 = 0xae80;

/// ioctl of a tap, when a driver says which offloads it takes: `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: i64 = 0x4004_54d0;

/// Heaps: who has more of them opens files now and then, which the filters forbid.
const ONE: i32 = 1;

/// To be called before a process whose threads get filters has a second one.
pub fn prepare() {
    sys::memory::share_heaps(ONE);
}

/// A compiled filter.
#[derive(Clone)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Binds this thread to it, for ever.
    pub fn apply(&self) -> io::Result<()> {
        seccompiler::apply_filter(&self.0).map_err(io::Error::other)
    }

    /// For the process that serves files: memory, locks and time as all have them, locks of files, and these calls.
    pub fn file_server(calls: &[i64]) -> io::Result<Self> {
        prepare();
        let rules = || -> Result<Self, seccompiler::Error> {
            let mut rules = common()?;
            rules.extend(calls.iter().map(|call| (*call, Vec::new())));
            let locks = [libc::F_GETFD, libc::F_OFD_GETLK, libc::F_OFD_SETLK];
            let locks =
                locks.iter().map(|command| argument(1, (*command).into())).collect::<Result<_, _>>()?;
            rules.insert(libc::SYS_fcntl, locks);
            compile(rules)
        };
        rules().map_err(io::Error::other)
    }
}

/// The filters of the kinds of threads.
#[derive(Clone)]
pub struct Filters {
    /// Control socket, end.
    pub main: Filter,
    /// Devices.
    pub worker: Filter,
    /// vCPUs.
    pub vcpu: Filter,
}

impl Filters {
    /// Compiles them.
    pub fn new() -> Result<Self, VmmError> {
        let compiled = || -> Result<Self, seccompiler::Error> {
            let main = compile(io_rules()?)?;
            Ok(Self { worker: main.clone(), main, vcpu: compile(vcpu_rules()?)? })
        };
        compiled()
            .map_err(|e| VmmError::Jail { step: "compile its seccomp filters", source: io::Error::other(e) })
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(rules: Rules) -> Result<Filter, seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(Filter(filter.try_into()?))
}

/// The call's argument must be this.
fn argument(index: u8, value: i64) -> Result<SeccompRule, seccompiler::Error> {
    let is = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64)?;
    Ok(SeccompRule::new(vec![is])?)
}

fn common() -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = ALL.iter().map(|call| (*call, Vec::new())).collect();
    // memory, but never executable
    let exec = libc::PROT_EXEC as u64;
    let no_exec = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(exec), 0)?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![no_exec.clone()])?]);
    }
    // abort(3) of this process, and no signal to any other
    rules.insert(libc::SYS_tgkill, vec![argument(0, std::process::id().into())?]);
    // Rust's library looks whether a descriptor is open before it closes it, in debug builds.
    rules.insert(libc::SYS_fcntl, vec![argument(1, libc::F_GETFD.into())?]);
    Ok(rules)
}

fn io_rules() -> Result<Rules, seccompiler::Error> {
    let mut rules = common()?;
    rules.extend(IO.iter().chain(IO_LEGACY).map(|call| (*call, Vec::new())));
    rules.insert(libc::SYS_socket, vec![argument(0, libc::AF_UNIX.into())?]);
    rules.insert(libc::SYS_ioctl, vec![argument(1, libc::FIONBIO as i64)?, argument(1, TUNSETOFFLOAD)?]);
    let fcntl = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD, libc::F_DUPFD_CLOEXEC];
    let fcntl = fcntl.iter().map(|command| argument(1, (*command).into())).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_fcntl, fcntl);
    Ok(rules)
}

fn vcpu_rules() -> Result<Rules, seccompiler::Error> {
    let mut rules = common()?;
    rules.insert(libc::SYS_ioctl, vec![argument(1, KVM_RUN)?]);
    Ok(rules)
}

#[cfg(test)]
mod tests;
