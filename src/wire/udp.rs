//! UDP: RFC 768, and RFC 8200 section 8.1 over IPv6.

/// Bytes of a UDP header.
pub const HEADER_LEN: usize = 8;
/// Where the destination port stands in the header.
pub const DESTINATION_PORT_AT: usize = 2;
/// Where the length stands in the header.
pub const LENGTH_AT: usize = 4;
/// Where the checksum stands in the header.
pub const CHECKSUM_AT: usize = 6;
/// The protocol number of UDP.
pub const PROTOCOL: u8 = 17;

/// What goes into the checksum field for a computed checksum: zero means "none" there, so a
/// computed zero is sent as its other form (RFC 768).
pub fn checksum_field(computed: u16) -> u16 {
    if computed == 0 { 0xffff } else { computed }
}
