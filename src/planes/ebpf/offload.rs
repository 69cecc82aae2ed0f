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
use tracing::{debug, info, warn};

use super::actions::{ActionTable, NotSent, RetiredAction};
use super::host::OffloadHost;
use super::plan::{Declined, Plan, PlannedPath, plan};
use crate::forward::DropReason;
use crate::model::{IfIndex, IfName, InterfaceId, TranslationKind};
use crate::planes::{PathCount, PlaneCounters, ReceivedCount};
use crate::sys::filter::CaptureFilter;
use crate::sys::link_properties::dropped_instead_of_sent;
use crate::sys::offload::{
    Attachment, EarlierFlow, Epoch, FlowControl, FlowSlot, ForwardedByKernel, HandOverState,
    KernelFlowKey, KernelTables, MAX_PORTS, OffloadError, OffloadProgram, Persistence, PortSlot,
    wait_for_programs,
};
use crate::table::flows::FlowKey;
use crate::table::{Fib, FibDiff};

/// Requests of interface actors that wait for the thread. An actor keeps what does not fit.
const MAX_REQUESTS: usize = 256;

/// How often the thread looks at the host: its listeners, and whether programs are attached.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How old the known listeners may be when flows are offered.
const OFFER_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Both epochs, in the order of arrays by epoch.
const EPOCHS: [Epoch; 2] = [Epoch::Even, Epoch::Odd];

/// A request of an interface actor.
pub(super) enum OffloadRequest {
    /// Changes of flows, in this order.
    Flows(PortSlot, Vec<FlowRequest>),
    /// An interface is captured.
    OpenPort(
        InterfaceId,
        IfIndex,
        SyncSender<Result<OpenPort, OffloadError>>,
    ),
    /// It is not captured any more.
    ClosePort(PortSlot),
    /// Flows have a former plan.
    Settle,
}

/// A request of an interface actor about a flow.
pub(super) enum FlowRequest {
    /// Prepare it.
    Offer(FlowKey),
    /// It has ended.
    Release(FlowKey),
}

/// An interface with the program: its position, and what receives the answers about its flows.
pub(super) type OpenPort = (PortSlot, Receiver<FlowAnswer>);

/// An answer to the interface actor.
pub(super) enum FlowAnswer {
    /// A flow may be handed over: the kernel counts its packets here.
    Prepared(FlowKey, FlowSlot),
    /// The kernel forwards a flow that an earlier process handed over, and had forwarded this much.
    Adopted(FlowKey, FlowSlot, ForwardedByKernel),
    /// A flow was released. Answers about it that arrived before are void.
    Released(FlowKey),
}

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
    /// Whether the programs continue to forward without this process.
    leaves_programs: bool,
    fib: Arc<Fib>,
    host: OffloadHost,
    ports: Vec<Option<Port>>,
    flows: AHashMap<(PortSlot, FlowKey), KernelFlow>,
    actions: ActionTable,
    /// Records that no flow uses, and the first that never was in use.
    free: Vec<FlowSlot>,
    next: FlowSlot,
    /// Flows that were removed, but whose records the kernel may still use.
    retired: Vec<KernelFlow>,
    /// Flows with a former plan.
    unsettled: Vec<(PortSlot, FlowKey)>,
    /// Flows that may be handed over now.
    fresh: Vec<(PortSlot, FlowKey, FlowSlot)>,
    counts: Counts,
    /// Flows that an earlier process handed over, until its programs are removed.
    adopted: Vec<((PortSlot, FlowKey), FlowSlot, EarlierFlow)>,
    /// What is in the counts of flows that are about to be stored.
    kept: Vec<((PortSlot, FlowKey), FlowSlot, [ForwardedByKernel; 2])>,
    /// When the thread last looked at the host, and at everything.
    looked: Instant,
    checked: Instant,
    /// By interface that gets last copies: the packets that it had dropped instead of sending them.
    dropped_instead_of_sent: AHashMap<IfIndex, u64>,
}

/// An interface with a capture that hands flows over.
struct Port {
    interface: InterfaceId,
    index: IfIndex,
    name: IfName,
    attachment: Option<Attachment>,
    answers: Sender<FlowAnswer>,
    warned: bool,
    /// Packets of unknown flows that were dropped and counted.
    unknown: u64,
}

struct KernelFlow {
    slot: FlowSlot,
    key: KernelFlowKey,
    /// `None`: the kernel has never forwarded it. It only knows the flow.
    plan: Option<Plan>,
    epoch: Epoch,
    /// The plan of the other epoch, as long as packets may be on their way with it.
    former: Option<Plan>,
    /// What is in the counts, by epoch.
    counted: [ForwardedByKernel; 2],
    /// Whether there is a newer plan than `plan`, which has to wait until `former` is gone. The
    /// process forwards the flow as long.
    is_outdated: bool,
}

/// What packets may be on their way with, though nothing refers to it any more.
struct Used {
    flows: Vec<KernelFlow>,
    unsettled: Vec<(PortSlot, FlowKey)>,
    actions: Vec<RetiredAction>,
    /// Flows whose packets the kernel counts when the programs have ended that did not know them.
    fresh: Vec<(PortSlot, FlowKey, FlowSlot)>,
}

impl Used {
    fn is_empty(&self) -> bool {
        self.flows.is_empty()
            && self.unsettled.is_empty()
            && self.actions.is_empty()
            && self.fresh.is_empty()
    }
}

/// What was counted since the counters were last taken.
#[derive(Default)]
struct Counts {
    paths: AHashMap<PlannedPath, (u64, u64)>,
    /// Packets that are in the counts of a path, but were not sent.
    unsent: AHashMap<PlannedPath, u64>,
    received: AHashMap<IfName, (u64, u64)>,
    translated: [u64; TranslationKind::ALL.len()],
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
            leaves_programs: false,
            fib: Arc::default(),
            host: OffloadHost::look_first(),
            ports: (0..MAX_PORTS).map(|_| None).collect(),
            flows: AHashMap::new(),
            actions,
            free: Vec::new(),
            next: 0,
            retired: Vec::new(),
            unsettled: Vec::new(),
            fresh: Vec::new(),
            counts: Counts::default(),
            adopted: Vec::new(),
            kept: Vec::new(),
            looked: Instant::now(),
            checked: Instant::now(),
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

    /// Sends requests for flows without waiting. Returns them if the thread has too many requests.
    pub(super) fn request(
        &self,
        port: PortSlot,
        flows: Vec<FlowRequest>,
    ) -> Result<(), Vec<FlowRequest>> {
        let sent = self.requests.try_send(OffloadRequest::Flows(port, flows));
        sent.map_err(|error| match error {
            TrySendError::Full(OffloadRequest::Flows(_, flows))
            | TrySendError::Disconnected(OffloadRequest::Flows(_, flows)) => flows,
            _ => Vec::new(),
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
        if !state.unsettled.is_empty() || !state.fresh.is_empty() {
            // If there are too many requests, the thread does this after those.
            let _ = self.requests.try_send(OffloadRequest::Settle);
        }
    }

    /// Removes what an earlier process left on an interface.
    pub(super) fn remove_earlier_from(&self, index: IfIndex) {
        self.shared.lock().program.remove_earlier_from(index);
    }

    /// Removes what an earlier process left on interfaces that are not captured. Counts what its
    /// programs forwarded while this process took their place.
    pub(super) fn remove_earlier(&self) {
        let mut state = self.shared.lock();
        for (key, slot, earlier) in std::mem::take(&mut state.adopted) {
            let record = self.tables.flow(slot);
            let known = state.flows.get(&key).filter(|flow| flow.slot == slot);
            if let (Some(record), Some(_)) = (record, known) {
                record.begin_with(earlier.forwarded_since());
            }
        }
        state.program.remove_earlier();
    }

    /// Ends the work of the plane before the process ends. Leaves the programs in the kernel, or
    /// removes them.
    pub(super) fn stop(&self, leave_programs: bool) {
        let mut state = self.shared.lock();
        let can_stay = *state.program.persistence() != Persistence::Nothing;
        match leave_programs && can_stay {
            true => state.leave_programs(),
            false => state.remove_programs(),
        }
    }

    /// Notes which counts are about to be stored for the next process.
    pub(super) fn begin_to_keep_counters(&self) {
        let mut state = self.shared.lock();
        let is_new = |(_, flow): &(&_, &KernelFlow)| {
            let kept = EPOCHS.map(|epoch| self.tables.counted(flow.slot, epoch));
            kept != flow.counted
        };
        let flows = state.flows.iter().filter(is_new);
        let kept = flows.map(|(key, flow)| (*key, flow.slot, flow.counted));
        state.kept = kept.collect();
    }

    /// Notes that these counts are stored.
    pub(super) fn counters_are_kept(&self) {
        let mut state = self.shared.lock();
        for (key, slot, counted) in std::mem::take(&mut state.kept) {
            // It may have ended meanwhile.
            if state.flows.get(&key).is_some_and(|flow| flow.slot == slot) {
                for (epoch, counted) in EPOCHS.into_iter().zip(counted) {
                    self.tables.set_counted(slot, epoch, counted);
                }
            }
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
            translated: counts.translated,
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
        // First, because it has the more exact reason.
        plan(&state.fib, ingress, key, &state.host)?;
        let port = state.port_of(ingress).ok_or(Declined::IngressKind)?;
        let known = state.flows.get(&(port, key));
        let record = known.and_then(|flow| self.tables.flow(flow.slot));
        Ok(record.is_some_and(|record| match record.control().state {
            HandOverState::Captured | HandOverState::Kept => false,
            HandOverState::Offloaded => record.seen() == record.sent(),
        }))
    }
}

/// Serves requests until the plane is dropped.
fn serve(shared: &Weak<Shared>, requests: &Receiver<OffloadRequest>) {
    loop {
        let first = requests.recv_timeout(CHECK_INTERVAL);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut state = shared.lock();
        state.program.set_alive();
        match first {
            Ok(first) => {
                let more = std::iter::once(first).chain(requests.try_iter());
                for request in more.take(MAX_REQUESTS) {
                    state.handle(request);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if state.checked.elapsed() >= CHECK_INTERVAL {
            state.checked = Instant::now();
            state.check_ports();
            state.count_dropped_by_links();
            state.look_at_host(CHECK_INTERVAL);
            state.plan_again();
        }
        let used = state.take_used();
        drop(state);
        if used.is_empty() {
            continue;
        }
        wait_for_programs();
        let mut state = shared.lock();
        let fresh = state.settle(used);
        for (port, flow, slot) in fresh {
            // It may have been released meanwhile.
            let known = state.flows.get(&(port, flow));
            if known.is_some_and(|known| known.slot == slot) {
                state.answer(port, FlowAnswer::Prepared(flow, slot));
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if !self.leaves_programs {
            self.remove_programs();
        }
    }
}

impl State {
    fn port_of(&self, interface: InterfaceId) -> Option<PortSlot> {
        let is_it = |port: &Option<Port>| port.as_ref().is_some_and(|p| p.interface == interface);
        self.ports.iter().position(is_it).map(|at| at as PortSlot)
    }

    fn handle(&mut self, request: OffloadRequest) {
        if self.leaves_programs {
            return;
        }
        match request {
            OffloadRequest::Flows(port, flows) => {
                // A program that joined before a flow began must not miss a packet.
                self.look_at_host(OFFER_LOOK_INTERVAL);
                for request in flows {
                    match request {
                        FlowRequest::Offer(flow) => match self.prepare(port, flow) {
                            Ok(slot) => self.fresh.push((port, flow, slot)),
                            Err(declined) => debug!("{} > {}: {declined}", flow.0, flow.1),
                        },
                        FlowRequest::Release(flow) => {
                            self.remove_flow(port, flow);
                            self.answer(port, FlowAnswer::Released(flow));
                        }
                    }
                }
            }
            OffloadRequest::OpenPort(interface, index, answer) => {
                // Fails if nobody waits any more.
                let _ = answer.send(self.open_port(interface, index));
            }
            OffloadRequest::ClosePort(port) => self.close_port(port),
            // As after each request.
            OffloadRequest::Settle => {}
        }
    }

    fn answer(&self, port: PortSlot, answer: FlowAnswer) {
        if let Some(Some(port)) = self.ports.get(usize::from(port)) {
            // Fails if the capture was closed.
            let _ = port.answers.send(answer);
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
        self.program.limit_unknown(index)?;
        let gone_for = self.program.gone_for();
        let adopted = self.adopt_flows(slot as PortSlot, interface, index);
        let attached = self.program.attach(index);
        let attachment = match attached {
            Ok(attachment) => attachment,
            Err(e) => {
                let flows = adopted.iter().map(|(flow, ..)| *flow);
                flows.for_each(|flow| self.remove_flow(slot as PortSlot, flow));
                return Err(e);
            }
        };
        let name: IfName = attachment.interface().parse().map_err(io::Error::other)?;
        if let Some(gone_for) = gone_for.filter(|_| !adopted.is_empty()) {
            info!(
                interface = %name,
                flows = adopted.len(),
                "{name}: the kernel has forwarded {} flows since the last process ended, {:.1} s \
                 ago, and continues",
                adopted.len(),
                gone_for.as_secs_f64()
            );
        }
        let (answers, receiver) = channel();
        for (flow, slot, forwarded) in adopted {
            // Received when the capture is open.
            let _ = answers.send(FlowAnswer::Adopted(flow, slot, forwarded));
        }
        self.ports[slot] = Some(Port {
            interface,
            index,
            name,
            attachment: Some(attachment),
            answers,
            warned: false,
            unknown: 0,
        });
        Ok((slot as PortSlot, receiver))
    }

    /// Adds the flows that an earlier process handed over on an interface, as this process would
    /// forward them. The kernel forwards them by the tables of this process as soon as its program
    /// is attached. Flows that the kernel would not forward any more are left out.
    fn adopt_flows(
        &mut self,
        port: PortSlot,
        interface: InterfaceId,
        index: IfIndex,
    ) -> Vec<(FlowKey, FlowSlot, ForwardedByKernel)> {
        let earlier = self.program.earlier_flows(index);
        if earlier.is_empty() {
            return Vec::new();
        }
        self.look_at_host(OFFER_LOOK_INTERVAL);
        let tables = self.program.tables().clone();
        let waiting = self.fresh.len();
        let (found, mut adopted) = (earlier.len(), Vec::new());
        for flow in earlier {
            let key = flow.key.addresses();
            let Ok(plan) = plan(&self.fib, interface, key, &self.host) else {
                continue;
            };
            let Ok(slot) = self.add_flow(port, index, key) else {
                warn!(
                    "the table of this process is full (limits.flows): of {found} flows that the \
                     kernel forwarded, {} continue, and the others start anew",
                    adopted.len()
                );
                break;
            };
            self.change_plan((port, key), Ok(plan));
            if let Some(record) = tables.flow(slot) {
                // Counted like what this process forwards, or by the next one if this one dies.
                record.begin_with(flow.uncounted);
                record.hand_over();
            }
            adopted.push((key, slot, flow.counted));
            self.adopted.push(((port, key), slot, flow));
        }
        // They need no hand-over.
        self.fresh.truncate(waiting);
        adopted
    }

    /// Leaves the programs in the kernel, where they continue to forward.
    fn leave_programs(&mut self) {
        // From now on, captures that end change nothing.
        self.leaves_programs = true;
        self.program.leave();
        for port in self.ports.iter_mut().flatten() {
            port.attachment
                .take()
                .into_iter()
                .for_each(Attachment::leave);
        }
    }

    /// Removes the programs from the kernel.
    fn remove_programs(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            if let Some(attachment) = port.attachment.take() {
                self.program.detach(attachment);
            }
        }
        self.program.unpin();
    }

    /// Looks which groups the programs of this host listen to, unless that is known since less than
    /// `max_age`.
    fn look_at_host(&mut self, max_age: Duration) {
        if self.looked.elapsed() >= max_age {
            self.looked = Instant::now();
            self.host.look();
        }
    }

    /// Lets the kernel count the packets of a flow, which this process still forwards.
    fn prepare(&mut self, port: PortSlot, flow: FlowKey) -> Result<FlowSlot, Declined> {
        let owner = self.ports.get(usize::from(port)).and_then(Option::as_ref);
        let owner = owner.ok_or(Declined::IngressKind)?;
        let plan = plan(&self.fib, owner.interface, flow, &self.host);
        let declined = plan.as_ref().err().copied();
        let slot = match self.flows.get(&(port, flow)) {
            Some(known) => known.slot,
            None => self.add_flow(port, owner.index, flow)?,
        };
        self.change_plan((port, flow), plan);
        declined.map_or(Ok(slot), Err)
    }

    /// Makes a flow known to the kernel, which leaves its packets to this process.
    fn add_flow(
        &mut self,
        port: PortSlot,
        ingress: IfIndex,
        flow: FlowKey,
    ) -> Result<FlowSlot, Declined> {
        let key = KernelFlowKey::new(ingress, flow.0, flow.1);
        let slot = self.take_slot().ok_or(Declined::TableFull)?;
        let control = FlowControl {
            state: HandOverState::Kept,
            epoch: Epoch::default(),
            min_ttl: 0,
            max_len: 0,
            port,
            action: 0,
        };
        if let Some(record) = self.program.tables().flow(slot) {
            record.start(control);
        }
        for epoch in EPOCHS {
            let none = ForwardedByKernel::default();
            self.program.tables().set_counted(slot, epoch, none);
        }
        if let Err(e) = self.program.insert(&key, slot) {
            debug!("cannot add a flow: {e}");
            self.free.push(slot);
            return Err(Declined::TableFull);
        }
        let new = KernelFlow {
            slot,
            key,
            plan: None,
            epoch: control.epoch,
            former: None,
            is_outdated: false,
            counted: Default::default(),
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
        let Some(removed) = self.flows.remove(&(port, flow)) else {
            return;
        };
        if let Some(record) = tables.flow(removed.slot) {
            record.withdraw();
        }
        self.program.remove(&removed.key);
        if let Some(plan) = &removed.plan {
            self.actions.release(&plan.action);
        }
        self.retired.push(removed);
    }

    /// Takes what packets may be on their way with. When the programs have ended, it is passed to
    /// [`State::settle`].
    fn take_used(&mut self) -> Used {
        Used {
            flows: std::mem::take(&mut self.retired),
            unsettled: std::mem::take(&mut self.unsettled),
            actions: self.actions.take_retired(),
            fresh: std::mem::take(&mut self.fresh),
        }
    }

    /// Counts what the kernel did until the end with former plans, actions and flows, and lets their
    /// places be used again. Changes the flows that had to wait for this. Returns the flows that
    /// may be handed over now.
    fn settle(&mut self, used: Used) -> Vec<(PortSlot, FlowKey, FlowSlot)> {
        let tables = self.program.tables().clone();
        for mut flow in used.flows {
            self.counts.add(&tables, &mut flow);
            self.free.push(flow.slot);
        }
        let counts = &mut self.counts;
        (self.actions).free(used.actions, &*tables, |not_sent| {
            counts.add_not_sent(not_sent)
        });
        for key in used.unsettled {
            let Some(flow) = self.flows.get_mut(&key) else {
                continue;
            };
            self.counts.add(&tables, flow);
            flow.former = None;
            if !std::mem::take(&mut flow.is_outdated) {
                continue;
            }
            let Some(Some(owner)) = self.ports.get(usize::from(key.0)) else {
                continue;
            };
            let new = plan(&self.fib, owner.interface, key.1, &self.host);
            self.change_plan(key, new);
        }
        let mut fresh = used.fresh;
        fresh.append(&mut self.fresh);
        fresh
    }

    /// Changes the flows to the forwarding table and to what is known of the host.
    fn plan_again(&mut self) {
        let mut changed = Vec::new();
        for ((port, flow), known) in &self.flows {
            let Some(Some(owner)) = self.ports.get(usize::from(*port)) else {
                continue;
            };
            match plan(&self.fib, owner.interface, *flow, &self.host) {
                Ok(plan) if Some(&plan) == known.plan.as_ref() && !known.is_outdated => {}
                Err(_) if known.plan.is_none() => {}
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
            Ok(new) if Some(&new) == flow.plan.as_ref() && !flow.is_outdated => {
                if record.allow() {
                    self.fresh.push((key.0, key.1, flow.slot));
                }
                return;
            }
            Ok(new) if flow.former.is_none() => new,
            Ok(_) => {
                record.keep();
                flow.is_outdated = true;
                return;
            }
            Err(_) => {
                record.keep();
                return;
            }
        };
        let write = |slot, action: &_| tables.write_action(slot, action);
        let Some(action) = self.actions.acquire(&new.action, write) else {
            record.keep();
            return;
        };
        let epoch = flow.epoch.other();
        if let Some(rewrite) = &new.rewrite {
            tables.write_rewrite(flow.slot, epoch, rewrite);
        }
        record.update(|control| FlowControl {
            epoch,
            min_ttl: new.min_ttl,
            max_len: new.max_len,
            action,
            ..control
        });
        if record.allow() {
            self.fresh.push((key.0, key.1, flow.slot));
        }
        flow.epoch = epoch;
        if let Some(old) = flow.plan.replace(new) {
            self.actions.release(&old.action);
            flow.former = Some(old);
            self.unsettled.push(key);
        }
    }

    fn count_flows(&mut self) {
        let tables = self.program.tables().clone();
        for flow in self.flows.values_mut() {
            self.counts.add(&tables, flow);
        }
        let counts = &mut self.counts;
        (self.actions).count_not_sent(&*tables, |not_sent| counts.add_not_sent(not_sent));
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
        self.count_unknown(slot.into());
        let port = self.ports.get_mut(usize::from(slot)).and_then(Option::take);
        let Some(port) = port else {
            return;
        };
        self.program.stop_limiting_unknown(port.index);
        if let Some(attachment) = port.attachment {
            self.program.detach(attachment);
        }
    }

    /// Counts the packets of unknown flows that an interface had too many of.
    fn count_unknown(&mut self, slot: usize) {
        if let Some(Some(port)) = self.ports.get_mut(slot) {
            let dropped = self.program.dropped_unknown(port.index);
            let before = std::mem::replace(&mut port.unknown, dropped).min(dropped);
            let new = dropped - before;
            if new > 0 && before == 0 {
                let name = &port.name;
                warn!(
                    packets = new,
                    interface = %name,
                    "{name}: too many packets of new flows, or of flows that no route takes; more \
                     than plane.unknown_packets a second are dropped and counted as unknown_flood. \
                     Logged once"
                );
            }
            if new > 0 {
                let key = (port.name.clone(), DropReason::UnknownFlood);
                *self.counts.dropped.entry(key).or_default() += new;
                let received = self.counts.received.entry(port.name.clone()).or_default();
                received.0 += new;
            }
        }
    }

    /// Attaches programs again that somebody else removed, and counts the packets that were lost.
    fn check_ports(&mut self) {
        for at in 0..self.ports.len() {
            self.count_unknown(at);
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
            // What the process has captured meanwhile must leave first.
            let tables = self.program.tables().clone();
            for ((_, key), flow) in self
                .flows
                .iter()
                .filter(|((p, _), _)| usize::from(*p) == at)
            {
                if let Some(record) = tables.flow(flow.slot) {
                    record.withdraw();
                }
                self.fresh.push((at as PortSlot, *key, flow.slot));
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
        let plans = [
            (flow.epoch, flow.plan.as_ref()),
            (flow.epoch.other(), flow.former.as_ref()),
        ];
        for (epoch, plan) in plans {
            let Some(plan) = plan else {
                continue;
            };
            let now = record.forwarded_in(epoch);
            let counted = std::mem::replace(&mut flow.counted[epoch as usize], now);
            let packets = now.packets - counted.packets;
            if packets > 0 {
                self.add_forwarded(plan, packets, now.bytes - counted.bytes);
            }
        }
    }

    fn add_forwarded(&mut self, plan: &Plan, packets: u64, bytes: u64) {
        let paths = &plan.action.paths;
        for path in paths {
            let counted = self.paths.entry(path.clone()).or_default();
            counted.0 += packets;
            counted.1 += bytes;
        }
        if let Some(path) = paths.first() {
            let received = self.received.entry(path.iif.clone()).or_default();
            received.0 += packets;
            received.1 += bytes;
        }
        if let Some(rewrite) = &plan.rewrite {
            let kind = match rewrite.from.1 {
                IpAddr::V4(_) => TranslationKind::FourToFour,
                IpAddr::V6(_) => TranslationKind::SixToSix,
            };
            self.translated[kind as usize] += packets;
        }
    }

    /// Counts what the kernel did not send of what is in the counts of paths.
    fn add_not_sent(&mut self, not_sent: NotSent<'_>) {
        match not_sent {
            NotSent::Failed(paths, packets) => {
                if let Some(path) = paths.first() {
                    let key = (path.iif.clone(), DropReason::SendFailed);
                    *self.dropped.entry(key).or_default() += packets;
                }
                for path in paths {
                    *self.unsent.entry(path.clone()).or_default() += packets;
                }
            }
            NotSent::Refused(path, (down, failed)) => {
                self.add_unsent(path, DropReason::EgressDown, down);
                self.add_unsent(path, DropReason::SendFailed, failed);
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

    fn has_peer_elsewhere(&self, interface: InterfaceId) -> bool {
        self.has_peer_elsewhere(interface)
    }

    fn host_wants(&self, interface: InterfaceId, group: IpAddr) -> bool {
        self.host_wants(interface, group)
    }
}
