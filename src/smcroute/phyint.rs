//! Interface options. smcroute applies only the last `phyint` line that matches an interface. In
//! the TOML settings, an exact name takes precedence over all patterns, and the first matching
//! pattern over later ones. This module converts from the first order to the second.

use std::collections::HashMap;

use super::line::Phyint;
use crate::model::{IfPattern, TtlThreshold};

/// The options of the interfaces that match a name or pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmcrouteInterface {
    /// The interfaces.
    pub name: IfPattern,
    /// Packets are not routed on the interface.
    pub disabled: bool,
    /// The router sends advertisements on the interface (RFC 4286).
    pub mrdisc: bool,
    /// The TTL threshold for packets that leave the interface.
    pub ttl_threshold: Option<TtlThreshold>,
    /// The line has `enable`: streams that arrive on the interface are listed, routed or not.
    pub capture: bool,
    /// Index of the line after which the converted options can be written. Options written in the
    /// order of this index have the meaning of the file.
    pub at: usize,
}

/// Returns options in the precedence order of the TOML settings that have the effect of `lines`.
/// `lines` are the `phyint` directives, each with the index of its line.
pub(super) fn resolve(lines: &[(usize, Phyint)]) -> Vec<SmcrouteInterface> {
    let mut last: HashMap<&IfPattern, usize> = HashMap::new();
    for (n, (_, phyint)) in lines.iter().enumerate() {
        last.insert(&phyint.name, n);
    }
    let mut kept: Vec<usize> = last.into_values().collect();
    kept.sort_unstable_by(|a, b| b.cmp(a));
    // Iterates from the last line to the first. `patterns` thus holds the patterns of later lines.
    let mut patterns: Vec<(usize, usize)> = Vec::new();
    let mut interfaces = Vec::new();
    for n in kept {
        let (line, phyint) = &lines[n];
        let name = &phyint.name;
        let mut overlapping = patterns
            .iter()
            .filter(|(later, _)| lines[*later].1.name.intersects(name));
        let (at, effective) = match name.is_pattern() {
            false => {
                // The first overlapping pattern has the last line. It overrides this line.
                let overriding = overlapping.next().map(|(later, _)| &lines[*later].1);
                (*line, overriding.unwrap_or(phyint))
            }
            true => {
                let after = overlapping.map(|(_, at)| *at).max();
                let at = after.map_or(*line, |after| after.max(*line));
                patterns.push((n, at));
                (at, phyint)
            }
        };
        interfaces.push(SmcrouteInterface {
            name: name.clone(),
            disabled: effective.disabled.unwrap_or_default(),
            mrdisc: effective.mrdisc,
            ttl_threshold: effective.ttl_threshold,
            capture: effective.disabled == Some(false),
            at,
        });
    }
    // The sort is stable: with the same `at`, the options of the later line come first.
    interfaces.sort_by_key(|interface| interface.at);
    interfaces
}

#[cfg(test)]
mod tests {
    use super::super::line::{Directive, read};
    use super::*;
    use crate::model::IfName;

    fn lines(text: &str) -> Vec<(usize, Phyint)> {
        let directive = |line| read(line, false).unwrap().directive;
        let phyints = text.lines().map(directive).map(|d| match d {
            Some(Directive::Phyint(phyint)) => phyint,
            other => panic!("{other:?}"),
        });
        phyints.enumerate().collect()
    }

    type Options = (bool, bool, Option<TtlThreshold>);

    /// Returns the options of the last matching line, as smcroute does.
    fn by_lines(lines: &[(usize, Phyint)], name: &IfName) -> Option<Options> {
        let last = lines.iter().rev().find(|(_, l)| l.name.matches(name))?;
        let p = &last.1;
        Some((p.disabled.unwrap_or_default(), p.mrdisc, p.ttl_threshold))
    }

    /// Returns the options by the precedence of the TOML settings.
    fn by_settings(all: &[SmcrouteInterface], name: &IfName) -> Option<Options> {
        let find = |patterns: bool| {
            all.iter()
                .find(move |i| i.name.is_pattern() == patterns && i.name.matches(name))
        };
        let i = find(false).or_else(|| find(true))?;
        Some((i.disabled, i.mrdisc, i.ttl_threshold))
    }

    #[test]
    fn converted_options_equal_last_matching_line() {
        for text in [
            "phyint rvb enable ttl-threshold 2\nphyint rv+ ttl-threshold 9\n\
             phyint rvc ttl-threshold 9\nphyint rvc mrdisc",
            "phyint rv+ ttl-threshold 11\nphyint rvb enable mrdisc\nphyint rvc disable\n\
             phyint rv+ enable",
            "phyint r+ ttl-threshold 3\nphyint rva+ mrdisc\nphyint rv+ disable\n\
             phyint e+ ttl-threshold 4\nphyint + ttl-threshold 5\nphyint rvb+ ttl-threshold 6",
            "phyint rvb disable\nphyint rvb\nphyint e+ disable\nphyint e+ mrdisc\nphyint eth0",
        ] {
            let lines = lines(text);
            let all = resolve(&lines);
            for name in ["rvb", "rvc", "rva", "rvbb", "rx", "eth0", "eth1", "lo"] {
                let name: IfName = name.parse().unwrap();
                let (settings, file) = (by_settings(&all, &name), by_lines(&lines, &name));
                assert_eq!(settings, file, "{name}\n{text}\n{all:?}");
            }
            assert!(all.is_sorted_by_key(|i| i.at));
        }
    }
}
