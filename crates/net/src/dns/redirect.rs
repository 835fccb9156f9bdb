//! Port 53 of [`super::ADDRESS`], led to other ports: the workload may want to serve names itself, on port 53 of all its
//! addresses.
//!
//! As `nft` would print it, in the sandbox's own network namespace:
//!
//! ```text
//! table ip dhow-names {
//!     chain output { type filter hook output priority mangle; }
//!         ip daddr 127.0.0.11 udp dport 53 udp dport set U       # questions
//!         ip saddr 127.0.0.11 udp sport U udp sport set 53       # and their answers
//!         ip daddr 127.0.0.11 tcp dport 53 tcp dport set T       # and the same of TCP
//!         ip saddr 127.0.0.11 tcp sport T tcp sport set 53
//! }
//! ```
//!
//! Ports are written over, packet by packet: address translation would have the kernel track every connection of the
//! workload.

use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use sys::netlink::{Batch, Family, Socket, errno, flags};

const TABLE: &str = "dhow-names";
const CHAIN: &str = "output";
const SUBSYS_NFTABLES: u8 = 10;
const NFPROTO_IPV4: u8 = 2;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;

/// The mangle table's place.
const PRIORITY: i32 = -150;
const HOOK_OUTPUT: u32 = 3;
/// The first 4-byte register.
const REG: u32 = 8;
const PORT: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Where source and destination are in the network header, and in those of UDP and TCP.
const SOURCE: (u32, u32) = (12, 0);
const DESTINATION: (u32, u32) = (16, 2);

/// The ports that really listen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) udp: u16,
    pub(super) tcp: u16,
}

/// Opens a socket to the firewall of a namespace; of the caller's own if none is given.
pub(super) fn open(netns: Option<BorrowedFd<'_>>) -> io::Result<Socket> {
    match netns {
        Some(netns) => Socket::open_in(Family::Netfilter, netns),
        None => Socket::open(Family::Netfilter),
    }
}

/// Leads port 53 to these ports, in the place of those before.
pub(super) fn lead(socket: &mut Socket, ports: Ports) -> io::Result<()> {
    match load(socket, ports, false) {
        // A supervisor before this one led it elsewhere. Never at a first start, as the kernel frees rules slowly.
        Err(e) if errno(&e) == Some(Errno::EXIST) => load(socket, ports, true),
        done => done,
    }
}

fn load(socket: &mut Socket, ports: Ports, replace: bool) -> io::Result<()> {
    let refusals = socket.transact(SUBSYS_NFTABLES, |batch| {
        if replace {
            request(batch, DELTABLE, 0).attr_str(1, TABLE);
        }
        request(batch, NEWTABLE, flags::CREATE | flags::EXCL).attr_str(1, TABLE);
        request(batch, NEWCHAIN, flags::CREATE).attr_str(1, TABLE).attr_str(3, CHAIN);
        batch.nest(4, |b| {
            b.attr_be32(1, HOOK_OUTPUT).attr(2, &PRIORITY.to_be_bytes());
        });
        batch.attr_str(7, "filter");
        for (protocol, port) in [(UDP, ports.udp), (TCP, ports.tcp)] {
            rule(batch, protocol, DESTINATION, PORT, port);
            rule(batch, protocol, SOURCE, port, PORT);
        }
    })?;
    refusals.into_iter().next().map_or(Ok(()), |refusal| Err(refusal.into()))
}

fn request(batch: &mut Batch, message: u16, flags: u16) -> &mut Batch {
    let kind = (u16::from(SUBSYS_NFTABLES) << 8) | message;
    batch.request(kind, flags).fixed(&[NFPROTO_IPV4, 0, 0, 0])
}

/// Has the port `from` of our address, at that place of the headers, become `to`.
fn rule(batch: &mut Batch, protocol: u8, (address, place): (u32, u32), from: u16, to: u16) {
    request(batch, NEWRULE, flags::CREATE | flags::APPEND).attr_str(1, TABLE).attr_str(2, CHAIN);
    batch.nest(4, |list| {
        // Network header (1), the address.
        load_bytes(list, 1, address, 4);
        compare(list, &super::ADDRESS.octets());
        // meta l4proto
        expression(list, "meta", |b| {
            b.attr_be32(2, 16).attr_be32(1, REG);
        });
        compare(list, &[protocol]);
        // Transport header (2), the port.
        load_bytes(list, 2, place, 2);
        compare(list, &from.to_be_bytes());
        expression(list, "immediate", |b| {
            b.attr_be32(1, REG).nest(2, |b| {
                b.attr(1, &to.to_be_bytes());
            });
        });
        expression(list, "payload", |b| {
            b.attr_be32(5, REG).attr_be32(2, 2).attr_be32(3, place).attr_be32(4, 2);
            // The checksum is the internet's (1), and stands there.
            b.attr_be32(6, 1).attr_be32(7, if protocol == UDP { 6 } else { 16 });
        });
    });
}

fn expression(list: &mut Batch, name: &str, data: impl FnOnce(&mut Batch)) {
    list.nest(1, |b| {
        b.attr_str(1, name).nest(2, data);
    });
}

fn load_bytes(list: &mut Batch, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |b| {
        b.attr_be32(1, REG).attr_be32(2, base).attr_be32(3, offset).attr_be32(4, length);
    });
}

fn compare(list: &mut Batch, value: &[u8]) {
    expression(list, "cmp", |b| {
        b.attr_be32(1, REG).attr_be32(2, 0).nest(3, |b| {
            b.attr(1, value);
        });
    });
}
