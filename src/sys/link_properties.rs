//! A synchronous query of the properties of one interface (`rtnetlink(7)`).

use std::io;

use super::netlink::{self, attribute, read_u16};
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
    /// Frames that the kernel passes to the interface, and receives from it, have an Ethernet
    /// header that the network header follows. This also holds for VLAN interfaces and macvlans.
    pub ethernet_header: bool,
    /// The link below, or the other end, is in another network namespace.
    pub peer_elsewhere: bool,
    /// The link belongs to another one, such as a bridge or a bond, which receives its frames.
    pub has_master: bool,
}

/// Length of `struct ifinfomsg`.
const LINK_MESSAGE: usize = 16;
const RTM_GETLINK: u16 = 18;
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

/// Kinds of links on top of another one that pass Ethernet frames as a plain one does.
const UPPER_KINDS: [&str; 2] = ["vlan", "macvlan"];

/// Queries the properties of an interface.
pub fn link_properties(index: IfIndex) -> io::Result<LinkProperties> {
    parse(&query(index)?).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns the answer of the kernel about an interface.
fn query(index: IfIndex) -> io::Result<Vec<u8>> {
    let mut request = [0u8; LINK_MESSAGE];
    request[4..8].copy_from_slice(&index.get().to_ne_bytes());
    let mut answers = netlink::request(RTM_GETLINK, 0, &request)?;
    answers.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns the number of packets that an interface dropped instead of sending them.
pub fn dropped_instead_of_sent(index: IfIndex) -> io::Result<u64> {
    const TX_DROPPED: usize = 7;
    statistic(index, TX_DROPPED)
}

/// Returns the number of packets that an interface has received.
pub fn received_packets(index: IfIndex) -> io::Result<u64> {
    const RX_PACKETS: usize = 0;
    statistic(index, RX_PACKETS)
}

/// Returns the word at this position of `struct rtnl_link_stats64` (`linux/if_link.h`).
fn statistic(index: IfIndex, position: usize) -> io::Result<u64> {
    let reply = query(index)?;
    let attributes = reply.get(LINK_MESSAGE..).unwrap_or_default();
    let value = attribute(attributes, IFLA_STATS64)
        .and_then(|stats| stats.get(position * 8..)?.first_chunk())
        .map(|word| u64::from_ne_bytes(*word));
    value.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns whether other links are on top of an interface, such as macvlans and VLAN interfaces.
pub fn carries_links(index: IfIndex) -> io::Result<bool> {
    let lower = index.get().to_ne_bytes();
    let links = netlink::request(RTM_GETLINK, netlink::DUMP, &[0; LINK_MESSAGE])?;
    Ok(links.iter().any(|link| {
        let attributes = link.get(LINK_MESSAGE..).unwrap_or_default();
        // A link whose lower link is in another namespace has that namespace's index.
        attribute(attributes, IFLA_LINK) == Some(&lower)
            && attribute(attributes, IFLA_LINK_NETNSID).is_none()
    }))
}

fn parse(reply: &[u8]) -> Option<LinkProperties> {
    let flags = u32::from_ne_bytes(*reply.get(8..)?.first_chunk()?);
    let attributes = reply.get(LINK_MESSAGE..)?;
    let info = attribute(attributes, IFLA_LINKINFO).unwrap_or_default();
    let discipline = attribute(attributes, IFLA_QDISC);
    let kind = attribute(info, IFLA_INFO_KIND);
    let kind = kind.map(|k| k.strip_suffix(b"\0").unwrap_or(k));
    let is_kind =
        |kinds: &[&str]| kind.is_some_and(|kind| kinds.iter().any(|k| k.as_bytes() == kind));
    let is_ethernet = read_u16(reply, 2)? == libc::ARPHRD_ETHER;
    let plain_ethernet = is_ethernet && (kind.is_none() || is_kind(&PLAIN_KINDS));
    Some(LinkProperties {
        plain_ethernet,
        ethernet_header: plain_ethernet || is_ethernet && is_kind(&UPPER_KINDS),
        has_master: attribute(attributes, IFLA_MASTER).is_some(),
        peer_elsewhere: attribute(attributes, IFLA_LINK_NETNSID).is_some(),
        veth: kind == Some(b"veth"),
        queueless: discipline == Some(b"noqueue\0"),
        qdisc_pending: discipline.is_none_or(|d| d == b"noop\0"),
        up: flags & libc::IFF_UP as u32 != 0,
    })
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
}
