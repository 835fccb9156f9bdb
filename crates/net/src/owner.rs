//! Who has a port: read from `/proc`, for the one error message that says so.

use std::fs;
use types::Protocol;

/// Name and pid of the process that has this port bound (listening, for TCP), if it can be found.
pub(crate) fn of_port(port: u16, protocol: Protocol) -> Option<String> {
    let inode = ["", "6"].iter().find_map(|family| {
        let table = format!("/proc/thread-self/net/{}{family}", protocol.as_str());
        inode_in(&fs::read_to_string(table).ok()?, port, protocol)
    })?;
    let wanted = format!("socket:[{inode}]");
    let mut pids =
        fs::read_dir("/proc").ok()?.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        fds.is_ok_and(|fds| {
            fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
                .any(|link| link.as_os_str() == wanted.as_str())
        })
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{}, pid {pid}", name.trim_end()))
}

/// The inode of the socket bound to `port` in a table of `/proc/net` (`proc_net_tcp`, kernel documentation).
fn inode_in(table: &str, port: u16, protocol: Protocol) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let bound = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let right = bound == port && (protocol == Protocol::Udp || state == "0A");
        if right { fields.nth(5)?.parse().ok().filter(|inode| *inode != 0) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let said = of_port(listener.local_addr().unwrap().port(), Protocol::Tcp).unwrap();
        assert!(said.ends_with(&format!("pid {}", std::process::id())), "{said}");
        let socket = std::net::UdpSocket::bind("[::1]:0").unwrap();
        assert!(of_port(socket.local_addr().unwrap().port(), Protocol::Udp).is_some());
    }

    proptest! {
        #[test]
        fn no_table_makes_the_reader_panic(table in "([0-9A-F:]{0,12}[ \n]){0,40}", port: u16) {
            let _ = inode_in(&table, port, Protocol::Udp);
            let _ = inode_in(&table, port, Protocol::Tcp);
        }
    }
}
