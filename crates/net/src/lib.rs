//! The network of a sandbox: bridge, veth pair, addresses, published ports, firewall.
//!
//! Carries out what the engine decided ([`types::NetworkPlan`]); keeps nothing but what the kernel keeps. All of it
//! goes over netlink sockets: no program is started. In the order of a start:
//!
//! ```text
//! ensure_bridge ─► (namespace made) attach ─► publish ─► configure_inside, in the namespace ─► … ─► detach
//! ```
//!
//! Names are served beside it, see [`dns`]. Not here: which addresses are leased (the engine's database), parsing of `-p`
//! (front ends).
#![forbid(unsafe_code)]

mod bandwidth;
mod bridge;
mod conntrack;
pub mod dns;
pub mod egress;
mod endpoint;
mod error;
mod files;
mod firewall;
mod ipam;
mod link;
pub mod machine;
mod macvlan;
mod owner;
mod proxy;
mod publish;
mod repair;
mod sweep;
mod sysctl;
mod watch;

#[cfg(test)]
mod tests;

pub use bridge::{ensure_bridge, ensure_bridge_alone, remove_bridge};
pub use endpoint::{
    Left, attach, attach_tap, configure_in, configure_inside, connect, detach, disconnect_others,
    is_attached, join_tap, leave, leave_tap, no_routing, remove_ends, remove_rest, spare_tap, unlink,
};
pub use error::NetError;
pub use files::{Hosts, Resolv, host_resolv_conf, hosts_file, resolv_conf};
pub use ipam::{
    MAX_INTERFACES, Route, Subnets, choose_subnets, host_ifname, interface_exists, ipv6_for, mac_from_ipv4,
    next_free, routes,
};
pub use publish::{Published, publish};
pub use repair::repair;
pub use sweep::{Swept, sweep, sweep_forsaken};
pub use watch::{Watch, restore};
