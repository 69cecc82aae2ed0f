//! Multicast router discovery (RFC 4286), by which snooping switches find the ports with multicast
//! routers. The three messages exist as IGMP types and as ICMPv6 types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip::IpHeader;
use super::link_control::{self, HeaderPolicy};
use super::{RejectReason, icmpv6, igmp, mld};

/// Destination of IPv4 advertisements and terminations: all snoopers.
pub const ALL_SNOOPERS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 106);
/// Destination of IPv6 advertisements and terminations: all snoopers.
pub const ALL_SNOOPERS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x6a);

/// IGMP and ICMPv6 type of each message (RFC 4286 section 7).
const ADVERTISEMENT: (u8, u8) = (0x30, icmpv6::MRD_ADVERTISEMENT);
const SOLICITATION: (u8, u8) = (0x31, icmpv6::MRD_SOLICITATION);
const TERMINATION: (u8, u8) = (0x32, icmpv6::MRD_TERMINATION);
/// Length of an advertisement in bytes.
const ADVERTISEMENT_LEN: usize = 8;
/// Length of a solicitation or termination in bytes.
const SHORT_LEN: usize = 4;

/// A multicast router discovery message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterDiscoveryMessage {
    /// A Multicast Router Advertisement: the sender is a multicast router.
    Advertisement {
        /// Advertisement Interval: seconds until the next advertisement, 4 to 180
        /// (RFC 4286 section 3.2.2).
        interval: u8,
        /// Query interval of the router in seconds; 0 if it is no querier.
        query_interval: u16,
        /// Robustness variable of the router; 0 if it is no querier.
        robustness: u16,
    },
    /// A Multicast Router Solicitation: a snooping switch requests advertisements.
    Solicitation,
    /// A Multicast Router Termination: the sender stops routing multicast.
    Termination,
}

/// A received multicast router discovery message with the addresses of its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterDiscoveryPacket {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The message.
    pub message: RouterDiscoveryMessage,
}

/// Returns true for the IGMP types of multicast router discovery.
pub fn is_igmp_type(kind: u8) -> bool {
    [ADVERTISEMENT, SOLICITATION, TERMINATION]
        .iter()
        .any(|t| t.0 == kind)
}

/// Returns true if the IP packet at the start of `bytes` carries a router discovery message. Such
/// packets are for [`parse`]; other link control messages are for [`super::membership::parse`].
pub fn is_message(header: &IpHeader, bytes: &[u8]) -> bool {
    let is_type = if header.source.is_ipv4() {
        is_igmp_type
    } else {
        icmpv6::is_mrd_type
    };
    link_control::message_type(header, bytes).is_some_and(is_type)
}

/// Parses the IP packet at the start of `bytes`. Ignores link-layer padding after the packet.
///
/// # Errors
/// The first failed check of [`link_control::decapsulate`]; [`RejectReason::UnknownType`] for other
/// messages; [`RejectReason::Truncated`] for a short message.
pub fn parse(
    bytes: &[u8],
    policy: &HeaderPolicy<'_>,
) -> Result<RouterDiscoveryPacket, RejectReason> {
    let payload = link_control::decapsulate(bytes, policy)?;
    let type_of = |t: (u8, u8)| if payload.source.is_ipv4() { t.0 } else { t.1 };
    let kind = payload
        .message
        .first()
        .copied()
        .ok_or(RejectReason::Truncated)?;
    let message = if kind == type_of(ADVERTISEMENT) {
        let fields = payload
            .message
            .first_chunk::<ADVERTISEMENT_LEN>()
            .ok_or(RejectReason::Truncated)?;
        RouterDiscoveryMessage::Advertisement {
            interval: fields[1],
            query_interval: u16::from_be_bytes([fields[4], fields[5]]),
            robustness: u16::from_be_bytes([fields[6], fields[7]]),
        }
    } else if kind == type_of(SOLICITATION) {
        RouterDiscoveryMessage::Solicitation
    } else if kind == type_of(TERMINATION) {
        RouterDiscoveryMessage::Termination
    } else {
        return Err(RejectReason::UnknownType);
    };
    if payload.message.len() < SHORT_LEN {
        return Err(RejectReason::Truncated);
    }
    Ok(RouterDiscoveryPacket {
        source: payload.source,
        destination: payload.destination,
        message,
    })
}

/// Builds the IP packet of `message` with TTL or hop limit 1, a Router Alert option, checksums, and
/// the destination that RFC 4286 sections 3 to 5 require. An IPv6 `source` must be link-local.
pub fn build(message: &RouterDiscoveryMessage, source: IpAddr) -> Vec<u8> {
    let (types, fields) = match message {
        RouterDiscoveryMessage::Advertisement {
            interval,
            query_interval,
            robustness,
        } => {
            let mut fields = vec![*interval, 0, 0];
            fields.extend(query_interval.to_be_bytes());
            fields.extend(robustness.to_be_bytes());
            (ADVERTISEMENT, fields)
        }
        RouterDiscoveryMessage::Solicitation => (SOLICITATION, vec![0; 3]),
        RouterDiscoveryMessage::Termination => (TERMINATION, vec![0; 3]),
    };
    let to_routers = *message == RouterDiscoveryMessage::Solicitation;
    let (v4, v6) = if to_routers {
        (igmp::ALL_ROUTERS, mld::ALL_ROUTERS)
    } else {
        (ALL_SNOOPERS_V4, ALL_SNOOPERS_V6)
    };
    let bytes = |kind: u8| [&[kind], fields.as_slice()].concat();
    match source {
        IpAddr::V4(source) => link_control::encapsulate_v4(source, v4, &bytes(types.0)),
        IpAddr::V6(source) => link_control::encapsulate_v6(source, v6, &bytes(types.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HeaderChecks;
    use crate::wire::membership::tests::bytes;

    // Built by scapy 2.5: IP(ttl=1, tos=0xc0, options=[IPOption_Router_Alert()]) / IGMPv3 /
    // IGMPv3mra, or Raw; IPv6(hlim=1) / IPv6ExtHdrHopByHop / ICMPv6MRD_Advertisement and its
    // siblings.
    const VECTORS: &[(&str, &str, &str, RouterDiscoveryMessage)] = &[
        (
            "46c0002000000000010239ad0a000001e000006a940400003014cf6c007d0002",
            "10.0.0.1",
            "224.0.0.106",
            ADVERTISED,
        ),
        (
            "46c0001c0000000001023a190a000001e0000002940400003100ceff",
            "10.0.0.1",
            "224.0.0.2",
            RouterDiscoveryMessage::Solicitation,
        ),
        (
            "46c0001c00000000010239b10a000001e000006a940400003200cdff",
            "10.0.0.1",
            "224.0.0.106",
            RouterDiscoveryMessage::Termination,
        ),
        (
            "6000000000100001fe800000000000000000000000000001ff02000000000000000000000000006a3a0005020000010097146a3b007d0002",
            "fe80::1",
            "ff02::6a",
            ADVERTISED,
        ),
        (
            "60000000000c0001fe800000000000000000000000000001ff0200000000000000000000000000023a0005020000010098006a3a",
            "fe80::1",
            "ff02::2",
            RouterDiscoveryMessage::Solicitation,
        ),
        (
            "60000000000c0001fe800000000000000000000000000001ff02000000000000000000000000006a3a00050200000100990068d2",
            "fe80::1",
            "ff02::6a",
            RouterDiscoveryMessage::Termination,
        ),
    ];
    const ADVERTISED: RouterDiscoveryMessage = RouterDiscoveryMessage::Advertisement {
        interval: 20,
        query_interval: 125,
        robustness: 2,
    };

    fn strict(bytes: &[u8]) -> Result<RouterDiscoveryPacket, RejectReason> {
        let on_link = &["10.0.0.0/8".parse().unwrap()];
        let headers = HeaderChecks::Strict;
        parse(bytes, &HeaderPolicy { headers, on_link })
    }

    #[test]
    fn messages_of_both_ip_versions_round_trip() {
        for (hex, source, destination, message) in VECTORS {
            let packet = bytes(hex);
            let parsed = strict(&packet).unwrap();
            assert_eq!(parsed.message, *message);
            assert_eq!(parsed.source.to_string(), *source);
            assert_eq!(parsed.destination.to_string(), *destination);
            let header = IpHeader::parse(&packet).unwrap();
            assert!(is_message(&header, &packet));
            assert_eq!(
                link_control::classify(&header, &packet),
                Ok(link_control::PacketClass::LinkControl)
            );
            let built = build(message, parsed.source);
            // The builder sets Don't Fragment; scapy does not.
            let from = if parsed.source.is_ipv4() { 12 } else { 0 };
            assert_eq!(built[from..], packet[from..]);
            assert_eq!(strict(&built), Ok(parsed));
        }
    }

    #[test]
    fn truncated_packets_are_rejected() {
        for (hex, ..) in VECTORS {
            let packet = bytes(hex);
            for len in 0..packet.len() {
                assert_eq!(strict(&packet[..len]), Err(RejectReason::Truncated));
            }
        }
        // An advertisement of four bytes in a packet with valid lengths and checksums.
        let short =
            link_control::encapsulate_v4([10, 0, 0, 1].into(), ALL_SNOOPERS_V4, &[0x30, 20, 0, 0]);
        assert_eq!(strict(&short), Err(RejectReason::Truncated));
    }

    #[test]
    fn mrdisc_parser_ignores_igmp() {
        let query = bytes("46c000200000000001023a160a000001e0000001940400001164ee9b00000000");
        assert_eq!(strict(&query), Err(RejectReason::UnknownType));
        assert!(!is_message(&IpHeader::parse(&query).unwrap(), &query));
    }
}
