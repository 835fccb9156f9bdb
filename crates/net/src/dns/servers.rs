//! The servers outside: those that the user gave, or the host's own, as its `resolv.conf` says at the time.

use crate::files::nameservers;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

const FILE: &str = "/etc/resolv.conf";
/// As resolv.conf(5): more are not asked.
const MOST: usize = 3;
/// How long the file is not looked at again.
const TRUST: Duration = Duration::from_secs(1);

/// Whom to ask, in this order.
#[derive(Debug)]
pub(super) struct Servers {
    given: bool,
    list: Vec<SocketAddr>,
    looked: Option<Instant>,
    /// Time and inode of the file that was read.
    mark: Option<(i64, i64, u64)>,
}

impl Servers {
    /// These, or the host's if there is none.
    pub(super) fn new(given: &[IpAddr]) -> Self {
        let list = given.iter().take(MOST).map(|a| SocketAddr::new(*a, super::PORT)).collect();
        Self { given: !given.is_empty(), list, looked: None, mark: None }
    }

    /// The servers as of now.
    pub(super) fn now(&mut self) -> &[SocketAddr] {
        if !self.given && self.looked.is_none_or(|at| at.elapsed() > TRUST) {
            self.looked = Some(Instant::now());
            self.look();
        }
        &self.list
    }

    fn look(&mut self) {
        let mark = std::fs::metadata(FILE).ok().map(|m| (m.mtime(), m.mtime_nsec(), m.ino()));
        if self.mark.is_some() && mark == self.mark {
            return;
        }
        self.mark = mark;
        let text = std::fs::read(FILE).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        self.list = nameservers(&text).filter_map(read).take(MOST).collect();
        if self.list.is_empty() {
            // As resolv.conf(5) says of a file that names none.
            self.list.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), super::PORT));
        }
    }
}

/// Reads an address, with its interface if it is of one link alone.
fn read(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some(SocketAddr::new(text.parse().ok()?, super::PORT)),
        Some((address, link)) => {
            let index = std::path::Path::new("/sys/class/net").join(link).join("ifindex");
            let index = std::fs::read_to_string(index).ok()?.trim().parse().ok()?;
            Some(SocketAddrV6::new(address.parse().ok()?, super::PORT, 0, index).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_servers_are_asked_alone() {
        let given: Vec<IpAddr> = (1..=5).map(|n| Ipv4Addr::new(192, 0, 2, n).into()).collect();
        assert_eq!(Servers::new(&given).now().len(), MOST);
        assert!(!Servers::new(&[]).now().is_empty());
        assert_eq!(read("fe80::1%lo").unwrap().to_string(), "[fe80::1%1]:53");
        assert_eq!((read("x"), read("fe80::1%none"), read("fe80::1%../../x")), (None, None, None));
    }
}
