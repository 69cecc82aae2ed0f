//! Runs the plan and collects the figures.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcastor::model::Group;
use mcastor::traffic::{ReceiveEvent, ReceiveOptions, StreamOptions, receive_with, send};

use crate::Outcome;
use crate::lab::{END, Lab};
use crate::message_passing;
use crate::meter::{self, Meter};
use crate::peer::{self, Peer, Rules};
use crate::plan::{Plan, Scenario};
use crate::results::{Figures, Results, median};
use crate::sender::{self, SENDER_CORE, SenderKind, Stream};
use crate::show_flows;

/// If other processes use more cores than this, the busy time of the machine is not used.
const MAX_FOREIGN_CORES: f64 = 0.05;

/// A bench run: measures all parts of the plan.
pub struct Bench {
    plan: Plan,
    quick: bool,
    stop: Arc<AtomicBool>,
    pub results: Results,
}

/// The result of sending at a fixed rate.
pub struct RateResult {
    pub sent: u64,
    /// Datagrams that arrived at a receiver, on average.
    pub arrived: f64,
    /// Packets per second that the sender reached.
    pub rate: f64,
    /// Busy time of the machine in nanoseconds.
    pub system: f64,
    /// Run time of the threads involved in nanoseconds.
    pub threads: f64,
    /// Time that the host of a virtual machine stole, in nanoseconds.
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

    /// Measures all scenarios and the other parts. A part that fails is listed in the results.
    pub fn run_all(&mut self) -> Outcome<()> {
        let started = Instant::now();
        for group in self.plan.groups.clone() {
            self.run_group(group)?;
        }
        type Measure = fn(&mut Bench) -> Outcome<()>;
        let rest: [(_, _, Measure); 4] = [
            ("latency", "latency", Self::run_latency),
            (
                "footprint",
                "memory, idle CPU and start",
                Self::run_footprint,
            ),
            (
                "show-flows",
                "loss and latency while all flows are shown",
                Self::run_show_flows,
            ),
            (
                "handover",
                "message passing to an actor",
                Self::run_message_passing,
            ),
        ];
        let has_rest = self.plan.rest;
        let only = self.plan.only.clone();
        let is_selected = |id: &str| match &only {
            Some(only) => has_rest || only.split(',').any(|o| o == id),
            None => has_rest,
        };
        for (id, title, measure) in rest.into_iter().filter(|(id, ..)| is_selected(id)) {
            if let Err(e) = measure(self) {
                self.check_not_stopped()?;
                println!("  not measured completely: {e}");
                self.results.failed.push((id, title, e.to_string()));
            }
        }
        self.results.seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    fn check_not_stopped(&self) -> Outcome<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err("stopped".into()),
            false => Ok(()),
        }
    }

    /// Measures scenarios in turn. A scenario that fails is listed in the results.
    fn run_group(&mut self, group: Vec<Scenario>) -> Outcome<()> {
        let mut measured = Vec::new();
        for scenario in group {
            println!("{}", scenario.title);
            let lab = Lab::new(scenario.egresses)?;
            lab.offload(scenario.kind != SenderKind::Udp)?;
            let listener = match scenario.listener {
                true => Some(lab.listen(scenario.kind, scenario.flows)?),
                false => None,
            };
            measured.push((scenario, lab, Figures::new(), listener));
        }
        for _ in 0..self.plan.rounds {
            let mut kept = Vec::new();
            for (scenario, lab, mut figures, listener) in measured {
                match self.run_round(&scenario, &lab, &mut figures) {
                    Ok(()) => kept.push((scenario, lab, figures, listener)),
                    Err(e) => {
                        self.check_not_stopped()?;
                        let (id, title) = (scenario.id, scenario.title);
                        println!("  not measured: {title}: {e}");
                        self.results.failed.push((id, title, e.to_string()));
                    }
                }
            }
            measured = kept;
        }
        for (scenario, _, figures, _) in measured {
            print_figures(&scenario, &figures);
            self.results.scenarios.push((scenario, figures));
        }
        Ok(())
    }

    /// Measures each peer of a scenario once.
    fn run_round(&mut self, scenario: &Scenario, lab: &Lab, figures: &mut Figures) -> Outcome<()> {
        let mut alone: BTreeMap<u64, RateResult> = BTreeMap::new();
        for &peer in scenario.peers {
            self.check_not_stopped()?;
            let own = figures.entry(peer).or_default();
            let mut note = |name: String, value: f64| own.entry(name).or_default().push(value);
            let (rules, flows) = (scenario.rules, scenario.flows);
            let mut running = peer::start(lab, peer, rules, scenario.kind, flows)?;
            let stream = Stream {
                kind: scenario.kind,
                size: scenario.size,
                flows,
                rate: None,
                seconds: self.plan.window,
            };
            peer::wait_ready(lab, &mut running, stream)
                .map_err(|e| format!("{}, {}: {e}", scenario.title, peer.name()))?;
            if peer.uses_ebpf() {
                let offloaded = peer::wait_offloaded(lab, &running, stream)?;
                note("offloaded_flows".into(), offloaded as f64 / flows as f64);
            }
            let meter = Meter::new(running.pid())?;
            for &rate in self.plan.rates {
                let stream = Stream {
                    rate: Some(rate),
                    ..stream
                };
                let result = send_at_rate(lab, &meter, stream, &self.stop)?;
                let key = rate as u64 / 1000;
                note(format!("sent_pps@{key}k"), result.rate);
                let foreign = (result.system - result.threads) / result.seconds / 1e9;
                self.results.foreign.push(foreign.max(0.0));
                let stolen = result.stolen / result.seconds / 1e9;
                self.results.stolen.push(stolen);
                if peer == Peer::Alone {
                    alone.insert(key, result);
                    continue;
                }
                note(
                    format!("loss@{key}k"),
                    (1.0 - result.arrived / result.sent as f64).max(0.0),
                );
                let Some(base) = alone.get(&key) else {
                    continue;
                };
                let base_foreign = (base.system - base.threads) / base.seconds / 1e9;
                let noisy = foreign.max(base_foreign) > MAX_FOREIGN_CORES;
                self.results.by_threads += usize::from(noisy);
                // The cost of the sender is proportional to the sent packets. The rest is the
                // cost of the packets that arrived.
                let per_packet = |own: f64, alone: f64| {
                    let alone = alone / base.sent.max(1) as f64;
                    (own - alone * result.sent as f64) / result.arrived.max(1.0)
                };
                let machine = per_packet(result.system, base.system);
                let threads = per_packet(result.threads, base.threads);
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
            let sent = sender::run(lab, stream, &self.stop)?;
            let after = lab.datagrams(stream.size)?;
            let arrived = mean_difference(&after, &before);
            note("max_pps".into(), arrived / sent.seconds);
            note("max_sent_pps".into(), sent.packets as f64 / sent.seconds);
            if let Some(pid) = running.pid() {
                note("resident_mib".into(), meter::resident_mib(pid));
            }
        }
        Ok(())
    }

    fn run_latency(&mut self) -> Outcome<()> {
        println!("latency, 200 bytes, 1 egress, UDP sockets");
        let lab = Lab::new(1)?;
        lab.offload(true)?;
        for _ in 0..self.plan.rounds {
            for peer in [
                Peer::Kernel,
                Peer::Mcastor,
                Peer::McastorEbpf,
                Peer::McastorNoBusyPoll,
            ] {
                let base = Stream {
                    kind: SenderKind::UdpOffload,
                    size: 200,
                    flows: 1,
                    rate: None,
                    seconds: self.plan.latency_seconds,
                };
                let mut running = peer::start(&lab, peer, Rules::Pairs(10), base.kind, 10)?;
                peer::wait_ready(&lab, &mut running, base)?;
                if peer == Peer::McastorEbpf {
                    peer::wait_offloaded(&lab, &running, base)?;
                }
                for &rate in self.plan.latency_rates {
                    self.check_not_stopped()?;
                    let stream = Stream {
                        rate: Some(rate),
                        ..base
                    };
                    let pid = running.pid().unwrap_or_default();
                    let before = (meter::process_ns(pid), Instant::now());
                    let latency = measure_latency(&lab, stream, Rules::Pairs(10), &self.stop)?;
                    let spent = meter::process_ns(pid).saturating_sub(before.0) as f64;
                    // The receiver waits for further packets before it ends, so the elapsed time is
                    // too long.
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

    fn run_show_flows(&mut self) -> Outcome<()> {
        println!(
            "{} flows, {:.0} packets per second",
            show_flows::FLOWS,
            show_flows::RATE
        );
        for _ in 0..self.plan.rounds {
            for (case, shown) in show_flows::CASES {
                self.check_not_stopped()?;
                let figures = self.results.show_flows.entry(case).or_default();
                for (name, value) in show_flows::measure(shown, &self.stop)? {
                    figures.entry(name.into()).or_default().push(value);
                }
            }
        }
        for (case, figures) in &self.results.show_flows {
            println!(
                "  {case:<22} lost {:.0} of {:.0}, p50 {:.1} us, p99 {:.1} us, {:.0} requests",
                median(&figures["lost"]),
                median(&figures["sent"]),
                median(&figures["p50_us"]),
                median(&figures["p99_us"]),
                median(&figures["requests"]),
            );
        }
        Ok(())
    }

    fn run_message_passing(&mut self) -> Outcome<()> {
        println!("message passing to an actor");
        self.results.message_costs = message_passing::measure(self.plan.rounds)?;
        Ok(())
    }

    /// Measures memory, idle CPU and start with three interfaces and ten routes.
    fn run_footprint(&mut self) -> Outcome<()> {
        println!("10 routes on 3 interfaces");
        let lab = Lab::new(2)?;
        let stream = Stream {
            kind: SenderKind::UdpOffload,
            size: 200,
            flows: 10,
            rate: None,
            seconds: 0.1,
        };
        for round in 0..self.plan.rounds {
            for peer in [Peer::Kernel, Peer::Mcastor] {
                self.check_not_stopped()?;
                let start = first_packet(&lab, peer, stream)?;
                let figures = self.results.footprint.entry(peer).or_default();
                let mut note =
                    |name: &str, value: f64| figures.entry(name.into()).or_default().push(value);
                note("start_ms", start);
                let mut running = peer::start(&lab, peer, Rules::Pairs(10), stream.kind, 10)?;
                peer::wait_ready(&lab, &mut running, stream)?;
                let Some(pid) = running.pid() else { continue };
                note("resident_mib", meter::resident_mib(pid));
                // This takes long and hardly differs between rounds, so only some rounds measure
                // it.
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

/// Prints the medians of a scenario.
fn print_figures(scenario: &Scenario, figures: &Figures) {
    println!("{}", scenario.title);
    for (peer, figures) in figures.iter().filter(|(p, _)| **p != Peer::Alone) {
        let of = |name: &str| median(figures.get(name).map_or(&[][..], Vec::as_slice));
        println!(
            "  {:<22} cpu {:>6.0} / {:>6.0} ns per packet at 100k / 300k, loss {:.4} / {:.4} %, max {:>9.0}/s",
            peer.name(),
            of("cpu_ns@100k"),
            of("cpu_ns@300k"),
            of("loss@100k") * 100.0,
            of("loss@300k") * 100.0,
            of("max_pps"),
        );
    }
}

/// Sends at the fixed rate of `stream` and waits for the last packet.
pub fn send_at_rate(
    lab: &Lab,
    meter: &Meter,
    stream: Stream,
    stop: &AtomicBool,
) -> Outcome<RateResult> {
    lab.wait_until_quiet()?;
    let before = (lab.datagrams(stream.size)?, meter.read()?);
    let sent = sender::run(lab, stream, stop)?;
    lab.wait_until_quiet()?;
    let arrived = lab.datagrams(stream.size)?;
    let cpu = meter.since(&before.1)?;
    Ok(RateResult {
        sent: sent.packets,
        arrived: mean_difference(&arrived, &before.0),
        rate: sent.packets as f64 / sent.seconds,
        system: cpu.system,
        threads: cpu.threads + sent.thread_ns as f64,
        stolen: cpu.stolen,
        seconds: cpu.seconds,
    })
}

/// Runs mcastor at a fixed rate for ten seconds and prints how to attach a profiler.
pub fn run_for_profiler(scenario: &Scenario, rate: f64) -> Outcome<()> {
    let lab = Lab::new(scenario.egresses)?;
    lab.offload(scenario.kind != SenderKind::Udp)?;
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
    lab.wait_until_quiet()?;
    let before = lab.datagrams(stream.size)?;
    let sent = sender::run(&lab, stream, &AtomicBool::new(false))?;
    lab.wait_until_quiet()?;
    let arrived = mean_difference(&lab.datagrams(stream.size)?, &before);
    let rate = sent.packets as f64 / sent.seconds;
    println!("{} sent, {rate:.0}/s, {arrived} arrived", sent.packets);
    // mcastor reads the drop counters of the kernel once per second.
    std::thread::sleep(Duration::from_millis(1_100));
    println!("{}", running.interfaces()?);
    match arrived < sent.packets as f64 {
        true => Err("packets were lost".into()),
        false => Ok(()),
    }
}

/// Returns the time from the start of the process to the first packet at the receiver, in
/// milliseconds.
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
                .map_err(|e| format!("{}: no packet arrived: {e}", peer.name()))?;
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

/// Measures the latency quantiles of a stream, from the timestamp of `mcastor send` to the receive
/// timestamp of the kernel at the receiver.
pub fn measure_latency(
    lab: &Lab,
    stream: Stream,
    rules: Rules,
    stop: &AtomicBool,
) -> Outcome<[(&'static str, f64); 3]> {
    let (group, port) = rules.outgoing(stream.kind);
    let joined = AtomicBool::new(false);
    let report = std::thread::scope(|scope| -> Outcome<_> {
        let receiving = scope.spawn(|| -> Result<_, String> {
            lab.receivers[0].netns.enter().map_err(|e| e.to_string())?;
            sender::pin(SENDER_CORE).map_err(|e| e.to_string())?;
            let group = Group::new(group.into()).map_err(|e| e.to_string())?;
            let interface = END.parse().map_err(|e| format!("{e}"))?;
            let mut options = ReceiveOptions {
                idle: Some(2.0),
                ..ReceiveOptions::new(StreamOptions::new(interface, group))
            };
            options.stream.port = port.unwrap_or(options.stream.port);
            let mut on_event = |event: ReceiveEvent<'_>| {
                if matches!(event, ReceiveEvent::Joined(_)) {
                    joined.store(true, Ordering::Relaxed);
                }
            };
            receive_with(&options, stop, &mut on_event).map_err(|e| e.to_string())
        });
        while !joined.load(Ordering::Relaxed) && !receiving.is_finished() {
            std::thread::sleep(Duration::from_millis(2));
        }
        lab.source.run(|| -> Result<_, String> {
            sender::pin(SENDER_CORE).map_err(|e| e.to_string())?;
            send(&sender::send_options(stream)?, stop).map_err(|e| e.to_string())
        })??;
        Ok(receiving.join().map_err(|_| "the receiver panicked")??)
    })?;
    let latency = report.streams.iter().find_map(|s| s.latency_us);
    let latency = latency.ok_or("no packet arrived, so there is no latency")?;
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
