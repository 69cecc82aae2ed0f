//! Translation of the source, group and UDP destination port of a packet, within an IP version or
//! between IPv4 and IPv6.
//!
//! Packets are translated just before they are sent, with complete checksums, segmented and with
//! the new TTL (see [`super::finish`]). Translation between the IP versions follows RFC 7915;
//! docs/translation.md lists the differences and describes each field. Checksums are updated
//! incrementally (RFC 1624), so that a corrupt packet keeps a wrong checksum.

use std::net::IpAddr;
use std::ops::Range;

use super::DropReason;
use super::fragment::{DONT_FRAGMENT, MORE_FRAGMENTS, fragment_v6};
use super::upper::{
    FRAGMENT_HEADER_LEN, UpperLayer, find_upper_layer, protocol, read_u16, write_u16,
};
use crate::model::{TranslationKind, TranslationRule};
use crate::wire::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN, IpHeader, refresh_ipv4_checksum};
use crate::wire::{checksum, udp};

/// Generates IPv4 identifications for translated IPv6 packets by counting. RFC 6864 section 4.3
/// requires that an identification is not soon reused if the packet may be fragmented.
#[derive(Debug, Clone, Copy, Default)]
pub struct Identifications(u32);

impl Identifications {
    /// Starts with the identification after `last`.
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
/// Types of echo request and echo reply, each in ICMP (RFC 792) and ICMPv6 (RFC 4443 section 4).
const ECHO: [(u8, u8); 2] = [(8, 128), (0, 129)];
/// Maximum length of a translated IPv4 packet without DF (RFC 7915 section 5.1).
const MAX_LEN_WITHOUT_DF: usize = 1260;

/// A change of data that a checksum covers: the sums of the old and the new data.
#[derive(Debug, Clone, Copy)]
struct ChecksumChange {
    old: u64,
    new: u64,
}

impl ChecksumChange {
    fn of_addresses(old: (IpAddr, IpAddr), new: (IpAddr, IpAddr)) -> Self {
        let sum = |(source, group)| checksum::pseudo_header(source, group, 0, 0);
        Self {
            old: sum(old),
            new: sum(new),
        }
    }

    /// Returns the new checksum (RFC 1624 equation 3).
    fn update(self, checksum: u16) -> u16 {
        checksum::update_word(checksum, checksum::fold(self.old), checksum::fold(self.new))
    }
}

/// Writes the port and the checksum of the upper layer of a packet whose addresses change. `body`
/// starts at the upper layer. `addresses` are the new addresses; for ICMP between the IP versions,
/// those of the IPv6 packet.
fn update_upper_layer(
    body: &mut [u8],
    upper: &UpperLayer,
    kind: TranslationKind,
    addresses: (IpAddr, IpAddr),
    rule: &TranslationRule,
    mut change: ChecksumChange,
) -> Result<(), DropReason> {
    let v6 = matches!(kind, TranslationKind::SixToSix | TranslationKind::SixToFour);
    let changes_version = !kind.keeps_ip_version();
    match upper.protocol {
        udp::PROTOCOL if !upper.has_header() => {}
        udp::PROTOCOL => {
            if body.len() < udp::HEADER_LEN {
                return Err(DropReason::Malformed);
            }
            if let Some(port) = rule.port() {
                change.old += u64::from(read_u16(body, udp::DESTINATION_PORT_OFFSET));
                change.new += u64::from(port.get());
                write_u16(body, udp::DESTINATION_PORT_OFFSET, port.get());
            }
            let sum = match read_u16(body, udp::CHECKSUM_OFFSET) {
                0 if kind == TranslationKind::FourToSix => {
                    // UDP over IPv6 requires a checksum (RFC 8200 section 8.1). It cannot be
                    // computed from a fragment (RFC 7915 section 4.5).
                    if !upper.is_complete() {
                        return Err(DropReason::TranslateFragment);
                    }
                    full_udp_checksum(body, addresses)?
                }
                0 => return Ok(()),
                sum => change.update(sum),
            };
            write_u16(body, udp::CHECKSUM_OFFSET, udp::checksum_field(sum));
        }
        protocol::ICMP if !v6 => {
            // The ICMP checksum does not cover the addresses: within IPv4 it stays the same.
            if changes_version {
                translate_echo(body, upper, addresses, true)?;
            } else if upper.has_header() && !is_echo(body, false) {
                return Err(DropReason::TranslateProtocol);
            }
        }
        protocol::ICMPV6 if v6 => {
            if changes_version {
                translate_echo(body, upper, addresses, false)?;
            } else if upper.has_header() {
                if !is_echo(body, true) {
                    return Err(DropReason::TranslateProtocol);
                }
                let sum = change.update(read_u16(body, ICMP_CHECKSUM_AT));
                write_u16(body, ICMP_CHECKSUM_AT, sum);
            }
        }
        // These protocols have no checksum that covers the outer addresses.
        protocol::GRE | protocol::IPV4 | protocol::IPV6 => {}
        _ => return Err(DropReason::TranslateProtocol),
    }
    Ok(())
}

fn full_udp_checksum(body: &[u8], addresses: (IpAddr, IpAddr)) -> Result<u16, DropReason> {
    let len = usize::from(read_u16(body, udp::LENGTH_OFFSET));
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

/// Translates an ICMP echo message to ICMPv6 (`to_v6`) or back (RFC 7915 sections 4.2 and 5.2). The
/// addresses are those of the IPv6 packet: only the ICMPv6 checksum covers them.
fn translate_echo(
    body: &mut [u8],
    upper: &UpperLayer,
    (source, group): (IpAddr, IpAddr),
    to_v6: bool,
) -> Result<(), DropReason> {
    // The pseudo-header contains the length of the complete message (RFC 7915 section 1.2).
    if !upper.is_complete() {
        return Err(DropReason::TranslateFragment);
    }
    let translated_type = |kind: u8| {
        let pair = ECHO
            .iter()
            .find(|e| kind == if to_v6 { e.0 } else { e.1 })?;
        Some(if to_v6 { pair.1 } else { pair.0 })
    };
    let icmp_type = body.first().copied().and_then(translated_type);
    let icmp_type = icmp_type
        .filter(|_| body.len() >= ICMP_HEADER_LEN)
        .ok_or(DropReason::TranslateProtocol)?;
    let len = body.len() as u32;
    let pseudo = checksum::pseudo_header(source, group, protocol::ICMPV6, len);
    let (old, new) = if to_v6 { (0, pseudo) } else { (pseudo, 0) };
    let old_word = read_u16(body, 0);
    body[0] = icmp_type;
    let change = ChecksumChange {
        old: old + u64::from(old_word),
        new: new + u64::from(read_u16(body, 0)),
    };
    let sum = change.update(read_u16(body, ICMP_CHECKSUM_AT));
    write_u16(body, ICMP_CHECKSUM_AT, sum);
    Ok(())
}

fn new_addresses(
    datagram: &IpHeader,
    rule: &TranslationRule,
) -> Result<(IpAddr, IpAddr), DropReason> {
    let (source, destination) = rule.addresses(datagram.source, datagram.destination);
    let new = IpHeader {
        source,
        destination,
        ..*datagram
    };
    // A prefix rule may produce an invalid source: 64:ff9b::e101:203 becomes 225.1.2.3.
    if !new.has_valid_source() {
        return Err(DropReason::BadSource);
    }
    Ok((source, destination))
}

/// Translates a packet within its IP version. `packet` is the IP packet without padding, with the
/// header `datagram`. `rule` must keep the IP version.
///
/// # Errors
/// The packet cannot be translated; the reason says why. The packet may be partly changed.
pub fn translate_in_place(
    packet: &mut [u8],
    datagram: &IpHeader,
    rule: &TranslationRule,
) -> Result<TranslationKind, DropReason> {
    let kind = rule.kind();
    let upper = find_upper_layer(packet, datagram)?;
    let old = (datagram.source, datagram.destination);
    let new = new_addresses(datagram, rule)?;
    let change = ChecksumChange::of_addresses(old, new);
    let body = packet.get_mut(upper.at..).ok_or(DropReason::Truncated)?;
    update_upper_layer(body, &upper, kind, new, rule, change)?;
    match new {
        (IpAddr::V4(source), IpAddr::V4(group)) => {
            if let Some(field) = packet.get_mut(12..20) {
                field[..4].copy_from_slice(&source.octets());
                field[4..].copy_from_slice(&group.octets());
            }
            let sum = change.update(read_u16(packet, 10));
            write_u16(packet, 10, sum);
        }
        (IpAddr::V6(source), IpAddr::V6(group)) => {
            if let Some(field) = packet.get_mut(8..40) {
                field[..16].copy_from_slice(&source.octets());
                field[16..].copy_from_slice(&group.octets());
            }
        }
        // The caller must pass a rule that keeps the IP version.
        _ => return Err(DropReason::Malformed),
    }
    Ok(kind)
}

/// Translates a packet to the other IP version and appends it to `out`. Calls `on_packet` with the
/// range of each packet in `out`: an IPv4 packet without DF becomes several fragments if it exceeds
/// `mtu` after the translation.
///
/// `packet` is the IP packet without padding, with the header `datagram`. `rule` must change the IP
/// version.
///
/// # Errors
/// The packet cannot be translated; the reason says why. `out` is unchanged.
pub fn translate_version(
    packet: &[u8],
    datagram: &IpHeader,
    rule: &TranslationRule,
    ids: &mut Identifications,
    mtu: usize,
    out: &mut Vec<u8>,
    mut on_packet: impl FnMut(Range<usize>),
) -> Result<TranslationKind, DropReason> {
    let start = out.len();
    let kind = rule.kind();
    let written = match kind {
        TranslationKind::FourToSix => four_to_six(packet, datagram, rule, out),
        TranslationKind::SixToFour => six_to_four(packet, datagram, rule, ids, out),
        // The caller must pass a rule that changes the IP version.
        TranslationKind::FourToFour | TranslationKind::SixToSix => Err(DropReason::Malformed),
    };
    if let Err(reason) = written {
        out.truncate(start);
        return Err(reason);
    }
    let may_fragment =
        kind == TranslationKind::FourToSix && read_u16(packet, 6) & DONT_FRAGMENT == 0;
    if out.len() - start <= mtu || !may_fragment {
        on_packet(start..out.len());
        return Ok(kind);
    }
    // RFC 7915 section 4, with the MTU of the egress instead of 1280.
    let translated = out.split_off(start);
    let fragmented = fragment_v6(&translated, mtu, read_u16(packet, 4).into(), out, on_packet);
    if let Err(reason) = fragmented {
        out.truncate(start);
        return Err(reason);
    }
    Ok(kind)
}

/// Translates an IPv4 packet (RFC 7915 section 4.1).
fn four_to_six(
    packet: &[u8],
    datagram: &IpHeader,
    rule: &TranslationRule,
    out: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let upper = find_upper_layer(packet, datagram)?;
    let new = new_addresses(datagram, rule)?;
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
    let extension = upper.fragment.map_or(0, |_| FRAGMENT_HEADER_LEN);
    let class = packet.get(1).copied().unwrap_or_default();
    let mut header = [0u8; IPV6_HEADER_LEN];
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    write_u16(&mut header, 4, (body.len() + extension) as u16);
    header[6] = upper.fragment.map_or(next, |_| protocol::FRAGMENT);
    // The TTL policy of the route is already applied.
    header[7] = packet.get(8).copied().unwrap_or_default();
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&group.octets());
    out.extend_from_slice(&header);
    if let Some(fragment) = upper.fragment {
        let mut extension = [0u8; FRAGMENT_HEADER_LEN];
        extension[0] = next;
        write_u16(
            &mut extension,
            2,
            fragment.offset << 3 | u16::from(fragment.more),
        );
        extension[4..].copy_from_slice(&fragment.id.to_be_bytes());
        out.extend_from_slice(&extension);
    }
    out.extend_from_slice(body);
    let body = &mut out[start + IPV6_HEADER_LEN + extension..];
    let change = ChecksumChange::of_addresses((datagram.source, datagram.destination), new);
    update_upper_layer(body, &upper, TranslationKind::FourToSix, new, rule, change)
}

/// Translates an IPv6 packet (RFC 7915 section 5.1).
fn six_to_four(
    packet: &[u8],
    datagram: &IpHeader,
    rule: &TranslationRule,
    ids: &mut Identifications,
    out: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let upper = find_upper_layer(packet, datagram)?;
    let old = (datagram.source, datagram.destination);
    let new = new_addresses(datagram, rule)?;
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
    header[1] = (read_u16(packet, 0) >> 4) as u8;
    write_u16(&mut header, 2, total as u16);
    let (id, flags) = match upper.fragment {
        Some(fragment) => {
            let more = if fragment.more { MORE_FRAGMENTS } else { 0 };
            (fragment.id, more | fragment.offset)
        }
        None if total > MAX_LEN_WITHOUT_DF => (ids.next(), DONT_FRAGMENT),
        None => (ids.next(), 0),
    };
    write_u16(&mut header, 4, id as u16);
    write_u16(&mut header, 6, flags);
    // The TTL policy of the route is already applied.
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
    let change = ChecksumChange::of_addresses(old, new);
    // The pseudo-header of ICMPv6 contains the old addresses.
    let addresses = if upper.protocol == protocol::ICMPV6 {
        old
    } else {
        new
    };
    update_upper_layer(
        body,
        &upper,
        TranslationKind::SixToFour,
        addresses,
        rule,
        change,
    )
}

#[cfg(test)]
mod tests;
