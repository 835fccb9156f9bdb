//! Loading a compiled seccomp filter. Compiling one is not done here.

use std::io;
use sys::process::BpfInstruction;

/// A compiled filter and how to load it.
#[derive(Clone, Debug)]
pub struct Loadable {
    /// The program.
    pub program: Vec<BpfInstruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

impl Loadable {
    pub(crate) fn load(&self) -> io::Result<()> {
        sys::process::load_seccomp(&self.program, self.flags)
    }
}
