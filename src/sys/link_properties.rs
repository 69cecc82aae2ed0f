//! A synchronous query of the properties of one interface (`rtnetlink(7)`).

use std::io::{self, Read, Write};

use socket2::{Domain, Protocol, Socket, Type};

use crate::model::IfIndex;

/// The properties of an interface that determine how packets are sent on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkProperties {
    /// The interface is one end of a veth pair.
    pub veth: bool,
    /// The interface has no queue (queueing discipline `noqueue`).
    pub queueless: bool,
    /// The interface is not running yet, so the kernel has not attached its queueing discipline.
    pub qdisc_pending: bool,
    /// The interface is administratively up (`IFF_UP`).
    pub up: bool,
    /// Frames have an Ethernet header and no other header before the network header. This holds for
    /// network cards, veths, bridges, bonds and taps. It is not certain for VLAN interfaces, which
    /// may need space for a tag, and for interfaces on top of others, which depend on those.
    pub plain_ethernet: bool,
    /// The link belongs to another one, such as a bridge or a bond, which receives its frames.
    pub has_master: bool,
}

const HEADER: usize = 16;
const LINK_MESSAGE: usize = 16;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const REQUEST: u16 = 1;
const IFLA_LINK: u16 = 5;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;

/// Link kinds that are plain Ethernet if the hardware type is Ethernet. A link without a kind is a
/// network card.
const PLAIN_KINDS: [&str; 6] = ["veth", "bridge", "dummy", "tun", "bond", "team"];

/// Queries the properties of an interface.
pub fn link_properties(index: IfIndex) -> io::Result<LinkProperties> {
    parse(&query(index)?).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns the answer of the kernel about an interface.
fn query(index: IfIndex) -> io::Result<Vec<u8>> {
    let domain = Domain::from(libc::AF_NETLINK);
    let mut socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    let mut request = [0u8; HEADER + LINK_MESSAGE];
    request[0..4].copy_from_slice(&((HEADER + LINK_MESSAGE) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    request[HEADER + 4..HEADER + 8].copy_from_slice(&index.get().to_ne_bytes());
    socket.write_all(&request)?;
    let mut reply = vec![0u8; 32 << 10];
    let len = socket.read(&mut reply)?;
    reply.truncate(len);
    match read_u16(&reply, 4) {
        Some(RTM_NEWLINK) => Ok(reply),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Returns the number of packets that an interface dropped instead of sending them.
pub fn dropped_instead_of_sent(index: IfIndex) -> io::Result<u64> {
    /// Offset of `tx_dropped` in `struct rtnl_link_stats64` (`linux/if_link.h`).
    const TX_DROPPED: usize = 7 * 8;
    let reply = query(index)?;
    let attributes = reply.get(HEADER + LINK_MESSAGE..).unwrap_or_default();
    let dropped = attribute(attributes, IFLA_STATS64)
        .and_then(|stats| stats.get(TX_DROPPED..)?.first_chunk())
        .map(|word| u64::from_ne_bytes(*word));
    dropped.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns whether other links are on top of an interface, such as macvlans and VLAN interfaces.
pub fn carries_links(index: IfIndex) -> io::Result<bool> {
    const DUMP: u16 = 0x300;
    const DONE: u16 = 3;
    let domain = Domain::from(libc::AF_NETLINK);
    let mut socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    let mut request = [0u8; HEADER + LINK_MESSAGE];
    request[0..4].copy_from_slice(&((HEADER + LINK_MESSAGE) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&(REQUEST | DUMP).to_ne_bytes());
    socket.write_all(&request)?;
    let mut reply = vec![0u8; 64 << 10];
    let lower = index.get().to_ne_bytes();
    let mut carries = false;
    loop {
        let len = socket.read(&mut reply)?;
        let mut messages = &reply[..len];
        while let Some(len) = messages
            .first_chunk()
            .map(|l| u32::from_ne_bytes(*l) as usize)
        {
            let message = messages.get(..len).filter(|m| m.len() >= HEADER);
            let message = message.ok_or(io::ErrorKind::InvalidData)?;
            match read_u16(message, 4) {
                Some(RTM_NEWLINK) => {
                    let attributes = message.get(HEADER + LINK_MESSAGE..).unwrap_or_default();
                    // A link whose lower link is in another namespace has that namespace's index.
                    carries |= attribute(attributes, IFLA_LINK) == Some(&lower)
                        && attribute(attributes, IFLA_LINK_NETNSID).is_none();
                }
                Some(DONE) => return Ok(carries),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
            messages = messages.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn parse(reply: &[u8]) -> Option<LinkProperties> {
    if read_u16(reply, 4)? != RTM_NEWLINK {
        return None;
    }
    let flags = u32::from_ne_bytes(*reply.get(HEADER + 8..)?.first_chunk()?);
    let attributes = reply.get(HEADER + LINK_MESSAGE..)?;
    let info = attribute(attributes, IFLA_LINKINFO).unwrap_or_default();
    let discipline = attribute(attributes, IFLA_QDISC);
    let kind = attribute(info, IFLA_INFO_KIND);
    let kind = kind.map(|k| k.strip_suffix(b"\0").unwrap_or(k));
    let plain = match kind {
        None => true,
        Some(kind) => PLAIN_KINDS.iter().any(|k| k.as_bytes() == kind),
    };
    Some(LinkProperties {
        plain_ethernet: plain && read_u16(reply, HEADER + 2)? == libc::ARPHRD_ETHER,
        has_master: attribute(attributes, IFLA_MASTER).is_some(),
        veth: kind == Some(b"veth"),
        queueless: discipline == Some(b"noqueue\0"),
        qdisc_pending: discipline.is_none_or(|d| d == b"noop\0"),
        up: flags & libc::IFF_UP as u32 != 0,
    })
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Returns the value of the first attribute of type `kind`.
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    const TYPE_MASK: u16 = 0x3fff;
    loop {
        let len = usize::from(read_u16(bytes, 0)?);
        let value = bytes.get(4..len)?;
        if read_u16(bytes, 2)? & TYPE_MASK == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_plain_and_missing_interface_fails() {
        let lo = link_properties(IfIndex::new(1).unwrap()).unwrap();
        assert!(!lo.veth && !lo.plain_ethernet);
        assert!(link_properties(IfIndex::new(i32::MAX as u32).unwrap()).is_err());
    }

    #[test]
    fn attribute_search_stops_at_invalid_length() {
        let bytes = [5, 0, 1, 0, 9, 0, 0, 0, 8, 0, 6, 0, b'n', b'o', b'q', 0];
        assert_eq!(attribute(&bytes, 1), Some(&[9][..]));
        assert_eq!(attribute(&bytes, 6), Some(&b"noq\0"[..]));
        assert_eq!(attribute(&bytes, 7), None);
        assert_eq!(attribute(&[200, 0, 6, 0, 1], 6), None);
        assert_eq!(attribute(&[0, 0, 1, 0], 6), None);
        assert_eq!(attribute(&[], 6), None);
    }
}
