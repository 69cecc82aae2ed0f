//! Runs the plan and collects figures.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcastor::cli::recv::{RecvArgs, RecvEvent, recv_with};
use mcastor::cli::send::send;
use mcastor::model::Group;

use crate::Outcome;
use crate::handover::{self, Handover};
use crate::lab::{END, Lab};
use crate::meter::{self, Meter};
use crate::peer::{self, Peer, Rules};
use crate::plan::{Plan, Scenario};
use crate::sender::{self, Kind, SENDER_CORE, Stream};

/// Work of others, in cores, above which the busy time of the machine is not believed.
const FOREIGN: f64 = 0.05;

/// One figure of every round.
pub type Series = Vec<f64>;

/// Figures by name, of each peer.
pub type Figures = BTreeMap<Peer, BTreeMap<String, Series>>;

/// Everything measured.
#[derive(Default)]
pub struct Results {
    pub scenarios: Vec<(Scenario, Figures)>,
    /// By rate.
    pub latency: BTreeMap<u64, Figures>,
    pub footprint: Figures,
    /// Handing packets to an actor.
    pub handover: Handover,
    /// Cores that others kept busy, in each window.
    pub foreign: Series,
    /// Cores that the host of a virtual machine gave to others, in each window.
    pub stolen: Series,
    /// Windows whose CPU time was taken from the threads because others were busy.
    pub by_threads: usize,
    pub rounds: usize,
    pub seconds: f64,
    /// What could not be measured, and why.
    pub failed: Vec<(&'static str, &'static str, String)>,
}

pub struct Bench {
    plan: Plan,
    quick: bool,
    stop: Arc<AtomicBool>,
    pub results: Results,
}

/// A window with a held rate.
pub struct Held {
    pub sent: u64,
    /// At each receiver, on average.
    pub arrived: f64,
    /// Packets a second the sender came to.
    pub rate: f64,
    /// Of the machine and of the threads that take part, in nanoseconds.
    pub system: f64,
    pub threads: f64,
    /// What the host of a virtual machine gave to others.
    pub stolen: f64,
    pub seconds: f64,
}

impl Bench {
    pub fn new(plan: Plan, quick: bool, stop: Arc<AtomicBool>) -> Self {
        let results = Results {
            rounds: plan.rounds,
            ..Results::default()
        };
        Self {
            plan,
            quick,
            stop,
            results,
        }
    }

    pub fn all(&mut self) -> Outcome<()> {
        let started = Instant::now();
        for scenario in self.plan.scenarios.clone() {
            let (id, title) = (scenario.id, scenario.title);
            // One that cannot be measured leaves the others alone, and is told in the results.
            if let Err(e) = self.scenario(scenario) {
                self.going_on()?;
                println!("  not measured: {e}");
                self.results.failed.push((id, title, e.to_string()));
            }
        }
        type Part = fn(&mut Bench) -> Outcome<()>;
        let rest: [(_, _, Part); 3] = [
            ("latency", "latency", Self::latency),
            ("footprint", "memory, idling and start", Self::footprint),
            ("handover", "handing over to an actor", Self::handover),
        ];
        let wanted = self.plan.rest;
        for (id, title, part) in rest.into_iter().filter(|_| wanted) {
            if let Err(e) = part(self) {
                self.going_on()?;
                println!("  not measured to the end: {e}");
                self.results.failed.push((id, title, e.to_string()));
            }
        }
        self.results.seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    fn going_on(&self) -> Outcome<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err("stopped".into()),
            false => Ok(()),
        }
    }

    fn scenario(&mut self, scenario: Scenario) -> Outcome<()> {
        println!("{}", scenario.title);
        let lab = Lab::new(scenario.egresses)?;
        lab.offload(scenario.kind != Kind::Udp)?;
        let mut figures = Figures::new();
        for _ in 0..self.plan.rounds {
            let mut alone: BTreeMap<u64, Held> = BTreeMap::new();
            for &peer in scenario.peers {
                self.going_on()?;
                let own = figures.entry(peer).or_default();
                let mut note = |name: String, value: f64| own.entry(name).or_default().push(value);
                let (rules, flows) = (scenario.rules, scenario.flows);
                let mut running = peer::start(&lab, peer, rules, scenario.kind, flows)?;
                let stream = Stream {
                    kind: scenario.kind,
                    size: scenario.size,
                    flows,
                    rate: None,
                    seconds: self.plan.window,
                };
                peer::wait_ready(&lab, &mut running, stream)
                    .map_err(|e| format!("{}, {}: {e}", scenario.title, peer.name()))?;
                let meter = Meter::new(running.pid())?;
                for &rate in self.plan.rates {
                    let stream = Stream {
                        rate: Some(rate),
                        ..stream
                    };
                    let held = held(&lab, &meter, stream, &self.stop)?;
                    let key = rate as u64 / 1000;
                    note(format!("sent_pps@{key}k"), held.rate);
                    let foreign = (held.system - held.threads) / held.seconds / 1e9;
                    self.results.foreign.push(foreign.max(0.0));
                    let stolen = held.stolen / held.seconds / 1e9;
                    self.results.stolen.push(stolen);
                    if peer == Peer::Alone {
                        alone.insert(key, held);
                        continue;
                    }
                    note(
                        format!("loss@{key}k"),
                        (1.0 - held.arrived / held.sent as f64).max(0.0),
                    );
                    let Some(base) = alone.get(&key) else {
                        continue;
                    };
                    let base_foreign = (base.system - base.threads) / base.seconds / 1e9;
                    let noisy = foreign.max(base_foreign) > FOREIGN;
                    self.results.by_threads += usize::from(noisy);
                    // What the sender costs by itself goes with what it sent; what is left is for
                    // the packets that came through.
                    let of = |own: f64, alone: f64| {
                        let alone = alone / base.sent.max(1) as f64;
                        (own - alone * held.sent as f64) / held.arrived.max(1.0)
                    };
                    let machine = of(held.system, base.system);
                    let threads = of(held.threads, base.threads);
                    note(format!("cpu_machine_ns@{key}k"), machine);
                    note(format!("cpu_threads_ns@{key}k"), threads);
                    note(
                        format!("cpu_ns@{key}k"),
                        if noisy { threads } else { machine },
                    );
                }
                if peer == Peer::Alone {
                    continue;
                }
                let before = lab.datagrams(stream.size)?;
                let sent = sender::run(&lab, stream, &self.stop)?;
                let after = lab.datagrams(stream.size)?;
                let arrived = mean_difference(&after, &before);
                note("max_pps".into(), arrived / sent.seconds);
                note("max_sent_pps".into(), sent.packets as f64 / sent.seconds);
                if let Some(pid) = running.pid() {
                    note("resident_mib".into(), meter::resident_mib(pid));
                }
            }
        }
        for (peer, figures) in figures.iter().filter(|(p, _)| **p != Peer::Alone) {
            let of = |name: &str| median(figures.get(name).map_or(&[][..], Vec::as_slice));
            println!(
                "  {:<22} cpu {:>6.0} / {:>6.0} ns a packet at 100k / 300k, loss {:.4} / {:.4} %, max {:>9.0}/s",
                peer.name(),
                of("cpu_ns@100k"),
                of("cpu_ns@300k"),
                of("loss@100k") * 100.0,
                of("loss@300k") * 100.0,
                of("max_pps"),
            );
        }
        self.results.scenarios.push((scenario, figures));
        Ok(())
    }

    fn latency(&mut self) -> Outcome<()> {
        println!("latency, 200 bytes, 1 egress, UDP sockets");
        let lab = Lab::new(1)?;
        lab.offload(true)?;
        for _ in 0..self.plan.rounds {
            for peer in [Peer::Kernel, Peer::Mcastor, Peer::McastorSleeping] {
                let base = Stream {
                    kind: Kind::UdpOffload,
                    size: 200,
                    flows: 1,
                    rate: None,
                    seconds: self.plan.latency_seconds,
                };
                let mut running = peer::start(&lab, peer, Rules::Pairs(10), base.kind, 10)?;
                peer::wait_ready(&lab, &mut running, base)?;
                for &rate in self.plan.latency_rates {
                    self.going_on()?;
                    let stream = Stream {
                        rate: Some(rate),
                        ..base
                    };
                    let pid = running.pid().unwrap_or_default();
                    let before = (meter::process_ns(pid), Instant::now());
                    let latency = latency_of(&lab, stream, &self.stop)?;
                    let spent = meter::process_ns(pid).saturating_sub(before.0) as f64;
                    // The receiver waits for more before it ends.
                    let wall = before.1.elapsed().as_nanos() as f64;
                    let sending = self.plan.latency_seconds * 1e9;
                    let share = spent / wall.min(sending) * 100.0;
                    let latency = latency.into_iter().chain([("core_percent", share)]);
                    let figures = self.results.latency.entry(rate as u64).or_default();
                    let figures = figures.entry(peer).or_default();
                    for (name, value) in latency {
                        figures.entry(name.into()).or_default().push(value);
                    }
                }
            }
        }
        for (rate, peers) in &self.results.latency {
            for (peer, figures) in peers {
                println!(
                    "  {:<22} {rate:>6}/s: p50 {:.1} us, p99 {:.1} us",
                    peer.name(),
                    median(&figures["p50_us"]),
                    median(&figures["p99_us"])
                );
            }
        }
        Ok(())
    }

    fn handover(&mut self) -> Outcome<()> {
        println!("handing over to an actor");
        self.results.handover = handover::measure(self.plan.rounds)?;
        Ok(())
    }

    /// Memory, idling and start with three interfaces and ten routes.
    fn footprint(&mut self) -> Outcome<()> {
        println!("10 routes on 3 interfaces");
        let lab = Lab::new(2)?;
        let stream = Stream {
            kind: Kind::UdpOffload,
            size: 200,
            flows: 10,
            rate: None,
            seconds: 0.1,
        };
        for round in 0..self.plan.rounds {
            for peer in [Peer::Kernel, Peer::Mcastor] {
                self.going_on()?;
                let start = first_packet(&lab, peer, stream)?;
                let figures = self.results.footprint.entry(peer).or_default();
                let mut note =
                    |name: &str, value: f64| figures.entry(name.into()).or_default().push(value);
                note("start_ms", start);
                let mut running = peer::start(&lab, peer, Rules::Pairs(10), stream.kind, 10)?;
                peer::wait_ready(&lab, &mut running, stream)?;
                let Some(pid) = running.pid() else { continue };
                note("resident_mib", meter::resident_mib(pid));
                // Long, and hardly any different from round to round.
                if round < if self.quick { 1 } else { 2 } {
                    let before = (meter::process_ns(pid), Instant::now());
                    std::thread::sleep(Duration::from_secs_f64(self.plan.idle_seconds));
                    let spent = meter::process_ns(pid).saturating_sub(before.0) as f64;
                    let wall = before.1.elapsed().as_nanos() as f64;
                    note("idle_percent", spent / wall * 100.0);
                }
            }
        }
        for (peer, figures) in &self.results.footprint {
            println!(
                "  {:<22} start {:.0} ms, resident {:.1} MiB, idle {:.3} % of a core",
                peer.name(),
                median(&figures["start_ms"]),
                median(&figures["resident_mib"]),
                median(&figures["idle_percent"])
            );
        }
        Ok(())
    }
}

/// Sends at a held rate and waits for the last packet.
pub fn held(lab: &Lab, meter: &Meter, stream: Stream, stop: &AtomicBool) -> Outcome<Held> {
    lab.settled()?;
    let before = (lab.datagrams(stream.size)?, meter.read()?);
    let sent = sender::run(lab, stream, stop)?;
    lab.settled()?;
    let arrived = lab.datagrams(stream.size)?;
    let spent = meter.since(&before.1)?;
    Ok(Held {
        sent: sent.packets,
        arrived: mean_difference(&arrived, &before.0),
        rate: sent.packets as f64 / sent.seconds,
        system: spent.system,
        threads: spent.ours + sent.thread_ns as f64,
        stolen: spent.stolen,
        seconds: spent.seconds,
    })
}

/// Runs mcastor under a held rate for ten seconds and says which process to look at.
pub fn keep_busy(scenario: &Scenario, rate: f64) -> Outcome<()> {
    let lab = Lab::new(scenario.egresses)?;
    lab.offload(scenario.kind != Kind::Udp)?;
    let (rules, kind, flows) = (scenario.rules, scenario.kind, scenario.flows);
    let mut running = peer::start(&lab, Peer::Mcastor, rules, kind, flows)?;
    let stream = Stream {
        kind,
        size: scenario.size,
        flows,
        rate: Some(rate),
        seconds: 10.0,
    };
    peer::wait_ready(&lab, &mut running, stream)?;
    println!(
        "for ten seconds: perf record -g -p {} -- sleep 5",
        running.pid().unwrap_or_default()
    );
    lab.settled()?;
    let before = lab.datagrams(stream.size)?;
    let sent = sender::run(&lab, stream, &AtomicBool::new(false))?;
    lab.settled()?;
    let arrived = mean_difference(&lab.datagrams(stream.size)?, &before);
    let rate = sent.packets as f64 / sent.seconds;
    println!("{} sent, {rate:.0}/s, {arrived} arrived", sent.packets);
    // The kernel is asked once a second what it dropped.
    std::thread::sleep(Duration::from_millis(1_100));
    println!("{}", running.interfaces()?);
    match arrived < sent.packets as f64 {
        true => Err("packets were lost".into()),
        false => Ok(()),
    }
}

/// From the start of the process to the first packet at the receiver, in milliseconds.
fn first_packet(lab: &Lab, peer: Peer, stream: Stream) -> Outcome<f64> {
    let (_, group) = stream.kind.flow(0);
    let socket = lab.receivers[0].netns.run(|| {
        let socket = UdpSocket::bind((group, 5000))?;
        socket.join_multicast_v4(&group, &Ipv4Addr::new(10, 1, 0, 2))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        std::io::Result::Ok(socket)
    })??;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let steady = Stream {
                flows: 1,
                rate: Some(2_000.0),
                seconds: 12.0,
                ..stream
            };
            sender::run(lab, steady, &stop).map_err(|e| e.to_string())
        });
        let measured = (|| -> Outcome<f64> {
            let started = Instant::now();
            let _running = peer::start(lab, peer, Rules::Pairs(10), stream.kind, 10)?;
            socket
                .recv(&mut [0; 2048])
                .map_err(|e| format!("{}: no packet came through: {e}", peer.name()))?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        })();
        stop.store(true, Ordering::Relaxed);
        sending
            .join()
            .map_err(|_| "the sender panicked")?
            .map_err(|e| format!("sender: {e}"))?;
        measured
    })
}

/// Quantiles of one stream, from `mcastor send`'s stamp to the kernel's at the receiver.
pub fn latency_of(
    lab: &Lab,
    stream: Stream,
    stop: &AtomicBool,
) -> Outcome<[(&'static str, f64); 3]> {
    let (_, group) = stream.kind.flow(0);
    let joined = AtomicBool::new(false);
    let report = std::thread::scope(|scope| -> Outcome<_> {
        let receiving = scope.spawn(|| -> Result<_, String> {
            lab.receivers[0].netns.enter().map_err(|e| e.to_string())?;
            sender::pin(SENDER_CORE).map_err(|e| e.to_string())?;
            let group = Group::new(group.into()).map_err(|e| e.to_string())?;
            let interface = END.parse().map_err(|e| format!("{e}"))?;
            let args = RecvArgs {
                idle: Some(2.0),
                ..RecvArgs::new(interface, group)
            };
            let mut tell = |event: RecvEvent<'_>| {
                if matches!(event, RecvEvent::Joined(_)) {
                    joined.store(true, Ordering::Relaxed);
                }
            };
            recv_with(&args, stop, &mut tell).map_err(|e| e.to_string())
        });
        while !joined.load(Ordering::Relaxed) && !receiving.is_finished() {
            std::thread::sleep(Duration::from_millis(2));
        }
        lab.source.run(|| -> Result<_, String> {
            sender::pin(SENDER_CORE).map_err(|e| e.to_string())?;
            send(&sender::send_args(stream)?, stop).map_err(|e| e.to_string())
        })??;
        Ok(receiving.join().map_err(|_| "the receiver panicked")??)
    })?;
    let latency = report.streams.iter().find_map(|s| s.latency_us);
    let latency = latency.ok_or("no packet arrived to measure latency by")?;
    Ok([
        ("p50_us", latency.p50),
        ("p99_us", latency.p99),
        ("lost", report.lost as f64),
    ])
}

fn mean_difference(after: &[u64], before: &[u64]) -> f64 {
    let sum: u64 = after
        .iter()
        .zip(before)
        .map(|(a, b)| a.saturating_sub(*b))
        .sum();
    sum as f64 / after.len().max(1) as f64
}

/// The middle value; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
