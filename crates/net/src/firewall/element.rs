//! Elements of sets and maps, as bytes: written, read back, removed. What the bytes mean is for those who make them.

use super::expr::NFTA_DATA_VALUE;
use super::{DELSETELEM, Family, GETSETELEM, NEWSETELEM, TABLE, request};
use rustix::io::Errno;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use sys::netlink::{Batch, Message, Socket, attributes, errno, flags};

const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_TIMEOUT: u16 = 4;
const ELEM_EXPIRATION: u16 = 5;
const ELEM_KEY_END: u16 = 10;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
/// The key is the first that is no longer in the range (sets of ranges of one field).
pub(super) const INTERVAL_END: u32 = 1;

/// One element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Element {
    pub family: Family,
    pub set: &'static str,
    pub key: Vec<u8>,
    /// The last key of the range, in sets of ranges of several fields.
    pub end: Option<Vec<u8>>,
    /// What a map has for the key.
    pub data: Option<Vec<u8>>,
    pub flags: u32,
    /// How long it stays; for ever if none.
    pub timeout: Option<Duration>,
}

impl Element {
    pub(super) fn new(family: Family, set: &'static str, key: Vec<u8>) -> Self {
        Self { family, set, key, end: None, data: None, flags: 0, timeout: None }
    }

    /// Whether it is that element, whatever it holds and however long.
    pub(super) fn is(&self, other: &Self) -> bool {
        let name = |e: &Self| (e.family, e.set, e.flags);
        name(self) == name(other) && self.key == other.key && self.last() == other.last()
    }

    /// One that is no range may be read back as one from a key to itself.
    fn last(&self) -> &[u8] {
        self.end.as_deref().unwrap_or(&self.key)
    }

    /// Adds it; no error if it is there.
    pub(super) fn put(&self, batch: &mut Batch) {
        let list = list(batch, NEWSETELEM, flags::CREATE, self.family, self.set);
        list.nest(LIST_ELEMENTS, |b| self.write(b, true));
    }

    /// Removes it; an error if it is not there.
    pub(super) fn take(&self, batch: &mut Batch) {
        let list = list(batch, DELSETELEM, 0, self.family, self.set);
        list.nest(LIST_ELEMENTS, |b| self.write(b, false));
    }

    /// Removes it, no error if it is not there: what is added first can be removed. (The kernel has a request of its own
    /// for that since 6.3.)
    pub(super) fn away(&self, batch: &mut Batch) {
        self.put(batch);
        self.take(batch);
    }

    /// Asks for it; an error if it is not there.
    pub(super) fn ask(&self, batch: &mut Batch) {
        let list = list(batch, GETSETELEM, 0, self.family, self.set);
        list.nest(LIST_ELEMENTS, |b| self.write(b, false));
    }

    fn write(&self, batch: &mut Batch, whole: bool) {
        let value = |b: &mut Batch, kind, bytes: &[u8]| {
            b.nest(kind, |b| {
                b.attr(NFTA_DATA_VALUE, bytes);
            });
        };
        batch.nest(LIST_ELEM, |b| {
            value(b, ELEM_KEY, &self.key);
            if let Some(end) = &self.end {
                value(b, ELEM_KEY_END, end);
            }
            if let Some(data) = self.data.as_ref().filter(|_| whole) {
                value(b, ELEM_DATA, data);
            }
            if self.flags != 0 {
                b.attr_be32(ELEM_FLAGS, self.flags);
            }
            if let Some(timeout) = self.timeout.filter(|_| whole) {
                let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                b.attr(ELEM_TIMEOUT, &millis.to_be_bytes());
            }
        });
    }
}

fn list<'b>(batch: &'b mut Batch, message: u16, flags: u16, family: Family, set: &str) -> &'b mut Batch {
    request(batch, message, flags, family).attr_str(LIST_TABLE, TABLE).attr_str(LIST_SET, set)
}

/// All elements of a set; none if it is not there.
pub(super) fn all_in(socket: &mut Socket, family: Family, set: &'static str) -> io::Result<Vec<Element>> {
    let mut batch = Batch::new();
    list(&mut batch, GETSETELEM, flags::DUMP, family, set);
    let mut found = Vec::new();
    match socket.query(batch, &mut |m| found.extend(read(m, family, set))) {
        Err(e) if errno(&e) == Some(Errno::NOENT) => {}
        done => done?,
    }
    Ok(found)
}

/// The elements of an answer.
pub(super) fn read(message: &Message<'_>, family: Family, set: &'static str) -> Vec<Element> {
    let list = message.attributes(4).find(LIST_ELEMENTS).unwrap_or_default();
    attributes(list)
        .filter_map(|(_, elem)| {
            let value = |kind| {
                let found = attributes(attributes(elem).find(kind)?).find(NFTA_DATA_VALUE)?;
                Some(found.to_vec())
            };
            let flags = attributes(elem).find(ELEM_FLAGS).and_then(|v| v.first_chunk::<4>().copied());
            let left = attributes(elem).find(ELEM_EXPIRATION).and_then(|v| v.first_chunk::<8>().copied());
            Some(Element {
                family,
                set,
                key: value(ELEM_KEY)?,
                end: value(ELEM_KEY_END),
                data: value(ELEM_DATA),
                flags: flags.map_or(0, u32::from_be_bytes),
                timeout: left.map(|ms| Duration::from_millis(u64::from_be_bytes(ms))),
            })
        })
        .collect()
}

/// The bytes of an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().into(),
        IpAddr::V6(a) => a.octets().into(),
    }
}
