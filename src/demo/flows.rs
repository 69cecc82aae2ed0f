//! The test streams of the demo and their state while they run.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{DemoError, system_error};
use super::network;
use super::view::FlowRow;
use crate::model::{Group, IfName, LinkError, Source};
use crate::probe::{Latency, ReceiverStats, StreamError, StreamStats};
use crate::sys::netns::NetNs;
use crate::traffic::{
    ReceiveEvent, ReceiveOptions, SendOptions, StreamOptions, receive_with, send_with,
};

/// Initial TTL of the flows whose TTL the router decrements.
const TTL: u8 = 16;

/// A test stream and the route that forwards it.
#[derive(Debug, Clone)]
pub struct DemoFlow {
    /// Name of the route.
    pub name: &'static str,
    /// Destination group.
    pub group: Group,
    /// TTL or hop limit at the sender.
    pub ttl: u8,
    /// Whether the route keeps the TTL instead of decrementing it.
    pub keep_ttl: bool,
}

impl DemoFlow {
    /// Returns the streams of the demo: IPv4, IPv6 if `ipv6`, and IPv4 with TTL 1.
    pub fn all(ipv6: bool) -> Vec<Self> {
        let v4 = |last| Group::new(Ipv4Addr::new(225, 1, 2, last).into());
        let v6 = Group::new(Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x225, 1).into());
        let flow = |name, group: Result<Group, _>, ttl, keep_ttl| {
            group.ok().map(|group| Self {
                name,
                group,
                ttl,
                keep_ttl,
            })
        };
        [
            flow("ipv4", v4(3), TTL, false),
            flow("ipv6", v6.clone(), TTL, false).filter(|_| ipv6),
            flow("ttl-1", v4(4), 1, true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Returns the TTL or hop limit expected at the receiver.
    pub fn ttl_on_arrival(&self) -> u8 {
        self.ttl - u8::from(!self.keep_ttl)
    }

    fn source(&self) -> Option<Source> {
        Source::new(network::sender_address(self.group.addr().is_ipv6())).ok()
    }

    /// Moves the calling thread to `netns` and sends there until `count` packets or `stop`.
    pub fn send(
        &self,
        netns: &NetNs,
        rate: f64,
        count: Option<u64>,
        state: &FlowState,
        stop: &AtomicBool,
    ) -> Result<(), DemoError> {
        netns
            .enter()
            .map_err(system_error("enter the sender's namespace"))?;
        let options = SendOptions {
            rate,
            ttl: self.ttl,
            ..SendOptions::new(StreamOptions {
                count,
                source: self.source(),
                ..StreamOptions::new(end_interface()?, self.group)
            })
        };
        let before = state.sent.load(Ordering::Relaxed);
        let mut progress = |sent| state.sent.store(before + sent, Ordering::Relaxed);
        send_with(&options, stop, &mut progress)?;
        Ok(())
    }

    /// Moves the calling thread to `netns` and receives there until the stream is complete or
    /// `stop`.
    pub fn receive(
        &self,
        netns: &NetNs,
        state: &FlowState,
        stop: &AtomicBool,
    ) -> Result<(), DemoError> {
        netns
            .enter()
            .map_err(system_error("enter the receiver's namespace"))?;
        let options = ReceiveOptions::new(StreamOptions {
            // Groups of ff3x::/32 and 232/8 can only be joined for one source (RFC 4607 section 1).
            source: self.source().filter(|_| self.group.is_source_specific()),
            ..StreamOptions::new(end_interface()?, self.group)
        });
        receive_with(&options, stop, &mut |event| match event {
            ReceiveEvent::First(_) => {}
            ReceiveEvent::Joined(_) => state.joined.store(true, Ordering::Relaxed),
            ReceiveEvent::Progress(stats) => {
                let snapshot = ReceiverSnapshot::new(stats, self.group);
                *state
                    .received
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = snapshot;
            }
        })?;
        Ok(())
    }
}

fn end_interface() -> Result<IfName, StreamError> {
    network::END
        .parse()
        .map_err(|e: LinkError| StreamError::Usage(e.to_string()))
}

/// The statistics of a receiver at one moment.
#[derive(Debug, Clone, Default)]
pub struct ReceiverSnapshot {
    received: u64,
    missing: u64,
    duplicates: u64,
    range: Option<(u64, u64)>,
    ttl: Option<(u8, u8)>,
    latency: Option<Latency>,
}

impl ReceiverSnapshot {
    fn new(stats: &ReceiverStats, group: Group) -> Self {
        let streams = || stats.streams_of(group.addr());
        Self {
            received: streams().map(StreamStats::received).sum(),
            missing: streams().map(StreamStats::missing).sum(),
            duplicates: streams().map(StreamStats::duplicates).sum(),
            range: streams()
                .map(StreamStats::range)
                .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))),
            ttl: streams()
                .filter_map(StreamStats::ttl)
                .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))),
            latency: streams().find_map(StreamStats::latency),
        }
    }
}

/// The state of one flow, shared with its sender and receiver threads.
#[derive(Debug, Default)]
pub struct FlowState {
    sent: AtomicU64,
    joined: AtomicBool,
    received: Mutex<ReceiverSnapshot>,
}

/// The state of all flows.
#[derive(Debug)]
pub struct FlowStates {
    /// One state for each flow, in the order of [`DemoFlow::all`].
    pub flows: Vec<FlowState>,
}

impl FlowStates {
    /// Creates the state of `flows` flows, with nothing sent or received.
    pub fn new(flows: usize) -> Self {
        Self {
            flows: (0..flows).map(|_| FlowState::default()).collect(),
        }
    }

    /// Waits until every receiver has joined, for at most `patience`, or until `stop`.
    pub fn wait_joined(&self, patience: Duration, stop: &AtomicBool) {
        let deadline = Instant::now() + patience;
        while !self.flows.iter().all(|f| f.joined.load(Ordering::Relaxed))
            && !stop.load(Ordering::Relaxed)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns the current table. While packets are in flight, only gaps count as lost. Once
    /// `done`, every packet that is missing counts.
    pub fn rows(&self, flows: &[DemoFlow], forwarded: &[Option<u64>], done: bool) -> Vec<FlowRow> {
        let row = |((flow, state), forwarded): ((&DemoFlow, &FlowState), &Option<u64>)| {
            let snapshot = state
                .received
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let sent = state.sent.load(Ordering::Relaxed);
            FlowRow {
                flow: flow.name,
                group: flow.group.addr(),
                sent,
                forwarded: *forwarded,
                received: snapshot.received,
                lost: if done {
                    sent.saturating_sub(snapshot.received)
                } else {
                    snapshot.missing
                },
                duplicates: snapshot.duplicates,
                first_seq: snapshot.range.map(|r| r.0),
                last_seq: snapshot.range.map(|r| r.1),
                ttl_sent: flow.ttl,
                ttl_expected: flow.ttl_on_arrival(),
                ttl_min: snapshot.ttl.map(|t| t.0),
                ttl_max: snapshot.ttl.map(|t| t.1),
                latency_us: snapshot.latency,
            }
        };
        let pairs = flows.iter().zip(&self.flows);
        pairs.zip(forwarded).map(row).collect()
    }
}
