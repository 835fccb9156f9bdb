//! What a sandbox's network is to be: decided by the engine, carried out by `net`.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The network of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPlan {
    /// The host's own network namespace.
    Host,
    /// A new namespace with loopback only.
    None,
    /// The namespace of another running container, by full id.
    Container(String),
    /// A new namespace with one interface on a bridge.
    Bridge(Attachment),
}

/// A bridge on the host, with NAT to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgePlan {
    /// Interface name, at most 15 bytes: `dhow0`.
    pub name: String,
    /// The bridge's own IPv4 address, gateway of its sandboxes.
    pub gateway4: Ipv4Addr,
    /// Prefix length of the IPv4 subnet.
    pub prefix4: u8,
    /// The bridge's own IPv6 address; none where IPv6 is off.
    pub gateway6: Option<Ipv6Addr>,
    /// Prefix length of the IPv6 subnet.
    pub prefix6: u8,
    /// MTU of the bridge and of its ports.
    pub mtu: u32,
}

/// One sandbox's place on a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The bridge; made if it is not there.
    pub bridge: BridgePlan,
    /// Full id of the sandbox; names of interfaces and rules are derived from it.
    pub id: String,
    /// Name of the interface on the host, at most 15 bytes.
    pub host_ifname: String,
    /// Name of the interface inside: `eth0`.
    pub ifname: String,
    /// MAC address inside.
    pub mac: [u8; 6],
    /// IPv4 address inside.
    pub ipv4: Ipv4Addr,
    /// IPv6 address inside.
    pub ipv6: Option<Ipv6Addr>,
    /// Published ports, with every host port decided.
    pub ports: Vec<PortBinding>,
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads into a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortBinding {
    /// Address on the host; unspecified means all of that family.
    pub host_ip: IpAddr,
    /// Port on the host; 0 asks for a free one, and `net::publish` answers with its number.
    pub host_port: u16,
    /// Port inside.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
}
