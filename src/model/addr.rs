//! Multicast groups, unicast sources, and prefixes of both.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

/// Why a text or an address is not a valid group, source or prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// Neither an address nor a prefix.
    #[error("`{0}` is not an IP address or a prefix such as 225.1.2.0/24")]
    NotAnAddress(String),
    /// An address with a port.
    #[error(
        "`{0}` has a port; write the address without it, {ip}: packets of all ports are taken",
        ip = .0.ip()
    )]
    WithPort(SocketAddr),
    /// A group outside 224.0.0.0/4 and ff00::/8.
    #[error("{0} is not a multicast group (224.0.0.0/4 or ff00::/8)")]
    NotMulticast(IpNet),
    /// A multicast address instead of the unicast address of a sender.
    #[error("{0} is a multicast address; a source is a sender's unicast address")]
    NotUnicast(IpNet),
    /// Bits are set beyond the prefix length.
    #[error("{given} has bits set beyond its prefix length; did you mean {}?", .given.trunc())]
    HostBits {
        /// The prefix as given.
        given: IpNet,
    },
    /// Source and group have different IP versions.
    #[error("source {source_prefix} and group {group} are of different IP versions")]
    MixedFamily {
        /// The source as given.
        source_prefix: IpNet,
        /// The group as given.
        group: IpNet,
    },
}

/// A multicast group: 224.0.0.0/4 (RFC 1112 section 4) or ff00::/8 (RFC 4291 section 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "IpAddr")]
pub struct Group(IpAddr);

impl Group {
    /// Returns the group `addr`.
    ///
    /// # Errors
    /// `addr` is not multicast.
    pub fn new(addr: IpAddr) -> Result<Self, AddrError> {
        if addr.is_multicast() {
            Ok(Self(addr))
        } else {
            Err(AddrError::NotMulticast(IpNet::from(addr)))
        }
    }

    /// Returns the address.
    pub fn addr(self) -> IpAddr {
        self.0
    }

    /// Returns whether the group is in a range that routers do not forward: 224.0.0.0/24 (RFC 5771
    /// section 4) or an IPv6 group of reserved, interface-local or link-local scope, ffx0::/16 to
    /// ffx2::/16 (RFC 4291 section 2.7).
    pub fn is_link_local(self) -> bool {
        is_link_local_group(self.0)
    }

    /// Returns whether the group is in 232.0.0.0/8 or ff3x::/32, where only source-specific joins
    /// are allowed (RFC 4607 section 1).
    pub fn is_source_specific(self) -> bool {
        match self.0 {
            IpAddr::V4(a) => a.octets()[0] == 232,
            IpAddr::V6(a) => {
                let s = a.segments();
                s[0] & 0xfff0 == 0xff30 && s[1] == 0
            }
        }
    }
}

/// Returns whether `addr` is in a range of [`Group::is_link_local`].
pub fn is_link_local_group(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => {
            let o = a.octets();
            o[0] == 0xff && matches!(o[1] & 0x0f, 0..=2)
        }
    }
}

/// Returns whether packets from this source must not leave their link: 169.254.0.0/16 (RFC 3927
/// section 7) and fe80::/10 (RFC 4291 section 2.5.6).
pub fn is_link_local_source(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// Returns the Ethernet address of a group: 01:00:5e and the low 23 bits (RFC 1112 section 6.4), or
/// 33:33 and the low 32 bits (RFC 2464 section 7).
pub fn group_mac_address(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(a) => {
            let o = a.octets();
            [0x01, 0x00, 0x5e, o[1] & 0x7f, o[2], o[3]]
        }
        IpAddr::V6(a) => {
            let o = a.octets();
            [0x33, 0x33, o[12], o[13], o[14], o[15]]
        }
    }
}

impl TryFrom<IpAddr> for Group {
    type Error = AddrError;
    fn try_from(addr: IpAddr) -> Result<Self, AddrError> {
        Self::new(addr)
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Group {
    type Err = AddrError;
    fn from_str(s: &str) -> Result<Self, AddrError> {
        let addr: IpAddr = s
            .trim()
            .parse()
            .map_err(|_| AddrError::NotAnAddress(s.into()))?;
        Self::new(addr)
    }
}

/// The address of a sender: any address that is not multicast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "IpAddr")]
pub struct Source(IpAddr);

impl Source {
    /// Returns the source `addr`.
    ///
    /// # Errors
    /// `addr` is multicast.
    pub fn new(addr: IpAddr) -> Result<Self, AddrError> {
        if addr.is_multicast() {
            Err(AddrError::NotUnicast(IpNet::from(addr)))
        } else {
            Ok(Self(addr))
        }
    }

    /// Returns the address.
    pub fn addr(self) -> IpAddr {
        self.0
    }
}

impl TryFrom<IpAddr> for Source {
    type Error = AddrError;
    fn try_from(addr: IpAddr) -> Result<Self, AddrError> {
        Self::new(addr)
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Source {
    type Err = AddrError;
    fn from_str(s: &str) -> Result<Self, AddrError> {
        let addr: IpAddr = s
            .trim()
            .parse()
            .map_err(|_| AddrError::NotAnAddress(s.into()))?;
        Self::new(addr)
    }
}

/// A stream: a source and a group of the same IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceGroup {
    /// The sender.
    pub source: Source,
    /// The destination.
    pub group: Group,
}

impl fmt::Display for SourceGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.source, self.group)
    }
}

fn parse_prefix(s: &str) -> Result<IpNet, AddrError> {
    let text = s.trim();
    let net = if text.contains('/') {
        text.parse::<IpNet>().ok()
    } else {
        text.parse::<IpAddr>().ok().map(IpNet::from)
    };
    let net = net.ok_or_else(|| match text.parse() {
        Ok(address) => AddrError::WithPort(address),
        Err(_) => AddrError::NotAnAddress(s.into()),
    })?;
    if net.trunc() != net {
        return Err(AddrError::HostBits { given: net });
    }
    Ok(net)
}

/// A prefix of groups. A single group is a prefix of full length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupPrefix(IpNet);

impl GroupPrefix {
    /// Returns the prefix `net`.
    ///
    /// # Errors
    /// Not every address of `net` is multicast, or a host bit is set.
    pub fn new(net: IpNet) -> Result<Self, AddrError> {
        let min_len = if net.addr().is_ipv4() { 4 } else { 8 };
        if net.prefix_len() < min_len || !net.addr().is_multicast() {
            return Err(AddrError::NotMulticast(net));
        }
        if net.trunc() != net {
            return Err(AddrError::HostBits { given: net });
        }
        Ok(Self(net))
    }

    /// Returns the prefix.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Returns the group if the prefix has full length.
    pub fn single(self) -> Option<Group> {
        (self.0.prefix_len() == self.0.max_prefix_len()).then(|| Group(self.0.addr()))
    }

    /// Returns the number of groups, at most `u64::MAX`.
    pub fn count(self) -> u64 {
        let bits = self.0.max_prefix_len() - self.0.prefix_len();
        1u64.checked_shl(bits.into()).unwrap_or(u64::MAX)
    }

    /// Returns the groups, lowest first.
    pub fn groups(self) -> impl Iterator<Item = Group> {
        let (first, v4) = match self.0.network() {
            IpAddr::V4(a) => (u128::from(a.to_bits()), true),
            IpAddr::V6(a) => (a.to_bits(), false),
        };
        (0..self.count()).map(move |n| {
            let bits = first + u128::from(n);
            Group(if v4 {
                IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            })
        })
    }

    /// Returns whether all groups of the prefix are link-local. See [`Group::is_link_local`].
    pub fn is_link_local(self) -> bool {
        let range_len = if self.0.addr().is_ipv4() { 24 } else { 16 };
        self.0.prefix_len() >= range_len && is_link_local_group(self.0.addr())
    }
}

/// A prefix of sources. The zero-length prefix means any source and is written `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourcePrefix(IpNet);

impl SourcePrefix {
    /// Returns the prefix `net`.
    ///
    /// # Errors
    /// `net` is multicast, or a host bit is set.
    pub fn new(net: IpNet) -> Result<Self, AddrError> {
        if net.addr().is_multicast() {
            return Err(AddrError::NotUnicast(net));
        }
        if net.trunc() != net {
            return Err(AddrError::HostBits { given: net });
        }
        Ok(Self(net))
    }

    /// Returns the prefix of all sources with the IP version of `group`.
    pub fn any_for(group: GroupPrefix) -> Self {
        Self(match group.net() {
            IpNet::V4(_) => IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            IpNet::V6(_) => IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        })
    }

    /// Returns the prefix.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Returns whether this is the zero-length prefix.
    pub fn is_any(self) -> bool {
        self.0.prefix_len() == 0
    }

    /// Returns the source if the prefix has full length.
    pub fn single(self) -> Option<Source> {
        (self.0.prefix_len() == self.0.max_prefix_len()).then(|| Source(self.0.addr()))
    }
}

/// The streams of a source prefix and a group prefix. Both have the same IP version.
///
/// The source may be any prefix: unlike [`SourcePrefix`], it is the result of a computation that is
/// checked elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamSet {
    /// The sources.
    pub source: IpNet,
    /// The groups.
    pub group: IpNet,
}

impl StreamSet {
    /// Returns the streams that are in both sets; `None` if there are none.
    pub fn overlap(self, other: Self) -> Option<Self> {
        Some(Self {
            source: overlap(self.source, other.source)?,
            group: overlap(self.group, other.group)?,
        })
    }
}

impl fmt::Display for StreamSet {
    /// Writes any source as `*`, and single addresses without their prefix length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |net: IpNet| match net.prefix_len() {
            0 => "*".to_string(),
            len if len == net.max_prefix_len() => net.addr().to_string(),
            _ => net.to_string(),
        };
        write!(f, "({}, {})", text(self.source), text(self.group))
    }
}

/// Returns the addresses that are in both prefixes: two overlapping prefixes are nested, so that
/// this is the longer one.
pub(super) fn overlap(a: IpNet, b: IpNet) -> Option<IpNet> {
    if a.contains(&b) {
        Some(b)
    } else {
        b.contains(&a).then_some(a)
    }
}

impl From<Group> for GroupPrefix {
    /// Returns the prefix of full length.
    fn from(group: Group) -> Self {
        Self(IpNet::from(group.addr()))
    }
}

impl From<Source> for SourcePrefix {
    /// Returns the prefix of full length.
    fn from(source: Source) -> Self {
        Self(IpNet::from(source.addr()))
    }
}

macro_rules! prefix_text {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = AddrError;
            fn from_str(s: &str) -> Result<Self, AddrError> {
                Self::new(parse_prefix(s)?)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    };
}

prefix_text!(GroupPrefix);
prefix_text!(SourcePrefix);

impl fmt::Display for GroupPrefix {
    /// Writes a single group without its prefix length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(group) => group.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

impl fmt::Display for SourcePrefix {
    /// Writes any source as `*`, and a single source without its prefix length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("*");
        }
        match self.single() {
            Some(source) => source.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_multicast_and_sources_are_not() {
        assert!("225.1.2.3".parse::<Group>().is_ok());
        assert!("ff3e::8000:1".parse::<Group>().is_ok());
        assert!(matches!(
            "10.0.0.1".parse::<Group>(),
            Err(AddrError::NotMulticast(_))
        ));
        assert!(matches!(
            "225.1.2.3".parse::<Source>(),
            Err(AddrError::NotUnicast(_))
        ));
        assert!("10.0.0.1".parse::<Source>().is_ok());
    }

    #[test]
    fn prefixes_with_host_bits_or_unicast_groups_are_refused() {
        assert!("225.1.2.0/24".parse::<GroupPrefix>().is_ok());
        assert!(matches!(
            "225.1.2.3/24".parse::<GroupPrefix>(),
            Err(AddrError::HostBits { .. })
        ));
        assert!(matches!(
            "224.0.0.0/3".parse::<GroupPrefix>(),
            Err(AddrError::NotMulticast(_))
        ));
        assert!("224.0.0.0/4".parse::<GroupPrefix>().is_ok());
        assert!("ff00::/8".parse::<GroupPrefix>().is_ok());
    }

    #[test]
    fn link_local_ranges_match_the_rfcs() {
        for (text, link_local) in [
            ("224.0.0.251", true),
            ("224.0.1.1", false),
            ("ff02::fb", true),
            ("ff12::1", true),
            ("ff01::1", true),
            ("ff05::2", false),
            ("ff3e::1", false),
        ] {
            assert_eq!(
                text.parse::<Group>().unwrap().is_link_local(),
                link_local,
                "{text}"
            );
        }
    }

    #[test]
    fn prefix_lists_its_groups() {
        let list = |p: &str| {
            let p = p.parse::<GroupPrefix>().unwrap();
            (p.count(), p.groups().last().map(|g| g.to_string()))
        };
        assert_eq!(list("225.1.2.0/30"), (4, Some("225.1.2.3".into())));
        assert_eq!(list("225.1.2.3"), (1, Some("225.1.2.3".into())));
        assert_eq!(list("ff3e::8/126"), (4, Some("ff3e::b".into())));
        assert_eq!("ff00::/8".parse::<GroupPrefix>().unwrap().count(), u64::MAX);
    }

    #[test]
    fn groups_have_ethernet_addresses() {
        // RFC 1112 section 6.4 keeps 23 bits, which excludes the top bit of the second octet.
        assert_eq!(
            group_mac_address("239.129.2.3".parse().unwrap()),
            [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03]
        );
        assert_eq!(
            group_mac_address("ff3e::8000:1".parse().unwrap()),
            [0x33, 0x33, 0x80, 0x00, 0x00, 0x01]
        );
    }
}
