//! `--modes`: what each way of taking packets in costs, rate by rate. The thresholds between
//! them come from this; the table is in docs/measurements.md.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::Outcome;
use crate::lab::Lab;
use crate::meter::Meter;
use crate::peer::{self, Peer, Rules};
use crate::run::{held, latency_of, median};
use crate::sender::{Kind, Stream};

const ROUNDS: usize = 3;
const SECONDS: f64 = 0.6;
const RATES: [f64; 8] = [1e3, 5e3, 10e3, 20e3, 30e3, 50e3, 100e3, 300e3];

/// Its name, and the environment that asks for it.
const WAYS: [(&str, &[(&str, &str)]); 3] = [
    (
        "one by one, sleeping",
        &[
            ("MCASTOR_TEST_CAPTURE", "latency"),
            ("MCASTOR__PLANE__BUSY_POLL", "0"),
        ],
    ),
    (
        "one by one, looking",
        &[("MCASTOR_TEST_CAPTURE", "latency")],
    ),
    ("blocks", &[("MCASTOR_TEST_CAPTURE", "throughput")]),
];

/// Measures and prints.
pub fn sweep() -> Outcome<()> {
    let lab = Lab::new(1)?;
    let stop = AtomicBool::new(false);
    let base = Stream {
        kind: Kind::Udp,
        size: 200,
        flows: 1,
        rate: None,
        seconds: SECONDS,
    };
    lab.offload(false)?;
    // CPU of a packet, share of a core, p50, p99, loss.
    let mut figures: BTreeMap<(u64, usize), [Vec<f64>; 5]> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut alone = BTreeMap::new();
        let meter = Meter::new(None)?;
        for rate in RATES {
            let stream = Stream {
                rate: Some(rate),
                ..base
            };
            let held = held(&lab, &meter, stream, &stop)?;
            alone.insert(rate as u64, held.threads / held.sent.max(1) as f64);
        }
        for (way, (_, environment)) in WAYS.iter().enumerate() {
            let (rules, kind) = (Rules::Pairs(10), base.kind);
            let mut running = peer::start_with(&lab, Peer::Mcastor, rules, kind, 10, environment)?;
            peer::wait_ready(&lab, &mut running, base)?;
            let meter = Meter::new(running.pid())?;
            for rate in RATES {
                let stream = Stream {
                    rate: Some(rate),
                    ..base
                };
                let held = held(&lab, &meter, stream, &stop)?;
                let sent = held.sent as f64;
                let cpu = held.threads - alone[&(rate as u64)] * sent;
                let [p50, p99, _] = latency_of(&lab, stream, &stop)?;
                let row = figures.entry((rate as u64, way)).or_default();
                let seen = [
                    cpu / sent,
                    cpu / held.seconds / 1e7,
                    p50.1,
                    p99.1,
                    (1.0 - held.arrived / sent) * 100.0,
                ];
                row.iter_mut()
                    .zip(seen)
                    .for_each(|(all, one)| all.push(one));
            }
        }
    }
    println!("| packets/s | | CPU a packet, ns | % of a core | p50 us | p99 us | loss % |");
    println!("|---|---|---|---|---|---|---|");
    for ((rate, way), row) in &figures {
        let [cpu, share, p50, p99, loss] = row.each_ref().map(|all| median(all));
        let name = WAYS[*way].0;
        println!("| {rate} | {name} | {cpu:.0} | {share:.1} | {p50:.1} | {p99:.1} | {loss:.3} |");
    }
    Ok(())
}
