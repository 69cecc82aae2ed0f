//! The forwarding decision for one packet.
//!
//! The most specific static route decides, and so does each proxy of the ingress interface. The
//! packet is sent on the paths of all of them. It leaves in one [`Variant`] for each.

use super::trace::Recorder;
use super::{DropReason, NoTrace, NotData, Trace, TraceStep, Tracer, egress_check};
use crate::model::addr::{is_link_local_group, is_link_local_source};
use crate::model::{Group, Source, TtlPolicy};
use crate::table::flows::{FlowKey, Flows, Verdicts};
use crate::table::upstream_selector::UpstreamSelector;
use crate::table::{Entry, EntryId, Fib, Ingress, PathId, ProxyIngress};
use crate::wire::ip::IpHeader;
use crate::wire::link_control::is_link_control;

/// The decision to forward a packet.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'f> {
    /// The IP header.
    pub datagram: IpHeader,
    fib: &'f Fib,
    ingress: &'f Ingress,
    /// The route and the proxies that forward the packet.
    verdicts: Verdicts,
}

/// A packet as one route or proxy forwards it.
#[derive(Debug, Clone, Copy)]
pub struct Variant<'f> {
    /// The route or proxy.
    pub entry: &'f Entry,
    /// TTL or hop limit that the packet leaves with.
    pub ttl: u8,
    /// For a proxy: its downstream interfaces with members.
    members: Option<(&'f ProxyIngress, &'f [u32])>,
}

impl<'f> Variant<'f> {
    /// Returns the paths of the packet.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + use<'f> {
        let members = self.members.into_iter();
        let members = members.flat_map(|(proxy, set)| proxy.paths_to(set));
        self.entry.paths.iter().copied().chain(members)
    }
}

impl<'f> Decision<'f> {
    /// Returns the variants, that of the static route first. There is at least one. Some may have
    /// no path, or only paths that an earlier variant has too.
    pub fn variants(&self) -> impl Iterator<Item = Variant<'f>> + use<'f> {
        let arrived = self.datagram.ttl;
        entries(self.fib, self.ingress, self.verdicts).filter_map(move |(entry, members)| {
            Some(Variant {
                entry,
                ttl: outgoing_ttl(entry.ttl, arrived)?,
                members,
            })
        })
    }

    /// Returns whether there is more than one variant.
    pub fn is_union(&self) -> bool {
        let Verdicts { entry, proxies, .. } = self.verdicts;
        proxies.count_ones() + u32::from(entry.is_some()) > 1
    }
}

/// Returns the static route and the proxies of `verdicts`, and the members of the proxies.
fn entries<'f>(
    fib: &'f Fib,
    ingress: &'f Ingress,
    verdicts: Verdicts,
) -> impl Iterator<Item = (&'f Entry, Option<(&'f ProxyIngress, &'f [u32])>)> + use<'f> {
    let route = verdicts.entry.map(|id| (&fib.entries[id as usize], None));
    let members = fib.oif_table.set(verdicts.source_oifs);
    let proxies = positions(verdicts.proxies).filter_map(move |at| {
        let proxy = ingress.proxies.get(at)?;
        let entry = &fib.entries[proxy.entry as usize];
        Some((entry, Some((proxy, members))))
    });
    route.into_iter().chain(proxies)
}

/// Returns each route and proxy of `verdicts` with its paths.
pub fn entry_paths<'f>(
    fib: &'f Fib,
    ingress: &'f Ingress,
    verdicts: Verdicts,
) -> impl Iterator<Item = (&'f Entry, impl Iterator<Item = PathId> + use<'f>)> + use<'f> {
    entries(fib, ingress, verdicts).map(|(entry, members)| {
        let ttl = 0;
        let variant = Variant {
            entry,
            ttl,
            members,
        };
        (entry, variant.paths())
    })
}

/// Returns the positions of the set bits.
fn positions(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(at)
    })
}

/// Returns the TTL that a packet leaves with; `None` if it must not be forwarded.
fn outgoing_ttl(policy: TtlPolicy, arrived: u8) -> Option<u8> {
    match policy {
        TtlPolicy::Decrement => (arrived > 1).then(|| arrived - 1),
        TtlPolicy::Keep => Some(arrived),
        TtlPolicy::Set(ttl) => Some(ttl),
    }
}

/// The state of the router that a decision depends on.
#[derive(Clone, Copy)]
pub struct Arrival<'f, 's> {
    /// The forwarding table.
    pub fib: &'f Fib,
    /// The ingress interface in this table.
    pub ingress: &'f Ingress,
    /// Selects the active upstream of streams that arrive on several ones.
    pub upstream_selector: &'s UpstreamSelector,
    /// Milliseconds of a monotonic clock.
    pub now_ms: u64,
}

/// Decides whether a packet is forwarded. `bytes` starts at the IP header and may end in link-layer
/// padding. The decision is cached in the flow of the packet, where the packet is counted; a packet
/// that is not forwarded creates no flow.
///
/// # Errors
/// The packet is dropped, or is not data.
pub fn decide<'f>(
    arrival: Arrival<'f, '_>,
    flows: &mut Flows,
    bytes: &[u8],
) -> Result<Decision<'f>, NotData> {
    let Arrival { fib, ingress, .. } = arrival;
    let datagram = IpHeader::parse(bytes)?;
    classify(&datagram, bytes)?;
    let key = (datagram.source, datagram.destination);
    let len = datagram.packet_len as u64;
    let cached = flows.touch(&key, fib.generation, len, arrival.now_ms);
    let matched = match cached {
        Some(verdicts) => verdicts,
        None => look_up(fib, ingress, key)?,
    };
    let verdicts = permit(arrival, matched, key, datagram.ttl, &mut NoTrace)?;
    if cached.is_none() {
        flows.note(key, matched, fib.generation, len, arrival.now_ms);
    }
    Ok(Decision {
        datagram,
        fib,
        ingress,
        verdicts,
    })
}

/// Explains the decision for a packet, without any change of state: it creates no flow and no
/// active upstream. It runs the code of [`decide`] with tracing.
pub fn resolve(arrival: Arrival<'_, '_>, bytes: &[u8]) -> Trace {
    let Arrival { fib, ingress, .. } = arrival;
    let mut recorder = Recorder::default();
    let parsed = IpHeader::parse(bytes);
    let header = parsed.as_ref().ok().copied();
    let decided = parsed.map_err(NotData::from).and_then(|datagram| {
        classify(&datagram, bytes)?;
        let key = (datagram.source, datagram.destination);
        let matched = look_up_traced(fib, ingress, key, &mut recorder)?;
        let verdicts = permit(arrival, matched, key, datagram.ttl, &mut recorder)?;
        Ok(Decision {
            datagram,
            fib,
            ingress,
            verdicts,
        })
    });
    let outcome = decided.map(|decision| {
        for variant in decision.variants() {
            for id in variant.paths() {
                let Some(path) = fib.paths.get(id as usize) else {
                    continue;
                };
                let Some(egress) = fib.egress_of(id) else {
                    continue;
                };
                recorder.record(|| TraceStep::PathChecked {
                    path: id,
                    ttl: variant.ttl,
                    result: egress_check(path, egress, decision.datagram.ttl),
                });
            }
        }
    });
    Trace {
        header,
        steps: recorder.0,
        outcome,
    }
}

/// Checks that a packet is multicast data with a valid source.
fn classify(datagram: &IpHeader, bytes: &[u8]) -> Result<(), NotData> {
    if !datagram.destination.is_multicast() {
        return Err(DropReason::NotMulticast.into());
    }
    // Checked before the source, because hosts without an address send reports from the
    // unspecified address.
    if is_link_control(datagram, bytes) {
        return Err(NotData::Membership);
    }
    if !datagram.source_is_valid() {
        return Err(DropReason::BadSource.into());
    }
    Ok(())
}

/// Returns the matched entries that forward a packet with this TTL now.
///
/// # Errors
/// No entry forwards it. The reason is that of the first entry.
fn permit(
    arrival: Arrival<'_, '_>,
    mut verdicts: Verdicts,
    key: FlowKey,
    ttl: u8,
    tracer: &mut impl Tracer,
) -> Result<Verdicts, DropReason> {
    let Arrival { fib, ingress, .. } = arrival;
    let mut first_reason = None;
    if let Some(id) = verdicts.entry {
        let entry = &fib.entries[id as usize];
        let rejected = match outgoing_ttl(entry.ttl, ttl) {
            None => Some(DropReason::TtlExpired),
            Some(_) if entry.paths.is_empty() => Some(DropReason::NoEgress),
            Some(_) => None,
        };
        if let Some(reason) = rejected {
            tracer.record(|| TraceStep::EntryRejected { entry: id, reason });
            first_reason = rejected;
            verdicts.entry = None;
        }
    }
    for at in positions(verdicts.proxies) {
        let Some(proxy) = ingress.proxies.get(at) else {
            continue;
        };
        let entry = &fib.entries[proxy.entry as usize];
        let reason = if outgoing_ttl(entry.ttl, ttl).is_none() {
            // Checked before the upstream is selected, because the packets of another upstream
            // may have a higher TTL.
            DropReason::TtlExpired
        } else if proxy.upstream_rule.as_ref().is_some_and(|rule| {
            let Arrival {
                upstream_selector,
                now_ms,
                ..
            } = arrival;
            !match tracer_is_read_only(tracer) {
                true => upstream_selector.would_admit(rule, key, now_ms),
                false => upstream_selector.admits(rule, key, now_ms),
            }
        }) {
            DropReason::Standby
        } else {
            continue;
        };
        tracer.record(|| TraceStep::EntryRejected {
            entry: proxy.entry,
            reason,
        });
        first_reason = first_reason.or(Some(reason));
        verdicts.proxies &= !(1 << at);
    }
    if verdicts.entry.is_none() && verdicts.proxies == 0 {
        return Err(first_reason.unwrap_or(DropReason::NoRoute));
    }
    Ok(verdicts)
}

fn tracer_is_read_only<T: Tracer>(_: &T) -> bool {
    T::READ_ONLY
}

/// Returns the entries that forward packets of a source and group: the most specific static route,
/// and the proxies with members.
///
/// # Errors
/// No entry forwards them, for this reason.
pub fn look_up(fib: &Fib, ingress: &Ingress, key: FlowKey) -> Result<Verdicts, DropReason> {
    look_up_traced(fib, ingress, key, &mut NoTrace)
}

fn look_up_traced(
    fib: &Fib,
    ingress: &Ingress,
    key: FlowKey,
    tracer: &mut impl Tracer,
) -> Result<Verdicts, DropReason> {
    let entry = look_up_route(fib, ingress, key, tracer);
    if ingress.proxies.is_empty() {
        let entry = Some(entry?);
        return Ok(Verdicts {
            entry,
            ..Verdicts::default()
        });
    }
    match (entry, look_up_proxies(fib, ingress, key, tracer)) {
        (entry, Ok(proxies)) => Ok(Verdicts {
            entry: entry.ok(),
            ..proxies
        }),
        (Ok(entry), Err(_)) => Ok(Verdicts {
            entry: Some(entry),
            ..Verdicts::default()
        }),
        (Err(DropReason::NoRoute), Err(reason)) | (Err(reason), Err(_)) => Err(reason),
    }
}

fn look_up_route(
    fib: &Fib,
    ingress: &Ingress,
    (source, group): FlowKey,
    tracer: &mut impl Tracer,
) -> Result<EntryId, DropReason> {
    let mut excepted = false;
    let id = ingress.entries.find(source, group, |id| {
        let takes = fib.entries[*id as usize].accepts(source);
        if !takes {
            excepted = true;
            tracer.record(|| TraceStep::SourceExcepted { entry: *id });
        }
        takes
    });
    match id {
        Some(id) if is_link_local_group(group) && !fib.entries[*id as usize].link_local => {
            let reason = DropReason::LinkLocal;
            tracer.record(|| TraceStep::EntryRejected { entry: *id, reason });
            Err(reason)
        }
        Some(id) if leaves_source_scope((source, group), &fib.entries[*id as usize]) => {
            let reason = DropReason::LinkLocalSource;
            tracer.record(|| TraceStep::EntryRejected { entry: *id, reason });
            Err(reason)
        }
        Some(id) => {
            tracer.record(|| TraceStep::RouteMatched { entry: *id });
            Ok(*id)
        }
        None if excepted => Err(DropReason::SourceExcepted),
        None => Err(DropReason::NoRoute),
    }
}

/// Returns whether a packet would leave the scope of its source: the source is link-local, and the
/// group and the entry are not.
fn leaves_source_scope((source, group): FlowKey, entry: &Entry) -> bool {
    is_link_local_source(source) && !is_link_local_group(group) && !entry.link_local_sources
}

fn look_up_proxies(
    fib: &Fib,
    ingress: &Ingress,
    (source, group): FlowKey,
    tracer: &mut impl Tracer,
) -> Result<Verdicts, DropReason> {
    let (Ok(s), Ok(g)) = (Source::new(source), Group::new(group)) else {
        return Err(DropReason::NoRoute);
    };
    let found = fib.oif_table.find(source, group);
    let source_oifs = found.map_or(crate::table::oif_sets::EMPTY_SET, |found| found.source_oifs);
    let (with_members, with_any_member) = (
        fib.oif_table.set(source_oifs),
        found.map_or(&[][..], |found| fib.oif_table.set(found.group_oifs)),
    );
    let mut proxies = 0;
    let mut reason = DropReason::NoRoute;
    for (at, proxy) in ingress.proxies.iter().enumerate() {
        let entry = proxy.entry;
        if !proxy.proxy.accepts_group(g) {
            let reason = DropReason::NoRoute;
            tracer.record(|| TraceStep::ProxyRefused { entry, reason });
            continue;
        }
        let upward = !fib.entries[entry as usize].paths.is_empty();
        if !upward && proxy.paths_to(with_members).next().is_none() {
            let mut refusal = DropReason::NoRoute;
            if proxy.paths_to(with_any_member).next().is_some() {
                refusal = DropReason::NotWanted;
                if reason == DropReason::NoRoute {
                    reason = refusal;
                }
            }
            tracer.record(|| TraceStep::ProxyRefused {
                entry,
                reason: refusal,
            });
        } else if leaves_source_scope((source, group), &fib.entries[entry as usize]) {
            reason = DropReason::LinkLocalSource;
            tracer.record(|| TraceStep::ProxyRefused { entry, reason });
        } else if proxy.proxy.accepts_source(s) {
            proxies |= 1 << at;
            tracer.record(|| TraceStep::ProxyMatched { entry });
        } else {
            reason = DropReason::SourceExcepted;
            tracer.record(|| TraceStep::ProxyRefused { entry, reason });
        }
    }
    match proxies {
        0 => Err(reason),
        _ => Ok(Verdicts {
            entry: None,
            proxies,
            source_oifs,
        }),
    }
}

#[cfg(test)]
mod tests;
