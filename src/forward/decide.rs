//! (ingress, packet) -> what happens to it.

use std::sync::Arc;

use super::DropReason;
use crate::model::TtlPolicy;
use crate::model::addr::is_link_local_group;
use crate::table::{Entry, Ingress};
use crate::wire::ip::Datagram;

/// A packet that goes on.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'f> {
    /// What was read of it.
    pub datagram: Datagram,
    /// The rule that took it.
    pub entry: &'f Arc<Entry>,
    /// TTL or hop limit it leaves with.
    pub ttl: u8,
}

/// Looks a packet up. `bytes` starts at the IP header and may end in link-layer padding.
pub fn decide<'f>(ingress: &'f Ingress, bytes: &[u8]) -> Result<Decision<'f>, DropReason> {
    let datagram = Datagram::parse(bytes)?;
    if !datagram.destination.is_multicast() {
        return Err(DropReason::NotMulticast);
    }
    if !datagram.source_is_valid() {
        return Err(DropReason::BadSource);
    }
    let mut excepted = false;
    let entry = ingress
        .entries
        .find(datagram.source, datagram.destination, |entry| {
            let takes = entry.takes(datagram.source);
            excepted |= !takes;
            takes
        });
    let Some(entry) = entry else {
        return Err(if excepted {
            DropReason::SourceExcepted
        } else {
            DropReason::NoRoute
        });
    };
    if is_link_local_group(datagram.destination) && !entry.link_local {
        return Err(DropReason::LinkLocal);
    }
    let ttl = match entry.ttl {
        TtlPolicy::Decrement if datagram.ttl <= 1 => return Err(DropReason::TtlExpired),
        TtlPolicy::Decrement => datagram.ttl - 1,
        TtlPolicy::Keep => datagram.ttl,
        TtlPolicy::Set(ttl) => ttl,
    };
    if entry.paths.is_empty() {
        return Err(DropReason::NoEgress);
    }
    Ok(Decision {
        datagram,
        entry,
        ttl,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RouteName;
    use crate::wire::ip::refresh_ipv4_checksum;

    fn packet(source: [u8; 4], group: [u8; 4], ttl: u8) -> Vec<u8> {
        let mut p = vec![0u8; 28];
        p[0] = 0x45;
        p[3] = 28;
        p[8] = ttl;
        p[9] = 17;
        p[12..16].copy_from_slice(&source);
        p[16..20].copy_from_slice(&group);
        refresh_ipv4_checksum(&mut p);
        p
    }

    fn ingress(entries: &[(&str, &str, TtlPolicy, &[&str])]) -> Ingress {
        let mut ingress = Ingress::default();
        for (group, source, ttl, except) in entries {
            let entry = Entry {
                route: RouteName::new(*group),
                except_sources: except.iter().map(|e| e.parse().unwrap()).collect(),
                ttl: *ttl,
                link_local: false,
                paths: vec![0],
            };
            ingress.entries.insert(
                group.parse().unwrap(),
                source.parse().unwrap(),
                Arc::new(entry),
            );
        }
        ingress
    }

    const ANY: &str = "0.0.0.0/0";

    #[test]
    fn ttl_by_policy() {
        for (policy, arrives, leaves) in [
            (TtlPolicy::Decrement, 2, Ok(1)),
            (TtlPolicy::Decrement, 1, Err(DropReason::TtlExpired)),
            (TtlPolicy::Decrement, 0, Err(DropReason::TtlExpired)),
            (TtlPolicy::Keep, 1, Ok(1)),
            (TtlPolicy::Set(8), 1, Ok(8)),
            (TtlPolicy::Set(8), 64, Ok(8)),
        ] {
            let ingress = ingress(&[("225.1.2.3", ANY, policy, &[])]);
            let bytes = packet([10, 0, 0, 1], [225, 1, 2, 3], arrives);
            assert_eq!(
                decide(&ingress, &bytes).map(|d| d.ttl),
                leaves,
                "{policy} {arrives}"
            );
        }
    }

    #[test]
    fn an_excepted_source_falls_to_a_less_specific_rule_or_has_its_own_reason() {
        let both = ingress(&[
            ("225.1.2.3", ANY, TtlPolicy::Keep, &["10.0.0.7"]),
            ("225.1.2.0/24", ANY, TtlPolicy::Decrement, &[]),
        ]);
        let bytes = packet([10, 0, 0, 7], [225, 1, 2, 3], 5);
        assert_eq!(
            decide(&both, &bytes).unwrap().entry.route.as_str(),
            "225.1.2.0/24"
        );
        let one = ingress(&[("225.1.2.3", ANY, TtlPolicy::Keep, &["10.0.0.0/24"])]);
        assert_eq!(decide(&one, &bytes).err(), Some(DropReason::SourceExcepted));
    }

    #[test]
    fn what_no_router_forwards() {
        let all = ingress(&[("224.0.0.0/4", ANY, TtlPolicy::Decrement, &[])]);
        let reason = |s, g| decide(&all, &packet(s, g, 9)).err();
        assert_eq!(reason([10, 0, 0, 1], [225, 1, 2, 3]), None);
        assert_eq!(
            reason([10, 0, 0, 1], [224, 0, 0, 251]),
            Some(DropReason::LinkLocal)
        );
        assert_eq!(
            reason([10, 0, 0, 1], [10, 0, 0, 2]),
            Some(DropReason::NotMulticast)
        );
        for source in [[0, 0, 0, 0], [127, 0, 0, 1], [225, 0, 0, 1], [255; 4]] {
            assert_eq!(
                reason(source, [225, 1, 2, 3]),
                Some(DropReason::BadSource),
                "{source:?}"
            );
        }
    }
}
