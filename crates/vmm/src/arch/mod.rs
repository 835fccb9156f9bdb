//! What differs between processor architectures: the map of addresses, boot, firmware tables, vCPU state.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
