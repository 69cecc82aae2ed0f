//! The flows that the kernel forwards: their records and actions in its tables, and what was
//! counted of them.
//!
//! One thread prepares flows, because that takes system calls and a grace period of the kernel. The
//! interface actors hand them over ([`super::capture`]). A change of the forwarding table changes
//! the flows before the actors use it ([`OffloadedFlows::sync`]).

use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use tracing::{debug, warn};

use super::actions::ActionTable;
use super::host::OffloadHost;
use super::plan::{Declined, Plan, PlannedPath, plan};
use crate::forward::DropReason;
use crate::model::{IfIndex, IfName, InterfaceId};
use crate::planes::{PathCount, PlaneCounters, ReceivedCount};
use crate::sys::filter::CaptureFilter;
use crate::sys::link_properties::dropped_instead_of_sent;
use crate::sys::offload::{
    Attachment, FlowControl, FlowSlot, HandOverState, KernelFlowKey, KernelTables, MAX_PORTS,
    OffloadError, OffloadProgram, PortSlot, wait_for_programs,
};
use crate::table::flows::FlowKey;
use crate::table::{Fib, FibDiff};

/// Requests of interface actors that wait for the thread. An actor keeps what does not fit.
const MAX_REQUESTS: usize = 256;

/// How often the thread looks at the host: its listeners, and whether programs are attached.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A request of an interface actor.
pub(super) enum OffloadRequest {
    /// Prepare these flows.
    Offer(PortSlot, Vec<FlowKey>),
    /// These flows have ended.
    Release(PortSlot, Vec<FlowKey>),
    /// An interface is captured.
    OpenPort(
        InterfaceId,
        IfIndex,
        SyncSender<Result<OpenPort, OffloadError>>,
    ),
    /// It is not captured any more.
    ClosePort(PortSlot),
}

/// An interface with the program: its position, and what receives its prepared flows.
pub(super) type OpenPort = (PortSlot, Receiver<Prepared>);

/// A flow that is prepared: the kernel counts its packets.
pub(super) type Prepared = (FlowKey, FlowSlot);

/// The flows that the kernel forwards.
pub struct OffloadedFlows {
    shared: Arc<Shared>,
    requests: SyncSender<OffloadRequest>,
    tables: Arc<KernelTables>,
    filter: CaptureFilter,
}

struct Shared(Mutex<State>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after each statement: a panic leaves at most one flow with the process.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct State {
    program: OffloadProgram,
    fib: Arc<Fib>,
    host: OffloadHost,
    ports: Vec<Option<Port>>,
    flows: AHashMap<(PortSlot, FlowKey), KernelFlow>,
    actions: ActionTable,
    /// Records that no flow uses, and the first that never was in use.
    free: Vec<FlowSlot>,
    next: FlowSlot,
    /// Records whose flow was removed, but which the kernel may still use.
    retired: Vec<FlowSlot>,
    counts: Counts,
    /// When the thread last looked at the host.
    looked: Instant,
    /// By interface that gets last copies: the packets that it had dropped instead of sending them.
    dropped_instead_of_sent: AHashMap<IfIndex, u64>,
}

/// An interface with a capture that hands flows over.
struct Port {
    interface: InterfaceId,
    index: IfIndex,
    name: IfName,
    attachment: Option<Attachment>,
    prepared: Sender<Prepared>,
    warned: bool,
}

struct KernelFlow {
    slot: FlowSlot,
    key: KernelFlowKey,
    plan: Plan,
    /// Packets and bytes that are in the counts.
    counted: (u64, u64, u64),
}

/// What was counted since the counters were last taken.
#[derive(Default)]
struct Counts {
    paths: AHashMap<PlannedPath, (u64, u64)>,
    /// Packets that are in the counts of a path, but were not sent.
    unsent: AHashMap<PlannedPath, u64>,
    received: AHashMap<IfName, (u64, u64)>,
    dropped: AHashMap<(IfName, DropReason), u64>,
}

impl OffloadedFlows {
    /// Starts the thread that prepares flows for the loaded programs. `filter` is for the captures.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(program: OffloadProgram, filter: CaptureFilter) -> io::Result<Arc<Self>> {
        let tables = program.tables().clone();
        let actions = ActionTable::new(tables.action_capacity());
        let state = State {
            program,
            fib: Arc::default(),
            host: OffloadHost::look_first(),
            ports: (0..MAX_PORTS).map(|_| None).collect(),
            flows: AHashMap::new(),
            actions,
            free: Vec::new(),
            next: 0,
            retired: Vec::new(),
            counts: Counts::default(),
            looked: Instant::now(),
            dropped_instead_of_sent: AHashMap::new(),
        };
        let shared = Arc::new(Shared(Mutex::new(state)));
        let (requests, received) = sync_channel(MAX_REQUESTS);
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("offload".into())
            .spawn(move || serve(&weak, &received))?;
        Ok(Arc::new(Self {
            shared,
            requests,
            tables,
            filter,
        }))
    }

    /// Returns whether the kernel can forward what arrives on an interface.
    pub(super) fn serves(&self, interface: InterfaceId) -> bool {
        self.shared.lock().host.is_plain_ethernet(interface)
    }

    /// Returns the filter for the captures.
    pub(super) fn filter(&self) -> &CaptureFilter {
        &self.filter
    }

    /// Returns the tables of the kernel.
    pub(super) fn tables(&self) -> &Arc<KernelTables> {
        &self.tables
    }

    /// Sends a request for flows without waiting. Returns the flows if the thread has too many
    /// requests.
    pub(super) fn request(
        &self,
        flows: Vec<FlowKey>,
        request: impl FnOnce(Vec<FlowKey>) -> OffloadRequest,
    ) -> Result<(), Vec<FlowKey>> {
        let sent = self.requests.try_send(request(flows));
        sent.map_err(|error| match error {
            TrySendError::Full(request) | TrySendError::Disconnected(request) => match request {
                OffloadRequest::Offer(_, flows) | OffloadRequest::Release(_, flows) => flows,
                OffloadRequest::OpenPort(..) | OffloadRequest::ClosePort(_) => Vec::new(),
            },
        })
    }

    /// Prepares an interface to hand flows over: attaches the program. Waits for the thread.
    ///
    /// # Errors
    /// The kernel refuses the program, or too many interfaces have it.
    pub(super) fn open_port(
        &self,
        interface: InterfaceId,
        index: IfIndex,
    ) -> Result<OpenPort, OffloadError> {
        let (answer, answered) = sync_channel(1);
        let ended = |_| OffloadError::Other(io::Error::other("the thread of the plane has ended"));
        let request = OffloadRequest::OpenPort(interface, index, answer);
        self.requests.send(request).map_err(|_| ended(()))?;
        answered.recv().map_err(|_| ended(()))?
    }

    /// Ends the hand-over on an interface: removes its flows and the program.
    pub(super) fn close_port(&self, slot: PortSlot) {
        // Fails if the thread has ended, and with it the program.
        let _ = self.requests.send(OffloadRequest::ClosePort(slot));
    }

    /// Changes the flows to a new forwarding table.
    pub fn sync(&self, diff: &FibDiff) {
        let mut state = self.shared.lock();
        state.fib = diff.new.clone();
        if diff.interfaces_changed() {
            state.host.forget_links();
            state.count_flows();
            state.count_dropped_by_links();
        }
        match diff.routes_changed() {
            true => state.plan_again(),
            false => state.plan_members(diff),
        }
    }

    /// Returns what was forwarded since the last call.
    pub fn take_counters(&self) -> PlaneCounters {
        let mut state = self.shared.lock();
        state.count_flows();
        state.counts.take_back_unsent();
        let unsent = std::mem::take(&mut state.counts.unsent);
        let counts = std::mem::take(&mut state.counts);
        state.counts.unsent = unsent;
        PlaneCounters {
            paths: (counts.paths.into_iter())
                .map(|(path, (packets, bytes))| PathCount {
                    route: path.route,
                    iif: path.iif,
                    oif: path.oif,
                    packets,
                    bytes,
                })
                .collect(),
            received: (counts.received.into_iter())
                .map(|(iif, (packets, bytes))| ReceivedCount {
                    iif,
                    packets,
                    bytes,
                })
                .collect(),
            dropped: (counts.dropped.into_iter())
                .map(|((name, reason), packets)| (name, reason, packets))
                .collect(),
        }
    }

    /// Returns whether the kernel forwards the packets of a flow now.
    ///
    /// # Errors
    /// It never does, for this reason.
    pub fn flow_forwarding(&self, ingress: InterfaceId, key: FlowKey) -> Result<bool, Declined> {
        let state = self.shared.lock();
        let port = state.port_of(ingress).ok_or(Declined::IngressKind)?;
        plan(&state.fib, ingress, key, &state.host)?;
        let known = state.flows.get(&(port, key));
        let record = known.and_then(|flow| self.tables.flow(flow.slot));
        Ok(record.is_some_and(|record| match record.control().state {
            HandOverState::Captured => false,
            HandOverState::Armed => record.seen() == record.sent(),
            HandOverState::Offloaded => true,
        }))
    }
}

/// Serves requests until the plane is dropped.
fn serve(shared: &Weak<Shared>, requests: &Receiver<OffloadRequest>) {
    loop {
        let first = requests.recv_timeout(LOOK_INTERVAL);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut fresh = Vec::new();
        let mut state = shared.lock();
        match first {
            Ok(first) => {
                let more = std::iter::once(first).chain(requests.try_iter());
                for request in more.take(MAX_REQUESTS) {
                    state.handle(request, &mut fresh);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if state.looked.elapsed() >= LOOK_INTERVAL {
            state.looked = Instant::now();
            state.check_ports();
            state.count_dropped_by_links();
            state.host.look();
            state.plan_again();
        }
        let retired = std::mem::take(&mut state.retired);
        let actions = state.actions.take_retired();
        drop(state);
        if fresh.is_empty() && retired.is_empty() && actions.is_empty() {
            continue;
        }
        wait_for_programs();
        let mut state = shared.lock();
        state.free.extend(retired);
        state.actions.free(actions);
        for (port, prepared) in fresh {
            if let Some(Some(port)) = state.ports.get(usize::from(port)) {
                // Fails if the capture was closed.
                let _ = port.prepared.send(prepared);
            }
        }
    }
}

impl State {
    fn port_of(&self, interface: InterfaceId) -> Option<PortSlot> {
        let is_it = |port: &Option<Port>| port.as_ref().is_some_and(|p| p.interface == interface);
        self.ports.iter().position(is_it).map(|at| at as PortSlot)
    }

    fn handle(&mut self, request: OffloadRequest, fresh: &mut Vec<(PortSlot, Prepared)>) {
        match request {
            OffloadRequest::Offer(port, flows) => {
                for flow in flows {
                    match self.prepare(port, flow) {
                        Ok(slot) => fresh.push((port, (flow, slot))),
                        Err(declined) => debug!("{} > {}: {declined}", flow.0, flow.1),
                    }
                }
            }
            OffloadRequest::Release(port, flows) => {
                for flow in flows {
                    self.remove_flow(port, flow);
                }
            }
            OffloadRequest::OpenPort(interface, index, answer) => {
                // Fails if nobody waits any more.
                let _ = answer.send(self.open_port(interface, index));
            }
            OffloadRequest::ClosePort(port) => self.close_port(port),
        }
    }

    fn open_port(
        &mut self,
        interface: InterfaceId,
        index: IfIndex,
    ) -> Result<OpenPort, OffloadError> {
        let free = self.ports.iter().position(Option::is_none);
        let slot = free.ok_or_else(|| {
            OffloadError::Unsupported(format!("{MAX_PORTS} interfaces have the program already"))
        })?;
        // Two captures of an interface would count each packet twice.
        if let Some(former) = self.port_of(interface) {
            self.close_port(former);
        }
        self.program.reset_port(slot as PortSlot)?;
        let attachment = self.program.attach(index)?;
        let name = attachment.interface().parse();
        let (prepared, receiver) = channel();
        self.ports[slot] = Some(Port {
            interface,
            index,
            name: name.map_err(io::Error::other)?,
            attachment: Some(attachment),
            prepared,
            warned: false,
        });
        Ok((slot as PortSlot, receiver))
    }

    /// Lets the kernel count the packets of a flow, which this process still forwards.
    fn prepare(&mut self, port: PortSlot, flow: FlowKey) -> Result<FlowSlot, Declined> {
        let owner = self.ports.get(usize::from(port)).and_then(Option::as_ref);
        let owner = owner.ok_or(Declined::IngressKind)?;
        let plan = plan(&self.fib, owner.interface, flow, &self.host)?;
        if self.flows.contains_key(&(port, flow)) {
            self.change_plan((port, flow), Ok(plan));
            let known = self.flows.get(&(port, flow));
            return known.map(|f| f.slot).ok_or(Declined::TableFull);
        }
        let key = KernelFlowKey::new(owner.index, flow.0, flow.1);
        let tables = self.program.tables().clone();
        let action = (self.actions).acquire(&plan.action, |slot, action| {
            tables.write_action(slot, action);
        });
        let action = action.ok_or(Declined::TableFull)?;
        let Some(slot) = self.take_slot() else {
            self.actions.release(&plan.action);
            return Err(Declined::TableFull);
        };
        let control = FlowControl {
            state: HandOverState::Captured,
            min_ttl: plan.min_ttl,
            max_len: plan.max_len,
            port,
            action,
        };
        if let Some(record) = tables.flow(slot) {
            record.start(control);
        }
        if let Err(e) = self.program.insert(&key, slot) {
            debug!("cannot add a flow: {e}");
            self.actions.release(&plan.action);
            self.free.push(slot);
            return Err(Declined::TableFull);
        }
        let counted = (0, 0, 0);
        let new = KernelFlow {
            slot,
            key,
            plan,
            counted,
        };
        self.flows.insert((port, flow), new);
        Ok(slot)
    }

    fn take_slot(&mut self) -> Option<FlowSlot> {
        self.free.pop().or_else(|| {
            let slot = self.next;
            let exists = (slot as usize) < self.program.tables().flow_capacity();
            self.next += u32::from(exists);
            exists.then_some(slot)
        })
    }

    fn remove_flow(&mut self, port: PortSlot, flow: FlowKey) {
        let tables = self.program.tables().clone();
        let Some(mut removed) = self.flows.remove(&(port, flow)) else {
            return;
        };
        if let Some(record) = tables.flow(removed.slot) {
            record.withdraw();
        }
        self.program.remove(&removed.key);
        self.counts.add(&tables, &mut removed);
        self.actions.release(&removed.plan.action);
        self.retired.push(removed.slot);
    }

    /// Changes the flows to the forwarding table and to what is known of the host.
    fn plan_again(&mut self) {
        let mut changed = Vec::new();
        for ((port, flow), known) in &self.flows {
            let Some(Some(owner)) = self.ports.get(usize::from(*port)) else {
                continue;
            };
            match plan(&self.fib, owner.interface, *flow, &self.host) {
                Ok(plan) if plan == known.plan => {}
                new => changed.push(((*port, *flow), new)),
            }
        }
        for (key, new) in changed {
            self.change_plan(key, new);
        }
    }

    /// Changes the flows to a forwarding table in which only memberships differ.
    fn plan_members(&mut self, diff: &FibDiff) {
        let mut changed = Vec::new();
        for (port, flow) in self.flows.keys() {
            let members = |fib: &Fib| {
                let found = fib.oif_table.find(flow.0, flow.1);
                found.map(|found| fib.oif_table.set(found.source_oifs).to_vec())
            };
            if members(&diff.old) == members(&diff.new) {
                continue;
            }
            if let Some(Some(owner)) = self.ports.get(usize::from(*port)) {
                let new = plan(&self.fib, owner.interface, *flow, &self.host);
                changed.push(((*port, *flow), new));
            }
        }
        for (key, new) in changed {
            self.change_plan(key, new);
        }
    }

    fn change_plan(&mut self, key: (PortSlot, FlowKey), new: Result<Plan, Declined>) {
        let tables = self.program.tables().clone();
        let Some(flow) = self.flows.get_mut(&key) else {
            return;
        };
        let Some(record) = tables.flow(flow.slot) else {
            return;
        };
        let new = match new {
            Ok(new) if new == flow.plan => return,
            Ok(new) => new,
            Err(_) => {
                record.withdraw();
                return;
            }
        };
        let write = |slot, action: &_| tables.write_action(slot, action);
        let Some(action) = self.actions.acquire(&new.action, write) else {
            record.withdraw();
            return;
        };
        self.counts.add(&tables, flow);
        record.update(|control| {
            Some(FlowControl {
                min_ttl: new.min_ttl,
                max_len: new.max_len,
                action,
                ..control
            })
        });
        let old = std::mem::replace(&mut flow.plan, new);
        self.actions.release(&old.action);
    }

    fn count_flows(&mut self) {
        let tables = self.program.tables().clone();
        for flow in self.flows.values_mut() {
            self.counts.add(&tables, flow);
        }
        let counts = &mut self.counts;
        self.actions.count_refused(
            |slot, at| tables.refused(slot, at),
            |path, (down, failed)| {
                counts.add_unsent(path, DropReason::EgressDown, down);
                counts.add_unsent(path, DropReason::SendFailed, failed);
            },
        );
    }

    /// Reads how many packets the interfaces dropped that get last copies, whose result is not
    /// known. Counts those of interfaces that are down.
    fn count_dropped_by_links(&mut self) {
        let egresses = &self.fib.egresses;
        let is_down = |index: IfIndex| {
            let mut known = egresses.iter().filter(|e| e.index.ifindex() == Some(index));
            known.next().is_none_or(|egress| !egress.running)
        };
        let mut seen = AHashMap::new();
        let mut dropped = Vec::new();
        for (index, path) in self.actions.last_egresses() {
            if seen.contains_key(&index) {
                continue;
            }
            let Ok(now) = dropped_instead_of_sent(index) else {
                continue;
            };
            seen.insert(index, now);
            let before = self.dropped_instead_of_sent.get(&index).copied();
            let new = now - before.unwrap_or(now).min(now);
            if new > 0 && is_down(index) {
                dropped.push((path.clone(), new));
            }
        }
        self.dropped_instead_of_sent = seen;
        for (path, packets) in dropped {
            self.counts
                .add_unsent(&path, DropReason::EgressDown, packets);
        }
    }

    fn close_port(&mut self, slot: PortSlot) {
        let of_port = |(port, _): &&(PortSlot, FlowKey)| *port == slot;
        let flows: Vec<_> = self.flows.keys().filter(of_port).map(|(_, f)| *f).collect();
        for flow in flows {
            self.remove_flow(slot, flow);
        }
        let port = self.ports.get_mut(usize::from(slot)).and_then(Option::take);
        if let Some(attachment) = port.and_then(|port| port.attachment) {
            self.program.detach(attachment);
        }
    }

    /// Attaches programs again that somebody else removed, and counts the packets that were lost.
    fn check_ports(&mut self) {
        for at in 0..self.ports.len() {
            let Some(port) = &mut self.ports[at] else {
                continue;
            };
            let lost = self.program.lost(at as PortSlot);
            if lost == 0 {
                continue;
            }
            let key = (port.name.clone(), DropReason::SendFailed);
            *self.counts.dropped.entry(key).or_default() += lost;
            if !port.warned {
                port.warned = true;
                let name = &port.name;
                warn!(
                    packets = lost,
                    interface = %name,
                    "{name}: the program that forwards in the kernel was removed from this \
                     interface by somebody else; the packets continue through this process, and \
                     the program is attached again. Logged once"
                );
            }
            if let Some(attachment) = port.attachment.take() {
                self.program.detach(attachment);
            }
            // Flows use the program again when it is attached.
            match self.program.attach(port.index) {
                Ok(attachment) => port.attachment = Some(attachment),
                Err(e) => debug!("{}: cannot attach the program: {e}", port.name),
            }
            if let Err(e) = self.program.reset_port(at as PortSlot) {
                debug!("{}: cannot reset its counts: {e}", port.name);
            }
        }
    }
}

impl Counts {
    /// Adds what the kernel forwarded of a flow since the last call.
    fn add(&mut self, tables: &KernelTables, flow: &mut KernelFlow) {
        let Some(record) = tables.flow(flow.slot) else {
            return;
        };
        let now = record.forwarded();
        let (packets, bytes) = (now.0 - flow.counted.0, now.1 - flow.counted.1);
        let failed = now.2 - flow.counted.2;
        flow.counted = now;
        if packets == 0 {
            return;
        }
        let paths = &flow.plan.action.paths;
        for path in paths {
            let counted = self.paths.entry(path.clone()).or_default();
            counted.0 += packets;
            counted.1 += bytes;
        }
        if let Some(path) = paths.first() {
            let received = self.received.entry(path.iif.clone()).or_default();
            received.0 += packets;
            received.1 += bytes;
            if failed > 0 {
                let key = (path.iif.clone(), DropReason::SendFailed);
                *self.dropped.entry(key).or_default() += failed;
            }
        }
        if failed > 0 {
            for path in paths {
                *self.unsent.entry(path.clone()).or_default() += failed;
            }
        }
    }

    /// Counts packets of a path as dropped by its egress.
    fn add_unsent(&mut self, path: &PlannedPath, reason: DropReason, packets: u64) {
        if packets > 0 {
            *self.unsent.entry(path.clone()).or_default() += packets;
            *(self.dropped.entry((path.oif.clone(), reason))).or_default() += packets;
        }
    }

    /// Takes the packets that were not sent out of the counts of their paths. What exceeds these
    /// counts is left for the next time.
    fn take_back_unsent(&mut self) {
        self.unsent.retain(|path, unsent| {
            let Some(counted) = self.paths.get_mut(path) else {
                return *unsent > 0;
            };
            let packets = (*unsent).min(counted.0);
            if packets > 0 {
                counted.1 -= counted.1 / counted.0 * packets;
                counted.0 -= packets;
            }
            *unsent -= packets;
            *unsent > 0
        });
    }
}

impl super::plan::LinkFacts for OffloadHost {
    fn is_plain_ethernet(&self, interface: InterfaceId) -> bool {
        self.is_plain_ethernet(interface)
    }

    fn host_wants(&self, interface: InterfaceId, group: IpAddr) -> bool {
        self.host_wants(interface, group)
    }
}
