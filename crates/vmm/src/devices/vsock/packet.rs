//! Headers of packets. Source: VIRTIO 1.2, 5.10.6.

/// `struct virtio_vsock_hdr`, packed.
pub const HEADER: usize = 44;
/// Context id of the host.
pub const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub const STREAM: u16 = 1;
/// The peer of the sender of SHUTDOWN cannot send any more.
pub const SHUT_RECEIVE: u32 = 1;
/// The sender of SHUTDOWN will not send any more.
pub const SHUT_SEND: u32 = 2;
/// Both.
pub const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;

/// `enum virtio_vsock_op`.
pub mod op {
    /// Connect.
    pub const REQUEST: u16 = 1;
    /// Accepted.
    pub const RESPONSE: u16 = 2;
    /// Refused, or ended at once.
    pub const RST: u16 = 3;
    /// Half or all of the connection ends; see the flags.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Tells the sender's room.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the receiver's room.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Port on the host's side.
    pub host: u32,
    /// Port on the guest's side.
    pub guest: u32,
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// The sender's buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// A packet to the guest, without data.
    pub fn to_guest(cid: u64, ports: Ports, op: u16) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op,
            ..Self::default()
        }
    }

    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// From memory.
    pub fn from_bytes(b: &[u8; HEADER]) -> Self {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| b[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| b[at + i]));
        let half = |at: usize| u16::from_le_bytes(std::array::from_fn(|i| b[at + i]));
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }
}
