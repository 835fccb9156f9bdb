//! `/etc/hosts` and `/etc/resolv.conf` of a sandbox, as Docker writes them.
//!
//! Builders of text, but for [`host_resolv_conf`], which reads the host's. Where the files go is the engine's matter.

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};

/// Where systemd-resolved keeps the servers that it asks itself (systemd-resolved.service(8)).
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// As Docker, where the host names no server that a sandbox could reach.
const FALLBACK4: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
const FALLBACK6: [&str; 2] = ["2001:4860:4860::8888", "2001:4860:4860::8844"];

/// What goes into a sandbox's `/etc/hosts`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hosts<'a> {
    /// Name of the sandbox.
    pub hostname: &'a str,
    /// Its domain; may be empty.
    pub domainname: &'a str,
    /// Its addresses; none without a network of its own.
    pub addresses: &'a [IpAddr],
    /// `--add-host`: names and addresses, `host-gateway` resolved by the caller.
    pub extra: &'a [(String, IpAddr)],
    /// With the host's network: the host's own file, which stands in place of the usual entries.
    pub host: Option<&'a str>,
}

/// Builds `/etc/hosts`.
pub fn hosts_file(hosts: &Hosts<'_>) -> String {
    let mut out = match hosts.host {
        Some(own) => {
            let mut own = own.to_owned();
            if !own.is_empty() && !own.ends_with('\n') {
                own.push('\n');
            }
            own
        }
        None => "127.0.0.1\tlocalhost\n\
                 ::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\n\
                 ff00::0\tip6-mcastprefix\n\
                 ff02::1\tip6-allnodes\n\
                 ff02::2\tip6-allrouters\n"
            .to_owned(),
    };
    for (name, address) in hosts.extra {
        let _ = writeln!(out, "{address}\t{name}");
    }
    for address in hosts.addresses {
        if hosts.domainname.is_empty() {
            let _ = writeln!(out, "{address}\t{}", hosts.hostname);
        } else {
            let _ = writeln!(out, "{address}\t{0}.{1} {0}", hosts.hostname, hosts.domainname);
        }
    }
    out
}

/// What a user says about name resolution; empty means the host's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resolv<'a> {
    /// `--dns`.
    pub servers: &'a [String],
    /// `--dns-search`; a single `.` means none.
    pub search: &'a [String],
    /// `--dns-option`.
    pub options: &'a [String],
    /// The sandbox is in the host's network namespace: its file serves as it is.
    pub host_network: bool,
    /// The sandbox has an IPv6 address: IPv6 servers are of use.
    pub ipv6: bool,
    /// `servers` is the one inside ([`crate::dns`]): a name without a dot is tried as it is first, as Docker has it.
    pub named: bool,
}

/// The host's `resolv.conf`, as far as it helps a sandbox with a network of its own: where only the stub of
/// systemd-resolved is named, the file with the servers behind it. Empty if there is none.
pub fn host_resolv_conf(host_network: bool) -> String {
    let read = |path| std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
    let own = read("/etc/resolv.conf").unwrap_or_default();
    let servers: Vec<_> = values(&own, "nameserver").collect();
    if !host_network && !servers.is_empty() && servers.iter().all(|s| *s == "127.0.0.53") {
        return read(RESOLVED).unwrap_or(own);
    }
    own
}

/// Builds `/etc/resolv.conf` (resolv.conf(5)) from the host's and what the user says.
pub fn resolv_conf(host: &str, wanted: &Resolv<'_>) -> String {
    if wanted.host_network
        && wanted.servers.is_empty()
        && wanted.search.is_empty()
        && wanted.options.is_empty()
    {
        return host.to_owned();
    }
    let mut servers: Vec<&str> = wanted.servers.iter().map(String::as_str).collect();
    if servers.is_empty() {
        servers
            .extend(values(host, "nameserver").filter(|s| wanted.host_network || reachable(s, wanted.ipv6)));
    }
    if servers.is_empty() && !wanted.host_network {
        servers.extend(FALLBACK4);
        servers.extend(FALLBACK6.iter().filter(|_| wanted.ipv6));
    }
    let mut search: Vec<&str> = wanted.search.iter().map(String::as_str).collect();
    if search.is_empty() {
        search.extend(last(host, &["search", "domain"]));
    }
    if search == ["."] {
        search.clear();
    }
    let mut options: Vec<&str> = wanted.options.iter().map(String::as_str).collect();
    if options.is_empty() {
        options.extend(
            lines(host).filter(|(key, _)| *key == "options").flat_map(|(_, v)| v.split_ascii_whitespace()),
        );
    }
    if wanted.named && !options.iter().any(|o| o.starts_with("ndots:")) {
        options.push("ndots:0");
    }

    let mut out = String::new();
    for server in servers {
        let _ = writeln!(out, "nameserver {server}");
    }
    if !search.is_empty() {
        let _ = writeln!(out, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(out, "options {}", options.join(" "));
    }
    for (_, order) in lines(host).filter(|(key, _)| *key == "sortlist") {
        let _ = writeln!(out, "sortlist {order}");
    }
    out
}

/// Whether a sandbox with a network of its own can reach this server of the host: not if it is a loopback address,
/// or bound to an interface of the host, or of a family that the sandbox lacks.
fn reachable(server: &str, ipv6: bool) -> bool {
    match server.parse::<IpAddr>() {
        Ok(IpAddr::V4(a)) => !a.is_loopback() && !a.is_unspecified(),
        Ok(IpAddr::V6(a)) => {
            ipv6 && a != Ipv6Addr::LOCALHOST && !a.is_unspecified() && !a.is_unicast_link_local()
        }
        Err(_) => false,
    }
}

/// Directives: keyword and the rest of the line. Comments begin in the first column, with `#` or `;`.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter(|l| !l.starts_with(['#', ';'])).filter_map(|line| {
        let line = line.trim();
        let (key, rest) = line.split_once(|c: char| c.is_ascii_whitespace())?;
        Some((key, rest.trim()))
    })
}

/// The addresses of servers that a file names, in their order.
pub(crate) fn nameservers(text: &str) -> impl Iterator<Item = &str> {
    values(text, "nameserver")
}

/// First word of each directive of that name.
fn values<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    lines(text).filter(move |(key, _)| *key == keyword).filter_map(|(_, v)| v.split_ascii_whitespace().next())
}

/// Words of the last of these directives: they replace one another.
fn last<'a>(text: &'a str, keywords: &[&str]) -> impl Iterator<Item = &'a str> {
    let found = lines(text).filter(|(key, _)| keywords.contains(key)).last();
    found.map(|(_, v)| v.split_ascii_whitespace()).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn hosts_are_dockers() {
        let addresses = ["172.30.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let extra = [("db".to_owned(), "10.0.0.9".parse().unwrap())];
        let hosts = Hosts { hostname: "web", addresses: &addresses, extra: &extra, ..Hosts::default() };
        let text = hosts_file(&hosts);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost"));
        assert!(
            text.ends_with("ff02::2\tip6-allrouters\n10.0.0.9\tdb\n172.30.0.2\tweb\nfd00::2\tweb\n"),
            "{text}"
        );
        let named = hosts_file(&Hosts { domainname: "example.org", ..hosts });
        assert!(named.contains("172.30.0.2\tweb.example.org web\n"));
        let own = Hosts { host: Some("127.0.0.1 me"), extra: &extra, ..Hosts::default() };
        assert_eq!(hosts_file(&own), "127.0.0.1 me\n10.0.0.9\tdb\n");
    }

    #[test]
    fn loopback_servers_are_left_out() {
        let host = "# mine\nnameserver 127.0.0.1\nnameserver 10.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\n\
                    nameserver 2001:db8::53\ndomain a.example\nsearch b.example c.example\noptions ndots:2\noptions rotate\n";
        let v4 = resolv_conf(host, &Resolv::default());
        assert_eq!(v4, "nameserver 10.0.0.53\nsearch b.example c.example\noptions ndots:2 rotate\n");
        let v6 = resolv_conf(host, &Resolv { ipv6: true, ..Resolv::default() });
        assert!(v6.starts_with("nameserver 10.0.0.53\nnameserver 2001:db8::53\n"));
        assert_eq!(resolv_conf(host, &Resolv { host_network: true, ..Resolv::default() }), host);
    }

    #[test]
    fn public_servers_are_the_last_resort() {
        assert_eq!(
            resolv_conf("nameserver 127.0.0.53\n", &Resolv::default()),
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
        );
        assert_eq!(resolv_conf("", &Resolv { ipv6: true, ..Resolv::default() }).lines().count(), 4);
    }

    #[test]
    fn the_user_overrides() {
        let (servers, search, options) = (strings(&["1.1.1.1"]), strings(&["."]), strings(&["ndots:0"]));
        let wanted = Resolv { servers: &servers, search: &search, options: &options, ..Resolv::default() };
        assert_eq!(
            resolv_conf("nameserver 9.9.9.9\nsearch x\n", &wanted),
            "nameserver 1.1.1.1\noptions ndots:0\n"
        );
        let named = Resolv { named: true, options: &[], ..wanted };
        assert_eq!(
            resolv_conf("search x\noptions rotate\n", &named),
            "nameserver 1.1.1.1\noptions rotate ndots:0\n"
        );
        assert_eq!(resolv_conf("options ndots:3\n", &named).lines().last(), Some("options ndots:3"));
        let local = strings(&["127.0.0.1"]);
        assert_eq!(
            resolv_conf("", &Resolv { servers: &local, ..Resolv::default() }),
            "nameserver 127.0.0.1\n"
        );
    }

    proptest! {
        #[test]
        fn any_file_gives_a_file_with_reachable_servers(host in "((nameserver|search|options|#|;|domain| |x)[ \ta-f0-9.:%]{0,20}\n?){0,20}", ipv6: bool) {
            let text = resolv_conf(&host, &Resolv { ipv6, ..Resolv::default() });
            prop_assert!(values(&text, "nameserver").count() > 0);
            for server in values(&text, "nameserver") {
                prop_assert!(reachable(server, ipv6), "{}", server);
            }
            // A fixed point: what was built once is built again.
            prop_assert_eq!(resolv_conf(&text, &Resolv { ipv6, ..Resolv::default() }), text);
        }

        #[test]
        fn no_text_makes_it_panic(host: String) {
            let _ = resolv_conf(&host, &Resolv::default());
        }
    }
}
