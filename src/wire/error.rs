//! The error type of the packet parsers.

/// An error in the headers of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The buffer is shorter than the packet.
    #[error("the packet is truncated: {needed} bytes needed, {got} available")]
    Truncated {
        /// Bytes that the headers announce.
        needed: usize,
        /// Bytes in the buffer.
        got: usize,
    },
    /// A field contradicts another field or its RFC. Holds the name of the field.
    #[error("{0} is invalid")]
    Malformed(&'static str),
    /// The IPv4 header checksum (RFC 791 section 3.1) does not match the header.
    #[error("the IPv4 header checksum is wrong")]
    HeaderChecksum,
}
