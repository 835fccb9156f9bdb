//! Why a microVM cannot begin, or ended badly.

use crate::gpt::LayoutError;
use std::io;
use std::path::PathBuf;

/// Why there is no microVM.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The configuration contradicts itself or the machine.
    #[error("{0}")]
    Config(String),
    /// A file of the configuration.
    #[error("cannot open {what} {path}")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The files of a disk cannot be its partitions.
    #[error("cannot put the files of disk {disk} together")]
    Layout {
        /// Number of the disk, from 0.
        disk: usize,
        /// Why.
        source: LayoutError,
    },
    /// KVM is not there, or refuses.
    #[error("KVM: cannot {action}")]
    Kvm {
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Guest memory cannot be had.
    #[error("cannot map {mib} MiB of guest memory")]
    Memory {
        /// Its size.
        mib: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The walls around the VMM cannot be built.
    #[error("cannot shut the VMM in: {step}")]
    Jail {
        /// The step that failed.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another call of the system.
    #[error("cannot {action}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A fault of this program.
    #[error("fault of the VMM: {0}")]
    Internal(&'static str),
}

impl VmmError {
    /// For `map_err` on KVM's calls.
    pub(crate) fn kvm(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Kvm { action, source: io::Error::from_raw_os_error(e.errno()) }
    }

    /// For `map_err` on other calls.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> Self {
        move |e| Self::System { action, source: e.into() }
    }
}

/// Why the guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither format.
    #[error("{0} is no Linux kernel for x86-64: neither a bzImage nor an ELF vmlinux")]
    NoKernel(PathBuf),
    /// A bzImage without 64-bit entry.
    #[error(
        "the kernel {0} cannot be entered in 64-bit mode: take one of version 3.8 or later, built for x86-64"
    )]
    Not64(PathBuf),
    /// Not even the file.
    #[error("cannot read {path}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It says it is a kernel, and is broken.
    #[error("cannot load the kernel {path}")]
    Load {
        /// Path of the file.
        path: PathBuf,
        /// Why.
        source: linux_loader::loader::Error,
    },
    /// Memory ends before the file does.
    #[error("the guest has too little memory for {path}: give it more than {need} MiB")]
    Memory {
        /// Path of the kernel or initramfs.
        path: PathBuf,
        /// What it takes at least.
        need: u64,
    },
    /// The kernel would cut it off.
    #[error("the kernel's command line has {length} bytes; it can have {max}")]
    CommandLine {
        /// Its length.
        length: usize,
        /// What is allowed.
        max: usize,
    },
    /// The kernel would stop there.
    #[error("the kernel's command line has a NUL byte")]
    CommandLineNul,
}
