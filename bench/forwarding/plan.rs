//! The scenarios. Each differs from one base scenario in one or two properties.

use crate::peer::{Peer, Rules};
use crate::sender::SenderKind;

/// A measured configuration.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The key in the results, without spaces.
    pub id: &'static str,
    /// The difference from the base scenario.
    pub title: &'static str,
    pub egresses: usize,
    /// Bytes of UDP payload.
    pub size: usize,
    pub kind: SenderKind,
    pub rules: Rules,
    pub flows: usize,
    /// Whether a program on the router has joined the groups, so that the original of each packet
    /// stays with the host.
    pub listener: bool,
    /// The ID of the scenario that this one is compared with. Each round measures both.
    pub base: Option<&'static str>,
    pub peers: &'static [Peer],
}

/// The scenarios and durations of a bench run.
pub struct Plan {
    /// The scenarios. Each round measures all scenarios of a group, one after the other.
    pub groups: Vec<Vec<Scenario>>,
    /// Number of rounds. Each round measures every peer once.
    pub rounds: usize,
    /// Duration of one measurement in seconds.
    pub window: f64,
    /// The fixed rates, in packets per second.
    pub rates: &'static [f64],
    /// The rates at which latency is measured.
    pub latency_rates: &'static [f64],
    pub latency_seconds: f64,
    pub idle_seconds: f64,
    /// The selection of the command line, if any.
    pub only: Option<String>,
    /// True to measure latency, memory, idle CPU, start and message passing, too.
    pub rest: bool,
}

const KERNEL_AND_MCASTOR: &[Peer] = &[Peer::Alone, Peer::Kernel, Peer::Mcastor, Peer::McastorEbpf];
const ALL_PEERS: &[Peer] = &[
    Peer::Alone,
    Peer::Kernel,
    Peer::Mcastor,
    Peer::McastorEbpf,
    Peer::McastorRedirect,
    Peer::McastorBypass,
];
const MCASTOR_ONLY: &[Peer] = &[Peer::Alone, Peer::Mcastor, Peer::McastorEbpf];

/// The base scenario: 200 bytes, one egress, ten rules, ten flows.
const BASE: Scenario = Scenario {
    id: "egress-1",
    title: "1 egress, 200 bytes, 10 rules, 10 flows",
    egresses: 1,
    size: 200,
    kind: SenderKind::Raw,
    rules: Rules::Pairs(10),
    flows: 10,
    listener: false,
    base: None,
    peers: ALL_PEERS,
};

/// Returns the plan. `only` limits it to the scenarios with these comma-separated IDs.
pub fn plan(quick: bool, only: Option<&str>) -> Plan {
    let without_bypass = Scenario {
        peers: KERNEL_AND_MCASTOR,
        ..BASE
    };
    let all = vec![
        (true, BASE),
        (
            true,
            Scenario {
                id: "egress-4",
                title: "4 egresses",
                egresses: 4,
                ..BASE
            },
        ),
        (
            false,
            Scenario {
                id: "egress-16",
                title: "16 egresses",
                egresses: 16,
                ..BASE
            },
        ),
        (
            false,
            Scenario {
                id: "listener-1",
                title: "1 egress, and a program on the router has joined the groups",
                listener: true,
                ..without_bypass.clone()
            },
        ),
        (
            true,
            Scenario {
                id: "offload-on-1",
                title: "UDP sockets, sender offload on, 1 egress",
                kind: SenderKind::UdpOffload,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "offload-on-4",
                title: "UDP sockets, sender offload on, 4 egresses",
                kind: SenderKind::UdpOffload,
                egresses: 4,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "offload-off-1",
                title: "UDP sockets, sender offload off, 1 egress",
                kind: SenderKind::Udp,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "segments-1",
                title: "UDP sockets, 16 datagrams per GSO packet (UDP_SEGMENT), 1 egress",
                kind: SenderKind::UdpSegments,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "size-64",
                title: "64 bytes",
                size: 64,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "size-1400",
                title: "1400 bytes",
                size: 1400,
                ..without_bypass.clone()
            },
        ),
        (
            true,
            Scenario {
                id: "rules-10k",
                title: "10,000 (S,G) rules, 10 flows",
                rules: Rules::Pairs(10_000),
                base: Some(BASE.id),
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "rules-100k",
                title: "100,000 (S,G) rules, 10 flows",
                rules: Rules::Pairs(100_000),
                peers: MCASTOR_ONLY,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "translation",
                title: "10 rules that translate source, group and port, 10 flows",
                rules: Rules::Translated(10),
                base: Some(BASE.id),
                peers: MCASTOR_ONLY,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "prefixes-10k",
                title: "10,000 (*,G/28) rules, 10 flows",
                rules: Rules::ManyPrefixes(10_000),
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "flows-1",
                title: "1 flow under 10 (*,G/16) rules",
                rules: Rules::Prefixes,
                flows: 1,
                peers: MCASTOR_ONLY,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "flows-10k",
                title: "10,000 flows under 10 (*,G/16) rules",
                rules: Rules::Prefixes,
                flows: 10_000,
                ..without_bypass.clone()
            },
        ),
        (
            false,
            Scenario {
                id: "flows-100k",
                title: "100,000 flows under 10 (*,G/16) rules",
                rules: Rules::Prefixes,
                flows: 100_000,
                base: Some("flows-1"),
                peers: MCASTOR_ONLY,
                ..without_bypass
            },
        ),
    ];
    let is_selected = |id: &str| only.is_none_or(|o| o.split(',').any(|o| o == id));
    let scenarios = all.into_iter().filter(|(in_quick, s)| match only {
        Some(_) => is_selected(s.id),
        None => *in_quick || !quick,
    });
    let mut groups: Vec<Vec<Scenario>> = Vec::new();
    for (_, scenario) in scenarios {
        let is_base = |s: &Scenario| Some(s.id) == scenario.base;
        match groups.iter_mut().find(|group| group.iter().any(is_base)) {
            Some(group) => group.push(scenario),
            None => groups.push(vec![scenario]),
        }
    }
    Plan {
        groups,
        rounds: if quick { 3 } else { 5 },
        window: if quick { 0.6 } else { 0.8 },
        rates: &[100_000.0, 300_000.0],
        latency_rates: &[1_000.0, 10_000.0],
        latency_seconds: if quick { 0.7 } else { 1.5 },
        idle_seconds: if quick { 3.0 } else { 10.0 },
        only: only.map(str::to_owned),
        rest: is_selected("rest"),
    }
}
