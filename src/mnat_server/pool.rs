//! The pool of local channels: groups and sources that may be assigned. Pure.
//!
//! A pool file names ranges of groups, with excluded parts, and the sources of each range. Every
//! (S,G) of a range is a *slot*, and has a number. A range is never expanded: an IPv6 /64 has 2^64
//! groups.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::mnat::Channel;
use crate::model::{Group, GroupPrefix, Source, SourcePrefix};

/// Where a fault is in the file, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFault {
    /// The path of the member, such as `group-pool.ranges[0].group-range`, or line and column.
    pub place: String,
    /// The fault.
    pub message: String,
}

impl fmt::Display for PoolFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A (S,G) of the pool, by number. Ranges with the sources `keep` or `asm` have one slot for each
/// group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolSlot {
    /// The number of the range.
    pub range: usize,
    /// The number of the slot within the range.
    pub index: u128,
}

/// The sources of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceRange {
    /// The source of the global channel.
    Keep,
    /// No source: the local channel is a (\*,G).
    Asm,
    /// The addresses of a prefix.
    Prefix(SourcePrefix),
}

/// How well a range suits a global channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suitability {
    /// The preferred IP version, and a local channel that keeps what is needed.
    Preferred,
    /// The other IP version. The ends translate between the versions.
    OtherVersion,
    /// A source for a global channel of any source. Receivers see all senders as one.
    OneSource,
}

/// Consecutive groups of a range that are not excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// The first group.
    first: u128,
    /// The number of groups in the segments before.
    before: u128,
    /// The number of groups.
    len: u128,
}

/// A range of groups with its sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRange {
    groups: GroupPrefix,
    segments: Vec<Segment>,
    group_count: u128,
    sources: SourceRange,
}

/// The local channels that may be assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    ranges: Vec<PoolRange>,
}

impl Pool {
    /// Returns the ranges.
    pub fn ranges(&self) -> &[PoolRange] {
        &self.ranges
    }

    /// Returns the number of slots, at most `u128::MAX`.
    pub fn size(&self) -> u128 {
        let sizes = self.ranges.iter().map(PoolRange::size);
        sizes.fold(0, u128::saturating_add)
    }

    /// Returns the local channel of a slot for a global channel. `None` if they do not fit.
    pub fn local(&self, slot: PoolSlot, global: Channel) -> Option<Channel> {
        self.ranges.get(slot.range)?.local(slot.index, global)
    }

    /// Returns the slot of a local channel.
    pub fn slot(&self, local: Channel) -> Option<PoolSlot> {
        let slot = |(range, r): (usize, &PoolRange)| {
            let index = r.index(local)?;
            Some(PoolSlot { range, index })
        };
        self.ranges.iter().enumerate().find_map(slot)
    }

    /// Returns a text that is the same for pools with the same ranges.
    pub fn fingerprint(&self) -> String {
        let ranges: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
        ranges.join("; ")
    }

    /// Parses a pool file.
    ///
    /// # Errors
    /// All faults of the file.
    pub fn parse(text: &str) -> Result<Self, Vec<PoolFault>> {
        let file: Value = serde_json::from_str(text).map_err(|e| {
            let place = format!("line {}, column {}", e.line(), e.column());
            // The text of serde_json ends with the position.
            let message = e.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            vec![PoolFault {
                place,
                message: message.into(),
            }]
        })?;
        let mut reader = PoolReader::default();
        let ranges = reader.read_file(&file);
        match reader.faults.is_empty() {
            true => Ok(Self { ranges }),
            false => Err(reader.faults),
        }
    }
}

impl fmt::Display for PoolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.groups)?;
        let gaps = self.segments.windows(2);
        let gaps = gaps.map(|pair| (pair[0].first + pair[0].len, pair[1].first));
        for (from, to) in self.outer_gaps().into_iter().flatten().chain(gaps) {
            let v4 = self.is_ipv4();
            write!(f, " without {}-{}", address(from, v4), address(to - 1, v4))?;
        }
        match self.sources {
            SourceRange::Keep => f.write_str(" keep"),
            SourceRange::Asm => f.write_str(" asm"),
            SourceRange::Prefix(prefix) => write!(f, " from {prefix}"),
        }
    }
}

impl PoolRange {
    /// Returns the number of slots, at most `u128::MAX`.
    pub fn size(&self) -> u128 {
        self.group_count.saturating_mul(self.source_count())
    }

    /// Returns the sources.
    pub fn sources(&self) -> SourceRange {
        self.sources
    }

    fn is_ipv4(&self) -> bool {
        self.groups.net().addr().is_ipv4()
    }

    fn source_count(&self) -> u128 {
        match self.sources {
            SourceRange::Prefix(prefix) => count(prefix.net()),
            SourceRange::Keep | SourceRange::Asm => 1,
        }
    }

    /// Returns the excluded parts at the start and at the end.
    fn outer_gaps(&self) -> [Option<(u128, u128)>; 2] {
        let first = number(self.groups.net().network());
        let end = first.saturating_add(count(self.groups.net()));
        let (Some(a), Some(z)) = (self.segments.first(), self.segments.last()) else {
            return [None; 2];
        };
        let start_gap = (a.first > first).then_some((first, a.first));
        let z_end = z.first + z.len;
        [start_gap, (z_end < end).then_some((z_end, end))]
    }

    /// Returns how well the range suits `global`; `None` if it cannot carry it. With `prefer_ipv4`,
    /// IPv4 ranges are preferred for all channels.
    pub fn suits(&self, global: Channel, prefer_ipv4: bool) -> Option<Suitability> {
        let same_version = self.is_ipv4() == global.is_ipv4();
        // Without a source in the local channel, packets keep their source, and so their IP version.
        let keeps_source = !matches!(self.sources, SourceRange::Prefix(_));
        if global.source().is_none() {
            return match (same_version, keeps_source) {
                (true, true) => Some(Suitability::Preferred),
                (true, false) => Some(Suitability::OneSource),
                // An egress cannot restore a source of another IP version that it does not know.
                (false, _) => None,
            };
        }
        if keeps_source {
            return same_version.then_some(Suitability::Preferred);
        }
        let is_preferred = match prefer_ipv4 {
            true => self.is_ipv4(),
            false => same_version,
        };
        Some(match is_preferred {
            true => Suitability::Preferred,
            false => Suitability::OtherVersion,
        })
    }

    fn local(&self, index: u128, global: Channel) -> Option<Channel> {
        let (source_number, group_number) = (index / self.group_count, index % self.group_count);
        let v4 = self.is_ipv4();
        let segment = self.segments.iter().rev();
        let segment = segment.into_iter().find(|s| s.before <= group_number)?;
        let group = address(segment.first + (group_number - segment.before), v4);
        let group = Group::new(group).ok()?;
        let source = match self.sources {
            SourceRange::Keep => global.source(),
            SourceRange::Asm => None,
            SourceRange::Prefix(prefix) => {
                let net = prefix.net();
                let source = address(number(net.network()).checked_add(source_number)?, v4);
                Some(Source::new(source).ok()?)
            }
        };
        Channel::new(source, group).ok()
    }

    fn index(&self, local: Channel) -> Option<u128> {
        let group = local.group().addr();
        if !self.groups.net().contains(&group) {
            return None;
        }
        let group = number(group);
        let segment = self
            .segments
            .iter()
            .find(|s| s.first <= group && group - s.first < s.len)?;
        let group_number = segment.before + (group - segment.first);
        let source_number = match (self.sources, local.source()) {
            (SourceRange::Keep, _) | (SourceRange::Asm, None) => 0,
            (SourceRange::Prefix(prefix), Some(source)) => {
                let net = prefix.net();
                if !net.contains(&source.addr()) {
                    return None;
                }
                number(source.addr()) - number(net.network())
            }
            _ => return None,
        };
        source_number
            .checked_mul(self.group_count)?
            .checked_add(group_number)
    }

    /// Returns whether the ranges have a local channel in common.
    fn conflicts_with(&self, other: &Self) -> bool {
        let overlap = |a: IpNet, b: IpNet| a.contains(&b) || b.contains(&a);
        let sources_overlap = match (self.sources, other.sources) {
            (SourceRange::Prefix(a), SourceRange::Prefix(b)) => overlap(a.net(), b.net()),
            _ => true,
        };
        let groups_overlap = self.segments.iter().any(|a| {
            let meets =
                |b: &Segment| a.first < b.first + b.len && b.first < a.first.saturating_add(a.len);
            other.segments.iter().any(meets)
        });
        self.is_ipv4() == other.is_ipv4() && sources_overlap && groups_overlap
    }
}

/// Returns an address as a number.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(bits) if v4 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

/// Returns the number of addresses of a prefix, at most `u128::MAX`.
fn count(net: IpNet) -> u128 {
    let host_bits = u32::from(net.max_prefix_len() - net.prefix_len());
    1u128.checked_shl(host_bits).unwrap_or(u128::MAX)
}

/// Reads a pool file and collects its faults.
#[derive(Default)]
struct PoolReader {
    faults: Vec<PoolFault>,
}

impl PoolReader {
    fn fault(&mut self, place: impl Into<String>, message: impl fmt::Display) {
        self.faults.push(PoolFault {
            place: place.into(),
            message: message.to_string(),
        });
    }

    /// Returns the object at `place`, and reports members that are not in `known`.
    fn object<'v>(
        &mut self,
        value: &'v Value,
        place: &str,
        known: &[&str],
    ) -> Option<&'v Map<String, Value>> {
        let Some(object) = value.as_object() else {
            self.fault(place, "expected an object");
            return None;
        };
        for name in object.keys().filter(|name| !known.contains(&name.as_str())) {
            let known = known.join(", ");
            self.fault(
                member_place(place, name),
                format_args!("unknown member; there are {known}"),
            );
        }
        if object.get("note").is_some_and(|note| !note.is_string()) {
            self.fault(member_place(place, "note"), "expected a string");
        }
        Some(object)
    }

    fn read_file(&mut self, file: &Value) -> Vec<PoolRange> {
        let Some(top) = self.object(file, "", &["group-pool"]) else {
            return Vec::new();
        };
        let Some(pool) = top.get("group-pool") else {
            self.fault("group-pool", "this member is missing");
            return Vec::new();
        };
        let known = ["ranges", "default-source-range", "note"];
        let Some(pool) = self.object(pool, "group-pool", &known) else {
            return Vec::new();
        };
        let default = pool
            .get("default-source-range")
            .and_then(|value| self.read_sources(value, "group-pool.default-source-range"));
        let place = "group-pool.ranges";
        let entries = match pool.get("ranges") {
            Some(Value::Array(entries)) if !entries.is_empty() => entries,
            Some(Value::Array(_)) => {
                self.fault(place, "expected at least one range");
                return Vec::new();
            }
            Some(_) => {
                self.fault(place, "expected a list");
                return Vec::new();
            }
            None => {
                self.fault(place, "this member is missing");
                return Vec::new();
            }
        };
        let mut ranges: Vec<(usize, PoolRange)> = Vec::new();
        for (n, entry) in entries.iter().enumerate() {
            let place = format!("{place}[{n}]");
            let has_default = pool.contains_key("default-source-range");
            let Some(range) = self.read_range(entry, &place, default, has_default) else {
                continue;
            };
            for (other, earlier) in &ranges {
                if range.conflicts_with(earlier) {
                    let message = format!(
                        "assigns some (S,G)s of group-pool.ranges[{other}] again ({} and {})",
                        range.groups, earlier.groups
                    );
                    self.fault(format!("{place}.group-range"), message);
                }
            }
            ranges.push((n, range));
        }
        ranges.into_iter().map(|(_, range)| range).collect()
    }

    fn read_range(
        &mut self,
        entry: &Value,
        place: &str,
        default: Option<SourceRange>,
        has_default: bool,
    ) -> Option<PoolRange> {
        let known = ["group-range", "source-range", "exclude", "note"];
        let object = self.object(entry, place, &known)?;
        let groups = self.read_groups(object.get("group-range"), &format!("{place}.group-range"));
        let sources = match object.get("source-range") {
            Some(value) => self.read_sources(value, &format!("{place}.source-range")),
            None if has_default => default,
            None => {
                let message = "this member is missing, and there is no default-source-range";
                self.fault(format!("{place}.source-range"), message);
                None
            }
        };
        let groups = groups?;
        let excludes = self.read_excludes(object.get("exclude"), place, groups);
        let segments = segments(groups.net(), &excludes);
        let group_count = segments.iter().map(|s| s.len).sum();
        if group_count == 0 {
            self.fault(format!("{place}.exclude"), "nothing of the range is left");
            return None;
        }
        let sources = sources?;
        let range = PoolRange {
            groups,
            segments,
            group_count,
            sources,
        };
        self.check_range(&range, object, place);
        Some(range)
    }

    fn check_range(&mut self, range: &PoolRange, object: &Map<String, Value>, place: &str) {
        if let SourceRange::Prefix(prefix) = range.sources
            && prefix.net().addr().is_ipv4() != range.is_ipv4()
        {
            let place = match object.contains_key("source-range") {
                true => format!("{place}.source-range"),
                false => "group-pool.default-source-range".into(),
            };
            let groups = range.groups;
            self.fault(
                place,
                format_args!("{prefix} and the groups {groups} are of different IP versions"),
            );
        }
        let place = format!("{place}.group-range");
        if range.is_ipv4() {
            let link_local = number(Ipv4Addr::new(224, 0, 0, 0).into());
            let has = |s: &Segment| s.first < link_local + 256 && s.first + s.len > link_local;
            if range.segments.iter().any(has) {
                let message = "contains 224.0.0.0/24, which routers do not forward; exclude it";
                self.fault(place, message);
            }
        } else if range.groups.net().prefix_len() < 16 {
            self.fault(
                place,
                "an IPv6 range has at least 16 bits: ff, flags and scope",
            );
        } else if range.groups.is_link_local() {
            self.fault(place, "routers do not forward groups of this scope");
        }
    }

    fn text<'v>(&mut self, value: Option<&'v Value>, place: &str) -> Option<&'v str> {
        match value {
            Some(Value::String(text)) => return Some(text),
            Some(_) => self.fault(place, "expected a string"),
            None => self.fault(place, "this member is missing"),
        }
        None
    }

    fn read_groups(&mut self, value: Option<&Value>, place: &str) -> Option<GroupPrefix> {
        let text = self.text(value, place)?;
        let groups = text.parse();
        groups.map_err(|e| self.fault(place, e)).ok()
    }

    fn read_sources(&mut self, value: &Value, place: &str) -> Option<SourceRange> {
        let prefix: SourcePrefix = match self.text(Some(value), place)? {
            "keep" => return Some(SourceRange::Keep),
            "asm" => return Some(SourceRange::Asm),
            text => match text.parse() {
                Ok(prefix) => prefix,
                Err(e) => {
                    self.fault(
                        place,
                        format_args!("expected keep, asm, an address or a prefix: {e}"),
                    );
                    return None;
                }
            },
        };
        let net = prefix.net();
        let (first, last) = (net.network(), net.broadcast());
        let is_invalid = |a: IpAddr| a.is_unspecified() || a.is_multicast();
        if is_invalid(first) || is_invalid(last) || last == IpAddr::from([255; 4]) {
            self.fault(
                place,
                format_args!("{net} contains addresses that no sender may have"),
            );
            return None;
        }
        Some(SourceRange::Prefix(prefix))
    }

    fn read_excludes(
        &mut self,
        value: Option<&Value>,
        place: &str,
        groups: GroupPrefix,
    ) -> Vec<IpNet> {
        let place = format!("{place}.exclude");
        let entries = match value {
            None => return Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(_) => {
                self.fault(place, "expected a list");
                return Vec::new();
            }
        };
        let mut excludes: Vec<IpNet> = Vec::new();
        for (n, entry) in entries.iter().enumerate() {
            let place = format!("{place}[{n}]");
            let Some(object) = self.object(entry, &place, &["groupex-range", "note"]) else {
                continue;
            };
            let place = format!("{place}.groupex-range");
            let Some(excluded) = self.read_groups(object.get("groupex-range"), &place) else {
                continue;
            };
            let net = excluded.net();
            if !groups.net().contains(&net) {
                self.fault(&place, format_args!("{net} is not inside {groups}"));
                continue;
            }
            let overlaps = |other: &&IpNet| other.contains(&net) || net.contains(*other);
            if let Some(other) = excludes.iter().find(overlaps) {
                self.fault(&place, format_args!("{net} and {other} overlap"));
                continue;
            }
            excludes.push(net);
        }
        excludes
    }
}

fn member_place(place: &str, name: &str) -> String {
    match place {
        "" => name.into(),
        place => format!("{place}.{name}"),
    }
}

/// Returns the parts of a range that are not excluded.
fn segments(range: IpNet, excludes: &[IpNet]) -> Vec<Segment> {
    let mut gaps: Vec<(u128, u128)> = excludes
        .iter()
        .map(|net| (number(net.network()), count(*net)))
        .collect();
    gaps.sort_unstable();
    let first = number(range.network());
    let end = first.saturating_add(count(range));
    let (mut next, mut before, mut found) = (first, 0, Vec::new());
    for (gap, len) in gaps.into_iter().chain([(end, 0)]) {
        if gap > next {
            found.push(Segment {
                first: next,
                before,
                len: gap - next,
            });
            before += gap - next;
        }
        next = gap.saturating_add(len);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let faults = Pool::parse(text).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    fn pool(ranges: &str) -> Pool {
        Pool::parse(&format!(r#"{{"group-pool": {{"ranges": [{ranges}]}}}}"#)).unwrap()
    }

    fn channel(source: Option<&str>, group: &str) -> Channel {
        Channel::parse(source, group).unwrap()
    }

    #[test]
    fn sample_pools_are_valid() {
        let sample = r#"{"group-pool": {"ranges": [{"group-range": "239.1.1.0/29",
            "source-range": "10.9.1.2/32"}], "note": "sample"}}"#;
        assert_eq!(Pool::parse(sample).unwrap().size(), 8);
        let asm = r#"{"group-pool": {"ranges": [
            {"group-range": "239.192.0.0/14", "exclude": [{"groupex-range": "239.195.255.0/24"}],
             "source-range": "keep", "note": "organization-local"},
            {"group-range": "234.10.0.0/16"}, {"group-range": "234.172.16.0/20"}],
            "default-source-range": "asm"}}"#;
        let asm = Pool::parse(asm).unwrap();
        assert_eq!(asm.size(), (1 << 18) - 256 + (1 << 16) + (1 << 12));
        assert_eq!(asm.ranges()[2].sources(), SourceRange::Asm);
    }

    #[test]
    fn slots_and_local_channels_correspond() {
        let pool = pool(
            r#"{"group-range": "239.1.1.0/28", "source-range": "10.0.0.0/31",
                "exclude": [{"groupex-range": "239.1.1.12/30"}, {"groupex-range": "239.1.1.0/30"},
                            {"groupex-range": "239.1.1.6/31"}]},
               {"group-range": "ff35::8000:0/112", "source-range": "fd00::10/127"},
               {"group-range": "ff15::/112", "source-range": "keep"},
               {"group-range": "234.0.0.0/30", "source-range": "asm"}"#,
        );
        assert_eq!(pool.ranges()[0].size(), 12);
        let global = channel(Some("2001:db8::1"), "ff3e::1");
        let mut seen = std::collections::BTreeSet::new();
        for (range, r) in pool.ranges().iter().enumerate() {
            for index in 0..r.size() {
                let slot = PoolSlot { range, index };
                let local = pool.local(slot, global).unwrap();
                assert_eq!(pool.slot(local), Some(slot), "{local}");
                assert!(seen.insert(local));
            }
        }
        let groups: Vec<String> = seen
            .iter()
            .filter(|l| l.source().is_some_and(|s| s.to_string() == "10.0.0.1"))
            .map(|l| l.group().to_string())
            .collect();
        let left = [
            "239.1.1.4",
            "239.1.1.5",
            "239.1.1.8",
            "239.1.1.9",
            "239.1.1.10",
            "239.1.1.11",
        ];
        assert_eq!(groups, left);
        for foreign in [
            channel(Some("10.0.0.1"), "239.1.1.6"),
            channel(Some("10.0.0.2"), "239.1.1.4"),
            channel(None, "239.1.1.4"),
            channel(Some("10.0.0.1"), "234.0.0.1"),
        ] {
            assert_eq!(pool.slot(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn largest_ranges_have_all_slots() {
        let pool = pool(
            r#"{"group-range": "232.0.0.0/8", "source-range": "10.0.0.1"},
               {"group-range": "ff3e:0:0:1::/64", "source-range": "fd00::/64"}"#,
        );
        assert_eq!(pool.ranges()[0].size(), 1 << 24);
        assert_eq!(pool.ranges()[1].size(), u128::MAX);
        let slot = PoolSlot {
            range: 1,
            index: u128::MAX - 1,
        };
        let local = pool
            .local(slot, channel(Some("10.0.0.9"), "232.1.1.1"))
            .unwrap();
        assert_eq!(pool.slot(local), Some(slot));
    }

    #[test]
    fn suitable_ranges_keep_source_and_ip_version() {
        let pool = pool(
            r#"{"group-range": "239.1.0.0/16", "source-range": "10.0.0.1"},
               {"group-range": "239.2.0.0/16", "source-range": "keep"},
               {"group-range": "ff15::/112", "source-range": "asm"}"#,
        );
        let suits = |source, group, prefer_ipv4| -> Vec<Option<Suitability>> {
            let global = channel(source, group);
            let suits = |r: &PoolRange| r.suits(global, prefer_ipv4);
            pool.ranges().iter().map(suits).collect()
        };
        use Suitability::*;
        assert_eq!(
            suits(Some("10.1.1.1"), "232.1.1.1", false),
            [Some(Preferred), Some(Preferred), None]
        );
        let v6 = Some("2001:db8::1");
        assert_eq!(
            suits(v6, "ff3e::1", false),
            [Some(OtherVersion), None, Some(Preferred)]
        );
        assert_eq!(
            suits(v6, "ff3e::1", true),
            [Some(Preferred), None, Some(Preferred)]
        );
        assert_eq!(
            suits(None, "239.5.5.5", false),
            [Some(OneSource), Some(Preferred), None]
        );
        assert_eq!(suits(None, "ff1e::1", true), [None, None, Some(Preferred)]);
    }

    #[test]
    fn every_fault_is_reported_with_its_place() {
        for (text, place) in [
            ("{", "line 1, column 1: EOF"),
            ("[]", ": expected an object"),
            ("{}", "group-pool: this member is missing"),
            (r#"{"group-pool": 1}"#, "group-pool: expected an object"),
            (
                r#"{"group-pool": {}}"#,
                "group-pool.ranges: this member is missing",
            ),
            (
                r#"{"group-pool": {"ranges": {}}}"#,
                "group-pool.ranges: expected a list",
            ),
            (
                r#"{"group-pool": {"ranges": []}}"#,
                "group-pool.ranges: expected at least one",
            ),
            (
                r#"{"group-pool": {"ranges": [], "x": 1}}"#,
                "group-pool.x: unknown member",
            ),
            (
                r#"{"group-pool": {"ranges": [1]}}"#,
                "group-pool.ranges[0]: expected an object",
            ),
        ] {
            assert!(faults(text)[0].starts_with(place), "{:?}", faults(text));
        }
        for (range, fault) in [
            (
                r#"{"group-range": "10.0.0.0/8"}"#,
                ".group-range: 10.0.0.0/8 is not a multicast",
            ),
            (
                r#"{"group-range": "239.1.1.1/24"}"#,
                ".group-range: 239.1.1.1/24 has bits set",
            ),
            (r#"{"group-range": 7}"#, ".group-range: expected a string"),
            (r#"{}"#, ".group-range: this member is missing"),
            (
                r#"{"group-range": "239.1.1.0/24", "x": 1}"#,
                ".x: unknown member",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "note": 1}"#,
                ".note: expected a string",
            ),
            (
                r#"{"group-range": "224.0.0.0/8"}"#,
                ".group-range: contains 224.0.0.0/24",
            ),
            (
                r#"{"group-range": "ff00::/8", "source-range": "asm"}"#,
                ".group-range: an IPv6 range",
            ),
            (
                r#"{"group-range": "ff02::/16", "source-range": "asm"}"#,
                ".group-range: routers do not",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "source-range": "any"}"#,
                ".source-range: expected keep",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "source-range": "232.1.1.1"}"#,
                ".source-range: expected keep",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "source-range": "0.0.0.0/0"}"#,
                ".source-range: 0.0.0.0/0 contains",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "source-range": "fd00::1"}"#,
                ".source-range: fd00::1 and",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "exclude": {}}"#,
                ".exclude: expected a list",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "exclude": [{"x": 1}]}"#,
                ".exclude[0].x: unknown",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "exclude": [{"groupex-range": "239.1.2.0/24"}]}"#,
                ".exclude[0].groupex-range: 239.1.2.0/24 is not inside",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "exclude": [{"groupex-range": "239.1.1.0/24"}]}"#,
                ".exclude: nothing of the range",
            ),
            (
                r#"{"group-range": "239.1.1.0/24", "exclude": [{"groupex-range": "239.1.1.0/26"},
               {"groupex-range": "239.1.1.8/29"}]}"#,
                ".exclude[1].groupex-range: 239.1.1.8/29 and",
            ),
        ] {
            let text = format!(
                r#"{{"group-pool": {{"ranges": [{range}], "default-source-range": "10.0.0.1"}}}}"#
            );
            let expected = format!("group-pool.ranges[0]{fault}");
            let found = faults(&text);
            assert!(
                found.iter().any(|f| f.starts_with(&expected)),
                "{found:?}, {expected}"
            );
        }
        let no_sources = r#"{"group-pool": {"ranges": [{"group-range": "239.1.1.0/24"}]}}"#;
        assert!(faults(no_sources)[0].contains("no default-source-range"));
        let default = r#"{"group-pool": {"ranges": [{"group-range": "239.1.1.0/24"}],
            "default-source-range": "fd00::1"}}"#;
        assert!(faults(default)[0].starts_with("group-pool.default-source-range: fd00::1"));
        let overlap = r#"{"group-pool": {"ranges": [
            {"group-range": "239.1.0.0/16", "source-range": "10.0.0.0/24"},
            {"group-range": "239.1.1.0/24", "source-range": "10.0.1.0/24"},
            {"group-range": "239.1.1.0/24", "source-range": "asm"}]}}"#;
        let found = faults(overlap);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("group-pool.ranges[2].group-range: assigns some (S,G)s"));
    }

    #[test]
    fn fingerprint_names_ranges_excludes_and_sources() {
        let pool = pool(
            r#"{"group-range": "239.1.1.0/28", "source-range": "10.0.0.0/31",
                "exclude": [{"groupex-range": "239.1.1.4/30"}, {"groupex-range": "239.1.1.12/30"}]}"#,
        );
        assert_eq!(
            pool.fingerprint(),
            "239.1.1.0/28 without 239.1.1.12-239.1.1.15 without 239.1.1.4-239.1.1.7 from 10.0.0.0/31"
        );
    }
}
