//! Interface options. To smcroute the last `phyint` line that fits an interface counts, and it
//! alone; to the settings a name counts before all patterns, and of those the first.

use std::collections::HashMap;

use super::line::Phyint;
use crate::model::{IfPattern, TtlThreshold};

/// Options of the interfaces of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmcrouteInterface {
    /// Which interfaces.
    pub name: IfPattern,
    /// Nothing is routed there.
    pub disabled: bool,
    /// The router is announced there.
    pub mrdisc: bool,
    /// What may leave there.
    pub ttl_threshold: Option<TtlThreshold>,
    /// The line behind which it can be written, all of a file in that order.
    pub at: usize,
}

/// The options that mean what `lines` mean, each with the number of its line.
pub(super) fn resolve(lines: &[(usize, Phyint)]) -> Vec<SmcrouteInterface> {
    let mut last: HashMap<&IfPattern, usize> = HashMap::new();
    for (n, (_, phyint)) in lines.iter().enumerate() {
        last.insert(&phyint.name, n);
    }
    let mut kept: Vec<usize> = last.into_values().collect();
    kept.sort_unstable_by(|a, b| b.cmp(a));
    // From the last to the first, so that those seen already come later in the file.
    let mut patterns: Vec<(usize, usize)> = Vec::new();
    let mut found = Vec::new();
    for n in kept {
        let (line, phyint) = &lines[n];
        let name = &phyint.name;
        let mut meeting = patterns
            .iter()
            .filter(|(later, _)| lines[*later].1.name.intersects(name));
        let (at, counts) = match name.is_pattern() {
            false => {
                // The first is the last of the file.
                let over = meeting.next().map(|(later, _)| &lines[*later].1);
                (*line, over.unwrap_or(phyint))
            }
            true => {
                let behind = meeting.map(|(_, at)| *at).max();
                let at = behind.map_or(*line, |behind| behind.max(*line));
                patterns.push((n, at));
                (at, phyint)
            }
        };
        found.push(SmcrouteInterface {
            name: name.clone(),
            disabled: counts.disabled.unwrap_or_default(),
            mrdisc: counts.mrdisc,
            ttl_threshold: counts.ttl_threshold,
            at,
        });
    }
    // Of the same place the last line stays the first.
    found.sort_by_key(|interface| interface.at);
    found
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

    fn by_lines(lines: &[(usize, Phyint)], name: &IfName) -> Option<Options> {
        let fits = lines.iter().rev().find(|(_, l)| l.name.matches(name))?;
        let p = &fits.1;
        Some((p.disabled.unwrap_or_default(), p.mrdisc, p.ttl_threshold))
    }

    fn by_settings(all: &[SmcrouteInterface], name: &IfName) -> Option<Options> {
        let fitting = |patterns: bool| {
            all.iter()
                .find(move |i| i.name.is_pattern() == patterns && i.name.matches(name))
        };
        let i = fitting(false).or_else(|| fitting(true))?;
        Some((i.disabled, i.mrdisc, i.ttl_threshold))
    }

    #[test]
    fn the_last_line_counts_whole() {
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
