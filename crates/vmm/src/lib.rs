//! The virtual machine monitor: KVM, guest memory, virtio devices, boot, jail.
//!
//! The guest is hostile. Whatever it writes into its memory or registers costs it the device or its life, never the
//! host's memory, another sandbox, or a panic here.

pub mod config;
pub mod devices;
pub mod vhost;
pub mod virtio;
