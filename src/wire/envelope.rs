//! The IP packets that IGMP, MLD and multicast router discovery travel in: what their headers
//! must say, and how they are written (RFC 9776 section 4, RFC 9777 section 5, RFC 4286
//! sections 3 to 5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::ip::{Datagram, IPV6_HEADER_LEN};
use super::{Refusal, checksum, mld, mrdisc};
use crate::model::HeaderChecks;

/// The protocol number of IGMP.
pub const IGMP: u8 = 2;
/// The protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;

/// Bytes of the IPv4 header we write: with a Router Alert option.
pub const IPV4_LEN: usize = 24;
/// Bytes of the IPv6 header we write: with a hop-by-hop header that bears a Router Alert option.
pub const IPV6_LEN: usize = IPV6_HEADER_LEN + 8;

/// The Router Alert option of IPv4, with value 0: every router looks at it (RFC 2113).
const ALERT_V4: [u8; 4] = [148, 4, 0, 0];
/// The Router Alert option of IPv6, with value 0: MLD (RFC 2711).
const ALERT_V6: [u8; 4] = [5, 2, 0, 0];
/// ToS with precedence Internetwork Control (RFC 9776 section 4).
const TOS: u8 = 0xc0;
/// The link and no further.
const TTL: u8 = 1;

/// What the header of a message is held against.
#[derive(Debug, Clone, Copy)]
pub struct Checks<'a> {
    /// How exactly.
    pub headers: HeaderChecks,
    /// The subnets of the interface. Only IPv4 messages are held against them: those of IPv6
    /// come from a link-local address.
    pub on_link: &'a [IpNet],
}

/// A message out of its packet: the header is as it must be and the checksum right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The IGMP or ICMPv6 message, without padding. Never empty.
    pub message: &'a [u8],
}

/// The bytes behind the headers of a packet of IGMP or ICMPv6, and whether a Router Alert option
/// stands before them.
fn behind_headers<'a>(datagram: &Datagram, bytes: &'a [u8]) -> Result<(&'a [u8], Alert), Refusal> {
    let rest = bytes.get(datagram.header_len..datagram.len);
    let rest = rest.ok_or(Refusal::Truncated)?;
    match (datagram.source, datagram.protocol, rest) {
        (IpAddr::V4(_), IGMP, _) => {
            let options = bytes.get(20..datagram.header_len).unwrap_or_default();
            Ok((rest, alert(options, &ALERT_V4)))
        }
        (IpAddr::V6(_), ICMPV6, _) => Ok((rest, Alert::Absent)),
        // MLD always bears a router alert option there (RFC 9777 section 5).
        (IpAddr::V6(_), HOP_BY_HOP, [ICMPV6, len, ..]) => {
            let len = (usize::from(*len) + 1) * 8;
            let (header, message) = rest.split_at_checked(len).ok_or(Refusal::Truncated)?;
            Ok((message, alert(&header[2..], &ALERT_V6)))
        }
        _ => Err(Refusal::UnknownType),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alert {
    Present,
    Absent,
    /// The options contradict themselves.
    Broken,
}

/// Looks for the option `wanted` among those of a header. Both IP versions write type, length
/// and value, and have options of one byte; but IPv4 counts type and length in.
fn alert(mut options: &[u8], wanted: &[u8; 4]) -> Alert {
    let is_v4 = wanted == &ALERT_V4;
    while let [kind, rest @ ..] = options {
        match (is_v4, kind) {
            (true, 0) => return Alert::Absent,
            (true, 1) | (false, 0) => {
                options = rest;
                continue;
            }
            _ => {}
        }
        let own = if is_v4 { 0 } else { 2 };
        let len = rest.first().map_or(0, |l| usize::from(*l) + own);
        let Some((option, rest)) = options.split_at_checked(len).filter(|_| len >= 2) else {
            return Alert::Broken;
        };
        if option == wanted {
            return Alert::Present;
        }
        options = rest;
    }
    Alert::Absent
}

/// True for IGMP, for MLD and for multicast router discovery: messages between the hosts and
/// routers of a link, which no router forwards. `bytes` is the packet.
pub fn is_link_message(datagram: &Datagram, bytes: &[u8]) -> bool {
    if datagram.source.is_ipv4() {
        // Of every type: mtrace and old routing protocols too are between neighbours.
        return datagram.protocol == IGMP;
    }
    message_type(datagram, bytes)
        .is_some_and(|kind| mld::is_type(kind) || mrdisc::is_icmpv6_type(kind))
}

/// The type of the IGMP or ICMPv6 message in a packet, if it holds one.
pub(super) fn message_type(datagram: &Datagram, bytes: &[u8]) -> Option<u8> {
    let (message, _) = behind_headers(datagram, bytes).ok()?;
    message.first().copied()
}

/// Takes the message out of the IP packet at the start of `bytes`. Checks the header and the
/// checksum, and nothing of what the message says.
pub fn open<'a>(bytes: &'a [u8], checks: &Checks<'_>) -> Result<Opened<'a>, Refusal> {
    let datagram = Datagram::parse(bytes)?;
    let (source, destination) = (datagram.source, datagram.destination);
    if is_fragment(bytes) {
        return Err(Refusal::Fragment);
    }
    let (message, alert) = behind_headers(&datagram, bytes)?;
    let kind = *message.first().ok_or(Refusal::Truncated)?;
    let known = match source {
        IpAddr::V4(_) => true,
        // Most of ICMPv6 is something else, and none of our business.
        IpAddr::V6(_) => mld::is_type(kind) || mrdisc::is_icmpv6_type(kind),
    };
    if !known {
        return Err(Refusal::UnknownType);
    }
    let broadcast = |a: IpAddr| matches!(a, IpAddr::V4(a) if a.is_broadcast());
    let nobody = |net: &IpNet| is_nobody(source, net);
    if source.is_multicast()
        || source.is_loopback()
        || broadcast(source)
        || checks.on_link.iter().any(nobody)
    {
        return Err(Refusal::BadSource);
    }
    let interface_local =
        matches!(destination, IpAddr::V6(a) if a.is_multicast() && a.octets()[1] & 0x0f < 2);
    if destination.is_unspecified()
        || destination.is_loopback()
        || broadcast(destination)
        || interface_local
    {
        return Err(Refusal::BadDestination);
    }
    let sum = match source {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo_header(source, destination, ICMPV6, message.len() as u32),
    };
    if checksum::fold(checksum::add(sum, message)) != 0xffff {
        return Err(Refusal::Checksum);
    }
    if alert == Alert::Broken {
        return Err(Refusal::Malformed);
    }
    // The querier of a link is known by its link-local address, and the lowest wins: any other
    // would win unduly (RFC 9777 section 5.1.14).
    if kind == mld::QUERY && source.is_ipv6() && !is_link_local(source) {
        return Err(Refusal::NotLinkLocal);
    }
    if checks.headers == HeaderChecks::Strict {
        strict(&datagram, message, alert, checks.on_link)?;
    }
    Ok(Opened {
        source,
        destination,
        message,
    })
}

fn strict(
    datagram: &Datagram,
    message: &[u8],
    alert: Alert,
    on_link: &[IpNet],
) -> Result<(), Refusal> {
    if datagram.ttl != TTL {
        return Err(Refusal::Ttl);
    }
    // RFC 1112 knows no Router Alert option.
    let version_1 = datagram.source.is_ipv4() && super::igmp::is_version_1(message);
    if alert != Alert::Present && !version_1 {
        return Err(Refusal::NoRouterAlert);
    }
    let source = datagram.source;
    if source.is_ipv6() {
        // Reports from the unspecified address are for snooping switches; routers discard them
        // (RFC 9777 section 5.2).
        return if is_link_local(source) {
            Ok(())
        } else {
            Err(Refusal::NotLinkLocal)
        };
    }
    // Hosts without an address yet send from none, and are heard (RFC 9776 section 4.2).
    if source.is_unspecified() || on_link.iter().any(|net| net.contains(&source)) {
        Ok(())
    } else {
        Err(Refusal::OffLink)
    }
}

/// Whether an IPv4 address is that of the subnet itself or its broadcast address, which no host
/// has; the first would always be the lowest on the link.
fn is_nobody(addr: IpAddr, net: &IpNet) -> bool {
    matches!(net, IpNet::V4(net) if net.prefix_len() < 31
        && (addr == net.network() || addr == net.broadcast()))
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Of IPv4: more fragments, or an offset. Of IPv6 a fragment header stands where the message
/// should, which is seen as another protocol.
fn is_fragment(bytes: &[u8]) -> bool {
    matches!(bytes, [first, _, _, _, _, _, high, low, ..]
        if first >> 4 == 4 && (high & 0x3f, *low) != (0, 0))
}

/// Puts an IGMP message into a packet, and its checksum into bytes 2 and 3. At most 65,511
/// bytes fit.
pub fn seal_v4(source: Ipv4Addr, destination: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let len = (IPV4_LEN + message.len()) as u16;
    let mut packet = Vec::with_capacity(IPV4_LEN + message.len());
    packet.extend([0x46, TOS]);
    packet.extend(len.to_be_bytes());
    // Not to be fragmented, so that no identification is needed (RFC 6864 section 4).
    packet.extend([0, 0, 0x40, 0, TTL, IGMP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(ALERT_V4);
    super::ip::refresh_ipv4_checksum(&mut packet);
    packet.extend(message);
    fill_checksum(&mut packet[IPV4_LEN..], 0);
    packet
}

/// Puts an ICMPv6 message into a packet, and its checksum into bytes 2 and 3. At most 65,527
/// bytes fit.
pub fn seal_v6(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let payload = (IPV6_LEN - IPV6_HEADER_LEN + message.len()) as u16;
    let mut packet = Vec::with_capacity(IPV6_LEN + message.len());
    packet.extend([0x60, 0, 0, 0]);
    packet.extend(payload.to_be_bytes());
    packet.extend([HOP_BY_HOP, TTL]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([ICMPV6, 0]);
    packet.extend(ALERT_V6);
    // PadN of no bytes.
    packet.extend([1, 0]);
    packet.extend(message);
    let (source, destination) = (source.into(), destination.into());
    let sum = checksum::pseudo_header(source, destination, ICMPV6, message.len() as u32);
    fill_checksum(&mut packet[IPV6_LEN..], sum);
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
