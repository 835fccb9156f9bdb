//! What can go wrong with a sandbox's network.

use std::io;
use std::net::SocketAddr;
use types::{ErrorKind, Kinded};

/// Why the network of a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A link, address or route could not be made.
    #[error("cannot {action} {name}: {source}")]
    Link {
        /// What was to be done: `create bridge`.
        action: &'static str,
        /// With which interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A kernel parameter could not be set.
    #[error("cannot set {path} to {value}: {source}")]
    Sysctl {
        /// The file.
        path: String,
        /// The value.
        value: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The firewall refused the rules.
    #[error("cannot {action} in the firewall (nf_tables): {source}")]
    Firewall {
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// What leaves by an interface of the host's passes none of our rules.
    #[error(
        "an egress policy cannot be enforced on network {network}, which is not a bridge: use a bridge network"
    )]
    EgressOnUplink {
        /// Its name.
        network: String,
    },
    /// This kernel cannot hold a sandbox to its egress policy, so the sandbox does not start.
    #[error("the egress policy of {id} cannot be enforced on this kernel: {source}")]
    EgressUnsupported {
        /// Full id of the sandbox.
        id: String,
        /// What it lacks.
        source: Box<Self>,
    },
    /// This kernel cannot shut an internal network in.
    #[error("the internal network of bridge {bridge} cannot be isolated on this kernel: {source}")]
    InternalUnsupported {
        /// Name of the bridge.
        bridge: String,
        /// What it lacks.
        source: Box<Self>,
    },
    /// Somebody has that port.
    #[error(
        "Bind for {address} failed: port is already allocated{}",
        owner.as_deref().map(|o| format!(" (by {o})")).unwrap_or_default()
    )]
    PortInUse {
        /// Where.
        address: SocketAddr,
        /// Who has it, where that can be found out: a container by its id, or a process by name and pid.
        owner: Option<String>,
    },
    /// The address and port cannot be bound for another reason.
    #[error("Bind for {address} failed: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No port is free.
    #[error("no free port on {address} in the range {from}-{to} (net.ipv4.ip_local_port_range)")]
    NoFreePort {
        /// Address on the host.
        address: std::net::IpAddr,
        /// First port tried.
        from: u16,
        /// Last port tried.
        to: u16,
    },
    /// The interface that a macvlan network is on is not there.
    #[error("the network's parent interface {parent} is not on this host")]
    NoParent {
        /// Its name.
        parent: String,
    },
    /// What passes by an interface of the host is not seen by its firewall.
    #[error(
        "an egress policy cannot be enforced on a macvlan network (parent {parent}), as its traffic does not pass this host's firewall: use a bridge network"
    )]
    UplinkUnconfined {
        /// The host's interface.
        parent: String,
    },
    /// A network that a running microVM cannot be connected to.
    #[error(
        "a microVM is connected to a macvlan network at its start only: stop it, connect it to {network}, and start it again"
    )]
    NotLive {
        /// The network's name.
        network: String,
    },
    /// A running microVM has no device for a further network.
    #[error(
        "the microVM has no interface left for network {network}, as those are fixed while it runs: stop it, connect it, and start it again"
    )]
    NoSpare {
        /// The network's name.
        network: String,
    },
    /// What was free when the network was made is somebody else's now.
    #[error(
        "the subnet of bridge {bridge} ({subnet}) is in use on this host: {other} is on {interface}; remove that, or make the network anew with another subnet"
    )]
    SubnetTaken {
        /// Name of the bridge that cannot be made.
        bridge: String,
        /// Its address and prefix.
        subnet: String,
        /// Address or route that is in the way.
        other: String,
        /// And the interface that has it.
        interface: String,
    },
    /// It cannot be told which sandboxes run, so nothing may be taken for dead.
    #[error("cannot tell which containers run on the networks: nothing was removed")]
    Unknown,
    /// Every candidate overlaps a route of the host.
    #[error("no private IPv4 subnet is free: every candidate overlaps a route of this host")]
    NoFreeSubnet,
    /// A descriptor or socket could not be made.
    #[error("cannot {action}: {source}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NetError {
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    pub(crate) fn link<'a>(action: &'static str, name: &'a str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Link { action, name: name.to_owned(), source }
    }
}

impl Kinded for NetError {
    fn kind(&self) -> ErrorKind {
        let source = match self {
            Self::PortInUse { .. } | Self::SubnetTaken { .. } => return ErrorKind::Conflict,
            Self::Unknown => return ErrorKind::Internal,
            Self::EgressUnsupported { .. }
            | Self::EgressOnUplink { .. }
            | Self::InternalUnsupported { .. } => {
                return ErrorKind::Unsupported;
            }
            Self::NoFreePort { .. } | Self::NoFreeSubnet => return ErrorKind::Exhausted,
            Self::NoParent { .. } => return ErrorKind::NotFound,
            Self::NotLive { .. } | Self::NoSpare { .. } | Self::UplinkUnconfined { .. } => {
                return ErrorKind::Unsupported;
            }
            Self::Link { source, .. }
            | Self::Sysctl { source, .. }
            | Self::Firewall { source, .. }
            | Self::Bind { source, .. }
            | Self::System { source, .. } => source,
        };
        match source.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            io::ErrorKind::AddrNotAvailable => ErrorKind::Invalid,
            _ => ErrorKind::Internal,
        }
    }
}
