//! What a route writes into the packets it forwards: another source, group or UDP port.
//!
//! Addresses are mapped by prefix: the bits of the prefix are replaced, the host bits kept. So
//! every stream keeps a stream of its own (the mapping is one to one) and can be told back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::addr::{is_link_local_group, overlap};
use super::{Group, GroupPrefix, Source, SourceGroup, SourcePrefix, StreamSet};

/// Why a rewrite is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranslationError {
    /// Neither source nor group nor port.
    #[error("a rewrite names a source, a group or a port")]
    Empty,
    /// What it writes is there already.
    #[error("the rewrite changes nothing")]
    ChangesNothing,
    /// Packets would be of two IP versions at once.
    #[error("source {0} and group {1} are of different IP versions; rewrite both or neither")]
    MixedFamily(SourcePrefix, GroupPrefix),
    /// The two prefixes do not have as many host bits.
    #[error(
        "{to} holds {} host bits, but the route's {from} holds {}; as many are needed to map one to one",
        host_bits(*.to), host_bits(*.from)
    )]
    Length {
        /// The prefix of the route.
        from: IpNet,
        /// The prefix it would become.
        to: IpNet,
    },
    /// Several streams of one route would become one.
    #[error(
        "{to} holds fewer addresses than the route's {from}: different streams would become one"
    )]
    Collapses {
        /// The prefix of the route.
        from: IpNet,
        /// The prefix it would become.
        to: IpNet,
    },
    /// An address that no packet may come from, or that stays on its link.
    #[error("{0} is no address a forwarded packet may come from")]
    BadSource(SourcePrefix),
    /// Such groups stay on their link unless the route says so.
    #[error(
        "{0} holds link-local groups, which stay on their link; link_local = true forwards them"
    )]
    LinkLocal(GroupPrefix),
    /// Receivers of such groups have to name the source, and it is not known.
    #[error("receivers of {0} join a source, but the route takes any; name the source")]
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

/// Replaces a prefix and keeps the host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PrefixMap {
    from: IpNet,
    to: IpNet,
    /// The bits of `to`.
    bits: u128,
    /// The host bits, set.
    mask: u128,
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
            bits: bits_of(to.network()),
            mask: !u128::MAX.checked_shl(host.into()).unwrap_or(0),
        })
    }

    fn changes(&self) -> bool {
        self.from != self.to
    }

    /// Maps an address that is known to be in `from`.
    fn map(&self, addr: IpAddr) -> IpAddr {
        let bits = self.bits | (bits_of(addr) & self.mask);
        match self.to {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    fn map_net(&self, net: IpNet) -> Option<IpNet> {
        let inside = overlap(self.from, net)?;
        let longer = inside.prefix_len() - self.from.prefix_len();
        IpNet::new(self.map(inside.network()), self.to.prefix_len() + longer).ok()
    }

    fn inverse(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            bits: bits_of(self.from.network()),
            mask: self.mask,
        }
    }
}

/// What was translated into what.
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
    /// All of them; the position of each is its number.
    pub const ALL: [Self; 4] = [
        Self::FourToFour,
        Self::SixToSix,
        Self::FourToSix,
        Self::SixToFour,
    ];

    /// The metrics label.
    pub fn label(self) -> &'static str {
        match self {
            Self::FourToFour => "4to4",
            Self::SixToSix => "6to6",
            Self::FourToSix => "4to6",
            Self::SixToFour => "6to4",
        }
    }

    /// Whether the IP version stays.
    pub fn stays(self) -> bool {
        matches!(self, Self::FourToFour | Self::SixToSix)
    }
}

/// A checked rewrite of the streams of one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TranslationRule {
    source: PrefixMap,
    group: PrefixMap,
    port: Option<NonZeroU16>,
}

impl TranslationRule {
    /// What packets of a route that takes `source` and `group` get instead; what is `None`
    /// stays. Prefixes need as many host bits as what they replace: an IPv4 /24 maps to an
    /// IPv6 /120. `link_local` says that groups of link-local scope are wanted.
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
        let rewrite = Self {
            source: PrefixMap::new(source.net(), new_source.net())?,
            group: PrefixMap::new(group.net(), new_group.net())?,
            port,
        };
        if !rewrite.changes_stream() && port.is_none() {
            return Err(TranslationError::ChangesNothing);
        }
        if rewrite.source.changes() && never_a_source(new_source.net()) {
            return Err(TranslationError::BadSource(new_source));
        }
        if rewrite.group.changes() {
            if !link_local && holds_link_local(new_group.net()) {
                return Err(TranslationError::LinkLocal(new_group));
            }
            let specific =
                |g: GroupPrefix| Group::new(g.net().network()).is_ok_and(Group::is_source_specific);
            // Those who joined a source before know it; others cannot guess it.
            if specific(new_group) && !specific(group) && new_source.is_any() {
                return Err(TranslationError::SourceUnknown(new_group));
            }
        }
        Ok(rewrite)
    }

    /// The UDP destination port packets get.
    pub fn port(&self) -> Option<NonZeroU16> {
        self.port
    }

    /// The source and group prefix packets get, where others.
    pub fn becomes(&self) -> (Option<SourcePrefix>, Option<GroupPrefix>) {
        let source = self.source.changes().then_some(self.source.to);
        let group = self.group.changes().then_some(self.group.to);
        (
            source.and_then(|net| SourcePrefix::new(net).ok()),
            group.and_then(|net| GroupPrefix::new(net).ok()),
        )
    }

    /// Whether packets get another source or group, and not only another port.
    pub fn changes_stream(&self) -> bool {
        self.source.changes() || self.group.changes()
    }

    /// The IP versions packets come and leave as.
    pub fn family(&self) -> TranslationKind {
        match (self.group.from, self.group.to) {
            (IpNet::V4(_), IpNet::V4(_)) => TranslationKind::FourToFour,
            (IpNet::V6(_), IpNet::V6(_)) => TranslationKind::SixToSix,
            (IpNet::V4(_), IpNet::V6(_)) => TranslationKind::FourToSix,
            (IpNet::V6(_), IpNet::V4(_)) => TranslationKind::SixToFour,
        }
    }

    /// The stream that a stream of the route becomes; `None` for one the route does not take,
    /// and where its source would become an address that is none.
    pub fn apply(&self, stream: SourceGroup) -> Option<SourceGroup> {
        Some(SourceGroup {
            source: Source::new(self.apply_source(stream.source.addr())?).ok()?,
            group: self.apply_group(stream.group)?,
        })
    }

    /// The group that a group of the route becomes: what a report for (*, G) speaks of.
    pub fn apply_group(&self, group: Group) -> Option<Group> {
        let fits = self.group.from.contains(&group.addr());
        fits.then(|| Group::new(self.group.map(group.addr())).ok())?
    }

    /// The address that a source of the route becomes.
    pub fn apply_source(&self, source: IpAddr) -> Option<IpAddr> {
        let fits = self.source.from.contains(&source);
        fits.then(|| self.source.map(source))
    }

    /// What the streams of a set become, as far as the route takes them.
    pub fn apply_set(&self, set: StreamSet) -> Option<StreamSet> {
        Some(StreamSet {
            source: self.source.map_net(set.source)?,
            group: self.group.map_net(set.group)?,
        })
    }

    /// The way back: from what leaves to what came. Ports are not told back: which there was
    /// before is not known.
    pub fn inverse(&self) -> Self {
        Self {
            source: self.source.inverse(),
            group: self.group.inverse(),
            port: None,
        }
    }

    /// New source and group address of a packet that the route is known to take.
    pub fn addresses(&self, source: IpAddr, group: IpAddr) -> (IpAddr, IpAddr) {
        (self.source.map(source), self.group.map(group))
    }
}

/// Whether a prefix lies in a range that no forwarded packet comes from: unspecified, loopback,
/// link-local, broadcast.
fn never_a_source(net: IpNet) -> bool {
    let within = |range: &str| range.parse::<IpNet>().is_ok_and(|r| r.contains(&net));
    match net {
        IpNet::V4(_) => {
            within("0.0.0.0/8")
                || within("127.0.0.0/8")
                || within("169.254.0.0/16")
                || within("240.0.0.0/4")
        }
        IpNet::V6(_) => within("::/127") || within("fe80::/10"),
    }
}

/// Whether any group of a prefix is of link-local scope.
fn holds_link_local(net: IpNet) -> bool {
    match net {
        IpNet::V4(v4) => {
            is_link_local_group(net.network())
                || v4.contains(&Ipv4Addr::new(224, 0, 0, 0)) && v4.prefix_len() <= 24
        }
        // The scope is in bits 12 to 15; the lowest of a prefix has those beyond it unset.
        IpNet::V6(_) => is_link_local_group(net.network()),
    }
}

impl Serialize for TranslationRule {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl fmt::Display for TranslationRule {
    /// As in `(10.9.1.2, 239.1.1.1) port 5001`; what stays is written `=`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, group) = self.becomes();
        let shown = |net: Option<String>| net.unwrap_or_else(|| "=".into());
        let (source, group) = (source.map(|s| s.to_string()), group.map(|g| g.to_string()));
        write!(f, "({}, {})", shown(source), shown(group))?;
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

    fn rewrite(
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
    fn any_subset_is_rewritten_and_host_bits_are_kept() {
        let both = rewrite(
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
        let group = rewrite((ANY, "225.1.2.3"), (None, Some("239.1.1.1")), 0).unwrap();
        let to = group.apply(stream("192.0.2.1", "225.1.2.3")).unwrap();
        assert_eq!(to, stream("192.0.2.1", "239.1.1.1"));
        assert_eq!(group.to_string(), "(=, 239.1.1.1)");
        let port = rewrite((ANY, "225.1.2.3"), (None, None), 7).unwrap();
        assert!(!port.changes_stream());
    }

    #[test]
    fn across_families_as_many_host_bits_are_needed() {
        let up = rewrite(
            (ANY, "225.1.2.0/24"),
            (Some("64:ff9b::/96"), Some("ff3e::100/120")),
            0,
        )
        .unwrap();
        assert_eq!(up.family(), TranslationKind::FourToSix);
        let to = up.apply(stream("192.0.2.1", "225.1.2.9")).unwrap();
        assert_eq!(to, stream("64:ff9b::c000:201", "ff3e::109"));
        assert_eq!(
            up.inverse().apply(to),
            Some(stream("192.0.2.1", "225.1.2.9"))
        );
        // What is no address to send from stays none.
        let down = up.inverse();
        assert_eq!(down.apply(stream("64:ff9b::e101:203", "ff3e::109")), None);
    }

    #[test]
    fn wrong_rewrites_have_names() {
        use TranslationError as E;
        let g = "225.1.2.3";
        let err = |from, to, port| rewrite(from, to, port).unwrap_err();
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
        rewrite(("10.0.0.1", g), (None, Some("232.1.1.1")), 0).unwrap();
        rewrite((ANY, "232.9.9.9"), (None, Some("232.1.1.1")), 0).unwrap();
    }

    #[test]
    fn sets_are_mapped_as_their_streams_are() {
        let r = rewrite(
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
        fn the_inverse_gives_the_stream_back(
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
            let there = SourceGroup {
                source,
                group: Group::new(Ipv4Addr::from_bits(group).into()).unwrap(),
            };
            if let Some(mapped) = r.apply(there) {
                prop_assert_eq!(r.inverse().apply(mapped), Some(there));
                prop_assert!(to.0.net().contains(&mapped.source.addr()));
                prop_assert!(to.1.net().contains(&mapped.group.addr()));
            }
        }
    }
}
