//! IP packets that carry link control messages: validation and construction of their headers
//! (RFC 9776 section 4, RFC 9777 section 5, RFC 4286 sections 3 to 5).
//!
//! A *link control message* is an IGMP, MLD or multicast router discovery message. Hosts and
//! routers exchange it on one link, and no router forwards it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::ip::{IPV6_HEADER_LEN, IpHeader};
use super::{RejectReason, WireError, checksum, extension_headers, icmpv6, mld};
use crate::model::HeaderChecks;

/// IP protocol number of IGMP.
pub const IGMP: u8 = 2;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = icmpv6::PROTOCOL;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const VRRP: u8 = 112;
/// ICMP types of router discovery (RFC 1256 section 3).
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;
const ICMP_ROUTER_SOLICITATION: u8 = 10;
const HOP_BY_HOP: u8 = 0;

/// Length of the IPv4 header that [`encapsulate_v4`] writes: 20 bytes and a Router Alert option.
pub const IPV4_HEADERS_LEN: usize = 24;
/// Length of the IPv6 headers that [`encapsulate_v6`] writes: the IPv6 header and a hop-by-hop
/// options header of 8 bytes with a Router Alert option.
pub const IPV6_HEADERS_LEN: usize = IPV6_HEADER_LEN + 8;

/// The IPv4 Router Alert option with value 0: every router examines the packet (RFC 2113).
const ROUTER_ALERT_V4: [u8; 4] = [148, 4, 0, 0];
/// The IPv6 Router Alert option with value 0: the packet contains an MLD message (RFC 2711).
const ROUTER_ALERT_V6: [u8; 4] = [5, 2, 0, 0];
/// ToS with precedence Internetwork Control (RFC 9776 section 4).
const TOS: u8 = 0xc0;
/// TTL and hop limit of packets that must not leave the link.
const TTL: u8 = 1;

/// The requirements on the IP header of a link control message.
#[derive(Debug, Clone, Copy)]
pub struct HeaderPolicy<'a> {
    /// Which requirements on TTL, Router Alert and source address are enforced.
    pub headers: HeaderChecks,
    /// The subnets of the interface. IPv4 sources must be in one of them. Without an IPv4 subnet,
    /// nothing tells which sources are on the link, and all are accepted. IPv6 sources are not
    /// compared: they must be link-local.
    pub on_link: &'a [IpNet],
}

/// The IGMP or ICMPv6 payload of a packet with a valid header and a correct checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlPayload<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The IGMP or ICMPv6 message without padding. Never empty.
    pub message: &'a [u8],
}

/// Splits the headers off an IGMP or ICMPv6 packet. Returns the payload and the state of the Router
/// Alert option.
fn split_headers<'a>(
    header: &IpHeader,
    bytes: &'a [u8],
) -> Result<(&'a [u8], RouterAlert), RejectReason> {
    let rest = bytes.get(header.header_len..header.packet_len);
    let rest = rest.ok_or(RejectReason::Truncated)?;
    match (header.source, header.protocol, rest) {
        (IpAddr::V4(_), IGMP, _) => {
            let options = bytes.get(20..header.header_len).unwrap_or_default();
            Ok((rest, find_router_alert(options, &ROUTER_ALERT_V4)))
        }
        (IpAddr::V6(_), ICMPV6, _) => Ok((rest, RouterAlert::Absent)),
        // MLD packets have a hop-by-hop options header (RFC 9777 section 5).
        (IpAddr::V6(_), HOP_BY_HOP, [ICMPV6, len, ..]) => {
            let len = (usize::from(*len) + 1) * 8;
            let (options_header, message) =
                rest.split_at_checked(len).ok_or(RejectReason::Truncated)?;
            let alert = find_router_alert(&options_header[2..], &ROUTER_ALERT_V6);
            Ok((message, alert))
        }
        _ => Err(RejectReason::UnknownType),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RouterAlert {
    Present,
    Absent,
    /// The length of an option is invalid.
    InvalidOptions,
}

/// Searches the options of a header for the Router Alert option `alert`.
///
/// Options of both IP versions consist of type, length and value, and both versions have one-byte
/// padding options. The length includes type and length in IPv4 but not in IPv6.
fn find_router_alert(mut options: &[u8], alert: &[u8; 4]) -> RouterAlert {
    let is_v4 = alert == &ROUTER_ALERT_V4;
    while let [kind, rest @ ..] = options {
        match (is_v4, kind) {
            (true, 0) => return RouterAlert::Absent,
            (true, 1) | (false, 0) => {
                options = rest;
                continue;
            }
            _ => {}
        }
        let uncounted = if is_v4 { 0 } else { 2 };
        let len = rest.first().map_or(0, |l| usize::from(*l) + uncounted);
        let Some((option, rest)) = options.split_at_checked(len).filter(|_| len >= 2) else {
            return RouterAlert::InvalidOptions;
        };
        if option == alert {
            return RouterAlert::Present;
        }
        options = rest;
    }
    RouterAlert::Absent
}

/// The class of a packet, which decides whether a router may forward it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketClass {
    /// A link control message.
    LinkControl,
    /// Another message that must not leave its link: IPv6 neighbour discovery (RFC 4861 section
    /// 4.1 to 4.5, RFC 3122), ICMP router discovery (RFC 1256) or VRRP (RFC 9568). Receivers of most
    /// of them take a hop limit of 255 as the proof that the sender is on the link. A route that
    /// keeps or sets the TTL would make this proof worthless.
    LinkOnly,
    /// Anything else.
    Data,
}

/// Returns the class of the packet `bytes` with the given header.
///
/// In IPv4 every packet of protocol 2 is a link control message: mtrace and old routing protocols,
/// too, are exchanged between neighbours only. In IPv6 a message is recognised behind any extension
/// headers.
///
/// # Errors
/// The extension headers are malformed.
pub fn classify(header: &IpHeader, bytes: &[u8]) -> Result<PacketClass, WireError> {
    let is_v4 = header.source.is_ipv4();
    let icmp_type = match header.protocol {
        UDP => None,
        VRRP => return Ok(PacketClass::LinkOnly),
        IGMP if is_v4 => return Ok(PacketClass::LinkControl),
        ICMP if is_v4 && !is_later_fragment(bytes) => bytes.get(header.header_len).copied(),
        _ if is_v4 => None,
        _ => extension_headers::icmpv6_type(header, bytes)?,
    };
    Ok(match icmp_type {
        Some(ICMP_ROUTER_ADVERTISEMENT | ICMP_ROUTER_SOLICITATION) if is_v4 => {
            PacketClass::LinkOnly
        }
        Some(kind) if !is_v4 && icmpv6::is_neighbor_discovery(kind) => PacketClass::LinkOnly,
        Some(kind) if !is_v4 && (mld::is_type(kind) || icmpv6::is_mrd_type(kind)) => {
            PacketClass::LinkControl
        }
        _ => PacketClass::Data,
    })
}

/// Returns whether an IPv4 packet is a fragment other than the first.
fn is_later_fragment(bytes: &[u8]) -> bool {
    matches!(bytes, [_, _, _, _, _, _, high, low, ..] if (high & 0x1f, *low) != (0, 0))
}

/// Returns the type of the IGMP or ICMPv6 message in a packet, or `None` if it contains none.
pub(super) fn message_type(header: &IpHeader, bytes: &[u8]) -> Option<u8> {
    let (message, _) = split_headers(header, bytes).ok()?;
    message.first().copied()
}

/// Validates the headers and the checksum of the IP packet at the start of `bytes` and returns its
/// payload. Does not check the message beyond its type.
///
/// # Errors
/// The first check that fails. A packet that carries no link control message fails with
/// [`RejectReason::UnknownType`].
pub fn decapsulate<'a>(
    bytes: &'a [u8],
    policy: &HeaderPolicy<'_>,
) -> Result<ControlPayload<'a>, RejectReason> {
    let header = IpHeader::parse(bytes)?;
    let (source, destination) = (header.source, header.destination);
    if is_ipv4_fragment(bytes) {
        return Err(RejectReason::Fragment);
    }
    let (message, alert) = split_headers(&header, bytes)?;
    let kind = *message.first().ok_or(RejectReason::Truncated)?;
    let is_link_control = match source {
        IpAddr::V4(_) => true,
        IpAddr::V6(_) => mld::is_type(kind) || icmpv6::is_mrd_type(kind),
    };
    if !is_link_control {
        return Err(RejectReason::UnknownType);
    }
    let is_broadcast = |a: IpAddr| matches!(a, IpAddr::V4(a) if a.is_broadcast());
    if source.is_multicast()
        || source.is_loopback()
        || is_broadcast(source)
        || policy
            .on_link
            .iter()
            .any(|net| is_network_or_broadcast(source, net))
    {
        return Err(RejectReason::BadSource);
    }
    let is_interface_local =
        matches!(destination, IpAddr::V6(a) if a.is_multicast() && a.octets()[1] & 0x0f < 2);
    if destination.is_unspecified()
        || destination.is_loopback()
        || is_broadcast(destination)
        || is_interface_local
    {
        return Err(RejectReason::BadDestination);
    }
    let sum = match source {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo_header(source, destination, ICMPV6, message.len() as u32),
    };
    if checksum::fold(checksum::add(sum, message)) != 0xffff {
        return Err(RejectReason::Checksum);
    }
    if alert == RouterAlert::InvalidOptions {
        return Err(RejectReason::Malformed);
    }
    // The lowest source address wins the querier election. Only link-local addresses may take part
    // (RFC 9777 section 5.1.14), so this check applies to lenient policies as well.
    if kind == mld::QUERY && source.is_ipv6() && !is_link_local(source) {
        return Err(RejectReason::NotLinkLocal);
    }
    if policy.headers != HeaderChecks::Lenient {
        check_header(&header, message, alert, policy)?;
    }
    Ok(ControlPayload {
        source,
        destination,
        message,
    })
}

/// Applies the checks that [`HeaderChecks::Lenient`] omits: TTL, Router Alert and source address.
fn check_header(
    header: &IpHeader,
    message: &[u8],
    alert: RouterAlert,
    policy: &HeaderPolicy<'_>,
) -> Result<(), RejectReason> {
    if header.ttl != TTL {
        return Err(RejectReason::Ttl);
    }
    // RFC 1112 does not define the Router Alert option.
    let needs_alert = match header.source {
        IpAddr::V4(_) => {
            policy.headers == HeaderChecks::Strict && !super::igmp::is_version_1(message)
        }
        IpAddr::V6(_) => true,
    };
    if alert != RouterAlert::Present && needs_alert {
        return Err(RejectReason::NoRouterAlert);
    }
    let source = header.source;
    if source.is_ipv6() {
        // Routers discard reports from the unspecified address, which are meant for snooping
        // switches (RFC 9777 section 5.2).
        return if is_link_local(source) {
            Ok(())
        } else {
            Err(RejectReason::NotLinkLocal)
        };
    }
    // Hosts that have no address yet send from 0.0.0.0 (RFC 9776 section 4.2).
    let mut subnets = policy.on_link.iter().filter(|net| net.addr().is_ipv4());
    let has_no_subnet = subnets.clone().next().is_none();
    if source.is_unspecified() || has_no_subnet || subnets.any(|net| net.contains(&source)) {
        Ok(())
    } else {
        Err(RejectReason::OffLink)
    }
}

/// Returns true if `addr` is the network address or the broadcast address of an IPv4 subnet.
///
/// No host has such an address, and the network address would win every querier election.
fn is_network_or_broadcast(addr: IpAddr, net: &IpNet) -> bool {
    matches!(net, IpNet::V4(net) if net.prefix_len() < 31
        && (addr == net.network() || addr == net.broadcast()))
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Returns true if an IPv4 packet has the More Fragments flag or a fragment offset.
///
/// An IPv6 fragment needs no check: its fragment header takes the place of the ICMPv6 protocol.
fn is_ipv4_fragment(bytes: &[u8]) -> bool {
    matches!(bytes, [first, _, _, _, _, _, high, low, ..]
        if first >> 4 == 4 && (high & 0x3f, *low) != (0, 0))
}

/// Returns an IPv4 packet that carries the IGMP message `message`, at most 65,511 bytes.
///
/// The packet has TTL 1 and a Router Alert option. Stores the IGMP checksum in bytes 2 and 3 of the
/// message.
pub fn encapsulate_v4(source: Ipv4Addr, destination: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let len = (IPV4_HEADERS_LEN + message.len()) as u16;
    let mut packet = Vec::with_capacity(IPV4_HEADERS_LEN + message.len());
    packet.extend([0x46, TOS]);
    packet.extend(len.to_be_bytes());
    // Don't Fragment is set, so the packet needs no identification (RFC 6864 section 4).
    packet.extend([0, 0, 0x40, 0, TTL, IGMP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(ROUTER_ALERT_V4);
    super::ip::refresh_ipv4_checksum(&mut packet);
    packet.extend(message);
    fill_checksum(&mut packet[IPV4_HEADERS_LEN..], 0);
    packet
}

/// Returns an IPv6 packet that carries the ICMPv6 message `message`, at most 65,527 bytes.
///
/// The packet has hop limit 1 and a Router Alert option. Stores the ICMPv6 checksum in bytes 2 and
/// 3 of the message.
pub fn encapsulate_v6(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let payload_len = (IPV6_HEADERS_LEN - IPV6_HEADER_LEN + message.len()) as u16;
    let mut packet = Vec::with_capacity(IPV6_HEADERS_LEN + message.len());
    packet.extend([0x60, 0, 0, 0]);
    packet.extend(payload_len.to_be_bytes());
    packet.extend([HOP_BY_HOP, TTL]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([ICMPV6, 0]);
    packet.extend(ROUTER_ALERT_V6);
    // A PadN option without data fills the header to 8 bytes.
    packet.extend([1, 0]);
    packet.extend(message);
    let (source, destination) = (source.into(), destination.into());
    let sum = checksum::pseudo_header(source, destination, ICMPV6, message.len() as u32);
    fill_checksum(&mut packet[IPV6_HEADERS_LEN..], sum);
    packet
}

fn fill_checksum(message: &mut [u8], pseudo_header: u64) {
    if message.len() < 4 {
        return;
    }
    message[2..4].fill(0);
    let sum = !checksum::fold(checksum::add(pseudo_header, message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::tests::{V4, V6, bytes};

    fn class(hex: &str) -> PacketClass {
        let bytes = bytes(hex);
        classify(&IpHeader::parse(&bytes).unwrap(), &bytes).unwrap()
    }

    #[test]
    fn messages_of_one_link_are_recognised() {
        // From 2001:db8::1 to ff3e::225:1: `ICMPv6ND_RA()` and `ICMPv6EchoRequest()`; from 10.0.0.1
        // to 225.1.2.3: `VRRP(vrid=1, addrlist=["10.0.0.9"])` and `ICMP(type=9)`; by scapy.
        let advertisement = "6000000000103aff20010db8000000000000000000000001ff3e000000000000000000000225000186004386000807080000000000000000";
        let echo = "6000000000083a0120010db8000000000000000000000001ff3e00000000000000000000022500018000509e00000000";
        let vrrp =
            "4500002800010000ff70ce5f0a000001e101020321016401000170f30a0000090000000000000000";
        let router_discovery = "4500001c000100000101ccdb0a000001e10102030900f6ff00000000";
        assert_eq!(class(advertisement), PacketClass::LinkOnly);
        assert_eq!(class(echo), PacketClass::Data);
        assert_eq!(class(vrrp), PacketClass::LinkOnly);
        assert_eq!(class(router_discovery), PacketClass::LinkOnly);
        // The same bytes in a fragment other than the first are data.
        let later = router_discovery
            .replace("0001000001", "0001000101")
            .replace("ccdb", "ccda");
        assert_eq!(class(&later), PacketClass::Data);
    }

    #[test]
    fn link_control_messages_are_distinguished_from_data() {
        // `IP(src="10.0.0.1", dst="224.0.0.22", ttl=1, proto=2)/b"\x22\0\0\0\0\0\0\0"` and
        // `IPv6(src="fe80::1", dst="ff02::16", hlim=1)/IPv6ExtHdrHopByHop(options=
        // RouterAlert())/ICMPv6MLReport2()`, built by scapy.
        let igmp = "4500001c000100000102cfc80a000001e00000162200000000000000";
        let mld = "6000000000100001fe800000000000000000000000000001ff0200000000000000000000000000163a000502000001008f00732200000000";
        assert_eq!(class(igmp), PacketClass::LinkControl);
        assert_eq!(class(mld), PacketClass::LinkControl);
        assert_eq!(class(V4), PacketClass::Data);
        assert_eq!(class(V6), PacketClass::Data);
    }
}
