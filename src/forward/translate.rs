//! (S,G) translation of single packets: other source and group, other UDP destination port, and
//! IPv4 to IPv6 or back.
//!
//! Packets come here as they are about to leave: checksums finished, segments cut, TTL set (see
//! [`super::finish`]). Between the IP versions RFC 7915 is followed; docs/translation.md says
//! where not, and what happens to each field. Checksums are updated, not computed anew (RFC
//! 1624): a packet that was damaged stays recognisably so.

use std::net::IpAddr;
use std::ops::Range;

use super::DropReason;
use super::fragment::{DONT_FRAGMENT, MORE_FRAGMENTS, fragment_v6};
use super::upper::{FRAGMENT_HEADER_LEN, Upper, protocol, put, upper, word};
use crate::model::{TranslationKind, TranslationRule};
use crate::wire::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN, IpHeader, refresh_ipv4_checksum};
use crate::wire::{checksum, udp};

/// The identifications of packets that had none: counted up, as a host does (RFC 6864 section
/// 4.3 asks that they do not come again soon where a packet may be fragmented).
#[derive(Debug, Clone, Copy, Default)]
pub struct Identifications(u32);

impl Identifications {
    /// Goes on after `last`.
    pub fn after(last: u32) -> Self {
        Self(last)
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

const ICMP_HEADER_LEN: usize = 8;
const ICMP_CHECKSUM_AT: usize = 2;
/// ICMP echo request and reply (RFC 792), and the same in ICMPv6 (RFC 4443 section 4).
const ECHO: [(u8, u8); 2] = [(8, 128), (0, 129)];
/// Largest IPv4 packet that leaves without DF (RFC 7915 section 5.1).
const MOST_WITHOUT_DF: usize = 1260;

/// The folded sums of what a checksum was made over and no longer is, and of what it is now.
#[derive(Debug, Clone, Copy)]
struct Change {
    old: u64,
    new: u64,
}

impl Change {
    fn of_addresses(old: (IpAddr, IpAddr), new: (IpAddr, IpAddr)) -> Self {
        let sum = |(source, group)| checksum::pseudo_header(source, group, 0, 0);
        Self {
            old: sum(old),
            new: sum(new),
        }
    }

    /// The checksum after the change (RFC 1624 equation 3).
    fn applied(self, to: u16) -> u16 {
        checksum::update_word(to, checksum::fold(self.old), checksum::fold(self.new))
    }
}

/// Writes port and checksum into the upper layer of a packet whose addresses change.
/// `body` starts at the upper layer; `whole` says that nothing of it is in other fragments.
fn change_upper(
    body: &mut [u8],
    upper: &Upper,
    family: TranslationKind,
    addresses: (IpAddr, IpAddr),
    rewrite: &TranslationRule,
    mut change: Change,
) -> Result<(), DropReason> {
    let v6 = matches!(
        family,
        TranslationKind::SixToSix | TranslationKind::SixToFour
    );
    let across = !family.keeps_ip_version();
    match upper.protocol {
        udp::PROTOCOL if !upper.has_header() => {}
        udp::PROTOCOL => {
            if body.len() < udp::HEADER_LEN {
                return Err(DropReason::Malformed);
            }
            if let Some(port) = rewrite.port() {
                change.old += u64::from(word(body, udp::DESTINATION_PORT_OFFSET));
                change.new += u64::from(port.get());
                put(body, udp::DESTINATION_PORT_OFFSET, port.get());
            }
            let sum = match word(body, udp::CHECKSUM_OFFSET) {
                0 if family == TranslationKind::FourToSix => {
                    // Over IPv6 there must be one (RFC 8200 section 8.1), and of a fragment it
                    // cannot be told (RFC 7915 section 4.5).
                    if !upper.is_whole() {
                        return Err(DropReason::TranslateFragment);
                    }
                    full_udp_checksum(body, addresses)?
                }
                0 => return Ok(()),
                sum => change.applied(sum),
            };
            put(body, udp::CHECKSUM_OFFSET, udp::checksum_field(sum));
        }
        protocol::ICMP if !v6 => {
            // Its checksum knows no addresses: within IPv4 nothing changes.
            if across {
                change_echo(body, upper, addresses, true)?;
            } else if upper.has_header() && !is_echo(body, false) {
                return Err(DropReason::TranslateProtocol);
            }
        }
        protocol::ICMPV6 if v6 => {
            if across {
                change_echo(body, upper, addresses, false)?;
            } else if upper.has_header() {
                if !is_echo(body, true) {
                    return Err(DropReason::TranslateProtocol);
                }
                let sum = change.applied(word(body, ICMP_CHECKSUM_AT));
                put(body, ICMP_CHECKSUM_AT, sum);
            }
        }
        // No checksum over the outer addresses.
        protocol::GRE | protocol::IPV4 | protocol::IPV6 => {}
        _ => return Err(DropReason::TranslateProtocol),
    }
    Ok(())
}

fn full_udp_checksum(body: &[u8], addresses: (IpAddr, IpAddr)) -> Result<u16, DropReason> {
    let len = usize::from(word(body, udp::LENGTH_OFFSET));
    let datagram = body
        .get(..len)
        .filter(|d| d.len() >= udp::HEADER_LEN)
        .ok_or(DropReason::Malformed)?;
    let sum = checksum::pseudo_header(addresses.0, addresses.1, udp::PROTOCOL, len as u32);
    Ok(!checksum::fold(checksum::add(sum, datagram)))
}

fn is_echo(body: &[u8], v6: bool) -> bool {
    let known = |kind| ECHO.iter().any(|e| kind == if v6 { e.1 } else { e.0 });
    body.len() >= ICMP_HEADER_LEN && known(body[0])
}

/// Makes an ICMP echo an ICMPv6 one (`up`) or the other way round (RFC 7915 sections 4.2 and
/// 5.2). `addresses` are those of the IPv6 packet: only there the checksum is over them.
fn change_echo(
    body: &mut [u8],
    upper: &Upper,
    (source, group): (IpAddr, IpAddr),
    up: bool,
) -> Result<(), DropReason> {
    // The pseudo-header holds the length of the whole message (RFC 7915 section 1.2).
    if !upper.is_whole() {
        return Err(DropReason::TranslateFragment);
    }
    let becomes = |kind: u8| {
        let pair = ECHO.iter().find(|e| kind == if up { e.0 } else { e.1 })?;
        Some(if up { pair.1 } else { pair.0 })
    };
    let kind = body.first().copied().and_then(becomes);
    let kind = kind
        .filter(|_| body.len() >= ICMP_HEADER_LEN)
        .ok_or(DropReason::TranslateProtocol)?;
    let len = body.len() as u32;
    let pseudo = checksum::pseudo_header(source, group, protocol::ICMPV6, len);
    let (old, new) = if up { (0, pseudo) } else { (pseudo, 0) };
    let old_word = word(body, 0);
    body[0] = kind;
    let change = Change {
        old: old + u64::from(old_word),
        new: new + u64::from(word(body, 0)),
    };
    let sum = change.applied(word(body, ICMP_CHECKSUM_AT));
    put(body, ICMP_CHECKSUM_AT, sum);
    Ok(())
}

fn new_addresses(
    datagram: &IpHeader,
    rewrite: &TranslationRule,
) -> Result<(IpAddr, IpAddr), DropReason> {
    let (source, destination) = rewrite.addresses(datagram.source, datagram.destination);
    let new = IpHeader {
        source,
        destination,
        ..*datagram
    };
    // A wide prefix may hold addresses that are none: 64:ff9b::e101:203 is 225.1.2.3.
    if !new.source_is_valid() {
        return Err(DropReason::BadSource);
    }
    Ok((source, destination))
}

/// Rewrites a packet whose IP version stays. `packet` is the IP packet without padding,
/// `datagram` what was read of it. A packet that is refused is left half changed.
pub fn in_place(
    packet: &mut [u8],
    datagram: &IpHeader,
    rewrite: &TranslationRule,
) -> Result<TranslationKind, DropReason> {
    let family = rewrite.kind();
    let upper = upper(packet, datagram)?;
    let old = (datagram.source, datagram.destination);
    let new = new_addresses(datagram, rewrite)?;
    let change = Change::of_addresses(old, new);
    let body = packet.get_mut(upper.at..).ok_or(DropReason::Truncated)?;
    change_upper(body, &upper, family, new, rewrite, change)?;
    match new {
        (IpAddr::V4(source), IpAddr::V4(group)) => {
            if let Some(field) = packet.get_mut(12..20) {
                field[..4].copy_from_slice(&source.octets());
                field[4..].copy_from_slice(&group.octets());
            }
            let sum = change.applied(word(packet, 10));
            put(packet, 10, sum);
        }
        (IpAddr::V6(source), IpAddr::V6(group)) => {
            if let Some(field) = packet.get_mut(8..40) {
                field[..16].copy_from_slice(&source.octets());
                field[16..].copy_from_slice(&group.octets());
            }
        }
        // The caller did not ask whether it is.
        _ => return Err(DropReason::Malformed),
    }
    Ok(family)
}

/// Translates a packet to the other IP version, appended to `out`; `each` is told where each
/// packet stands, of which there are several where an IPv4 packet that may be fragmented
/// outgrows `mtu`. `packet` is the IP packet without padding, `datagram` what was read of it.
pub fn across(
    packet: &[u8],
    datagram: &IpHeader,
    rewrite: &TranslationRule,
    ids: &mut Identifications,
    mtu: usize,
    out: &mut Vec<u8>,
    mut each: impl FnMut(Range<usize>),
) -> Result<TranslationKind, DropReason> {
    let start = out.len();
    let family = rewrite.kind();
    let written = match family {
        TranslationKind::FourToSix => four_to_six(packet, datagram, rewrite, out),
        TranslationKind::SixToFour => six_to_four(packet, datagram, rewrite, ids, out),
        // The caller did not ask whether it is.
        TranslationKind::FourToFour | TranslationKind::SixToSix => Err(DropReason::Malformed),
    };
    if let Err(reason) = written {
        out.truncate(start);
        return Err(reason);
    }
    let may_fragment = family == TranslationKind::FourToSix && word(packet, 6) & DONT_FRAGMENT == 0;
    if out.len() - start <= mtu || !may_fragment {
        each(start..out.len());
        return Ok(family);
    }
    // As RFC 7915 section 4 has it, with the MTU there is in place of 1280.
    let whole = out.split_off(start);
    let cut = fragment_v6(&whole, mtu, word(packet, 4).into(), out, each);
    if let Err(reason) = cut {
        out.truncate(start);
        return Err(reason);
    }
    Ok(family)
}

/// RFC 7915 section 4.1.
fn four_to_six(
    packet: &[u8],
    datagram: &IpHeader,
    rewrite: &TranslationRule,
    out: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let upper = upper(packet, datagram)?;
    let new = new_addresses(datagram, rewrite)?;
    let (IpAddr::V6(source), IpAddr::V6(group)) = new else {
        return Err(DropReason::Malformed);
    };
    let body = packet
        .get(upper.at..datagram.packet_len)
        .ok_or(DropReason::Truncated)?;
    let next = match upper.protocol {
        protocol::ICMP => protocol::ICMPV6,
        other => other,
    };
    let start = out.len();
    let extension = upper.part.map_or(0, |_| FRAGMENT_HEADER_LEN);
    let class = packet.get(1).copied().unwrap_or_default();
    let mut header = [0u8; IPV6_HEADER_LEN];
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    put(&mut header, 4, (body.len() + extension) as u16);
    header[6] = upper.part.map_or(next, |_| protocol::FRAGMENT);
    // Set before, by the policy of the route.
    header[7] = packet.get(8).copied().unwrap_or_default();
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&group.octets());
    out.extend_from_slice(&header);
    if let Some(part) = upper.part {
        let mut extension = [0u8; FRAGMENT_HEADER_LEN];
        extension[0] = next;
        put(&mut extension, 2, part.offset << 3 | u16::from(part.more));
        extension[4..].copy_from_slice(&part.id.to_be_bytes());
        out.extend_from_slice(&extension);
    }
    out.extend_from_slice(body);
    let body = &mut out[start + IPV6_HEADER_LEN + extension..];
    let change = Change::of_addresses((datagram.source, datagram.destination), new);
    change_upper(
        body,
        &upper,
        TranslationKind::FourToSix,
        new,
        rewrite,
        change,
    )
}

/// RFC 7915 section 5.1.
fn six_to_four(
    packet: &[u8],
    datagram: &IpHeader,
    rewrite: &TranslationRule,
    ids: &mut Identifications,
    out: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let upper = upper(packet, datagram)?;
    let old = (datagram.source, datagram.destination);
    let new = new_addresses(datagram, rewrite)?;
    let (IpAddr::V4(source), IpAddr::V4(group)) = new else {
        return Err(DropReason::Malformed);
    };
    let body = packet
        .get(upper.at..datagram.packet_len)
        .ok_or(DropReason::Truncated)?;
    let total = IPV4_MIN_HEADER_LEN + body.len();
    if total > usize::from(u16::MAX) {
        return Err(DropReason::TooBig);
    }
    let start = out.len();
    let mut header = [0u8; IPV4_MIN_HEADER_LEN];
    header[0] = 0x45;
    header[1] = (word(packet, 0) >> 4) as u8;
    put(&mut header, 2, total as u16);
    let (id, flags) = match upper.part {
        Some(part) => {
            let more = if part.more { MORE_FRAGMENTS } else { 0 };
            (part.id, more | part.offset)
        }
        None if total > MOST_WITHOUT_DF => (ids.next(), DONT_FRAGMENT),
        None => (ids.next(), 0),
    };
    put(&mut header, 4, id as u16);
    put(&mut header, 6, flags);
    // Set before, by the policy of the route.
    header[8] = packet.get(7).copied().unwrap_or_default();
    header[9] = match upper.protocol {
        protocol::ICMPV6 => protocol::ICMP,
        other => other,
    };
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&group.octets());
    refresh_ipv4_checksum(&mut header);
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
    let body = &mut out[start + IPV4_MIN_HEADER_LEN..];
    let change = Change::of_addresses(old, new);
    // The pseudo-header of ICMPv6 is over the addresses that were.
    let addresses = if upper.protocol == protocol::ICMPV6 {
        old
    } else {
        new
    };
    change_upper(
        body,
        &upper,
        TranslationKind::SixToFour,
        addresses,
        rewrite,
        change,
    )
}
