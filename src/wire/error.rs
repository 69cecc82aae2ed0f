//! What can be wrong with a packet.

/// Why bytes are not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end before the packet does.
    #[error("the packet ends early: {needed} bytes needed, {got} there")]
    Truncated {
        /// Bytes the headers speak of.
        needed: usize,
        /// Bytes there are.
        got: usize,
    },
    /// A field contradicts another or the RFC.
    #[error("{0} is wrong")]
    Malformed(&'static str),
    /// The IPv4 header checksum (RFC 791 section 3.1) does not fit the header.
    #[error("the IPv4 header checksum is wrong")]
    HeaderChecksum,
}
