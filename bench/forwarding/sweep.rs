//! `--modes` and `--low-rates`: measure the cost of each way to forward at several rates.
//! docs/measurements.md has both tables.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::Outcome;
use crate::lab::Lab;
use crate::meter::{self, Meter};
use crate::peer::{self, Peer, Rules};
use crate::results::median;
use crate::run::{measure_latency, send_at_rate};
use crate::sender::{SenderKind, Stream};

const ROUNDS: usize = 3;

/// A way to forward: its name, the router, and the environment variables that select it.
type Mode = (&'static str, Peer, &'static [(&'static str, &'static str)]);

const SLEEPING: Mode = (
    "single packets, sleeping",
    Peer::Mcastor,
    &[
        ("MCASTOR_TEST_CAPTURE", "latency"),
        ("MCASTOR__PLANE__BUSY_POLL", "0"),
    ],
);
const POLLING: Mode = (
    "single packets, polling",
    Peer::Mcastor,
    &[("MCASTOR_TEST_CAPTURE", "latency")],
);
const BLOCKS: Mode = (
    "blocks",
    Peer::Mcastor,
    &[("MCASTOR_TEST_CAPTURE", "throughput")],
);
const KERNEL: Mode = ("eBPF plane", Peer::McastorEbpf, &[]);

/// The rates and modes that are measured.
pub struct Sweep {
    rates: &'static [f64],
    seconds: f64,
    rules: Rules,
    modes: &'static [Mode],
}

/// The capture modes. The thresholds between them come from this measurement.
pub const MODES: Sweep = Sweep {
    rates: &[1e3, 5e3, 10e3, 20e3, 30e3, 50e3, 100e3, 300e3],
    seconds: 0.6,
    rules: Rules::Pairs(10),
    modes: &[SLEEPING, POLLING, BLOCKS],
};

/// The cost of a wake-up: an ingress of multicast NAT at low rates.
pub const LOW_RATES: Sweep = Sweep {
    rates: &[500.0, 5e3],
    seconds: 4.0,
    rules: Rules::Translated(10),
    modes: &[SLEEPING, BLOCKS, KERNEL],
};

/// Measures all modes and prints a table.
pub fn run(sweep: &Sweep) -> Outcome<()> {
    let lab = Lab::new(1)?;
    let stop = AtomicBool::new(false);
    let base = Stream {
        kind: SenderKind::Udp,
        size: 200,
        flows: 1,
        rate: None,
        seconds: sweep.seconds,
    };
    lab.offload(false)?;
    // Per rate and mode: CPU per packet, share of a core, wake-ups per packet, p50, p99, loss.
    let mut figures: BTreeMap<(u64, usize), [Vec<f64>; 6]> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut alone = BTreeMap::new();
        let meter = Meter::new(None)?;
        for &rate in sweep.rates {
            let stream = Stream {
                rate: Some(rate),
                ..base
            };
            let result = send_at_rate(&lab, &meter, stream, &stop)?;
            alone.insert(rate as u64, result.threads / result.sent.max(1) as f64);
        }
        for (mode, (_, router, environment)) in sweep.modes.iter().enumerate() {
            let (rules, kind) = (sweep.rules, base.kind);
            let mut running = peer::start_with(&lab, *router, rules, kind, 10, environment)?;
            peer::wait_ready(&lab, &mut running, base)?;
            if router.uses_ebpf() && peer::wait_offloaded(&lab, &running, base)? == 0 {
                return Err("the kernel does not take the flow over".into());
            }
            let pid = running.pid().unwrap_or_default();
            let meter = Meter::new(running.pid())?;
            for &rate in sweep.rates {
                let stream = Stream {
                    rate: Some(rate),
                    ..base
                };
                let before = meter::wakeups(pid);
                let result = send_at_rate(&lab, &meter, stream, &stop)?;
                let wakeups = meter::wakeups(pid).saturating_sub(before) as f64;
                let sent = result.sent as f64;
                let cpu = result.threads - alone[&(rate as u64)] * sent;
                let [p50, p99, _] = measure_latency(&lab, stream, rules, &stop)?;
                let row = figures.entry((rate as u64, mode)).or_default();
                let values = [
                    cpu / sent,
                    cpu / result.seconds / 1e7,
                    wakeups / sent,
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
    println!(
        "| packets/s | | CPU per packet, ns | % of a core | wake-ups per packet | p50 us | p99 us \
         | loss % |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for ((rate, mode), row) in &figures {
        let [cpu, share, wakeups, p50, p99, loss] = row.each_ref().map(|all| median(all));
        let name = sweep.modes[*mode].0;
        println!(
            "| {rate} | {name} | {cpu:.0} | {share:.1} | {wakeups:.2} | {p50:.1} | {p99:.1} \
             | {loss:.3} |"
        );
    }
    Ok(())
}
