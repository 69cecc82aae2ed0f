//! `--streams`: what monitoring streams adds to forwarding them, in the whole process.
//!
//! With `MCASTOR_BASELINE`, the path of an earlier build, that build is measured too, in the same
//! rounds.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::lab::{self, Lab};
use crate::meter;
use crate::numbered::{NumberedSender, Numbering, rtp, rtp_with_ts};
use crate::peer::{self, RunningRouter};
use crate::results::median;

const ROUNDS: usize = 5;
const SECONDS: f64 = 2.0;

/// RTP with seven MPEG-TS packets.
const SIZE: usize = 12 + 7 * 188;

/// Numbers of streams, and the packets per second of each. A core forwards less than a million
/// packets a second, so a thousand streams have a lower rate.
const LOADS: [(usize, f64); 3] = [(10, 1000.0), (100, 1000.0), (1000, 200.0)];

/// The goal: per cent of a core that monitoring adds at 100 streams of 1,000 packets a second.
const GOAL: f64 = 5.0;

/// The environment variable with the path of an earlier build.
const BASELINE: &str = "MCASTOR_BASELINE";

/// How the streams are monitored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    /// Not at all, by the build that [`BASELINE`] names.
    Baseline,
    Off,
    Rate,
    Rtp,
    RtpWithTs,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Baseline => "the earlier build",
            Self::Off => "not monitored",
            Self::Rate => "rate",
            Self::Rtp => "RTP",
            Self::RtpWithTs => "RTP with MPEG-TS",
        }
    }

    fn settings(self) -> String {
        let monitor = match self {
            Self::Baseline | Self::Off => "",
            Self::Rate => "monitor = \"rate\"\n",
            Self::Rtp | Self::RtpWithTs => "monitor = \"rtp\"\n",
        };
        // Polling would use the core at ten thousand packets a second, whatever else is done.
        format!(
            "plane.busy_poll = 0\n[[route]]\nfrom = \"{}\"\ngroup = \"225.0.0.0/8\"\n\
             to = [\"{}\"]\njoin = false\n{monitor}",
            lab::IN,
            lab::out(0)
        )
    }

    fn numbering(self) -> Numbering {
        match self {
            Self::RtpWithTs => rtp_with_ts,
            _ => rtp,
        }
    }

    fn is_monitored(self) -> bool {
        !matches!(self, Self::Baseline | Self::Off)
    }
}

/// CPU per packet in nanoseconds, per cent of a core, the same in addition to [`Mode::Off`] in the
/// same round, and lost per cent, of each round.
type Series = [Vec<f64>; 4];

/// Measures all modes in turn, and prints a table. One round only if `quick`.
pub fn run(quick: bool) -> Outcome<()> {
    let stop = AtomicBool::new(false);
    let baseline = std::env::var(BASELINE).ok();
    let mut modes = vec![Mode::Off, Mode::Rate, Mode::Rtp, Mode::RtpWithTs];
    if baseline.is_some() {
        modes.insert(0, Mode::Baseline);
    }
    let mut figures: BTreeMap<(usize, Mode), Series> = BTreeMap::new();
    for round in 0..if quick { 1 } else { ROUNDS } {
        println!("round {round}");
        for (streams, rate) in LOADS {
            let mut measured = BTreeMap::new();
            for &mode in &modes {
                let program = match mode {
                    Mode::Baseline => baseline.as_deref().unwrap_or(peer::MCASTOR),
                    _ => peer::MCASTOR,
                };
                let figures = measure(program, mode, streams, rate, &stop)
                    .map_err(|e| format!("{streams} streams, {}: {e}", mode.name()))?;
                measured.insert(mode, figures);
            }
            let off = measured[&Mode::Off].share;
            for (mode, one) in measured {
                let series = figures.entry((streams, mode)).or_default();
                let values = [one.cpu_ns, one.share, one.share - off, one.loss];
                series
                    .iter_mut()
                    .zip(values)
                    .for_each(|(all, one)| all.push(one));
            }
        }
    }
    println!(
        "| streams | packets/s each | examined as | CPU per packet, ns | % of a core | in addition, % of a core | loss % |"
    );
    println!("|---|---|---|---|---|---|---|");
    for ((streams, mode), series) in &figures {
        let rate = LOADS.iter().find(|(count, _)| count == streams);
        let rate = rate.map_or(0.0, |(_, rate)| *rate);
        let least = series[2].iter().copied().fold(f64::MAX, f64::min);
        let most = series[2].iter().copied().fold(f64::MIN, f64::max);
        let [cpu, share, added, loss] = series.each_ref().map(|all| median(all));
        println!(
            "| {streams} | {rate:.0} | {} | {cpu:.0} | {share:.1} | {added:.1} ({least:.1} to {most:.1}) | {loss:.3} |",
            mode.name()
        );
        if *streams == 100 && mode.is_monitored() {
            let verdict = if added <= GOAL { "met" } else { "missed" };
            println!("|  |  | goal: at most {GOAL} % in addition | | | {verdict} | |");
        }
    }
    Ok(())
}

/// The figures of one mode in one round.
struct Measured {
    cpu_ns: f64,
    share: f64,
    loss: f64,
}

fn measure(
    program: &str,
    mode: Mode,
    streams: usize,
    rate: f64,
    stop: &AtomicBool,
) -> Outcome<Measured> {
    let lab = Lab::new(1)?;
    let running = peer::start_program(&lab, program, &mode.settings())?;
    let mut sender = NumberedSender::new(&[&lab.source], streams, SIZE, mode.numbering())?;
    wait_ready(&lab, &mut sender, stop)?;
    let pid = running.pid().ok_or("no process")?;
    let rate = rate * streams as f64;
    // Each flow is known, and the capture has the mode of this rate.
    sender.send(&lab, rate, 0.5, stop)?;
    let arrived = lab.wait_until_quiet()?[0];
    let before = meter::process_ns(pid);
    let sent = sender.send(&lab, rate, SECONDS, stop)?;
    let cpu = meter::process_ns(pid).saturating_sub(before) as f64;
    let arrived = lab.wait_until_quiet()?[0] - arrived;
    if mode.is_monitored() {
        let seen = monitored(&running)?;
        if seen != streams {
            return Err(format!("{seen} streams are monitored").into());
        }
    }
    let packets = sent.packets.max(1) as f64;
    Ok(Measured {
        cpu_ns: cpu / packets,
        share: cpu / sent.seconds / 1e7,
        loss: (1.0 - arrived as f64 / packets) * 100.0,
    })
}

/// Sends a few packets until they arrive.
pub fn wait_ready(lab: &Lab, sender: &mut NumberedSender, stop: &AtomicBool) -> Outcome<()> {
    let before = lab.arrived()?[0];
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.arrived()?[0] < before + 10 {
        if Instant::now() > deadline {
            return Err("the router does not forward".into());
        }
        sender.send(lab, 1000.0, 0.05, stop)?;
    }
    lab.wait_until_quiet()?;
    Ok(())
}

/// Returns the number of monitored streams.
fn monitored(running: &RunningRouter) -> Outcome<usize> {
    // The reports of a thousand streams take two seconds at most.
    std::thread::sleep(Duration::from_secs(2));
    let mut show = Command::new(peer::MCASTOR);
    show.args(["show", "streams", "--json", "--socket"]);
    let output = show.arg(running.control_socket()).output()?;
    let streams: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
    Ok(streams.len())
}
