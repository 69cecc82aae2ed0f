//! `--merge`: what a merged packet costs beside one of a plain route, and the highest rate that is
//! merged without loss.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::Outcome;
use crate::lab::{self, Lab};
use crate::meter;
use crate::monitored::wait_ready;
use crate::numbered::{NumberedSender, plain_number};
use crate::peer;
use crate::results::median;

const ROUNDS: usize = 5;
const SECONDS: f64 = 2.0;
const SIZES: [usize; 2] = [200, 1316];

/// The rate at which CPU time is measured, in packets per second and path.
const RATE: f64 = 100_000.0;

/// The rates of the search.
const RATES: [f64; 10] = [
    50_000.0, 100_000.0, 150_000.0, 200_000.0, 250_000.0, 300_000.0, 350_000.0, 400_000.0,
    450_000.0, 500_000.0,
];

/// A rate is reached if the sender sends this part of it.
const REACHED: f64 = 0.98;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// A route from one path.
    Route,
    /// A merge of two paths.
    Merge,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Merge => "merge of two paths",
        }
    }

    fn settings(self) -> String {
        let merge = match self {
            Self::Route => String::new(),
            Self::Merge => format!(
                "merge = {{ with = \"{}\", window = \"50ms\", by = {{ offset = 0, bytes = 4 }} }}\n",
                lab::out(1)
            ),
        };
        format!(
            "[[route]]\nfrom = \"{}\"\ngroup = \"225.0.0.0/8\"\nto = [\"{}\"]\njoin = false\n{merge}",
            lab::IN,
            lab::out(0)
        )
    }
}

/// CPU per packet that leaves, the same relative to the route in the same round, and the highest
/// rate without loss, of each round.
type Series = [Vec<f64>; 3];

/// Measures both cases in turn, and prints a table. One round only if `quick`.
pub fn run(quick: bool) -> Outcome<()> {
    let stop = AtomicBool::new(false);
    let mut figures: BTreeMap<(usize, Case), Series> = BTreeMap::new();
    for round in 0..if quick { 1 } else { ROUNDS } {
        println!("round {round}");
        for size in SIZES {
            let mut route = f64::NAN;
            for case in [Case::Route, Case::Merge] {
                let (cpu, highest) = measure(case, size, &stop)
                    .map_err(|e| format!("{}, {size} bytes: {e}", case.name()))?;
                if case == Case::Route {
                    route = cpu;
                }
                let series = figures.entry((size, case)).or_default();
                let values = [cpu, cpu / route, highest];
                series
                    .iter_mut()
                    .zip(values)
                    .for_each(|(all, one)| all.push(one));
            }
        }
    }
    println!(
        "| bytes | | CPU per packet that leaves, ns | relative | highest rate without loss, packets/s |"
    );
    println!("|---|---|---|---|---|");
    for ((size, case), series) in &figures {
        let range = |all: &[f64], digits: usize| {
            let least = all.iter().copied().fold(f64::MAX, f64::min);
            let most = all.iter().copied().fold(f64::MIN, f64::max);
            format!(
                "{:.digits$} ({least:.digits$} to {most:.digits$})",
                median(all)
            )
        };
        let [cpu, ratio, highest] = series;
        println!(
            "| {size} | {} | {} | {} | {} |",
            case.name(),
            range(cpu, 0),
            range(ratio, 2),
            range(highest, 0),
        );
    }
    Ok(())
}

/// Returns the CPU time per packet that leaves, and the highest rate without loss.
fn measure(case: Case, size: usize, stop: &AtomicBool) -> Outcome<(f64, f64)> {
    // The second link of a receiver is the second path.
    let lab = Lab::new(2)?;
    let running = peer::start_program(&lab, peer::MCASTOR, &case.settings())?;
    let mut paths = vec![&lab.source];
    if case == Case::Merge {
        paths.push(&lab.receivers[1].netns);
    }
    let mut sender = NumberedSender::new(&paths, 1, size, plain_number)?;
    wait_ready(&lab, &mut sender, stop)?;
    let pid = running.pid().ok_or("no process")?;
    // The capture has the mode of this rate, and the skew is known.
    sender.send(&lab, RATE, 2.5, stop)?;
    let arrived = lab.wait_until_quiet()?[0];
    let before = meter::process_ns(pid);
    let sent = sender.send(&lab, RATE, SECONDS, stop)?;
    let arrived_then = lab.wait_until_quiet()?[0] - arrived;
    let cpu = meter::process_ns(pid).saturating_sub(before) as f64;
    let cpu = cpu / arrived_then.max(1) as f64;
    if arrived_then != sent.packets {
        println!(
            "  {}, {size} bytes: {arrived_then} of {} packets arrived at {RATE:.0}/s",
            case.name(),
            sent.packets
        );
    }
    let mut highest = 0.0;
    for rate in RATES {
        let before = lab.wait_until_quiet()?[0];
        let sent = sender.send(&lab, rate, SECONDS, stop)?;
        let arrived = lab.wait_until_quiet()?[0] - before;
        let reached = sent.packets as f64 / sent.seconds;
        if arrived != sent.packets || reached < rate * REACHED {
            println!(
                "  {}, {size} bytes, {rate:.0}/s: sent {} at {reached:.0}/s, arrived {arrived}",
                case.name(),
                sent.packets
            );
            break;
        }
        highest = rate;
    }
    Ok((cpu, highest))
}
