//! Who has a port: read from `/proc`, for the one error message that says so.

use std::fs;
use types::Protocol;

/// Who has this port bound (listening, for TCP), if that can be found: the id of the container whose supervisor it is,
/// otherwise name and pid of the process.
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
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if let Some(id) = supervised(&words) {
        return Some(format!("container {id}"));
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{}, pid {pid}", name.trim_end()))
}

/// The short id in a supervisor's command line: `dhow supervise ROOT RUN ID …`.
fn supervised(words: &[u8]) -> Option<&str> {
    let mut words = words.split(|b| *b == 0);
    let id = words.nth(1).filter(|w| *w == b"supervise").and_then(|_| words.nth(2))?;
    let id = std::str::from_utf8(id)
        .ok()
        .filter(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()))?;
    id.get(..12)
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

    #[test]
    fn a_supervisor_is_told_from_other_processes() {
        let id = "0123456789abcdef".repeat(4);
        let line = |words: &[&str]| words.join("\0").into_bytes();
        assert_eq!(
            supervised(&line(&["dhow", "supervise", "/r", "/run", &id, "start"])),
            Some("0123456789ab")
        );
        for other in [
            &["dhow", "run", "/r", "/run", &id][..],
            &["dhow", "supervise", "/r", "/run", "web"],
            &["x"],
            &[],
        ] {
            assert_eq!(supervised(&line(other)), None);
        }
    }

    proptest! {
        #[test]
        fn no_table_makes_the_reader_panic(table in "([0-9A-F:]{0,12}[ \n]){0,40}", port: u16) {
            let _ = inode_in(&table, port, Protocol::Udp);
            let _ = inode_in(&table, port, Protocol::Tcp);
        }
    }
}
