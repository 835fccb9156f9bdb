//! The virtio file system device: directories of the host, for a guest to mount.
//!
//! It takes requests from the queues, copies each to the process that serves the files ([`crate::fs`]), and copies the
//! answers back. It understands nothing of them. When that process is gone, each request fails with EIO.
//!
//! Source: VIRTIO 1.2, section 5.11.

use super::{IN, RING_FEATURES, Ring, read_config};
use crate::fs::{LONGEST, MOST_DATA, NUMBER, OUT_HEADER, refusal};
use crate::virtio::{Activation, Device, DeviceError, Interest, Memory};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

/// Bytes of the tag in configuration space.
const TAG_BYTES: usize = 36;
/// Queues: one for what must not wait behind other requests, one for these.
const QUEUES: usize = 2;
/// Their size.
const QUEUE: u16 = 128;
/// Requests that one event takes from a queue before other events get their turn.
const BATCH: u16 = 32;
/// EPOLLOUT.
const OUT: u32 = 4;
/// The socket's token; queues have their numbers.
const SOCKET: u64 = 100;

/// A request that was sent, or shall be.
struct Request {
    queue: usize,
    head: u16,
    /// Where its answer goes.
    room: Vec<(GuestAddress, u32)>,
}

/// An active device.
struct Active {
    memory: Memory,
    rings: Vec<Ring>,
}

/// The device.
pub struct Fs {
    /// To the server; none when that is gone.
    socket: Option<OwnedFd>,
    active: Option<Active>,
    /// What waits for its answer, by its number.
    sent: HashMap<u64, Request>,
    /// What the socket had no room for.
    stuck: Option<(Request, Vec<u8>)>,
    next: u64,
    buffer: Vec<u8>,
    tag: String,
}

impl Fs {
    /// A device before a server that has the other end of the socket (a SOCK_SEQPACKET), mounted by the name `tag`.
    pub fn new(socket: OwnedFd, tag: &str) -> io::Result<Self> {
        // For the longest message and another one; the host's limit may be lower, and its default does.
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, 4 * LONGEST)?;
        let buffer = vec![0; NUMBER + OUT_HEADER + MOST_DATA];
        let (active, sent, stuck) = (None, HashMap::new(), None);
        Ok(Self { socket: Some(socket), active, sent, stuck, next: 0, buffer, tag: tag.to_owned() })
    }

    /// Sends what the queue has.
    fn serve(&mut self, queue: usize) -> Result<(), DeviceError> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let served = self.serve_ring(&mut active, queue);
        self.active = Some(active);
        served
    }

    fn serve_ring(&mut self, active: &mut Active, queue: usize) -> Result<(), DeviceError> {
        let guard = active.memory.memory();
        let mut turns = 0;
        while self.stuck.is_none() {
            let Some(ring) = active.rings.get_mut(queue) else { return Ok(()) };
            if turns == BATCH {
                ring.again();
                break;
            }
            turns += 1;
            match take(ring, queue, &guard)? {
                Some((request, message)) => self.send(active, &guard, request, message)?,
                None if ring.wait(&guard)? => {}
                None => break,
            }
        }
        active.rings.iter_mut().try_for_each(|ring| ring.signal(&guard))
    }

    /// Sends a request, or fails it where there is nobody to send it to.
    fn send(
        &mut self,
        active: &mut Active,
        memory: &GuestMemoryMmap,
        request: Request,
        mut message: Vec<u8>,
    ) -> Result<(), DeviceError> {
        let number = self.next;
        let Some(prefix) = message.get_mut(..NUMBER) else { return Ok(()) };
        prefix.copy_from_slice(&number.to_le_bytes());
        let sent = match &self.socket {
            Some(socket) => rustix::net::send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            None => Err(Errno::PIPE),
        };
        match sent {
            Ok(_) if request.room.is_empty() => {
                // Nothing is answered to those that forget.
                active.answer(memory, &request, &[])
            }
            Ok(_) => {
                self.next += 1;
                self.sent.insert(number, request);
                // A driver has no more requests on their way than its queues have places.
                match self.sent.len() > QUEUES * usize::from(QUEUE) {
                    true => {
                        Err(DeviceError::Driver("it has more requests than its queues have places".into()))
                    }
                    false => Ok(()),
                }
            }
            Err(Errno::AGAIN) => {
                self.stuck = Some((request, message));
                Ok(())
            }
            Err(_) => {
                let unique = message.get(NUMBER + 8..NUMBER + 16).and_then(|bytes| bytes.try_into().ok());
                let unique = u64::from_le_bytes(unique.unwrap_or_default());
                self.gone(active, memory)?;
                active.answer(memory, &request, &refusal(unique, Errno::IO))
            }
        }
    }

    /// Passes answers on.
    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let received = self.receive_to(&mut active);
        self.active = Some(active);
        received
    }

    fn receive_to(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        let guard = active.memory.memory();
        for _ in 0..BATCH {
            let Some(socket) = &self.socket else { break };
            match rustix::net::recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Ok((length @ 1.., _)) => {
                    let message = self.buffer.get(..length).unwrap_or_default();
                    let Some((number, answer)) = message.split_first_chunk::<{ NUMBER }>() else { continue };
                    // A driver that was reset meanwhile has forgotten its requests.
                    if let Some(request) = self.sent.remove(&u64::from_le_bytes(*number)) {
                        active.answer(&guard, &request, answer)?;
                    }
                }
                Ok(_) | Err(_) => self.gone(active, &guard)?,
            }
        }
        active.rings.iter_mut().try_for_each(|ring| ring.signal(&guard))
    }

    /// The server is gone: what waits for it fails.
    fn gone(&mut self, active: &mut Active, memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        if self.socket.take().is_some() {
            crate::note::note(format_args!(
                "the server of the host's directories is gone: they fail with EIO"
            ));
        }
        let stuck = self.stuck.take().map(|(request, _)| request);
        for request in self.sent.drain().map(|(_, request)| request).chain(stuck) {
            // The driver knows a request by its place.
            active.answer(memory, &request, &refusal(0, Errno::IO))?;
        }
        Ok(())
    }

    /// The socket has room again.
    fn resume(&mut self) -> Result<(), DeviceError> {
        // One after the other: the server may have gone with what was stuck, and the rings are to stay.
        let Some((request, message)) = self.stuck.take() else { return Ok(()) };
        let Some(mut active) = self.active.take() else {
            self.stuck = Some((request, message));
            return Ok(());
        };
        let guard = active.memory.memory();
        let sent = self.send(&mut active, &guard, request, message);
        self.active = Some(active);
        sent
    }
}

impl Active {
    /// Gives a request back to the driver, answered.
    fn answer(
        &mut self,
        memory: &GuestMemoryMmap,
        request: &Request,
        mut answer: &[u8],
    ) -> Result<(), DeviceError> {
        let mut written = 0;
        for (address, length) in &request.room {
            let (now, rest) = answer.split_at(answer.len().min(*length as usize));
            memory
                .write_slice(now, *address)
                .map_err(|_| DeviceError::Driver("the room for an answer does not lie in memory".into()))?;
            written += now.len();
            answer = rest;
        }
        match self.rings.get_mut(request.queue) {
            Some(ring) => ring.used(memory, request.head, written),
            None => Ok(()),
        }
    }
}

/// The next request of a queue: where it came from, and its bytes after room for a number.
fn take(
    ring: &mut Ring,
    queue: usize,
    memory: &GuestMemoryMmap,
) -> Result<Option<(Request, Vec<u8>)>, DeviceError> {
    let broken = |why: String| DeviceError::Driver(format!("queue {queue}: {why}"));
    let Some(chain) = ring.queue.iter(memory).map_err(|e| broken(e.to_string()))?.next() else {
        return Ok(None);
    };
    let mut request = Request { queue, head: chain.head_index(), room: Vec::new() };
    let mut message = vec![0; NUMBER];
    let mut ended = false;
    for (count, descriptor) in chain.enumerate() {
        if count >= usize::from(QUEUE) {
            return Err(broken("a chain is longer than the queue".into()));
        }
        let length = descriptor.len();
        match (descriptor.is_write_only(), request.room.is_empty()) {
            (true, _) => request.room.push((descriptor.addr(), length)),
            (false, true) => {
                let start = message.len();
                if start + length as usize > NUMBER + LONGEST {
                    return Err(broken("a request is longer than any may be".into()));
                }
                message.resize(start + length as usize, 0);
                let bytes = message.get_mut(start..).unwrap_or_default();
                memory.read_slice(bytes, descriptor.addr()).map_err(|e| broken(e.to_string()))?;
            }
            (false, false) => {
                return Err(broken("a chain has a readable buffer after a writable one".into()));
            }
        }
        ended = !descriptor.has_next();
    }
    // The iterator stops silently at a loop, at an index outside of the table and at a table outside of memory.
    if ended { Ok(Some((request, message))) } else { Err(broken("a chain has no end".into())) }
}

impl Device for Fs {
    fn kind(&self) -> u32 {
        26
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE; QUEUES]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = self.tag.clone().into_bytes();
        space.resize(TAG_BYTES, 0);
        // num_request_queues
        space.extend((QUEUES as u32 - 1).to_le_bytes());
        read_config(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let (memory, rings) = Ring::all(activation, QUEUES)?;
        self.active = Some(Active { memory, rings });
        (0..QUEUES).try_for_each(|queue| self.serve(queue))
    }

    fn reset(&mut self) {
        self.active = None;
        self.sent.clear();
        self.stuck = None;
    }

    fn interests(&self) -> Vec<Interest> {
        let Some(active) = &self.active else { return Vec::new() };
        let mut all = Vec::with_capacity(QUEUES + 1);
        if let Some(socket) = &self.socket {
            let events = if self.stuck.is_some() { IN | OUT } else { IN };
            all.push(Interest { fd: socket.as_raw_fd(), events, token: SOCKET });
        }
        // Nothing is taken from the queues that could not be sent.
        if self.stuck.is_none() {
            all.extend((0..).zip(&active.rings).map(|(token, ring)| ring.interest(token)));
        }
        all
    }

    fn ready(&mut self, token: u64, events: u32) -> Result<(), DeviceError> {
        if token == SOCKET {
            let was_stuck = self.stuck.is_some();
            self.receive()?;
            if events & OUT != 0 {
                self.resume()?;
            }
            return match was_stuck && self.stuck.is_none() {
                // What was left in the queues meanwhile.
                true => (0..QUEUES).try_for_each(|queue| self.serve(queue)),
                false => Ok(()),
            };
        }
        let queue = token as usize;
        if let Some(ring) = self.active.as_ref().and_then(|active| active.rings.get(queue)) {
            ring.kicked();
        }
        self.serve(queue)
    }
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
