//! `--amt`: what a packet costs at both ends of AMT tunnels, beside a packet of the packet plane.
//! bench/results/amt.md has the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mcastor::model::{Group, Source, TunnelEndpoint};
use mcastor::probe::{PaceAction, Pacer};
use mcastor::sys::datagram::{CopySender, DatagramReceiver, DatagramSocket};
use mcastor::sys::netns::NetNs;
use mcastor::wire::amt::{AmtMessage, DATA_HEADER, FlagLayout, PORT, ResponseMac};
use mcastor::wire::membership::build;
use mcastor::wire::membership_message::{
    Generation, GroupRecord, MembershipMessage, Query, RecordType,
};

use crate::Outcome;
use crate::lab::{self, Lab, ROUTER, SOURCE};
use crate::meter::{self, Meter};
use crate::peer::{self, Peer, Rules};
use crate::results::median;
use crate::sender::{self, SENDER_CORE, SendResult, SenderKind, Stream};

const ROUNDS: usize = 5;
const SECONDS: f64 = 0.8;
const FLOWS: usize = 10;
/// Copies or packets per second at which CPU time is measured.
const RATE: f64 = 100_000.0;
const SIZES: [usize; 2] = [200, 1316];
const TUNNELS: [usize; 3] = [1, 100, 1000];

/// The address of all gateways, which differ in their ports. It exists only while they join:
/// afterwards, the host of the gateways drops the copies, as it drops native packets.
const GATEWAYS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The address of the relay on the link of the gateways.
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The address of the host of the gateways on that link.
const HOST: &str = "10.1.0.2";
/// The port of a socket that reads nothing: the tunnel leads there until a gateway runs.
const IDLE_PORT: u16 = 40_000;
/// IPv4 and UDP headers of the packet in a tunnel.
const INNER: usize = 28;
/// Most packets of one system call of the sender.
const BATCH: usize = 64;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// The packet plane with one egress.
    Native,
    /// A relay with this number of tunnels.
    Relay(usize),
    /// A gateway with one tunnel.
    Gateway,
}

impl Case {
    fn name(self) -> String {
        match self {
            Self::Native => "packet plane, 1 egress".into(),
            Self::Relay(n) => format!("relay, {n} tunnels"),
            Self::Gateway => "gateway".into(),
        }
    }

    fn copies(self) -> usize {
        match self {
            Self::Relay(n) => n,
            _ => 1,
        }
    }
}

/// CPU per copy, and the maximum rate of copies, of each round.
#[derive(Debug, Default)]
struct Series {
    cpu_ns: Vec<f64>,
    /// Relative to the packet plane in the same round.
    ratio: Vec<f64>,
    max: Vec<f64>,
    loss: Vec<f64>,
}

/// Measures all cases in turn, and prints a table.
pub fn run() -> Outcome<()> {
    let stop = AtomicBool::new(false);
    let mut figures: BTreeMap<(usize, Case), Series> = BTreeMap::new();
    let mut cases = vec![Case::Native];
    cases.extend(TUNNELS.map(Case::Relay));
    cases.push(Case::Gateway);
    for round in 0..ROUNDS {
        println!("round {round}");
        for size in SIZES {
            let mut native = f64::NAN;
            for &case in &cases {
                let (cpu, max, loss) = measure(case, size, &stop)
                    .map_err(|e| format!("{}, {size} bytes: {e}", case.name()))?;
                if case == Case::Native {
                    native = cpu;
                }
                let series = figures.entry((size, case)).or_default();
                series.cpu_ns.push(cpu);
                series.ratio.push(cpu / native);
                series.max.push(max);
                series.loss.push(loss * 100.0);
            }
        }
    }
    println!(
        "| bytes | | CPU per copy, ns | relative | maximum, copies/s | loss at 100,000/s, % |"
    );
    println!("|---|---|---|---|---|---|");
    for ((size, case), series) in &figures {
        let range = |all: &[f64]| {
            let least = all.iter().copied().fold(f64::MAX, f64::min);
            let most = all.iter().copied().fold(f64::MIN, f64::max);
            format!("{:.2} ({least:.2} to {most:.2})", median(all))
        };
        println!(
            "| {size} | {} | {:.0} | {} | {:.0} | {:.3} |",
            case.name(),
            median(&series.cpu_ns),
            range(&series.ratio),
            median(&series.max),
            median(&series.loss),
        );
    }
    Ok(())
}

/// Returns CPU per copy, maximum rate of copies, and loss of one case.
fn measure(case: Case, size: usize, stop: &AtomicBool) -> Outcome<(f64, f64, f64)> {
    let lab = Lab::new(1)?;
    let base = Stream {
        kind: SenderKind::Raw,
        size,
        flows: FLOWS,
        rate: Some(RATE / case.copies() as f64),
        seconds: SECONDS,
    };
    // An unused port would be answered with ICMP.
    let _idle = lab.router.run(|| UdpSocket::bind((ROUTER, IDLE_PORT)))??;
    let tunnel = TunnelSender::start(&lab)?;
    let send = |stream| -> Outcome<SendResult> {
        match case {
            Case::Gateway => {
                let sending = || tunnel.send(stream, stop).map_err(|e| e.to_string());
                Ok(lab.source.run(sending)??)
            }
            _ => sender::run(&lab, stream, stop),
        }
    };
    // Bytes of a datagram at the receiver.
    let payload = match case {
        Case::Relay(_) => DATA_HEADER.len() + INNER + size,
        _ => size,
    };
    let alone = {
        let meter = Meter::new(None)?;
        let before = meter.read()?;
        let sent = send(base)?;
        lab.wait_until_quiet()?;
        let threads = meter.since(&before)?.threads + sent.thread_ns as f64;
        threads / sent.packets.max(1) as f64
    };
    let mut running = match case {
        Case::Native => peer::start(&lab, Peer::Mcastor, Rules::Pairs(FLOWS), base.kind, FLOWS)?,
        Case::Relay(_) => peer::start_mcastor(&lab, &relay_settings())?,
        Case::Gateway => peer::start_mcastor(&lab, &gateway_settings())?,
    };
    if let Case::Relay(count) = case {
        join_all(&lab, count)?;
    }
    match case {
        Case::Native => peer::wait_ready(&lab, &mut running, base)?,
        _ => {
            let before = lab.arrived()?[0];
            let deadline = Instant::now() + Duration::from_secs(20);
            while lab.arrived()?[0] < before + FLOWS as u64 {
                if Instant::now() > deadline {
                    return Err("no packet arrives".into());
                }
                send(Stream {
                    rate: Some(1000.0 / case.copies() as f64 + 100.0),
                    seconds: 0.1,
                    ..base
                })?;
            }
        }
    }
    let meter = Meter::new(running.pid())?;
    lab.wait_until_quiet()?;
    let before = (lab.datagrams(payload)?[0], meter.read()?);
    let sent = send(base)?;
    lab.wait_until_quiet()?;
    let threads = meter.since(&before.1)?.threads + sent.thread_ns as f64;
    let arrived = (lab.datagrams(payload)?[0] - before.0) as f64;
    let expected = sent.packets as f64 * case.copies() as f64;
    let cpu = (threads - alone * sent.packets as f64) / arrived.max(1.0);
    let before = lab.datagrams(payload)?[0];
    let fast = send(Stream { rate: None, ..base })?;
    let arrived_fast = (lab.datagrams(payload)?[0] - before) as f64;
    let loss = (1.0 - arrived / expected).max(0.0);
    Ok((cpu, arrived_fast / fast.seconds, loss))
}

/// Runs `ip` with these words in a namespace.
fn ip(netns: &NetNs, words: &str) -> Outcome<()> {
    let run = || Command::new("ip").args(words.split(' ')).output();
    let output = netns.run(run)??;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

// A relay.

fn relay_settings() -> String {
    let mut text = String::from(
        "[[amt.relay]]\nname = \"tunnels\"\nquery_interval = \"31744s\"\nlisten = [\"0.0.0.0:2268\"]\n",
    );
    for flow in 0..FLOWS {
        let (source, group) = SenderKind::Raw.flow(flow);
        let _ = write!(
            text,
            "[[route]]\nfrom = \"{}\"\nsource = \"{source}\"\ngroup = \"{group}\"\n\
             to = [\"tunnels\"]\njoin = false\n",
            lab::IN
        );
    }
    text
}

/// Joins all flows with `count` gateways.
fn join_all(lab: &Lab, count: usize) -> Outcome<()> {
    let host = &lab.receivers[0].netns;
    ip(host, &format!("address add {GATEWAYS}/32 dev lo"))?;
    ip(&lab.router, &format!("route add {GATEWAYS}/32 via {HOST}"))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    for n in 0..count {
        while let Err(e) = join(host, n as u32) {
            if Instant::now() > deadline {
                return Err(format!("gateway {n} cannot join: {e}").into());
            }
        }
    }
    ip(host, &format!("address del {GATEWAYS}/32 dev lo"))?;
    // The relay publishes changes of its members at once, but not more often than every 10 ms.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// Joins all flows with one gateway.
fn join(host: &NetNs, nonce: u32) -> Outcome<()> {
    let socket = host.run(|| UdpSocket::bind((GATEWAYS, 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect((RELAY, PORT))?;
    let request = AmtMessage::Request {
        nonce,
        is_mld: false,
        flags: FlagLayout::Standard,
    };
    socket.send(&request.to_bytes())?;
    let mut buffer = [0; 2048];
    let len = socket.recv(&mut buffer)?;
    let AmtMessage::MembershipQuery { mac, nonce, .. } =
        AmtMessage::parse(&buffer[..len]).map_err(|e| e.to_string())?
    else {
        return Err("the relay answered with another message".into());
    };
    let record = |flow| -> Outcome<GroupRecord> {
        let (source, group) = SenderKind::Raw.flow(flow);
        Ok(GroupRecord {
            kind: RecordType::AllowNewSources,
            group: Group::new(group.into()).map_err(|e| e.to_string())?,
            sources: vec![Source::new(source.into()).map_err(|e| e.to_string())?],
        })
    };
    let records = (0..FLOWS).map(record).collect::<Outcome<Vec<_>>>()?;
    let report = MembershipMessage::Records(records);
    let packets = build(&report, Ipv4Addr::UNSPECIFIED.into(), 1200).map_err(|e| e.to_string())?;
    for packet in &packets {
        let update = AmtMessage::MembershipUpdate { mac, nonce, packet };
        socket.send(&update.to_bytes())?;
    }
    Ok(())
}

// A gateway.

fn gateway_settings() -> String {
    let mut text = format!(
        "[[amt.gateway]]\nname = \"internet\"\nrelay = \"{SOURCE}\"\nfamilies = [\"ipv4\"]\n"
    );
    for flow in 0..FLOWS {
        let (source, group) = SenderKind::Raw.flow(flow);
        let _ = write!(
            text,
            "[[route]]\nfrom = \"internet\"\nsource = \"{source}\"\ngroup = \"{group}\"\n\
             to = [\"{}\"]\n",
            lab::out(0)
        );
    }
    text
}

/// The relay of the gateway: answers its messages, and sends it packets. Dropping it ends it.
struct TunnelSender {
    socket: Arc<DatagramSocket>,
    gateway: Arc<Mutex<SocketAddr>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TunnelSender {
    fn start(lab: &Lab) -> Outcome<Self> {
        let open = || DatagramSocket::open((SOURCE, PORT).into(), None);
        let socket = Arc::new(lab.source.run(open)??);
        let gateway = Arc::new(Mutex::new(SocketAddr::from((ROUTER, IDLE_PORT))));
        let stop = Arc::new(AtomicBool::new(false));
        let (answering, known, stopped) = (socket.clone(), gateway.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut receiver = DatagramReceiver::new(answering.clone());
            while !stopped.load(Ordering::Relaxed) {
                let mut datagrams = Vec::new();
                let Ok(buffer) = receiver.receive(&mut datagrams) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                for datagram in datagrams {
                    let range = datagram.start..datagram.start + datagram.len;
                    let message = buffer.bytes().get(range).unwrap_or_default();
                    if let Some(answer) = answer(message) {
                        if let Ok(mut known) = known.lock() {
                            *known = datagram.endpoint.remote;
                        }
                        let _ = answering.send(datagram.endpoint, &answer);
                    }
                }
            }
        });
        Ok(Self {
            socket,
            gateway,
            stop,
            thread: Some(thread),
        })
    }

    /// Sends the packets of a stream through the tunnel.
    fn send(&self, stream: Stream, stop: &AtomicBool) -> Outcome<SendResult> {
        let remote = *self.gateway.lock().map_err(|e| e.to_string())?;
        let to = [TunnelEndpoint {
            remote,
            local: SOURCE.into(),
        }; BATCH];
        let flows = 0..stream.flows;
        let packets = flows.map(|flow| sender::packet(stream.size, stream.kind.flow(flow)));
        let packets: Vec<_> = packets.collect();
        sender::pin(SENDER_CORE)?;
        let cpu = meter::own_ns();
        let mut copies = CopySender::default();
        let mut pacer = Pacer::new(stream.rate);
        let max = stream
            .rate
            .map_or(u64::MAX, |rate| (rate * stream.seconds) as u64);
        let limit = Duration::from_secs_f64(match stream.rate {
            Some(_) => stream.seconds * 2.0,
            None => stream.seconds,
        });
        let (mut sent, mut batches) = (0u64, 0);
        let started = Instant::now();
        while sent < max && started.elapsed() < limit && !stop.load(Ordering::Relaxed) {
            let due = match pacer.poll(started.elapsed()) {
                PaceAction::Sleep(pause) => {
                    std::thread::sleep(pause);
                    continue;
                }
                PaceAction::Send(due) => due.min(max - sent).min(BATCH as u64) as usize,
            };
            let packet = &packets[batches % packets.len()];
            batches += 1;
            match copies.send(&self.socket, &[&DATA_HEADER, packet], None, &to[..due]) {
                Ok(n) => {
                    sent += n as u64;
                    pacer.sent(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(SendResult {
            packets: sent,
            seconds: started.elapsed().as_secs_f64(),
            thread_ns: meter::own_ns().saturating_sub(cpu),
        })
    }
}

impl Drop for TunnelSender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns the answer of the relay to a message.
fn answer(message: &[u8]) -> Option<Vec<u8>> {
    match AmtMessage::parse(message).ok()? {
        AmtMessage::RelayDiscovery { nonce } => {
            let relay = SOURCE.into();
            Some(AmtMessage::RelayAdvertisement { nonce, relay }.to_bytes())
        }
        AmtMessage::Request { nonce, .. } => {
            let query = MembershipMessage::Query(Query {
                generation: Generation::Three,
                group: None,
                max_response_time: Duration::from_secs(1),
                suppress: false,
                robustness: 2,
                interval: Some(Duration::from_secs(125)),
                sources: Vec::new(),
            });
            let packets = build(&query, SOURCE.into(), 1200).ok()?;
            let query = AmtMessage::MembershipQuery {
                is_limit_reached: false,
                mac: ResponseMac([1; 6]),
                nonce,
                packet: packets.first()?,
                gateway: None,
                flags: FlagLayout::Standard,
            };
            Some(query.to_bytes())
        }
        _ => None,
    }
}
