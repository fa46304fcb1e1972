//! A vsock packet's header.

/// Its length in bytes.
pub const HEADER: usize = 44;
/// Streams are the only type there is.
pub const TYPE_STREAM: u16 = 1;
/// The most bytes of data in a packet.
pub const MAX_DATA: usize = 64 * 1024;

/// The sender of a SHUTDOWN will receive no more.
pub const NO_RECEIVE: u32 = 1;
/// The sender of a SHUTDOWN will send no more.
pub const NO_SEND: u32 = 2;

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Open a connection.
    Request = 1,
    /// It is open.
    Response = 2,
    /// It is gone, or never was.
    Reset = 3,
    /// One or both directions end.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// How much may be sent to me.
    CreditUpdate = 6,
    /// Tell me how much I may send.
    CreditRequest = 7,
}

impl Op {
    fn parse(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub src_cid: u64,
    /// The receiver's address.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// [`TYPE_STREAM`].
    pub kind: u16,
    /// What it is about; none when unknown.
    pub op: Option<Op>,
    /// For a shutdown: which directions.
    pub flags: u32,
    /// The sender's buffer.
    pub buf_alloc: u32,
    /// How many bytes the sender has passed on, counted since the connection's start.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads one.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | (u32::from(u16_at(at + 2)) << 16);
        let u64_at = |at: usize| u64::from(u32_at(at)) | (u64::from(u32_at(at + 4)) << 32);
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: Op::parse(u16_at(30)),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// As bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.map_or(0, |op| op as u16).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_fields_where_the_standard_says() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x0102_0304,
            dst_port: 5,
            len: 6,
            kind: TYPE_STREAM,
            op: Some(Op::Data),
            flags: 7,
            buf_alloc: 8,
            fwd_cnt: 0xffff_fff0,
        };
        let bytes = header.to_bytes();
        assert_eq!((bytes[0], bytes[8], &bytes[16..20], bytes[28], bytes[30]), (3, 2, &[4, 3, 2, 1][..], 1, 5));
        assert_eq!(Header::parse(&bytes), header);
    }
}
