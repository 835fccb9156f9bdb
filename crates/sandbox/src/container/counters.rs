//! What passed by the network interfaces of a container, as its own kernel counts it (proc_net(5), `/proc/PID/net/dev`).

use crate::hull::Stats;
use types::oci;

/// Adds the figures of each interface but the loopback's. Who is in the host's namespace has none of its own.
pub(super) fn add(stats: &mut Stats, spec: &oci::Spec, pid: i32) {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    let own = namespaces.iter().any(|n| n.typ() == oci::LinuxNamespaceType::Network);
    // A guest's is all its workload's.
    if own || cfg!(not(feature = "host")) {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
        stats.networks = parse(&text);
    }
}

fn parse(text: &str) -> Vec<(String, [u64; 8])> {
    text.lines().filter_map(row).filter(|(name, _)| name != "lo").filter(is_in_use).collect()
}

/// A microVM has interfaces for networks to come.
fn is_in_use((_, figures): &(String, [u64; 8])) -> bool {
    cfg!(feature = "host") || figures.iter().any(|n| *n > 0)
}

/// Eight figures of what was received, of which four count here, and as many of what was sent.
fn row(line: &str) -> Option<(String, [u64; 8])> {
    let (name, rest) = line.split_once(':')?;
    let all: Vec<u64> = rest.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let (received, sent) = (all.get(..4)?, all.get(8..12)?);
    let mut figures = [0; 8];
    figures.iter_mut().zip(received.iter().chain(sent)).for_each(|(to, from)| *to = *from);
    Some((name.trim().to_owned(), figures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_what_is_none_is_left_out() {
        let text = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0: 1234567     21    3    4    5     6          7         8     9876      22    1    2    9     9       9          9\n\
            eth1:bad\n";
        assert_eq!(parse(text), [("eth0".to_owned(), [1_234_567, 21, 3, 4, 9876, 22, 1, 2])]);
        assert_eq!(parse(""), []);
    }
}
