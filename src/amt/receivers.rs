//! The gateways that receive a group.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ahash::AHashMap;

use crate::model::{Source, SourceFilter, TunnelEndpoint};

/// A gateway that receives all sources except some.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AnySource {
    gateway: TunnelEndpoint,
    excluded: BTreeSet<Source>,
}

/// The gateways that receive a group, by source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupReceivers {
    by_source: AHashMap<IpAddr, Vec<TunnelEndpoint>>,
    any_source: Vec<AnySource>,
}

impl GroupReceivers {
    /// Returns the receivers with these filters. `local_of` returns the address of this host that a
    /// gateway knows.
    pub(super) fn new(
        filters: &BTreeMap<SocketAddr, SourceFilter>,
        local_of: impl Fn(&SocketAddr) -> IpAddr,
    ) -> Self {
        let mut receivers = Self::default();
        for (gateway, filter) in filters {
            let gateway = TunnelEndpoint {
                remote: *gateway,
                local: local_of(gateway),
            };
            match filter {
                SourceFilter::Include(sources) => {
                    for source in sources {
                        let of_source = receivers.by_source.entry(source.addr());
                        of_source.or_default().push(gateway);
                    }
                }
                SourceFilter::Exclude(excluded) => receivers.any_source.push(AnySource {
                    gateway,
                    excluded: excluded.clone(),
                }),
            }
        }
        receivers
    }

    /// Returns the gateways that receive a source, in a constant order.
    pub fn of(&self, source: IpAddr) -> impl Iterator<Item = TunnelEndpoint> + '_ {
        let named = self.by_source.get(&source).into_iter().flatten().copied();
        let excluded = Source::new(source).ok();
        let receives =
            move |r: &&AnySource| excluded.is_none_or(|source| !r.excluded.contains(&source));
        let any = self.any_source.iter().filter(receives);
        named.chain(any.map(|receiver| receiver.gateway))
    }

    /// Returns whether no gateway receives the group.
    pub fn is_empty(&self) -> bool {
        self.by_source.is_empty() && self.any_source.is_empty()
    }
}

/// Returns the union of filters. Unlike a fold with [`SourceFilter::union`], it copies no set for
/// each member.
pub(super) fn union(members: &BTreeMap<SocketAddr, SourceFilter>) -> SourceFilter {
    let mut included = BTreeSet::new();
    let mut excluded: Option<BTreeSet<_>> = None;
    for filter in members.values() {
        match (filter, &mut excluded) {
            (SourceFilter::Include(sources), _) => included.extend(sources.iter().copied()),
            (SourceFilter::Exclude(sources), None) => excluded = Some(sources.clone()),
            (SourceFilter::Exclude(sources), Some(all)) => all.retain(|s| sources.contains(s)),
        }
    }
    match excluded {
        None => SourceFilter::Include(included),
        Some(mut excluded) => {
            excluded.retain(|source| !included.contains(source));
            SourceFilter::Exclude(excluded)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_receive_the_sources_of_their_filters() {
        let address = |n: u16| SocketAddr::new([192, 0, 2, 1].into(), n);
        let sources = |list: &[&str]| list.iter().map(|s| s.parse().unwrap()).collect();
        let receivers = GroupReceivers::new(
            &BTreeMap::from([
                (address(1), SourceFilter::Include(sources(&["10.0.0.1"]))),
                (
                    address(2),
                    SourceFilter::Include(sources(&["10.0.0.1", "10.0.0.2"])),
                ),
                (address(3), SourceFilter::any()),
                (address(4), SourceFilter::Exclude(sources(&["10.0.0.1"]))),
            ]),
            |_| [192, 0, 2, 9].into(),
        );
        let of = |source: &str| -> Vec<u16> {
            let gateways = receivers.of(source.parse().unwrap());
            gateways.map(|gateway| gateway.remote.port()).collect()
        };
        assert_eq!(of("10.0.0.1"), [1, 2, 3]);
        assert_eq!(of("10.0.0.2"), [2, 3, 4]);
        assert_eq!(of("10.0.0.3"), [3, 4]);
        assert!(GroupReceivers::default().is_empty());
    }
}
