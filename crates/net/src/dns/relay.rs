//! What a microVM's agent and the supervisor say to each other about names: on one connection, messages with the number of
//! who asked.
//!
//! ```text
//! each way:  length (2 bytes) │ number (4 bytes) │ transport (1 byte) │ message        numbers big endian
//! ```
//!
//! The agent chooses the numbers, and they come back with the answers. The supervisor takes the agent for hostile, and the
//! agent the workload.

/// The host's vsock port to which the agent connects.
pub const PORT: u32 = 1027;
/// Bytes before the message, after the length.
pub(super) const HEAD: usize = 5;
/// Most bytes of a message.
pub const MOST: usize = u16::MAX as usize - HEAD;

/// By what the workload asked, and so how long an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'m> {
    /// Who asked.
    pub number: u32,
    /// How.
    pub transport: Transport,
    /// The question, or the answer.
    pub message: &'m [u8],
}

impl<'m> Frame<'m> {
    /// Reads what stands behind a length.
    pub fn parse(body: &'m [u8]) -> Option<Self> {
        let (number, rest) = body.split_first_chunk::<4>()?;
        let (transport, message) = rest.split_first()?;
        let transport = match transport {
            0 => Transport::Udp,
            1 => Transport::Tcp,
            _ => return None,
        };
        Some(Self { number: u32::from_be_bytes(*number), transport, message })
    }

    /// Appends it with its length; a message that is too long is left out.
    pub fn write(&self, to: &mut Vec<u8>) {
        let Some(length) = u16::try_from(HEAD + self.message.len()).ok() else { return };
        to.extend_from_slice(&length.to_be_bytes());
        to.extend_from_slice(&self.number.to_be_bytes());
        to.push(u8::from(self.transport == Transport::Tcp));
        to.extend_from_slice(self.message);
    }
}

/// Takes the first part off the front of `bytes` that has its length before it, as in DNS by TCP (RFC 1035, 4.2.2), and
/// answers with it; none if it is not there whole.
pub fn next_part<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (part, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    *bytes = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_come_as_they_went(list in proptest::collection::vec((any::<u32>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..5)) {
            let mut bytes = Vec::new();
            for (number, tcp, message) in &list {
                let transport = if *tcp { Transport::Tcp } else { Transport::Udp };
                Frame { number: *number, transport, message }.write(&mut bytes);
            }
            let mut rest = &bytes[..];
            for (number, tcp, message) in &list {
                let frame = Frame::parse(next_part(&mut rest).unwrap()).unwrap();
                prop_assert_eq!((frame.number, frame.transport == Transport::Tcp, frame.message), (*number, *tcp, &message[..]));
            }
            prop_assert_eq!((rest.len(), next_part(&mut rest)), (0, None));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut rest = &bytes[..];
            while let Some(part) = next_part(&mut rest) {
                Frame::parse(part);
            }
        }
    }
}
