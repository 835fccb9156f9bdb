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
    /// A new namespace with one interface on each of these networks: `eth0`, `eth1` … None is left when it was
    /// disconnected from its last.
    Networks(Vec<Attachment>),
}

impl NetworkPlan {
    /// The places on networks; empty where there is no interface of its own.
    pub fn attachments(&self) -> &[Attachment] {
        match self {
            Self::Networks(list) => list,
            Self::Host | Self::None | Self::Container(_) => &[],
        }
    }

    /// Numbers of interfaces that are not taken, the lowest first.
    pub fn free_slots(&self) -> impl Iterator<Item = usize> {
        (0..).filter(|slot| !self.attachments().iter().any(|a| a.slot() == Some(*slot)))
    }
}

/// Limits of an endpoint, bits a second, as its workload sees the directions (CNI's plugin `bandwidth` has the same
/// names).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Of what it receives.
    pub ingress: Option<u64>,
    /// Of what it sends.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// Nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// How endpoints on one interface of the host see each other (`ip-link(8)`, macvlan).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    /// Directly.
    #[default]
    Bridge,
    /// By a switch outside that sends frames back where they came from.
    Vepa,
    /// Not at all.
    Private,
    /// There is but one, which has the interface for itself.
    Passthru,
}

/// An interface of the host on which endpoints are made, in the place of a bridge (driver `macvlan`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Name of the interface.
    pub parent: String,
    /// How its endpoints see each other.
    #[serde(default)]
    pub mode: MacvlanMode,
}

/// What a workload may reach beyond its own ports' clients (`--egress`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Everything that its networks lead to.
    #[default]
    All,
    /// These destinations alone; none at all if the list is empty.
    Only(Vec<EgressRule>),
}

/// One permitted destination: `HOST[:PORT][/tcp|udp]`, or a subnet in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// Where to.
    pub to: EgressTo,
    /// Port; none is every port.
    pub port: Option<u16>,
    /// Transport; none is both (and, without a port, every protocol).
    pub protocol: Option<Protocol>,
}

/// Where an [`EgressRule`] leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressTo {
    /// A subnet, or one address with the full prefix.
    Subnet(IpAddr, u8),
    /// A name, in lower case and without a final dot: the addresses that it resolves to, as long as they are valid.
    /// `*.example.org` stands for every name below that.
    Name(String),
}

/// A bridge on the host, with NAT to the outside unless it is internal.
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
    /// Nothing leads out of it or in from outside: no default route, no published ports.
    #[serde(default)]
    pub internal: bool,
    /// Its sandboxes may reach the host's own services by any of the host's addresses.
    #[serde(default)]
    pub host_access: bool,
    /// Its sandboxes may not reach link-local addresses such as a cloud's metadata service (169.254.0.0/16,
    /// fd00:ec2::254).
    #[serde(default)]
    pub no_metadata: bool,
}

/// One sandbox's place on a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The bridge; made if it is not there.
    pub bridge: BridgePlan,
    /// Full id of the sandbox; names of interfaces and rules are derived from it.
    pub id: String,
    /// Full id of the network.
    pub network: String,
    /// Its name.
    pub network_name: String,
    /// Names by which the sandboxes of this network find this one, the container's own first.
    pub names: Vec<String>,
    /// The default route of the sandbox leads here.
    pub default_route: bool,
    /// What may be reached by this network.
    #[serde(default)]
    pub egress: Egress,
    /// How much may pass.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// It is on an interface of the host: of `bridge`, which is not made, the addresses and the MTU alone count.
    #[serde(default)]
    pub uplink: Option<Uplink>,
    /// This sandbox may reach the host's own services by this network, though others on it may not.
    #[serde(default)]
    pub host_access: bool,
    /// Name of the interface on the host, at most 15 bytes.
    pub host_ifname: String,
    /// Name of the interface inside: `eth0` for the first, and so on.
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

/// The MAC address that a microVM's spare interface is made with, by which its guest knows the slot.
pub fn spare_mac(slot: usize) -> [u8; 6] {
    [0x02, 0x64, 0x68, 0x6f, 0x77, slot as u8]
}

impl Attachment {
    /// Number of its interface: 0 for `eth0`.
    pub fn slot(&self) -> Option<usize> {
        self.ifname.strip_prefix("eth")?.parse().ok()
    }
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
