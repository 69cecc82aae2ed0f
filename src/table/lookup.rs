//! A table of (group prefix, source prefix) pairs. The search prefers the longest group prefix,
//! then the longest source prefix. Its cost depends on the number of different prefix lengths, not
//! on the number of entries.

use std::net::IpAddr;

use ahash::AHashMap;

use crate::model::{GroupPrefix, SourcePrefix};

/// Values by group prefix and source prefix, for both IP versions.
#[derive(Debug, Clone)]
pub struct PrefixTable<V> {
    v4: Vec<Level<u32, V>>,
    v6: Vec<Level<u128, V>>,
    len: usize,
}

/// The values whose prefixes have the same lengths.
#[derive(Debug, Clone)]
struct Level<A, V> {
    group_len: u8,
    source_len: u8,
    group_mask: A,
    source_mask: A,
    entries: AHashMap<(A, A), V>,
}

impl<V> Default for PrefixTable<V> {
    fn default() -> Self {
        Self {
            v4: Vec::new(),
            v6: Vec::new(),
            len: 0,
        }
    }
}

impl<V> PrefixTable<V> {
    /// Inserts a value. Returns the previous value with the same prefixes. Ignores prefixes of
    /// different IP versions.
    pub fn insert(&mut self, group: GroupPrefix, source: SourcePrefix, value: V) -> Option<V> {
        let lens = (group.net().prefix_len(), source.net().prefix_len());
        let old = match (group.net().addr(), source.net().addr()) {
            (IpAddr::V4(g), IpAddr::V4(s)) => {
                let masks = (mask_v4(lens.0), mask_v4(lens.1));
                insert_at(&mut self.v4, lens, masks, (g.to_bits(), s.to_bits()), value)
            }
            (IpAddr::V6(g), IpAddr::V6(s)) => {
                let masks = (mask_v6(lens.0), mask_v6(lens.1));
                insert_at(&mut self.v6, lens, masks, (g.to_bits(), s.to_bits()), value)
            }
            // Settings and commands refuse these. No packet could match them.
            _ => return None,
        };
        self.len += usize::from(old.is_none());
        old
    }

    /// Returns the value with exactly these prefixes.
    pub fn get(&self, group: GroupPrefix, source: SourcePrefix) -> Option<&V> {
        let lens = (group.net().prefix_len(), source.net().prefix_len());
        match (group.net().addr(), source.net().addr()) {
            (IpAddr::V4(g), IpAddr::V4(s)) => {
                let level = &self.v4[level_of(&self.v4, lens).ok()?];
                level.entries.get(&(g.to_bits(), s.to_bits()))
            }
            (IpAddr::V6(g), IpAddr::V6(s)) => {
                let level = &self.v6[level_of(&self.v6, lens).ok()?];
                level.entries.get(&(g.to_bits(), s.to_bits()))
            }
            _ => None,
        }
    }

    /// Removes and returns the value with exactly these prefixes.
    pub fn remove(&mut self, group: GroupPrefix, source: SourcePrefix) -> Option<V> {
        let lens = (group.net().prefix_len(), source.net().prefix_len());
        let removed = match (group.net().addr(), source.net().addr()) {
            (IpAddr::V4(g), IpAddr::V4(s)) => {
                remove_at(&mut self.v4, lens, (g.to_bits(), s.to_bits()))
            }
            (IpAddr::V6(g), IpAddr::V6(s)) => {
                remove_at(&mut self.v6, lens, (g.to_bits(), s.to_bits()))
            }
            _ => None,
        };
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the value with the longest group prefix and then the longest source prefix among
    /// those that match and for which `accept` returns true.
    pub fn find(
        &self,
        source: IpAddr,
        group: IpAddr,
        accept: impl FnMut(&V) -> bool,
    ) -> Option<&V> {
        match (source, group) {
            (IpAddr::V4(s), IpAddr::V4(g)) => search(&self.v4, s.to_bits(), g.to_bits(), accept),
            (IpAddr::V6(s), IpAddr::V6(g)) => search(&self.v6, s.to_bits(), g.to_bits(), accept),
            _ => None,
        }
    }
}

fn mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

fn mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// Returns the position of the level with these prefix lengths, or where to insert it. Levels are
/// sorted from the longest prefixes to the shortest.
fn level_of<A, V>(levels: &[Level<A, V>], lens: (u8, u8)) -> Result<usize, usize> {
    levels.binary_search_by(|l| lens.cmp(&(l.group_len, l.source_len)))
}

fn remove_at<A: Eq + std::hash::Hash, V>(
    levels: &mut Vec<Level<A, V>>,
    lens: (u8, u8),
    key: (A, A),
) -> Option<V> {
    let at = level_of(levels, lens).ok()?;
    let removed = levels[at].entries.remove(&key);
    // A search visits every level.
    if levels[at].entries.is_empty() {
        levels.remove(at);
    }
    removed
}

fn insert_at<A: Copy + Eq + std::hash::Hash, V>(
    levels: &mut Vec<Level<A, V>>,
    (group_len, source_len): (u8, u8),
    (group_mask, source_mask): (A, A),
    key: (A, A),
    value: V,
) -> Option<V> {
    let at = level_of(levels, (group_len, source_len)).unwrap_or_else(|at| {
        levels.insert(
            at,
            Level {
                group_len,
                source_len,
                group_mask,
                source_mask,
                entries: AHashMap::new(),
            },
        );
        at
    });
    levels[at].entries.insert(key, value)
}

#[inline]
fn search<A, V>(
    levels: &[Level<A, V>],
    source: A,
    group: A,
    mut accept: impl FnMut(&V) -> bool,
) -> Option<&V>
where
    A: Copy + Eq + std::hash::Hash + std::ops::BitAnd<Output = A>,
{
    levels.iter().find_map(|level| {
        level
            .entries
            .get(&(group & level.group_mask, source & level.source_mask))
            .filter(|value| accept(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(rules: &[(&str, &str)]) -> PrefixTable<usize> {
        let mut table = PrefixTable::default();
        for (i, (group, source)) in rules.iter().enumerate() {
            table.insert(group.parse().unwrap(), source.parse().unwrap(), i);
        }
        table
    }

    #[test]
    fn longest_group_precedes_longest_source() {
        let t = table(&[
            ("224.0.0.0/4", "10.0.0.1/32"),
            ("225.1.2.0/24", "0.0.0.0/0"),
            ("225.1.2.0/24", "10.0.0.0/8"),
            ("225.1.2.3", "0.0.0.0/0"),
        ]);
        let find = |s: &str, g: &str| {
            t.find(s.parse().unwrap(), g.parse().unwrap(), |_| true)
                .copied()
        };
        assert_eq!(find("10.0.0.1", "225.1.2.3"), Some(3));
        assert_eq!(find("10.0.0.1", "225.1.2.4"), Some(2));
        assert_eq!(find("11.0.0.1", "225.1.2.4"), Some(1));
        assert_eq!(find("10.0.0.1", "230.0.0.1"), Some(0));
        assert_eq!(find("10.0.0.2", "230.0.0.1"), None);
    }

    #[test]
    fn ipv6_prefixes_match_their_length() {
        let t = table(&[
            ("ff00::/8", "::/0"),
            ("ff3e::/32", "::/0"),
            ("ff3e::/32", "2001:db8::/32"),
            ("ff3e::8000:1", "::/0"),
        ]);
        let find = |s: &str, g: &str| {
            t.find(s.parse().unwrap(), g.parse().unwrap(), |_| true)
                .copied()
        };
        assert_eq!(find("2001:db8:1:2::3", "ff3e::8000:1"), Some(3));
        assert_eq!(find("2001:db8:1:2::3", "ff3e:0:1:2::8000:7"), Some(2));
        assert_eq!(find("2001:db9:1:2::3", "ff3e:0:1:2::8000:7"), Some(1));
        assert_eq!(find("2001:db8:1:2::3", "ff3e:1::8000:1"), Some(0));
        assert_eq!(find("2001:db8:1:2::3", "ffff:1:2:3::4"), Some(0));
        assert_eq!(find("2001:db8::1", "fe00::1"), None);
    }

    #[test]
    fn rejected_value_is_followed_by_the_next_shorter() {
        let t = table(&[("225.1.2.3", "0.0.0.0/0"), ("224.0.0.0/4", "0.0.0.0/0")]);
        let (s, g) = ("10.0.0.1".parse().unwrap(), "225.1.2.3".parse().unwrap());
        assert_eq!(t.find(s, g, |v| *v != 0), Some(&1));
    }

    #[test]
    fn removed_value_is_not_found() {
        let all = [("225.1.2.3", "10.0.0.1"), ("225.1.2.3", "0.0.0.0/0")];
        let mut t = table(&all);
        let keys = all.map(|(g, s)| (g.parse().unwrap(), s.parse().unwrap()));
        let (s, g) = ("10.0.0.1".parse().unwrap(), "225.1.2.3".parse().unwrap());
        for (n, (group, source)) in keys.into_iter().enumerate() {
            assert_eq!(t.find(s, g, |_| true), Some(&n));
            assert_eq!(t.get(group, source), Some(&n));
            assert_eq!(t.remove(group, source), Some(n));
            assert_eq!((t.get(group, source), t.len()), (None, 1 - n));
        }
        assert!(t.v4.is_empty());
    }

    proptest! {
        #[test]
        fn find_equals_a_scan_of_all_values(
            rules in proptest::collection::vec((0u32..16, 4u8..=32, 0u32..16, 0u8..=32), 1..60),
            group in 0u32..16, source in 0u32..16,
        ) {
            // Spreads the few bits over the word, so that prefixes overlap.
            let spread = |n: u32| n.wrapping_mul(0x1111_1111);
            let group = std::net::Ipv4Addr::from_bits(0xe000_0000 | spread(group) >> 4);
            let source = std::net::Ipv4Addr::from_bits(spread(source) & 0x7fff_ffff);
            let mut t = PrefixTable::default();
            let mut best: Option<((u8, u8), usize)> = None;
            for (i, (g, gl, s, sl)) in rules.into_iter().enumerate() {
                let g = ipnet::Ipv4Net::new(std::net::Ipv4Addr::from_bits(0xe000_0000 | spread(g) >> 4), gl).unwrap().trunc();
                let s = ipnet::Ipv4Net::new(std::net::Ipv4Addr::from_bits(spread(s) & 0x7fff_ffff), sl).unwrap().trunc();
                t.insert(GroupPrefix::new(g.into()).unwrap(), SourcePrefix::new(s.into()).unwrap(), i);
                if g.contains(&group) && s.contains(&source) && best.is_none_or(|(b, _)| (gl, sl) >= b) {
                    best = Some(((gl, sl), i));
                }
            }
            prop_assert_eq!(t.find(source.into(), group.into(), |_| true).copied(), best.map(|(_, i)| i));
        }
    }
}
