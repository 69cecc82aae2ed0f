//! The streams of the demo and what is known of them while they run.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::view::FlowRow;
use super::{DemoError, network, system};
use crate::cli::recv::{RecvArgs, RecvEvent, recv_with};
use crate::cli::send::{SendArgs, send_with};
use crate::model::{Group, IfName, LinkError, Source};
use crate::probe::{Latency, ReceiverStats, StreamError, StreamStats};
use crate::sys::netns::NetNs;

/// TTL of the flows that the router takes one off.
const TTL: u8 = 16;

/// One stream and the rule that routes it.
#[derive(Debug, Clone)]
pub struct DemoFlow {
    /// The name of its route.
    pub name: &'static str,
    /// Its group.
    pub group: Group,
    /// TTL or hop limit at the sender.
    pub ttl: u8,
    /// Whether the route leaves the TTL alone.
    pub keep_ttl: bool,
}

impl DemoFlow {
    /// The streams of the demo.
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

    /// TTL or hop limit at the receiver.
    pub fn ttl_on_arrival(&self) -> u8 {
        self.ttl - u8::from(!self.keep_ttl)
    }

    fn source(&self) -> Option<Source> {
        Source::new(network::sender_address(self.group.addr().is_ipv6())).ok()
    }

    /// Sends from `netns` until `count` or `stop`. Moves the calling thread there.
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
            .map_err(system("enter the sender's namespace"))?;
        let args = SendArgs {
            rate,
            count,
            ttl: self.ttl,
            source: self.source(),
            ..SendArgs::new(end()?, self.group)
        };
        let before = state.sent.load(Ordering::Relaxed);
        let mut progress = |sent| state.sent.store(before + sent, Ordering::Relaxed);
        send_with(&args, stop, &mut progress)?;
        Ok(())
    }

    /// Receives in `netns` until the stream is whole or `stop`. Moves the calling thread there.
    pub fn receive(
        &self,
        netns: &NetNs,
        state: &FlowState,
        stop: &AtomicBool,
    ) -> Result<(), DemoError> {
        netns
            .enter()
            .map_err(system("enter the receiver's namespace"))?;
        let args = RecvArgs {
            // Groups of ff3x::/32 and 232/8 are joined for one source only (RFC 4607 section 1).
            source: self.source().filter(|_| self.group.is_source_specific()),
            ..RecvArgs::new(end()?, self.group)
        };
        recv_with(&args, stop, &mut |event| match event {
            RecvEvent::Joined(_) => state.joined.store(true, Ordering::Relaxed),
            RecvEvent::Progress(tallies) => {
                let heard = ReceiverSnapshot::of(tallies, self.group);
                *state.heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
            }
        })?;
        Ok(())
    }
}

fn end() -> Result<IfName, StreamError> {
    network::END
        .parse()
        .map_err(|e: LinkError| StreamError::Usage(e.to_string()))
}

/// What a receiver knows.
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
    fn of(tallies: &ReceiverStats, group: Group) -> Self {
        let streams = || tallies.of(group.addr());
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

/// What is known of one flow, shared with its threads.
#[derive(Debug, Default)]
pub struct FlowState {
    sent: AtomicU64,
    joined: AtomicBool,
    heard: Mutex<ReceiverSnapshot>,
}

/// What is known of all flows.
#[derive(Debug)]
pub struct FlowStates {
    /// In the order of [`DemoFlow::all`].
    pub flows: Vec<FlowState>,
}

impl FlowStates {
    /// Nothing sent, nothing heard.
    pub fn new(flows: usize) -> Self {
        Self {
            flows: (0..flows).map(|_| FlowState::default()).collect(),
        }
    }

    /// Waits until every receiver has joined, or `patience` is over.
    pub fn wait_joined(&self, patience: Duration, stop: &AtomicBool) {
        let deadline = Instant::now() + patience;
        while !self.flows.iter().all(|f| f.joined.load(Ordering::Relaxed))
            && !stop.load(Ordering::Relaxed)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The table as of now. While packets are on the way only gaps count as lost; once `done`,
    /// all that is missing.
    pub fn rows(&self, flows: &[DemoFlow], forwarded: &[Option<u64>], done: bool) -> Vec<FlowRow> {
        let row = |((flow, state), forwarded): ((&DemoFlow, &FlowState), &Option<u64>)| {
            let heard = state.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let sent = state.sent.load(Ordering::Relaxed);
            FlowRow {
                flow: flow.name,
                group: flow.group.addr(),
                sent,
                forwarded: *forwarded,
                received: heard.received,
                lost: if done {
                    sent.saturating_sub(heard.received)
                } else {
                    heard.missing
                },
                duplicates: heard.duplicates,
                first_seq: heard.range.map(|r| r.0),
                last_seq: heard.range.map(|r| r.1),
                ttl_sent: flow.ttl,
                ttl_expected: flow.ttl_on_arrival(),
                ttl_min: heard.ttl.map(|t| t.0),
                ttl_max: heard.ttl.map(|t| t.1),
                latency_us: heard.latency,
            }
        };
        let pairs = flows.iter().zip(&self.flows);
        pairs.zip(forwarded).map(row).collect()
    }
}
