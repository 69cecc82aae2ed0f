//! The capture of an interface whose flows the kernel may forward, and their hand-over.
//!
//! The programs count the packets of a prepared flow that they leave to the capture: `seen` before a
//! packet is in the queue of the socket, `queued` when it is there. If the socket was empty after
//! `queued` was read, and `seen` has the same value still, then this process has read every packet
//! that was counted. If the forwarders are done too, it has sent them all: `sent` becomes `seen`.
//! The programs take over with the first packet that finds both equal. So no packet of the kernel
//! overtakes one of this process.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::offload::{OffloadRequest, OffloadedFlows, OpenPort, Prepared};
use crate::pipeline::hand_over::{ForwardedByPlane, HandOver, Rest};
use crate::pipeline::{Batch, PacketSource};
use crate::planes::packet::capture::SocketCapture;
use crate::sys::offload::{FlowControl, FlowSlot, HandOverState, PortSlot};
use crate::table::flows::FlowKey;

/// How long the thread of the plane may need to prepare flows.
const MAX_PREPARATION: Duration = Duration::from_millis(200);

/// How long a flow waits for a moment at which this process has sent all its packets.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// An armed flow without packets for this time needs no more attention: its next packet finds the
/// counts equal.
const QUIET: Duration = Duration::from_millis(20);

/// Most flows that are handed over at a time: each is looked at every millisecond.
const MAX_WAITING: usize = 256;

/// How long a flow waits for its turn.
const TURN: Duration = Duration::from_millis(50);

/// Most prepared flows that are taken at a time, and most flows that are reported at a time, so that
/// packets do not wait.
const PAGE: usize = 8192;

/// How long the capture stays in the latency mode for a hand-over, and when it may do so again.
const MAX_HOLD: Duration = Duration::from_millis(500);
const HOLD_INTERVAL: Duration = Duration::from_secs(5);

/// How long a flow that was not handed over stays with this process, at first and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(64);

/// The capture.
pub struct OffloadCapture {
    socket: SocketCapture,
    offload: Arc<OffloadedFlows>,
    port: PortSlot,
    prepared: Receiver<Prepared>,
    /// The prepared flows.
    flows: AHashMap<FlowKey, PreparedFlow>,
    /// The keys of these flows, and the first that is reported next.
    keys: Vec<FlowKey>,
    next_report: usize,
    /// The flows that are being handed over.
    waiting: Vec<Waiting>,
    /// The flows that are tried again later, and when.
    retries: Vec<(Instant, FlowKey)>,
    /// Requests that the thread of the plane had no space for.
    offers: Vec<FlowKey>,
    ended: Vec<FlowKey>,
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
    /// What was reported.
    packets: u64,
    bytes: u64,
    /// Packets captured when the kernel took over.
    captured: u64,
    retry: Duration,
}

struct Waiting {
    flow: FlowKey,
    slot: FlowSlot,
    /// `queued` before the socket was last read.
    queued: u64,
    /// What the kernel had forwarded when it was armed, and when that was.
    armed: Option<(u64, Instant)>,
    until: Instant,
}

impl OffloadCapture {
    /// Returns the capture of a port. If the socket could not be opened, closes the port.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub(super) fn new(
        offload: Arc<OffloadedFlows>,
        (port, prepared): OpenPort,
        socket: io::Result<SocketCapture>,
    ) -> io::Result<Self> {
        let socket = socket.inspect_err(|_| offload.close_port(port))?;
        Ok(Self {
            socket,
            offload,
            port,
            prepared,
            flows: AHashMap::new(),
            keys: Vec::new(),
            next_report: 0,
            waiting: Vec::new(),
            retries: Vec::new(),
            offers: Vec::new(),
            ended: Vec::new(),
            expected_until: None,
            paused: false,
            held_since: None,
            hold_after: Instant::now(),
        })
    }

    /// Sends the requests that had no space.
    fn send_requests(&mut self) {
        if !self.offers.is_empty() {
            let offers = std::mem::take(&mut self.offers);
            match self
                .offload
                .request(offers, |flows| OffloadRequest::Offer(self.port, flows))
            {
                Ok(()) => self.expected_until = Some(Instant::now() + MAX_PREPARATION),
                Err(kept) => self.offers = kept,
            }
        }
        if !self.ended.is_empty() {
            let ended = std::mem::take(&mut self.ended);
            let request = |flows| OffloadRequest::Release(self.port, flows);
            if let Err(kept) = self.offload.request(ended, request) {
                self.ended = kept;
            }
        }
    }

    /// Takes the flows that were prepared since the last call.
    fn take_prepared(&mut self, now: Instant) {
        for _ in 0..PAGE {
            let Ok((flow, slot)) = self.prepared.try_recv() else {
                return;
            };
            let keys = &mut self.keys;
            self.flows.entry(flow).or_insert_with(|| {
                keys.push(flow);
                PreparedFlow {
                    slot,
                    position: keys.len() - 1,
                    packets: 0,
                    bytes: 0,
                    captured: 0,
                    retry: FIRST_RETRY,
                }
            });
            self.wait_for(flow, now);
        }
    }

    fn wait_for(&mut self, flow: FlowKey, now: Instant) {
        let Some(known) = self.flows.get(&flow) else {
            return;
        };
        if self.waiting.len() >= MAX_WAITING {
            self.retries.push((now + TURN, flow));
            return;
        }
        if !self.paused && self.waiting.iter().all(|w| w.slot != known.slot) {
            self.waiting.push(Waiting {
                flow,
                slot: known.slot,
                queued: 0,
                armed: None,
                until: now + MAX_WAIT,
            });
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

    fn retry_later(&mut self, flow: FlowKey, now: Instant) {
        if let Some(known) = self.flows.get_mut(&flow) {
            self.retries.push((now + known.retry, flow));
            known.retry = (known.retry * 2).min(MAX_RETRY);
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
}

impl HandOver for OffloadCapture {
    fn offer(&mut self, flows: Vec<FlowKey>) {
        self.offers.extend(flows);
        self.send_requests();
    }

    fn is_pending(&mut self) -> bool {
        let now = Instant::now();
        self.send_requests();
        self.take_prepared(now);
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
            let Some(record) = tables.flow(waiting.slot) else {
                return false;
            };
            let seen = record.seen();
            let is_settled = seen == waiting.queued;
            let (forwarded, ..) = record.forwarded();
            match (record.control().state, waiting.armed) {
                (HandOverState::Captured, None) if !may_go(&waiting.flow) => {
                    failed.push(waiting.flow);
                    return false;
                }
                (HandOverState::Captured, None) if is_settled => {
                    record.set_sent(seen);
                    record.update(|control| {
                        let state = HandOverState::Armed;
                        Some(FlowControl { state, ..control })
                    });
                    waiting.armed = Some((forwarded, now));
                }
                (HandOverState::Armed, Some((before, since))) => {
                    if seen == record.sent() {
                        let is_taken = forwarded > before;
                        if is_taken {
                            record.update(|control| {
                                let is_armed = control.state == HandOverState::Armed;
                                let state = HandOverState::Offloaded;
                                is_armed.then_some(FlowControl { state, ..control })
                            });
                        }
                        if is_taken || now - since > QUIET {
                            if let Some(flow) = flows.get_mut(&waiting.flow) {
                                flow.captured = seen;
                                flow.retry = FIRST_RETRY;
                            }
                            return false;
                        }
                    } else if is_settled {
                        record.set_sent(seen);
                        waiting.armed = Some((forwarded, now));
                    }
                }
                (HandOverState::Captured, None) => {}
                // Withdrawn by a change of the forwarding table.
                _ => return false,
            }
            if now >= waiting.until {
                record.withdraw();
                failed.push(waiting.flow);
                return false;
            }
            true
        });
        failed.into_iter().for_each(|f| self.retry_later(f, now));
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
            let (packets, bytes, _) = record.forwarded();
            if packets != flow.packets {
                forwarded.push(ForwardedByPlane {
                    flow: *key,
                    packets: packets - flow.packets,
                    bytes: bytes - flow.bytes,
                });
                (flow.packets, flow.bytes) = (packets, bytes);
            }
            // Some packets of the flow are left to this process: a flow is forwarded as a whole.
            if record.control().state == HandOverState::Offloaded && record.seen() != flow.captured
            {
                record.withdraw();
                mixed.push(*key);
            }
        }
        mixed.into_iter().for_each(|f| self.retry_later(f, now));
        let due: Vec<FlowKey> = self
            .retries
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, flow)| flow)
            .collect();
        due.into_iter().for_each(|flow| self.wait_for(flow, now));
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
                self.retries.clear();
                flows.iter().for_each(|flow| self.withdraw(flow));
            }
            false => {
                let now = Instant::now();
                flows.into_iter().for_each(|flow| self.wait_for(flow, now));
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
            self.ended.push(*flow);
            self.send_requests();
        }
    }
}

impl Drop for OffloadCapture {
    fn drop(&mut self) {
        self.offload.close_port(self.port);
    }
}
