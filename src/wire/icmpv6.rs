//! ICMPv6 message types of multicast router discovery (RFC 4286 section 7) and of neighbour
//! discovery (RFC 4861 section 4, RFC 3122 section 2, RFC 3971 section 6.4).

/// IP protocol number of ICMPv6.
pub const PROTOCOL: u8 = 58;

/// Type of a Multicast Router Advertisement.
pub const MRD_ADVERTISEMENT: u8 = 151;
/// Type of a Multicast Router Solicitation.
pub const MRD_SOLICITATION: u8 = 152;
/// Type of a Multicast Router Termination.
pub const MRD_TERMINATION: u8 = 153;

/// Returns true for the ICMPv6 types of neighbour discovery: router solicitations to redirects,
/// inverse discovery, and certification paths.
pub fn is_neighbor_discovery(kind: u8) -> bool {
    matches!(kind, 133..=137 | 141 | 142 | 148 | 149)
}

/// Returns true for the ICMPv6 types of multicast router discovery.
pub fn is_mrd_type(kind: u8) -> bool {
    matches!(kind, MRD_ADVERTISEMENT | MRD_SOLICITATION | MRD_TERMINATION)
}
