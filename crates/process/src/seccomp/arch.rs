//! The architectures that filters can speak of, and the numbers of their system calls.

use super::{arm64, x86};
use types::oci::Arch as OciArch;

/// Marks the x32 calls among those of x86-64 (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// x32 calls whose number is another than on x86-64.
const X32: [(&str, u32); 36] = [
    ("execve", 520),
    ("execveat", 545),
    ("get_robust_list", 531),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("ioctl", 514),
    ("kexec_load", 528),
    ("move_pages", 533),
    ("mq_notify", 527),
    ("preadv", 534),
    ("preadv2", 546),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("ptrace", 521),
    ("pwritev", 535),
    ("pwritev2", 547),
    ("readv", 515),
    ("recvfrom", 517),
    ("recvmmsg", 537),
    ("recvmsg", 519),
    ("rt_sigaction", 512),
    ("rt_sigpending", 522),
    ("rt_sigqueueinfo", 524),
    ("rt_sigreturn", 513),
    ("rt_sigtimedwait", 523),
    ("rt_tgsigqueueinfo", 536),
    ("sendmmsg", 538),
    ("sendmsg", 518),
    ("set_robust_list", 530),
    ("setsockopt", 541),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("vmsplice", 532),
    ("waitid", 529),
    ("writev", 516),
];

/// A kernel interface that a filter can speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// i386.
    X86,
    /// x32, which shares x86-64's mark and has a bit in its numbers.
    X32,
    /// 64-bit ARM.
    Aarch64,
}

/// The numbers of the system calls of this program's architecture.
pub(super) fn native_calls() -> impl Iterator<Item = u32> {
    let table = if Arch::NATIVE == Arch::Aarch64 { arm64::AARCH64 } else { x86::X86_64 };
    table.iter().map(|(_, number)| *number)
}

impl Arch {
    /// That of this program.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// Its mark in `seccomp_data.arch` (`AUDIT_ARCH_*`).
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The number of a call, the x32 bit not in it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let table = match self {
            Self::X86 => x86::X86,
            Self::Aarch64 => arm64::AARCH64,
            Self::X86_64 => x86::X86_64,
            Self::X32 => match X32.binary_search_by_key(&name, |e| e.0) {
                Ok(at) => return X32.get(at).map(|e| e.1),
                Err(_) => x86::X86_64,
            },
        };
        table.binary_search_by_key(&name, |e| e.0).ok().and_then(|at| table.get(at)).map(|e| e.1)
    }

    /// Of those that we know.
    pub(super) fn from_oci(arch: OciArch) -> Option<Self> {
        match arch {
            OciArch::ScmpArchNative => Some(Self::NATIVE),
            OciArch::ScmpArchX86_64 => Some(Self::X86_64),
            OciArch::ScmpArchX86 => Some(Self::X86),
            OciArch::ScmpArchX32 => Some(Self::X32),
            OciArch::ScmpArchAarch64 => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// Docker's name, as in `includes.arches`.
    pub(super) fn docker_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::X32 => "x32",
            Self::Aarch64 => "arm64",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for table in [x86::X86_64, x86::X86, arm64::AARCH64, &X32] {
            assert!(table.is_sorted_by_key(|e| e.0));
        }
        assert_eq!(Arch::X86_64.number("openat2"), Some(437));
        assert_eq!(Arch::X86.number("exit"), Some(1));
        assert_eq!(Arch::X32.number("ioctl"), Some(514));
        assert_eq!(Arch::X32.number("read"), Some(0));
        assert_eq!(Arch::Aarch64.number("newfstatat"), Some(79));
        assert_eq!(Arch::Aarch64.number("openat"), Some(56));
        assert_eq!(Arch::Aarch64.number("lseek"), Some(62));
        assert_eq!(Arch::Aarch64.number("fork"), None);
    }
}
