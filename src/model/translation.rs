//! Translation of packets: a route replaces the source, group or UDP port of the packets that it
//! forwards.
//!
//! Addresses are mapped by prefix: the bits of the prefix are replaced, the host bits are kept. The
//! mapping is one to one, so different streams stay different and the mapping has an inverse.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::addr::{is_link_local_group, overlap};
use super::{Group, GroupPrefix, Source, SourceGroup, SourcePrefix, StreamSet};

/// The reason why a translation is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranslationError {
    /// The translation replaces neither source nor group nor port.
    #[error("a translation names a source, a group or a port")]
    Empty,
    /// The new values equal the old ones.
    #[error("the translation changes nothing")]
    ChangesNothing,
    /// The new source and group have different IP versions.
    #[error("source {0} and group {1} are of different IP versions; translate both or neither")]
    MixedFamily(SourcePrefix, GroupPrefix),
    /// The new prefix has more host bits than the old one.
    #[error(
        "{to} has {} host bits, but the route's {from} has {}; the numbers must be equal",
        host_bits(*.to), host_bits(*.from)
    )]
    Length {
        /// The prefix of the route.
        from: IpNet,
        /// The new prefix.
        to: IpNet,
    },
    /// The new prefix has fewer host bits than the old one.
    #[error("{to} has fewer addresses than the route's {from}: different streams would become one")]
    Collapses {
        /// The prefix of the route.
        from: IpNet,
        /// The new prefix.
        to: IpNet,
    },
    /// The new source is in a range from which packets are not forwarded.
    #[error("{0} is not a valid source of forwarded packets")]
    BadSource(SourcePrefix),
    /// The new groups include link-local groups, which are forwarded only if the route allows it.
    #[error("{0} has link-local groups, which stay on their link; link_local = true forwards them")]
    LinkLocal(GroupPrefix),
    /// The new groups are source-specific, but receivers do not know the sources.
    #[error("receivers of {0} join a source, but the route matches any source; name the source")]
    SourceUnknown(GroupPrefix),
}

fn host_bits(net: IpNet) -> u8 {
    net.max_prefix_len() - net.prefix_len()
}

fn bits_of(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// A mapping of addresses that replaces the prefix and keeps the host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PrefixMap {
    from: IpNet,
    to: IpNet,
    /// The bits of the prefix `to`.
    prefix_bits: u128,
    /// A mask of the host bits.
    host_mask: u128,
}

impl PrefixMap {
    fn new(from: IpNet, to: IpNet) -> Result<Self, TranslationError> {
        let host = host_bits(from);
        if host_bits(to) < host {
            return Err(TranslationError::Collapses { from, to });
        }
        if host_bits(to) > host {
            return Err(TranslationError::Length { from, to });
        }
        Ok(Self {
            from,
            to,
            prefix_bits: bits_of(to.network()),
            host_mask: !u128::MAX.checked_shl(host.into()).unwrap_or(0),
        })
    }

    fn changes(&self) -> bool {
        self.from != self.to
    }

    /// Maps an address, which must be in `from`.
    fn map(&self, addr: IpAddr) -> IpAddr {
        let bits = self.prefix_bits | (bits_of(addr) & self.host_mask);
        match self.to {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    /// Maps the addresses of `net` that are in `from`; `None` if there are none.
    fn map_net(&self, net: IpNet) -> Option<IpNet> {
        let inside = overlap(self.from, net)?;
        let longer = inside.prefix_len() - self.from.prefix_len();
        IpNet::new(self.map(inside.network()), self.to.prefix_len() + longer).ok()
    }

    fn inverse(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            prefix_bits: bits_of(self.from.network()),
            host_mask: self.host_mask,
        }
    }
}

/// The IP versions before and after a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TranslationKind {
    /// IPv4 to IPv4.
    FourToFour,
    /// IPv6 to IPv6.
    SixToSix,
    /// IPv4 to IPv6.
    FourToSix,
    /// IPv6 to IPv4.
    SixToFour,
}

impl TranslationKind {
    /// All kinds. The position of each is its discriminant.
    pub const ALL: [Self; 4] = [
        Self::FourToFour,
        Self::SixToSix,
        Self::FourToSix,
        Self::SixToFour,
    ];

    /// Returns the metrics label.
    pub fn label(self) -> &'static str {
        match self {
            Self::FourToFour => "4to4",
            Self::SixToSix => "6to6",
            Self::FourToSix => "4to6",
            Self::SixToFour => "6to4",
        }
    }

    /// Returns whether the IP version stays the same.
    pub fn keeps_ip_version(self) -> bool {
        matches!(self, Self::FourToFour | Self::SixToSix)
    }
}

/// The validated translation of one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TranslationRule {
    source: PrefixMap,
    group: PrefixMap,
    port: Option<NonZeroU16>,
}

impl TranslationRule {
    /// Returns the translation of a route that matches `source` and `group`. `None` keeps the
    /// source, group or port. A new prefix has as many host bits as the old one: an IPv4 /24 is
    /// replaced by an IPv6 /120. `link_local` allows link-local groups.
    ///
    /// # Errors
    /// The translation is invalid; see [`TranslationError`].
    pub fn new(
        (source, group): (SourcePrefix, GroupPrefix),
        (to_source, to_group): (Option<SourcePrefix>, Option<GroupPrefix>),
        port: Option<NonZeroU16>,
        link_local: bool,
    ) -> Result<Self, TranslationError> {
        if to_source.is_none() && to_group.is_none() && port.is_none() {
            return Err(TranslationError::Empty);
        }
        let (new_source, new_group) = (to_source.unwrap_or(source), to_group.unwrap_or(group));
        if new_source.net().addr().is_ipv4() != new_group.net().addr().is_ipv4() {
            return Err(TranslationError::MixedFamily(new_source, new_group));
        }
        let translation = Self {
            source: PrefixMap::new(source.net(), new_source.net())?,
            group: PrefixMap::new(group.net(), new_group.net())?,
            port,
        };
        if !translation.changes_stream() && port.is_none() {
            return Err(TranslationError::ChangesNothing);
        }
        if translation.source.changes() && is_invalid_source(new_source.net()) {
            return Err(TranslationError::BadSource(new_source));
        }
        if translation.group.changes() {
            if !link_local && contains_link_local_group(new_group.net()) {
                return Err(TranslationError::LinkLocal(new_group));
            }
            let is_source_specific =
                |g: GroupPrefix| Group::new(g.net().network()).is_ok_and(Group::is_source_specific);
            // Receivers of source-specific groups know the source. Others do not, unless it is set.
            if is_source_specific(new_group) && !is_source_specific(group) && new_source.is_any() {
                return Err(TranslationError::SourceUnknown(new_group));
            }
        }
        Ok(translation)
    }

    /// Returns the new UDP destination port; `None` keeps the port.
    pub fn port(&self) -> Option<NonZeroU16> {
        self.port
    }

    /// Returns the new source and group prefixes; `None` for those that stay the same.
    pub fn replacements(&self) -> (Option<SourcePrefix>, Option<GroupPrefix>) {
        let source = self.source.changes().then_some(self.source.to);
        let group = self.group.changes().then_some(self.group.to);
        (
            source.and_then(|net| SourcePrefix::new(net).ok()),
            group.and_then(|net| GroupPrefix::new(net).ok()),
        )
    }

    /// Returns whether the translation replaces source or group, not only the port.
    pub fn changes_stream(&self) -> bool {
        self.source.changes() || self.group.changes()
    }

    /// Returns the IP versions before and after the translation.
    pub fn kind(&self) -> TranslationKind {
        match (self.group.from, self.group.to) {
            (IpNet::V4(_), IpNet::V4(_)) => TranslationKind::FourToFour,
            (IpNet::V6(_), IpNet::V6(_)) => TranslationKind::SixToSix,
            (IpNet::V4(_), IpNet::V6(_)) => TranslationKind::FourToSix,
            (IpNet::V6(_), IpNet::V4(_)) => TranslationKind::SixToFour,
        }
    }

    /// Translates a stream. Returns `None` if the route does not match it, or if the new source is
    /// not a unicast address.
    pub fn apply(&self, stream: SourceGroup) -> Option<SourceGroup> {
        Some(SourceGroup {
            source: Source::new(self.apply_source(stream.source.addr())?).ok()?,
            group: self.apply_group(stream.group)?,
        })
    }

    /// Translates a group. Returns `None` if the route does not match it.
    pub fn apply_group(&self, group: Group) -> Option<Group> {
        let is_matched = self.group.from.contains(&group.addr());
        is_matched.then(|| Group::new(self.group.map(group.addr())).ok())?
    }

    /// Translates a source. Returns `None` if the route does not match it.
    pub fn apply_source(&self, source: IpAddr) -> Option<IpAddr> {
        let is_matched = self.source.from.contains(&source);
        is_matched.then(|| self.source.map(source))
    }

    /// Translates the streams of a set that the route matches. Returns `None` if there are none.
    pub fn apply_set(&self, set: StreamSet) -> Option<StreamSet> {
        Some(StreamSet {
            source: self.source.map_net(set.source)?,
            group: self.group.map_net(set.group)?,
        })
    }

    /// Returns the translation from outgoing to arriving streams. It keeps the port, because the
    /// original port is unknown.
    pub fn inverse(&self) -> Self {
        Self {
            source: self.source.inverse(),
            group: self.group.inverse(),
            port: None,
        }
    }

    /// Returns the new source and group of a packet, which the route must match.
    pub fn addresses(&self, source: IpAddr, group: IpAddr) -> (IpAddr, IpAddr) {
        (self.source.map(source), self.group.map(group))
    }
}

/// Returns whether a prefix is in a range from which packets are not forwarded: unspecified,
/// loopback, link-local, reserved and broadcast addresses.
fn is_invalid_source(net: IpNet) -> bool {
    let is_within = |range: &str| range.parse::<IpNet>().is_ok_and(|r| r.contains(&net));
    match net {
        IpNet::V4(_) => {
            is_within("0.0.0.0/8")
                || is_within("127.0.0.0/8")
                || is_within("169.254.0.0/16")
                || is_within("240.0.0.0/4")
        }
        IpNet::V6(_) => is_within("::/127") || is_within("fe80::/10"),
    }
}

/// Returns whether a prefix contains a group of link-local scope.
fn contains_link_local_group(net: IpNet) -> bool {
    match net {
        IpNet::V4(v4) => {
            is_link_local_group(net.network())
                || v4.contains(&Ipv4Addr::new(224, 0, 0, 0)) && v4.prefix_len() <= 24
        }
        // The scope is in bits 12 to 15. The lowest address of a prefix has the lowest scope.
        IpNet::V6(_) => is_link_local_group(net.network()),
    }
}

impl Serialize for TranslationRule {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl fmt::Display for TranslationRule {
    /// Writes a text such as `(10.9.1.2, 239.1.1.1) port 5001`. `=` means that an address stays the
    /// same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, group) = self.replacements();
        let text = |net: Option<String>| net.unwrap_or_else(|| "=".into());
        let (source, group) = (source.map(|s| s.to_string()), group.map(|g| g.to_string()));
        write!(f, "({}, {})", text(source), text(group))?;
        match self.port {
            Some(port) => write!(f, " port {port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn translation(
        (source, group): (&str, &str),
        to: (Option<&str>, Option<&str>),
        port: u16,
    ) -> Result<TranslationRule, TranslationError> {
        TranslationRule::new(
            (source.parse().unwrap(), group.parse().unwrap()),
            (
                to.0.map(|s| s.parse().unwrap()),
                to.1.map(|g| g.parse().unwrap()),
            ),
            NonZeroU16::new(port),
            false,
        )
    }

    fn stream(source: &str, group: &str) -> SourceGroup {
        SourceGroup {
            source: source.parse().unwrap(),
            group: group.parse().unwrap(),
        }
    }

    const ANY: &str = "0.0.0.0/0";

    #[test]
    fn prefixes_are_replaced_and_host_bits_are_kept() {
        let both = translation(
            ("10.0.1.0/24", "225.1.2.0/24"),
            (Some("10.9.9.0/24"), Some("239.1.1.0/24")),
            5001,
        )
        .unwrap();
        let to = both.apply(stream("10.0.1.7", "225.1.2.9")).unwrap();
        assert_eq!(to, stream("10.9.9.7", "239.1.1.9"));
        assert_eq!(
            both.inverse().apply(to),
            Some(stream("10.0.1.7", "225.1.2.9"))
        );
        assert_eq!(both.apply(stream("10.0.2.7", "225.1.2.9")), None);
        assert_eq!(both.to_string(), "(10.9.9.0/24, 239.1.1.0/24) port 5001");
        let group = translation((ANY, "225.1.2.3"), (None, Some("239.1.1.1")), 0).unwrap();
        let to = group.apply(stream("192.0.2.1", "225.1.2.3")).unwrap();
        assert_eq!(to, stream("192.0.2.1", "239.1.1.1"));
        assert_eq!(group.to_string(), "(=, 239.1.1.1)");
        let port = translation((ANY, "225.1.2.3"), (None, None), 7).unwrap();
        assert!(!port.changes_stream());
    }

    #[test]
    fn translation_between_ip_versions_keeps_host_bits() {
        let up = translation(
            (ANY, "225.1.2.0/24"),
            (Some("64:ff9b::/96"), Some("ff3e::100/120")),
            0,
        )
        .unwrap();
        assert_eq!(up.kind(), TranslationKind::FourToSix);
        let to = up.apply(stream("192.0.2.1", "225.1.2.9")).unwrap();
        assert_eq!(to, stream("64:ff9b::c000:201", "ff3e::109"));
        assert_eq!(
            up.inverse().apply(to),
            Some(stream("192.0.2.1", "225.1.2.9"))
        );
        // The new source would be a multicast address.
        let down = up.inverse();
        assert_eq!(down.apply(stream("64:ff9b::e101:203", "ff3e::109")), None);
    }

    #[test]
    fn invalid_translations_are_refused_with_the_reason() {
        use TranslationError as E;
        let g = "225.1.2.3";
        let err = |from, to, port| translation(from, to, port).unwrap_err();
        assert_eq!(err((ANY, g), (None, None), 0), E::Empty);
        assert_eq!(err((ANY, g), (None, Some(g)), 0), E::ChangesNothing);
        assert!(matches!(
            err((ANY, g), (Some("10.0.0.1"), None), 0),
            E::Collapses { .. }
        ));
        assert!(matches!(
            err(("10.0.0.1", g), (Some("10.0.0.0/24"), None), 0),
            E::Length { .. }
        ));
        assert!(matches!(
            err(("10.0.0.1", g), (Some("fd00::1"), None), 0),
            E::MixedFamily(..)
        ));
        assert!(matches!(
            err(("10.0.0.1", g), (None, Some("ff3e::1")), 0),
            E::MixedFamily(..)
        ));
        for source in ["127.0.0.1", "169.254.1.1", "0.0.0.0", "255.255.255.255"] {
            let error = err(("10.0.0.1", g), (Some(source), None), 0);
            assert!(matches!(error, E::BadSource(_)), "{source}");
        }
        let wide = err((ANY, "225.0.0.0/8"), (None, Some("224.0.0.0/8")), 0);
        assert!(matches!(wide, E::LinkLocal(_)));
        let six = (Some("fd00::1"), Some("ff02::fb"));
        assert!(matches!(err(("10.0.0.1", g), six, 0), E::LinkLocal(_)));
        let ssm = err((ANY, g), (None, Some("232.1.1.1")), 0);
        assert!(matches!(ssm, E::SourceUnknown(_)));
        translation(("10.0.0.1", g), (None, Some("232.1.1.1")), 0).unwrap();
        translation((ANY, "232.9.9.9"), (None, Some("232.1.1.1")), 0).unwrap();
    }

    #[test]
    fn stream_sets_are_translated_by_prefix() {
        let r = translation(
            (ANY, "225.1.2.0/24"),
            (Some("64:ff9b::/96"), Some("ff3e::100/120")),
            0,
        )
        .unwrap();
        let set = StreamSet {
            source: "10.0.0.0/8".parse().unwrap(),
            group: "224.0.0.0/4".parse().unwrap(),
        };
        let to = r.apply_set(set).unwrap();
        assert_eq!(to.to_string(), "(64:ff9b::a00:0/104, ff3e::100/120)");
    }

    fn prefixes() -> impl Strategy<Value = (u8, u8)> {
        (0u8..=32, 0u8..=28)
    }

    proptest! {
        #[test]
        fn inverse_restores_the_stream(
            (sources, groups) in prefixes(),
            across: bool,
            source: u32, group: u32,
            to_source: u128, to_group: u128,
        ) {
            let group = 0xe000_0000 | group >> 4;
            let v4 = |bits: u32, host: u8| {
                let net = IpNet::new(Ipv4Addr::from_bits(bits).into(), 32 - host).unwrap();
                net.trunc()
            };
            let from = (v4(source, sources), v4(group, groups));
            let to = if across {
                let v6 = |bits: u128, host: u8| {
                    IpNet::new(Ipv6Addr::from_bits(bits).into(), 128 - host).unwrap().trunc()
                };
                (v6(to_source & !(0xff << 120), sources), v6(to_group | 0xff << 120, groups))
            } else {
                (v4(to_source as u32, sources), v4(0xe000_0000 | (to_group as u32) >> 4, groups))
            };
            let prefix = |nets: (IpNet, IpNet)| {
                Some((SourcePrefix::new(nets.0).ok()?, GroupPrefix::new(nets.1).ok()?))
            };
            let (Some(from), Some(to)) = (prefix(from), prefix(to)) else { return Ok(()) };
            let Ok(r) = TranslationRule::new(from, (Some(to.0), Some(to.1)), None, true) else {
                return Ok(());
            };
            let source = IpAddr::V4(Ipv4Addr::from_bits(source));
            let Ok(source) = Source::new(source) else { return Ok(()) };
            let stream = SourceGroup {
                source,
                group: Group::new(Ipv4Addr::from_bits(group).into()).unwrap(),
            };
            if let Some(mapped) = r.apply(stream) {
                prop_assert_eq!(r.inverse().apply(mapped), Some(stream));
                prop_assert!(to.0.net().contains(&mapped.source.addr()));
                prop_assert!(to.1.net().contains(&mapped.group.addr()));
            }
        }
    }
}
