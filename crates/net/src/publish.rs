//! Published ports: a port of the host is reserved by a real socket, and traffic to it is led into the sandbox by
//! destination NAT, so that the workload sees its clients' addresses.
//!
//! What NAT cannot do falls through to the socket and is proxied ([`crate::proxy`]): IPv6 loopback and link-local
//! clients, IPv6 clients of a sandbox without IPv6, and everything where the kernel has no nf_tables or somebody
//! flushed our rules.

use crate::proxy::Proxy;
use crate::{NetError, conntrack, firewall, owner};
use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use sys::netlink::Socket;
use types::{Attachment, PortBinding, Protocol};

/// Pending connections per listening socket; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How often a free port is drawn that must be free for two families.
const DRAWS: usize = 64;

/// The published ports of a running sandbox, reserved until [`Self::withdraw`] or until this is dropped; the rules are
/// [`crate::detach`]'s if nobody withdrew them.
#[derive(Debug)]
pub struct Published {
    bindings: Vec<PortBinding>,
    proxy: Option<Proxy>,
    led: Vec<firewall::Published>,
    /// Kept because closing a socket to nf_tables waits for the kernel to free what was removed: milliseconds, which
    /// are better spent when the supervisor's process ends than before it has told that the sandbox has.
    rules: Option<Socket>,
}

impl Published {
    /// The ports with every number decided.
    pub fn bindings(&self) -> &[PortBinding] {
        &self.bindings
    }

    /// Readable when [`Self::serve`] has something to do; none if no port is published.
    pub fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.proxy.as_ref().map(Proxy::poll_fd)
    }

    /// Gives the ports back and takes back the rules, as [`crate::detach`] does, but without waiting for the kernel to
    /// free those: dropping this does, which may take some milliseconds. Drop it when nobody waits any more.
    pub fn withdraw(&mut self) -> Result<(), NetError> {
        self.proxy = None;
        let list = std::mem::take(&mut self.led);
        let done = match &mut self.rules {
            Some(rules) => firewall::withdraw(rules, &list),
            None => Ok(()),
        };
        conntrack::forget_udp(&list);
        done
    }

    /// Whether the firewall still leads them, or never did.
    pub(crate) fn is_led(&self, rules: &mut Socket) -> bool {
        self.rules.is_none() || firewall::are_published(rules, &self.led)
    }

    /// Leads the ports again, after somebody took the rules away.
    pub(crate) fn lead_again(&mut self) -> Result<(), NetError> {
        match &mut self.rules {
            Some(rules) => firewall::publish(rules, &self.led),
            None => Ok(()),
        }
    }

    /// Does what proxied connections want done now; never blocks.
    pub fn serve(&mut self) {
        if let Some(proxy) = &mut self.proxy {
            proxy.serve();
        }
    }
}

/// Reserves the attachment's ports on the host and leads them into the sandbox. May be repeated after the death of
/// whoever held them.
pub fn publish(attachment: &Attachment) -> Result<Published, NetError> {
    if attachment.ports.is_empty() {
        return Ok(Published { bindings: Vec::new(), proxy: None, led: Vec::new(), rules: None });
    }
    let reserved = reserve_all(&attachment.ports)?;
    let bindings: Vec<_> = reserved.iter().map(|(binding, _)| binding.clone()).collect();
    let mut proxy = Proxy::new().map_err(NetError::system("make an epoll descriptor"))?;
    for (binding, socket) in reserved {
        proxy
            .listen(socket, binding.protocol, target(&binding, attachment))
            .map_err(NetError::system("watch a published port"))?;
    }
    let led = translated(&bindings, attachment);
    let rules = lead(&led, attachment)?;
    Ok(Published { bindings, proxy: Some(proxy), led, rules })
}

/// Takes back the rules of a sandbox's published ports: all that lead to its addresses, since whoever decided a port
/// may have died before it told anybody.
pub(crate) fn withdraw(attachment: &Attachment) -> Result<(), NetError> {
    if attachment.ports.is_empty() {
        return Ok(());
    }
    let mut list = Vec::new();
    let done = firewall::open().and_then(|mut rules| {
        for family in [firewall::Family::V4, firewall::Family::V6] {
            match firewall::published_in(&mut rules, family) {
                Err(e) if firewall::is_missing(&e) => {}
                found => list.extend(found?),
            }
        }
        let ours = |a: IpAddr| a == attachment.ipv4 || attachment.ipv6.is_some_and(|own| a == own);
        list.retain(|p| ours(p.target));
        firewall::withdraw(&mut rules, &list)
    });
    conntrack::forget_udp(&list);
    match done {
        Err(e) if firewall::is_missing(&e) => Ok(()),
        done => done,
    }
}

/// Where the proxy connects to.
fn target(binding: &PortBinding, attachment: &Attachment) -> SocketAddr {
    let address = match (binding.host_ip, attachment.ipv6) {
        (IpAddr::V6(_), Some(ipv6)) => ipv6.into(),
        _ => attachment.ipv4.into(),
    };
    SocketAddr::new(address, binding.container_port)
}

fn translated(bindings: &[PortBinding], attachment: &Attachment) -> Vec<firewall::Published> {
    bindings.iter().filter_map(|b| firewall::Published::of(b, attachment)).collect()
}

/// Adds the rules, and answers with the socket to nf_tables; none where there is no nf_tables.
fn lead(list: &[firewall::Published], attachment: &Attachment) -> Result<Option<Socket>, NetError> {
    if list.is_empty() {
        return Ok(None);
    }
    let done = firewall::open().and_then(|mut rules| {
        match firewall::publish(&mut rules, list) {
            // Somebody flushed the rules since the bridge was ensured.
            Err(e) if firewall::is_absent(&e) => {
                firewall::install(&mut rules, &attachment.bridge)?;
                firewall::publish(&mut rules, list)?;
            }
            done => done?,
        }
        Ok(rules)
    });
    match done {
        Err(e) if firewall::is_missing(&e) => Ok(None),
        Err(e) => Err(e),
        Ok(rules) => {
            conntrack::forget_udp(list);
            Ok(Some(rules))
        }
    }
}

/// Binds every port. Bindings of one container port that differ only in the address family, both with port 0, get
/// the same number, as Docker's do.
fn reserve_all(wanted: &[PortBinding]) -> Result<Vec<(PortBinding, OwnedFd)>, NetError> {
    let mut done: Vec<(PortBinding, OwnedFd)> = Vec::with_capacity(wanted.len());
    let mut rest = wanted;
    while let Some((first, tail)) = rest.split_first() {
        let twin = tail.first().filter(|t| {
            first.host_port == 0
                && t.host_port == 0
                && (t.container_port, t.protocol) == (first.container_port, first.protocol)
                && t.host_ip.is_ipv4() != first.host_ip.is_ipv4()
        });
        match twin {
            Some(twin) => {
                done.extend(reserve_twins(first, twin)?);
                rest = tail.get(1..).unwrap_or_default();
            }
            None => {
                done.extend(reserve(first)?);
                rest = tail;
            }
        }
    }
    Ok(done)
}

fn reserve_twins(first: &PortBinding, twin: &PortBinding) -> Result<Vec<(PortBinding, OwnedFd)>, NetError> {
    let mut failed = None;
    for _ in 0..DRAWS {
        let Some(one) = reserve(first)? else { return Ok(reserve(twin)?.into_iter().collect()) };
        match reserve(&PortBinding { host_port: one.0.host_port, ..twin.clone() }) {
            Ok(two) => return Ok(std::iter::once(one).chain(two).collect()),
            Err(e @ NetError::PortInUse { .. }) => failed = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(failed.unwrap_or_else(|| no_free_port(first.host_ip)))
}

/// Binds one port. Every IPv6 address of a host without IPv6 is no address: `None`.
fn reserve(binding: &PortBinding) -> Result<Option<(PortBinding, OwnedFd)>, NetError> {
    let address = SocketAddr::new(binding.host_ip, binding.host_port);
    match bind(address, binding.protocol) {
        Ok((socket, port)) => Ok(Some((PortBinding { host_port: port, ..binding.clone() }, socket))),
        Err(Errno::AFNOSUPPORT) if address.is_ipv6() && address.ip().is_unspecified() => Ok(None),
        Err(Errno::ADDRINUSE) if address.port() == 0 => Err(no_free_port(binding.host_ip)),
        Err(Errno::ADDRINUSE) => {
            Err(NetError::PortInUse { address, owner: owner::of_port(address.port(), binding.protocol) })
        }
        Err(e) => Err(NetError::Bind { address, source: e.into() }),
    }
}

fn bind(address: SocketAddr, protocol: Protocol) -> Result<(OwnedFd, u16), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of a former holder in TIME-WAIT are no obstacle. (On UDP it would let two share the port.)
        set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((socket, bound.port()))
}

fn no_free_port(address: IpAddr) -> NetError {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_ascii_whitespace().map_while(|n| n.parse().ok());
    let (from, to) = (ends.next().unwrap_or(32768), ends.next().unwrap_or(60999));
    NetError::NoFreePort { address, from, to }
}
