//! Docker's default policy, as our own data: what a container may call. All else fails with `EPERM`.
//!
//! Written after Docker's documentation of the profile. Where it compares the family of a socket, we compare only the
//! 32 bits that the kernel reads.

use std::collections::HashSet;
use types::oci::{
    Arch as OciArch, Capability, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator as Op, LinuxSyscall,
    LinuxSyscallBuilder,
};

/// Calls that every container may make.
const ALWAYS: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock fork
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue
    futex_time64 futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32
    geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid
    getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid
    getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
    listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules lsm_set_self_attr
    lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat
    mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
    munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv
    preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
    renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity
    sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
    sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
    setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid
    setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall
    socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill
    truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes
    vfork vmsplice wait4 waitid waitpid write writev ptrace";

/// Calls that exist on x86 only.
const X86: &str = "arch_prctl modify_ldt";

/// Calls that a capability opens.
const BY_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
         open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount
         umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module init_module finit_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTime, "settimeofday stime clock_settime clock_settime64"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Persons (personality(2)) that may be taken: Linux, Linux32, both with UNAME26, and asking.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The namespace flags of clone(2).
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Families whose sockets reach past the container: `AF_ALG`, the kernel's crypto with its history of holes, and
/// `AF_VSOCK`, the hypervisor.
const CLOSED_FAMILIES: [u64; 2] = [38, 40];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Docker's default policy for a container with these capabilities.
pub fn default_profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let has = |capability| capabilities.contains(&capability);
    let mut rules = vec![rule(words(ALWAYS), Action::ScmpActAllow, None, None)];
    if cfg!(target_arch = "x86_64") {
        rules.push(rule(words(X86), Action::ScmpActAllow, None, None));
    }
    for value in PERSONALITIES {
        let is = arg(0, Op::ScmpCmpEq, value, None);
        rules.push(rule(words("personality"), Action::ScmpActAllow, None, Some(is)));
    }
    for family in CLOSED_FAMILIES {
        let is = arg(0, Op::ScmpCmpMaskedEq, u32::MAX.into(), Some(family));
        rules.push(rule(words("socket"), Action::ScmpActErrno, Some(EPERM), Some(is)));
    }
    rules.push(rule(words("socket"), Action::ScmpActAllow, None, None));
    for (capability, names) in BY_CAPABILITY {
        if has(*capability) {
            rules.push(rule(words(names), Action::ScmpActAllow, None, None));
        }
    }
    if !has(Capability::SysAdmin) {
        let no_namespace = arg(0, Op::ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0));
        rules.push(rule(words("clone"), Action::ScmpActAllow, None, Some(no_namespace)));
        // Its flags are in memory, where a filter cannot look: a C library falls back to clone.
        rules.push(rule(words("clone3"), Action::ScmpActErrno, Some(ENOSYS), None));
    }
    let arches = if cfg!(target_arch = "aarch64") {
        vec![OciArch::ScmpArchAarch64]
    } else {
        vec![OciArch::ScmpArchX86_64, OciArch::ScmpArchX86, OciArch::ScmpArchX32]
    };
    LinuxSeccompBuilder::default()
        .default_action(Action::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(arches)
        .syscalls(rules)
        .build()
        // No field is required.
        .unwrap_or_default()
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn arg(index: usize, op: Op, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    match value_two {
        Some(two) => builder.value_two(two),
        None => builder,
    }
    .build()
    .unwrap_or_default()
}

fn rule(
    names: Vec<String>,
    action: Action,
    errno: Option<u32>,
    condition: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if let Some(condition) = condition {
        builder = builder.args(vec![condition]);
    }
    builder.build().unwrap_or_default()
}
