//! DNS messages (RFC 1035, EDNS: RFC 6891), as far as a forwarder needs them: the question of a query, answers of our
//! own, and the addresses in the answers of others.
//!
//! What is read comes from workloads and from servers outside: every length and every pointer in it is an attacker's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a header.
const HEADER: usize = 12;
/// What a client takes by UDP that does not say otherwise.
const PLAIN_UDP: u16 = 512;
/// The most that is sent by UDP, whatever the client says.
const MOST_UDP: u16 = 4096;
/// Pointers in one name: a name has no more labels that could each begin with one.
const POINTERS: usize = 127;
/// Records of one message that are looked at; each may cost as many steps as its name has pointers.
const RECORDS: usize = 512;
/// Links in a chain of aliases that are followed.
const CHAIN: usize = 16;
/// Addresses that are taken from one answer.
const ADDRESSES: usize = 256;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;
const INTERNET: u16 = 1;

/// Types of records.
pub(super) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const ANY: u16 = 255;
}

/// What is said of a query as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rcode {
    NoError = 0,
    Malformed = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A query with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query<'m> {
    /// The message.
    pub(super) message: &'m [u8],
    /// Chosen by the client.
    pub(super) id: u16,
    flags: u16,
    /// In lower case, without a final dot; none if it has bytes that no name of ours has.
    pub(super) name: Option<String>,
    /// Type of the records that are wanted.
    pub(super) kind: u16,
    class: u16,
    /// Where the question ends.
    end: usize,
    /// What the client takes by UDP, if it speaks EDNS.
    edns: Option<u16>,
}

/// Why there is no query in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoQuery {
    /// Nobody waits for an answer.
    Silence,
    /// The client of this header's id and flags is told of its mistake.
    Mistaken(u16, u16),
}

/// One record of an answer, for the name of the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Address(IpAddr),
    Name(String),
}

impl<'m> Query<'m> {
    /// Reads a query.
    pub(super) fn parse(message: &'m [u8]) -> Result<Self, NoQuery> {
        let word = |at| read_u16(message, at).ok_or(NoQuery::Silence);
        let (id, flags, questions) = (word(0)?, word(2)?, word(4)?);
        let records = [word(6)?, word(8)?, word(10)?];
        if flags & RESPONSE != 0 {
            return Err(NoQuery::Silence);
        }
        let mistaken = || NoQuery::Mistaken(id, flags);
        if questions != 1 {
            return Err(mistaken());
        }
        let (name, at) = read_name(message, HEADER).ok_or_else(mistaken)?;
        let kind = read_u16(message, at).ok_or_else(mistaken)?;
        let class = read_u16(message, at + 2).ok_or_else(mistaken)?;
        let end = at + 4;
        // Of the other sections only EDNS is of interest; a message that ends early has none.
        let count: usize = records.iter().map(|n| usize::from(*n)).sum();
        let opt = Records { message, at: end, left: count.min(RECORDS) }.find(|r| r.kind == kind::OPT);
        Ok(Self { message, id, flags, name, kind, class, end, edns: opt.map(|r| r.class) })
    }

    /// Whether it is a question of the kind that we answer, and not an update or a transfer.
    pub(super) fn is_plain(&self) -> bool {
        self.flags & OPCODE == 0
    }

    /// Whether it asks for the internet's names.
    pub(super) fn is_internet(&self) -> bool {
        self.class == INTERNET || self.class == kind::ANY
    }

    /// The most bytes of an answer to it, by UDP.
    pub(super) fn udp_limit(&self) -> usize {
        self.edns.unwrap_or(PLAIN_UDP).clamp(PLAIN_UDP, MOST_UDP).into()
    }

    /// The question as it came: name, type, class.
    pub(super) fn question(&self) -> &'m [u8] {
        self.message.get(HEADER..self.end).unwrap_or_default()
    }

    /// An answer of our own, with as many of the records as fit.
    pub(super) fn answer(&self, rcode: Rcode, ttl: u32, records: &[Record], limit: usize) -> Vec<u8> {
        let opt: &[u8] = if self.edns.is_some() { &[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0] } else { &[] };
        let mut out = Vec::with_capacity(self.end + 32 * records.len() + opt.len());
        header(&mut out, self.id, self.flags, rcode);
        out.extend_from_slice(self.question());
        let mut count: u16 = 0;
        for record in records {
            let data = record.data();
            let (Ok(length), Some(kind)) = (u16::try_from(data.len()), record.kind()) else { continue };
            if out.len() + 12 + data.len() + opt.len() > limit {
                mark_truncated(&mut out);
                break;
            }
            // The name is that of the question.
            for word in [0xc000 | HEADER as u16, kind, INTERNET] {
                out.extend_from_slice(&word.to_be_bytes());
            }
            out.extend_from_slice(&ttl.to_be_bytes());
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&data);
            count += 1;
        }
        out.extend_from_slice(opt);
        set(&mut out, 4, 1);
        set(&mut out, 6, count);
        set(&mut out, 10, u16::from(self.edns.is_some()));
        out
    }
}

impl Record {
    fn kind(&self) -> Option<u16> {
        Some(match self {
            Self::Address(IpAddr::V4(_)) => kind::A,
            Self::Address(IpAddr::V6(_)) => kind::AAAA,
            Self::Name(name) => {
                encode_name(name)?;
                kind::PTR
            }
        })
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(a)) => a.octets().to_vec(),
            Self::Address(IpAddr::V6(a)) => a.octets().to_vec(),
            Self::Name(name) => encode_name(name).unwrap_or_default(),
        }
    }
}

/// The answer to what is no query.
pub(super) fn mistaken(id: u16, flags: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    header(&mut out, id, flags, Rcode::Malformed);
    out
}

fn header(out: &mut Vec<u8>, id: u16, flags: u16, rcode: Rcode) {
    let kept = flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED);
    let flags = RESPONSE | RECURSION_AVAILABLE | kept | rcode as u16;
    for word in [id, flags, 0, 0, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// What a server outside answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'m>(&'m [u8]);

impl<'m> Answer<'m> {
    /// Takes a message for an answer if it has this id and repeats the question, or says nothing but that it failed.
    pub(super) fn to(question: &[u8], id: u16, message: &'m [u8]) -> Option<Self> {
        let (its_id, flags) = (read_u16(message, 0)?, read_u16(message, 2)?);
        let questions = read_u16(message, 4)?;
        // Also of those that it does not say are there.
        read_u16(message, 10)?;
        if its_id != id || flags & RESPONSE == 0 {
            return None;
        }
        let repeats = match questions {
            0 => flags & 0xf != 0,
            1 => {
                let asked = message.get(HEADER..HEADER + question.len())?;
                asked.eq_ignore_ascii_case(question)
            }
            _ => false,
        };
        repeats.then_some(Self(message))
    }

    /// Whether another server may know better.
    pub(super) fn is_failure(self) -> bool {
        matches!(read_u16(self.0, 2).map(|f| f & 0xf), Some(1 | 2 | 4 | 5))
    }

    /// The addresses that it gives for the name of the question, through its chain of aliases, with their seconds to
    /// live. Records of names that nobody asked for are none.
    pub(super) fn addresses(self, name: &str) -> Vec<(IpAddr, u32)> {
        let all = || self.records();
        let mut names = vec![name.to_owned()];
        for _ in 0..CHAIN {
            let next = all().find_map(|r| {
                let owner = r.owner.as_deref().filter(|_| r.kind == kind::CNAME)?;
                let target = read_name(self.0, r.data.0)?.0?;
                (names.iter().any(|n| n == owner) && !names.contains(&target)).then_some(target)
            });
            match next {
                Some(target) => names.push(target),
                None => break,
            }
        }
        let named =
            |r: &RawRecord| r.class == INTERNET && r.owner.as_ref().is_some_and(|o| names.contains(o));
        let address = |r: RawRecord| {
            let data = self.0.get(r.data.0..r.data.1)?;
            let address = match r.kind {
                kind::A => IpAddr::from(<[u8; 4]>::try_from(data).ok()?),
                kind::AAAA => IpAddr::from(<[u8; 16]>::try_from(data).ok()?),
                _ => return None,
            };
            Some((address, r.ttl))
        };
        all().filter(named).filter_map(address).take(ADDRESSES).collect()
    }

    fn records(self) -> Records<'m> {
        let questions = read_u16(self.0, 4).unwrap_or_default();
        let at = (0..questions).try_fold(HEADER, |at, _| Some(read_name(self.0, at)?.1 + 4));
        let left = at.and_then(|_| read_u16(self.0, 6)).unwrap_or_default();
        Records { message: self.0, at: at.unwrap_or(HEADER), left: usize::from(left).min(RECORDS) }
    }
}

/// One record of a message.
struct RawRecord {
    owner: Option<String>,
    kind: u16,
    class: u16,
    ttl: u32,
    /// From where to where its data is.
    data: (usize, usize),
}

/// Walks through records, up to the first that is not whole.
struct Records<'m> {
    message: &'m [u8],
    at: usize,
    left: usize,
}

impl Iterator for Records<'_> {
    type Item = RawRecord;

    fn next(&mut self) -> Option<RawRecord> {
        self.left = self.left.checked_sub(1)?;
        let (owner, at) = read_name(self.message, self.at)?;
        let word = |offset| read_u16(self.message, at + offset);
        let ttl = (u32::from(word(4)?) << 16) | u32::from(word(6)?);
        let data = (at + 10, at + 10 + usize::from(word(8)?));
        self.message.get(data.0..data.1)?;
        self.at = data.1;
        Some(RawRecord { owner, kind: word(0)?, class: word(2)?, ttl, data })
    }
}

fn read_u16(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

fn set(message: &mut [u8], at: usize, word: u16) {
    if let Some(place) = message.get_mut(at..at + 2) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

fn mark_truncated(message: &mut [u8]) {
    let flags = read_u16(message, 2).unwrap_or_default();
    set(message, 2, flags | TRUNCATED);
}

/// Gives a message another id.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    set(message, 0, id);
}

/// Cuts an answer that is too long for its client down to its header and question, and says so in it.
pub(super) fn truncate(message: &mut Vec<u8>, question: &[u8], limit: usize) {
    let end = HEADER + question.len();
    if message.len() <= limit || message.get(HEADER..end).is_none_or(|q| !q.eq_ignore_ascii_case(question)) {
        return;
    }
    message.truncate(end);
    mark_truncated(message);
    [6, 8, 10].into_iter().for_each(|at| set(message, at, 0));
}

/// Reads the name at `at`: in lower case and without a final dot, none if it has bytes that no name of ours has; and where
/// it ends. Pointers lead only backwards, so that each name ends.
fn read_name(message: &[u8], at: usize) -> Option<(Option<String>, usize)> {
    let mut text = Some(String::new());
    let (mut at, mut end, mut bound, mut total, mut pointers) = (at, None, at, 0, 0);
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((text, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + length)?;
                total += length + 1;
                if total > 254 {
                    return None;
                }
                text = text.filter(|_| label.iter().all(|b| b.is_ascii_graphic() && !b".\\".contains(b)));
                if let Some(text) = &mut text {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                }
                at += 1 + length;
            }
            0xc0..=0xff => {
                end = end.or(Some(at + 2));
                let target = usize::from(read_u16(message, at)? & 0x3fff);
                pointers += 1;
                if target >= bound || target < HEADER || pointers > POINTERS {
                    return None;
                }
                (at, bound) = (target, target);
            }
            _ => return None,
        }
    }
}

/// A name as it is sent; none if it cannot be.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|l| (1..=63).contains(l))?;
        out.push(length);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    (out.len() <= 255).then_some(out)
}

/// The address that a name of the tree of addresses stands for (RFC 1035, 3.5; RFC 3596, 2.5).
pub(super) fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = rest.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut parts = rest.rsplit('.');
    for _ in 0..32 {
        let part = parts.next().filter(|p| p.len() == 1)?;
        bits = (bits << 4) | u128::from(u8::from_str_radix(part, 16).ok()?);
    }
    parts.next().is_none().then(|| Ipv6Addr::from(bits).into())
}

/// For the fuzzer: everything that is done with bytes of others.
#[doc(hidden)]
pub fn fuzz_message(bytes: &[u8]) {
    if let Ok(query) = Query::parse(bytes) {
        let record = Record::Address(Ipv4Addr::LOCALHOST.into());
        let many = vec![record; 40];
        assert!(query.answer(Rcode::NoError, 0, &many, query.udp_limit()).len() <= query.udp_limit());
        query.name.as_deref().map(reverse);
    }
    let question = bytes.get(HEADER..HEADER + 7).unwrap_or_default();
    let id = read_u16(bytes, 0).unwrap_or_default();
    if let Some(answer) = Answer::to(question, id, bytes) {
        let name = read_name(bytes, HEADER).and_then(|n| n.0).unwrap_or_default();
        assert!(answer.addresses(&name).len() <= ADDRESSES);
    }
    let mut cut = bytes.to_vec();
    truncate(&mut cut, question, 100);
}

#[cfg(test)]
#[path = "message_tests.rs"]
pub(super) mod tests;
