//! virtio-net on a tap. Source: VIRTIO 1.2, 5.1.
//!
//! Packets go straight between the tap and guest memory, with the header that both sides share, so that checksums and
//! segmentation are left to who can do them best. What the guest says in a header the kernel checks; a packet that
//! either side refuses is lost, as on any network.

use super::net_tap::{HEADER, OFFLOAD_CSUM, OFFLOAD_TSO4, OFFLOAD_TSO6, Pieces, Tap};
use super::rate::{Limiter, timer};
use super::{Chain, IN, RING_FEATURES, Ring, read_config};
use crate::config::RateLimit;
use crate::virtio::{Activation, Command, Device, DeviceError, Interest, Memory};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

/// Device type, VIRTIO 1.2, 5.1.1.
pub const KIND: u32 = 1;
/// Of the queues for packets to the guest and from it.
const SIZES: [u16; 2] = [256, 256];
/// Greatest packet with its header: 64 KiB of IP and an Ethernet header with a VLAN tag.
const PACKET: usize = HEADER + 65535 + 18;

/// Feature bits, VIRTIO 1.2, 5.1.3.
mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
}

const RX: u64 = 0;
const TX: u64 = 1;
const TAP: u64 = 2;
const RX_TIMER: u64 = 3;
const TX_TIMER: u64 = 4;

/// The device.
pub struct Net {
    tap: Tap,
    config: [u8; 8],
    to_guest: Limiter,
    from_guest: Limiter,
    pieces: Pieces,
    /// Where a packet goes that is longer than the guest's buffers; `held` bytes of it wait for more of them.
    scratch: Vec<u8>,
    held: usize,
    /// The guest has no buffers: the tap is not waited for.
    starved: bool,
    /// The interface was deleted.
    gone: bool,
    active: Option<Active>,
}

struct Active {
    memory: Memory,
    rx: Ring,
    tx: Ring,
    /// A packet may take several chains.
    merge: bool,
    /// What a packet may be long, header included.
    longest: usize,
    /// The last packet to the guest took several chains, and the next one may.
    large: bool,
}

impl Net {
    /// An interface with this hardware address; the limits hold in each direction.
    pub fn new(tap: Tap, mac: [u8; 6], rate: &RateLimit) -> io::Result<Self> {
        let mut config = [0; 8];
        config[..6].copy_from_slice(&mac);
        // VIRTIO_NET_S_LINK_UP.
        config[6] = 1;
        Ok(Self {
            tap,
            config,
            to_guest: Limiter::new(rate)?,
            from_guest: Limiter::new(rate)?,
            pieces: Pieces::default(),
            scratch: vec![0; PACKET],
            held: 0,
            starved: false,
            gone: false,
            active: None,
        })
    }

    /// Other limits from now on.
    pub fn limit(&mut self, rate: &RateLimit) -> Result<(), DeviceError> {
        self.to_guest.set(rate);
        self.from_guest.set(rate);
        self.send()?;
        self.receive()
    }

    /// From the guest to the tap.
    fn send(&mut self) -> Result<(), DeviceError> {
        let Some(Active { memory, tx, .. }) = &mut self.active else { return Ok(()) };
        let memory = memory.memory();
        let mut turns = tx.size();
        while self.from_guest.ready().map_err(timer)?
            && let Some(chain) = tx.next(&memory, &mut turns)?
        {
            let length = chain.readable.len();
            if (HEADER..=PACKET).contains(&length) {
                chain.readable.range(0, length).for_each(|slice| self.pieces.add(&slice));
                // SAFETY: `memory` keeps the pieces mapped.
                // A packet that the kernel refuses is lost.
                let _ = unsafe { self.tap.write(&mut self.pieces) };
                self.from_guest.charge(length as u64);
            }
            tx.used(&memory, chain.head, 0)?;
        }
        tx.signal(&memory)
    }

    /// From the tap to the guest.
    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(Active { memory, rx, merge, longest, large, .. }) = &mut self.active else { return Ok(()) };
        let memory = memory.memory();
        let mut chains = VecDeque::new();
        let mut turns = rx.size();
        self.starved = false;
        loop {
            if turns == 0 {
                rx.again();
                break;
            }
            if !self.to_guest.ready().map_err(timer)? {
                break;
            }
            turns -= 1;
            // Some forty chains are looked at for the longest packet: too many for each acknowledgement.
            let need = match self.held {
                0 if *large => *longest,
                0 => 1,
                held => held,
            };
            let room = gather(rx, &memory, &mut chains, if *merge { need } else { 1 })?;
            if room == 0 || (self.held > room && *merge) {
                self.starved = true;
                break;
            }
            let length = if self.held > 0 {
                let held = std::mem::take(&mut self.held);
                scatter(&chains, self.scratch.get(..held).unwrap_or_default())
            } else {
                let writable = chains.iter().flat_map(|c: &Chain| c.writable.range(0, c.writable.len()));
                writable.for_each(|slice| self.pieces.add(&slice));
                self.pieces.add_own(&mut self.scratch);
                // SAFETY: `memory` keeps the pieces mapped; nobody has references to guest memory, and the scratch
                // buffer is not used meanwhile.
                match unsafe { self.tap.read(&mut self.pieces) } {
                    Ok(n) if n > room => {
                        if *merge {
                            self.held = hold(&chains, &mut self.scratch, room, n);
                        }
                        // Without merging, a packet that is longer than the guest's buffer is lost.
                        continue;
                    }
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    // The tap would stay ready for ever.
                    Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                        return Err(DeviceError::Driver(
                            "buffers for packets come in too many pieces".into(),
                        ));
                    }
                    // No more of them, or the interface is down or gone.
                    Err(_) => break,
                }
            };
            if length < HEADER {
                continue;
            }
            *large = deliver(rx, &memory, &mut chains, length)? > 1;
            self.to_guest.charge(length as u64);
        }
        chains.iter().for_each(|_| rx.unpop());
        rx.signal(&memory)
    }
}

/// Takes chains until they have `need` bytes; the room there is, 0 when there is none and a kick will tell.
fn gather<'m>(
    rx: &mut Ring,
    memory: &'m GuestMemoryMmap,
    chains: &mut VecDeque<Chain<'m>>,
    need: usize,
) -> Result<usize, DeviceError> {
    let mut room: usize = chains.iter().map(|c| c.writable.len()).sum();
    while room < need
        && let Some(chain) = rx.pop_or_wait(memory)?
    {
        if chain.writable.len() < HEADER {
            return Err(DeviceError::Driver("a buffer for packets has no room for a header".into()));
        }
        room += chain.writable.len();
        chains.push_back(chain);
    }
    Ok(room)
}

/// Copies a packet to the chains; how much of it had room.
fn scatter(chains: &VecDeque<Chain>, packet: &[u8]) -> usize {
    let mut done = 0;
    for chain in chains {
        done += chain.writable.write(0, packet.get(done..).unwrap_or_default());
    }
    done
}

/// Puts a packet together of which `room` bytes lie in the chains and the rest in `scratch`. Its length; 0 if it is
/// longer than any packet can be.
fn hold(chains: &VecDeque<Chain>, scratch: &mut [u8], room: usize, length: usize) -> usize {
    if length > scratch.len() || room > length {
        return 0;
    }
    scratch.copy_within(..length - room, room);
    let mut done = 0;
    for chain in chains {
        let Some(part) = scratch.get_mut(done..room) else { break };
        done += chain.writable.read(0, part);
    }
    length
}

/// Gives the packet that lies in the first chains to the driver; how many these are.
fn deliver(
    rx: &mut Ring,
    memory: &GuestMemoryMmap,
    chains: &mut VecDeque<Chain>,
    length: usize,
) -> Result<usize, DeviceError> {
    let mut left = length;
    let mut used = Vec::new();
    let mut first = None;
    while left > 0
        && let Some(chain) = chains.pop_front()
    {
        let part = left.min(chain.writable.len());
        left -= part;
        used.push((chain.head, part));
        first.get_or_insert(chain);
    }
    if let Some(chain) = first {
        // num_buffers, at the header's end. A queue has at most 32768 chains.
        chain.writable.write(10, &(used.len() as u16).to_le_bytes());
    }
    rx.used_together(memory, &used)?;
    Ok(used.len())
}

impl Device for Net {
    fn command(&mut self, command: Command) -> Result<bool, DeviceError> {
        let Command::Limit(rate) = command else { return Ok(false) };
        self.limit(&rate)?;
        Ok(true)
    }

    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        use feature::*;
        RING_FEATURES
            | CSUM
            | GUEST_CSUM
            | MAC
            | GUEST_TSO4
            | GUEST_TSO6
            | HOST_TSO4
            | HOST_TSO6
            | MRG_RXBUF
            | STATUS
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let features = activation.features;
        let (memory, rings) = Ring::all(activation, 2)?;
        let has = |bit| features & bit != 0;
        let mut offload = 0;
        if has(feature::GUEST_CSUM) {
            // The kernel takes segmentation only with it (VIRTIO 1.2, 5.1.3.1 says the same to drivers).
            offload |= OFFLOAD_CSUM;
            offload |= if has(feature::GUEST_TSO4) { OFFLOAD_TSO4 } else { 0 };
            offload |= if has(feature::GUEST_TSO6) { OFFLOAD_TSO6 } else { 0 };
        }
        let failed = |source| DeviceError::Host { what: "cannot set the offloads of the tap", source };
        self.tap.offload(offload).map_err(failed)?;
        let longest = if offload & (OFFLOAD_TSO4 | OFFLOAD_TSO6) != 0 { PACKET } else { HEADER + 1518 };
        let mut rings = rings.into_iter();
        if let (Some(rx), Some(tx)) = (rings.next(), rings.next()) {
            self.active =
                Some(Active { memory, rx, tx, merge: has(feature::MRG_RXBUF), longest, large: false });
        }
        self.send()?;
        self.receive()
    }

    fn reset(&mut self) {
        self.active = None;
        self.held = 0;
        self.starved = false;
    }

    fn interests(&self) -> Vec<Interest> {
        let Some(active) = &self.active else { return Vec::new() };
        let mut interests = vec![active.rx.interest(RX), active.tx.interest(TX)];
        if self.to_guest.waits() {
            interests.push(self.to_guest.interest(RX_TIMER));
        } else if !self.starved && !self.gone {
            interests.push(Interest { fd: self.tap.as_raw_fd(), events: IN, token: TAP });
        }
        if self.from_guest.waits() {
            interests.push(self.from_guest.interest(TX_TIMER));
        }
        interests
    }

    fn ready(&mut self, token: u64, events: u32) -> Result<(), DeviceError> {
        let Some(active) = &self.active else { return Ok(()) };
        match token {
            TX => active.tx.kicked(),
            RX => active.rx.kicked(),
            TX_TIMER => self.from_guest.rang(),
            RX_TIMER => self.to_guest.rang(),
            // EPOLLERR stays from then on.
            _ => self.gone |= events & 8 != 0,
        }
        if matches!(token, TX | TX_TIMER) { self.send() } else { self.receive() }
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
