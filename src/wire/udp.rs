//! UDP header layout (RFC 768; RFC 8200 section 8.1 for the checksum over IPv6).

/// Length of a UDP header in bytes.
pub const HEADER_LEN: usize = 8;
/// Offset of the destination port in the header.
pub const DESTINATION_PORT_OFFSET: usize = 2;
/// Offset of the length field in the header.
pub const LENGTH_OFFSET: usize = 4;
/// Offset of the checksum in the header.
pub const CHECKSUM_OFFSET: usize = 6;
/// IP protocol number of UDP.
pub const PROTOCOL: u8 = 17;

/// Returns the checksum field for a computed checksum.
///
/// Zero in the field means "no checksum", so a computed zero is sent as 0xffff (RFC 768).
pub fn checksum_field(computed: u16) -> u16 {
    if computed == 0 { 0xffff } else { computed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computed_zero_is_sent_as_all_ones() {
        assert_eq!(checksum_field(0), 0xffff);
        assert_eq!(checksum_field(0xffff), 0xffff);
        assert_eq!(checksum_field(0x1234), 0x1234);
    }
}
