//! Forgetting connections. The kernel remembers where it led a UDP "connection" for as long as packets come, so a
//! client that never falls silent would be led to a sandbox that is gone, or past one that came. And what it takes for
//! established passes an egress policy: who gets an address shall not go on with the connections of who had it.

use crate::firewall::{Family, Published, number};
use std::net::IpAddr;
use sys::netlink::{Batch, Family as Netlink, Socket};
use types::Protocol;

const CT_DELETE: u16 = (1 << 8) | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const MATCH_SOURCE: u32 = 1;
const MATCH_PROTOCOL: u32 = 1 << 3;
const MATCH_DESTINATION_PORT: u32 = 1 << 5;

/// Forgets what the kernel remembers of UDP traffic to these published ports. Best effort: a kernel without this
/// filter refuses the request, and the memory fades within minutes.
pub(crate) fn forget_udp(list: &[Published]) {
    let mut batch = Batch::new();
    for p in list.iter().filter(|p| p.protocol == Protocol::Udp) {
        let family = if p.family == Family::V4 { 2 } else { 10 };
        // Version 1 says that the family is meant.
        batch.request(CT_DELETE, 0).fixed(&[family, 1, 0, 0]);
        batch.nest(CTA_TUPLE_ORIG, |b| {
            b.nest(CTA_TUPLE_PROTO, |b| {
                b.attr(CTA_PROTO_NUM, &[number(p.protocol)]).attr(CTA_PROTO_DST_PORT, &p.port.to_be_bytes());
            });
        });
        batch.nest(CTA_FILTER, |b| {
            b.attr_u32(CTA_FILTER_ORIG_FLAGS, MATCH_PROTOCOL | MATCH_DESTINATION_PORT);
        });
    }
    submit(batch);
}

/// Forgets every connection that begins or ends at one of these addresses. Best effort, as above (Linux 5.8).
pub(crate) fn forget_all(addresses: impl Iterator<Item = IpAddr>) {
    let mut batch = Batch::new();
    for address in addresses {
        // Who sends first, and who is sent to, whatever address its clients used.
        for (tuple, flags) in
            [(CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS), (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS)]
        {
            batch.request(CT_DELETE, 0).fixed(&[if address.is_ipv4() { 2 } else { 10 }, 1, 0, 0]);
            batch.nest(tuple, |b| {
                b.nest(CTA_TUPLE_IP, |b| {
                    match address {
                        IpAddr::V4(a) => b.attr(CTA_IP_V4_SRC, &a.octets()),
                        IpAddr::V6(a) => b.attr(CTA_IP_V6_SRC, &a.octets()),
                    };
                });
            });
            batch.nest(CTA_FILTER, |b| {
                b.attr_u32(flags, MATCH_SOURCE);
            });
        }
    }
    submit(batch);
}

fn submit(batch: Batch) {
    if !batch.is_empty() {
        let _ = Socket::open(Netlink::Netfilter).and_then(|mut socket| socket.submit(batch));
    }
}
