//! The capture of an interface whose flows the kernel may forward, and their hand-over.
//!
//! The programs count the packets of a prepared flow that they leave to the capture: `seen` before a
//! packet is in the queue of the socket, `queued` when it is there. If the socket was empty after
//! `queued` was read, and `seen` has the same value still, then this process has read every packet
//! that was counted. If the forwarders are done too, it has sent them all: `sent` becomes `seen`.
//! The programs take each packet that finds both equal. So no packet of the kernel
//! overtakes one of this process.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::offload::{FlowAnswer, FlowRequest, OffloadedFlows, OpenPort};
use crate::pipeline::hand_over::{ForwardedByPlane, HandOver, Rest};
use crate::pipeline::{Batch, CaptureHandle, CapturePosition, PacketSource};
use crate::planes::packet::capture::SocketCapture;
use crate::sys::offload::{FlowSlot, ForwardedByKernel, HandOverState, KernelFlowRecord, PortSlot};
use crate::table::flows::FlowKey;

/// How long the thread of the plane may need to prepare flows.
const MAX_PREPARATION: Duration = Duration::from_millis(200);

/// How long a flow waits for a moment at which this process has sent all its packets.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// An offered flow without packets for this time needs no more attention: its next packet finds the
/// counts equal.
const QUIET: Duration = Duration::from_millis(2);

/// Most flows that are handed over at a time: each is looked at every millisecond.
const MAX_WAITING: usize = 1024;

/// Most prepared flows that are taken at a time, and most flows that are reported at a time, so that
/// packets do not wait.
const PAGE: usize = 8192;

/// How long the capture stays in the latency mode for a hand-over, and when it may do so again.
const MAX_HOLD: Duration = Duration::from_millis(500);
const HOLD_INTERVAL: Duration = Duration::from_secs(5);

/// How long a flow that was not handed over stays with this process, at first.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The same, at most: if this process did not send its packets in time, and if the flow has packets
/// that the kernel does not forward.
const MAX_RETRY_WHEN_BUSY: Duration = Duration::from_secs(4);
const MAX_RETRY_WHEN_MIXED: Duration = Duration::from_secs(64);

/// The capture.
pub struct OffloadCapture {
    socket: SocketCapture,
    offload: Arc<OffloadedFlows>,
    port: PortSlot,
    answers: Receiver<FlowAnswer>,
    /// The prepared flows.
    flows: AHashMap<FlowKey, PreparedFlow>,
    /// The keys of these flows, and the first that is reported next.
    keys: Vec<FlowKey>,
    next_report: usize,
    /// The flows that are being handed over, and those whose turn comes later.
    waiting: Vec<Waiting>,
    queue: VecDeque<FlowKey>,
    /// The flows that are tried again later, and when.
    retries: Vec<(Instant, FlowKey)>,
    /// Requests that the thread of the plane had no space for.
    requests: Vec<FlowRequest>,
    /// Flows whose release was not answered yet, and how often they were released.
    releasing: AHashMap<FlowKey, u32>,
    /// Until when offered flows may be prepared.
    expected_until: Option<Instant>,
    /// Whether this process forwards everything.
    paused: bool,
    /// Since when the latency mode is held, and when it may be held again.
    held_since: Option<Instant>,
    hold_after: Instant,
}

struct PreparedFlow {
    slot: FlowSlot,
    /// Its position in the list of keys.
    position: usize,
    reported: ForwardedByKernel,
    /// What was forwarded of it when an earlier process ended, until that is reported.
    adopted: Option<ForwardedByKernel>,
    /// Whether the last report said that the kernel forwards it.
    continued: bool,
    /// Whether it is being handed over, or waits for its turn.
    waits: bool,
    /// When the kernel took over; `None` while that is not sure.
    handed_over: Option<Instant>,
    retry: Duration,
}

struct Waiting {
    flow: FlowKey,
    slot: FlowSlot,
    /// `queued` before the socket was last read.
    queued: u64,
    /// What the kernel had forwarded when the flow was offered to it, and when that was.
    offered: Option<(u64, Instant)>,
    until: Instant,
}

/// What became of a hand-over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It takes longer.
    Waits,
    /// The kernel forwards the flow.
    Succeeds,
    /// It is tried again later.
    Fails,
    /// The plane says when it may be tried again.
    Ends,
}

impl Waiting {
    /// Advances a hand-over at a moment at which the capture is empty and everything is sent.
    fn advance(
        &mut self,
        record: &KernelFlowRecord,
        now: Instant,
        may_go: &dyn Fn(&FlowKey) -> bool,
    ) -> Step {
        let seen = record.seen();
        let is_settled = seen == self.queued;
        let forwarded = record.forwarded().packets;
        match (record.control().state, self.offered) {
            (HandOverState::Captured, None) if !may_go(&self.flow) => return Step::Fails,
            (HandOverState::Captured, None) if is_settled => {
                record.set_sent(seen);
                record.hand_over();
                self.offered = Some((forwarded, now));
            }
            (HandOverState::Captured, None) => {}
            // Withdrawn meanwhile.
            (HandOverState::Captured, Some(_)) => self.offered = None,
            (HandOverState::Offloaded, Some((before, since))) if seen == record.sent() => {
                if forwarded > before || now - since > QUIET {
                    return Step::Succeeds;
                }
            }
            (HandOverState::Offloaded, Some(_)) if is_settled => {
                record.set_sent(seen);
                self.offered = Some((forwarded, now));
            }
            (HandOverState::Offloaded, Some(_)) => {}
            (HandOverState::Kept, _) | (HandOverState::Offloaded, None) => return Step::Ends,
        }
        Step::Waits
    }
}

impl OffloadCapture {
    /// Returns the capture of a port. If the socket could not be opened, closes the port.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub(super) fn new(
        offload: Arc<OffloadedFlows>,
        (port, answers): OpenPort,
        socket: io::Result<SocketCapture>,
    ) -> io::Result<Self> {
        let socket = socket.inspect_err(|_| offload.close_port(port))?;
        Ok(Self {
            socket,
            offload,
            port,
            answers,
            flows: AHashMap::new(),
            keys: Vec::new(),
            next_report: 0,
            waiting: Vec::new(),
            queue: VecDeque::new(),
            retries: Vec::new(),
            requests: Vec::new(),
            releasing: AHashMap::new(),
            expected_until: None,
            paused: false,
            held_since: None,
            hold_after: Instant::now(),
        })
    }

    /// Sends the requests that had no space.
    fn send_requests(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let requests = std::mem::take(&mut self.requests);
        let is_offer = |request: &FlowRequest| matches!(request, FlowRequest::Offer(_));
        let offers = requests.iter().any(is_offer);
        match self.offload.request(self.port, requests) {
            Ok(()) if offers => self.expected_until = Some(Instant::now() + MAX_PREPARATION),
            Ok(()) => {}
            Err(kept) => self.requests = kept,
        }
    }

    /// Takes the answers that arrived since the last call.
    fn take_answers(&mut self) {
        for _ in 0..PAGE {
            match self.answers.try_recv() {
                Ok(FlowAnswer::Prepared(flow, slot)) => self.prepared(flow, slot),
                Ok(FlowAnswer::Adopted(flow, slot, before)) => self.adopted(flow, slot, before),
                Ok(FlowAnswer::Released(flow)) => {
                    if let Entry::Occupied(mut releasing) = self.releasing.entry(flow) {
                        *releasing.get_mut() -= 1;
                        if *releasing.get() == 0 {
                            releasing.remove();
                        }
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Notes that a flow may be handed over.
    fn prepared(&mut self, flow: FlowKey, slot: FlowSlot) {
        if self.releasing.contains_key(&flow) {
            return;
        }
        self.add(flow, slot);
        self.wait_for(flow);
    }

    /// Notes that the kernel forwards a flow that an earlier process handed over.
    fn adopted(&mut self, flow: FlowKey, slot: FlowSlot, before: ForwardedByKernel) {
        let new = self.add(flow, slot);
        new.adopted = Some(before);
        new.handed_over = Some(Instant::now());
    }

    fn add(&mut self, flow: FlowKey, slot: FlowSlot) -> &mut PreparedFlow {
        let keys = &mut self.keys;
        self.flows.entry(flow).or_insert_with(|| {
            keys.push(flow);
            PreparedFlow {
                slot,
                position: keys.len() - 1,
                reported: ForwardedByKernel::default(),
                adopted: None,
                continued: false,
                waits: false,
                handed_over: None,
                retry: FIRST_RETRY,
            }
        })
    }

    /// Lets a flow wait for its hand-over.
    fn wait_for(&mut self, flow: FlowKey) {
        if let Some(known) = self.flows.get_mut(&flow)
            && !known.waits
            && !self.paused
        {
            known.waits = true;
            known.handed_over = None;
            self.queue.push_back(flow);
        }
    }

    /// Begins to hand over flows whose turn it is.
    fn take_turns(&mut self, now: Instant) {
        while self.waiting.len() < MAX_WAITING
            && let Some(flow) = self.queue.pop_front()
        {
            // It may have ended meanwhile.
            if let Some(known) = self.flows.get(&flow) {
                self.waiting.push(Waiting {
                    flow,
                    slot: known.slot,
                    queued: 0,
                    offered: None,
                    until: now + MAX_WAIT,
                });
            }
        }
    }

    /// Holds the latency mode while flows wait, but not for long: at high rates the other mode loses
    /// less.
    fn hold_latency_mode(&mut self, is_pending: bool, now: Instant) {
        self.held_since = match self.held_since {
            _ if !is_pending => None,
            None if now >= self.hold_after => Some(now),
            Some(since) if now - since > MAX_HOLD => {
                self.hold_after = now + HOLD_INTERVAL;
                None
            }
            held_since => held_since,
        };
        self.socket.hold_latency_mode(self.held_since.is_some());
    }

    fn retry_later(&mut self, flow: FlowKey, now: Instant, longest: Duration) {
        if let Some(known) = self.flows.get_mut(&flow) {
            known.waits = false;
            self.retries.push((now + known.retry.min(longest), flow));
            known.retry = (known.retry * 2).min(longest);
        }
    }
}

impl PacketSource for OffloadCapture {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        self.socket.poll_batch(cx)
    }

    fn take_dropped(&mut self) -> u64 {
        self.socket.take_dropped()
    }

    fn take_unknown_offload(&mut self) -> u64 {
        self.socket.take_unknown_offload()
    }

    fn hand_over(&mut self) -> Option<&mut dyn HandOver> {
        Some(self)
    }

    fn stop_capture(&mut self) {
        self.socket.stop_capture();
    }

    fn mode(&self) -> &'static str {
        self.socket.mode()
    }

    fn is_changing_mode(&self) -> bool {
        self.socket.is_changing_mode()
    }

    fn share(&mut self) -> io::Result<Option<CaptureHandle>> {
        self.socket.share()
    }

    fn end_sharing(&mut self) {
        self.socket.end_sharing();
    }

    fn position(&mut self) -> Option<CapturePosition> {
        self.socket.position()
    }
}

impl HandOver for OffloadCapture {
    fn offer(&mut self, flows: Vec<FlowKey>) {
        (self.requests).extend(flows.into_iter().map(FlowRequest::Offer));
        self.send_requests();
    }

    fn is_pending(&mut self) -> bool {
        let now = Instant::now();
        self.send_requests();
        self.take_answers();
        self.take_turns(now);
        if self.expected_until.is_some_and(|until| until <= now) {
            self.expected_until = None;
        }
        let is_pending = !self.waiting.is_empty() || self.expected_until.is_some();
        self.hold_latency_mode(is_pending, now);
        is_pending
    }

    fn read_rest(&mut self) -> io::Result<Rest> {
        let tables = self.offload.tables();
        for waiting in &mut self.waiting {
            waiting.queued = tables.flow(waiting.slot).map_or(0, |f| f.queued());
        }
        self.socket.read_rest()
    }

    fn advance(&mut self, now: Instant, may_go: &dyn Fn(&FlowKey) -> bool) {
        let tables = self.offload.tables().clone();
        let mut failed = Vec::new();
        let flows = &mut self.flows;
        self.waiting.retain_mut(|waiting| {
            let record = tables.flow(waiting.slot);
            let step = record.map_or(Step::Ends, |record| waiting.advance(record, now, may_go));
            let step = match step {
                Step::Waits if now >= waiting.until => Step::Fails,
                step => step,
            };
            if step == Step::Waits {
                return true;
            }
            if let Some(flow) = flows.get_mut(&waiting.flow) {
                flow.waits = false;
                flow.handed_over = (step == Step::Succeeds).then_some(now);
            }
            if step == Step::Fails {
                record.inspect(|record| record.withdraw());
                failed.push(waiting.flow);
            }
            false
        });
        (failed.into_iter()).for_each(|f| self.retry_later(f, now, MAX_RETRY_WHEN_BUSY));
    }

    fn report(&mut self, forwarded: &mut Vec<ForwardedByPlane>) {
        let now = Instant::now();
        let tables = self.offload.tables().clone();
        let mut mixed = Vec::new();
        let begin = self.next_report.min(self.keys.len());
        let end = (begin + PAGE).min(self.keys.len());
        self.next_report = if end < self.keys.len() { end } else { 0 };
        for key in &self.keys[begin..end] {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            let Some(record) = tables.flow(flow.slot) else {
                continue;
            };
            let state = record.control().state;
            let continues = state == HandOverState::Offloaded;
            let total = record.forwarded();
            if total != flow.reported || continues || flow.continued {
                let adopted = flow.adopted.take();
                let before = adopted.unwrap_or_default();
                forwarded.push(ForwardedByPlane {
                    flow: *key,
                    packets: before.packets + total.packets - flow.reported.packets,
                    bytes: before.bytes + total.bytes - flow.reported.bytes,
                    is_new: adopted.is_some(),
                    continues,
                });
                (flow.reported, flow.continued) = (total, continues);
            }
            // The kernel has left a packet to this process, and so all that followed.
            if continues
                && record.seen() != record.sent()
                && let Some(since) = flow.handed_over.take()
            {
                record.withdraw();
                if now - since > 2 * flow.retry {
                    flow.retry = FIRST_RETRY;
                }
                mixed.push(*key);
            }
        }
        (mixed.into_iter()).for_each(|f| self.retry_later(f, now, MAX_RETRY_WHEN_MIXED));
        let due: Vec<FlowKey> = self
            .retries
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, flow)| flow)
            .collect();
        due.into_iter().for_each(|flow| self.wait_for(flow));
    }

    fn set_paused(&mut self, paused: bool) {
        if self.paused == paused {
            return;
        }
        self.paused = paused;
        let flows: Vec<FlowKey> = self.flows.keys().copied().collect();
        match paused {
            true => {
                self.waiting.clear();
                self.queue.clear();
                self.retries.clear();
                self.flows.values_mut().for_each(|flow| flow.waits = false);
                flows.iter().for_each(|flow| self.withdraw(flow));
            }
            false => {
                flows.into_iter().for_each(|flow| self.wait_for(flow));
            }
        }
    }

    fn withdraw(&mut self, flow: &FlowKey) {
        let record = self.flows.get(flow);
        if let Some(record) = record.and_then(|f| self.offload.tables().flow(f.slot)) {
            record.withdraw();
        }
    }

    fn release(&mut self, flow: &FlowKey) {
        self.withdraw(flow);
        if let Some(removed) = self.flows.remove(flow) {
            self.keys.swap_remove(removed.position);
            if let Some(moved) = self.keys.get(removed.position)
                && let Some(moved) = self.flows.get_mut(moved)
            {
                moved.position = removed.position;
            }
            // Its entry in `retries` has no effect any more.
            self.waiting.retain(|w| w.flow != *flow);
        }
        *self.releasing.entry(*flow).or_default() += 1;
        self.requests.push(FlowRequest::Release(*flow));
    }
}

impl Drop for OffloadCapture {
    fn drop(&mut self) {
        self.offload.close_port(self.port);
    }
}
