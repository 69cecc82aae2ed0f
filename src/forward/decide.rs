//! (ingress, packet) -> what happens to it.
//!
//! The best static rule decides, and so does each proxy of the interface it arrived on; the
//! packet goes wherever any of them sends it. It leaves in one [`Variant`] for each.

use super::DropReason;
use crate::model::addr::is_link_local_group;
use crate::model::{Group, Source, TtlPolicy};
use crate::table::flows::{FlowKey, Flows, Verdicts};
use crate::table::upstream_selector::UpstreamSelector;
use crate::table::{Entry, EntryId, Fib, Ingress, PathId, ProxyIngress};
use crate::wire::WireError;
use crate::wire::ip::IpHeader;
use crate::wire::link_control::is_link_control;

/// A packet that goes on.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'f> {
    /// What was read of it.
    pub datagram: IpHeader,
    fib: &'f Fib,
    ingress: &'f Ingress,
    /// Those that send it on.
    verdicts: Verdicts,
}

/// A packet as one rule or proxy sends it.
#[derive(Debug, Clone, Copy)]
pub struct Variant<'f> {
    /// The rule or proxy.
    pub entry: &'f Entry,
    /// TTL or hop limit it leaves with.
    pub ttl: u8,
    learned: Option<(&'f ProxyIngress, &'f [u32])>,
}

impl<'f> Variant<'f> {
    /// Where it goes.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + use<'f> {
        let learned = self.learned.into_iter();
        let learned = learned.flat_map(|(proxy, set)| proxy.paths_to(set));
        self.entry.paths.iter().copied().chain(learned)
    }
}

impl<'f> Decision<'f> {
    /// The versions it leaves in: that of the static rule first. At least one; some may have
    /// no path, or only such that an earlier one has too.
    pub fn variants(&self) -> impl Iterator<Item = Variant<'f>> + use<'f> {
        let arrived = self.datagram.ttl;
        entries(self.fib, self.ingress, self.verdicts).filter_map(move |(entry, learned)| {
            Some(Variant {
                entry,
                ttl: leaves_with(entry.ttl, arrived)?,
                learned,
            })
        })
    }

    /// Whether there is more than one version.
    pub fn is_union(&self) -> bool {
        let Verdicts { entry, proxies, .. } = self.verdicts;
        proxies.count_ones() + u32::from(entry.is_some()) > 1
    }
}

/// The static rule and the proxies that verdicts name, and where the latter learned to send.
fn entries<'f>(
    fib: &'f Fib,
    ingress: &'f Ingress,
    verdicts: Verdicts,
) -> impl Iterator<Item = (&'f Entry, Option<(&'f ProxyIngress, &'f [u32])>)> + use<'f> {
    let fixed = verdicts.entry.map(|id| (&fib.entries[id as usize], None));
    let wanted = fib.wishes.set(verdicts.wanted);
    let proxies = positions(verdicts.proxies).filter_map(move |at| {
        let proxy = ingress.proxies.get(at)?;
        let entry = &fib.entries[proxy.entry as usize];
        Some((entry, Some((proxy, wanted))))
    });
    fixed.into_iter().chain(proxies)
}

/// Every rule or proxy that verdicts name, with the paths it sends on.
pub fn ways<'f>(
    fib: &'f Fib,
    ingress: &'f Ingress,
    verdicts: Verdicts,
) -> impl Iterator<Item = (&'f Entry, impl Iterator<Item = PathId> + use<'f>)> + use<'f> {
    entries(fib, ingress, verdicts).map(|(entry, learned)| {
        let ttl = 0;
        let version = Variant {
            entry,
            ttl,
            learned,
        };
        (entry, version.paths())
    })
}

/// The positions of the bits that are set.
fn positions(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(at)
    })
}

fn leaves_with(policy: TtlPolicy, arrived: u8) -> Option<u8> {
    match policy {
        TtlPolicy::Decrement => (arrived > 1).then(|| arrived - 1),
        TtlPolicy::Keep => Some(arrived),
        TtlPolicy::Set(ttl) => Some(ttl),
    }
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

/// Where a packet stands when it is decided.
#[derive(Clone, Copy)]
pub struct Arrival<'f, 's> {
    /// The snapshot.
    pub fib: &'f Fib,
    /// What the snapshot knows of the interface.
    pub ingress: &'f Ingress,
    /// Who feeds the streams that several upstreams carry.
    pub feeds: &'s UpstreamSelector,
    /// Milliseconds of a clock that never goes back.
    pub now_ms: u64,
}

/// Looks a packet up: among the flows, and only where it has none in the snapshot. `bytes`
/// starts at the IP header and may end in link-layer padding. A packet that goes on is
/// counted in its flow, which it may be the first of.
pub fn decide<'f>(
    arrival: Arrival<'f, '_>,
    flows: &mut Flows,
    bytes: &[u8],
) -> Result<Decision<'f>, NotData> {
    let Arrival { fib, ingress, .. } = arrival;
    let datagram = IpHeader::parse(bytes)?;
    if !datagram.destination.is_multicast() {
        return Err(DropReason::NotMulticast.into());
    }
    // Before the source is looked at: hosts without an address yet report from none.
    if is_link_control(&datagram, bytes) {
        return Err(NotData::Membership);
    }
    if !datagram.source_is_valid() {
        return Err(DropReason::BadSource.into());
    }
    let key = (datagram.source, datagram.destination);
    let len = datagram.packet_len as u64;
    let known = flows.touch(&key, fib.generation, len, arrival.now_ms);
    let found = match known {
        Some(verdicts) => verdicts,
        None => look_up(fib, ingress, key)?,
    };
    let verdicts = sends_on(arrival, found, key, datagram.ttl)?;
    if known.is_none() {
        flows.note(key, found, fib.generation, len, arrival.now_ms);
    }
    Ok(Decision {
        datagram,
        fib,
        ingress,
        verdicts,
    })
}

/// Those verdicts that send on a packet which arrived with this TTL, now. Where none does,
/// the reason of the first.
fn sends_on(
    arrival: Arrival<'_, '_>,
    mut verdicts: Verdicts,
    key: FlowKey,
    ttl: u8,
) -> Result<Verdicts, DropReason> {
    let Arrival { fib, ingress, .. } = arrival;
    let mut reason = None;
    if let Some(id) = verdicts.entry {
        let entry = &fib.entries[id as usize];
        let no = match leaves_with(entry.ttl, ttl) {
            None => Some(DropReason::TtlExpired),
            Some(_) if entry.paths.is_empty() => Some(DropReason::NoEgress),
            Some(_) => None,
        };
        if no.is_some() {
            reason = no;
            verdicts.entry = None;
        }
    }
    for at in positions(verdicts.proxies) {
        let Some(proxy) = ingress.proxies.get(at) else {
            continue;
        };
        let entry = &fib.entries[proxy.entry as usize];
        let no = if leaves_with(entry.ttl, ttl).is_none() {
            // Not fed by one whose packets end here, while another might bring them further.
            DropReason::TtlExpired
        } else if proxy.feed.as_ref().is_some_and(|feed| {
            let Arrival { feeds, now_ms, .. } = arrival;
            !feeds.admits(feed, key, now_ms)
        }) {
            DropReason::Standby
        } else {
            continue;
        };
        reason = reason.or(Some(no));
        verdicts.proxies &= !(1 << at);
    }
    if verdicts.entry.is_none() && verdicts.proxies == 0 {
        return Err(reason.unwrap_or(DropReason::NoRoute));
    }
    Ok(verdicts)
}

/// What forwards packets of a source and group: the best static rule, and what each proxy
/// learned.
pub fn look_up(fib: &Fib, ingress: &Ingress, key: FlowKey) -> Result<Verdicts, DropReason> {
    let entry = look_up_rule(fib, ingress, key);
    if ingress.proxies.is_empty() {
        let entry = Some(entry?);
        return Ok(Verdicts {
            entry,
            ..Verdicts::default()
        });
    }
    match (entry, look_up_learned(fib, ingress, key)) {
        (entry, Ok(learned)) => Ok(Verdicts {
            entry: entry.ok(),
            ..learned
        }),
        (Ok(entry), Err(_)) => Ok(Verdicts {
            entry: Some(entry),
            ..Verdicts::default()
        }),
        (Err(DropReason::NoRoute), Err(reason)) | (Err(reason), Err(_)) => Err(reason),
    }
}

fn look_up_rule(
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

fn look_up_learned(
    fib: &Fib,
    ingress: &Ingress,
    (source, group): FlowKey,
) -> Result<Verdicts, DropReason> {
    let (Ok(s), Ok(g)) = (Source::new(source), Group::new(group)) else {
        return Err(DropReason::NoRoute);
    };
    let found = fib.wishes.find(source, group);
    let wanted = found.map_or(crate::table::sets::EMPTY, |found| found.set);
    let (set, anybody) = (
        fib.wishes.set(wanted),
        found.map_or(&[][..], |found| fib.wishes.set(found.anybody)),
    );
    let mut proxies = 0;
    let mut reason = DropReason::NoRoute;
    for (at, proxy) in ingress.proxies.iter().enumerate() {
        if !proxy.proxy.takes_group(g) {
            continue;
        }
        let upward = !fib.entries[proxy.entry as usize].paths.is_empty();
        if !upward && proxy.paths_to(set).next().is_none() {
            if reason == DropReason::NoRoute && proxy.paths_to(anybody).next().is_some() {
                reason = DropReason::NotWanted;
            }
        } else if proxy.proxy.takes_source(s) {
            proxies |= 1 << at;
        } else {
            reason = DropReason::SourceExcepted;
        }
    }
    match proxies {
        0 => Err(reason),
        _ => Ok(Verdicts {
            entry: None,
            proxies,
            wanted,
        }),
    }
}

#[cfg(test)]
mod tests;
