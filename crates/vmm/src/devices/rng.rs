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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{BUFFERS, Driver, WRITE, pump};

    fn active(driver: &Driver) -> Result<Rng, DeviceError> {
        let mut device = Rng::default();
        device.activate(driver.activation(device.features()))?;
        Ok(device)
    }

    #[test]
    fn requests_are_filled_up_to_a_bound() {
        let mut driver = Driver::new(1);
        let mut device = active(&driver).unwrap();
        driver.chain(0, 0, &[(BUFFERS, 10, WRITE), (BUFFERS + 100, 54, WRITE)]);
        driver.chain(0, 2, &[(BUFFERS + 0x1000, 1 << 20, WRITE)]);
        // Nothing that could be filled.
        driver.chain(0, 3, &[(BUFFERS, 64, 0)]);
        driver.chain(0, 4, &[(BUFFERS, 0, WRITE)]);
        device.ready(0, 1).unwrap();
        assert_eq!(driver.used(0), [(0, 64), (2, MOST), (3, 0), (4, 0)]);
        assert_ne!(driver.read(BUFFERS + 100, 54), [0; 54]);
        assert_eq!(driver.read(BUFFERS + 10, 90), [0; 90]);
        assert_eq!(driver.read(BUFFERS + 0x1000 + MOST as u64, 4096), [0; 4096]);
    }

    #[test]
    fn others_have_their_turn_before_many_requests_are_done() {
        let mut driver = Driver::new(1);
        let mut device = active(&driver).unwrap();
        for head in 0..TURNS + 5 {
            driver.chain(0, head, &[(BUFFERS, 1, WRITE)]);
        }
        device.ready(0, 1).unwrap();
        assert_eq!(driver.used(0).len(), usize::from(TURNS));
        pump(&mut device, 5).unwrap();
        assert_eq!(driver.used(0).len(), 5);
    }

    #[test]
    fn broken_queues_cost_the_device() {
        let serve = |driver: Driver| pump(&mut active(&driver)?, 5);
        Driver::hostile(1, 0, false, serve);
        Driver::hostile(1, 0, true, serve);
    }
}
