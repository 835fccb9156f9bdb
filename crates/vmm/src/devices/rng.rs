//! The virtio entropy device: random bytes of the host's kernel.
//!
//! Source: VIRTIO 1.2, section 5.4.

use super::{RING_FEATURES, Ring, Segments};
use crate::virtio::{Activation, Device, DeviceError, Interest, Memory};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::GuestAddressSpace;

const QUEUE: u16 = 64;
/// Bytes that one request gets at most: random bytes cost the host time.
const MOST: usize = 4096;
/// Requests that one event serves before other devices get their turn.
const TURNS: u16 = 16;

/// A source of entropy.
#[derive(Default)]
pub struct Rng {
    active: Option<(Memory, Ring)>,
}

/// Fills the writable part of a request; how many bytes it got.
fn fill(segments: &Segments) -> Result<usize, DeviceError> {
    let mut random = [0; MOST];
    let wanted = &mut random[..segments.len().min(MOST)];
    let got = getrandom(&mut *wanted, GetRandomFlags::empty())
        .map_err(|e| DeviceError::Host { what: "get random bytes", source: e.into() })?;
    Ok(segments.write(0, &wanted[..got]))
}

impl Rng {
    /// Serves requests.
    fn serve(&mut self) -> Result<(), DeviceError> {
        let Some((memory, ring)) = &mut self.active else { return Ok(()) };
        let memory = memory.memory();
        let mut turns = TURNS;
        while let Some(chain) = ring.next(&memory, &mut turns)? {
            let written = fill(&chain.writable)?;
            ring.used(&memory, chain.head, written)?;
        }
        ring.signal(&memory)
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let (memory, rings) = Ring::all(activation, 1)?;
        self.active = rings.into_iter().next().map(|ring| (memory, ring));
        self.serve()
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn interests(&self) -> Vec<Interest> {
        self.active.iter().map(|(_, ring)| ring.interest(0)).collect()
    }

    fn ready(&mut self, _token: u64, _events: u32) -> Result<(), DeviceError> {
        self.active.iter().for_each(|(_, ring)| ring.kicked());
        self.serve()
    }
}
