//! Seccomp policies: Docker's default one as our own data, Docker's JSON form of others, and the compiler from the OCI
//! form to the kernel's BPF. Loading is [`Launch`](crate::Launch)'s.
//!
//! Sources: seccomp(2), the OCI runtime specification's config-linux.md ("Seccomp"), Docker's documentation of its
//! default profile.

mod answer;
mod arch;
mod arm64;
mod compile;
mod default;
mod docker;
mod precompiled;
mod reach;
#[cfg(test)]
mod tests;
mod x86;

pub use arch::Arch;
pub use compile::compile;
pub use default::default_profile;
pub use docker::parse_docker_profile;
pub use precompiled::built_in;
pub use reach::reachable;

use types::{ErrorKind, Kinded};

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The profile is no JSON, or not of Docker's form.
    #[error("the seccomp profile cannot be read: {0}")]
    Syntax(serde_json::Error),
    /// It asks for what we do not do.
    #[error("the seccomp profile asks for {0}, which is not supported")]
    Unsupported(String),
    /// An errno that the kernel cannot return.
    #[error("the seccomp profile returns errno {0}; the kernel knows 0 to 4095")]
    Errno(u32),
    /// A condition on an argument that does not exist.
    #[error("the seccomp profile looks at argument {0}; system calls have arguments 0 to 5")]
    Argument(usize),
    /// Too many rules.
    #[error("the seccomp profile needs {0} instructions, and the kernel takes at most 4096")]
    TooLarge(usize),
    /// A kernel version that is none.
    #[error("the seccomp profile names {0:?} as least kernel; write a version like 4.8")]
    Kernel(String),
}

impl Kinded for SeccompError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported(_) => ErrorKind::Unsupported,
            _ => ErrorKind::Invalid,
        }
    }
}
