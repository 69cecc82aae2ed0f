//! Which groups to join as a host, on which interfaces.

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{Group, IfIndex, JoinRule, Links, RouteRule, Source};

/// One membership of this host (RFC 3376 section 3: a socket's interest in a group).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Join {
    /// On which interface.
    pub interface: IfIndex,
    /// The group.
    pub group: Group,
    /// Only what this source sends; `None` for any.
    pub source: Option<Source>,
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => write!(f, "({source}, {})", self.group),
            None => write!(f, "(*, {})", self.group),
        }
    }
}

/// The memberships that joins and routes ask for, on the links there are. A source-specific
/// one is left out where the same group is joined for any source.
pub fn wanted<'a>(
    joins: impl IntoIterator<Item = &'a JoinRule>,
    routes: impl IntoIterator<Item = &'a RouteRule>,
    links: &Links,
) -> BTreeSet<Join> {
    let of_routes: Vec<JoinRule> = routes
        .into_iter()
        .filter_map(RouteRule::wanted_join)
        .collect();
    let mut wanted = BTreeSet::new();
    let mut want = |rule: &JoinRule| {
        for link in links.matching(&rule.interface) {
            wanted.extend(rule.groups().map(|group| Join {
                interface: link.index,
                group,
                source: rule.source,
            }));
        }
    };
    joins.into_iter().for_each(&mut want);
    of_routes.iter().for_each(want);
    let any_source: BTreeSet<(IfIndex, Group)> = wanted
        .iter()
        .filter(|j| j.source.is_none())
        .map(|j| (j.interface, j.group))
        .collect();
    wanted.retain(|j| j.source.is_none() || !any_source.contains(&(j.interface, j.group)));
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Link, Origin};

    fn links() -> Links {
        ["eth0", "eth1"]
            .iter()
            .enumerate()
            .map(|(i, name)| Link::new(IfIndex::new(i as u32 + 1).unwrap(), name.parse().unwrap()))
            .collect()
    }

    fn rule(interface: &str, source: Option<&str>, group: &str) -> JoinRule {
        JoinRule {
            interface: interface.parse().unwrap(),
            source: source.map(|s| s.parse().unwrap()),
            group: group.parse().unwrap(),
            origin: Origin::Settings,
        }
    }

    fn texts(rules: &[JoinRule]) -> Vec<String> {
        wanted(rules, [], &links())
            .iter()
            .map(|j| format!("{} {j}", j.interface))
            .collect()
    }

    #[test]
    fn prefixes_and_patterns_are_joined_one_by_one() {
        assert_eq!(
            texts(&[rule("eth*", None, "225.1.2.0/31")]),
            [
                "1 (*, 225.1.2.0)",
                "1 (*, 225.1.2.1)",
                "2 (*, 225.1.2.0)",
                "2 (*, 225.1.2.1)"
            ]
        );
    }

    #[test]
    fn any_source_takes_in_every_single_one() {
        assert_eq!(
            texts(&[
                rule("eth0", Some("10.0.0.1"), "225.1.2.3"),
                rule("eth0", None, "225.1.2.3"),
                rule("eth1", Some("10.0.0.1"), "225.1.2.3"),
            ]),
            ["1 (*, 225.1.2.3)", "2 (10.0.0.1, 225.1.2.3)"]
        );
    }
}
