//! The virtio devices.

pub mod block;
pub mod rng;
pub mod storage;

mod chain;
