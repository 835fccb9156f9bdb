//! What the kernel says: messages, and attributes within them. No bytes make the reader panic.

use super::{HEADER, Refusal};
use rustix::io::Errno;

const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message<'b> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub seq: u32,
    /// What follows the header.
    pub payload: &'b [u8],
}

impl<'b> Message<'b> {
    /// The attributes after a fixed part of so many bytes.
    pub fn attributes(&self, fixed: usize) -> Attributes<'b> {
        attributes(self.payload.get(fixed.next_multiple_of(4)..).unwrap_or_default())
    }

    /// The refusal that an `NLMSG_ERROR` carries; none if it is an acknowledgement.
    pub(super) fn error(&self, index: usize) -> Option<Refusal> {
        let code = i32::from_ne_bytes(self.payload.first_chunk::<4>().copied()?);
        if code == 0 {
            return None;
        }
        let errno =
            Errno::from_raw_os_error(code.checked_neg().filter(|c| (1..4096).contains(c)).unwrap_or(5));
        let mut text = String::new();
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let echoed =
                self.payload.get(4..8).and_then(|l| l.first_chunk::<4>()).copied().unwrap_or_default();
            let echoed =
                if self.flags & NLM_F_CAPPED != 0 { HEADER } else { u32::from_ne_bytes(echoed) as usize };
            let at = echoed.saturating_add(4);
            for (kind, value) in attributes(self.payload.get(at..).unwrap_or_default()) {
                if kind == NLMSGERR_ATTR_MSG {
                    text = string(value);
                }
            }
        }
        Some(Refusal { index, errno, text })
    }
}

/// Reads the messages of one datagram; ends at the first that is malformed.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = bytes.get(HEADER..len)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            seq: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes one after the other: type without its flags, and value.
#[derive(Clone, Debug)]
pub struct Attributes<'b>(&'b [u8]);

/// Reads attributes, of a message or nested in another; ends at the first that is malformed.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

impl<'b> Iterator for Attributes<'b> {
    type Item = (u16, &'b [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'b> Attributes<'b> {
    /// The value of the first attribute of that type.
    pub fn find(mut self, kind: u16) -> Option<&'b [u8]> {
        self.find_map(|(k, value)| (k == kind).then_some(value))
    }
}

/// A string of the kernel, up to its NUL.
pub fn string(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// A number in host order.
pub fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|v| u32::from_ne_bytes(*v))
}
