//! Netlink: requests to the kernel's networking (`netlink(7)`, `rtnetlink(7)`, nfnetlink), many in one system call,
//! and a reader of its answers that no bytes can make panic.
//!
//! Knows headers, attributes, acknowledgements and dumps; what the messages mean is for the caller. Everything is
//! synchronous: the kernel carries out rtnetlink and nfnetlink requests within `send(2)`.

mod answer;

pub use answer::{Attributes, Message, attributes, messages, string, u32_of};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Flags of a request (`linux/netlink.h`).
pub mod flags {
    /// It is a request.
    pub const REQUEST: u16 = 0x1;
    /// Part of an answer in several messages.
    pub const MULTI: u16 = 0x2;
    /// The kernel shall answer with an acknowledgement.
    pub const ACK: u16 = 0x4;
    /// All objects, not one (`GET` requests).
    pub const DUMP: u16 = 0x300;
    /// Fails if the object exists (`NEW` requests).
    pub const EXCL: u16 = 0x200;
    /// Makes the object if it does not exist (`NEW` requests).
    pub const CREATE: u16 = 0x400;
    /// Adds to the end of the list (`NEW` requests).
    pub const APPEND: u16 = 0x800;
    /// Replaces the object if it exists (`NEW` requests).
    pub const REPLACE: u16 = 0x100;
}

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
/// The kernel fills answers to a dump up to the size of the reader's buffer, 32 KiB at most.
const RECEIVE: usize = 32 * 1024;
/// A batch from this size on needs more room than sockets have by default (`net.core.wmem_default`).
const LARGE: usize = 64 * 1024;
/// The kernel answers at once; this is for a kernel that does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests that go to the kernel in one system call.
#[derive(Debug, Default)]
pub struct Batch {
    buf: Vec<u8>,
    starts: Vec<usize>,
    nested: Vec<usize>,
}

impl Batch {
    /// No request yet.
    pub fn new() -> Self {
        Self { buf: Vec::with_capacity(1024), starts: Vec::with_capacity(8), nested: Vec::new() }
    }

    /// Starts a request; what follows, until the next one, belongs to it.
    pub fn request(&mut self, kind: u16, flags: u16) -> &mut Self {
        debug_assert!(self.nested.is_empty(), "a nest is still open");
        self.starts.push(self.buf.len());
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        self.buf.extend_from_slice(&[0; 8]);
        self.seal()
    }

    /// Appends the fixed part of the request.
    pub fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(bytes);
        self.pad();
        self.seal()
    }

    /// Appends an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // No caller has a value near 64 KiB; one that had would get a request that the kernel refuses.
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
        self.seal()
    }

    /// Appends a string attribute, with the NUL that the kernel expects.
    pub fn attr_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends a number in host order, as rtnetlink has them.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network order, as nfnetlink has them.
    pub fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute made of attributes.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.buf.len();
        self.nested.push(start);
        self.buf.extend_from_slice(&[0; 2]);
        self.buf.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        inner(self);
        self.nested.pop();
        let len = u16::try_from(self.buf.len() - start).unwrap_or(u16::MAX);
        self.buf[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.seal()
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    fn pad(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }

    /// Keeps the length of the last request right.
    fn seal(&mut self) -> &mut Self {
        if let Some(&start) = self.starts.last() {
            let len = (self.buf.len() - start) as u32;
            self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        }
        self
    }

    fn number(&mut self, first: u32) {
        for (i, &start) in self.starts.iter().enumerate() {
            let seq = first.wrapping_add(i as u32);
            self.buf[start + 8..start + 12].copy_from_slice(&seq.to_ne_bytes());
        }
    }

    fn flag(&mut self, index: usize, flag: u16) {
        if let Some(&start) = self.starts.get(index) {
            let at = start + 6..start + 8;
            let now = u16::from_ne_bytes([self.buf[at.start], self.buf[at.start + 1]]);
            self.buf[at].copy_from_slice(&(now | flag).to_ne_bytes());
        }
    }
}

/// A request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", io::Error::from_raw_os_error(errno.raw_os_error()), if text.is_empty() { String::new() } else { format!(" ({text})") })]
pub struct Refusal {
    /// Which request of the batch.
    pub index: usize,
    /// Why.
    pub errno: Errno,
    /// The kernel's own words, where it has any.
    pub text: String,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let kind = io::Error::from(refusal.errno).kind();
        if refusal.text.is_empty() { refusal.errno.into() } else { Self::new(kind, refusal) }
    }
}

/// The error number behind an error of this module.
pub fn errno(error: &io::Error) -> Option<Errno> {
    let refusal = error.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>());
    refusal.map(|r| r.errno).or_else(|| Errno::from_io_error(error))
}

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes.
    Route,
    /// nf_tables, connection tracking.
    Netfilter,
}

/// A netlink socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
}

impl Socket {
    /// Opens a socket.
    pub fn open(family: Family) -> io::Result<Self> {
        Self::connect(Self::make(family)?)
    }

    /// Opens a socket whose changes are known as ours to who listens for those of others ([`crate::notices`]).
    pub fn open_as_ours(family: Family) -> io::Result<Self> {
        let fd = Self::make(family)?;
        crate::notices::take_address(&fd);
        Self::connect(fd)
    }

    fn make(family: Family) -> io::Result<OwnedFd> {
        let protocol = match family {
            // NETLINK_ROUTE is protocol 0, the default.
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?)
    }

    fn connect(fd: OwnedFd) -> io::Result<Self> {
        // Connected to the kernel: no other process can put words in its mouth.
        rustix::net::connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
        // Both only improve error messages and are missing on old kernels.
        let _ = set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        Ok(Self { fd, seq: 0 })
    }

    /// Opens a socket in another network namespace. The calling thread is in that namespace for a moment.
    pub fn open_in(family: Family, netns: BorrowedFd<'_>) -> io::Result<Self> {
        crate::netns::within(netns, || Self::open(family))?
    }

    /// Makes a change of a link's carrier take effect now. It does so on its own, but from a work queue, and until then
    /// packets are dropped. (`ETHTOOL_GLINK`; a link of that name that is not there is no matter.)
    pub fn settle_link(&self, name: &str) {
        const ETHTOOL_GLINK: u32 = 0xa;
        #[repr(C)]
        struct Value {
            cmd: u32,
            data: u32,
        }
        let mut value = Value { cmd: ETHTOOL_GLINK, data: 0 };
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: SIOCETHTOOL reads the ifreq and reads and writes the value that it points to; both outlive the call.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
    }

    /// Sends all requests and waits until the kernel has carried them out. Answers with those that it refused, in
    /// order. (An nfnetlink batch is all or nothing: one refusal means that nothing was done.)
    pub fn submit(&mut self, mut batch: Batch) -> io::Result<Vec<Refusal>> {
        let count = batch.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        // Errors always come; one acknowledgement at the end says that no more will.
        batch.flag(count - 1, flags::ACK);
        self.exchange(batch, None)
    }

    /// As [`Self::submit`], for nfnetlink transactions: `batch` is put between the messages that begin and end one
    /// (`NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`).
    pub fn transact(&mut self, subsystem: u8, inner: impl FnOnce(&mut Batch)) -> io::Result<Vec<Refusal>> {
        self.transact_at(subsystem, None, inner)
    }

    /// As [`Self::transact`], refused with `ERESTART` if the subsystem is not at that generation any more
    /// (`NFNL_BATCH_GENID`): somebody changed what the transaction was made from.
    pub fn transact_at(
        &mut self,
        subsystem: u8,
        generation: Option<u32>,
        inner: impl FnOnce(&mut Batch),
    ) -> io::Result<Vec<Refusal>> {
        let mut batch = Batch::new();
        let envelope = [0, 0, 0, subsystem];
        batch.request(16, 0).fixed(&envelope);
        if let Some(generation) = generation {
            batch.attr_be32(1, generation);
        }
        inner(&mut batch);
        let count = batch.len();
        if count == 1 {
            return Ok(Vec::new());
        }
        batch.flag(count - 1, flags::ACK);
        batch.request(17, 0).fixed(&envelope);
        self.exchange(batch, Some(count - 1))
    }

    /// Sends one request that the kernel answers with objects, and shows each to `each`.
    pub fn query(&mut self, mut batch: Batch, each: &mut dyn FnMut(&Message<'_>)) -> io::Result<()> {
        let last = batch.len().saturating_sub(1);
        let first = self.send(&mut batch)?;
        let mut buf = vec![0; RECEIVE];
        loop {
            let bytes = self.receive(&mut buf, RecvFlags::empty())?;
            for message in messages(bytes) {
                let index = message.seq.wrapping_sub(first) as usize;
                if index > last {
                    continue;
                }
                match message.kind {
                    NLMSG_ERROR => match message.error(index) {
                        Some(refusal) => return Err(refusal.into()),
                        None if index == last => return Ok(()),
                        None => {}
                    },
                    NLMSG_DONE if index == last => return Ok(()),
                    NLMSG_DONE => {}
                    _ => {
                        each(&message);
                        if message.flags & flags::MULTI == 0 && index == last {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    fn exchange(&mut self, mut batch: Batch, last: Option<usize>) -> io::Result<Vec<Refusal>> {
        let last = last.unwrap_or(batch.len() - 1);
        let count = batch.len();
        let first = self.send(&mut batch)?;
        let mut buf = vec![0; RECEIVE / 4];
        let mut refusals = Vec::new();
        let mut done = false;
        loop {
            // What the kernel had to say was queued before `send` returned: when it is read, all is.
            let wait = if done || !refusals.is_empty() { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
            let bytes = match self.receive(&mut buf, wait) {
                Ok(bytes) => bytes,
                Err(e) if !wait.is_empty() && e.kind() == io::ErrorKind::WouldBlock => return Ok(refusals),
                Err(e) => return Err(e),
            };
            for message in messages(bytes) {
                let index = message.seq.wrapping_sub(first) as usize;
                if index >= count || message.kind != NLMSG_ERROR {
                    continue;
                }
                done |= index == last;
                refusals.extend(message.error(index));
            }
        }
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<u32> {
        self.seq = self.seq.wrapping_add(1);
        let first = self.seq;
        batch.number(first);
        self.seq = first.wrapping_add(batch.len() as u32);
        if batch.buf.len() > LARGE {
            // Without the right to, or on failure, the kernel says below that the message is too long.
            let room = libc::c_int::try_from(batch.buf.len() * 2).unwrap_or(libc::c_int::MAX);
            let _ = set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room);
        }
        loop {
            match rustix::net::send(&self.fd, &batch.buf, SendFlags::empty()) {
                Ok(_) => return Ok(first),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn receive<'b>(&self, buf: &'b mut [u8], flags: RecvFlags) -> io::Result<&'b [u8]> {
        let len = loop {
            match rustix::net::recv(&self.fd, &mut *buf, flags | RecvFlags::TRUNC) {
                Ok((_, len)) => break len,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        buf.get(..len).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "oversized netlink answer"))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RTM_GETLINK: u16 = 18;
    const IFLA_IFNAME: u16 = 3;

    #[test]
    fn the_kernel_tells_its_links() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut batch = Batch::new();
        batch.request(RTM_GETLINK, flags::DUMP).fixed(&[0; 16]);
        let mut names = Vec::new();
        socket.query(batch, &mut |m| names.extend(m.attributes(16).find(IFLA_IFNAME).map(string))).unwrap();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
    }

    #[test]
    fn a_refusal_names_its_request() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut batch = Batch::new();
        for name in ["lo", "no-such-link"] {
            batch.request(RTM_GETLINK, 0).fixed(&[0; 16]).attr_str(IFLA_IFNAME, name);
        }
        let refusals = socket.submit(batch).unwrap();
        assert_eq!(refusals.len(), 1);
        assert_eq!((refusals[0].index, refusals[0].errno), (1, Errno::NODEV));
        // The socket is usable afterwards.
        let mut batch = Batch::new();
        batch.request(RTM_GETLINK, 0).fixed(&[0; 16]).attr_str(IFLA_IFNAME, "lo");
        assert!(socket.query(batch, &mut |_| ()).is_ok());
    }

    #[test]
    fn nests_and_padding_read_back() {
        let mut batch = Batch::new();
        batch.request(1, 0).fixed(&[7; 3]);
        batch.nest(5, |b| {
            b.attr_str(1, "ab").nest(2, |b| {
                b.attr_be32(3, 9);
            });
        });
        batch.request(2, 0);
        let read: Vec<_> = messages(&batch.buf).collect();
        assert_eq!(read.len(), 2);
        let nest = read[0].attributes(3).find(5).unwrap();
        assert_eq!(string(attributes(nest).find(1).unwrap()), "ab");
        let inner = attributes(nest).find(2).unwrap();
        assert_eq!(attributes(inner).find(3), Some(&[0, 0, 0, 9][..]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), fixed in 0usize..64) {
            for message in messages(&bytes) {
                let _ = message.error(0);
                for (_, value) in message.attributes(fixed) {
                    let _ = (string(value), u32_of(value), attributes(value).count());
                }
            }
        }

        #[test]
        fn attributes_read_back(list in proptest::collection::vec((0u16..1000, proptest::collection::vec(any::<u8>(), 0..40)), 0..10)) {
            let mut batch = Batch::new();
            batch.request(1, 0);
            for (kind, value) in &list {
                batch.attr(*kind, value);
            }
            let message = messages(&batch.buf).next().unwrap();
            let read: Vec<_> = message.attributes(0).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(read, list);
        }
    }
}
