//! Network interfaces: index, name, and patterns of names.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// Length of the longest interface name in bytes: `IFNAMSIZ` without the terminating NUL.
pub const IFNAME_MAX: usize = 15;

/// Why a text is not a valid interface name or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// An empty name.
    #[error("an interface name is empty")]
    Empty,
    /// More than [`IFNAME_MAX`] bytes.
    #[error("`{0}` is longer than the {IFNAME_MAX} bytes an interface name may have")]
    TooLong(String),
    /// `/`, white space, `:` or a control character, which the kernel does not allow in a name.
    #[error("`{0}` holds a character that no interface name may have ({1:?})")]
    BadChar(String, char),
    /// A label without a value.
    #[error("`{0}` has no value; a label is written label:KEY=VALUE")]
    NoLabelValue(String),
}

/// Prefixes of the aliases that a container engine defines.
const ENGINE_NAMES: [&str; 3] = ["container:", "network:", "label:"];
/// The alias of [`IfPattern::default_route`].
const DEFAULT_ROUTE: &str = "route:default";
/// Length of the longest alias in bytes.
const ALIAS_MAX: usize = 512;

/// The kernel's number of an interface. A recreated interface has a new number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct IfIndex(NonZeroU32);

impl IfIndex {
    /// Returns the index; `None` for zero, which means "no interface" to the kernel.
    pub fn new(index: u32) -> Option<Self> {
        NonZeroU32::new(index).map(Self)
    }

    /// Returns the number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of an interface in this program.
///
/// The ID of a link of the kernel is its ifindex. Other interfaces, such as the end of a tunnel,
/// have IDs from 2^31 on, which the kernel does not use: its indexes are positive 32-bit integers
/// with sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct InterfaceId(NonZeroU32);

impl InterfaceId {
    /// The first ID that is not an ifindex.
    const FIRST_OTHER: u32 = 1 << 31;

    /// Returns the ID with this number; `None` for zero.
    pub fn new(id: u32) -> Option<Self> {
        NonZeroU32::new(id).map(Self)
    }

    /// Returns the ID of interface `number` that is not a link of the kernel; `None` if `number`
    /// is 2^31 or more.
    pub fn other(number: u32) -> Option<Self> {
        let is_valid = number < Self::FIRST_OTHER;
        is_valid.then(|| Self::new(Self::FIRST_OTHER | number))?
    }

    /// Returns the number of the ID.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Returns the ifindex, if the interface is a link of the kernel.
    pub fn ifindex(self) -> Option<IfIndex> {
        (self.get() < Self::FIRST_OTHER).then_some(IfIndex(self.0))
    }
}

impl From<IfIndex> for InterfaceId {
    fn from(index: IfIndex) -> Self {
        Self(index.0)
    }
}

impl fmt::Display for InterfaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a plane that serves an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PlaneName(&'static str);

impl PlaneName {
    /// Returns the name.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Returns the name as text.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for PlaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The name of one interface, such as `eth0` or `br-0123456789ab`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct IfName(Arc<str>);

impl IfName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_name(s: &str) -> Result<&str, LinkError> {
    if s.is_empty() {
        return Err(LinkError::Empty);
    }
    if let Some(bad) = s
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'))
    {
        return Err(LinkError::BadChar(s.into(), bad));
    }
    if s.len() > IFNAME_MAX {
        return Err(LinkError::TooLong(s.into()));
    }
    Ok(s)
}

impl FromStr for IfName {
    type Err = LinkError;
    fn from_str(s: &str) -> Result<Self, LinkError> {
        Ok(Self(check_name(s)?.into()))
    }
}

impl TryFrom<String> for IfName {
    type Error = LinkError;
    fn try_from(name: String) -> Result<Self, LinkError> {
        name.parse()
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for IfName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

/// A name of an interface, or a pattern: `*` matches any number of characters and `?` matches one.
/// Instead of a name of the kernel it may be an alias: one that a container engine defines
/// (`container:NAME`, `network:NAME`, `label:KEY=VALUE`), or `route:default`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfPattern(Arc<str>);

impl IfPattern {
    /// Returns the configured text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the text contains `*` or `?`.
    pub fn is_pattern(&self) -> bool {
        self.0.contains(['*', '?'])
    }

    /// Returns whether the text is the name of one interface, and neither a pattern nor a label,
    /// which several interfaces may have.
    pub fn is_single(&self) -> bool {
        !self.is_pattern() && !self.0.starts_with("label:")
    }

    /// Returns the alias of the interface that the default route uses.
    pub fn default_route() -> Self {
        Self(DEFAULT_ROUTE.into())
    }

    /// Returns whether this is [`IfPattern::default_route`].
    pub fn is_default_route(&self) -> bool {
        *self.0 == *DEFAULT_ROUTE
    }

    /// Returns whether this is an alias, which the kernel does not know.
    pub fn is_alias(&self) -> bool {
        // The kernel does not allow a colon in a name.
        self.0.contains(':')
    }

    /// Returns whether this is an alias that a container engine defines.
    pub fn is_engine_name(&self) -> bool {
        ENGINE_NAMES.iter().any(|kind| self.0.starts_with(kind))
    }

    /// Returns whether this is an alias that leads through the container end of a veth pair, which
    /// the kernel shows only with CAP_NET_ADMIN.
    pub fn names_a_container(&self) -> bool {
        ["container:", "label:"]
            .iter()
            .any(|kind| self.0.starts_with(kind))
    }

    /// Returns whether `alias` is this text or matches the pattern.
    pub fn matches_alias(&self, alias: &IfPattern) -> bool {
        glob_matches(self.0.as_bytes(), alias.0.as_bytes())
    }

    /// Returns whether `name` is this text or matches the pattern.
    pub fn matches(&self, name: &IfName) -> bool {
        glob_matches(self.0.as_bytes(), name.as_str().as_bytes())
    }

    /// Returns whether any text could match both patterns.
    pub fn intersects(&self, other: &IfPattern) -> bool {
        globs_intersect(self.0.as_bytes(), other.0.as_bytes())
    }
}

/// Returns whether `name` matches `pattern`. It is called for every rule and link at every change,
/// so it does not allocate: after a mismatch only the last star has to match one more byte.
pub(crate) fn glob_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((star_at, matched)) = star else {
                    return false;
                };
                star = Some((star_at, matched + 1));
                p = star_at + 1;
                n = matched + 1;
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Returns whether any text matches both `a` and `b`, by dynamic programming over their suffixes.
fn globs_intersect(a: &[u8], b: &[u8]) -> bool {
    let mut suffixes_intersect = vec![false; (a.len() + 1) * (b.len() + 1)];
    let at = |i: usize, j: usize| i * (b.len() + 1) + j;
    for i in (0..=a.len()).rev() {
        for j in (0..=b.len()).rev() {
            let star_a = a.get(i) == Some(&b'*');
            let star_b = b.get(j) == Some(&b'*');
            suffixes_intersect[at(i, j)] = match (a.get(i), b.get(j)) {
                (None, None) => true,
                _ if star_a && suffixes_intersect[at(i + 1, j)] => true,
                _ if star_b && suffixes_intersect[at(i, j + 1)] => true,
                (Some(_), Some(_)) if star_a && star_b => false,
                (Some(_), Some(_)) if star_a => suffixes_intersect[at(i, j + 1)],
                (Some(_), Some(_)) if star_b => suffixes_intersect[at(i + 1, j)],
                (Some(&x), Some(&y)) => {
                    (x == y || x == b'?' || y == b'?') && suffixes_intersect[at(i + 1, j + 1)]
                }
                _ => false,
            };
        }
    }
    suffixes_intersect[0]
}

impl FromStr for IfPattern {
    type Err = LinkError;
    fn from_str(s: &str) -> Result<Self, LinkError> {
        let kind = ENGINE_NAMES.iter().find(|kind| s.starts_with(**kind));
        let Some(kind) = kind.filter(|_| s.len() <= ALIAS_MAX) else {
            let alias = s == DEFAULT_ROUTE;
            return Ok(Self(if alias { s } else { check_name(s)? }.into()));
        };
        let name = &s[kind.len()..];
        if let Some(bad) = name.chars().find(|c| c.is_control()) {
            return Err(LinkError::BadChar(s.into(), bad));
        }
        match name.split_once('=') {
            _ if name.is_empty() => Err(LinkError::Empty),
            None if *kind == "label:" => Err(LinkError::NoLabelValue(s.into())),
            _ => Ok(Self(s.into())),
        }
    }
}

impl From<&IfName> for IfPattern {
    fn from(name: &IfName) -> Self {
        Self(name.0.clone())
    }
}

impl fmt::Display for IfPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for IfPattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(s: &str) -> IfPattern {
        s.parse().unwrap()
    }

    #[test]
    fn names_follow_the_rules_of_the_kernel() {
        assert!("br-0123456789ab".parse::<IfName>().is_ok());
        assert_eq!("".parse::<IfName>(), Err(LinkError::Empty));
        assert!(matches!(
            "a-name-of-16-byt".parse::<IfName>(),
            Err(LinkError::TooLong(_))
        ));
        for bad in ["eth 0", "eth/0", "eth:0", "eth\n"] {
            assert!(
                matches!(bad.parse::<IfName>(), Err(LinkError::BadChar(..))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn aliases_are_patterns_that_match_no_kernel_name() {
        for (text, engine) in [
            ("container:cam-1", true),
            ("container:cam-*", true),
            ("network:app_default", true),
            ("label:com.example/role=a b:c", true),
            ("route:default", false),
        ] {
            let alias = pattern(text);
            assert!(alias.is_alias(), "{text}");
            assert_eq!(alias.is_engine_name(), engine, "{text}");
            assert_eq!(alias.to_string(), text);
            assert!(!alias.matches(&"eth0".parse().unwrap()), "{text}");
        }
        for bad in ["container:", "route:other", "pod:x", "network:a\nb"] {
            assert!(bad.parse::<IfPattern>().is_err(), "{bad:?}");
        }
        assert!(matches!(
            "label:role".parse::<IfPattern>(),
            Err(LinkError::NoLabelValue(_))
        ));
        assert!(pattern("container:cam-*").matches_alias(&pattern("container:cam-1")));
        assert!(!pattern("container:cam-*").matches_alias(&pattern("network:cam-1")));
        assert!("container:a".parse::<IfName>().is_err());
    }

    #[test]
    fn patterns_match_names() {
        for (glob, name, fits) in [
            ("eth0", "eth0", true),
            ("eth0", "eth00", false),
            ("br-*", "br-0123456789ab", true),
            ("br-*", "br-", true),
            ("br-*", "br", false),
            ("*", "lo", true),
            ("eth?", "eth1", true),
            ("eth?", "eth10", false),
            ("*h*0", "eth10", true),
        ] {
            assert_eq!(
                pattern(glob).matches(&name.parse().unwrap()),
                fits,
                "{glob} {name}"
            );
        }
    }

    proptest! {
        #[test]
        fn name_matches_exactly_if_it_intersects_the_pattern(
            glob in "[ab*?]{1,8}", name in "[ab]{1,8}",
        ) {
            let name: IfName = name.parse().unwrap();
            let intersects = pattern(&glob).intersects(&IfPattern::from(&name));
            prop_assert_eq!(pattern(&glob).matches(&name), intersects);
        }
    }

    #[test]
    fn patterns_intersect_if_a_text_matches_both() {
        for (a, b, meet) in [
            ("eth*", "*0", true),
            ("eth*", "br-*", false),
            ("a*c", "ab*", true),
            ("a?", "ab*", true),
            ("a?", "abc*", false),
            ("*", "?", true),
            ("eth0", "eth0", true),
        ] {
            assert_eq!(pattern(a).intersects(&pattern(b)), meet, "{a} {b}");
            assert_eq!(pattern(b).intersects(&pattern(a)), meet, "{b} {a}");
        }
    }

    #[test]
    fn only_kernel_links_have_an_ifindex() {
        let index = IfIndex::new(7).unwrap();
        assert_eq!(InterfaceId::from(index).ifindex(), Some(index));
        let tunnel = InterfaceId::other(7).unwrap();
        assert_eq!(tunnel.ifindex(), None);
        assert_ne!(tunnel, InterfaceId::from(index));
        assert_eq!(InterfaceId::other(1 << 31), None);
    }
}
