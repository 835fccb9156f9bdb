//! Tests of messages.

use super::*;
use proptest::prelude::*;

/// A query as a client would send it.
pub(crate) fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    out.extend(encode_name(name).unwrap());
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    if let Some(size) = edns {
        out.extend([0, 0, 41]);
        out.extend(size.to_be_bytes());
        out.extend([0; 6]);
    }
    out
}

/// An answer with these records: owner, type, seconds, data.
pub(crate) fn answer(to: &[u8], records: &[(&str, u16, u32, Vec<u8>)]) -> Vec<u8> {
    let end = HEADER + Query::parse(to).unwrap().question().len();
    let mut out = to[..end].to_vec();
    out[2] |= 0x80;
    set(&mut out, 6, records.len() as u16);
    set(&mut out, 10, 0);
    for (owner, kind, ttl, data) in records {
        out.extend(encode_name(owner).unwrap());
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    out
}

fn v4(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn queries_are_read() {
    let bytes = query("Web.Example", kind::A, None);
    let read = Query::parse(&bytes).unwrap();
    assert_eq!((read.id, read.kind, read.name.as_deref()), (0x1234, kind::A, Some("web.example")));
    assert_eq!(read.udp_limit(), 512);
    assert!(read.is_plain() && read.is_internet());
    let bytes = query("x", kind::AAAA, Some(1232));
    assert_eq!(Query::parse(&bytes).unwrap().udp_limit(), 1232);
    // A name that has a dot within a label is no name of ours, and not that of two labels.
    let mut dotted = query("a.b", kind::A, None);
    dotted[HEADER] = 3;
    dotted[HEADER + 2] = b'.';
    assert_eq!(Query::parse(&dotted).unwrap().name, None);
}

#[test]
fn what_is_no_query_is_told_or_left() {
    assert_eq!(Query::parse(&[0; 11]), Err(NoQuery::Silence));
    let mut two = query("a", kind::A, None);
    two[5] = 2;
    assert!(matches!(Query::parse(&two), Err(NoQuery::Mistaken(0x1234, _))));
    let mut answer = query("a", kind::A, None);
    answer[2] |= 0x80;
    assert_eq!(Query::parse(&answer), Err(NoQuery::Silence));
    // A name that points at itself.
    let mut pointer = query("a", kind::A, None);
    pointer[HEADER..HEADER + 2].copy_from_slice(&[0xc0, HEADER as u8]);
    assert!(matches!(Query::parse(&pointer), Err(NoQuery::Mistaken(..))));
    assert_eq!(mistaken(7, 0x0100), [0, 7, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn answers_are_cut_to_what_the_client_takes() {
    let bytes = query("many", kind::A, None);
    let read = Query::parse(&bytes).unwrap();
    let records: Vec<_> = (0..100).map(|n| Record::Address(Ipv4Addr::new(10, 0, 0, n).into())).collect();
    let short = read.answer(Rcode::NoError, 0, &records, read.udp_limit());
    assert!(short.len() <= 512 && short.len() > 480);
    assert_ne!(read_u16(&short, 2).unwrap() & TRUNCATED, 0);
    let long = read.answer(Rcode::NoError, 0, &records, 65_535);
    let heard = Answer::to(read.question(), 0x1234, &long).unwrap();
    assert_eq!(heard.addresses("many").len(), 100);
}

#[test]
fn chains_of_aliases_are_followed_and_strangers_are_not() {
    let bytes = query("www.example.org", kind::A, None);
    let question = Query::parse(&bytes).unwrap().question().to_vec();
    let cname = |to: &str| encode_name(to).unwrap();
    let message = answer(
        &bytes,
        &[
            ("b.cdn.example", kind::A, 60, vec![192, 0, 2, 1]),
            ("a.cdn.example", kind::CNAME, 60, cname("b.cdn.example")),
            ("www.example.org", kind::CNAME, 60, cname("A.cdn.example")),
            ("evil.example", kind::A, 60, vec![192, 0, 2, 66]),
            ("b.cdn.example", kind::A, 60, vec![1, 2, 3]),
        ],
    );
    let heard = Answer::to(&question, 0x1234, &message).unwrap();
    assert_eq!(heard.addresses("www.example.org"), [(v4("192.0.2.1"), 60)]);
    assert!(Answer::to(&question, 0x1235, &message).is_none());
    let other = query("www.example.com", kind::A, None);
    assert!(Answer::to(Query::parse(&other).unwrap().question(), 0x1234, &message).is_none());
    // Case is the sender's own affair.
    let mut loud = message.clone();
    loud[HEADER + 1].make_ascii_uppercase();
    assert!(Answer::to(&question, 0x1234, &loud).is_some());
}

#[test]
fn chains_of_pointers_end_soon() {
    let mut bytes = query("a", kind::A, None);
    let (first, mut last) = (bytes.len(), HEADER);
    for _ in 0..1000 {
        let at = bytes.len();
        bytes.extend((0xc000 | last as u16).to_be_bytes());
        last = at;
    }
    assert_eq!(read_name(&bytes, last), None);
    assert_eq!(read_name(&bytes, first + 2 * 100).unwrap().0.as_deref(), Some("a"));
}

#[test]
fn addresses_are_found_in_reverse_names() {
    assert_eq!(reverse("2.0.30.172.in-addr.arpa"), Some(v4("172.30.0.2")));
    let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(reverse(six), Some(v4("fd00::2")));
    for bad in ["2.0.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "x.ip6.arpa", "256.0.0.1.in-addr.arpa", "a"] {
        assert_eq!(reverse(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_message(&bytes);
    }

    #[test]
    fn no_damage_makes_it_panic(place in 0usize..120, value: u8, cut in 0usize..120) {
        let bytes = query("www.example.org", kind::A, Some(1232));
        let mut message = answer(&bytes, &[
            ("www.example.org", kind::CNAME, 60, encode_name("b.example").unwrap()),
            ("b.example", kind::A, 60, vec![192, 0, 2, 1]),
        ]);
        if let Some(byte) = message.get_mut(place) {
            *byte = value;
        }
        message.truncate(message.len().saturating_sub(cut));
        fuzz_message(&message);
    }

    #[test]
    fn names_come_as_they_went(labels in proptest::collection::vec("[a-z0-9_-]{1,20}", 1..8)) {
        let name = labels.join(".");
        let bytes = query(&name, kind::A, None);
        prop_assert_eq!(Query::parse(&bytes).unwrap().name, Some(name));
    }
}
