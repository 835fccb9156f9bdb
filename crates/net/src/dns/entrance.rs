//! The sockets on which a sandbox's workload asks: UDP and TCP on [`super::ADDRESS`], inside.

use super::redirect::{self, Ports};
use super::{ADDRESS, PORT};
use crate::link;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{BorrowedFd, OwnedFd};
use sys::netlink::{Batch, Family, Socket};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The two sockets; neither blocks.
#[derive(Debug)]
pub struct Entrance {
    /// Questions in datagrams.
    pub udp: OwnedFd,
    /// Listens for connections.
    pub tcp: OwnedFd,
}

impl Entrance {
    /// Opens them in the network namespace of the calling thread.
    pub fn here() -> io::Result<Self> {
        Self::open(None, Self::bind)
    }

    /// Opens them in another network namespace.
    pub fn within(netns: BorrowedFd<'_>) -> io::Result<Self> {
        // Before its interface is up, the address is nobody's: a socket that is bound to it answers from another.
        let mut links = Socket::open_in(Family::Route, netns)?;
        let mut batch = Batch::new();
        link::loopback_up(&mut batch);
        link::run(&mut links, batch, &[])?;
        Self::open(Some(netns), |port| sys::netns::within(netns, || Self::bind(port))?)
    }

    /// Other ports, to which port 53 is led, leave that to the workload's own servers of names. Where the kernel has no
    /// nf_tables it is port 53 itself.
    fn open(netns: Option<BorrowedFd<'_>>, bind: impl Fn(u16) -> io::Result<Self>) -> io::Result<Self> {
        let led = || -> io::Result<Self> {
            let mut rules = redirect::open(netns)?;
            let entrance = bind(0)?;
            redirect::lead(&mut rules, entrance.ports()?)?;
            Ok(entrance)
        };
        led().or_else(|_| bind(PORT))
    }

    fn bind(port: u16) -> io::Result<Self> {
        let address = SocketAddrV4::new(ADDRESS, port);
        let open = |kind| -> Result<OwnedFd, Errno> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
            if kind == SocketType::STREAM {
                set_socket_reuseaddr(&socket, true)?;
            }
            rustix::net::bind(&socket, &address)?;
            Ok(socket)
        };
        let (udp, tcp) = (open(SocketType::DGRAM)?, open(SocketType::STREAM)?);
        rustix::net::listen(&tcp, BACKLOG)?;
        Ok(Self { udp, tcp })
    }

    fn ports(&self) -> io::Result<Ports> {
        let port = |socket| -> io::Result<u16> {
            Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?).map_err(|_| Errno::INVAL)?.port())
        };
        Ok(Ports { udp: port(&self.udp)?, tcp: port(&self.tcp)? })
    }
}
