//! What becomes of a query: an answer of our own, a question to the servers outside, or a refusal.
//!
//! | asked for | answer |
//! |---|---|
//! | a name of an own network | its addresses of that family, which may be none |
//! | an address of an own network | the name of who has it, or that nobody has |
//! | any other name, and a network that leads outside has no policy | that of the servers outside |
//! | any other name, and a rule of the policy names it | the same, once its addresses are permitted |
//! | any other name | REFUSED |

use super::message::{Query, Record, kind, reverse};
use super::registry::View;
use std::net::IpAddr;
use types::{Attachment, Egress, EgressRule, EgressTo};

/// What is done about a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The name is known, and these are its records of the kind that is wanted.
    Known(Vec<Record>),
    /// It would be one of ours, and is not.
    Nobody,
    /// Those outside may know it.
    Ask,
    /// It is none of this workload's business.
    Refuse,
}

/// Decides; `turn` is where the addresses of one name begin.
pub(super) fn decide(query: &Query<'_>, view: &View, attachments: &[Attachment], turn: usize) -> Verdict {
    let outside = if may_ask(query.name.as_deref(), attachments) { Verdict::Ask } else { Verdict::Refuse };
    let Some(name) = query.name.as_deref().filter(|_| query.is_internet()) else { return outside };
    if let Some(found) = view.name(name) {
        let v4 = found.ipv4.iter().map(|a| IpAddr::V4(*a));
        let v6 = found.ipv6.iter().map(|a| IpAddr::V6(*a));
        let mut addresses: Vec<IpAddr> = match query.kind {
            kind::A => v4.collect(),
            kind::AAAA => v6.collect(),
            kind::ANY => v4.chain(v6).collect(),
            _ => Vec::new(),
        };
        let first = turn.checked_rem(addresses.len()).unwrap_or_default();
        addresses.rotate_left(first);
        return Verdict::Known(addresses.into_iter().map(Record::Address).collect());
    }
    if let Some(address) = reverse(name) {
        if let Some(name) = view.address(address).filter(|_| matches!(query.kind, kind::PTR | kind::ANY)) {
            return Verdict::Known(vec![Record::Name(name)]);
        }
        if attachments.iter().any(|a| super::is_named(a) && is_on(a, address)) {
            return Verdict::Nobody;
        }
    }
    outside
}

/// Whether an address is of the network of an attachment.
fn is_on(attachment: &Attachment, address: IpAddr) -> bool {
    let bridge = &attachment.bridge;
    match (address, bridge.gateway6) {
        (IpAddr::V4(a), _) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bridge.prefix4.min(32))).unwrap_or(0);
            (u32::from(a) ^ u32::from(bridge.gateway4)) & mask == 0
        }
        (IpAddr::V6(a), Some(gateway)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bridge.prefix6.min(128))).unwrap_or(0);
            (u128::from(a) ^ u128::from(gateway)) & mask == 0
        }
        (IpAddr::V6(_), None) => false,
    }
}

/// Whether the servers outside may be asked: on behalf of a network that leads there.
fn may_ask(name: Option<&str>, attachments: &[Attachment]) -> bool {
    let outward = || attachments.iter().filter(|a| !a.bridge.internal);
    outward().any(|a| a.egress == Egress::All)
        || name.is_some_and(|name| outward().any(|a| rules(a, name).next().is_some()))
}

/// The rules that permit what a name resolves to, with their places in the policy.
pub(super) fn rules<'a>(
    attachment: &'a Attachment,
    name: &'a str,
) -> impl Iterator<Item = (usize, &'a EgressRule)> {
    let list = match &attachment.egress {
        Egress::All => &[][..],
        Egress::Only(list) => list,
    };
    let names =
        move |rule: &EgressRule| matches!(&rule.to, EgressTo::Name(pattern) if matches(pattern, name));
    list.iter().enumerate().filter(move |(_, rule)| names(rule))
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        // `.example.org`, with something before it.
        Some(end) => end.starts_with('.') && name.len() > end.len() && name.ends_with(end),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::query;
    use super::*;
    use crate::dns::registry::announce;
    use crate::tests::attachment;

    fn rule(to: &str) -> EgressRule {
        EgressRule { to: EgressTo::Name(to.into()), port: Some(443), protocol: None }
    }

    fn verdict(
        name: &str,
        kind: u16,
        attachments: &[Attachment],
        run: &std::path::Path,
        turn: usize,
    ) -> Verdict {
        let mut view = View::new(run, attachments);
        view.refresh();
        decide(&Query::parse(&query(name, kind, None)).unwrap(), &view, attachments, turn)
    }

    fn addresses(list: &[Ipv4]) -> Verdict {
        Verdict::Known(list.iter().map(|a| Record::Address((*a).into())).collect())
    }
    use std::net::Ipv4Addr as Ipv4;

    #[test]
    fn own_names_are_answered_in_turn() {
        let run = tempfile::tempdir().unwrap();
        let named = |n, names: &[&str]| Attachment {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            ipv6: None,
            ..attachment(n, Vec::new())
        };
        announce(run.path(), &named(2, &["one", "both"])).unwrap();
        announce(run.path(), &named(3, &["two", "both"])).unwrap();
        let own = [named(4, &[])];
        let (a, b) = (Ipv4::new(172, 30, 0, 2), Ipv4::new(172, 30, 0, 3));
        let ask = |name: &str, kind, turn| verdict(name, kind, &own, run.path(), turn);
        assert_eq!(ask("ONE", kind::A, 5), addresses(&[a]));
        assert_eq!(ask("both", kind::A, 0), addresses(&[a, b]));
        assert_eq!(ask("both", kind::A, 1), addresses(&[b, a]));
        assert_eq!(ask("both.test", kind::ANY, 2), addresses(&[a, b]));
        // A name without addresses of the family, or records of the kind, is a name all the same.
        assert_eq!(ask("one", kind::AAAA, 0), Verdict::Known(Vec::new()));
        assert_eq!(ask("one", 15, 0), Verdict::Known(Vec::new()));
        assert_eq!(
            ask("2.0.30.172.in-addr.arpa", kind::PTR, 0),
            Verdict::Known(vec![Record::Name("one.test".into())])
        );
        assert_eq!(ask("9.0.30.172.in-addr.arpa", kind::PTR, 0), Verdict::Nobody);
        assert_eq!(ask("9.0.31.172.in-addr.arpa", kind::PTR, 0), Verdict::Ask);
        assert_eq!(ask("other", kind::A, 0), Verdict::Ask);
    }

    #[test]
    fn policies_decide_who_is_asked() {
        let run = tempfile::tempdir().unwrap();
        let open = attachment(2, Vec::new());
        let mut internal = open.clone();
        internal.bridge.internal = true;
        let bound = Attachment {
            egress: Egress::Only(vec![rule("api.example.org"), rule("*.example.net")]),
            ..open.clone()
        };
        announce(run.path(), &Attachment { names: vec!["db".into()], ..open.clone() }).unwrap();
        let ask = |list: &[Attachment], name: &str| verdict(name, kind::A, list, run.path(), 0);
        let own = [internal.clone()];
        assert_eq!(ask(&own, "example.org"), Verdict::Refuse);
        assert_eq!(ask(&own, "db"), addresses(&[open.ipv4]));
        let own = [bound.clone(), internal];
        for (name, expected) in [
            ("api.example.org", Verdict::Ask),
            ("x.example.net", Verdict::Ask),
            ("a.b.example.net", Verdict::Ask),
            ("example.net", Verdict::Refuse),
            ("evilexample.net", Verdict::Refuse),
            ("example.org", Verdict::Refuse),
            ("x.api.example.org", Verdict::Refuse),
            ("9.0.31.172.in-addr.arpa", Verdict::Refuse),
        ] {
            assert_eq!(ask(&own, name), expected, "{name}");
        }
        assert_eq!(ask(&own, "db"), addresses(&[open.ipv4]));
        assert_eq!(ask(&[bound, open], "anything.at.all"), Verdict::Ask);
        assert_eq!(ask(&[], "anything"), Verdict::Refuse);
    }
}
