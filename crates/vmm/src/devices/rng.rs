//! The virtio entropy device: random bytes of the host's kernel.
//!
//! Source: VIRTIO 1.2, section 5.4.

use super::chain::buffers;
use crate::mmio::EVENT_IDX;
use crate::virtio::{Activation, Device, DeviceError, Interest};
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::fd::AsRawFd;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryMmap};

const QUEUE: u16 = 64;
/// Bytes that one request gets at most: random bytes cost the host time.
const MOST: usize = 4096;
/// Requests that one event serves before other devices get their turn.
const BATCH: usize = 16;

/// A source of entropy.
#[derive(Default)]
pub struct Rng {
    active: Option<Activation>,
}

/// Fills the writable part of a request; how many bytes it got.
fn fill(memory: &GuestMemoryMmap, segments: &super::chain::Segments) -> Result<u32, DeviceError> {
    let mut random = [0; MOST];
    let mut done = 0;
    for segment in segments.iter() {
        let now = (segment.length as usize).min(MOST - done);
        let bytes = &mut random[..now];
        let got = getrandom(&mut *bytes, GetRandomFlags::empty())
            .map_err(|e| DeviceError::Host { what: "get random bytes", source: e.into() })?;
        memory
            .write_slice(&random[..got], segment.address)
            .map_err(|_| DeviceError::Driver("a buffer does not lie in memory".into()))?;
        done += got;
        if got < segment.length as usize {
            break;
        }
    }
    Ok(done as u32)
}

impl Rng {
    /// Serves requests; whether it stopped before the queue was empty.
    fn serve(&mut self) -> Result<bool, DeviceError> {
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.active else { return Ok(false) };
        let memory = memory.memory();
        let Some(queue) = queues.first_mut() else { return Ok(false) };
        let broken = |e: virtio_queue::Error| DeviceError::Driver(e.to_string());
        let mut served = 0;
        loop {
            while served < BATCH
                && let Some(chain) = queue.iter(&*memory).map_err(broken)?.next()
            {
                let head = chain.head_index();
                let (_, writable) = buffers(chain, QUEUE)?;
                let written = fill(&memory, &writable)?;
                queue.add_used(&*memory, head, written).map_err(broken)?;
                served += 1;
            }
            if served > 0 && queue.needs_notification(&*memory).map_err(broken)? {
                interrupt.queue(0);
            }
            if served >= BATCH {
                return Ok(true);
            }
            if !queue.enable_notification(&*memory).map_err(broken)? {
                return Ok(false);
            }
        }
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
        EVENT_IDX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.active = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn interests(&self) -> Vec<Interest> {
        let kicks = self.active.iter().flat_map(|active| &active.kicks);
        kicks.map(|kick| Interest { fd: kick.as_raw_fd(), events: 1, token: 0 }).collect()
    }

    fn ready(&mut self, _token: u64, _events: u32) -> Result<(), DeviceError> {
        if let Some(kick) = self.active.iter().flat_map(|active| &active.kicks).next() {
            let _ = kick.read();
        }
        if self.serve()?
            && let Some(kick) = self.active.iter().flat_map(|active| &active.kicks).next()
        {
            kick.write(1)
                .map_err(|source| DeviceError::Host { what: "wake the entropy device again", source })?;
        }
        Ok(())
    }
}
