//! The virtual machine monitor: KVM, guest memory, virtio devices, boot, jail.
//!
//! The guest is hostile. Whatever it writes into its memory or registers costs it the device or its life, never the
//! host's memory, another sandbox, or a panic here.

pub mod arch;
pub mod config;
pub mod control;
pub mod devices;
pub mod error;
pub mod fs;
pub mod gpt;
pub mod jail;
pub mod mmio;
pub mod registers;
pub mod tsc;
pub mod vhost;
pub mod virtio;

mod bus;
mod console;
mod memory;
mod note;
mod open;
mod run;
mod seccomp;
mod serve;
mod vcpu;
mod worker;

pub use run::{Ended, run};
