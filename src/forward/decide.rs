//! (ingress, packet) -> what happens to it.

use super::DropReason;
use crate::model::TtlPolicy;
use crate::model::addr::is_link_local_group;
use crate::table::flows::{FlowKey, Flows};
use crate::table::{Entry, EntryId, Fib, Ingress};
use crate::wire::WireError;
use crate::wire::ip::Datagram;

/// A packet that goes on.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'f> {
    /// What was read of it.
    pub datagram: Datagram,
    /// The rule that took it.
    pub entry: &'f Entry,
    /// TTL or hop limit it leaves with.
    pub ttl: u8,
}

/// A packet that does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotData {
    /// An IGMP or MLD message, which no router forwards.
    Membership,
    /// Dropped.
    Dropped(DropReason),
}

impl From<DropReason> for NotData {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl From<WireError> for NotData {
    fn from(e: WireError) -> Self {
        Self::Dropped(e.into())
    }
}

/// Looks a packet up: among the flows, and only where it has none among the rules. `bytes`
/// starts at the IP header and may end in link-layer padding. A packet that goes on is
/// counted in its flow, which it may be the first of.
pub fn decide<'f>(
    fib: &'f Fib,
    ingress: &Ingress,
    flows: &mut Flows,
    bytes: &[u8],
    now_ms: u64,
) -> Result<Decision<'f>, NotData> {
    let datagram = Datagram::parse(bytes)?;
    if !datagram.destination.is_multicast() {
        return Err(DropReason::NotMulticast.into());
    }
    // Before the source is looked at: hosts without an address yet report from none.
    if datagram.is_membership_message(bytes) {
        return Err(NotData::Membership);
    }
    if !datagram.source_is_valid() {
        return Err(DropReason::BadSource.into());
    }
    let key = (datagram.source, datagram.destination);
    let len = datagram.len as u64;
    let known = flows.touch(&key, fib.generation, len, now_ms);
    let id = match known {
        Some(id) => id,
        None => look_up(fib, ingress, key)?,
    };
    let entry = &fib.entries[id as usize];
    let ttl = match entry.ttl {
        TtlPolicy::Decrement if datagram.ttl <= 1 => return Err(DropReason::TtlExpired.into()),
        TtlPolicy::Decrement => datagram.ttl - 1,
        TtlPolicy::Keep => datagram.ttl,
        TtlPolicy::Set(ttl) => ttl,
    };
    if entry.paths.is_empty() {
        return Err(DropReason::NoEgress.into());
    }
    if known.is_none() {
        flows.note(key, id, fib.generation, len, now_ms);
    }
    Ok(Decision {
        datagram,
        entry,
        ttl,
    })
}

/// The rule that takes packets of a source and group.
pub fn look_up(
    fib: &Fib,
    ingress: &Ingress,
    (source, group): FlowKey,
) -> Result<EntryId, DropReason> {
    let mut excepted = false;
    let id = ingress.entries.find(source, group, |id| {
        let takes = fib.entries[*id as usize].takes(source);
        excepted |= !takes;
        takes
    });
    match id {
        Some(id) if is_link_local_group(group) && !fib.entries[*id as usize].link_local => {
            Err(DropReason::LinkLocal)
        }
        Some(id) => Ok(*id),
        None if excepted => Err(DropReason::SourceExcepted),
        None => Err(DropReason::NoRoute),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RouteName;
    use crate::table::flows::FlowBudget;
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

    fn table(entries: &[(&str, &str, TtlPolicy, &[&str])]) -> (Fib, Ingress) {
        let (mut fib, mut ingress) = (Fib::default(), Ingress::default());
        for (group, source, ttl, except) in entries {
            let entry = Entry {
                route: RouteName::new(*group),
                except_sources: except.iter().map(|e| e.parse().unwrap()).collect(),
                ttl: *ttl,
                link_local: false,
                loop_guard: false,
                paths: vec![0],
            };
            let id = fib.entries.len() as EntryId;
            fib.entries.push(entry);
            let (group, source) = (group.parse().unwrap(), source.parse().unwrap());
            ingress.entries.insert(group, source, id);
        }
        (fib, ingress)
    }

    fn decide<'f>(
        (fib, ingress): &'f (Fib, Ingress),
        bytes: &[u8],
    ) -> Result<Decision<'f>, DropReason> {
        let mut flows = Flows::new(FlowBudget::new(8));
        let first = super::decide(fib, ingress, &mut flows, bytes, 0).map(|d| d.ttl);
        // From the flow the answer is the same as from the rules.
        let again = super::decide(fib, ingress, &mut flows, bytes, 0);
        assert_eq!(again.map(|d| d.ttl), first);
        assert_eq!(flows.iter().count(), usize::from(first.is_ok()));
        again.map_err(|e| match e {
            NotData::Dropped(reason) => reason,
            NotData::Membership => panic!("a membership message"),
        })
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
            let table_ = table(&[("225.1.2.3", ANY, policy, &[])]);
            let bytes = packet([10, 0, 0, 1], [225, 1, 2, 3], arrives);
            assert_eq!(
                decide(&table_, &bytes).map(|d| d.ttl),
                leaves,
                "{policy} {arrives}"
            );
        }
    }

    #[test]
    fn an_excepted_source_falls_to_a_less_specific_rule_or_has_its_own_reason() {
        let both = table(&[
            ("225.1.2.3", ANY, TtlPolicy::Keep, &["10.0.0.7"]),
            ("225.1.2.0/24", ANY, TtlPolicy::Decrement, &[]),
        ]);
        let bytes = packet([10, 0, 0, 7], [225, 1, 2, 3], 5);
        assert_eq!(
            decide(&both, &bytes).unwrap().entry.route.as_str(),
            "225.1.2.0/24"
        );
        let one = table(&[("225.1.2.3", ANY, TtlPolicy::Keep, &["10.0.0.0/24"])]);
        assert_eq!(decide(&one, &bytes).err(), Some(DropReason::SourceExcepted));
    }

    #[test]
    fn what_no_router_forwards() {
        let all = table(&[("224.0.0.0/4", ANY, TtlPolicy::Decrement, &[])]);
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
