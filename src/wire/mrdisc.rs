//! Multicast router discovery (RFC 4286): by it snooping switches learn behind which ports the
//! multicast routers are. The same three messages in IGMP and in ICMPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::envelope::{self, Checks};
use super::ip::Datagram;
use super::{Refusal, igmp, mld};

/// Where advertisements and terminations of IPv4 go.
pub const ALL_SNOOPERS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 106);
/// Where advertisements and terminations of IPv6 go.
pub const ALL_SNOOPERS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x6a);

/// IGMP and ICMPv6 type of each message.
const ADVERTISEMENT: (u8, u8) = (0x30, 151);
const SOLICITATION: (u8, u8) = (0x31, 152);
const TERMINATION: (u8, u8) = (0x32, 153);
/// Bytes of an advertisement.
const ADVERTISEMENT_LEN: usize = 8;
/// Bytes of the others.
const SHORT_LEN: usize = 4;

/// A message of multicast router discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A router is here.
    Advertisement {
        /// Seconds to its next advertisement, 4 to 180 (RFC 4286 section 3.2.2).
        interval: u8,
        /// Its query interval in seconds; 0 where it does not query.
        query_interval: u16,
        /// Its robustness variable; 0 where it does not query.
        robustness: u16,
    },
    /// A switch asks routers to advertise themselves.
    Solicitation,
    /// A router goes.
    Termination,
}

/// A message as it was heard on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Who says it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// What is said.
    pub message: Message,
}

/// Whether an ICMPv6 message of this type is one of multicast router discovery.
pub fn is_icmpv6_type(kind: u8) -> bool {
    [ADVERTISEMENT, SOLICITATION, TERMINATION]
        .iter()
        .any(|t| t.1 == kind)
}

/// Whether an IGMP message of this type is one of multicast router discovery.
pub fn is_igmp_type(kind: u8) -> bool {
    [ADVERTISEMENT, SOLICITATION, TERMINATION]
        .iter()
        .any(|t| t.0 == kind)
}

/// Whether the IP packet at the start of `bytes` is for [`parse`] rather than for
/// [`super::membership::parse`].
pub fn is_message(datagram: &Datagram, bytes: &[u8]) -> bool {
    let is_type = if datagram.source.is_ipv4() {
        is_igmp_type
    } else {
        is_icmpv6_type
    };
    envelope::message_type(datagram, bytes).is_some_and(is_type)
}

/// Reads the IP packet at the start of `bytes`. What follows it is link-layer padding.
pub fn parse(bytes: &[u8], checks: &Checks<'_>) -> Result<Heard, Refusal> {
    let opened = envelope::open(bytes, checks)?;
    let own = |t: (u8, u8)| if opened.source.is_ipv4() { t.0 } else { t.1 };
    let kind = opened.message.first().copied().ok_or(Refusal::Truncated)?;
    let message = if kind == own(ADVERTISEMENT) {
        let fields = opened
            .message
            .first_chunk::<ADVERTISEMENT_LEN>()
            .ok_or(Refusal::Truncated)?;
        Message::Advertisement {
            interval: fields[1],
            query_interval: u16::from_be_bytes([fields[4], fields[5]]),
            robustness: u16::from_be_bytes([fields[6], fields[7]]),
        }
    } else if kind == own(SOLICITATION) {
        Message::Solicitation
    } else if kind == own(TERMINATION) {
        Message::Termination
    } else {
        return Err(Refusal::UnknownType);
    };
    if opened.message.len() < SHORT_LEN {
        return Err(Refusal::Truncated);
    }
    Ok(Heard {
        source: opened.source,
        destination: opened.destination,
        message,
    })
}

/// Writes the IP packet that says `message`: TTL or hop limit 1, Router Alert option, checksums,
/// and the destination of RFC 4286 sections 3 to 5. The source of IPv6 must be link-local.
pub fn build(message: &Message, source: IpAddr) -> Vec<u8> {
    let (types, rest) = match message {
        Message::Advertisement {
            interval,
            query_interval,
            robustness,
        } => {
            let mut rest = vec![*interval, 0, 0];
            rest.extend(query_interval.to_be_bytes());
            rest.extend(robustness.to_be_bytes());
            (ADVERTISEMENT, rest)
        }
        Message::Solicitation => (SOLICITATION, vec![0; 3]),
        Message::Termination => (TERMINATION, vec![0; 3]),
    };
    let to_routers = *message == Message::Solicitation;
    let (v4, v6) = if to_routers {
        (igmp::ALL_ROUTERS, mld::ALL_ROUTERS)
    } else {
        (ALL_SNOOPERS_V4, ALL_SNOOPERS_V6)
    };
    let whole = |kind: u8| [&[kind], rest.as_slice()].concat();
    match source {
        IpAddr::V4(source) => envelope::seal_v4(source, v4, &whole(types.0)),
        IpAddr::V6(source) => envelope::seal_v6(source, v6, &whole(types.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HeaderChecks;
    use crate::wire::membership::tests::bytes;

    // By scapy 2.5: IP(ttl=1, tos=0xc0, options=[IPOption_Router_Alert()]) / IGMPv3 / IGMPv3mra,
    // or Raw; IPv6(hlim=1) / IPv6ExtHdrHopByHop / ICMPv6MRD_Advertisement and its siblings.
    const VECTORS: &[(&str, &str, &str, Message)] = &[
        (
            "46c0002000000000010239ad0a000001e000006a940400003014cf6c007d0002",
            "10.0.0.1",
            "224.0.0.106",
            HERE,
        ),
        (
            "46c0001c0000000001023a190a000001e0000002940400003100ceff",
            "10.0.0.1",
            "224.0.0.2",
            Message::Solicitation,
        ),
        (
            "46c0001c00000000010239b10a000001e000006a940400003200cdff",
            "10.0.0.1",
            "224.0.0.106",
            Message::Termination,
        ),
        (
            "6000000000100001fe800000000000000000000000000001ff02000000000000000000000000006a3a0005020000010097146a3b007d0002",
            "fe80::1",
            "ff02::6a",
            HERE,
        ),
        (
            "60000000000c0001fe800000000000000000000000000001ff0200000000000000000000000000023a0005020000010098006a3a",
            "fe80::1",
            "ff02::2",
            Message::Solicitation,
        ),
        (
            "60000000000c0001fe800000000000000000000000000001ff02000000000000000000000000006a3a00050200000100990068d2",
            "fe80::1",
            "ff02::6a",
            Message::Termination,
        ),
    ];
    const HERE: Message = Message::Advertisement {
        interval: 20,
        query_interval: 125,
        robustness: 2,
    };

    fn strict(bytes: &[u8]) -> Result<Heard, Refusal> {
        let on_link = &["10.0.0.0/8".parse().unwrap()];
        let headers = HeaderChecks::Strict;
        parse(bytes, &Checks { headers, on_link })
    }

    #[test]
    fn messages_of_both_ip_versions() {
        for (hex, source, destination, message) in VECTORS {
            let packet = bytes(hex);
            let heard = strict(&packet).unwrap();
            assert_eq!(heard.message, *message);
            assert_eq!(heard.source.to_string(), *source);
            assert_eq!(heard.destination.to_string(), *destination);
            let datagram = Datagram::parse(&packet).unwrap();
            assert!(is_message(&datagram, &packet));
            assert!(datagram.is_membership_message(&packet));
            let ours = build(message, heard.source);
            // Ours forbids fragments; scapy's do not.
            let from = if heard.source.is_ipv4() { 12 } else { 0 };
            assert_eq!(ours[from..], packet[from..]);
            assert_eq!(strict(&ours), Ok(heard));
        }
    }

    #[test]
    fn no_prefix_is_a_message() {
        for (hex, ..) in VECTORS {
            let packet = bytes(hex);
            for cut in 0..packet.len() {
                assert_eq!(strict(&packet[..cut]), Err(Refusal::Truncated));
            }
        }
        // Lengths and checksums that fit: an advertisement of four bytes.
        let short = envelope::seal_v4([10, 0, 0, 1].into(), ALL_SNOOPERS_V4, &[0x30, 20, 0, 0]);
        assert_eq!(strict(&short), Err(Refusal::Truncated));
    }

    #[test]
    fn memberships_are_not_of_this_room() {
        let query = bytes("46c000200000000001023a160a000001e0000001940400001164ee9b00000000");
        assert_eq!(strict(&query), Err(Refusal::UnknownType));
        assert!(!is_message(&Datagram::parse(&query).unwrap(), &query));
    }
}
