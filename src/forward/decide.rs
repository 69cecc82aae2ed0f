//! The forwarding decision for one packet.
//!
//! The most specific static route decides, and so does each proxy of the ingress interface. The
//! packet is sent on the paths of all of them. It leaves in one [`Variant`] for each.

use super::trace::Recorder;
use super::{
    DropReason, NoTrace, NotData, Trace, TraceStep, Tracer, bandwidth_check, egress_check,
};
use crate::model::addr::{is_link_local_group, is_link_local_source};
use crate::model::{Group, InterfaceId, MacAddress, MergeRule, MonitorKind, Source, TtlPolicy};
use crate::table::flows::{FlowKey, Flows, Verdicts};
use crate::table::{
    Admission, Entry, EntryId, Fib, Ingress, IngressSelection, PathId, ProxyIngress, StreamArrival,
    StreamKey, StreamState, YieldDecision,
};
use crate::wire::ip::IpHeader;
use crate::wire::link_control::{self, PacketClass};

/// The decision to forward a packet.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'f> {
    /// The IP header.
    pub datagram: IpHeader,
    fib: &'f Fib,
    ingress: &'f Ingress,
    /// The route and the proxies that forward the packet.
    verdicts: Verdicts,
    /// Whether the ingress became the active one of the stream in place of another.
    pub takeover: bool,
    /// The stream, if another station also sends it to one of our links.
    contested: Option<StreamKey>,
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

    /// Returns whether this router forwards the packet to `egress`, or another one does.
    pub fn yield_decision(
        &self,
        entry: &Entry,
        egress: InterfaceId,
        streams: &StreamState,
        now_ms: u64,
    ) -> YieldDecision {
        match (self.contested, entry.takeover_ms) {
            (Some(stream), Some(takeover_ms)) if entry.yields => {
                let bytes = self.datagram.packet_len as u64;
                streams
                    .forwarders
                    .decide(stream, egress, bytes, takeover_ms, now_ms)
            }
            _ => YieldDecision::FORWARD,
        }
    }

    /// Returns whether an egress gets the packet only once, from the first variant with this egress.
    /// A translated packet belongs to another stream, and is sent in any case.
    pub fn reaches_once(&self, entry: &Entry) -> bool {
        self.is_union() && entry.translation.is_none()
    }

    /// Returns the static route, if it merges the packet with those of another path.
    pub fn merging_route(&self) -> Option<(&'f Entry, &'f MergeRule)> {
        let entry = self.fib.entries.get(self.verdicts.entry? as usize)?;
        Some((entry, entry.merge.as_ref()?))
    }

    /// Returns whether the stream is monitored, and as what.
    pub fn monitor(&self) -> Option<MonitorKind> {
        self.verdicts.monitor
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

/// The inputs of the decision for a packet, besides its bytes.
#[derive(Clone, Copy)]
pub struct Arrival<'f, 's> {
    /// The forwarding table.
    pub fib: &'f Fib,
    /// The ingress interface in this table.
    pub ingress: &'f Ingress,
    /// The active ingresses of streams, and other forwarders.
    pub streams: &'s StreamState,
    /// The station that sent the packet, if it arrived from the link and not from this host.
    pub sender: Option<MacAddress>,
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
    let class = classify(&datagram, bytes)?;
    let key = (datagram.source, datagram.destination);
    let len = datagram.packet_len as u64;
    let cached = flows.touch(&key, fib.generation, len, arrival.now_ms);
    let matched = match cached {
        Some(verdicts) => verdicts,
        None => match look_up(fib, ingress, key) {
            Ok(verdicts) => complete(arrival, verdicts, key),
            Err(reason) => {
                observe(arrival, key, len);
                return Err(reason.into());
            }
        },
    };
    may_leave_link(class)?;
    let permitted = permit(arrival, matched, datagram.ttl, &mut NoTrace).inspect_err(|_| {
        observe_stream(arrival, matched.stream, len);
    })?;
    if cached.is_none() {
        flows.note(key, matched, fib.generation, len, arrival.now_ms);
    }
    let bytes = || flows.get(&key).map_or(0, |flow| flow.bytes);
    bandwidth_check(&arrival.streams.bandwidth, ingress.bandwidth, &key, bytes)?;
    Ok(permitted.decision(arrival, datagram))
}

/// Returns whether a plane may forward the packets of a flow by itself: no other forwarder sends the
/// stream, and its ingress is active.
pub fn may_offload(arrival: Arrival<'_, '_>, flows: &Flows, key: &FlowKey) -> bool {
    let flow = flows.get(key);
    let current = flow.filter(|flow| flow.generation == arrival.fib.generation);
    current.is_some_and(|flow| {
        // A recorder makes it read-only.
        let admission = admit(arrival, flow.verdicts, 0, &Recorder::default());
        permits_offload(arrival, flow.verdicts, admission)
    })
}

/// Returns whether a plane may forward packets with this admission, and takes or renews the lease.
fn permits_offload(arrival: Arrival<'_, '_>, verdicts: Verdicts, admission: Admission) -> bool {
    let is_permitted = match admission {
        Admission::Active { contested, .. } => !contested || !may_yield(arrival, verdicts),
        Admission::Standby => false,
    };
    is_permitted && lease(arrival, verdicts)
}

/// Returns whether each packet needs a decision because of another forwarder on a link on which it
/// leaves.
fn may_yield(arrival: Arrival<'_, '_>, verdicts: Verdicts) -> bool {
    let Arrival { fib, ingress, .. } = arrival;
    let Some(stream) = verdicts.stream else {
        return false;
    };
    let forwarders = &arrival.streams.forwarders;
    let mut paths = entry_paths(fib, ingress, verdicts).flat_map(|(_, paths)| paths);
    paths.any(|path| {
        let egress = fib.egress_of(path).map(|egress| egress.index);
        egress.is_some_and(|egress| forwarders.needs_decisions(stream, egress, arrival.now_ms))
    })
}

/// Takes or renews the lease of a stream that may arrive on several ingresses. Returns whether its
/// packets may be forwarded without a look at each.
fn lease(arrival: Arrival<'_, '_>, verdicts: Verdicts) -> bool {
    match selected(arrival, verdicts) {
        Some((selection, _)) if selection.is_alone() => true,
        Some((selection, stream)) => {
            let ingresses = &arrival.streams.ingresses;
            ingresses.lease(selection, stream, arrival.now_ms)
        }
        None => true,
    }
}

/// Gives the lease of a stream back, whose packets are examined from now on.
pub fn end_offload(arrival: Arrival<'_, '_>, flows: &Flows, key: &FlowKey) {
    let verdicts = flows.get(key).map(|flow| flow.verdicts);
    if let Some((selection, stream)) = verdicts.and_then(|v| selected(arrival, v)) {
        arrival.streams.ingresses.give_back(selection, stream);
    }
}

/// Returns the selection that decides whether the ingress is the active one of the stream, if its
/// entries forward from one ingress only.
fn selected<'f>(
    arrival: Arrival<'f, '_>,
    verdicts: Verdicts,
) -> Option<(&'f IngressSelection, StreamKey)> {
    let Arrival { fib, ingress, .. } = arrival;
    let selection = ingress.selection.as_ref().zip(verdicts.stream)?;
    let mut entries = entries(fib, ingress, verdicts);
    (entries.any(|(entry, _)| entry.takeover_ms.is_some())).then_some(selection)
}

/// What happens to a flow whose packets a plane forwards by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadedFlow {
    /// The plane may continue.
    Continues,
    /// Its packets must be examined: another forwarder sends the stream too, or another ingress is
    /// active or would replace this one. The caller stops the plane, and calls [`end_offload`].
    Contested,
    /// The flow has ended.
    Ended,
}

/// Notes packets that a plane forwarded by itself: `counted` packets and bytes since the last call.
/// They keep the ingress active for the stream.
pub fn note_offloaded(
    arrival: Arrival<'_, '_>,
    flows: &mut Flows,
    key: FlowKey,
    counted: (u64, u64),
) -> OffloadedFlow {
    let Arrival { fib, ingress, .. } = arrival;
    let Some((mut verdicts, generation)) = flows.add_forwarded(&key, counted, arrival.now_ms)
    else {
        return OffloadedFlow::Ended;
    };
    if generation != fib.generation {
        let Ok(new) = look_up(fib, ingress, key) else {
            // The plane has stopped already.
            return OffloadedFlow::Continues;
        };
        verdicts = complete(arrival, new, key);
        flows.set_verdicts(&key, verdicts, fib.generation);
    }
    continue_offload(arrival, verdicts, counted.0 > 0)
}

/// Returns whether the plane may forward the flow further. Packets keep the ingress active.
fn continue_offload(
    arrival: Arrival<'_, '_>,
    verdicts: Verdicts,
    has_packets: bool,
) -> OffloadedFlow {
    // The TTL of its packets is unknown: that of earlier ones remains in force.
    let admission = match has_packets {
        true => admit(arrival, verdicts, 0, &NoTrace),
        false => admit(arrival, verdicts, 0, &Recorder::default()),
    };
    match permits_offload(arrival, verdicts, admission) {
        true => OffloadedFlow::Continues,
        false => OffloadedFlow::Contested,
    }
}

/// Adds a flow that a plane has forwarded since before this process started: `counted` packets and
/// bytes.
pub fn adopt_offloaded(
    arrival: Arrival<'_, '_>,
    flows: &mut Flows,
    key: FlowKey,
    counted: (u64, u64),
) -> OffloadedFlow {
    let Ok(new) = look_up(arrival.fib, arrival.ingress, key) else {
        return OffloadedFlow::Ended;
    };
    let verdicts = complete(arrival, new, key);
    let generation = arrival.fib.generation;
    match flows.adopt(key, verdicts, generation, counted, arrival.now_ms) {
        true => continue_offload(arrival, verdicts, true),
        false => OffloadedFlow::Ended,
    }
}

/// Notes a packet of `bytes` bytes that is not forwarded. If this router forwards the stream from
/// another interface, the sender of the packet is another forwarder.
pub fn observe(arrival: Arrival<'_, '_>, key: FlowKey, bytes: u64) {
    if let Some(selection) = &arrival.ingress.selection
        && arrival.sender.is_some()
    {
        let stream = arrival.streams.ingresses.key(&selection.domain, key);
        observe_stream(arrival, Some(stream), bytes);
    }
}

fn observe_stream(arrival: Arrival<'_, '_>, stream: Option<StreamKey>, bytes: u64) {
    if let (Some(selection), Some(stream), Some(sender)) =
        (&arrival.ingress.selection, stream, arrival.sender)
    {
        let Arrival {
            streams, now_ms, ..
        } = arrival;
        streams.note_arrival(selection, stream, (sender, bytes), now_ms);
    }
}

/// Adds what is stored in a flow besides the matched entries.
fn complete(arrival: Arrival<'_, '_>, verdicts: Verdicts, key: FlowKey) -> Verdicts {
    let monitor = monitor_of(arrival.fib, arrival.ingress, verdicts, key);
    add_stream(
        arrival,
        Verdicts {
            monitor,
            ..verdicts
        },
        key,
    )
}

/// Returns whether a stream is monitored, and as what: as the first of its entries says that says
/// anything, or else the rules for groups.
pub fn monitor_of(
    fib: &Fib,
    ingress: &Ingress,
    verdicts: Verdicts,
    (_, group): FlowKey,
) -> Option<MonitorKind> {
    let of_entry = entries(fib, ingress, verdicts).find_map(|(entry, _)| entry.monitor);
    of_entry.or_else(|| fib.monitored_group(group))
}

/// Adds what the selection of the active ingress needs: the key of the stream, whether its packets
/// outrank those of the active ingress, and the link of its source.
fn add_stream(arrival: Arrival<'_, '_>, verdicts: Verdicts, key: FlowKey) -> Verdicts {
    let Some(selection) = &arrival.ingress.selection else {
        return verdicts;
    };
    Verdicts {
        stream: Some(arrival.streams.ingresses.key(&selection.domain, key)),
        outranks: selection.outranks(key.0),
        source_link: selection.source_link(key.0),
        ..verdicts
    }
}

/// Explains the decision for a packet, without any change of state: it creates no flow and no
/// active ingress. It runs the code of [`decide`] with tracing.
pub fn resolve(arrival: Arrival<'_, '_>, bytes: &[u8]) -> Trace {
    let Arrival { fib, ingress, .. } = arrival;
    let mut recorder = Recorder::default();
    let parsed = IpHeader::parse(bytes);
    let header = parsed.as_ref().ok().copied();
    let decided = parsed.map_err(NotData::from).and_then(|datagram| {
        let class = classify(&datagram, bytes)?;
        let key = (datagram.source, datagram.destination);
        let matched = look_up_traced(fib, ingress, key, &mut recorder)?;
        may_leave_link(class)?;
        let matched = add_stream(arrival, matched, key);
        let permitted = permit(arrival, matched, datagram.ttl, &mut recorder)?;
        let bandwidth = &arrival.streams.bandwidth;
        bandwidth_check(bandwidth, ingress.bandwidth, &key, || 0)?;
        Ok(permitted.decision(arrival, datagram))
    });
    let outcome = decided.map(|decision| {
        let mut reached = Vec::new();
        for variant in decision.variants() {
            for id in variant.paths() {
                let Some(path) = fib.paths.get(id as usize) else {
                    continue;
                };
                if decision.reaches_once(variant.entry) {
                    if reached.contains(&path.egress) {
                        continue;
                    }
                    reached.push(path.egress);
                }
                let Some(egress) = fib.egress_of(id) else {
                    continue;
                };
                let yields_to = || {
                    let stream = decision.contested.filter(|_| variant.entry.yields)?;
                    let takeover_ms = variant.entry.takeover_ms?;
                    let forwarders = &arrival.streams.forwarders;
                    forwarders.yields_to(stream, egress.index, takeover_ms, arrival.now_ms)
                };
                let key = (decision.datagram.source, decision.datagram.destination);
                let bandwidth = &arrival.streams.bandwidth;
                let mut result = egress_check(path, egress, decision.datagram.ttl)
                    .and_then(|()| bandwidth_check(bandwidth, egress.bandwidth, &key, || 0));
                if result.is_ok() && yields_to().is_some() {
                    result = Err(DropReason::OtherForwarder);
                }
                recorder.record(|| TraceStep::PathChecked {
                    path: id,
                    ttl: variant.ttl,
                    result,
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

/// Checks that a packet is multicast with a valid source, and not a link control message.
fn classify(datagram: &IpHeader, bytes: &[u8]) -> Result<PacketClass, NotData> {
    // Checked before the source, because hosts without an address send reports from the
    // unspecified address, and before the destination, because queries may be sent to an address of
    // this host.
    let class = link_control::classify(datagram, bytes)?;
    if class == PacketClass::LinkControl {
        return Err(NotData::Membership);
    }
    if !datagram.destination.is_multicast() {
        return Err(DropReason::NotMulticast.into());
    }
    if !datagram.has_valid_source() {
        return Err(DropReason::BadSource.into());
    }
    Ok(class)
}

/// Checks that a packet for which there is a route may leave its link. Flows do not store this,
/// because it depends on the protocol.
fn may_leave_link(class: PacketClass) -> Result<(), DropReason> {
    match class {
        PacketClass::LinkOnly => Err(DropReason::LinkOnly),
        PacketClass::LinkControl | PacketClass::Data => Ok(()),
    }
}

/// The route and the proxies that forward a packet, and the state of its stream.
#[derive(Clone, Copy)]
struct Permitted {
    verdicts: Verdicts,
    takeover: bool,
    contested: Option<StreamKey>,
}

impl Permitted {
    fn decision<'f>(self, arrival: Arrival<'f, '_>, datagram: IpHeader) -> Decision<'f> {
        Decision {
            datagram,
            fib: arrival.fib,
            ingress: arrival.ingress,
            verdicts: self.verdicts,
            takeover: self.takeover,
            contested: self.contested,
        }
    }
}

/// Returns the matched entries that forward a packet with this TTL now.
///
/// # Errors
/// No entry forwards it. The reason is that of the first entry.
fn permit(
    arrival: Arrival<'_, '_>,
    mut verdicts: Verdicts,
    ttl: u8,
    tracer: &mut impl Tracer,
) -> Result<Permitted, DropReason> {
    let Arrival { fib, ingress, .. } = arrival;
    let mut first_reason = None;
    // The TTL is checked before the active ingress is selected, because the packets that arrive on
    // another ingress may have a higher TTL.
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
        if outgoing_ttl(entry.ttl, ttl).is_none() {
            let (entry, reason) = (proxy.entry, DropReason::TtlExpired);
            tracer.record(|| TraceStep::EntryRejected { entry, reason });
            first_reason = first_reason.or(Some(reason));
            verdicts.proxies &= !(1 << at);
        }
    }
    let mut permitted = Permitted {
        verdicts,
        takeover: false,
        contested: None,
    };
    match admit(arrival, verdicts, ttl, tracer) {
        Admission::Active {
            takeover,
            contested,
        } => {
            permitted.takeover = takeover;
            permitted.contested = verdicts.stream.filter(|_| contested);
        }
        Admission::Standby => {
            permitted.verdicts = reject_standby(arrival, verdicts, tracer);
            first_reason = first_reason.or(Some(DropReason::Standby));
        }
    }
    let verdicts = permitted.verdicts;
    if verdicts.entry.is_none() && verdicts.proxies == 0 {
        return Err(first_reason.unwrap_or(DropReason::NoRoute));
    }
    Ok(permitted)
}

/// Decides whether the ingress is the active one of the stream for these entries.
fn admit<T: Tracer>(arrival: Arrival<'_, '_>, verdicts: Verdicts, ttl: u8, _: &T) -> Admission {
    let Arrival {
        fib,
        ingress,
        streams,
        sender,
        now_ms,
    } = arrival;
    let (Some(selection), Some(stream)) = (&ingress.selection, verdicts.stream) else {
        return Admission::ACTIVE;
    };
    let mut shortest = None;
    let mut decrements = false;
    for (entry, _) in entries(fib, ingress, verdicts) {
        if let Some(takeover_ms) = entry.takeover_ms {
            shortest = Some(shortest.unwrap_or(u64::MAX).min(takeover_ms));
            decrements |= entry.ttl == TtlPolicy::Decrement;
        }
    }
    let Some(takeover_ms) = shortest else {
        return Admission::ACTIVE;
    };
    let packet = StreamArrival {
        ttl: if decrements { ttl } else { 0 },
        outranks: verdicts.outranks,
        source_link: verdicts.source_link.filter(|_| sender.is_some()),
        takeover_ms,
    };
    let ingresses = &streams.ingresses;
    match T::READ_ONLY {
        true => ingresses.would_admit(selection, stream, packet, now_ms),
        false => ingresses.admit(selection, stream, packet, now_ms),
    }
}

/// Removes the entries that forward a stream from its active ingress only.
fn reject_standby(
    arrival: Arrival<'_, '_>,
    mut verdicts: Verdicts,
    tracer: &mut impl Tracer,
) -> Verdicts {
    let Arrival { fib, ingress, .. } = arrival;
    let reason = DropReason::Standby;
    let is_selective = |id: EntryId| fib.entries[id as usize].takeover_ms.is_some();
    if let Some(entry) = verdicts.entry.filter(|id| is_selective(*id)) {
        tracer.record(|| TraceStep::EntryRejected { entry, reason });
        verdicts.entry = None;
    }
    for at in positions(verdicts.proxies) {
        let proxy = ingress.proxies.get(at).filter(|p| is_selective(p.entry));
        if let Some(entry) = proxy.map(|proxy| proxy.entry) {
            tracer.record(|| TraceStep::EntryRejected { entry, reason });
            verdicts.proxies &= !(1 << at);
        }
    }
    verdicts
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
                refusal = DropReason::SourceNotJoined;
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
            ..Verdicts::default()
        }),
    }
}

#[cfg(test)]
mod tests;
