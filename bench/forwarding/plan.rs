//! What is measured: a star around one middle, not a full product.

use crate::peer::{Peer, Rules};
use crate::sender::Kind;

/// One corner of the star.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Short and without spaces: the key in the results.
    pub id: &'static str,
    /// What is special about it.
    pub title: &'static str,
    pub egresses: usize,
    /// Bytes of UDP payload.
    pub size: usize,
    pub kind: Kind,
    pub rules: Rules,
    pub flows: usize,
    pub peers: &'static [Peer],
}

/// The whole bench.
pub struct Plan {
    pub scenarios: Vec<Scenario>,
    /// How often each is measured; the peers take turns.
    pub rounds: usize,
    /// Seconds of one measurement.
    pub window: f64,
    /// Rates that are held.
    pub rates: &'static [f64],
    /// Rates at which latency is measured.
    pub latency_rates: &'static [f64],
    pub latency_seconds: f64,
    pub idle_seconds: f64,
    /// Whether to measure latency, memory, idling and start.
    pub rest: bool,
}

const PAIR: &[Peer] = &[Peer::Alone, Peer::Kernel, Peer::Mcastor];
const TRIPLE: &[Peer] = &[
    Peer::Alone,
    Peer::Kernel,
    Peer::Mcastor,
    Peer::McastorBypass,
];
const OURS: &[Peer] = &[Peer::Alone, Peer::Mcastor];

/// The middle: 200 bytes, one egress, ten rules, ten flows.
const MIDDLE: Scenario = Scenario {
    id: "egress-1",
    title: "1 egress, 200 bytes, 10 rules, 10 flows",
    egresses: 1,
    size: 200,
    kind: Kind::Raw,
    rules: Rules::Pairs(10),
    flows: 10,
    peers: TRIPLE,
};

pub fn plan(quick: bool, only: Option<&str>) -> Plan {
    let pair = Scenario {
        peers: PAIR,
        ..MIDDLE
    };
    let all = vec![
        (true, MIDDLE),
        (
            true,
            Scenario {
                id: "egress-4",
                title: "4 egresses",
                egresses: 4,
                ..MIDDLE
            },
        ),
        (
            false,
            Scenario {
                id: "egress-16",
                title: "16 egresses",
                egresses: 16,
                ..MIDDLE
            },
        ),
        (
            true,
            Scenario {
                id: "offload-on-1",
                title: "UDP sockets, sender offload on, 1 egress",
                kind: Kind::UdpOffload,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "offload-on-4",
                title: "UDP sockets, sender offload on, 4 egresses",
                kind: Kind::UdpOffload,
                egresses: 4,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "offload-off-1",
                title: "UDP sockets, sender offload off, 1 egress",
                kind: Kind::Udp,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "segments-1",
                title: "UDP sockets, 16 datagrams as one (UDP_SEGMENT), 1 egress",
                kind: Kind::UdpSegments,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "size-64",
                title: "64 bytes",
                size: 64,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "size-1400",
                title: "1400 bytes",
                size: 1400,
                ..pair.clone()
            },
        ),
        (
            true,
            Scenario {
                id: "rules-10k",
                title: "10,000 (S,G) rules, 10 flows",
                rules: Rules::Pairs(10_000),
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "rules-100k",
                title: "100,000 (S,G) rules, 10 flows",
                rules: Rules::Pairs(100_000),
                peers: OURS,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "translation",
                title: "10 rules that rewrite source, group and port, 10 flows",
                rules: Rules::Rewritten(10),
                peers: OURS,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "prefixes-10k",
                title: "10,000 (*,G/28) rules, 10 flows",
                rules: Rules::ManyPrefixes(10_000),
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "flows-10k",
                title: "10,000 flows under 10 (*,G/16) rules",
                rules: Rules::Prefixes,
                flows: 10_000,
                ..pair.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "flows-100k",
                title: "100,000 flows under 10 (*,G/16) rules",
                rules: Rules::Prefixes,
                flows: 100_000,
                peers: OURS,
                ..pair
            },
        ),
    ];
    let wanted = |id: &str| only.is_none_or(|o| o.split(',').any(|o| o == id));
    let scenarios = all
        .into_iter()
        .filter(|(in_quick, s)| match only {
            Some(_) => wanted(s.id),
            None => *in_quick || !quick,
        })
        .map(|(_, s)| s)
        .collect();
    Plan {
        scenarios,
        rounds: if quick { 3 } else { 5 },
        window: if quick { 0.6 } else { 0.8 },
        rates: &[100_000.0, 300_000.0],
        latency_rates: &[1_000.0, 10_000.0],
        latency_seconds: if quick { 0.7 } else { 1.5 },
        idle_seconds: if quick { 3.0 } else { 10.0 },
        rest: wanted("rest"),
    }
}
