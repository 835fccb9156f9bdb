//! Safe wrappers over the Linux interfaces that Dhow needs and that `rustix` does not offer as it needs them.
//!
//! Knows nothing of images, containers or networks. With `vmm` it is the only crate that may hold `unsafe`,
//! each block with its reason.

pub mod bpf;
pub mod clone;
pub mod exe;
pub mod file;
pub mod fsctl;
pub mod fsids;
pub mod host;
pub mod inherited;
pub mod inspect;
pub mod limits;
pub mod loopdev;
pub mod memory;
pub mod mount;
pub mod mountns;
pub mod netlink;
pub mod netns;
pub mod notices;
pub mod process;
pub mod root;
pub mod signals;
pub mod tap;
pub mod vsock;

pub use root::Root;
