//! `--modes`: measures the cost of each capture mode at several rates. The thresholds between the
//! modes come from this measurement; docs/measurements.md has the table.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::Outcome;
use crate::lab::Lab;
use crate::meter::Meter;
use crate::peer::{self, Peer, Rules};
use crate::results::median;
use crate::run::{measure_latency, send_at_rate};
use crate::sender::{SenderKind, Stream};

const ROUNDS: usize = 3;
const SECONDS: f64 = 0.6;
const RATES: [f64; 8] = [1e3, 5e3, 10e3, 20e3, 30e3, 50e3, 100e3, 300e3];

/// Per capture mode, its name and the environment variables that select it.
const MODES: [(&str, &[(&str, &str)]); 3] = [
    (
        "single packets, sleeping",
        &[
            ("MCASTOR_TEST_CAPTURE", "latency"),
            ("MCASTOR__PLANE__BUSY_POLL", "0"),
        ],
    ),
    (
        "single packets, polling",
        &[("MCASTOR_TEST_CAPTURE", "latency")],
    ),
    ("blocks", &[("MCASTOR_TEST_CAPTURE", "throughput")]),
];

/// Measures all modes and prints a table.
pub fn sweep() -> Outcome<()> {
    let lab = Lab::new(1)?;
    let stop = AtomicBool::new(false);
    let base = Stream {
        kind: SenderKind::Udp,
        size: 200,
        flows: 1,
        rate: None,
        seconds: SECONDS,
    };
    lab.offload(false)?;
    // Per rate and mode: CPU per packet, share of a core, p50, p99, loss.
    let mut figures: BTreeMap<(u64, usize), [Vec<f64>; 5]> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut alone = BTreeMap::new();
        let meter = Meter::new(None)?;
        for rate in RATES {
            let stream = Stream {
                rate: Some(rate),
                ..base
            };
            let result = send_at_rate(&lab, &meter, stream, &stop)?;
            alone.insert(rate as u64, result.threads / result.sent.max(1) as f64);
        }
        for (mode, (_, environment)) in MODES.iter().enumerate() {
            let (rules, kind) = (Rules::Pairs(10), base.kind);
            let mut running = peer::start_with(&lab, Peer::Mcastor, rules, kind, 10, environment)?;
            peer::wait_ready(&lab, &mut running, base)?;
            let meter = Meter::new(running.pid())?;
            for rate in RATES {
                let stream = Stream {
                    rate: Some(rate),
                    ..base
                };
                let result = send_at_rate(&lab, &meter, stream, &stop)?;
                let sent = result.sent as f64;
                let cpu = result.threads - alone[&(rate as u64)] * sent;
                let [p50, p99, _] = measure_latency(&lab, stream, &stop)?;
                let row = figures.entry((rate as u64, mode)).or_default();
                let values = [
                    cpu / sent,
                    cpu / result.seconds / 1e7,
                    p50.1,
                    p99.1,
                    (1.0 - result.arrived / sent) * 100.0,
                ];
                row.iter_mut()
                    .zip(values)
                    .for_each(|(all, one)| all.push(one));
            }
        }
    }
    println!("| packets/s | | CPU per packet, ns | % of a core | p50 us | p99 us | loss % |");
    println!("|---|---|---|---|---|---|---|");
    for ((rate, mode), row) in &figures {
        let [cpu, share, p50, p99, loss] = row.each_ref().map(|all| median(all));
        let name = MODES[*mode].0;
        println!("| {rate} | {name} | {cpu:.0} | {share:.1} | {p50:.1} | {p99:.1} | {loss:.3} |");
    }
    Ok(())
}
