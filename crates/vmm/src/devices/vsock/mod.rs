//! virtio-vsock, served on Unix sockets ([`crate::config::Vsock`] tells the convention).
//!
//! Source: VIRTIO 1.2, 5.10. Streams only. Nothing blocks: the streams of the host are waited for by an epoll of the
//! device's own, which the caller waits for.
//!
//! In a jail: the listener is bound before; connections of the guest go to `<base>_PORT`, a path that is resolved when
//! the guest connects. So `base` is the path as the jailed process sees it, and the jail's root is, or holds, the
//! directory of these sockets. The guest chooses nothing but the digits of the port.
//!
//! The process must ignore SIGPIPE, as Rust's runtime does: a host that closes its stream must not end it.

mod connection;
mod mux;
mod packet;
#[cfg(test)]
mod tests;

use crate::devices::{IN, RING_FEATURES, Ring, read_config};
use crate::virtio::{Activation, Device, DeviceError, Interest, Memory};
use mux::Mux;
use packet::{HEADER, Header};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use vm_memory::GuestAddressSpace;

/// Device type, VIRTIO 1.2, 5.10.1.
pub const KIND: u32 = 19;
/// Of the queues for packets to the guest, from it, and events.
const SIZES: [u16; 3] = [64, 256, 64];

const RX: u64 = 0;
const TX: u64 = 1;
const EVENT: u64 = 2;
const STREAMS: u64 = 3;

/// The device.
pub struct Vsock {
    cid: u64,
    mux: Mux,
    active: Option<Active>,
}

struct Active {
    memory: Memory,
    rx: Ring,
    tx: Ring,
    /// Carries only VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, after a migration: never. QEMU keeps it to itself.
    event: Option<Ring>,
}

impl Vsock {
    /// A device whose guest has the context id `cid` (3 or more). `listener` takes the connections of the host;
    /// those of the guest go to `base` + `_PORT`, see the module.
    pub fn new(cid: u64, listener: UnixListener, base: PathBuf) -> io::Result<Self> {
        Ok(Self { cid, mux: Mux::new(cid, listener, base)?, active: None })
    }

    /// Connections of the host and of the guest at present.
    pub fn connections(&self) -> usize {
        self.mux.len()
    }

    /// Takes packets of the guest.
    fn take(&mut self) -> Result<(), DeviceError> {
        let Some(Active { memory, tx, .. }) = &mut self.active else { return Ok(()) };
        let memory = memory.memory();
        let mut turns = tx.size();
        while !self.mux.congested()
            && let Some(chain) = tx.next(&memory, &mut turns)?
        {
            let mut bytes = [0; HEADER];
            let there = chain.readable.read(0, &mut bytes);
            let header = Header::from_bytes(&bytes);
            if there < HEADER || chain.readable.len() - HEADER < header.len as usize {
                return Err(DeviceError::Driver("a packet of the virtual socket is cut off".into()));
            }
            self.mux.receive(&header, &chain.readable);
            tx.used(&memory, chain.head, 0)?;
        }
        tx.signal(&memory)
    }

    /// Gives packets to the guest.
    fn give(&mut self) -> Result<(), DeviceError> {
        let Some(Active { memory, rx, tx, .. }) = &mut self.active else { return Ok(()) };
        let memory = memory.memory();
        let mut turns = rx.size();
        let congested = self.mux.congested();
        while self.mux.has_packets()
            && let Some(chain) = rx.next(&memory, &mut turns)?
        {
            if chain.writable.len() <= HEADER {
                return Err(DeviceError::Driver(
                    "a buffer for the virtual socket has no room for data".into(),
                ));
            }
            match self.mux.next(&chain.writable) {
                Some(length) => rx.used(&memory, chain.head, length)?,
                None => rx.unpop(),
            }
        }
        if congested && !self.mux.congested() {
            tx.again();
        }
        rx.signal(&memory)
    }
}

impl Device for Vsock {
    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.cid.to_le_bytes(), offset, data);
    }

    /// Keeps the connections: a virtual machine that was paused goes on with them. [`Self::reset`] ends them.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let (memory, rings) = Ring::all(activation, 2)?;
        let mut rings = rings.into_iter();
        if let (Some(rx), Some(tx)) = (rings.next(), rings.next()) {
            self.active = Some(Active { memory, rx, tx, event: rings.next() });
        }
        // What the guest put there before.
        self.take()?;
        self.give()
    }

    fn reset(&mut self) {
        self.active = None;
        self.mux.clear();
    }

    fn interests(&self) -> Vec<Interest> {
        let Some(active) = &self.active else { return Vec::new() };
        let mut interests = vec![active.rx.interest(RX), active.tx.interest(TX)];
        interests.extend(active.event.as_ref().map(|ring| ring.interest(EVENT)));
        interests.push(Interest { fd: self.mux.epoll().as_raw_fd(), events: IN, token: STREAMS });
        interests
    }

    fn ready(&mut self, token: u64, _events: u32) -> Result<(), DeviceError> {
        let Some(active) = &self.active else { return Ok(()) };
        match token {
            RX => active.rx.kicked(),
            TX => {
                active.tx.kicked();
                self.take()?;
            }
            EVENT => active.event.iter().for_each(Ring::kicked),
            _ => {
                let failed =
                    |source| DeviceError::Host { what: "cannot wait for the virtual socket", source };
                self.mux.poll().map_err(failed)?;
            }
        }
        self.give()?;
        self.mux
            .arm()
            .map_err(|source| DeviceError::Host { what: "cannot set the virtual socket's timer", source })
    }
}
